"""A source's entry in the site's file says clearly what is wrong with it, and never what is secret in it."""

from __future__ import annotations

import os
import ssl
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from client.ingest.sources import DicomWebSource, DimseSource, Secret, Studies, Tls
from client.ingest.sources.tls import answering_context, calling_context, https_context
from client.ingest.sources.windows import Window, all_studies
from shared_model.errors import ConfigError, SourceError

PERIOD = {"from": "2023-11-15", "to": "2024-02-10"}
DIMSE = {"kind": "dimse", "host": "pacs", "port": 104, "called_ae": "PACS", "receive_port": 11113, "studies": PERIOD}
WEB = {"kind": "dicomweb", "url": "https://archive/dicom-web/", "studies": PERIOD}


def test_the_sketch_of_a_site_file_is_understood() -> None:
    source = DimseSource(**DIMSE, calling_ae=" MAMMOFED ", retrieve="move", tls=None, quiet_seconds=5, retries=5)
    assert (source.calling_ae, source.retrieve, source.receive_from) == ("MAMMOFED", "move", None)
    assert DicomWebSource(**WEB).url == "https://archive/dicom-web"


def test_relative_paths_lie_beside_the_site_file(tmp_path: Path) -> None:
    tls = {"ca": "ca.pem", "certificate": "/etc/us.pem", "key": "us.key"}
    studies = {**PERIOD, "patients": "ids.csv"}
    source = DimseSource.model_validate({**DIMSE, "tls": tls, "studies": studies}, context={"folder": tmp_path})
    assert source.tls is not None
    assert (source.tls.ca, source.tls.certificate) == (tmp_path / "ca.pem", Path("/etc/us.pem"))
    assert source.studies.patients == tmp_path / "ids.csv"


@pytest.mark.parametrize(
    ("kind", "entry", "words"),
    [
        (DimseSource, {**DIMSE, "receive_port": None}, "receive_port"),
        (DimseSource, {**DIMSE, "called_ae": "A" * 17}, "AE title"),
        (DimseSource, {**DIMSE, "called_ae": "A\\B"}, "AE title"),
        (DimseSource, {**DIMSE, "called_ae": "  "}, "AE title"),
        (DimseSource, {**DIMSE, "port": 0}, "port"),
        (DimseSource, {**DIMSE, "host": "a b"}, "host"),
        (DimseSource, {**DIMSE, "colour": "red"}, "colour"),
        (DimseSource, {**DIMSE, "studies": {"from": "2024-02-01", "to": "2024-01-01"}}, "from lies after to"),
        (DicomWebSource, {**WEB, "url": "ftp://archive"}, "https://"),
        (DicomWebSource, {**WEB, "url": "https://me:horse@archive/x"}, "use user and secret"),
        (DicomWebSource, {**WEB, "url": "https://archive/x?token=horse"}, "without query"),
        (DicomWebSource, {**WEB, "url": "http://archive/x"}, "unencrypted"),
        (DicomWebSource, {**WEB, "url": "http://a/x", "unencrypted": True, "secret": {"env": "X"}}, "unencrypted"),
        (DicomWebSource, {**WEB, "user": "me"}, "user needs secret"),
        (DicomWebSource, {**WEB, "secret": "horse"}, "secret"),
        (Secret, {}, "either file or env"),
        (Secret, {"file": "a", "env": "B"}, "either file or env"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_entry_is_said(kind: Any, entry: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as raised:
        kind(**entry)
    assert words in str(raised.value) and "horse" not in str(raised.value)


def test_plain_http_is_for_this_machine_or_on_request() -> None:
    for url in ("http://127.0.0.1:8042/x", "http://localhost/x", "http://[::1]:1/x"):
        assert DicomWebSource(**{**WEB, "url": url}).url == url
    assert DicomWebSource(**{**WEB, "url": "http://archive/x", "unencrypted": True}).unencrypted


# --- secrets ---


def test_a_secret_comes_from_a_private_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "password"
    file.write_text("correct horse\n")
    file.chmod(0o600)
    assert Secret(file=file).read() == "correct horse"
    monkeypatch.setenv("ARCHIVE_TOKEN", "battery")
    assert Secret(env="ARCHIVE_TOKEN").read() == "battery"
    assert "horse" not in repr(Secret(file=file)) and "battery" not in repr(Secret(env="ARCHIVE_TOKEN"))


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [("horse", 0o640, "chmod 600"), ("horse", 0o604, "0604"), ("", 0o600, "empty"), ("\n", 0o600, "empty"),
     ("horse\nstaple\n", 0o600, "one line"), ("pferd\u00e4", 0o600, "ASCII"), ("horse" * 1000, 0o600, "one line")],
)  # fmt: skip
def test_an_unsafe_or_useless_secret_is_refused_unseen(tmp_path: Path, text: str, mode: int, words: str) -> None:
    file = tmp_path / "password"
    file.write_text(text)
    file.chmod(mode)
    with pytest.raises(ConfigError, match=words) as raised:
        Secret(file=file).read()
    assert "horse" not in str(raised.value)


def test_a_secret_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    with pytest.raises(ConfigError, match="NOT_SET"):
        Secret(env="NOT_SET").read()
    with pytest.raises(ConfigError, match="No such file"):
        Secret(file=tmp_path / "no").read()
    os.mkfifo(tmp_path / "pipe", 0o600)  # must not be waited for
    with pytest.raises(ConfigError, match="regular file"):
        Secret(file=tmp_path / "pipe").read()


# --- which studies ---


def test_a_period_is_asked_for_month_by_month() -> None:
    months = list(Studies.model_validate(PERIOD).months())
    assert months[0] == (date(2023, 11, 15), date(2023, 11, 30))
    assert months[1] == (date(2023, 12, 1), date(2023, 12, 31))
    assert months[-1] == (date(2024, 2, 1), date(2024, 2, 10))


@given(st.dates(date(1990, 1, 1), date(2040, 1, 1)), st.integers(0, 1500))
def test_months_cover_each_day_once(first: date, days: int) -> None:
    last = date.fromordinal(first.toordinal() + days)
    covered = [day for start, end in Studies(**{"from": first, "to": last}).months()
               for day in range(start.toordinal(), end.toordinal() + 1)]  # fmt: skip
    assert covered == list(range(first.toordinal(), last.toordinal() + 1))


@pytest.mark.parametrize(
    ("text", "ids"),
    [("patient_id\n1\n2\n1\n", ["1", "2"]), ("\ufeffname,patient_id\nx,7\ny, 8 \n", ["7", "8"]), ("1\n2\n", ["1", "2"]),
     ('"a,b"\n', ["a,b"])],
)  # fmt: skip
def test_a_list_of_patients_is_read(tmp_path: Path, text: str, ids: list[str]) -> None:
    (tmp_path / "ids.csv").write_text(text)
    assert Studies(**PERIOD, patients=tmp_path / "ids.csv").patient_ids() == ids
    assert Studies(**PERIOD).patient_ids() is None


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "no column"), ("patient_id\n", "empty"), ("a,b\n1,2\n", "no column"), ("patient_id\nSECRET*\n", "id 1"),
     ("ok\nSECRET?\n", "id 2"), ("SECRET\\2\n", "id 1"), ('patient_id\n"SECRET\n', "CSV"), ("SECRET" * 20, "id 1")],
)  # fmt: skip
def test_a_list_that_could_mean_other_women_is_refused_unseen(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "ids.csv").write_text(text)
    with pytest.raises(ConfigError, match=words) as raised:
        Studies(**PERIOD, patients=tmp_path / "ids.csv").patient_ids()
    assert "SECRET" not in str(raised.value)


def test_a_list_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the list of patients"):
        Studies(**PERIOD, patients=tmp_path / "no.csv").patient_ids()
    (tmp_path / "latin.csv").write_bytes(b"\xff\xfe\xe4")
    with pytest.raises(ConfigError, match="UTF-8"):
        Studies(**PERIOD, patients=tmp_path / "latin.csv").patient_ids()


# --- windows ---


def asked(studies: dict[str, tuple[date, int]], limit: int, *, honest: bool) -> Any:
    """An archive with studies uid -> (day, hour) that gives at most `limit` of them."""

    def ask(window: Window) -> tuple[list[str], bool]:
        hours = range(window.from_hour, window.to_hour + 1)
        found = [uid for uid, (day, hour) in studies.items() if window.first <= day <= window.last and hour in hours]
        return found[:limit], honest and len(found) > limit

    return ask


@given(
    st.dictionaries(st.integers(), st.tuples(st.dates(date(2024, 1, 1), date(2024, 1, 31)), st.integers(0, 23)),
                    max_size=60),
    st.booleans(),
)  # fmt: skip
def test_every_study_is_found_though_lists_are_cut(studies: dict[int, tuple[date, int]], honest: bool) -> None:
    named = {f"1.{uid}": when for uid, when in studies.items()}
    at_once = max([list(named.values()).count(when) for when in named.values()], default=0)
    whole = Window(date(2024, 1, 1), date(2024, 1, 31))
    limit = max(at_once + 1, 3)
    found = all_studies(whole, asked(named, limit, honest=honest), name="it", trusted=limit)
    assert set(found) == named.keys()


def test_a_list_that_is_cut_for_an_hour_is_said() -> None:
    studies = {f"1.{n}": (date(2024, 1, 1), 9) for n in range(5)}
    with pytest.raises(SourceError, match="one hour"):
        list(all_studies(Window(date(2024, 1, 1), date(2024, 1, 2)), asked(studies, 3, honest=True), name="it"))


def test_windows_are_written_as_the_standard_says() -> None:
    day = Window(date(2024, 1, 1), date(2024, 1, 1))
    assert (day.dates, day.times) == ("20240101-20240101", "")
    halves = day.halves()
    assert halves is not None
    assert [half.times for half in halves] == ["000000-115959.999999", "120000-235959.999999"]
    assert Window(day.first, day.last, 3, 3).halves() is None


# --- TLS ---


def test_contexts_check_the_other_side(certificates: Path) -> None:
    tls = Tls(ca=certificates / "ca.pem", certificate=certificates / "us.pem", key=certificates / "us.key")
    calling, answering = calling_context(tls), answering_context(tls)
    assert calling.verify_mode is answering.verify_mode is ssl.CERT_REQUIRED
    assert calling.check_hostname
    for context in (calling, answering, https_context(None), https_context(certificates / "ca.pem")):
        assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("broken", ["ca", "certificate", "key"])
def test_files_that_are_no_certificates_are_said(certificates: Path, tmp_path: Path, broken: str) -> None:
    files = {"ca": certificates / "ca.pem", "certificate": certificates / "us.pem", "key": certificates / "us.key"}
    (tmp_path / "junk").write_text("junk")
    for wrong in (tmp_path / "junk", tmp_path / "absent"):
        with pytest.raises(ConfigError, match="cannot be used"):
            calling_context(Tls(**{**files, broken: wrong}))


def test_an_encrypted_key_is_refused_and_not_asked_for_on_the_terminal(certificates: Path, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    plain = serialization.load_pem_private_key((certificates / "us.key").read_bytes(), None)
    (tmp_path / "key").write_bytes(plain.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    ))  # fmt: skip
    with pytest.raises(ConfigError, match="not encrypted"):
        calling_context(Tls(ca=certificates / "ca.pem", certificate=certificates / "us.pem", key=tmp_path / "key"))
