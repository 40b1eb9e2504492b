"""Keeps long-running child processes alive: starts them, starts them again when they die, ends them with their own.

Used by `mammofed server serve` and `mammofed site join`, whose own supervisor is systemd or a person. Each child runs
under :mod:`shared_model.guard`, so that whatever it started goes with it, however this process ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from shared_model import guard
from shared_model.errors import StorageError
from shared_model.private_files import write_private
from shared_model.repeating import Repeating

POLL_S = 0.2
STEADY_S = 60.0  # a child that ran so long starts again at once; one that dies young waits longer each time
STOP_S = guard.GRACE_S + guard.KILL_S + 5.0
MAX_LOG_BYTES = 16 << 20  # then the log is put aside once (`.1`)
LOG_LOOK_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Service:
    """A child to keep alive.

    environment: the whole of it, nothing is inherited. restart_s, slowest_s: wait before it is started again, doubled
        each time that it dies young, at most `slowest_s`.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    log: Path
    restart_s: float = 1.0
    slowest_s: float = 15.0


@dataclass(kw_only=True)
class _Child:
    service: Service
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    due: float = 0.0
    wait: float = 0.0
    starts: int = 0
    last_exit: int | None = None
    fault: str = ""


@dataclass(frozen=True, kw_only=True)
class ServiceState:
    """How a child is. pid: of its guard, None while it is down; last_exit: exit code of its last end."""

    pid: int | None
    starts: int
    seconds: float
    last_exit: int | None


class Supervisor(Repeating):
    """A context manager; children added inside are gone after it.

    Args:
        state: a JSON file that always says how each child is, for `status`; None: none.
        report: is told each start and each end in words.
    """

    def __init__(self, *, state: Path | None = None, report: Callable[[str, str], None] = lambda name, words: None,
                 clock: Callable[[], float] = time.monotonic) -> None:  # fmt: skip
        super().__init__("supervisor", every_s=POLL_S)
        self._state, self._report, self._clock = state, report, clock
        self._children: dict[str, _Child] = {}
        self._lock, self._unwritten, self._looked = threading.RLock(), False, clock()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        with self._lock:
            children = list(self._children.values())
            for child in reversed(children):
                _let_go(child)
            for child in reversed(children):
                _wait_for(child)
            self._write()

    def add(self, service: Service) -> None:
        """Start a child now and keep it; one of the same name must not be there."""
        with self._lock:
            assert service.name not in self._children, service.name
            self._children[service.name] = child = _Child(service=service, wait=service.restart_s)
            self._start(child)
            self._write()

    def restart(self, name: str) -> None:
        """End a child and start it again, say because what it read at its start was changed."""
        with self._lock:
            child = self._children[name]
            _let_go(child)
            _wait_for(child)
            self._start(child)
            self._write()

    def remove(self, name: str) -> None:
        """End a child for good; harmless where there is none."""
        with self._lock:
            child = self._children.pop(name, None)
            if child is not None:
                _let_go(child)
                _wait_for(child)
                self._write()

    def states(self) -> dict[str, ServiceState]:
        """How each child is, by name."""
        with self._lock:
            return {name: self._state_of(child) for name, child in self._children.items()}

    def alive(self, name: str) -> bool:
        """Whether a child runs now."""
        with self._lock:
            child = self._children.get(name)
            return child is not None and child.process is not None and child.process.poll() is None

    # --- inside ---

    def _turn(self) -> None:
        """No disk that is full, and no process that cannot be started, may end the thread."""
        with self._lock:
            if self._clock() - self._looked >= LOG_LOOK_S:
                self._looked = self._clock()
                for child in self._children.values():
                    _put_aside(child.service.log)
            changed = [self._look(child) for child in self._children.values()]
            if self._unwritten or any(changed):
                self._unwritten = False
                try:
                    self._write()
                except StorageError:
                    self._unwritten = True

    def _look(self, child: _Child) -> bool:
        now = self._clock()
        if child.process is not None and child.process.poll() is not None:
            child.last_exit, child.process = child.process.returncode, None
            steady = now - child.started >= STEADY_S
            child.wait = child.service.restart_s if steady else min(2 * child.wait, child.service.slowest_s)
            child.due = now + child.wait
            self._report(child.service.name, f"ended with {child.last_exit}; starts again in {child.wait:g} s")
            return True
        if child.process is None and now >= child.due:
            try:
                self._start(child)
            except OSError as error:
                child.due = now + child.service.slowest_s
                if child.fault != str(error):  # said once, tried again
                    self._report(child.service.name, f"cannot be started: {error.strerror}; tried again")
                child.fault = str(error)
                return False
            child.fault = ""
            return True
        return False

    def _start(self, child: _Child) -> None:
        service = child.service
        service.log.parent.mkdir(parents=True, exist_ok=True)
        _put_aside(service.log)
        with service.log.open("ab") as stream:
            child.process = subprocess.Popen(
                [sys.executable, "-P", guard.__file__, *service.command], stdin=subprocess.PIPE, stdout=stream,
                stderr=stream, env=dict(service.environment), cwd=service.folder, start_new_session=True,
            )  # fmt: skip
        child.started, child.starts = self._clock(), child.starts + 1
        self._report(service.name, "started" if child.starts == 1 else f"started again ({child.starts - 1})")

    def _state_of(self, child: _Child) -> ServiceState:
        alive = child.process is not None and child.process.poll() is None
        pid = child.process.pid if alive and child.process is not None else None
        return ServiceState(pid=pid, starts=child.starts, seconds=self._clock() - child.started if alive else 0.0,
                            last_exit=child.last_exit)  # fmt: skip

    def _write(self) -> None:
        if self._state is not None:
            found = {name: {"guard": there.pid, "starts": there.starts, "last_exit": there.last_exit}
                     for name, there in self.states().items()}  # fmt: skip
            write_private(self._state, (json.dumps(found, indent=1) + "\n").encode())


def _put_aside(log: Path) -> None:
    """Copy a log that has grown large and empty it: its child goes on writing into it, at its new end (O_APPEND)."""
    with contextlib.suppress(OSError):
        if log.stat().st_size > MAX_LOG_BYTES:
            shutil.copyfile(log, log.with_name(log.name + ".1"))
            os.truncate(log, 0)


def _let_go(child: _Child) -> None:
    """Ask the guard to end its child and all that came of it."""
    if child.process is not None and child.process.stdin is not None:
        child.process.stdin.close()


def _wait_for(child: _Child) -> None:
    if child.process is not None:
        try:
            child.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()
        child.process = None

