"""Results reach the PACS once each, through restarts of both sides; what the PACS refuses is kept with its reason."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pynetdicom import AE, evt

from client.ingest.outbox import FAILED, Outbox, OutboxTarget, Sent
from client.ingest.sources.retry import Backoff
from shared_model.errors import ConfigError, SourceError, StorageError
from tests.films import SYNTAX, encode
from tests.orthanc import Orthanc, skip_without_orthanc
from tests.ports import free_port

SC = "1.2.840.10008.5.1.4.1.1.7"
SR = "1.2.840.10008.5.1.4.1.1.88.33"
NAME = "WINTERHALTER^BERTA"


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    skip_without_orthanc()
    with Orthanc(tmp_path_factory.mktemp("outbox") / "orthanc") as running:
        yield running


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    with Outbox(tmp_path / "outbox") as box:
        yield box


def result(number: int = 1, *, sop_class: str = SC, syntax: str = "explicit", **changes: Any) -> Dataset:
    """A secondary capture, or something of another class, of a woman with her real name."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, f"9.8.7.6.{number}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.Modality = "9.8.7.6", "9.8.7.6.0", "OT"
    ds.PatientName, ds.PatientID = NAME, "PID-77"
    pixels = np.full((32, 32), number, np.uint8)
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 32, 32, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    ds.PixelData = pixels.tobytes() if syntax == "explicit" else encapsulate([encode(pixels, syntax, bits=8)])
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", syntax != "explicit"
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    return ds


def send(box: Outbox, port: int, *, retries: int = 1, **changes: Any) -> Sent:
    target = OutboxTarget(**{"host": "127.0.0.1", "port": port, "called_ae": "PACS", "timeout_seconds": 60, **changes})
    return box.send(target, backoff=Backoff(retries, first_seconds=0.1, longest_seconds=0.5))


def there(pacs: Orthanc) -> set[str]:
    return {pacs.rest(f"instances/{i}/simplified-tags")["SOPInstanceUID"] for i in pacs.instances()}


@pytest.fixture(autouse=True)
def empty(request: pytest.FixtureRequest) -> None:
    if "pacs" in request.fixturenames:
        pacs = request.getfixturevalue("pacs")
        for instance in pacs.instances():
            pacs.remove(instance)


def test_results_arrive_in_every_syntax_and_leave_the_spool(pacs: Orthanc, outbox: Outbox) -> None:
    names = [outbox.put(result(1)), outbox.put(result(2, syntax="jpeg_ls"), syntax=SYNTAX["jpeg_ls"]),
             outbox.put(result(3, syntax="jpeg_2000"), syntax=SYNTAX["jpeg_2000"]), outbox.put(result(4))]  # fmt: skip
    assert outbox.waiting() == sorted(names)
    assert send(outbox, pacs.dicom_port) == Sent(sent=4)
    assert outbox.waiting() == [] and outbox.failed() == {}
    assert there(pacs) == {f"9.8.7.6.{n}" for n in range(1, 5)}
    one = pacs.rest("tools/lookup", b"9.8.7.6.3")[0]["ID"]
    assert pacs.rest(f"instances/{one}/simplified-tags")["PatientName"] == NAME
    assert send(outbox, pacs.dicom_port) == Sent()


def test_what_waits_survives_a_restart_and_a_pacs_that_is_away(pacs: Orthanc, tmp_path: Path) -> None:
    with Outbox(tmp_path / "o") as box:
        first = box.put(result(1))
        got = send(box, free_port())
        assert (got.sent, got.waiting) == (0, 1) and "no association" in got.lost
    with Outbox(tmp_path / "o") as box:
        second = box.put(result(2))
        assert box.waiting() == [first, second] and second > first
        assert send(box, pacs.dicom_port) == Sent(sent=2)
    assert there(pacs) == {"9.8.7.6.1", "9.8.7.6.2"}


def test_a_sender_that_is_killed_sends_the_rest_the_next_time(pacs: Orthanc, tmp_path: Path) -> None:
    with Outbox(tmp_path / "o") as box:
        for number in range(25):
            box.put(result(number + 1))
    code = """
import sys
from pathlib import Path
from pynetdicom.association import Association
from client.ingest.outbox import Outbox, OutboxTarget
send, sent = Association.send_c_store, []
def stop_at_the_fifth(*given):
    answer = send(*given)
    sent.append(answer)
    if len(sent) == 5:
        print("five", flush=True)
        sys.stdin.read()
    return answer
Association.send_c_store = stop_at_the_fifth
Outbox(Path(sys.argv[1])).send(OutboxTarget(host="127.0.0.1", port=sys.argv[2], called_ae="PACS"))
"""
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "o"), str(pacs.dicom_port)],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert child.stdout is not None and child.stdout.readline() == b"five\n"
    child.send_signal(signal.SIGKILL)  # the PACS has the fifth, and the sender has not noted it
    child.communicate()
    with Outbox(tmp_path / "o") as box:
        assert len(box.waiting()) == 21
        assert send(box, pacs.dicom_port) == Sent(sent=21)
    assert len(there(pacs)) == 25


def test_a_pacs_that_is_killed_and_comes_back_gets_everything(pacs: Orthanc, outbox: Outbox) -> None:
    outbox.put(result(1))
    pacs.kill()
    assert send(outbox, pacs.dicom_port, retries=0).waiting == 1
    pacs.start()
    outbox.put(result(2))
    assert send(outbox, pacs.dicom_port, retries=5) == Sent(sent=2)
    assert there(pacs) == {"9.8.7.6.1", "9.8.7.6.2"}


def test_an_object_that_waits_is_replaced_by_its_new_version(pacs: Orthanc, outbox: Outbox) -> None:
    first = outbox.put(result(1, SeriesDescription="first"))
    assert outbox.put(result(1, SeriesDescription="second")) == first
    assert send(outbox, pacs.dicom_port).sent == 1
    assert pacs.rest(f"instances/{pacs.instances()[0]}/simplified-tags")["SeriesDescription"] == "second"


def test_more_kinds_than_an_association_holds_are_sent_in_several(outbox: Outbox) -> None:
    with Scp(lambda _: 0x0000, [f"1.2.840.10008.5.1.4.1.1.7.99.{n}" for n in range(90)]) as (port, seen):
        for number in range(90):
            outbox.put(result(number, sop_class=f"1.2.840.10008.5.1.4.1.1.7.99.{number}"))
        got = send(outbox, port)
    assert got.sent + sum(got.failed.values()) == 90 and got.waiting == 0
    assert len(seen) == got.sent


class Scp:
    """A storage SCP that answers with a status of our choice."""

    def __init__(self, status: Any, kinds: list[str]) -> None:
        self.seen: list[str] = []

        def take(event: Any) -> int:
            uid = str(event.request.AffectedSOPInstanceUID)
            self.seen.append(uid)
            return int(status(uid))

        from pynetdicom import _config

        self._config, self._before = _config, _config.UNRESTRICTED_STORAGE_SERVICE
        _config.UNRESTRICTED_STORAGE_SERVICE = any(".99." in kind for kind in kinds)
        entity = AE("PACS")
        for kind in kinds:
            entity.add_supported_context(kind)
        self._running = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, take)])
        self.port = int(self._running.server_address[1])

    def __enter__(self) -> tuple[int, list[str]]:
        return self.port, self.seen

    def __exit__(self, *_: object) -> None:
        self._running.shutdown()
        self._config.UNRESTRICTED_STORAGE_SERVICE = self._before


@pytest.mark.parametrize(
    ("status", "reason"),
    [(0x0122, "not_supported"), (0x0124, "not_permitted"), (0xA900, "refused"), (0xC000, "refused"),
     (0x0110, "refused")],
)  # fmt: skip
def test_what_the_pacs_refuses_is_kept_with_its_reason(outbox: Outbox, status: int, reason: str) -> None:
    names = [outbox.put(result(n)) for n in (1, 2)]
    with Scp(lambda uid: status if uid.endswith(".1") else 0xB007, [SC]) as (port, seen):
        assert send(outbox, port) == Sent(sent=1, failed={reason: 1})
        assert outbox.failed() == {names[0]: reason} and reason in FAILED
        assert send(outbox, port) == Sent() and len(seen) == 2  # it is not tried again by itself
    assert outbox.retry_failed() == 1 and outbox.failed() == {} and outbox.waiting() == names[:1]
    with Scp(lambda _: 0, [SC]) as (port, _):
        assert send(outbox, port) == Sent(sent=1)


def test_a_kind_that_the_pacs_does_not_take_is_told(outbox: Outbox) -> None:
    outbox.put(result(1, sop_class=SR))
    outbox.put(result(2))
    outbox.put(result(3, syntax="jpeg_ls"), syntax=SYNTAX["jpeg_ls"])
    with Scp(lambda _: 0, [SC]) as (port, seen):
        assert send(outbox, port) == Sent(sent=1, failed={"not_supported": 2})
    assert seen == ["9.8.7.6.2"]


def test_a_pacs_out_of_room_is_tried_later(outbox: Outbox) -> None:
    outbox.put(result(1))
    with Scp(lambda _: 0xA700, [SC]) as (port, seen):
        got = send(outbox, port, retries=2)
    assert (got.sent, got.waiting, len(seen)) == (0, 1, 3) and "resources" in got.lost


def test_a_pacs_that_does_not_know_us_is_an_error(outbox: Outbox) -> None:
    outbox.put(result(1))
    entity = AE("PACS")
    entity.add_supported_context(SC)
    entity.require_calling_aet = ["FRIEND"]
    running = entity.start_server(("127.0.0.1", 0), block=False)
    try:
        with pytest.raises(SourceError, match="registered"):
            send(outbox, running.server_address[1])
    finally:
        running.shutdown()
    assert len(outbox.waiting()) == 1


def test_a_damaged_file_in_the_spool_keeps_nobody_waiting(outbox: Outbox) -> None:
    names = [outbox.put(result(n)) for n in (1, 2, 3)]
    waiting = outbox.folder / "waiting"
    (waiting / names[0]).write_bytes(b"junk")
    data = (waiting / names[1]).read_bytes()
    (waiting / names[1]).write_bytes(data[:400])
    (waiting / "notes.txt").write_text("not ours")
    with Scp(lambda _: 0, [SC]) as (port, seen):
        got = send(outbox, port)
    assert got.sent == 1 and got.failed.get("damaged", 0) == 2 and seen == ["9.8.7.6.3"]


@pytest.mark.parametrize(
    "changes", [{"SOPInstanceUID": ""}, {"SOPClassUID": None}, {"SOPInstanceUID": "../x"}], ids=str
)
def test_what_is_no_object_is_not_spooled(outbox: Outbox, changes: dict[str, Any]) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = result(1, **changes)
    with pytest.raises(ConfigError, match="cannot be sent"):
        outbox.put(ds)
    assert outbox.waiting() == []


def test_the_spool_is_its_owners_and_its_names_and_messages_say_nothing(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    name = outbox.put(result(1))
    assert not any(part in name for part in ("77", "WINTER", "9.8"))
    modes = {p.stat().st_mode & 0o777 for p in [outbox.folder, *outbox.folder.rglob("*")]}
    assert modes == {0o700, 0o600}
    with Scp(lambda _: 0xC000, [SC]) as (port, _):
        got = send(outbox, port)
    out, err = capfd.readouterr()
    shown = out + err + caplog.text + repr(got) + repr(outbox.failed())
    assert "WINTER" not in shown and "PID-77" not in shown
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(StorageError, match="No space") as raised:
        outbox.put(result(2))
    assert "WINTER" not in str(raised.value) and outbox.waiting() == []


def test_one_sender_at_a_time(outbox: Outbox) -> None:
    with pytest.raises(StorageError, match="another process"):
        Outbox(outbox.folder)
