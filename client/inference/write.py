"""Writes the results of `site predict` and brings them to the PACS; the only part of inference that writes files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from client.inference.dicom import original, secondary_captures, structured_report
from client.inference.pictures import explained_films
from client.inference.predict import Prediction
from client.inference.records import to_csv, to_fhir, to_json
from client.inference.scorer import Scorer
from client.ingest.outbox import Outbox, Sent
from client.ingest.site_file import SiteFile
from client.ingest.sources.objects import to_file
from shared_model.errors import ConfigError
from shared_model.private_files import make_private_folder, write_private

OUTBOX = "outbox"


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written. objects: DICOM objects in files. sent: what the sending did, None where none was asked for."""

    predictions: int
    fhir: int
    objects: int
    sent: Sent | None


def write_results(
    site: SiteFile, scorer: Scorer, predictions: Sequence[Prediction], refused: dict[str, str], out: Path, *,
    fhir: bool, dicom: bool, send: bool,
) -> Written:  # fmt: skip
    """Write one folder, its owner's alone.

    Raises:
        ConfigError: `send` without a PACS in site.yaml, or a film's original is not at hand.
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
    if dicom or send:
        make_private_folder(out / "dicom")
        for one in (one for one in predictions if one.case.films):
            for dataset in objects_of(site, scorer, one):
                # Named by a hash of the UID: nothing that came in a DICOM file gets into a path.
                name = hashlib.sha256(str(dataset.SOPInstanceUID).encode()).hexdigest()[:32]
                write_private(out / "dicom" / f"{name}.dcm", to_file(dataset, ExplicitVRLittleEndian))
                objects += 1
                if send:
                    with Outbox(site.work / OUTBOX) as box:
                        box.put(dataset)
    if send:
        assert site.results is not None
        with Outbox(site.work / OUTBOX) as box:
            sent = box.send(site.results)
    return Written(predictions=len(predictions), fhir=len(predictions) if fhir else 0, objects=objects, sent=sent)


def objects_of(site: SiteFile, scorer: Scorer, prediction: Prediction) -> list[Dataset]:
    """The Secondary Captures and the report of one woman."""
    films = explained_films(
        scorer, prediction.case, pipeline=site.imaging.pipeline(), policy=site.film_policy.admission(),
        declared_spacing_mm=site.film_policy.declared_spacing_mm,
    )  # fmt: skip
    headers = {view: original(film) for view, film in films.items()}
    return [*secondary_captures(prediction, films, headers, scorer),
            structured_report(prediction, list(headers.values()), scorer)]  # fmt: skip
