"""One party of a disturbed study as a process of its own that can be parked at an exact place; used by `scene`.

Processes are forked from the harness, which has imported torch and Flower and runs one thread: a party starts in a
tenth of a second instead of five CPU-seconds, and is a real process all the same, with files, locks and sockets of its
own, that SIGKILL ends as it ends any other. A process with threads must not fork like this, so the harness has none
(but Arrow's allocator's, which knows what to do in a fork).
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shared_model.errors import ConfigError, MammoFedError, TrainerError

WAIT_S = 240.0  # for a party to say something; generous, since nothing is measured here
PR_SET_PDEATHSIG = 1  # prctl(2)
Note = dict[str, Any]


class Port:
    """The child's end: tells the harness where it is, and parks there until it is told to go on."""

    def __init__(self, notes: int, go: int) -> None:
        self._notes, self._go, self._lock = notes, go, threading.Lock()

    def tell(self, kind: str, **values: object) -> None:
        """Send one note."""
        with self._lock:
            os.write(self._notes, (json.dumps({"kind": kind, **values}) + "\n").encode())

    def park(self, where: str) -> None:
        """Stop the whole process here, all threads, until the harness lets it go on (or kills it)."""
        self.tell("parked", where=where)
        os.kill(os.getpid(), signal.SIGSTOP)
        os.read(self._go, 1)  # the signal may reach another thread a moment later: this one goes nowhere meanwhile


class Process:
    """A forked party.

    Args:
        name: for messages.
        body: runs in the child and returns its exit code.
        log: gets the child's output.

    Raises:
        ConfigError: this process runs threads, whose locks the child would inherit for ever.
    """

    def __init__(self, name: str, body: Callable[[Port], int], *, log: Path) -> None:
        if threading.active_count() > 1:
            raise ConfigError("a process with threads cannot fork parties",
                              found=[thread.name for thread in threading.enumerate()],
                              remedy="run `mammofed simulate faults` as a process of its own")  # fmt: skip
        self.name, self._buffer, self._code = name, b"", -1
        notes, child_notes = os.pipe()
        child_go, go = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(notes)
            os.close(go)
            _run(body, Port(child_notes, child_go), log)  # never returns
        os.close(child_notes)  # so that the pipe ends when the child does: later children must not inherit it
        os.close(child_go)
        self._notes, self._go, self._alive = notes, go, True

    @property
    def alive(self) -> bool:
        """Whether the process has not been reaped."""
        return self._alive

    def note(self, *kinds: str) -> Note | None:
        """The next note of one of these kinds; None when the process ended without one.

        Raises:
            TrainerError: neither within `WAIT_S`.
        """
        deadline = time.monotonic() + WAIT_S
        while True:
            while b"\n" in self._buffer:
                line, _, self._buffer = self._buffer.partition(b"\n")
                found: Note = json.loads(line)
                if found["kind"] in kinds:
                    return found
            if not select.select([self._notes], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TrainerError(f"the party {self.name} says nothing", found=f"nothing in {WAIT_S:g} s",
                                   expected=" or ".join(kinds), remedy="read its log")  # fmt: skip
            data = os.read(self._notes, 1 << 16)
            if not data:
                return None
            self._buffer += data

    def parked(self) -> str | None:
        """Wait until the process stands still at its place; the place, or None when it ended without getting there."""
        note = self.note("parked")
        if note is None:
            return None
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        return str(note["where"])

    def go(self) -> None:
        """Let a parked process go on."""
        os.kill(self.pid, signal.SIGCONT)
        os.write(self._go, b"g")

    def kill(self) -> None:
        """SIGKILL, and wait for the end. Harmless when it has ended."""
        if self._alive:
            os.kill(self.pid, signal.SIGKILL)
            self._reap()

    def wait(self) -> int:
        """The exit code of a process that ends by itself (minus the signal's number when one ended it)."""
        if self._alive:
            self.note("never")
            self._reap()
        return self._code

    def _reap(self) -> None:
        self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self._alive = False
        os.close(self._notes)
        os.close(self._go)


def _run(body: Callable[[Port], int], port: Port, log: Path) -> None:
    """The child's whole life; no exit handler of the harness runs in it."""
    code = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # no parked party outlives a killed harness
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the harness's, which ends its parties
        code = body(port)
    except MammoFedError as error:
        code = error.exit_code
        port.tell("failed", words=str(error), code=code)
    except BaseException as error:  # whatever it is, the harness must hear of it, and the process must end here
        port.tell("failed", words=f"{type(error).__name__}: {error}", code=code, trace=traceback.format_exc())
    finally:
        os._exit(code)
