"""After a disk that was full, the writer goes on by itself: a daemon that runs for months must not stay mute."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from shared_model.audit import AuditLog, file, verify
from shared_model.audit import log as module
from shared_model.errors import AuditError, StorageError
from shared_model.signing import SigningKey


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_log_goes_on_once_there_is_room_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = SigningKey.generate()
    with AuditLog(tmp_path / "log", owner="hub", key=key) as log:
        log.append("before")
        with monkeypatch.context() as patch:
            patch.setattr(file, "_write", full)
            with pytest.raises(StorageError, match="could not be written"):
                log.append("lost")
            with pytest.raises(StorageError):
                log.append("lost")
        monkeypatch.setattr(module, "AGAIN_S", 0.0)
        log._again = 0.0
        log.append("after")
        assert [entry.kind for entry in log.entries()] == ["log_opened", "before", "after"]
        assert log.statement(0).signed.head.sequence == 3
    assert verify(tmp_path / "log", key=key.public).entries == 3


def test_it_is_not_read_again_and_again_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with AuditLog(tmp_path / "log", owner="hub", key=SigningKey.generate()) as log:
        monkeypatch.setattr(file, "_write", full)
        opened = list[int]()
        monkeypatch.setattr(log, "_open_again", lambda: opened.append(1))
        for _ in range(2):
            with pytest.raises(StorageError):
                log.append("lost")
        assert opened == [1]
        assert module.AGAIN_S >= 1


def test_a_log_that_was_changed_meanwhile_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with AuditLog(tmp_path / "log", owner="hub", key=SigningKey.generate()) as log:
        log.append("before", site="north")
        with monkeypatch.context() as patch:
            patch.setattr(file, "_write", full)
            with pytest.raises(StorageError):
                log.append("lost")
        text = (tmp_path / "log").read_bytes()
        (tmp_path / "log").write_bytes(text.replace(b"north", b"south"))
        with pytest.raises(AuditError):
            log.append("after")
