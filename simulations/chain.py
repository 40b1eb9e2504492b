"""`mammofed simulate chain RUN_DIR`: a finished study through all that follows, as coordinator and hospital would.

Report, passport, ONNX, release; then a hospital that the model has not seen imports, scores and explains with a
site.yaml of its own; then what each hospital of the study gained. Each step is the function behind the command that is
named beside it, on the same files. The hospital has the study's held-out women, who chose and tested the model,
so that its scores are no further evidence; or all women of a public collection, however few (two of CBIS-DDSM can be
scored and explained, and are no study). It is how real films are tried: `simulations/hospitals/README.md`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from client.gain.show import sentence
from client.gain.study import studies_of_run, work_out
from client.inference.cases import Cases, read_cases
from client.inference.explain import write_pages
from client.inference.predict import Prediction, predict
from client.inference.reference import site_reference
from client.inference.scorer import Scorer
from client.inference.write import write_results
from client.ingest.example import write_example
from client.ingest.imports import import_site
from client.ingest.site_file import SiteFile, read_site
from server.release import write_release
from server.reporting import write_report
from server.reporting.answer import answer
from server.reporting.facts import read_facts
from shared_model.contract import load_contract
from shared_model.errors import ConfigError
from shared_model.export.export import export_onnx
from shared_model.passport import verify
from shared_model.released import ReleasedModel
from simulations.composition import compose_config
from simulations.hospitals.public import SOURCES, write_source
from simulations.parties import HELD_OUT
from simulations.plan import pipeline_of

Config = dict[str, Any]
PAGES = 2  # women who are explained


@dataclass(frozen=True)
class Step:
    """One line of what came of it. command: what a person would type. words: the figures."""

    command: str
    words: str


def run_chain(run_dir: Path, out: Path, *, overrides: Sequence[str] = (), gains: bool = True) -> Iterator[Step]:
    """Do every step and tell of each when it is done.

    Args:
        run_dir: of a COMPLETE study that was simulated here. out: empty or new; all results go there.
        overrides: the hospital's films, as for a study (`cohort=cbis_ddsm cohort.source=DIR`); none: the held-out ones.
        gains: also train each hospital's own model and say what it gained.

    Raises:
        ConfigError: `out` is in use, or the run's films are gone. MammoFedError: a step failed, in its own words.
    """
    settings = _settings(run_dir)
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is in use", expected="an empty or new folder", remedy="name another one")
    out.mkdir(parents=True, exist_ok=True)
    report = write_report(run_dir)
    facts = read_facts(run_dir)
    said = answer(facts.summary, facts.protocol, data=facts.data)
    yield Step("report", f"{report}. {' '.join(said[:2])}")
    checked = verify(run_dir)
    yield Step("passport verify", f"signature fits, {len(checked.checked)} files are those that it names")
    done = export_onnx(run_dir, out / "model.onnx")
    yield Step("export", f"{done.parity.women} women, {done.parity.answers} answers, greatest difference "
                         f"{done.parity.worst:.1e}")  # fmt: skip
    model = out / "model"
    write_release(run_dir, model)
    cohort = compose_config(overrides)["cohort"] if overrides else settings["cohort"]
    source = _collected(cohort, out, settings) if overrides else _held_out(run_dir)
    yield from at_hospital(source, model, out, {**settings, "cohort": cohort})
    found = studies_of_run(run_dir, site=None, model=None, initial=None, summary=None) if gains else []
    for study in found:
        yield Step("site gain", sentence(work_out(study, local=True)))


def at_hospital(source: Path, model: Path, out: Path, settings: Config) -> Iterator[Step]:
    """Import, score and explain at a hospital of its own; `out` gets hospital/, results/ and pages/.

    Args:
        source: `dicom/` and `clinical.csv`. model: a released model's folder. settings: of the launch; `imaging` and
            `cohort` are used.
    """
    site = read_site(write_site(out / "hospital", source, settings))
    contract = load_contract()
    imported = import_site(site, contract=contract)
    released = ReleasedModel.read(model)
    scorer = Scorer(released, contract)
    yield Step("site import", f"{imported.report.patients_prepared:,} women, {imported.report.films_prepared:,} films")
    found, predictions = _scored(site, scorer)
    written = write_results(site, scorer, predictions, dict(found.refused), out / "results", fhir=True, dicom=True,
                            send=False)  # fmt: skip
    positive = sum(one.score.positive for one in predictions)
    yield Step("site predict", f"{len(predictions)} women scored ({positive} above the threshold), "
                               f"{len(found.refused)} not; CSV, JSON, {written.fhir} FHIR resources, {written.objects} "
                               "DICOM objects")  # fmt: skip
    filmed = [one.case.patient_id for one in predictions if one.case.films][:PAGES]
    pages = write_pages(site, released, filmed, out / "pages", method="hirescam")
    yield Step("site explain", f"{len(pages)} pages. {scorer.map_words()}")


def write_site(folder: Path, source: Path, settings: Config) -> Path:
    """A hospital's site.yaml for a source folder of this simulator; returns its path."""
    path = write_example(folder)
    values = yaml.safe_load(path.read_text("utf-8"))
    values["imaging"] = settings["imaging"]
    values["films"] = [{"kind": "folder", "path": str((source / "dicom").resolve())}]
    values["clinical"] = [{"kind": "csv", "path": str((source / "clinical.csv").resolve())}]
    values["clinical_policy"]["undated"] = "accept"  # public collections have no dates
    if settings["cohort"]["kind"] != "synthetic":  # scanned films, whose headers say little
        values["film_policy"] |= {"burned_in": "look", "secondary_capture": "accept",
                                  "declared_spacing_mm": settings["cohort"].get("declared_spacing_mm")}  # fmt: skip
    path.write_text(yaml.safe_dump(values), "utf-8")
    return path


def _scored(site: SiteFile, scorer: Scorer) -> tuple[Cases, Sequence[Prediction]]:
    found = read_cases(site, contract=scorer.contract)
    reference = site_reference(scorer, site.cohort, site.work / "inference")
    return found, predict(scorer, found.cases, pipeline=site.imaging.pipeline(), reference=reference)


def _settings(run_dir: Path) -> Config:
    path = run_dir / "launch.json"
    if not path.is_file() or not (run_dir / "protocol.json").is_file():
        raise ConfigError(
            f"{run_dir} is no single study that was simulated here", expected="launch.json and protocol.json in it",
            remedy="run the study without `baselines`, `arms` and `seeds`, and give its run directory",
        )  # fmt: skip
    found: Config = json.loads(path.read_bytes())
    return found


def _collected(cohort: Config, out: Path, settings: Config) -> Path:
    """All women of a public collection as one hospital's source folder."""
    kind = str(cohort["kind"])
    if kind not in SOURCES:
        raise ConfigError("cohort: no collection of films", found=kind, expected=" | ".join(SOURCES))
    pipeline = pipeline_of(settings)
    women = SOURCES[kind].collect(cohort, pipeline=pipeline, workers=settings["workers"] or os.cpu_count() or 1).women
    for _ in write_source(out / "source", list(women), pipeline=pipeline):
        pass
    return out / "source"


def _held_out(run_dir: Path) -> Path:
    """The source folder of the evaluator's cohort, which the cache keeps beside it."""
    cohort = Path(json.loads((run_dir / "sites" / "evaluator" / "site.json").read_bytes())["cohort"])
    recipe = "-".join(cohort.parent.name.split("-")[:-2])  # <recipe>-<pipeline>-<contract>, see launch.cohort_folder
    for kind in ("public", "populations"):
        folder = cohort.parent.parent.parent / kind / recipe / HELD_OUT
        if os.access(folder / "clinical.csv", os.R_OK):
            return folder
    raise ConfigError("the films of the held-out women are no longer in the cache", found=str(cohort.parent.parent),
                      remedy="run the study again with the same `cache`")  # fmt: skip
