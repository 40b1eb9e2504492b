"""Films come whole out of a real PACS, by every protocol the same, through crashes on both sides."""

from __future__ import annotations

import gc
import json
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pynetdicom import debug_logger

from client.ingest.sources import Collected, DicomWebSource, DimseSource, Received
from client.ingest.sources.retry import Backoff
from shared_model.errors import ConfigError, SourceError, StorageError
from shared_model.imaging.header import read_film
from tests.films import write_film
from tests.orthanc import Orthanc
from tests.pacs_films import PERIOD, SECRETS, HashingDeidentifier, content, film
from tests.ports import free_port

Source = DimseSource | DicomWebSource
WAYS = ("move", "get", "dicomweb")


def settings(pacs: Orthanc, way: str, **changes: Any) -> dict[str, Any]:
    common = {"studies": PERIOD, "quiet_seconds": 0.2, "retries": 2, "timeout_seconds": 120}
    if way == "dicomweb":
        return {"kind": "dicomweb", "url": pacs.url, **common, **changes}
    move = {"receive_port": pacs.receive_port, "receive_address": "127.0.0.1"} if way == "move" else {}
    return {"kind": "dimse", "host": pacs.host, "port": pacs.dicom_port, "called_ae": "PACS", "retrieve": way,
            **move, **common, **changes}  # fmt: skip


def source(pacs: Orthanc, way: str, **changes: Any) -> Source:
    kind = DicomWebSource if way == "dicomweb" else DimseSource
    return kind(**settings(pacs, way, **changes))


def collect(pacs: Orthanc, way: str, folder: Path, *, retries: int = 2, **changes: Any) -> Collected:
    with Received(folder) as store:
        quick = Backoff(retries, first_seconds=0.2, longest_seconds=1.0)
        return source(pacs, way, **changes).collect(store, HashingDeidentifier(), backoff=quick)


@pytest.fixture(scope="module")
def reference(pacs: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a collection that nothing disturbs brings."""
    folder = tmp_path_factory.mktemp("reference") / "store"
    assert collect(pacs, "get", folder).new == 16
    return content(folder)


@pytest.mark.parametrize("way", WAYS)
def test_every_protocol_brings_the_same_bytes_and_a_second_time_nothing(
    pacs: Orthanc, reference: dict[str, str], tmp_path: Path, way: str
) -> None:
    first = collect(pacs, way, tmp_path / "store")
    assert (first.studies, first.films, first.new, first.incomplete, first.failed) == (4, 16, 16, 0, {})
    assert content(tmp_path / "store") == reference
    second = collect(pacs, way, tmp_path / "store")
    assert (second.studies, second.films, second.new, second.present, second.incomplete) == (4, 16, 0, 16, 0)
    assert content(tmp_path / "store") == reference


def test_films_on_the_disk_can_be_read_and_name_nobody(
    pacs: Orthanc, tmp_path: Path, hospital: Path
) -> None:
    collect(pacs, "move", tmp_path / "store")
    with Received(tmp_path / "store") as store:
        paths = store.paths(complete_only=True)
        assert len(paths) == 16
        sent = {read_film(path, max_bytes=1 << 20).transfer_syntax for path in hospital.iterdir()}
        assert {read_film(path, max_bytes=1 << 20).transfer_syntax for path in paths} == sent
    for path in (tmp_path / "store").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0
        text = str(path.relative_to(tmp_path)).encode() + (path.read_bytes() if path.is_file() else b"")
        assert not any(secret.encode() in text for secret in SECRETS)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_new_in_the_pacs_is_added_and_what_went_missing_comes_again(
    pacs: Orthanc, reference: dict[str, str], tmp_path: Path, way: str
) -> None:
    collect(pacs, way, tmp_path / "store")
    victim = sorted((tmp_path / "store" / "films").rglob("*.dcm"))[5]
    victim.unlink()
    late = write_film(tmp_path / "late.dcm", film(2, "L_CC", number=9))
    pacs.store(late)
    try:
        again = collect(pacs, way, tmp_path / "store")
    finally:
        pacs.remove(pacs.rest("tools/lookup", film(2, "L_CC", number=9).SOPInstanceUID.encode())[0]["ID"])
    assert (again.films, again.new, again.present, again.incomplete) == (17, 2, 15, 0)
    assert content(tmp_path / "store").items() > reference.items()


@pytest.mark.parametrize("way", ["get", "dicomweb"])
def test_kinds_that_no_model_uses_are_left_in_the_pacs_and_told(pacs: Orthanc, tmp_path: Path, way: str) -> None:
    raw = film(1, "L_CC", number=8, SOPClassUID="1.2.840.10008.5.1.4.1.1.1.2.1")
    ultrasound = film(1, "R_CC", number=8, Modality="US", SeriesInstanceUID="9.8.7.6.1.0.77")
    lonely = film(9, "R_CC", number=8, Modality="US", StudyDate="20240301")
    files = [write_film(tmp_path / f"{i}.dcm", ds) for i, ds in enumerate((raw, ultrasound, lonely))]
    pacs.store(*files)
    try:
        got = collect(pacs, way, tmp_path / "store")
    finally:
        for ds in (raw, ultrasound, lonely):
            pacs.remove(pacs.rest("tools/lookup", ds.SOPInstanceUID.encode())[0]["ID"])
    assert (got.studies, got.films, got.new, got.left_out) == (4, 17, 16, {"for_processing": 1})


@pytest.mark.parametrize("way", ["get", "dicomweb"])
def test_only_the_women_and_days_that_are_asked_for_come(pacs: Orthanc, tmp_path: Path, way: str) -> None:
    women = tmp_path / "ids.csv"
    women.write_text("patient_id,name\nPID-77001,x\nPID-77003,y\nPID-99999,z\n")
    got = collect(pacs, way, tmp_path / "some", studies={**PERIOD, "patients": women})
    assert (got.studies, got.new) == (2, 8)
    got = collect(pacs, way, tmp_path / "march", studies={"from": "2024-03-01", "to": "2024-03-31"})
    assert (got.studies, got.new) == (1, 4)


@pytest.mark.parametrize("way", ["move", "dicomweb"])
def test_a_film_that_cannot_be_deidentified_is_told_and_not_asked_for_again(
    pacs: Orthanc, tmp_path: Path, way: str
) -> None:
    odd = film(3, "R_CC", number=7, PatientComments="BERTA WINTERHALTER")
    pacs.store(write_film(tmp_path / "odd.dcm", odd))
    try:
        got = collect(pacs, way, tmp_path / "store")
        assert (got.new, got.failed, got.incomplete) == (16, {"not_deidentified": 1}, 0)
        again = collect(pacs, way, tmp_path / "store")
        assert (again.new, again.present, again.failed) == (0, 16, {"not_deidentified": 1})
        with Received(tmp_path / "store") as store:
            assert len(store.paths(complete_only=True)) == 16
            assert store.retry_refused() == 1
            assert len(store.paths(complete_only=True)) == 12
    finally:
        pacs.remove(pacs.rest("tools/lookup", odd.SOPInstanceUID.encode())[0]["ID"])


@pytest.mark.parametrize("way", WAYS)
def test_a_film_beyond_the_limit_is_refused_and_the_others_come(pacs: Orthanc, tmp_path: Path, way: str) -> None:
    large = film(0, "L_CC", number=5)
    large.add_new(0x00091010, "OB", b"x" * (3 << 20))
    pacs.store(write_film(tmp_path / "large.dcm", large))
    try:
        with Received(tmp_path / "store", max_bytes=1 << 20) as store:
            quick = Backoff(2, first_seconds=0.1)
            got = source(pacs, way).collect(store, HashingDeidentifier(), backoff=quick)
    finally:
        pacs.remove(pacs.rest("tools/lookup", large.SOPInstanceUID.encode())[0]["ID"])
    assert (got.films, got.new, got.failed, got.incomplete) == (17, 16, {"too_large": 1}, 0)


@pytest.mark.parametrize("way", ["move", "dicomweb"])
def test_an_import_that_is_killed_goes_on(
    pacs: Orthanc, reference: dict[str, str], tmp_path: Path, way: str
) -> None:
    file, folder = tmp_path / "settings.json", tmp_path / "store"
    file.write_text(json.dumps(settings(pacs, way)))
    command = [sys.executable, "-m", "tests.pacs_films", str(file), str(folder), "5"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"so many\n", process.communicate()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(content(folder)) == 5
    got = collect(pacs, way, folder)
    assert (got.films, got.new, got.present, got.incomplete) == (16, 11, 5, 0)
    assert content(folder) == reference


@pytest.mark.parametrize("way", WAYS)
def test_a_pacs_that_is_killed_and_comes_back_is_waited_for(
    pacs: Orthanc, reference: dict[str, str], tmp_path: Path, way: str
) -> None:
    folder = tmp_path / "store"

    def crash() -> None:
        until = time.monotonic() + 120
        while time.monotonic() < until and len(content(folder)) < 5:
            time.sleep(0.005)
        pacs.kill()
        time.sleep(0.5)
        pacs.start()

    thread = threading.Thread(target=crash)
    thread.start()
    try:
        got = collect(pacs, way, folder, retries=200)  # a second each: a busy machine starts a PACS slowly
    finally:
        thread.join()
    assert (got.films, got.new, got.incomplete) == (16, 16, 0)
    assert content(folder) == reference


@pytest.mark.parametrize("way", WAYS)
def test_a_pacs_that_stays_away_ends_the_import_and_the_next_goes_on(
    pacs: Orthanc, reference: dict[str, str], tmp_path: Path, way: str
) -> None:
    collect(pacs, way, tmp_path / "store", studies={"from": "2024-03-01", "to": "2024-03-31"})
    pacs.kill()
    try:
        with pytest.raises(SourceError) as raised:
            collect(pacs, way, tmp_path / "store", retries=1)
        assert raised.value.exit_code == 24 and "goes on" in str(raised.value)
    finally:
        pacs.start()
    got = collect(pacs, way, tmp_path / "store")
    assert (got.present, got.new) == (4, 12)
    assert content(tmp_path / "store") == reference


@pytest.mark.parametrize("way", WAYS)
def test_no_log_and_no_message_names_a_patient(
    pacs: Orthanc, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], way: str
) -> None:
    debug_logger()  # what somebody may have left on
    logger = logging.getLogger("pynetdicom")
    gc.collect()  # what other tests left open would warn of itself when its turn comes, here
    try:
        with caplog.at_level(logging.DEBUG), pytest.warns() as seen:
            import warnings

            warnings.warn("one of our own", UserWarning, stacklevel=1)
            women = tmp_path / "ids.csv"
            women.write_text("PID-77001\nPID-77003\n")
            collect(pacs, way, tmp_path / "store", studies={**PERIOD, "patients": women})
    finally:
        logger.handlers = [handler for handler in logger.handlers if isinstance(handler, logging.NullHandler)]
        logger.setLevel(logging.NOTSET)
    out, err = capfd.readouterr()
    shown = caplog.text + out + err + "".join(str(warning.message) for warning in seen)
    assert not [secret for secret in SECRETS if secret in shown]
    assert "pynetdicom" not in caplog.text and len(seen) == 1


@pytest.mark.parametrize("way", ["get", "dicomweb"])
def test_lists_that_the_pacs_cuts_without_a_word_are_asked_for_in_halves(
    tmp_path: Path, hospital: Path, reference: dict[str, str], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Three studies on one day, at three times, and two at most in an answer."""
    monkeypatch.setattr("client.ingest.sources.windows.TRUSTED", 2)
    with Orthanc(tmp_path / "orthanc", settings={"LimitFindResults": 2}) as pacs:
        for number, path in enumerate(sorted(hospital.iterdir())):
            ds = dcmread(path)
            ds.StudyDate, ds.StudyTime = "20240301", f"{8 + 3 * (number // 4):02d}1500"
            ds.save_as(tmp_path / "film.dcm")
            pacs.store(tmp_path / "film.dcm")
        assert collect(pacs, way, tmp_path / "store").new == 16
    assert content(tmp_path / "store").keys() == reference.keys()


@pytest.fixture(scope="module")
def guarded(
    tmp_path_factory: pytest.TempPathFactory, hospital: Path, certificates: Path
) -> Iterator[Orthanc]:
    """An Orthanc that speaks TLS only and wants a password."""
    folder = tmp_path_factory.mktemp("guarded") / "orthanc"
    with Orthanc(folder, tls=certificates, user="importer", password="sesame open") as running:
        assert running.store(hospital) == 16
        yield running


def tls(certificates: Path, name: str = "us", ca: str = "ca") -> dict[str, Any]:
    return {"ca": certificates / f"{ca}.pem", "certificate": certificates / f"{name}.pem",
            "key": certificates / f"{name}.key"}  # fmt: skip


def password(tmp_path: Path, text: str = "sesame open") -> dict[str, Any]:
    file = tmp_path / "password"
    file.write_text(text + "\n")
    file.chmod(0o600)
    return {"file": file}


@pytest.mark.parametrize("way", ["move", "get"])
def test_films_come_through_tls(
    guarded: Orthanc, pacs: Orthanc, reference: dict[str, str], certificates: Path, tmp_path: Path, way: str
) -> None:
    got = collect(guarded, way, tmp_path / "store", tls=tls(certificates))
    assert (got.new, got.incomplete) == (16, 0)
    assert content(tmp_path / "store") == reference


def test_films_come_through_https_with_a_password(
    guarded: Orthanc, reference: dict[str, str], certificates: Path, tmp_path: Path
) -> None:
    got = collect(guarded, "dicomweb", tmp_path / "store", ca=certificates / "ca.pem", user="importer",
                  secret=password(tmp_path))  # fmt: skip
    assert (got.new, got.incomplete) == (16, 0)
    assert content(tmp_path / "store") == reference


@pytest.mark.parametrize("wrong", [{"name": "stranger"}, {"ca": "other-ca"}, None])
def test_without_the_right_certificates_nothing_is_asked(
    guarded: Orthanc, certificates: Path, tmp_path: Path, wrong: dict[str, str] | None
) -> None:
    with pytest.raises(SourceError):
        changes = {} if wrong is None else {"tls": tls(certificates, **wrong)}
        collect(guarded, "get", tmp_path / "store", retries=0, **{"timeout_seconds": 3, **changes})


def test_a_wrong_password_or_authority_is_said_and_never_shown(
    guarded: Orthanc, certificates: Path, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match="401") as raised:
        collect(guarded, "dicomweb", tmp_path / "store", ca=certificates / "ca.pem", user="importer",
                secret=password(tmp_path, "wrong horse"))  # fmt: skip
    assert "wrong horse" not in str(raised.value)
    with pytest.raises(SourceError, match="not trusted"):
        collect(guarded, "dicomweb", tmp_path / "store", ca=certificates / "other-ca.pem")


def test_a_title_that_the_pacs_does_not_know_is_said(pacs: Orthanc, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="NOBODY registered"):
        collect(pacs, "move", tmp_path / "store", receive_ae="NOBODY")
    with pytest.raises(SourceError, match="called_ae"):
        collect(pacs, "get", tmp_path / "store", called_ae="OTHER")


def test_deliveries_to_a_port_that_nobody_reaches_are_told_soon(pacs: Orthanc, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="delivers nothing"):
        collect(pacs, "move", tmp_path / "store", receive_port=free_port())
    with Received(tmp_path / "store") as store:
        assert store.paths() == []
    assert collect(pacs, "move", tmp_path / "store").new == 16


def test_two_imports_at_once_and_another_key_are_refused(pacs: Orthanc, tmp_path: Path) -> None:
    with Received(tmp_path / "store") as store:
        with pytest.raises(StorageError, match="another process"):
            Received(tmp_path / "store")
        source(pacs, "dicomweb").collect(store, HashingDeidentifier())
        with pytest.raises(ConfigError, match="another key"):
            source(pacs, "dicomweb").collect(store, HashingDeidentifier("other"))
