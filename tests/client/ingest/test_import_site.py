"""`mammofed site`: a hospital's films and facts become one cohort, whatever way they come and however often."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from client.cli import site as command
from client.ingest.deidentify import Deidentifier
from client.ingest.imports import VAULT, Imported, import_site
from client.ingest.site_file import read_site
from client.ingest.vault import Answer, Vault
from client.privacy.ledger import Ledger, LedgerEntry
from shared_model.cohort import Cohort
from shared_model.errors import ConfigError, ContractError, MammoFedError, SourceError, StorageError
from shared_model.imaging import SECTIONS, FilmPool
from tests.films import write_film
from tests.orthanc import Orthanc, skip_without_orthanc
from tests.pacs_films import PERIOD, SYNTAXES, VIEWS, film

KEY = bytes(range(32))
SECRETS = ("WINTERHALTER", "BERTA", "PID-77", "9.8.7.6", "2024-0", "202402", "202403", "202404", "IM-SECRET")
IMAGING = {"height": 48, "width": 36, "spacing_mm": 4.5, "percentiles": [1.0, 99.0], "denoise": "none",
           "max_pixels": 1 << 20, "max_bytes": 1 << 22}  # fmt: skip


class Hospital:
    """A folder with an export, a table and a site.yaml, as a data scientist would have it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.export = folder, folder / "export"
        self.export.mkdir(parents=True)
        self.rows: list[dict[str, str]] = []
        (folder / "importer.key").write_bytes(KEY)
        (folder / "importer.key").chmod(0o600)

    def woman(self, number: int, *, label: str = "0", views: tuple[str, ...] = VIEWS, **cells: str) -> None:
        day = ""
        for at, view in enumerate(views):
            ds = film(number, view)
            day = f"{ds.StudyDate[:4]}-{ds.StudyDate[4:6]}-{ds.StudyDate[6:]}"
            syntax = SYNTAXES[(4 * number + at) % len(SYNTAXES)]
            write_film(self.export / f"WINTERHALTER {number}" / f"IM-SECRET-{view}.dcm", ds, syntax=syntax)
        self.rows.append({"MRN": f"PID-77{number:03d}", "OUTCOME": label, "SEEN": cells.pop("seen", day), **cells})

    def write(self, **changes: Any) -> Path:
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        with (self.folder / "emr.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, names)
            writer.writeheader()
            writer.writerows(self.rows)
        values = {
            "site": "north", "cohort": "cohort", "work": "importer", "key": "importer.key", "threshold": 2,
            "workers": 1, "imaging": IMAGING, "clinical_policy": {},
            "film_policy": {"burned_in": "look", "secondary_capture": "quarantine", "derived": "quarantine",
                            "synthetic_2d": "quarantine", "declared_spacing_mm": None},
            "films": [{"kind": "folder", "path": "export"}],
            "clinical": [{"kind": "csv", "path": "emr.csv",
                          "columns": {"MRN": "patient_id", "OUTCOME": "label", "SEEN": "exam_date"}}],
            **changes,
        }  # fmt: skip
        path = self.folder / "site.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    def run(self, **changes: Any) -> Imported:
        return import_site(read_site(self.write(**changes)))

    @property
    def cohort(self) -> Cohort:
        return Cohort.open(self.folder / "cohort")

    def quarantine(self) -> list[dict[str, str]]:
        with (self.folder / "cohort.quarantine.csv").open() as stream:
            return list(csv.DictReader(stream))


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    made = Hospital(tmp_path / "north")
    for number in range(4):
        made.woman(number, label=str(number % 2), age="54", breast_density="c")
    return made


def call(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=True)


# --- one command, as often as one likes ---------------------------------------------------------------------------


def test_an_import_accounts_for_everything(hospital: Hospital) -> None:
    hospital.woman(4, views=("L_CC",), age="54")
    (hospital.export / "web.dcm").write_text("<html>the PACS is down</html>")
    (hospital.export / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM" + b"../../../etc/passwd")
    hospital.rows.append({"MRN": "PID-77999", "OUTCOME": "", "SEEN": "2024-03-03"})
    done = hospital.run()
    report = done.report
    assert (report.films, report.films_prepared, report.films_quarantined) == (19, 17, 2)
    assert (report.rows, report.rows_prepared, report.rows_quarantined) == (6, 5, 1)
    assert (report.patients, report.patients_prepared, report.patients_quarantined) == (6, 5, 1)
    entries = hospital.quarantine()
    assert {(e["kind"], e["reason"]) for e in entries} >= {("film", "not_dicom"), ("row", "no_label")}
    assert len(entries) == report.films_quarantined + report.rows_quarantined + report.patients_quarantined
    assert hospital.cohort.content_sha256 == report.content_sha256 and not done.unchanged


def test_an_evaluator_names_the_kinds_of_cancers_and_nobody_is_remembered_for_it(hospital: Hospital) -> None:
    (hospital.folder / "lesions.csv").write_text("patient_id,lesion_type\nPID-77001,mass\nPID-77888,calcification\n")
    assert hospital.run(lesion_types="lesions.csv").report.patients_prepared == 4
    found = hospital.cohort.attributes["lesion_type"]
    assert sorted(found.dropna()) == ["mass", "no cancer", "no cancer"] and len(found) == 4
    (hospital.folder / "lesions.csv").write_text("patient_id,lesion_type\nPID-77001,cyst\n")
    with pytest.raises(ContractError, match=r"lesions\.csv, row 1: no such kind of lesion"):
        hospital.run(lesion_types="lesions.csv")
    assert len(hospital.cohort) == 4, "the former cohort stays"


def test_films_only_need_a_label_and_no_clinical_field(hospital: Hospital) -> None:
    for row in hospital.rows:
        del row["age"], row["breast_density"]
    assert hospital.run().report.patients_prepared == 4
    assert not hospital.cohort.clinical_mask.any() and set(hospital.cohort.attributes["inputs"]) == {"image"}
    before = hospital.cohort.content_sha256
    refused = call("import", hospital.write(clinical=None))
    assert isinstance(refused.exception, ConfigError)
    for words in ("clinical: null", "without labels no cohort", "patient_id, exam_date and label"):
        assert words in str(refused.exception)
    assert hospital.cohort.content_sha256 == before, "the former cohort stays"


def test_a_table_only_needs_no_film(hospital: Hospital) -> None:
    report = hospital.run(films=None).report
    assert (report.films, report.patients_prepared) == (0, 4)
    assert set(hospital.cohort.attributes["inputs"]) == {"table"}
    with pytest.raises(ConfigError, match="films and clinical are both null"):
        read_site(hospital.write(films=None, clinical=None))


def test_a_second_import_reads_no_film_and_changes_nothing(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = hospital.run()
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in (hospital.folder / "cohort").iterdir()}
    asked: list[int] = []
    genuine = FilmPool.run
    monkeypatch.setattr(FilmPool, "run", lambda self, work, paths, **more: asked.append(len(paths))
                        or genuine(self, work, paths, **more))  # fmt: skip
    second = hospital.run()
    assert second.unchanged and second.report.content_sha256 == first.report.content_sha256
    assert sum(asked) == 0 and asked
    assert {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in (hospital.folder / "cohort").iterdir()} == before


def test_what_is_new_is_added_as_if_it_had_been_there(hospital: Hospital, tmp_path: Path) -> None:
    hospital.run()
    hospital.woman(4, label="1", age="54")
    added = hospital.run()
    assert not added.unchanged and added.report.patients_prepared == 5
    shutil.copytree(hospital.folder, tmp_path / "again", ignore=shutil.ignore_patterns("cohort*", "importer"))
    again = import_site(read_site(tmp_path / "again" / "site.yaml"))
    assert again.report.content_sha256 == added.report.content_sha256


def test_what_left_a_source_leaves_the_memory_too(hospital: Hospital) -> None:
    def remembered() -> int:
        with Vault(hospital.folder / "importer" / VAULT, KEY) as vault:
            return int((vault._one("SELECT count(DISTINCT film) FROM answers") or (0,))[0])

    hospital.run()
    assert remembered() == 16
    shutil.rmtree(hospital.export / "WINTERHALTER 3")
    assert hospital.run().report.films == 12 and remembered() == 12


def test_a_wrong_table_is_told_before_an_archive_is_asked(hospital: Hospital) -> None:
    nowhere = {"kind": "dimse", "host": "127.0.0.1", "port": 1, "called_ae": "PACS", "retrieve": "get", "retries": 0,
               "studies": PERIOD}  # fmt: skip
    columns = {"MRN": "patient_id", "NOT THERE": "label", "SEEN": "exam_date"}
    with pytest.raises(MammoFedError, match="clinical source 1"):
        hospital.run(films=[nowhere], clinical=[{"kind": "csv", "path": "emr.csv", "columns": columns}])


@pytest.mark.slow
def test_a_killed_import_goes_on_and_ends_the_same(hospital: Hospital, tmp_path: Path) -> None:
    for number in range(4, 24):
        hospital.woman(number, label=str(number % 2), age="54")
    path = hospital.write()
    shutil.copytree(hospital.folder, tmp_path / "undisturbed")
    expected = import_site(read_site(tmp_path / "undisturbed" / "site.yaml")).report.content_sha256
    memory = hospital.folder / "importer" / VAULT
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-m", "mammofed", "site", "import", path],
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        until = time.monotonic() + 60
        size = memory.stat().st_size if memory.exists() else 0
        while time.monotonic() < until and process.poll() is None:
            wal = memory.with_name(memory.name + "-wal")
            if memory.exists() and memory.stat().st_size + (wal.stat().st_size if wal.exists() else 0) > size + 50_000:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (hospital.folder / "cohort").exists() or hospital.cohort.content_sha256 == expected
    assert import_site(read_site(path)).report.content_sha256 == expected


def test_only_one_import_at_a_time(hospital: Hospital) -> None:
    settings = read_site(hospital.write())
    from client.ingest.imports import opened

    with opened(settings), pytest.raises(StorageError, match="another process"):
        import_site(settings)


# --- four ways into one cohort ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Orthanc, Hospital, Hospital]]:
    """An Orthanc with the films of two hospitals."""
    skip_without_orthanc()
    folder = tmp_path_factory.mktemp("pacs")
    north, south = Hospital(folder / "north"), Hospital(folder / "south")
    for number in range(3):
        north.woman(number, label=str(number % 2), age="54")
    for number in range(3, 6):
        south.woman(number, label=str(number % 2), age="54")
    with Orthanc(folder / "orthanc") as running:
        running.store(north.export, south.export)
        yield running, north, south


def ways(pacs: Orthanc, ids: str) -> dict[str, dict[str, Any]]:
    common = {"studies": {**PERIOD, "patients": ids}, "quiet_seconds": 0.2, "retries": 2, "timeout_seconds": 120}
    dimse = {"kind": "dimse", "host": pacs.host, "port": pacs.dicom_port, "called_ae": "PACS", **common}
    return {
        "move": {**dimse, "retrieve": "move", "receive_port": pacs.receive_port, "receive_address": "127.0.0.1"},
        "get": {**dimse, "retrieve": "get"},
        "dicomweb": {"kind": "dicomweb", "url": pacs.url, **common},
    }


@pytest.mark.slow
def test_folder_move_get_and_dicomweb_give_one_content(pacs: tuple[Orthanc, Hospital, Hospital]) -> None:
    running, *hospitals = pacs
    for hospital in hospitals:
        (hospital.folder / "ids.csv").write_text("patient_id\n" + "\n".join(row["MRN"] for row in hospital.rows))
        contents = {"folder": hospital.run(work="work-folder").report.content_sha256}
        for way, source in ways(running, "ids.csv").items():
            done = hospital.run(work=f"work-{way}", cohort=f"cohort-{way}", films=[source])
            assert [c.new for c in done.collected.values()] == [12]
            contents[way] = done.report.content_sha256
            assert hospital.run(work=f"work-{way}", cohort=f"cohort-{way}", films=[source]).unchanged
        assert len(set(contents.values())) == 1, contents
    assert hospitals[0].cohort.content_sha256 != hospitals[1].cohort.content_sha256


@pytest.mark.slow
def test_a_pacs_that_dies_and_an_import_that_is_killed_change_nothing(
    pacs: tuple[Orthanc, Hospital, Hospital], tmp_path: Path
) -> None:
    running, north, _ = pacs
    expected = north.run(work="work-expected", cohort="cohort-expected").report.content_sha256
    source = {**ways(running, "ids.csv")["move"], "retries": 0}
    (north.folder / "ids.csv").write_text("\n".join(["patient_id", *(row["MRN"] for row in north.rows)]))
    path = north.write(work="work-killed", cohort="cohort-killed", films=[source])
    process = subprocess.Popen([sys.executable, "-m", "mammofed", "site", "import", path],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    until = time.monotonic() + 60
    while time.monotonic() < until and not list((north.folder / "work-killed").rglob("*.dcm")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    running.kill()
    with pytest.raises(SourceError):
        import_site(read_site(path))
    running.start()
    assert import_site(read_site(path)).report.content_sha256 == expected


# --- nobody is named ------------------------------------------------------------------------------------------------


def written(folder: Path, *, but: tuple[str, ...]) -> dict[Path, bytes]:
    return {
        path: path.read_bytes() for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).parts[0] not in but
    }  # fmt: skip


def test_no_byte_that_an_import_writes_or_says_names_anybody(hospital: Hospital) -> None:
    hospital.export.joinpath("WINTERHALTER 0", "IM-SECRET-broken.dcm").write_bytes(
        hospital.export.joinpath("WINTERHALTER 0", "IM-SECRET-L_CC.dcm").read_bytes()[:700]
    )
    hospital.rows.append({"MRN": "PID-77000", "OUTCOME": "WINTERHALTER", "SEEN": "2024-02-20"})
    path = hospital.write()
    said = "".join(call(*words).output for words in (
        ["import", path], ["data", path], ["quarantine", "list", path],
        ["quarantine", "list", path, "--reason", "truncated"], ["quarantine", "show", path, "film", "1"],
    ))  # fmt: skip
    kept = written(hospital.folder, but=("export", "emr.csv", "site.yaml", "importer.key"))
    assert {p.name for p in kept} >= {VAULT, "cohort.json", "cohort.html", "cohort.quarantine.csv"}
    for secret in SECRETS:
        assert secret not in said
        found = [p for p, data in kept.items() if secret.encode() in data or secret.encode("utf-16-le") in data]
        assert found == [], secret
    mode = (hospital.folder / "importer" / VAULT).stat().st_mode
    assert mode & 0o077 == 0


@pytest.mark.slow
def test_nor_does_what_came_from_a_pacs(pacs: tuple[Orthanc, Hospital, Hospital]) -> None:
    running, _, south = pacs
    (south.folder / "ids.csv").write_text("\n".join(["patient_id", *(row["MRN"] for row in south.rows)]))
    path = south.write(work="work-named", cohort="cohort-named", films=[ways(running, "ids.csv")["get"]])
    said = call("import", path).output
    places = [south.folder / "work-named", south.folder / "cohort-named"]
    kept = [p.read_bytes() for place in places for p in place.rglob("*") if p.is_file()]
    assert len(kept) > 12 and not [s for s in SECRETS if s in said or any(s.encode() in data for data in kept)]


@pytest.mark.slow
def test_films_of_an_excluded_woman_do_not_stay_however_often_the_pacs_sends_them(
    pacs: tuple[Orthanc, Hospital, Hospital]
) -> None:
    running, north, _ = pacs
    (north.folder / "ids.csv").write_text("\n".join(["patient_id", *(row["MRN"] for row in north.rows)]))
    path = north.write(work="work-out", cohort="cohort-out", films=[ways(running, "ids.csv")["get"]])
    assert import_site(read_site(path)).report.films == 12
    assert "Removed     4 films" in call("exclude", path, "PID-77001").output
    assert len(list((north.folder / "work-out").rglob("*.dcm"))) == 8
    assert import_site(read_site(path)).unchanged
    assert len(list((north.folder / "work-out").rglob("*.dcm"))) == 8
    assert call("exclude", path, "PID-77001", "--undo").exit_code == 0
    assert import_site(read_site(path)).report.films_prepared == 12


# --- quarantine, objection ------------------------------------------------------------------------------------------


def test_quarantine_tells_and_identifies_only_when_asked(hospital: Hospital) -> None:
    name = "IM-SECRET-L_CC.dcm"
    broken = hospital.export / "WINTERHALTER 2" / name
    broken.write_bytes(broken.read_bytes()[:-200])
    path = hospital.write()
    assert call("import", path).exit_code == 0
    entry = next(e for e in hospital.quarantine() if e["kind"] == "film")
    plain = call("quarantine", "show", path, "film", entry["ordinal"]).output
    assert SECTIONS[entry["reason"]] in plain
    assert entry["reason"] in plain and "PID" not in plain and name not in plain
    told = call("quarantine", "show", path, "film", entry["ordinal"], "--identify").output
    assert "PID-77002" in told and name in told
    row = call("quarantine", "show", path, "row", "1", "--identify")
    assert isinstance(row.exception, ConfigError) and "in quarantine" in str(row.exception)


def test_retry_reads_refused_films_anew(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = hospital.export / "WINTERHALTER 2" / "IM-SECRET-L_CC.dcm"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-200] + b"\0" * 200)
    path = hospital.write()
    assert call("import", path).exit_code == 0
    refused = [e["reason"] for e in hospital.quarantine() if e["kind"] == "film"]
    if not refused:  # an uncompressed film: zeros are pixels
        pytest.fail("the film must be refused for this test")
    asked: list[int] = []
    genuine = FilmPool.run
    monkeypatch.setattr(FilmPool, "run", lambda self, work, paths, **more: asked.append(len(paths))
                        or genuine(self, work, paths, **more))  # fmt: skip
    answer = call("quarantine", "retry", path, "--reason", refused[0])
    assert answer.exit_code == 0 and "1 refused films" in answer.output and sum(asked) == 1


def test_an_objection_holds_and_tells_what_covers_her(hospital: Hospital, tmp_path: Path) -> None:
    path = hospital.write()
    whole = hospital.run().report
    pseudonym = Deidentifier(KEY).pseudonym("PID-77001")
    ledger = Ledger(tmp_path / "ledger.json")
    ledger.reserve(LedgerEntry(group="train", study="spring", protocol_sha256="0" * 64, round=3, attempt=1,
                               noise_multiplier=1.0, sample_rate=0.1, steps=1), budget=9.0, delta=1e-5)  # fmt: skip
    told = call("exclude", path, "PID-77001", "--ledger", ledger.path)
    assert told.exit_code == 0, told.output
    assert "study spring" in told.output and "PID" not in told.output
    assert pseudonym not in hospital.cohort.pseudonyms and len(hospital.cohort) == 3
    assert pseudonym.encode() not in (hospital.folder / "cohort" / "patients.json").read_bytes()
    with Vault(hospital.folder / "importer" / VAULT, KEY) as vault:
        assert vault._one("SELECT count(*) FROM answers WHERE patient = ? AND pixels IS NOT NULL", pseudonym) == (0,)
    again = hospital.run().report
    assert (again.films, again.films_prepared, again.films_quarantined) == (16, 12, 4)
    assert {e["reason"] for e in hospital.quarantine()} == {"excluded"}
    assert call("exclude", path, "PID-77001", "--undo").exit_code == 0
    assert hospital.run().report.content_sha256 == whole.content_sha256


def test_one_film_under_two_ids_takes_both_out(hospital: Hospital) -> None:
    ds = film(0, "L_CC", PatientID="PID-77040", StudyInstanceUID="9.8.7.6.40", SOPInstanceUID="9.8.7.6.40.1")
    write_film(hospital.export / "copy.dcm", ds)
    day = f"{ds.StudyDate[:4]}-{ds.StudyDate[4:6]}-{ds.StudyDate[6:]}"
    hospital.rows.append({"MRN": "PID-77040", "OUTCOME": "0", "SEEN": day, "age": "54"})
    report = hospital.run().report
    assert report.patients_prepared == 3 and report.patients_quarantined == 2
    assert report.reasons["patient.shared_films"] == 2


def test_an_age_that_cannot_be_hers_is_not_believed(hospital: Hospital) -> None:
    hospital.rows[1]["age"] = "71"
    report = hospital.run().report
    assert report.reasons["patient.age_conflict"] == 1 and report.patients_prepared == 3


def test_what_was_known_after_the_exam_stays_out(hospital: Hospital) -> None:
    hospital.rows.append({**hospital.rows[0], "SEEN": "2031-01-01", "breast_density": "a"})
    done = hospital.run()
    assert done.report.reasons["row.row_after_exam"] == 1
    place = hospital.cohort.pseudonyms.index(Deidentifier(KEY).pseudonym("PID-77000"))
    assert hospital.cohort.attributes["density"].iloc[place] == "c"


# --- what is wrong with a site file ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"threshold": 0}, "threshold"), ({"site": "Not A Name"}, "site"), ({"clinical": []}, "clinical"),
        ({"films": [{"kind": "ftp", "path": "x"}]}, "films.0"), ({"surprise": 1}, "surprise"),
        ({"films": [{"kind": "dimse", "host": "h", "port": 104, "called_ae": "P", "studies": PERIOD}]}, "receive_port"),
        ({"imaging": {**IMAGING, "height": 1}}, "height"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_named_and_its_value_is_not(hospital: Hospital, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        hospital.run(**change)


def test_a_file_that_is_no_site_file(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    for text, words in (("a: &x 1\nb: *x\n", "alias"), ("a: 1\na: 2\n", "twice"), ("[1, 2]", "names and values"),
                        ("a: [", "not YAML"), ("x" * 2_000_000, "too large")):  # fmt: skip
        path.write_text(text)
        with pytest.raises(ConfigError, match=words):
            read_site(path)


def open_to_all(key: Path) -> None:
    key.chmod(0o644)


def too_short(key: Path) -> None:
    key.write_bytes(b"short")


def a_pipe(key: Path) -> None:
    key.unlink()
    os.mkfifo(key, 0o600)


@pytest.mark.parametrize(
    ("spoil", "words"), [(open_to_all, "others"), (too_short, "length"), (os.unlink, "read"), (a_pipe, "no file")]
)
def test_a_key_must_be_secret_and_long(hospital: Hospital, spoil: Callable[[Path], None], words: str) -> None:
    spoil(hospital.folder / "importer.key")
    with pytest.raises(ConfigError, match=words):
        hospital.run()


def test_another_key_is_refused(hospital: Hospital) -> None:
    hospital.run()
    (hospital.folder / "importer.key").write_bytes(b"another key of at least thirty-two bytes")
    with pytest.raises(ConfigError, match="another key"):
        hospital.run()


def test_the_example_has_every_setting_and_reads(tmp_path: Path) -> None:
    answer = call("example", tmp_path / "St. Anna")
    assert answer.exit_code == 0
    settings = read_site(tmp_path / "St. Anna" / "site.yaml")
    assert settings.site == "st--anna" and len(settings.read_key()) == 32
    text = (tmp_path / "St. Anna" / "site.yaml").read_text()
    assert all(f"{name}:" in text for name in type(settings).model_fields)
    assert all(f"{name}:" in text for name in type(settings.clinical_policy).model_fields)
    assert isinstance(call("example", tmp_path / "St. Anna").exception, ConfigError)


# --- the importer's memory ------------------------------------------------------------------------------------------


def test_the_memory_gives_nobody_away_and_notices_damage(tmp_path: Path) -> None:
    path = tmp_path / "memory.sqlite"
    with Vault(path, KEY) as vault:
        vault.remember("aa", "PID-77001")
        vault.set_places("film", ["/export/WINTERHALTER/1.dcm", "/export/2.dcm"])
        vault.keep("f", "prepare", "s", Answer('{"view": {}}', b"\1\2"), patient="aa")
    with Vault(path, KEY) as vault:
        assert vault.patient_of("aa") == "PID-77001" and vault.place_of("film", 1) == "/export/WINTERHALTER/1.dcm"
        assert vault.answer("f", "prepare", "s") == Answer('{"view": {}}', b"\1\2")
        assert vault.answer("f", "prepare", "changed") is None and vault.patient_of("bb") is None
    assert not any(secret in path.read_bytes() for secret in (b"PID-77", b"WINTERHALTER", b"/export"))
    path.write_bytes(b"no database at all" * 500)
    with pytest.raises(MammoFedError, match="memory"):
        Vault(path, KEY)
