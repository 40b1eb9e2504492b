"""Samples a deployment while it works and while nothing happens; used by `command`."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from server.deploy.studies import StudyFolder
from server.rounds.follow import last_closed
from simulations.engine.deployment.rehearsal import HUB, Rehearsal
from simulations.fleet.processes import Sight, Table, disk_bytes

EVERY_S: Final = 5.0
PARTIES_EVERY: Final = 6  # samples of the coordinator to one with the memory of sites, whose many processes take time


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One look. time: seconds since 1970. roles: processes of the coordinator; parties: all of each, coordinator and
    shared trainers among them; disk: bytes of what is written at the coordinator; load: of the machine, over a minute.
    memory: whether the parties' memory was read."""

    time: float
    closed: int
    roles: dict[str, Sight]
    parties: dict[str, Sight]
    disk: dict[str, int]
    load: float
    memory: bool


@dataclass(kw_only=True)
class Watch:
    """All samples. idle: those before the study was started, with every party connected."""

    idle: list[Sample] = field(default_factory=list)
    work: list[Sample] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


class Watcher:
    """Looks at a rehearsal. study: whose journal tells how far it is."""

    def __init__(self, there: Rehearsal, study: StudyFolder) -> None:
        self._there, self._study = there, study
        self._looks, self._due = 0, 0.0

    def due(self) -> bool:
        """Whether it is time for the next look."""
        return time.monotonic() >= self._due

    def look(self) -> Sample:
        """Look now."""
        self._due = time.monotonic() + EVERY_S
        memory = self._looks % PARTIES_EVERY == 0
        self._looks += 1
        table, states = Table.look(), self._there.supervisor.states()
        roots = {name: state.pid for name, state in states.items() if state.pid is not None}
        return Sample(
            time=time.time(), closed=last_closed(self._study.journal), memory=memory, load=os.getloadavg()[0],
            roles=table.roles(roots[HUB]) if HUB in roots else {},
            parties={name: table.party(pid, memory=memory) for name, pid in roots.items()},
            disk={name: disk_bytes(path) for name, path in self._places().items()},
        )  # fmt: skip

    def _places(self) -> dict[str, Path]:
        home = self._there.hub
        return {
            "SuperLink's database": home.link / "state.db", "its write-ahead log": home.link / "state.db-wal",
            "logs of Flower": home.link / "logs", "audit log": home.folder / "audit.jsonl",
            "journal": self._study.journal,
            "the journal's write-ahead log": self._study.journal.with_name(self._study.journal.name + "-wal"),
            "checkpoints": self._study.path / "checkpoints",
        }  # fmt: skip
