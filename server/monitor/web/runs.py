"""Which studies a monitor shows, found on the disk, and each one's whole view, kept up to date for all readers at once.

Given a run directory it shows that one, and its neighbours to compare with; given a folder of runs, or a coordinator's
home, it shows all that are in there. A study is called by the name of its folder, and only names that were found are
ever looked up, so that nothing in a request becomes a path.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from server.monitor.reading import LATEST, read
from server.monitor.view import StudyView, merge
from server.monitor.web.source import Alarms, Source

MAX_RUNS = 100  # the newest ones
FRESH_S = 0.5  # a whole view is made at most so often, whoever asks
MARKS = ("protocol.json", "journal.sqlite", "launch.json")


def is_run(folder: Path) -> bool:
    """Whether a folder is a run directory, or is about to become one."""
    return any((folder / mark).exists() for mark in MARKS)


class Runs(Source):
    """The studies under a place.

    Args:
        place: a run directory, a folder of them, or a coordinator's home.
        first: name of the one to begin with, where it is not the place itself.
        alarms: what else stands out in a view; called with the whole of it.
        clock: seconds since 1970.
    """

    def __init__(
        self, place: Path, *, first: str | None = None, alarms: Alarms = lambda _: (),
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self.place = place.absolute()
        self._alarms, self._clock, self._lock = alarms, clock, threading.Lock()
        self._whole: dict[str, StudyView] = {}
        self._locks: dict[str, threading.Lock] = {}
        alone = is_run(self.place) or not self.place.exists()
        self._first, self._wanted = self.place.name if alone else None, first
        home = (self.place / "coordinator.json").is_file()
        self.folder = self.place.parent if alone else self.place / "studies" if home else self.place

    def folders(self) -> Mapping[str, Path]:
        """Run directories by name: the one that was asked for first, then the newest."""
        try:
            found = [path for path in self.folder.iterdir() if path.is_dir() and is_run(path)]
        except OSError:
            found = []
        found.sort(key=_age)
        named = {path.name: path for path in found[:MAX_RUNS]}
        return {self._first: self.place, **named} if self._first is not None else named

    @property
    def first(self) -> str | None:
        """The run directory that was asked for, if it is there; None of a folder of them."""
        return self._wanted if self._wanted in self.folders() else self._first

    @property
    def member(self) -> None:
        """Nobody: this is the coordinator's."""
        return None

    def names(self) -> Sequence[str]:
        """All of them, see :meth:`folders`."""
        return list(self.folders())

    def head(self, name: str) -> StudyView | None:
        """A view for the list."""
        folder = self.folders().get(name)
        return read(folder, LATEST) if folder is not None else None

    def read(self, name: str, since: str | None) -> StudyView | None:
        """What is new of a study, with the alarms of the whole; None of an unknown name."""
        folder = self.folders().get(name)
        if folder is None:
            return None
        view = read(folder, since, now=self._clock())
        return replace(view, alarms=self._whole_of(name, folder).alarms)

    def whole(self, name: str) -> StudyView | None:
        """All of a study; made anew at most every half second."""
        folder = self.folders().get(name)
        return self._whole_of(name, folder) if folder is not None else None

    def all(self) -> list[StudyView]:
        """Every study, whole."""
        return [self._whole_of(name, folder) for name, folder in self.folders().items()]

    def _whole_of(self, name: str, folder: Path) -> StudyView:
        with self._lock:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            known, now = self._whole.get(name), self._clock()
            if known is not None and 0 <= now - known.now < FRESH_S:
                return known
            new = read(folder, known.cursor if known is not None else None, now=now)
            view = merge(known, new) if known is not None else new
            view = replace(view, alarms=tuple(self._alarms(view)))
            self._whole[name] = view
            return view


def _age(path: Path) -> float:
    """Newest first, by the last change of what a study writes."""
    times = [0.0]
    for name in ("journal.sqlite", "journal.sqlite-wal", "launch.json"):
        try:
            times.append((path / name).stat().st_mtime)
        except OSError:
            continue
    return -max(times)
