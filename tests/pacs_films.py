"""Films of a small synthetic hospital for tests of the network sources, and a simple stand-in of the de-identifier."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from tests.films import breast_film, film_dataset, write_film

VIEWS = ("L_CC", "L_MLO", "R_CC", "R_MLO")
SYNTAXES = ("explicit", "implicit", "rle", "jpeg_ls", "jpeg_2000", "jpeg_lossless")
SECRETS = ("WINTERHALTER", "BERTA", "PID-77", "9.8.7.6")  # planted in names, ids and UIDs
PERIOD = {"from": "2024-02-20", "to": "2024-04-10"}


class HashingDeidentifier:
    """What the sources need: hashed UIDs and ids, no names. The real one is client/ingest/deidentify."""

    def __init__(self, key: str = "k") -> None:
        self._key = key

    def uid(self, uid: str) -> str:
        return f"2.25.{int(hashlib.sha256(f'{self._key}{uid}'.encode()).hexdigest()[:30], 16)}"

    def dataset(self, dataset: Dataset) -> Dataset:
        if "PatientComments" in dataset:
            raise ValueError(f"cannot treat {dataset.PatientComments}")  # a text that must be shown nowhere
        clean = Dataset(dataset)
        for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
            setattr(clean, keyword, self.uid(str(dataset[keyword].value)))
        clean.PatientID, clean.PatientName = self.uid(dataset.PatientID)[5:21], ""
        return clean


def film(woman: int, view: str, *, study: int = 0, number: int = 1, **changes: Any) -> Dataset:
    """One film of a woman; `number` tells apart the films of a view. changes: elements by keyword."""
    side = 96 if view[0] == "L" else 80
    picture = breast_film(rows=side, columns=72, seed=28 * woman + 4 * number + VIEWS.index(view), view=view)
    ds = film_dataset(picture, view=view, spacing_mm=2.0)
    ds.PatientID, ds.PatientName = f"PID-77{woman:03d}", f"WINTERHALTER^BERTA{woman}"
    ds.StudyDate = f"2024{2 + woman % 3:02d}{20 + woman % 9 if woman % 3 == 0 else 1 + woman % 9:02d}"
    ds.StudyInstanceUID = f"9.8.7.6.{woman}.{study}"
    ds.SeriesInstanceUID = f"{ds.StudyInstanceUID}.{1 + VIEWS.index(view) // 2}"
    ds.SOPInstanceUID = f"{ds.SeriesInstanceUID}.{VIEWS.index(view)}.{number}"
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    return ds


def write_hospital(folder: Path, *, women: int = 4) -> int:
    """Four films of each woman, all transfer syntaxes; returns how many films."""
    count = 0
    for woman in range(women):
        for view in VIEWS:
            write_film(folder / f"{count:04d}.dcm", film(woman, view), syntax=SYNTAXES[count % len(SYNTAXES)])
            count += 1
    return count


def content(store_folder: Path) -> dict[str, str]:
    """Path below the store -> digest, of all films in it."""
    films = sorted((store_folder / "films").rglob("*.dcm"))
    return {str(p.relative_to(store_folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in films}


class Stopping(HashingDeidentifier):
    """Says `so many` on standard output once it has treated `films`, and treats no more."""

    def __init__(self, films: int) -> None:
        super().__init__()
        self._left = films

    def dataset(self, dataset: Dataset) -> Dataset:
        if self._left == 0:
            print("so many", flush=True)
            sys.stdin.read()
        self._left -= 1
        return super().dataset(dataset)


def main() -> None:
    """`python -m tests.pacs_films SETTINGS.json STORE FILMS`: a collection that stops after so many, to be killed."""
    from client.ingest.sources import DicomWebSource, DimseSource, Received

    settings = json.loads(Path(sys.argv[1]).read_text())
    kind = DimseSource if settings["kind"] == "dimse" else DicomWebSource
    with Received(Path(sys.argv[2])) as store:
        print(kind(**settings).collect(store, Stopping(int(sys.argv[3]))).words(), flush=True)


if __name__ == "__main__":
    main()
