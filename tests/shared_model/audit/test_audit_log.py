"""The writer: on the disk before it returns, one at a time, whole after any crash, and evidence is never repaired."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared_model.audit import AuditLog, verify
from shared_model.audit.entries import MAX_LINE_BYTES
from shared_model.audit.log import RESERVED
from shared_model.errors import AuditError, StorageError
from shared_model.signing import SigningKey

KEY = SigningKey.generate()


def opened(path: Path, *, key: SigningKey = KEY, owner: str = "north") -> AuditLog:
    return AuditLog(path, owner=owner, key=key)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
def log(path: Path) -> Iterator[AuditLog]:
    with opened(path) as log:
        yield log


def kinds(path: Path) -> list[str]:
    return [json.loads(line)["kind"] for line in path.read_bytes().splitlines()]


def test_entries_are_lines_of_json_chained_and_for_the_owner_alone(path: Path) -> None:
    ticks = iter([0.0, 1.5, 1.25])
    with AuditLog(path, owner="north", key=KEY, clock=lambda: next(ticks)) as log:
        log.append("round_closed", round=1, loss=0.5, private=True, note="grün\n", weights=None)
        log.append("stopped")
        assert log.sequence == 3
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first, second, third = [json.loads(line) for line in path.read_text("ascii").splitlines()]
    assert first["fields"] == {"owner": "north", "log": log.log, "key": KEY.public.hex}
    assert first["previous"] == "0" * 64 and second["previous"] == first["sha256"]
    assert second["fields"] == {"round": 1, "loss": 0.5, "private": True, "note": "grün\n", "weights": None}
    assert (second["time"], third["time"]) == ("1970-01-01T00:00:01.500000Z", "1970-01-01T00:00:01.250000Z")
    assert len({entry["salt"] for entry in (first, second, third)}) == 3


def test_the_hashes_are_those_that_the_package_describes(path: Path, log: AuditLog) -> None:
    """Written anew from the words of `shared_model.audit`, so that any other tool can check a log."""
    import hashlib

    log.append("x", b=1, a="ü")
    for line in path.read_text("ascii").splitlines():
        entry = json.loads(line)
        body = {name: value for name, value in entry.items() if name not in ("previous", "sha256")}
        content = hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).digest()
        whole = b"mammofed audit entry 1\0" + bytes.fromhex(entry["previous"]) + content
        assert hashlib.sha256(whole).hexdigest() == entry["sha256"]


def test_it_goes_on_where_it_ended(path: Path) -> None:
    with opened(path) as log:
        log.append("a", n=1)
        log_id = log.log
    with opened(path) as log:
        assert (log.log, log.sequence) == (log_id, 2)
        log.append("b", n=2)
        assert [e.kind for e in log.entries()] == ["log_opened", "a", "b"]
    assert verify(path).entries == 3


def test_an_entry_is_flushed_before_append_returns(path: Path, log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (flushed.append(os.fstat(handle).st_size), fsync(handle)))
    log.append("a")
    assert flushed == [path.stat().st_size]


def test_one_process_writes(path: Path, log: AuditLog) -> None:
    code = f"""
import sys
from pathlib import Path
from shared_model.audit import AuditLog
from shared_model.errors import StorageError
from shared_model.signing import SigningKey
try:
    AuditLog(Path({str(path)!r}), owner="north", key=SigningKey.generate())
except StorageError as error:
    sys.exit(7 if "another process writes" in str(error) else 8)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 7
    log.close()
    with pytest.raises(StorageError, match="closed"):
        log.append("a")
    with opened(path):
        pass


def test_threads_take_turns(path: Path, log: AuditLog) -> None:
    threads = [threading.Thread(target=lambda: [log.append("a", n=n) for n in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verify(path).entries == 81


def test_a_killed_writer_loses_no_entry_that_it_was_told_of(path: Path) -> None:
    code = f"""
from pathlib import Path
from shared_model.audit import AuditLog
from shared_model.signing import SigningKey
log = AuditLog(Path({str(path)!r}), owner="north", key=SigningKey.load(Path({str(path.with_name("k"))!r})))
while True:
    print(log.append("tick", text="x" * 2000).sequence, flush=True)
"""
    key = SigningKey.create(path.with_name("k"))
    told = 0
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(15):
            told = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().splitlines(keepends=True)
        process.wait()
        told = max([told, *(int(line) for line in rest if line.endswith("\n"))])
        with opened(path, key=key) as log:
            assert log.sequence >= told
    assert verify(path).entries >= told


def test_a_line_torn_anywhere_is_removed_and_said_and_a_whole_one_is_finished(path: Path) -> None:
    with opened(path) as log:
        log.append("kept", n=1)
        before = path.read_bytes()
        log.append("torn", n=2)
        line = path.read_bytes()[len(before) :]
    for cut in (1, 2, len(line) // 2, len(line) - 2):
        path.write_bytes(before + line[:cut])
        with pytest.raises(AuditError, match="line 3: not ended"):
            verify(path)
        with opened(path) as log:
            said = list(log.entries())[-1]
        assert (said.kind, said.fields["bytes"], said.sequence) == ("tail_removed", cut, 3)
        assert verify(path).repairs == 1
    path.write_bytes(before + line[:-1])
    with opened(path) as log:
        assert [e.kind for e in log.entries()] == ["log_opened", "kept", "torn"]
        log.append("next")
    assert path.read_bytes().startswith(before + line) and verify(path).repairs == 0


@pytest.mark.parametrize("tail", [b"\0" * 900, b"{", b"\xff\xfe", b"null", b"x" * MAX_LINE_BYTES])
def test_whatever_a_power_cut_leaves_at_the_end_is_removed(path: Path, tail: bytes) -> None:
    with opened(path) as log:
        log.append("kept")
    path.write_bytes(path.read_bytes() + tail)
    with opened(path) as log:
        assert [e.kind for e in log.entries()] == ["log_opened", "kept", "tail_removed"]


def test_a_torn_first_line_opens_a_new_log(path: Path) -> None:
    with opened(path) as log:
        first = log.log
    path.write_bytes(path.read_bytes()[:100])
    with opened(path) as log:
        assert log.log != first
        assert [e.kind for e in log.entries()] == ["log_opened", "tail_removed"]


def test_anything_else_is_evidence_and_stays(path: Path) -> None:
    with opened(path) as log:
        log.append("a", n=1)
        log.append("b", n=2)
    good = path.read_bytes()
    for bad in (good.replace(b'"n":1', b'"n":3'), good.replace(b'"n":2', b'"n":3'), good + b"{}\n", good + b"\n",
                good + b"\0" * (MAX_LINE_BYTES + 1)):  # fmt: skip
        path.write_bytes(bad)
        with pytest.raises(AuditError):
            opened(path)
        assert path.read_bytes() == bad


@pytest.mark.parametrize("whole", [True, False], ids=["ended", "newline lost"])
def test_a_log_of_another_owner_or_key_is_left_alone(path: Path, whole: bool) -> None:
    with opened(path):
        pass
    path.write_bytes(path.read_bytes() if whole else path.read_bytes()[:-1])
    before = path.read_bytes()
    with pytest.raises(AuditError, match="another owner"):
        opened(path, owner="south")
    with pytest.raises(AuditError, match="another signing key"):
        opened(path, key=SigningKey.generate())
    assert path.read_bytes() == before


@pytest.mark.parametrize("at", ["write", "fsync"])
def test_a_full_disk_is_said_and_leaves_nothing(path: Path, at: str) -> None:
    with opened(path) as log:
        log.append("a")
        before = path.read_bytes()
        write = os.write

        def full(handle: int, data: bytes = b"") -> int:
            if at == "write" and len(data) > 50:
                return write(handle, data[:50])
            raise OSError(errno.ENOSPC, "No space left on device")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, at, full)
            with pytest.raises(StorageError, match="No space left"):
                log.append("b")
            with pytest.raises(StorageError, match="No space left"):
                log.append("c")
        assert path.read_bytes() == before
    with opened(path) as log:
        log.append("d")
    assert kinds(path) == ["log_opened", "a", "d"]


def test_a_file_that_really_cannot_grow(path: Path) -> None:
    """The kernel itself cuts the write short (RLIMIT_FSIZE), as a full disk does."""
    key = SigningKey.create(path.with_name("k"))
    code = f"""
import resource, sys
from pathlib import Path
from shared_model.audit import AuditLog
from shared_model.errors import StorageError
from shared_model.signing import SigningKey
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
log = AuditLog(Path({str(path)!r}), owner="north", key=SigningKey.load(Path({str(path.with_name("k"))!r})))
try:
    while True:
        log.append("tick", text="x" * 500)
except StorageError as error:
    sys.exit(error.exit_code)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 70
    assert 1000 < path.stat().st_size < 3000 and verify(path).entries > 2
    with opened(path, key=key) as log:
        log.append("tick", text="x" * 5000)
    assert verify(path).repairs == 0


def test_a_file_that_somebody_cut_or_replaced_under_the_writer_is_noticed(path: Path) -> None:
    with opened(path) as log:
        log.append("a")
        good = path.read_bytes()
        os.truncate(path, len(good) - 10)
        for act in (lambda: log.append("b"), log.head, lambda: log.statement(0)):
            with pytest.raises(AuditError, match="changed or replaced"):
                act()
        path.unlink()
        path.write_bytes(good)
        with pytest.raises(AuditError, match="changed or replaced"):
            log.append("b")


@pytest.mark.parametrize(("kind", "fields"), [
    ("", {}), ("Round", {}), ("a b", {}), ("a" * 64, {}), ("x", {"n": float("nan")}), ("x", {"n": float("inf")}),
    ("x", {"n": [1]}), ("x", {"n": {"a": 1}}), ("x", {"n": b"raw"}), ("x", {"n": 1 << 63}), ("x", {"N": 1}),
    ("x", {f"f{n}": n for n in range(65)}), ("x", {"text": "y" * MAX_LINE_BYTES}),
    *((kind, {}) for kind in sorted(RESERVED)),
])  # fmt: skip
def test_what_is_no_entry_is_not_written(path: Path, log: AuditLog, kind: str, fields: dict[str, object]) -> None:
    before = path.read_bytes()
    with pytest.raises(AuditError):
        log.append(kind, **fields)  # type: ignore[arg-type]
    assert path.read_bytes() == before
    log.append("fine")
    assert verify(path).entries == 2


def test_a_link_or_a_pipe_is_no_log(tmp_path: Path, path: Path) -> None:
    (tmp_path / "real").write_bytes(b"")
    path.symlink_to(tmp_path / "real")
    with pytest.raises(StorageError):
        opened(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(StorageError, match="regular"):
        opened(path)
    with pytest.raises(StorageError):
        opened(tmp_path / "no folder" / "audit.jsonl")
