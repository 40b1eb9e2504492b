"""A site's folder becomes a cohort; whatever is wrong with it is set aside with its reason, and nothing is lost."""

from __future__ import annotations

import csv
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest

from client.ingest import PreparationReport, prepare_site
from client.ingest.pseudonyms import Pseudonyms
from client.ingest.quarantine import REASONS as INGEST_REASONS
from shared_model.cohort import VIEWS, Cohort
from shared_model.contract import Contract, load_contract
from shared_model.errors import CohortError, ConfigError, ContractError, LeakageError, StorageError
from shared_model.imaging import REASONS as FILM_REASONS
from shared_model.imaging import FilmPool, PipelineConfig

KEY = b"k" * 32
SECRETS = ("WINTERHALTER", "BERTA", "PID-77", "IM-WINTER", "9.8.7.6")  # planted in names, ids, file names and UIDs


@dataclass
class Site:
    """A source folder that a test fills."""

    films: ModuleType
    source: Path
    contract: Contract
    pipeline: PipelineConfig
    rows: list[dict[str, str]] = field(default_factory=list)
    count: int = 0

    def film(self, woman: int, view: str = "L_CC", *, edit: Callable[[Any], None] | None = None, **kind: Any) -> Path:
        self.count += 1
        seed = 8 * woman + VIEWS.index(view)
        ds = self.films.film_dataset(self.films.breast_film(rows=80, columns=64, seed=seed, view=view), view=view)
        ds.ImagerPixelSpacing = [2.5, 2.5]
        ds.PatientID, ds.PatientName = f"PID-77{woman:03d}", f"WINTERHALTER^BERTA{woman}"
        ds.SOPInstanceUID, ds.StudyInstanceUID = f"9.8.7.6.{self.count}", f"9.8.7.6.1000{woman}"
        if edit is not None:
            edit(ds)
        path = self.source / "dicom" / f"WINTERHALTER {woman}" / f"IM-WINTER-{self.count:03d}.dcm"
        return self.films.write_film(path, ds, **kind)

    def row(self, woman: int, label: str = "0", **cells: str) -> None:
        self.rows.append({"patient_id": f"PID-77{woman:03d}", "label": label, "exam_date": "2024-03-02", **cells})

    def write_table(self, text: str | None = None) -> None:
        self.source.mkdir(parents=True, exist_ok=True)
        if text is None:
            names = list(dict.fromkeys(name for row in self.rows for name in row))
            lines = [",".join(names)] + [",".join(row.get(name, "") for name in names) for row in self.rows]
            text = "\n".join(lines) + "\n"
        (self.source / "clinical.csv").write_text(text)

    def prepare(self, **changes: Any) -> tuple[PreparationReport, Cohort, list[dict[str, str]]]:
        destination = self.source.parent / "cohort"
        report = prepare_site(**self.arguments(destination) | changes)
        return report, Cohort.open(destination), self.quarantine()

    def arguments(self, destination: Path) -> dict[str, Any]:
        return {
            "source": self.source, "destination": destination, "contract": self.contract, "pipeline": self.pipeline,
            "site": "north", "key": KEY, "workers": 1,
        }  # fmt: skip

    def quarantine(self) -> list[dict[str, str]]:
        with (self.source.parent / "cohort.quarantine.csv").open() as stream:
            return list(csv.DictReader(stream))


@pytest.fixture
def site(films: ModuleType, tmp_path: Path) -> Site:
    pipeline = PipelineConfig(
        height=48, width=36, spacing_mm=4.5, percentiles=(1.0, 99.0), denoise="none", max_pixels=1 << 20,
        max_bytes=1 << 22,
    )  # fmt: skip
    return Site(films, tmp_path / "north" / "source", load_contract(), pipeline)


def pseudonym(woman: int) -> str:
    return Pseudonyms(KEY).of(f"PID-77{woman:03d}")


def reasons(entries: list[dict[str, str]], kind: str) -> dict[str, int]:
    found = [entry["reason"] for entry in entries if entry["kind"] == kind]
    return {reason: found.count(reason) for reason in found}


def test_a_clean_site_is_prepared_whole(site: Site) -> None:
    for woman in (1, 2, 3):
        site.row(woman, "1" if woman == 2 else "0", age="58", breast_density="c")
        for view in ("L_CC", "L_MLO", "R_CC", "R_MLO")[: 4 if woman < 3 else 2]:
            site.film(woman, view)
    site.row(4, "0", age="61")  # table only
    site.row(5, "1")  # image only: a label and no field
    site.film(5, "R_MLO")
    site.write_table()
    seen: list[tuple[int, int]] = []
    report, cohort, entries = site.prepare(progress=lambda done, total: seen.append((done, total)))
    assert entries == []
    assert (report.films, report.films_prepared, report.rows, report.patients_prepared) == (11, 11, 5, 5)
    assert (report.positives, report.image_only, report.table_only) == (2, 1, 1)
    assert seen[0] == (0, 11) and seen[-1] == (11, 11)
    assert list(cohort.pseudonyms) == sorted(pseudonym(w) for w in (1, 2, 3, 4, 5))
    place = {name: index for index, name in enumerate(cohort.pseudonyms)}
    batch = cohort.batch([place[pseudonym(w)] for w in (1, 3, 4, 5)])
    assert batch.view_mask_BV.tolist() == [[True] * 4, [True, True, False, False], [False] * 4, [False] * 3 + [True]]
    assert batch.clinical_mask_B.tolist() == [True, True, True, False]
    assert batch.labels_B.tolist() == [0.0, 0.0, 0.0, 1.0]
    assert float(batch.pixels_BVCHW[0].max()) > 0.9
    attributes = cohort.attributes.iloc[place[pseudonym(1)]]
    assert (attributes["vendor"], attributes["age_years"], attributes["density"]) == ("ACME", 58.0, "c")
    inputs = [cohort.attributes.iloc[place[pseudonym(w)]]["inputs"] for w in (1, 4, 5)]
    assert inputs == ["both", "table", "image"]
    assert cohort.attributes.iloc[place[pseudonym(5)]]["age_years"] == 54.0  # from the film
    written = json.loads((site.source.parent / "cohort.report.json").read_text())
    assert written["content_sha256"] == report.content_sha256 == cohort.content_sha256


def plant_every_fault(site: Site) -> int:
    """Women 1-6 are fine in part; returns how many film files there are."""
    for woman in (1, 2, 3):
        site.row(woman, str(woman % 2), age="50")
        site.film(woman, "L_CC")
    whole = site.film(1, "R_CC")
    (whole.parent / "IM-WINTER-cut.dcm").write_bytes(whole.read_bytes()[:-500])
    (whole.parent / "IM-WINTER-page.dcm").write_text("<html>session of BERTA WINTERHALTER expired</html>")
    (whole.parent / "IM-WINTER-empty.dcm").write_bytes(b"")
    shutil.copy(whole, whole.with_name("IM-WINTER-copy.dcm"))
    site.film(2, "R_CC", edit=lambda ds: setattr(ds, "SOPInstanceUID", "9.8.7.6.500"))
    site.film(3, "R_CC", edit=lambda ds: setattr(ds, "SOPInstanceUID", "9.8.7.6.500"))

    def earlier(ds: Any) -> None:
        ds.StudyDate, ds.StudyInstanceUID = "20210101", "9.8.7.6.21"

    site.film(2, "L_MLO", edit=earlier)
    site.film(3, "L_CC", edit=lambda ds: setattr(ds, "AcquisitionTime", "235959"))
    site.film(3, "L_MLO", edit=lambda ds: setattr(ds, "PresentationIntentType", "FOR PROCESSING"))
    site.film(4, "L_CC")  # no row at all
    site.row(5, "", age="44")  # no label
    site.film(5, "L_CC")
    site.row(6, "2", age="44")  # bad label
    site.row(7, "0")  # neither a known field nor a usable film
    site.film(7, "L_CC", edit=lambda ds: setattr(ds, "Modality", "CR"))
    site.row(8, "0", age="40", exam_date="2020-01-01")
    site.row(8, "1", age="44")
    site.row(8, "1", age="44")
    site.row(9, "0", age="44")
    site.row(9, "1", age="44")
    site.rows.append({"patient_id": "", "label": "1"})
    site.write_table()
    with (site.source / "clinical.csv").open("a") as stream:
        stream.write("PID-77010,1,WINTERHALTER\nPID-77011,1,2024-01-01,50,BERTA,too,many\n")
    return sum(path.is_file() for path in (site.source / "dicom").rglob("*"))


def test_each_fault_costs_only_itself_and_everything_is_accounted_for(site: Site) -> None:
    files = plant_every_fault(site)
    report, cohort, entries = site.prepare()
    assert report.films == files == report.films_prepared + report.films_quarantined
    assert report.rows == 14 == report.rows_prepared + report.rows_quarantined
    assert report.patients == 9 == report.patients_prepared + report.patients_quarantined
    assert reasons(entries, "film") == {
        "truncated": 1, "not_dicom": 2, "duplicate_uid": 1, "conflicting_uid": 2, "older_exam": 1, "repeat_view": 1,
        "for_processing": 1, "no_row": 1, "not_prepared": 1, "not_mammography": 1,
    }  # fmt: skip
    assert reasons(entries, "row") == {
        "no_label": 1, "bad_label": 1, "not_prepared": 1, "older_row": 1, "repeated_row": 1, "conflicting_rows": 2,
        "no_patient_id": 1, "damaged_row": 2,
    }  # fmt: skip
    by_patient = {e["pseudonym"]: e["reason"] for e in entries if e["kind"] == "patient"}
    assert by_patient == {
        pseudonym(4): "no_row", pseudonym(5): "no_label", pseudonym(6): "bad_label",
        pseudonym(7): "nothing_usable", pseudonym(9): "conflicting_rows",
    }  # fmt: skip
    assert set(cohort.pseudonyms) == {pseudonym(w) for w in (1, 2, 3, 8)}
    assert cohort.labels[list(cohort.pseudonyms).index(pseudonym(8))] == 1
    assert report.reasons["film.not_dicom"] == 2
    assert {e["reason"] for e in entries} <= INGEST_REASONS.keys() | FILM_REASONS.keys()
    ordinals = [int(e["ordinal"]) for e in entries if e["kind"] == "film"]
    paths = sorted(p for p in (site.source / "dicom").rglob("*") if p.is_file())
    cut = next(int(e["ordinal"]) for e in entries if e["reason"] == "truncated")
    assert len(set(ordinals)) == len(ordinals) and paths[cut - 1].name == "IM-WINTER-cut.dcm"


def test_no_output_holds_a_name_an_id_or_a_file_name(
    site: Site, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    plant_every_fault(site)
    with caplog.at_level(logging.DEBUG):
        report, _, _ = site.prepare()
    written = {
        path: path.read_bytes() for path in site.source.parent.rglob("*")
        if path.is_file() and not path.is_relative_to(site.source)
    }  # fmt: skip
    names = {path.name for path in written}
    assert names >= {"cohort.json", "pixels.npy", "cohort.report.json", "cohort.quarantine.csv"}
    out, err = capfd.readouterr()
    texts = [*written.values(), *(path.name.encode() for path in written)]
    texts += [caplog.text.encode(), out.encode(), err.encode(), repr(report).encode()]
    for text in texts:
        for secret in SECRETS:
            assert secret.encode() not in text and secret.encode("utf-16-le") not in text
    assert any(b"PID-77" in path.read_bytes() for path in site.source.rglob("*.dcm"))  # they were there to be found


def test_the_result_does_not_depend_on_workers_or_file_names(site: Site) -> None:
    for woman in range(1, 8):
        site.row(woman, str(woman % 2), age=str(40 + woman))
        site.film(woman, "L_CC")
        site.film(woman, "R_MLO")
    site.write_table()
    first, _, _ = site.prepare()
    files = sorted((site.source / "dicom").rglob("*.dcm"))
    for number, path in enumerate(reversed(files)):
        path.rename(site.source / "dicom" / f"{number:04d}")
    again = prepare_site(**site.arguments(site.source.parent / "again") | {"workers": 2})
    assert again.content_sha256 == first.content_sha256 is not None
    with FilmPool(site.pipeline, workers=1) as pool:  # one pool for several sites
        for name in ("third", "fourth"):
            shared = prepare_site(**site.arguments(site.source.parent / name) | {"pool": pool})
            assert shared.content_sha256 == first.content_sha256


@pytest.mark.parametrize("what", ["absent", "empty", "no table", "empty table", "no films"])
def test_an_empty_source_says_so(site: Site, what: str) -> None:
    if what != "absent":
        (site.source / "dicom").mkdir(parents=True)
    if what == "no table":
        site.film(1)
    if what == "empty table":
        site.write_table("")
    if what == "no films":
        site.row(1, "1", age="50")
        site.write_table()
        report, cohort, _ = site.prepare()
        assert len(cohort) == 1 and "no film" in report.warnings[0]
        return
    error = ContractError if what in ("no table", "empty table") else CohortError
    with pytest.raises(error) as caught:
        site.prepare()
    assert "clinical.csv" in str(caught.value) and "expected" in str(caught.value)
    assert not (site.source.parent / "cohort").exists()


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("patient_id,age\nPID-77001,50\n", ContractError),
        ("PID-77001,WINTERHALTER,1,50\n", ContractError),
        ("patient_id;label;age\nPID-77001;1;50\n", ContractError),
        ('patient_id,label\n"PID-77001,1\nWINTERHALTER', ContractError),
        ("patient_id,label,birads_assessment\nPID-77001,1,5\n", LeakageError),
        ("patient_id,label,label\nPID-77001,1,0\n", ContractError),
    ],
    ids=["no label", "no header", "semicolons", "open quote", "leak", "label twice"],
)
def test_a_table_that_cannot_be_used_stops_the_site_without_showing_a_cell(
    site: Site, text: str, error: type[Exception]
) -> None:
    site.film(1)
    site.write_table(text)
    with pytest.raises(error) as caught:
        site.prepare()
    assert not any(secret in str(caught.value) for secret in SECRETS)
    assert not (site.source.parent / "cohort").exists()


def test_missing_contract_columns_are_reported_and_survived(site: Site) -> None:
    site.row(1, "1", age="50", shoe_size="39")
    site.row(2, "0", age="450", shoe_size="41")
    site.film(2)
    site.write_table()
    report, cohort, _ = site.prepare()
    fields = report.fields["fields"]
    assert isinstance(fields, dict)
    assert fields["bmi"]["absent"] and fields["age"]["impossible"] == 1 and fields["age"]["known"] == 1
    assert any("1 columns" in warning for warning in report.warnings)
    assert len(cohort) == 2 and report.image_only == 1


def test_a_site_without_positives_is_kept_and_reported(site: Site) -> None:
    site.row(1, "0", age="50")
    site.film(1)
    site.write_table()
    report, cohort, _ = site.prepare()
    assert len(cohort) == 1 and report.positives == 0
    assert any("no positive patient" in warning for warning in report.warnings)


def test_a_site_whose_patients_all_fail_leaves_its_reasons(site: Site) -> None:
    site.film(1)
    site.row(2, "", age="50")
    site.write_table()
    with pytest.raises(CohortError) as caught:
        site.prepare()
    assert "film.no_row" in str(caught.value)
    assert reasons(site.quarantine(), "patient") == {"no_row": 1, "no_label": 1}
    assert not (site.source.parent / "cohort").exists()


def test_the_latest_exam_and_its_last_film_of_a_view_are_used(site: Site) -> None:
    site.row(1, "1", age="50")

    def earlier(ds: Any) -> None:
        ds.StudyDate, ds.StudyInstanceUID = "20200101", "9.8.7.6.1"

    old = site.film(1, "R_CC", edit=earlier)
    late = np.rint(site.films.breast_film(rows=80, columns=64, seed=99) * 0.9).astype("<u2")

    def repeated(ds: Any) -> None:
        ds.AcquisitionTime, ds.PixelData = "111111", late.tobytes()

    site.film(1, "L_CC", edit=repeated)
    site.film(1, "L_CC")
    site.write_table()
    _, cohort, entries = site.prepare()
    assert old.exists() and reasons(entries, "film") == {"older_exam": 1, "repeat_view": 1}
    assert cohort.batch([0]).view_mask_BV.tolist() == [[True, False, False, False]]
    shutil.rmtree(site.source / "dicom")
    site.film(1, "L_CC", edit=repeated)
    alone = prepare_site(**site.arguments(site.source.parent / "alone"))
    assert alone.content_sha256 == cohort.content_sha256


def test_shrunk_and_enlarged_films_are_counted(site: Site) -> None:
    site.row(1, "1", age="50")
    site.film(1)
    site.write_table()
    fine = replace(site.pipeline, spacing_mm=1.0)
    report, _, _ = site.prepare(pipeline=fine)
    assert (report.shrunk, report.enlarged) == (1, 0)  # 80 x 2.5 mm of film, 48 x 1 mm of canvas
    large = replace(site.pipeline, spacing_mm=1.0, height=400, width=300)
    assert prepare_site(**site.arguments(site.source.parent / "b") | {"pipeline": large}).enlarged == 1


def test_an_existing_cohort_is_not_overwritten(site: Site) -> None:
    site.row(1, "1", age="50")
    site.write_table()
    before, _, _ = site.prepare()
    with pytest.raises(CohortError, match="exists already"):
        site.prepare()
    assert Cohort.open(site.source.parent / "cohort").content_sha256 == before.content_sha256


def test_a_place_that_cannot_be_written_is_a_storage_error(site: Site) -> None:
    site.row(1, "1", age="50")
    site.write_table()
    blocked = site.source.parent / "file"
    blocked.write_text("")
    with pytest.raises(StorageError):
        prepare_site(**site.arguments(blocked / "cohort"))


def test_pseudonyms_need_the_key_and_hide_the_id() -> None:
    one, other = Pseudonyms(KEY), Pseudonyms(b"other key 16 bytes")
    assert one.of("PID-77001") == one.of("PID-77001") != other.of("PID-77001")
    assert len(one.of("PID-77001")) == 16 and one.of("") == ""
    assert Pseudonyms(b"\x0b" * 20).of("Hi There") == "b0344c61d8db3853"  # RFC 4231, test case 1
    with pytest.raises(ConfigError):
        Pseudonyms(b"short")


def test_kinds_of_cancers_become_an_attribute_where_they_are_given(site: Site) -> None:
    for woman in (1, 2, 3):
        site.row(woman, "0" if woman == 1 else "1", age="58")
    site.write_table()
    _, cohort, _ = site.prepare()
    assert "lesion_type" not in cohort.attribute_names
    given = {"PID-77001": "calcification", "PID-77002": "mass"}
    prepare_site(**site.arguments(site.source.parent / "typed") | {"lesions": given})
    found = Cohort.open(site.source.parent / "typed").attributes["lesion_type"]
    assert [found[pseudonym(w)] for w in (1, 2)] == ["no cancer", "mass"] and pd.isna(found[pseudonym(3)])
