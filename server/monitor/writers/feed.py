"""Feeds writers from studies' journals, in a thread of its own that nobody waits for; run by `companion`.

A writer that fails (a tracking server that is away, a full disk) is said once and tried again from where it was; the
study goes on.
"""

from __future__ import annotations

import fcntl
import importlib.util
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, Protocol, TextIO

from server.monitor.stepping import Stepping
from server.rounds.events import Event
from server.rounds.follow import is_complete, read_events
from shared_model.errors import ConfigError, MammoFedError

FOLDER: Final = "monitor"  # in the run directory
KINDS: Final = {"jsonl": "", "mlflow": "mlflow", "tensorboard": "tensorboard"}
"""Writer -> the package that it needs beyond MammoFed's own; the extra has the writer's name."""
STEP_S: Final = 1.0
END_S: Final = 15.0  # for what is left at the end; longer than one answer of a tracking server may take
AT_ONCE: Final = 500

log = logging.getLogger("mammofed.monitor")


class Writer(Protocol):
    """A tool's end."""

    def begin(self) -> int:
        """Number of the last event that it has."""
        ...

    def write(self, events: Sequence[tuple[int, Event]]) -> None:
        """Take these, which are never none."""
        ...

    def close(self) -> None:
        """Nothing more comes from this process."""
        ...


def check_writers(names: Sequence[str]) -> tuple[str, ...]:
    """The writers by name, each once, `jsonl` always among them.

    Raises:
        ConfigError: an unknown one, or its package is not installed.
    """
    for name in names:
        if name not in KINDS:
            raise ConfigError("monitor.writers: unknown choice", found=name, expected=" | ".join(KINDS))
        package = KINDS[name]
        if package and importlib.util.find_spec(package) is None:
            raise ConfigError(f"monitor.writers: `{name}` needs a package that is not installed", found="none",
                              expected=package, remedy=f"pip install 'mammofed[{name}]'")  # fmt: skip
    return tuple(dict.fromkeys(["jsonl", *names]))


def make_writer(name: str, run_dir: Path) -> Writer:
    """One writer of a run directory."""
    folder = run_dir / FOLDER
    if name == "mlflow":
        from server.monitor.writers.mlflow import MLflow

        return MLflow(folder)
    if name == "tensorboard":
        from server.monitor.writers.tensorboard import TensorBoard

        return TensorBoard(folder)
    from server.monitor.writers.jsonl import JsonLines

    return JsonLines(folder)


class Feed:
    """Writers of one run directory.

    Args:
        names: as :func:`check_writers` gives them.
        say: told in words when a writer fails, and when it works again.
    """

    def __init__(
        self, run_dir: Path, names: Sequence[str], *, say: Callable[[str], None] = log.warning,
        make: Callable[[str, Path], Writer] = make_writer,
    ) -> None:  # fmt: skip
        self._run_dir, self._journal, self._say, self._make = run_dir, run_dir / "journal.sqlite", say, make
        self._names, self._writers = tuple(names), dict[str, tuple[Writer, int]]()
        self._faults = dict[str, str]()
        self._lock: TextIO | None = None

    def step(self) -> bool:
        """Hand on what is new to each writer; an error of one is its own. Whether all of them have all.

        One process feeds a run directory: of a rehearsal's two, its launcher's and its daemon's, the other waits.
        """
        if not self._journal.exists() or not self._mine():
            return True
        for name in self._names:
            try:
                self._feed(name)
            except Exception as error:  # another tool's code and another machine: anything may come
                words = str(error) if isinstance(error, MammoFedError) else f"{type(error).__name__}: {error}"
                if name not in self._faults:
                    self._say(f"monitor's writer {name} fails, and is tried again: {' '.join(words.split())[:300]}")
                self._faults[name] = words
                self._writers.pop(name, None)  # begun anew: half of what was handed on may be there
            else:
                if self._faults.pop(name, None) is not None:
                    self._say(f"monitor's writer {name} works again")
        return not self._faults

    def _mine(self) -> bool:
        if self._lock is not None:
            return True
        path = self._run_dir / FOLDER / ".lock"
        try:
            path.parent.mkdir(exist_ok=True)
            stream = path.open("w")
        except OSError as error:
            if "lock" not in self._faults:
                self._say(f"monitor's writers cannot work in {path.parent}: {error.strerror}")
            self._faults["lock"] = str(error)
            return False
        self._faults.pop("lock", None)
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            stream.close()
            return False
        self._lock = stream
        return True

    def close(self) -> None:
        """Nothing more comes."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        for name, (writer, _) in self._writers.items():
            try:
                writer.close()
            except Exception as error:
                self._say(f"monitor's writer {name} could not be closed: {error}")
        self._writers.clear()

    def _feed(self, name: str) -> None:
        if name not in self._writers:
            writer = self._make(name, self._run_dir)
            self._writers[name] = writer, writer.begin()
        writer, last = self._writers[name]
        while found := list(read_events(self._journal, after=last, limit=AT_ONCE)):
            writer.write(found)
            last = found[-1][0]
            self._writers[name] = writer, last


class Feeds(Stepping):
    """The writers of all studies that `folders` names at each look; a context manager that feeds them in a thread."""

    def __init__(
        self, folders: Callable[[], Iterable[Path]], names: Sequence[str], *, step_s: float = STEP_S,
        make: Callable[[Path, Sequence[str]], Feed] = Feed,
    ) -> None:  # fmt: skip
        super().__init__("the monitor's writers", step_s=step_s, end_s=END_S)
        self._folders, self._names, self._make = folders, names, make
        self._feeds, self._done = dict[Path, Feed](), set[Path]()

    def step(self, *, last: bool = False) -> None:
        """Look once at every study; one that is complete and handed on is not looked at again."""
        for folder in self._folders():
            if folder in self._done:
                continue
            complete = is_complete(folder / "journal.sqlite")  # before its events are read
            feed = self._feeds.setdefault(folder, self._make(folder, self._names))
            if feed.step() and complete:
                self._feeds.pop(folder).close()
                self._done.add(folder)

    def done(self) -> None:
        """Close what is open."""
        for feed in self._feeds.values():
            feed.close()
