"""Runs a command and ends it, with everything that came of it, when the process that asked for it goes away.

    python guard.py COMMAND ARGUMENT ...

Flower's SuperLink starts processes in sessions of their own, and these start Ray's: no process group holds them all. So
this process adopts its orphaned descendants (prctl(2), PR_SET_CHILD_SUBREAPER) and ends them by their ids. It stops
when its standard input closes, which the kernel does however the asking process ends. Standard library alone: it is
run as a file, so that it imports no Flower.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

SUBREAPER = 36   # linux/prctl.h
POLL_S = 0.05   # while it ends
STOPS = frozenset((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
LOOK_S = 10.0    # it is woken by signals; this is for one that was missed
GRACE_S = 8.0    # Flower's own exit takes up to 5 s
KILL_S = 5.0     # until nobody is left after SIGKILL; beyond that the kernel holds a process and we cannot help it


def main(command: Sequence[str]) -> int:
    """Run `command`; returns its exit code, or 128 and the signal's number as a shell does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    wakes = _waking()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    while child.poll() is None and not _told(wakes):
        _reap_orphans(child.pid)
    _end(child)
    code = child.returncode
    return code if code >= 0 else 128 - code


def _waking() -> int:
    """A file descriptor that brings the number of each signal that came, the end of a child among them.

    No handler does anything: one that set a threading.Event which the same thread waits for could wait for itself.
    """
    wakes, write = os.pipe()
    os.set_blocking(write, False)  # as signal.set_wakeup_fd wants it
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in (*STOPS, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    return wakes


def _told(wakes: int) -> bool:
    """Sleep until something happens; whether it is a reason to stop, or only that a child has ended."""
    ready = select.select([0, wakes], [], [], LOOK_S)[0]
    if 0 in ready and not os.read(0, 1 << 12):
        return True
    return wakes in ready and not STOPS.isdisjoint(os.read(wakes, 1 << 12))


def _reap_orphans(child: int) -> None:
    """Wait for adopted processes that have ended, and not for the child; else they would stay as zombies for weeks."""
    if sys.platform != "linux":
        return  # nobody is adopted
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while (found := os.waitid(os.P_ALL, 0, flags)) is not None and found.si_pid != child:
        os.waitpid(found.si_pid, 0)


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the child politely and whatever is left by force."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    deadline = time.monotonic() + KILL_S
    while (left := descendants(os.getpid())) and time.monotonic() < deadline:
        for process in left:
            _kill(process)
        _reap()
        time.sleep(POLL_S)


def _kill(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return  # it ended by itself


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue
    except ChildProcessError:
        return  # nobody left to wait for


def descendants(ancestor: int) -> list[int]:
    """Ids of the processes below one, by /proc/PID/stat (proc(5)); empty where there is no /proc."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except OSError:
            continue  # it ended while we looked
        children.setdefault(int(text.rpartition(")")[2].split()[1]), []).append(int(path.parent.name))
    found, waiting = [], [ancestor]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
