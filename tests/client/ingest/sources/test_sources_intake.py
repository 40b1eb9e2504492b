"""Whatever is delivered, asked for or not, whole or damaged: only what was asked for gets in, and no text gets out."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset

from client.ingest.sources import Received
from client.ingest.sources.collected import FAILED, LEFT_OUT, PERMANENT, Collected
from client.ingest.sources.intake import Intake
from client.ingest.sources.objects import SYNTAXES, DamagedError, is_uid, parse, split_file, why_left_out
from client.ingest.sources.quiet import quiet_network
from shared_model.errors import StorageError
from shared_model.imaging.header import SYNTAXES as READ_SYNTAXES
from shared_model.imaging.header import read_film
from tests.films import SYNTAX, write_film
from tests.pacs_films import HashingDeidentifier, film

uid = HashingDeidentifier().uid


def delivered(tmp_path: Path, ds: Dataset, syntax: str = "explicit") -> tuple[bytes, bytes]:
    """(a film's file, the same as an encoded data set)."""
    data = write_film(tmp_path / "film.dcm", ds, syntax=syntax).read_bytes()
    return data, split_file(data)[1] if syntax in SYNTAX and SYNTAX[syntax] in SYNTAXES else data


def ask(intake: Intake, ds: Dataset) -> None:
    intake.ask(uid(ds.StudyInstanceUID), [uid(ds.SOPInstanceUID)])


@pytest.mark.parametrize("syntax", sorted(name for name, value in SYNTAX.items() if value in READ_SYNTAXES))
def test_every_syntax_that_imaging_reads_is_stored_and_read_back(
    intake: Intake, store: Received, tmp_path: Path, syntax: str
) -> None:
    ds = film(1, "L_CC")
    data, _ = delivered(tmp_path, ds, syntax)
    ask(intake, ds)
    assert intake.take_file(data, film_uid=ds.SOPInstanceUID) is None
    assert intake.take_file(data, film_uid=ds.SOPInstanceUID) is None  # twice is once
    (path,) = store.paths()
    stored = read_film(path, max_bytes=1 << 24)
    assert stored.transfer_syntax == SYNTAX[syntax]
    whole = dcmread(path)
    assert whole.PixelData == dcmread(BytesIO(data)).PixelData
    assert whole.file_meta.MediaStorageSOPInstanceUID == whole.SOPInstanceUID == uid(ds.SOPInstanceUID)
    assert store.note(uid(ds.StudyInstanceUID)).patient == whole.PatientID
    assert intake.outcome() == ({uid(ds.SOPInstanceUID)}, {})
    assert intake.wait_all(0.0)


def test_both_ways_store_the_same_bytes(tmp_path: Path) -> None:
    ds = film(1, "R_MLO")
    data, encoded = delivered(tmp_path, ds, "jpeg_ls")
    stored = []
    for name in ("file", "dimse"):
        with Received(tmp_path / name) as store:
            intake = Intake(store, HashingDeidentifier())
            ask(intake, ds)
            if name == "file":
                assert intake.take_file(data, film_uid=ds.SOPInstanceUID) is None
            else:
                assert intake.take(encoded, SYNTAX["jpeg_ls"], film_uid=ds.SOPInstanceUID) is None
            stored.append(store.paths()[0].read_bytes())
    assert stored[0] == stored[1]


def test_what_nobody_asked_for_is_turned_away(intake: Intake, store: Received, tmp_path: Path) -> None:
    ds, other = film(1, "L_CC"), film(2, "L_CC")
    data, _ = delivered(tmp_path, ds)
    assert intake.take_file(data, film_uid=ds.SOPInstanceUID) == "unasked"
    ask(intake, other)
    assert intake.take_file(data, film_uid=ds.SOPInstanceUID) == "unasked"
    for odd in ("", "../x", "1.2\\1.3", "1" * 65, "*"):
        assert intake.take_file(data, film_uid=odd) == "unasked"
    assert store.paths() == [] and intake.outcome() == (frozenset(), {})


def test_an_object_under_a_false_flag_is_refused(intake: Intake, store: Received, tmp_path: Path) -> None:
    ds, other = film(1, "L_CC"), film(2, "L_CC")
    ask(intake, other)
    assert intake.take_file(delivered(tmp_path, ds)[0], film_uid=other.SOPInstanceUID) == "damaged"
    moved = film(2, "L_CC", StudyInstanceUID="9.9.9")
    assert intake.take_file(delivered(tmp_path, moved)[0], film_uid=other.SOPInstanceUID) == "damaged"
    assert store.paths() == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"Modality": "US"}, "other_modality"), ({"PatientComments": "BERTA"}, "not_deidentified"),
     ({"SOPInstanceUID": "1.2.3"}, "damaged"), ({"StudyInstanceUID": "x"}, "damaged")],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_with_its_reason(
    intake: Intake, store: Received, tmp_path: Path, changes: dict[str, str], reason: str
) -> None:
    ds = film(1, "L_CC")
    ask(intake, ds)
    wrong = film(1, "L_CC", **changes)
    with quiet_network():
        assert intake.take_file(delivered(tmp_path, wrong)[0], film_uid=ds.SOPInstanceUID) == reason
    assert intake.outcome() == (frozenset(), {uid(ds.SOPInstanceUID): reason})
    assert store.paths() == []
    assert intake.take_file(delivered(tmp_path, ds)[0], film_uid=ds.SOPInstanceUID) is None  # a second try may do
    assert intake.outcome() == ({uid(ds.SOPInstanceUID)}, {})


def test_a_deidentifier_that_forgets_a_uid_stores_nothing(store: Received, tmp_path: Path) -> None:
    class Forgetful(HashingDeidentifier):
        def dataset(self, dataset: Dataset) -> Dataset:
            return Dataset(dataset)

    ds = film(1, "L_CC")
    intake = Intake(store, Forgetful())
    ask(intake, ds)
    assert intake.take_file(delivered(tmp_path, ds)[0], film_uid=ds.SOPInstanceUID) == "not_deidentified"
    assert store.paths() == []


@pytest.mark.parametrize("syntax", ["deflated", "big_endian"])
def test_other_syntaxes_are_refused_before_they_are_unpacked(
    intake: Intake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syntax: str
) -> None:
    def bomb(*_: object, **__: object) -> None:
        raise AssertionError("inflated")

    ds = film(1, "L_CC")
    data, _ = delivered(tmp_path, ds, syntax)
    monkeypatch.setattr("zlib.decompress", bomb)
    monkeypatch.setattr("zlib.decompressobj", bomb)
    ask(intake, ds)
    assert intake.take_file(data, film_uid=ds.SOPInstanceUID) == "unsupported_syntax"


def test_a_large_film_and_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ds = film(1, "L_CC")
    data, _ = delivered(tmp_path, ds)
    with Received(tmp_path / "s", max_bytes=1000) as store:
        intake = Intake(store, HashingDeidentifier())
        ask(intake, ds)
        assert intake.take_file(data, film_uid=ds.SOPInstanceUID) == "too_large"
        store.max_bytes = 1 << 20
        monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        assert intake.take_file(data, film_uid=ds.SOPInstanceUID) == "disk"
        assert isinstance(intake.broken, StorageError)
        assert not intake.wait_all(0.0) or intake.outcome()[1]


JUNK = [b"", b"DICM", b"\0" * 132, b"\0" * 128 + b"DICM", b"<html>" * 100, b"\0" * 128 + b"DICM" + b"\xff" * 500]


@pytest.mark.parametrize("data", JUNK)
def test_junk_is_damaged(intake: Intake, data: bytes) -> None:
    ds = film(1, "L_CC")
    ask(intake, ds)
    assert intake.take_file(data, film_uid=ds.SOPInstanceUID) == "damaged"


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_anywhere_is_a_reason_and_no_exception(intake: Intake, tmp_path: Path, data: st.DataObject) -> None:
    ds = film(1, "L_CC")
    whole = bytearray(delivered(tmp_path, ds)[0][: 128 + 4 + 2000])
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(132, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(132, len(whole)))
    ask(intake, ds)
    with quiet_network():
        reason = intake.take_file(bytes(whole[:cut]), film_uid=ds.SOPInstanceUID)
    assert reason is None or reason in FAILED


@settings(max_examples=100)
@given(st.binary(max_size=400), st.sampled_from(SYNTAXES))
def test_random_bytes_are_parsed_or_damaged(data: bytes, syntax: str) -> None:
    with quiet_network():
        try:
            assert isinstance(parse(data, syntax), Dataset)
        except DamagedError as error:
            assert str(error) == ""


def test_reasons_are_tables_with_words() -> None:
    assert FAILED.keys() >= PERMANENT
    assert all(len(words) > 20 for words in [*FAILED.values(), *LEFT_OUT.values()])
    assert set(SYNTAXES) == READ_SYNTAXES
    assert {why_left_out(f"1.2.840.10008.5.1.4.1.1.{n}") for n in ("1.2", "7")} | {why_left_out("")} == {None}
    assert why_left_out("1.2.840.10008.5.1.4.1.1.13.1.3") == "tomosynthesis"
    assert why_left_out("1.2.840.10008.5.1.4.1.1.88.50") == "not_mammography"
    assert is_uid("1.2.840") and not any(map(is_uid, ("", "1.2\n", "1.2\\3", "1" * 65, "1.2 ", "a", "*")))


def test_counts_that_do_not_add_up_are_caught() -> None:
    one = Collected(studies=1, films=3, new=1, present=1, failed={"damaged": 1})
    two = one + Collected(studies=1, incomplete=1, films=2, left_out={"tomosynthesis": 1}, failed={"damaged": 1})
    assert (two.studies, two.films, two.failed) == (2, 5, {"damaged": 2})
    assert two.words() == ("2 studies, 5 films announced, 1 new, 1 present, 1 left out (tomosynthesis), "
                           "2 failed (damaged), 1 studies incomplete")  # fmt: skip
    with pytest.raises(AssertionError):
        Collected(studies=1, films=2, new=1)
