"""Memory and CPU of the processes of a deployment, by party and by role, out of /proc (proc(5)); used by `watch`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from simulations.memory import PROC, pss_of

TICKS: Final = os.sysconf("SC_CLK_TCK")
PAGE: Final = os.sysconf("SC_PAGE_SIZE")

# Role of a coordinator's process -> words of its command line; the first that fits, so the guard comes first.
ROLES: Final[Mapping[str, str]] = {
    "guards": "shared_model/guard.py", "daemon": "server serve", "SuperLink": "flower-superlink",
    "SuperExec": "flower-superexec", "ServerApp": "flwr-serverapp",
}  # fmt: skip
OTHER: Final = "commands"  # `flwr ...`, which the daemon calls


@dataclass(frozen=True, kw_only=True)
class Process:
    """A line of the process table. seconds: CPU of it alone; reaped: of its children that have ended."""

    parent: int
    state: str
    seconds: float
    reaped: float
    resident: int


@dataclass(kw_only=True)
class Sight:
    """Processes together. Bytes: `resident` (RSS), `total` (PSS), `own` (anonymous part of PSS: what programs hold).

    cpu_s: used since they began, with all that was of them and has ended. zombies: ended, and nobody has noticed.
    """

    processes: int = 0
    resident: int = 0
    total: int = 0
    own: int = 0
    cpu_s: float = 0.0
    zombies: int = 0


@dataclass(kw_only=True)
class Table:
    """All processes of the machine at one moment."""

    processes: dict[int, Process] = field(default_factory=dict)
    children: dict[int, list[int]] = field(default_factory=dict)

    @classmethod
    def look(cls) -> Table:
        """Read /proc once; what ends meanwhile is left out."""
        table = cls()
        for folder in PROC.glob("[0-9]*"):
            try:
                fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            except OSError:
                continue
            pid, parent = int(folder.name), int(fields[1])
            user, system, child_user, child_system = map(int, fields[11:15])
            table.processes[pid] = Process(
                parent=parent, state=fields[0], seconds=(user + system) / TICKS,
                reaped=(child_user + child_system) / TICKS, resident=int(fields[21]) * PAGE,
            )  # fmt: skip
            table.children.setdefault(parent, []).append(pid)
        return table

    def below(self, root: int) -> Iterator[int]:
        """`root` and all that descend from it."""
        waiting = [root]
        while waiting:
            pid = waiting.pop()
            if pid in self.processes:
                yield pid
                waiting += self.children.get(pid, ())

    def party(self, root: int, *, memory: bool) -> Sight:
        """A party's processes together; PSS, which is slow to read, only where `memory` asks for it."""
        sight = Sight()
        for pid in self.below(root):
            process = self.processes[pid]
            sight.cpu_s += process.reaped
            _add(sight, pid, process, memory=memory)
        return sight

    def roles(self, root: int) -> dict[str, Sight]:
        """A coordinator's processes by role. cpu_s: of those that live."""
        found: dict[str, Sight] = {}
        for pid in self.below(root):
            _add(found.setdefault(role_of(pid), Sight()), pid, self.processes[pid], memory=True)
        return found


def role_of(pid: int) -> str:
    """Which of `ROLES` a process has."""
    try:
        line = (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return OTHER
    return role_in(line)


def role_in(command: str) -> str:
    """The same for a command line. Only its first words count: a guard's line holds the command that it guards."""
    return next((role for role, words in ROLES.items() if words in command), OTHER)


def disk_bytes(path: Path) -> int:
    """Size of a file, or of all files below a folder; 0 where there is none."""
    if path.is_dir():
        return sum(disk_bytes(Path(there)) for there in os.scandir(path) if not there.is_symlink())
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _add(sight: Sight, pid: int, process: Process, *, memory: bool) -> None:
    sight.cpu_s += process.seconds
    if process.state == "Z":
        sight.zombies += 1
        return
    sight.processes += 1
    sight.resident += process.resident
    if memory and (pss := pss_of(pid)) is not None:
        sight.total += pss.total
        sight.own += pss.own
