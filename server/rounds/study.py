"""What the steps of a running study share: protocol, journal, way to the nodes, who is there. Made by `run_study`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from server.aggregation.flower import Exchange
from server.aggregation.strategies import Aggregator
from server.rounds.events import Event, Kind, Severity
from server.rounds.journal import Journal
from shared_model.errors import RoundError
from shared_model.messages import Arrays
from shared_model.protocol import Protocol
from shared_model.signing import SigningKey, VerifyKey

MAX_REASON_CHARS = 300
MAX_NAMES = 8  # in one event; who took part stands in the journal's table


Bound = Callable[[], Mapping[int, tuple[str, str]]]
"""Node id -> name and role (`site`, `evaluator`) of the party that enrolment bound it to, as it is now."""


@dataclass
class Roster:
    """Which node is which party, as the nodes described themselves. refused: why other nodes take no part, in words.

    keys: public key of each site's trainer, as it says; sites take part with none that they have not confirmed.
    """

    sites: dict[str, int] = field(default_factory=dict)
    keys: dict[str, VerifyKey] = field(default_factory=dict)
    evaluator: str = ""
    evaluator_node: int | None = None
    refused: dict[int, str] = field(default_factory=dict)

    @property
    def settled(self) -> set[int]:
        """Nodes that stand for a party."""
        return {*self.sites.values(), *([] if self.evaluator_node is None else [self.evaluator_node])}

    def gone(self, connected: Collection[int]) -> list[str]:
        """Parties whose node is not among those that are connected."""
        names = [site for site, node in sorted(self.sites.items()) if node not in connected]
        lost = self.evaluator_node is not None and self.evaluator_node not in connected
        return [*names, self.evaluator] if lost else names

    def forget(self, party: str) -> None:
        """Let nobody stand for a party, until a node says again that it does."""
        self.sites.pop(party, None)
        self.keys.pop(party, None)
        if party == self.evaluator:
            self.evaluator, self.evaluator_node = "", None

    def name_of(self, node: int) -> str:
        """Name of the party that a node stands for.

        Raises:
            RoundError: of none.
        """
        if node == self.evaluator_node:
            return self.evaluator
        for site, stands in self.sites.items():
            if stands == node:
                return site
        raise RoundError("a request for a node that nobody described", found=node)


@dataclass(kw_only=True)
class Study:
    """One running study.

    initial: weights that the study began with, for the row "public weights only".
    study_id: name in requests; with round, attempt and weights it identifies a request for ever.
    bound: which node was enrolled as which party; None: nobody was, on one machine.
    outage_s: seconds that an attempt waits for parties whose connection is lost; 0: nobody is waited for.
    clock: seconds, monotonic.
    signing: the coordinator's key, for the documents of secure sums; None: nothing is signed, and nothing summed.
    """

    protocol: Protocol
    run_dir: Path
    journal: Journal
    exchange: Exchange
    aggregator: Aggregator
    initial: Arrays
    stop: threading.Event
    bound: Bound | None = None
    outage_s: float = 0.0
    clock: Callable[[], float] = time.monotonic
    signing: SigningKey | None = None
    roster: Roster = field(default_factory=Roster)

    @property
    def study_id(self) -> str:
        """Name of the study in requests."""
        return self.protocol.study

    def note(
        self, kind: Kind, text: str = "", *, severity: Severity = "info", code: str = "", round_number: int = 0,
        attempt: int = 0, site: str | None = None, data: Mapping[str, float | str] | None = None,
    ) -> None:  # fmt: skip
        """Add an event to the journal's open step."""
        self.journal.event(
            Event(time=time.time(), kind=kind, severity=severity, code=code, round=round_number, attempt=attempt,
                  site=site, text=text, data=data or {})
        )  # fmt: skip


def names_in_words(names: Sequence[str]) -> str:
    """Names of sites in one line, whatever their number.

    >>> names_in_words([f"site_{i}" for i in range(1, 13)])
    'site_1, site_2, site_3, site_4, site_5, site_6, site_7, site_8 and 4 others'
    """
    more = len(names) - MAX_NAMES
    if more <= 1:
        return ", ".join(names)
    return f"{', '.join(names[:MAX_NAMES])} and {more} others"


def plain(text: str) -> str:
    """A remote party's words as one bounded line of printable characters, so that they cannot disguise a log line."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else "?" for c in line)[:MAX_REASON_CHARS]
