"""Writes the results of `site predict` and brings them to the PACS; the only part of inference that writes files."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from client.inference.dicom import secondary_captures, structured_report
from client.inference.originals import NotPlacedError, Originals
from client.inference.pictures import explained_films
from client.inference.predict import Prediction
from client.inference.records import to_csv, to_fhir, to_json
from client.inference.scorer import Scorer
from client.ingest.deidentify import Deidentifier
from client.ingest.outbox import Outbox, Sent
from client.ingest.site_file import SiteFile
from client.ingest.sources.objects import to_file
from shared_model.errors import ConfigError
from shared_model.private_files import make_private_folder, write_private

OUTBOX = "outbox"


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written. objects: DICOM objects in files. sent: what the sending did, None where none was asked for.
    not_placed: reason of NOT_PLACED -> women for whose films there is no way back to the hospital's own."""

    predictions: int
    fhir: int
    objects: int
    sent: Sent | None
    not_placed: Mapping[str, int] = field(default_factory=dict)


def write_results(
    site: SiteFile, scorer: Scorer, predictions: Sequence[Prediction], refused: dict[str, str], out: Path, *,
    fhir: bool, dicom: bool, send: bool,
) -> Written:  # fmt: skip
    """Write one folder, its owner's alone.

    Raises:
        ConfigError: `send` without a PACS in site.yaml.
        SourceError: `dicom` or `send`, and the PACS that films came from cannot be asked whose they are.
        StorageError: the disk refuses.
    """
    if send and site.results is None:
        raise ConfigError("site.yaml names no PACS that takes results", expected="results: {host, port, called_ae}",
                          remedy="add `results`, or leave --send away")  # fmt: skip
    make_private_folder(out)
    write_private(out / "predictions.csv", to_csv(predictions, scorer).encode())
    write_private(out / "predictions.json", to_json(predictions, scorer, refused).encode())
    if fhir:
        make_private_folder(out / "fhir")
        for one in predictions:
            text = json.dumps(to_fhir(one, scorer), indent=2, ensure_ascii=False) + "\n"
            write_private(out / "fhir" / f"{one.case.pseudonym}.json", text.encode())
    objects, sent = 0, None
    not_placed: dict[str, str] = {}
    if dicom or send:
        make_private_folder(out / "dicom")
        with Originals(site, Deidentifier(site.read_key())) as originals:
            for one in (one for one in predictions if one.case.films):
                try:
                    made = objects_of(site, scorer, one, originals)
                except NotPlacedError as error:
                    not_placed[one.case.pseudonym] = error.reason
                    continue
                for dataset in made:
                    _put(dataset, out / "dicom", site.work / OUTBOX if send else None)
                objects += len(made)
        if not_placed:
            text = to_json(predictions, scorer, refused, not_placed=not_placed)
            write_private(out / "predictions.json", text.encode())
    if send:
        assert site.results is not None
        with Outbox(site.work / OUTBOX) as box:
            sent = box.send(site.results)
    return Written(predictions=len(predictions), fhir=len(predictions) if fhir else 0, objects=objects, sent=sent,
                   not_placed=Counter(not_placed.values()))  # fmt: skip


def _put(dataset: Dataset, folder: Path, outbox: Path | None) -> None:
    # Named by a hash of the UID: nothing that came in a DICOM file gets into a path.
    name = hashlib.sha256(str(dataset.SOPInstanceUID).encode()).hexdigest()[:32]
    write_private(folder / f"{name}.dcm", to_file(dataset, ExplicitVRLittleEndian))
    if outbox is not None:
        with Outbox(outbox) as box:
            box.put(dataset)


def objects_of(site: SiteFile, scorer: Scorer, prediction: Prediction, originals: Originals) -> list[Dataset]:
    """The Secondary Captures and the report of one woman.

    Raises:
        NotPlacedError: there is no way back to the hospital's own films. SourceError: the PACS cannot be asked.
    """
    headers = originals.of(prediction.case)
    films = explained_films(
        scorer, prediction.case, pipeline=site.imaging.pipeline(), policy=site.film_policy.admission(),
        declared_spacing_mm=site.film_policy.declared_spacing_mm,
    )  # fmt: skip
    return [*secondary_captures(prediction, films, headers, scorer),
            structured_report(prediction, list(headers.values()), scorer)]  # fmt: skip
