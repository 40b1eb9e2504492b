"""Memory of a process and everything it has started, sampled while a block runs; used by `forecast` and the bench.

PSS, the proportional set size of Linux (proc_pid_smaps(5)), counts a page that several processes share once in all, so
that a tree of processes can be added up. Its anonymous part is what the programs themselves hold; the rest, mapped
films above all, the system takes back when somebody needs it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from shared_model.repeating import Repeating

PROC = Path("/proc")


class Pss(NamedTuple):
    """Bytes: `total`, and of these `own`, the anonymous part."""

    total: int
    own: int

    def __add__(self, other: object) -> Pss:
        """Both together."""
        assert isinstance(other, Pss)
        return Pss(self.total + other.total, self.own + other.own)


class MemoryWatch(Repeating):
    """Samples the tree below this process until the block ends.

    peak: greatest sum over the tree. own: greatest anonymous part of each process by id. Both stay 0 and empty where
    there is no /proc. samples: (label, sum) for each call of :meth:`sample` with a label.

    Args:
        every_s: seconds between samples; a peak that is shorter may be missed.
    """

    def __init__(self, *, every_s: float = 0.5) -> None:
        super().__init__("memory", every_s=every_s)
        self.peak, self.own = Pss(0, 0), dict[int, int]()
        self.samples: list[tuple[str, Pss]] = []
        self._lock = threading.Lock()

    def sample(self, label: str = "") -> Pss:
        """Look once, now."""
        found = {pid: pss for pid in tree(os.getpid()) if (pss := pss_of(pid)) is not None}
        whole = sum(found.values(), start=Pss(0, 0))
        with self._lock:
            self.peak = max(self.peak, whole, key=lambda pss: pss.own)
            for pid, pss in found.items():
                self.own[pid] = max(self.own.get(pid, 0), pss.own)
            if label:
                self.samples.append((label, whole))
        return whole

    def _turn(self) -> None:
        self.sample()


def pss_of(pid: int) -> Pss | None:
    """A process's memory; None when it has ended, is not ours, or the system is not Linux."""
    try:
        lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    kilobytes = {line.split()[0]: int(line.split()[1]) for line in lines if line.startswith("Pss")}
    if "Pss:" not in kilobytes:
        return None
    return Pss(1024 * kilobytes["Pss:"], 1024 * kilobytes.get("Pss_Anon:", 0))


def tree(root: int) -> list[int]:
    """`root` and all that descend from it."""
    found, waiting, children = list[int](), [root], _children()
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting += children.get(pid, ())
    return found


def _children() -> Mapping[int, list[int]]:
    parents: dict[int, list[int]] = {}
    for folder in PROC.glob("[0-9]*"):
        try:
            # The name in brackets may hold anything, spaces and brackets too (proc_pid_stat(5)).
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            continue
        parents.setdefault(parent, []).append(int(folder.name))
    return parents
