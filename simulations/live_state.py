"""What a running study looks like right now: a fold over its events, without any output; used by the views in `live`.

A function that decides does no I/O: `StudyState.apply` takes one event and changes plain numbers; `live` draws them.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from server.rounds.events import Event
from shared_model.protocol import Protocol
from shared_model.story import number

RECENT_EVENTS = 5
SHOWN_SITES = 16  # lines for sites: with the rest of the view they fit a terminal of 30 lines
TROUBLE = ("refused", "failed", "absent", "late", "abstained")  # states of sites that are shown whatever their number
# Ordinary events that other parts of the view show already; a warning of any kind is never quiet.
QUIET_KINDS = (
    "site_present", "site_started", "site_replied", "site_evaluated", "round_opened", "checkpoint_written",
    "round_closed", "evaluated",
)  # fmt: skip


@dataclass
class SiteRow:
    """One hospital's line. epsilon and budget: dimensionless; seconds: of the last reply; bytes: of the whole study."""

    name: str
    patients: int
    state: str = "waiting"
    loss: float | None = None
    epsilon: float | None = None
    budget: float | None = None
    seconds: float | None = None
    bytes_up: int = 0
    bytes_down: int = 0


@dataclass(frozen=True)
class SelectionPoint:
    """AUC on `selection` after one round, per model; NaN where a model was not measured."""

    round: int
    fused: float
    image: float
    clinical: float


@dataclass
class StudyState:
    """All that the live view shows. Build it with :meth:`of`, feed it with :meth:`apply`."""

    study: str
    private: bool
    rounds: int
    delta: float
    phases: tuple[tuple[str, int], ...]
    sites: dict[str, SiteRow]
    round: int = 0
    attempt: int = 1
    closed: int = 0
    status: str = "preparing"
    started: float | None = None
    now: float | None = None
    selection: list[SelectionPoint] = field(default_factory=list)
    recent: deque[Event] = field(default_factory=lambda: deque(maxlen=RECENT_EVENTS))
    alarms: int = 0

    @classmethod
    def of(cls, protocol: Protocol) -> StudyState:
        """The state before the first event of the study that `protocol` describes."""
        rows = {
            site.name: SiteRow(site.name, site.patients, budget=protocol.privacy.epsilon if protocol.private else None)
            for site in sorted(protocol.federation.sites, key=lambda site: site.name)
        }
        phases = tuple((phase.name, phase.rounds) for phase in protocol.training.phases)
        return cls(protocol.study, protocol.private, protocol.rounds, protocol.privacy.delta, phases, rows)

    @property
    def phase(self) -> str:
        """Name of the phase that the current round belongs to."""
        last = 0
        for name, rounds in self.phases:
            last += rounds
            if max(1, self.round) <= last:
                return name
        return self.phases[-1][0]

    @property
    def elapsed(self) -> float:
        """Seconds between the first and the latest event."""
        return 0.0 if self.started is None or self.now is None else max(0.0, self.now - self.started)

    @property
    def bytes(self) -> int:
        """Bytes both ways, all sites, so far."""
        return sum(row.bytes_up + row.bytes_down for row in self.sites.values())

    def apply(self, event: Event) -> None:
        """Take in one event. Kinds that the view has no use for only appear among the recent ones."""
        self.started = event.time if self.started is None else self.started
        self.now = event.time
        if event.kind in ("study_started", "study_resumed"):
            self.status = "running"
        elif event.kind == "round_opened":
            self._open(event)
        elif event.kind in ("site_started", "site_replied", "site_absent", "site_evaluated"):
            self._site(event)
        elif event.kind == "round_closed":
            self.closed = max(self.closed, event.round)
        elif event.kind == "evaluated":
            self._evaluated(event)
        elif event.kind == "model_chosen":
            self.status = "testing"
        elif event.kind == "finished":
            self.status = str(event.data.get("status", event.text))
        self.alarms += event.kind == "alarm"
        if event.severity != "info" or event.kind not in QUIET_KINDS:
            self.recent.append(event)

    def deliver(self, site: str, *, state: str) -> None:
        """What the engine says of one site while the round is still waiting for the others."""
        if site in self.sites:
            self.sites[site].state = state

    def _open(self, event: Event) -> None:
        self.status, self.round, self.attempt = "running", event.round, event.attempt
        for row in self.sites.values():
            row.state = "waiting"

    def _site(self, event: Event) -> None:
        row = self.sites.get(event.site or "")
        if row is None:  # the evaluator sends events too; it has no line of its own
            return
        states = {"site_started": "asked", "site_absent": "absent", "site_evaluated": "measured"}
        row.state = states.get(event.kind, str(event.data.get("outcome", "replied")))
        if event.kind == "site_replied":
            row.loss = number(event.data, "loss")
            row.seconds = number(event.data, "seconds")
            row.bytes_up += int(number(event.data, "bytes_up") or 0)
            row.bytes_down += int(number(event.data, "bytes_down") or 0)
        for name in ("epsilon", "budget"):
            value = number(event.data, name)
            if value is not None:
                setattr(row, name, value)

    def _evaluated(self, event: Event) -> None:
        values = [number(event.data, f"auc_{name}") for name in ("fused", "image", "clinical")]
        fused, image, clinical = (math.nan if value is None else value for value in values)
        self.selection.append(SelectionPoint(event.round, fused, image, clinical))


def notable(rows: Iterable[SiteRow], *, most: int = SHOWN_SITES) -> tuple[list[SiteRow], dict[str, int]]:
    """The rows to show, in the order given, and how many others are in which state.

    Of more than `most` sites those in trouble come first, then those that are training, then the first ones.
    """
    everybody = list(rows)
    if len(everybody) <= most:
        return everybody, {}
    rank = {**dict.fromkeys(TROUBLE, 0), "training": 1}
    chosen = sorted(range(len(everybody)), key=lambda i: (rank.get(everybody[i].state, 2), i))[: most - 1]
    others = Counter(row.state for i, row in enumerate(everybody) if i not in set(chosen))
    return [everybody[i] for i in sorted(chosen)], dict(sorted(others.items()))
