"""Locks of files: one holder at a time, and who only looks is not taken for one."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from shared_model import private_files
from shared_model.private_files import is_held, take_lock


def test_a_lock_has_one_holder_until_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_held(path)
    with path.open("w") as first, path.open("w") as second:
        assert take_lock(first.fileno()) and is_held(path)
        assert not take_lock(second.fileno())
        first.close()
        assert not is_held(path) and take_lock(second.fileno())


def test_who_only_looks_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A monitor's look at the moment of a study's start had it refused as in use by another process."""
    path = tmp_path / "lock"
    path.touch()
    looking = os.open(path, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    monkeypatch.setattr(private_files, "LOOK_S", 600.0)
    monkeypatch.setattr(private_files.time, "sleep", lambda seconds: os.close(looking))  # the look ends meanwhile
    with path.open("w") as stream:
        assert take_lock(stream.fileno())
