"""Signs of life of trainers on one machine: a file a party that its trainer touches; written there, read by monitors.

Between hospitals the courier's heartbeat says who is there. On one machine there is no courier, and a process that
hangs looks like one that computes: only what the process itself does now and then tells them apart.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Self

from shared_model.repeating import Repeating

BEAT_S: Final = 2.0
SILENT_S: Final = 15.0  # processes of one machine wait for its cores: a beat may be seconds late
FOLDER: Final = Path("logs") / "alive"  # of a run directory


class Beating(Repeating):
    """While inside, a thread touches a file a name in `folder`; what the disk refuses is tried again.

    A thread that computes in C without giving up the interpreter stops it as a hang would: training gives it up.
    """

    def __init__(self, folder: Path, names: Iterable[str], *, beat_s: float = BEAT_S) -> None:
        super().__init__("beating", every_s=beat_s)
        self._paths = [folder / name for name in names]

    def __enter__(self) -> Self:
        self._turn()
        return super().__enter__()

    def _turn(self) -> None:
        for path in self._paths:
            with contextlib.suppress(OSError):  # a full disk, or the folder is gone with its run
                path.touch()


def last_beats(folder: Path) -> dict[str, float]:
    """When each party's trainer was alive last, seconds since 1970; empty where nobody beats."""
    found = {}
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                found[path.name] = path.stat().st_mtime
    return found
