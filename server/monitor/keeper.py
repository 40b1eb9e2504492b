"""Watches studies for alarms in a thread of its own, and tells of them. Started by daemon and launcher.

It reads as every monitor does: read-only, and what it costs the study is measured in `simulate bench --only monitor`.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from server.monitor.alarms import Machine, evaluate
from server.monitor.notify import Notifier
from server.monitor.reading import read
from server.monitor.rules import MonitorFile
from server.monitor.stepping import Stepping
from server.monitor.view import StudyView, merge
from shared_model.errors import ConfigError

STEP_S: Final = 5.0
END_S: Final = 20.0

log = logging.getLogger("mammofed.monitor")


def machine_of(folder: Path) -> Machine:
    """What is known of the machine that a study lies on."""
    try:
        return Machine(free_bytes=shutil.disk_usage(folder).free)
    except OSError:
        return Machine()


class Keeper(Stepping):
    """The watch over the run directories that `folders` names at each look; a context manager.

    Args:
        own: the coordinator's `monitor.yaml`; read again when it changes. One that is damaged is said in the log, and
            the rules that were good before go on.

    Raises:
        ConfigError: the file is wrong already at the start.
    """

    def __init__(
        self, folders: Callable[[], Iterable[Path]], *, own: Path | None = None, step_s: float = STEP_S,
        notifier: Callable[[MonitorFile], Notifier] = lambda file: Notifier(file.send),
    ) -> None:  # fmt: skip
        super().__init__("the watch for alarms", step_s=step_s, end_s=END_S)
        self._folders, self._own, self._make = folders, own, notifier
        self._stamp = _stamp(own)
        self._file = MonitorFile.read(own)
        self._notifier = notifier(self._file)
        self._views: dict[Path, StudyView] = {}

    def step(self, *, last: bool = False) -> None:
        """Look once at every study. last: nobody looks again."""
        self._read_rules()
        folders = list(self._folders())
        for folder in folders:
            before = self._views.get(folder)
            if before is not None and before.status == "complete":  # for good
                continue
            view = read(folder, before.cursor if before else None)
            self._views[folder] = view = merge(before, view) if before else view
            self._notifier.tell(view.name, evaluate(self._file.rules, view, machine_of(folder)), last=last)
        for gone in self._views.keys() - set(folders):
            self._notifier.tell(self._views.pop(gone).name, ())

    def _read_rules(self) -> None:
        stamp = _stamp(self._own)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            file = MonitorFile.read(self._own)
        except ConfigError as error:
            log.error("%s; the rules from before go on", error)
            return
        if file.send != self._file.send:
            self._notifier = self._make(file)
        self._file = file


def _stamp(path: Path | None) -> tuple[int, int] | None:
    try:
        status = path.stat() if path is not None else None
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size) if status is not None else None
