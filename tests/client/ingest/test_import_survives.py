"""What a hospital's machine does to an import: wrong paths, killed writers, lost memories, folders that cannot be read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from client.ingest.deidentify import Deidentifier
from client.ingest.exams import find_films
from client.ingest.imports import PLACES_OF, VAULT, import_site, opened
from client.ingest.site_file import read_site
from shared_model.errors import CohortError, StorageError
from tests.client.ingest.test_import_site import KEY, Hospital, call


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    made = Hospital(tmp_path / "north")
    for number in range(2):
        made.woman(number, label=str(number % 2), age="54", views=("L_CC",))
    return made


def test_a_wrong_cohort_path_costs_no_film(hospital: Hospital) -> None:
    films = sorted(hospital.export.rglob("*"))
    with pytest.raises(CohortError, match="other things than a cohort"):
        hospital.run(cohort="export")
    with pytest.raises(CohortError, match="other things than a cohort"):
        hospital.run(cohort="emr.csv")
    assert sorted(hospital.export.rglob("*")) == films and (hospital.folder / "emr.csv").is_file()


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


def test_a_broken_off_import_names_no_wrong_film(hospital: Hospital) -> None:
    (hospital.export / "a.dcm").write_text("<html>")
    path = hospital.write()
    import_site(read_site(path))
    assert "a.dcm" in call("quarantine", "show", path, "film", "3", "--identify").output
    (hospital.export / "Z.dcm").write_text("<html>")
    hospital.rows[0]["birads"] = "4"
    path = hospital.write()
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


