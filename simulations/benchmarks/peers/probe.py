"""Runs one command and measures all its processes, detached ones too: wall clock, CPU seconds, peak memory.

    python -m simulations.benchmarks.peers.probe RESULT.json LIMIT_S -- COMMAND...

A process of its own, because it asks Linux for the orphans of its descendants (PR_SET_CHILD_SUBREAPER, prctl(2)):
Flower leaves a SuperLink and Ray's daemons behind. They are counted, and ended when the command has ended.

Memory is the proportional set size (PSS, proc(5)) summed over the tree: pages that processes share count once. Needs
nothing but the standard library, so that it weighs little on the machine that it measures.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

SUBREAPER = 36          # PR_SET_CHILD_SUBREAPER, linux/prctl.h
CPU_EVERY_S, MEMORY_EVERY_S = 0.1, 0.5
MEMORY_SHARE = 0.05     # of a core at most for reading PSS: the page tables of 2 GB take some 50 ms
GRACE_S = 3.0           # from SIGTERM to SIGKILL
TICKS = os.sysconf("SC_CLK_TCK")


class Process(NamedTuple):
    """A line of the process table. seconds: CPU time, user and system, of the process alone."""

    parent: int
    seconds: float


@dataclass(kw_only=True)
class Measurement:
    """What a command cost.

    exit_code: None when it was ended at its limit. wall_s: until the command returned. cpu_s: of the whole tree, to the
    end of its last process. peak_mb: greatest PSS of the tree in MB, with `processes` of them. began: seconds since
    1970. timeline: (seconds since `began`, CPU seconds of the tree until then).
    """

    exit_code: int | None = None
    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_mb: float = 0.0
    processes: int = 0
    began: float = 0.0
    timeline: list[tuple[float, float]] = field(default_factory=list)

    def cpu_at(self, moment: float) -> float:
        """CPU seconds that the tree had used at `moment` (seconds since 1970), between the two nearest samples."""
        at, before = moment - self.began, (0.0, 0.0)
        for sample in self.timeline:
            if sample[0] >= at:
                share = (at - before[0]) / (sample[0] - before[0]) if sample[0] > before[0] else 1.0
                return before[1] + max(0.0, share) * (sample[1] - before[1])
            before = sample
        return before[1]


def process_table() -> dict[int, Process]:
    """All processes of the machine by id."""
    table = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            except OSError:  # it ended meanwhile
                continue
            table[int(folder.name)] = Process(int(fields[1]), (int(fields[11]) + int(fields[12])) / TICKS)
    return table


def descendants(table: dict[int, Process], ancestor: int) -> set[int]:
    """All processes below `ancestor`, without itself."""
    children: dict[int, list[int]] = {}
    for pid, process in table.items():
        children.setdefault(process.parent, []).append(pid)
    found: set[int] = set()
    waiting = [ancestor]
    while waiting:
        new = [pid for pid in children.get(waiting.pop(), []) if pid not in found]
        found.update(new)
        waiting += new
    return found


def memory_mb(pids: Iterable[int]) -> float:
    """Proportional set size of some processes together, MB; those that have ended count nothing."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total * 1024 / 1e6


class Tree:
    """The processes below this one, as last seen."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self.alive: set[int] = set()

    def look(self) -> float:
        """CPU seconds of all that were ever seen, each as last seen."""
        table = process_table()
        self.alive = descendants(table, os.getpid())
        self._seconds.update({pid: table[pid].seconds for pid in self.alive})
        return sum(self._seconds.values())

    def end(self) -> None:
        """End what still runs, politely and then by force, and collect all of it."""
        for number, patience in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, GRACE_S)):
            self.look()
            for pid in self.alive:
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    continue
            deadline = time.monotonic() + patience
            while not _collected() and time.monotonic() < deadline:
                time.sleep(0.05)


def _collected() -> bool:
    """Take leave of children that have ended; whether none is left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return True
    return False


def run(command: list[str], *, limit_s: float) -> Measurement:
    """Run `command` to its end, or for `limit_s` seconds; nothing of it is left running.

    This process becomes the parent of the command's orphans: call it in a process that has no other children.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "this Linux has no PR_SET_CHILD_SUBREAPER")
    tree, found = Tree(), Measurement(began=time.time())
    started = time.monotonic()
    process, asker = subprocess.Popen(command, stdin=subprocess.DEVNULL), os.getppid()
    try:
        memory_due = started
        # Whoever asked may be killed: then nobody wants the figures, and the tree must not outlive it.
        while process.poll() is None and time.monotonic() < started + limit_s and os.getppid() == asker:
            found.timeline.append((time.monotonic() - started, tree.look()))
            if time.monotonic() >= memory_due:
                memory_due = _look_at_memory(tree, found)
            time.sleep(CPU_EVERY_S)
        found.exit_code, found.wall_s = process.poll(), time.monotonic() - started
    finally:
        last = tree.look()
        tree.end()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    # The kernel's sum is exact for processes whose parents waited for them; what was last seen covers the others.
    found.cpu_s = max(used.ru_utime + used.ru_stime, last)
    found.timeline.append((time.monotonic() - started, found.cpu_s))
    return found


def _look_at_memory(tree: Tree, found: Measurement) -> float:
    """Keep the greatest PSS; returns when to look again, so that looking stays cheap."""
    began = time.monotonic()
    megabytes = memory_mb(tree.alive)
    if megabytes > found.peak_mb:
        found.peak_mb, found.processes = megabytes, len(tree.alive)
    ended = time.monotonic()
    return ended + max(MEMORY_EVERY_S, (ended - began) / MEMORY_SHARE)


def main(arguments: list[str]) -> int:
    """Measure the command after `--` and write the result as JSON; exit code 0 whatever became of the command."""
    at = arguments.index("--")
    result, limit_s = arguments[:at]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends the probe ends the tree
    measured = run(arguments[at + 1 :], limit_s=float(limit_s))
    Path(result).write_text(json.dumps(asdict(measured)) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
