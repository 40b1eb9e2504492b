"""`mammofed site predict | explain | serve`; thin, the work is beside it. torch is imported when work begins."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from shared_model.released import ReleasedModel

SITE = click.argument("site_yaml", type=click.Path(exists=True, dir_okay=False, path_type=Path))
KEY = click.option("--key", "key_hex", metavar="HEX",
                   help="Key that must have signed the model's passport (default: site.yaml's).")  # fmt: skip
MODEL = click.option("--model", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path),
                     help="Folder of a released model (`mammofed server release` makes it).")  # fmt: skip


@click.command()
@SITE
@MODEL
@KEY
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path),
              help="Folder for the results; they carry identities.")  # fmt: skip
@click.option("--patient", "patients", multiple=True, help="The hospital's id; again for more (default: all).")
@click.option("--worklist", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="A CSV file of the hospital's ids, in a column patient_id or one a line.")  # fmt: skip
@click.option("--fhir", is_flag=True, help="Also one FHIR RiskAssessment a woman.")
@click.option("--dicom", is_flag=True, help="Also heat maps (Secondary Capture) and a report (SR, TID 1500).")
@click.option("--send", is_flag=True, help="Bring the DICOM objects to the PACS that `results` of site.yaml names.")
def predict(
    site_yaml: Path, model: Path, key_hex: str | None, out: Path, patients: tuple[str, ...], worklist: Path | None,
    fhir: bool, dicom: bool, send: bool,
) -> None:  # fmt: skip
    """Score the women of the site's sources, labelled or not, with a released model.

    Example:  mammofed site predict north/site.yaml --model density-2027-model --out results --dicom
    """
    from client.cli import _stage
    from client.inference.cases import read_cases
    from client.inference.originals import describe
    from client.inference.predict import predict as score_all
    from client.inference.records import USED
    from client.inference.reference import site_reference
    from client.inference.scorer import Scorer
    from client.inference.write import write_results
    from client.ingest.site_file import read_site
    from client.ingest.sources.settings import read_ids
    from shared_model.contract import load_contract
    from shared_model.released import ReleasedModel

    site, contract = read_site(site_yaml), load_contract()
    released = ReleasedModel.read(model, key=site.signer(key_hex))
    _say_who_vouches(released)
    scorer = Scorer(released, contract)
    scorer.check_pipeline(site.imaging.pipeline())
    wanted = [*patients, *([] if worklist is None else read_ids(worklist))]
    found = read_cases(site, contract=contract, patients=wanted or None, stage=_stage)
    reference = site_reference(scorer, site.cohort, site.work / "inference")
    predictions = score_all(scorer, found.cases, pipeline=site.imaging.pipeline(), reference=reference)
    written = write_results(site, scorer, predictions, dict(found.refused), out, fhir=fhir, dicom=dicom, send=send)
    unusual, positive = sum(p.unusual is True for p in predictions), sum(p.score.positive for p in predictions)
    rests = Counter(one.case.modalities for one in predictions)
    click.echo(f"Scored      {written.predictions} women ({positive} above the threshold, {unusual} unusual), "
               f"{len(found.refused)} not")  # fmt: skip
    click.echo("Rests on    " + (", ".join(f"{words} {rests[name]}" for name, words in USED.items() if rests[name])
                                 or "nothing"))  # fmt: skip
    if reference is None:
        click.echo(f"! {site.cohort} is no cohort of this model's pipeline with at least 50 women: whether a case is "
                   "unusual was not judged")  # fmt: skip
    further = f", {written.fhir} FHIR resources, {written.objects} DICOM objects" if fhir or dicom or send else ""
    click.echo(f"Written     {out}: predictions.csv, predictions.json{further}")
    for line in describe(written.not_placed):
        click.echo(f"! {line} (who: `not_placed` of predictions.json)")
    if written.sent is not None:
        refused = ", ".join(f"{count} {reason}" for reason, count in written.sent.failed.items()) or "none"
        click.echo(f"PACS        {written.sent.sent} sent, {written.sent.waiting} waiting, refused: {refused} "
                   f"{written.sent.lost}")  # fmt: skip
    click.echo(f"Next        `mammofed site explain {site_yaml} PATIENT --model {model}` explains one of them")


@click.command()
@SITE
@click.argument("patients", nargs=-1, required=True)
@MODEL
@KEY
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder for the pages.")
@click.option("--method", default="hirescam", show_default=True,
              help="Of the heat maps: hirescam, gradcam, integrated_gradients, occlusion.")  # fmt: skip
def explain(
    site_yaml: Path, patients: tuple[str, ...], model: Path, key_hex: str | None, out: Path, method: str
) -> None:
    """Explain the scores of PATIENTS (the hospital's ids): a page each, and a board list where there are several.

    Example:  mammofed site explain north/site.yaml 4711 --model density-2027-model --out pages
    """
    from client.cli import _stage
    from client.inference.explain import write_pages
    from client.ingest.site_file import read_site
    from shared_model.released import ReleasedModel

    site = read_site(site_yaml)
    released = ReleasedModel.read(model, key=site.signer(key_hex))
    _say_who_vouches(released)
    for path in write_pages(site, released, patients, out, method=method, stage=_stage):
        click.echo(f"Page        {path}")


@click.command()
@SITE
@MODEL
@KEY
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; beyond loopback --token.")
@click.option("--port", default=8600, show_default=True, type=click.IntRange(0, 65535))
@click.option("--token", "token_file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="File, its owner's alone, with a secret of 16 letters or more that callers send.")  # fmt: skip
@click.option("--name", "names", multiple=True, help="A host name under which callers reach it, beside loopback's.")
@click.option("--workers", type=click.IntRange(1, 64), help="Films decoded at a time (default: one a core).")
def serve(
    site_yaml: Path, model: Path, key_hex: str | None, host: str, port: int, token_file: Path | None,
    names: tuple[str, ...], workers: int | None,
) -> None:  # fmt: skip
    """Answer requests for scores on this machine by HTTP (OpenAPI: /openapi.json). Ctrl-C ends it.

    Beyond loopback put TLS in front of it (a reverse proxy of the hospital): films and answers are a patient's.

    Example:  mammofed site serve north/site.yaml --model density-2027-model
    """
    from client.inference.listen import listen
    from client.ingest.site_file import read_site
    from shared_model.released import ReleasedModel

    site = read_site(site_yaml)
    released = ReleasedModel.read(model, key=site.signer(key_hex))
    _say_who_vouches(released)
    listen(site, released, host=host, port=port, token_file=token_file, names=names, workers=workers)


def _say_who_vouches(released: ReleasedModel) -> None:
    vouched = released.vouched
    click.echo(f"{'Passport    ' if vouched.signed else '! '}{vouched.words}")
    for limit in vouched.limits:
        click.echo(f"Limit       {limit}")
    for words in released.without:
        click.echo(f"! {words}")


COMMANDS = (predict, explain, serve)
