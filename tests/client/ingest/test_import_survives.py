"""What a hospital's machine does to an import: wrong paths, killed writers, lost memories, locked folders."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from client.ingest.deidentify import Deidentifier
from client.ingest.exams import find_films
from client.ingest.imports import PLACES_OF, VAULT, import_site, opened
from client.ingest.prepare import Preparation
from client.ingest.site_file import read_site
from client.ingest.vault import Answer, Vault
from shared_model.errors import CohortError, ConfigError, MammoFedError, StorageError
from tests.client.ingest.test_import_site import IMAGING, KEY, Hospital, call


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    made = Hospital(tmp_path / "north")
    for number in range(2):
        made.woman(number, label=str(number % 2), age="54", views=("L_CC",))
    return made


def test_a_wrong_cohort_path_costs_no_film(hospital: Hospital) -> None:
    shutil.copytree(hospital.export, hospital.folder / "other films")
    films = sorted(hospital.folder.rglob("*.dcm"))
    with pytest.raises(CohortError, match="other things than a cohort"):
        hospital.run(cohort="other films")
    with pytest.raises(ConfigError, match="cohort lies in"):
        hospital.run(cohort="export")
    with pytest.raises(CohortError, match="other things than a cohort"):
        hospital.run(cohort="emr.csv")
    assert sorted(hospital.folder.rglob("*.dcm")) == films and (hospital.folder / "emr.csv").is_file()


def test_what_a_killed_writer_left_goes_with_the_next_import(hospital: Hospital) -> None:
    content = hospital.run().report.content_sha256
    (hospital.folder / "cohort").rename(hospital.folder / ".cohort.old-00aa")
    (hospital.folder / ".cohort.partial-00bb").mkdir()
    (hospital.folder / ".cohort.partial-00bb" / "pixels.npy").write_bytes(b"hers")
    assert hospital.run().unchanged
    assert hospital.cohort.content_sha256 == content and not list(hospital.folder.glob(".cohort*"))


def test_a_folder_that_cannot_be_listed_stops_the_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "WINTERHALTER").mkdir()
    genuine = os.scandir

    def refuse(path: str | os.PathLike[str]) -> object:
        if os.fspath(path).endswith("WINTERHALTER"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return genuine(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(StorageError, match="Permission denied") as caught:
        find_films(tmp_path)
    assert "WINTERHALTER" not in str(caught.value)


def test_a_linked_folder_is_set_aside_and_not_overlooked(hospital: Hospital, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (hospital.export / "linked").symlink_to(tmp_path / "elsewhere")
    report = hospital.run().report
    assert report.films == 3 and report.reasons == {"film.unreadable": 1}


def test_a_share_that_is_not_mounted_costs_no_cohort(hospital: Hospital) -> None:
    content = hospital.run().report.content_sha256
    hospital.export.rename(hospital.folder / "gone")
    hospital.export.mkdir()
    with pytest.raises(ConfigError, match="holds no file"):
        hospital.run()
    assert hospital.cohort.content_sha256 == content


def test_a_full_disk_is_called_one(tmp_path: Path) -> None:
    with Vault(tmp_path / "memory", KEY) as vault:
        vault._db.execute("PRAGMA max_page_count = 1")
        with pytest.raises(StorageError, match="full") as caught:
            vault.keep("f", "prepare", "s", Answer("{}", bytes(1 << 20)), patient="aa")
        assert "remove" not in str(caught.value)


def test_a_broken_off_import_names_no_wrong_film(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    (hospital.export / "a.dcm").write_text("<html>")
    path = hospital.write()
    import_site(read_site(path))
    assert "a.dcm" in call("quarantine", "show", path, "film", "3", "--identify").output
    (hospital.export / "Z.dcm").write_text("<html>")
    path = hospital.write()

    def break_off(*_: object, **__: object) -> None:
        raise StorageError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(Preparation, "run", break_off)
        assert call("import", path).exit_code != 0
    with opened(read_site(path)) as (vault, _):
        assert vault.note(PLACES_OF) == "" and str(vault.place_of("film", 3)).endswith("Z.dcm")
    told = call("quarantine", "show", path, "film", "3", "--identify").output
    assert "Z.dcm" not in told and "import again" in told


def test_nobody_prepared_has_a_list_that_can_be_identified(hospital: Hospital) -> None:
    for row in hospital.rows:
        row["OUTCOME"] = ""
    path = hospital.write()
    assert isinstance(call("import", path).exception, CohortError)
    assert "row 1" in call("quarantine", "show", path, "row", "1", "--identify").output


def test_a_list_of_someone_else_is_no_list(hospital: Hospital) -> None:
    path = hospital.write()
    import_site(read_site(path))
    (hospital.folder / "cohort.quarantine.csv").write_text("a,b\n1,2\n")
    for words in (["list", path], ["show", path, "film", "1"]):
        assert isinstance(call("quarantine", *words).exception, CohortError)


def test_a_terminal_is_sent_no_commands(hospital: Hospital) -> None:
    (hospital.export / "\x1b[31mx.dcm").write_text("<html>")
    path = hospital.write()
    import_site(read_site(path))
    told = call("quarantine", "show", path, "film", "3", "--identify").output
    told += call("quarantine", "show", path, "film", "1", "--identify").output
    assert "x.dcm" in told and "\x1b" not in told


# --- objections -----------------------------------------------------------------------------------------------------


def test_an_objection_holds_where_the_memory_was_lost(hospital: Hospital) -> None:
    path = hospital.write()
    import_site(read_site(path))
    (hospital.folder / "importer" / VAULT).unlink()
    told = call("exclude", path, "PID-77000").output
    assert "no model covers her" not in told and "not known" in told
    assert hospital.cohort.pseudonyms == (Deidentifier(KEY).pseudonym("PID-77001"),)


def test_an_objection_that_cannot_be_finished_says_so(hospital: Hospital) -> None:
    path = hospital.write()
    import_site(read_site(path))
    assert call("exclude", path, "PID-77000").exit_code == 0
    last = call("exclude", path, "PID-77001")
    assert isinstance(last.exception, CohortError) and "STILL HOLDS HER" in last.output


# --- settings and messages ------------------------------------------------------------------------------------------


def test_the_importers_own_files_are_not_among_the_films(hospital: Hospital) -> None:
    for change, words in (
        ({"films": [{"kind": "folder", "path": "."}]}, "cohort lies in the folder of films 1"),
        ({"work": "export/importer"}, "work lies in"), ({"work": "cohort/w"}, "in one another"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            hospital.run(**change)


def test_a_wrong_delimiter_is_guessed_at(hospital: Hospital) -> None:
    with pytest.raises(ConfigError, match="columns that the table lacks") as caught:
        hospital.run(clinical=[{"kind": "csv", "path": "emr.csv", "delimiter": ";", "columns": {"MRN": "patient_id"}}])
    assert "delimiter" in (caught.value.remedy or "")


def test_cohorts_of_two_pipelines_cannot_be_compared(hospital: Hospital) -> None:
    hospital.run(cohort="other", work="work-other", imaging={**IMAGING, "percentiles": [2.0, 99.0]})
    path = hospital.write()
    import_site(read_site(path))
    answer = call("data", path, "--against", hospital.folder / "other")
    assert isinstance(answer.exception, CohortError) and "pipelines" in str(answer.exception)


def test_a_woman_without_a_label_is_told_so(hospital: Hospital) -> None:
    hospital.rows[0]["OUTCOME"] = ""
    hospital.run()
    told = {entry["kind"]: entry["reason"] for entry in hospital.quarantine()}
    assert told == {"film": "not_prepared", "row": "no_label", "patient": "no_label"}


def test_a_fhir_file_is_identified_and_what_tells_nothing_is_counted(hospital: Hospital) -> None:
    bundles = hospital.folder / "bundles"
    bundles.mkdir()
    observation = {"resourceType": "Observation", "status": "final", "valueQuantity": {"value": 25, "code": "kg/m2"},
                   "code": {"coding": [{"system": "http://loinc.org", "code": "39156-5"}]},
                   "subject": {"reference": "Patient/none"}, "effectiveDateTime": "2024-01-01"}  # fmt: skip
    (bundles / "a.json").write_text(json.dumps(observation))
    (bundles / "WINTERHALTER.json").write_text("{")
    (bundles / "z.json").symlink_to(bundles / "a.json")
    columns = {"MRN": "patient_id", "OUTCOME": "label", "SEEN": "exam_date"}
    table = {"kind": "csv", "path": "emr.csv", "columns": columns}
    path = hospital.write(clinical=[{"kind": "fhir", "path": "bundles"}, table])
    done = import_site(read_site(path))
    assert done.report.reasons == {"file.no_plain_file": 1, "file.not_fhir": 1}
    assert any("1 facts are of a patient whom no Patient resource names" in text for text in done.report.warnings)
    assert "WINTERHALTER.json" in call("quarantine", "show", path, "file", "1", "--identify").output
    assert "WINTERHALTER" not in call("quarantine", "show", path, "file", "1").output


def test_a_state_is_shown_only_of_the_cohort_that_is_there(hospital: Hospital) -> None:
    path = hospital.write()
    import_site(read_site(path))
    for row in hospital.rows:
        row["OUTCOME"] = ""
    hospital.write()
    assert call("import", path).exit_code != 0
    answer = call("data", path)
    assert isinstance(answer.exception, CohortError) and "prepared nobody" in str(answer.exception)


@pytest.mark.parametrize("change", ["answer = '{\"view\": {}}'", "answer = 'x'", "pixels = x'0102'"])
def test_a_damaged_memory_is_called_so(hospital: Hospital, change: str) -> None:
    hospital.run()
    with sqlite3.connect(hospital.folder / "importer" / VAULT) as memory:
        memory.execute(f"UPDATE answers SET {change} WHERE work = 'prepare'")
    with pytest.raises(StorageError, match="damaged"):
        hospital.run()


def test_an_objection_has_somebody(hospital: Hospital) -> None:
    assert isinstance(call("exclude", hospital.write(), " ").exception, ConfigError)


def test_a_worker_that_cannot_start_is_no_crash(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(MammoFedError, match="does not start"):
        hospital.run()


def test_ids_that_never_meet_are_warned_of(hospital: Hospital) -> None:
    assert not any("PatientID" in text for text in hospital.run().report.warnings)
    hospital.rows = [{**row, "MRN": "0" + row["MRN"]} for row in hospital.rows]
    report = hospital.run().report
    assert report.films_prepared == 0 and any("PatientID" in text for text in report.warnings)
