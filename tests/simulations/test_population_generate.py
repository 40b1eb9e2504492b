"""Source folders of synthetic hospitals: layout, bytes, cache, and that the importer takes in every film."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest

from client.ingest import prepare_site
from shared_model.cohort import Cohort
from shared_model.contract import load_contract
from shared_model.errors import ConfigError, StorageError
from shared_model.imaging import PipelineConfig
from simulations.hospitals import default_hospitals
from simulations.population import generate
from simulations.population import recipe as recipe_module
from simulations.population.generate import TRUTH_COLUMNS
from simulations.population.recipe import recipe_sha256

POPULATION = default_hospitals(
    sites=2, patients=44, held_out=24, seed=11, film_height=80, film_width=64, film_spacing_mm=2.5, conspicuity=5.0
)
TINY = replace(
    POPULATION, hospitals=(replace(POPULATION.hospitals[0], patients=3),),
    held_out=replace(POPULATION.held_out, patients=2),
)  # fmt: skip


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*")) if path.is_file()
    }  # fmt: skip


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return generate(POPULATION, tmp_path_factory.mktemp("cache"), workers=1)


def test_folders_are_laid_out_as_the_importer_expects(sources: dict[str, Path]) -> None:
    assert list(sources) == ["site_01", "site_02", "held_out"]
    for spec in POPULATION.all:
        source = sources[spec.name]
        assert sorted(p.name for p in source.iterdir()) == ["clinical.csv", "dicom", "truth.csv"]
        table = rows(source / "clinical.csv")
        assert len(table) == spec.patients == len({row["patient_id"] for row in table})
        assert {row["label"] for row in table} == {"0", "1"}
        films = [pydicom.dcmread(path) for path in (source / "dicom").rglob("*.dcm")]
        assert {f.PatientID for f in films} <= {row["patient_id"] for row in table}
        assert len({f.SOPInstanceUID for f in films}) == len(films) > 3 * spec.patients
        for film in films[:8]:
            row = next(r for r in table if r["patient_id"] == film.PatientID)
            assert film.StudyDate == row["exam_date"].replace("-", "")


def test_age_in_the_header_is_the_age_by_the_dates(sources: dict[str, Path]) -> None:
    for path in list((sources["site_01"] / "dicom").rglob("*.dcm"))[:60]:
        film = pydicom.dcmread(path, stop_before_pixels=True)
        years = (int(film.StudyDate) - int(film.PatientBirthDate)) // 10_000
        assert years == int(film.PatientAge[:3])


def test_truth_boxes_lie_in_their_films(sources: dict[str, Path]) -> None:
    for source in sources.values():
        films = {f.SOPInstanceUID: f for f in (pydicom.dcmread(p) for p in (source / "dicom").rglob("*.dcm"))}
        labels = {row["patient_id"]: row["label"] for row in rows(source / "clinical.csv")}
        truth = rows(source / "truth.csv")
        assert tuple(truth[0]) == TRUTH_COLUMNS
        for row in truth:
            film = films[row["sop_uid"]]
            assert film.PatientID == row["patient_id"]
            row0, column0, row1, column1 = (int(row[k]) for k in TRUTH_COLUMNS[3:])
            assert 0 <= row0 < row1 <= film.Rows and 0 <= column0 < column1 <= film.Columns
            box = film.pixel_array[row0:row1, column0:column1]
            air = 2**film.BitsStored - 1 if film.PhotometricInterpretation == "MONOCHROME1" else 0
            assert (box != air).any()
            assert row["kind"].endswith("malignant") == (labels[row["patient_id"]] == "1")


def test_two_workers_write_the_same_bytes(sources: dict[str, Path], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    again = generate(POPULATION, tmp_path, workers=2, progress=lambda done, total: seen.append((done, total)))
    assert digests(again["site_01"].parent) == digests(sources["site_01"].parent)
    assert seen[-1] == (68, 68) and [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_second_time_nothing_is_made(tmp_path: Path) -> None:
    first = generate(TINY, tmp_path, workers=1)
    times = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    seen: list[tuple[int, int]] = []
    assert generate(TINY, tmp_path, workers=1, progress=lambda done, total: seen.append((done, total))) == first
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == times and seen == [(5, 5)]


def test_recipe_names_what_the_bytes_depend_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = generate(TINY, tmp_path, workers=1)["held_out"].parent
    document = json.loads((home / "recipe.json").read_text())
    assert {"numpy", "scipy", "pydicom", "python"} <= set(document["versions"])
    assert document["population"]["seed"] == 11
    before = recipe_sha256(TINY)
    assert home.name == before[:16]
    assert recipe_sha256(replace(TINY, seed=12)) != before != recipe_sha256(replace(TINY, conspicuity=4.0))
    monkeypatch.setattr(recipe_module, "version", lambda name: "0.0")
    assert recipe_sha256(TINY) != before


def test_full_disk_leaves_nothing_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.write_bytes
    written = 0

    def full(path: Path, data: bytes) -> int:
        nonlocal written
        written += 1
        if written > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="No space left"):
        generate(TINY, tmp_path, workers=1)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert (generate(TINY, tmp_path, workers=1)["held_out"] / "clinical.csv").exists()


def test_another_process_that_was_faster_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / recipe_sha256(TINY)[:16]
    real = Path.rename

    def late(path: Path, target: Path) -> Path:
        monkeypatch.undo()
        generate(TINY, tmp_path, workers=1)
        return real(path, target)

    monkeypatch.setattr(Path, "rename", late)
    generate(TINY, tmp_path, workers=1)
    assert [p.name for p in tmp_path.iterdir()] == [home.name]


def test_no_worker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        generate(TINY, tmp_path, workers=0)


def test_importer_takes_in_every_woman_and_every_film(sources: dict[str, Path], tmp_path: Path) -> None:
    pipeline = PipelineConfig(
        height=56,
        width=42,
        spacing_mm=3.5,
        percentiles=(1.0, 99.0),
        denoise="none",
        max_pixels=1 << 20,
        max_bytes=1 << 22,
    )
    contract = load_contract()
    for spec in POPULATION.all:
        report = prepare_site(
            source=sources[spec.name], destination=tmp_path / spec.name, contract=contract, pipeline=pipeline,
            site=spec.name, key=b"k" * 32, workers=1, progress=None,
        )  # fmt: skip
        cohort = Cohort.open(tmp_path / spec.name)
        assert report.films_quarantined == report.patients_quarantined == 0
        assert len(cohort) == spec.patients
        labels = [int(row["label"]) for row in rows(sources[spec.name] / "clinical.csv")]
        assert int(cohort.labels.sum()) == sum(labels)
        absent = set(report.fields["absent_columns"])  # type: ignore[call-overload, index]
        assert absent == set(spec.missing_columns)
