"""What the control service needs to know of studies; implemented by whoever keeps them (the coordinator's daemon)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from server.rounds.events import Event
from shared_model.certificates import Member
from shared_model.control import StudyEvent

MAX_EVENTS: Final = 500  # of one study at one time; more come with the next look


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A signed protocol that is offered.

    sha256: of the protocol; file: the signed file as it is; sites: names of its hospitals.
    """

    study: str
    sha256: str
    file: bytes
    sites: frozenset[str]


class Board(Protocol):
    """Studies as the control service sees them.

    Called by several threads at once, some ten times a second for each site that watches: keep what seldom changes.
    """

    def proposals(self, member: Member) -> Sequence[Proposal]:
        """What is offered: to a hospital the protocols that name it, to an evaluator all that it measures."""
        ...

    def events(self, study: str, after: int) -> Sequence[tuple[int, Event]]:
        """Events of a study's journal with their numbers, oldest first: those above `after`, at most `MAX_EVENTS`."""
        ...


def for_member(proposal: Proposal, number: int, event: Event, member: Member) -> StudyEvent:
    """An event as one member may see it: of another hospital that something happened, but no words and no numbers."""
    hidden = event.site is not None and event.site != member.site and event.site in proposal.sites
    return StudyEvent(
        study=proposal.study, number=number, time=event.time, kind=event.kind, severity=event.severity,
        code=event.code[:60], round=event.round, attempt=event.attempt, site=event.site and event.site[:63],
        text="" if hidden else event.text[:1000],
        data={} if hidden else {name: _bounded(value) for name, value in list(event.data.items())[:64]},
    )  # fmt: skip


def _bounded(value: float | str) -> float | str:
    """A value as JSON has it: it knows no infinity and no NaN, which the loss of a study that went wrong may be."""
    if isinstance(value, str):
        return value[:300]
    return value if math.isfinite(value) else str(value)
