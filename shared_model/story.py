"""What a member knows of its studies: a fold over the coordinator's watch stream, without any output.

`client.watch` follows the stream; a terminal (`client.watch.show`) or a page (`server.monitor.member`) shows the story.
The coordinator decides what a member may know (`server.control.board.for_member`): of another hospital that something
happened, but neither words nor numbers. So nothing is left out here, and nothing is made up.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from shared_model import protocol
from shared_model.control import StudyEvent, plain

RECENT = 8  # events that a terminal shows
KEPT = 20_000  # events of a study that a page searches; older ones are forgotten
MOST_SITES = 1000  # names that a stream may bring: a protocol has no more
MOST_ROUNDS = 10_000
MOST_STUDIES = 1000
ENDINGS = {"COMPLETE": "complete", "INCOMPLETE": "incomplete", "STOPPED": "stopped"}
# (kind, code) of events that are a sign of life of the site that they name.
ALIVE = frozenset({("site_present", ""), ("site_replied", ""), ("site_replied", "abstained"),
                   ("site_replied", "refused"), ("site_evaluated", ""), ("evaluated", "")})  # fmt: skip
# What an event says of its round's attempt: (its state, the step that led there), named as the journal names them.
_STEPS = {
    "round_opened": ("opened", "open"), "site_replied": ("collected", "collect"),
    "attempt_failed": ("failed", "miss_quorum"), "evaluated": ("evaluated", "evaluate"),
    "checkpoint_written": ("saved", "save"), "round_closed": ("closed", "close"),
}  # fmt: skip


class Watcher(Protocol):
    """Where a member's studies are shown. tunnel: how the line is at this moment in words, while there is one."""

    tunnel: Callable[[], str] | None

    def told(self, event: StudyEvent) -> None:
        """An event came; the story has it already."""
        ...

    def line(self, words: str, *, up: bool) -> None:
        """How the line to the coordinator is, in words; up: it stands."""
        ...


@dataclass
class RoundStory:
    """One round, of which only the last attempt counts; round 0: the initial weights.

    state: as the coordinator's journal calls it. steps: (attempt, name, time) of all attempts, as far as events tell.
    replies: the last word on each site; held: who is in it by an update of an earlier attempt. auc: by model, on
    `selection`. changed: number of the last event about it.
    """

    number: int
    attempt: int = 0
    state: str = ""
    steps: list[tuple[int, str, float]] = field(default_factory=list)
    asked: set[str] = field(default_factory=set)
    replies: dict[str, StudyEvent] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    auc: dict[str, float] = field(default_factory=dict)
    changed: int = 0

    def apply(self, event: StudyEvent) -> None:
        """Take in one event of this round."""
        self.changed = event.number
        if event.kind == "round_opened":
            self.held |= {site for site, reply in self.replies.items() if outcome_of(reply) == "contributed"}
            self.attempt, self.asked, self.replies = event.attempt, set(), {}
        elif event.kind == "evaluated":
            self.auc |= aucs(event.data)
        site = plain(event.site)
        if site and len(self.asked) < MOST_SITES and len(self.replies) < MOST_SITES:
            if event.kind == "site_started":
                self.asked.add(site)
            elif event.kind == "site_replied":
                self.replies[site] = event
        state, step = _STEPS.get(event.kind, ("", ""))
        if state and self.number and state != self.state:
            self.state = state
            self.steps.append((self.attempt, step, event.time))


@dataclass
class StudyStory:
    """One study as a member sees it.

    rounds: of the protocol, 0 when it is not known here. seconds, epsilon, budget: the member's own, of its last
    reply; bytes: its own, of all. sites: name -> what was last heard of it in this round. auc: (round, fused AUC on
    `selection`). heard_of: name -> time of its last sign of life, seconds since 1970; here: name -> whether its node is
    connected; evaluators: who measures. chosen: round of the model that was chosen. tested: AUC by model. waits,
    reason: the coordinator's words, while it waits, and at the end. last: number of the last event, from which the
    stream goes on. kept: the newest.
    """

    name: str
    rounds: int = 0
    last: int = 0
    state: str = "not begun"
    round: int = 0
    attempt: int = 1
    closed: int = 0
    started: float | None = None
    heard: float | None = None
    seconds: float | None = None
    epsilon: float | None = None
    budget: float | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    chosen: int | None = None
    tested: dict[str, float] = field(default_factory=dict)
    ended: str = ""
    waits: str = ""
    reason: str = ""
    sites: dict[str, str] = field(default_factory=dict)
    heard_of: dict[str, float] = field(default_factory=dict)
    here: dict[str, bool] = field(default_factory=dict)
    evaluators: set[str] = field(default_factory=set)
    auc: list[tuple[int, float]] = field(default_factory=list)
    own: dict[int, str] = field(default_factory=dict)
    by_round: dict[int, RoundStory] = field(default_factory=dict)
    recent: deque[StudyEvent] = field(default_factory=lambda: deque(maxlen=RECENT))
    kept: deque[StudyEvent] = field(default_factory=lambda: deque(maxlen=KEPT))

    def apply(self, event: StudyEvent, *, me: str) -> None:
        """Take in one event. me: this member's name."""
        self.last, self.heard = max(self.last, event.number), event.time
        self.kept.append(event)
        self._study(event)
        if event.kind == "evaluated":
            value = number(event.data, "auc_fused")
            if value is not None:
                self.auc.append((event.round, value))
        if (event.round or event.kind == "evaluated") and (
            event.round in self.by_round or len(self.by_round) < MOST_ROUNDS
        ):
            self.by_round.setdefault(event.round, RoundStory(event.round)).apply(event)
        if event.site is not None:
            self._site(event, me=me)
        if event.severity != "info" or event.kind in ("round_closed", "model_chosen", "tested", "finished"):
            self.recent.append(event)

    def _study(self, event: StudyEvent) -> None:
        if event.kind not in ("site_present", "site_absent"):  # comings and goings end no wait
            self.waits = plain(event.text) if event.kind == "waiting" else ""
        if event.kind in ("study_started", "study_resumed"):
            self.state, self.ended, self.reason = "running", "", ""
            self.started = self.started or event.time
        elif event.kind == "round_opened":
            self.state, self.round, self.attempt = "running", event.round, event.attempt
            self.sites = dict.fromkeys(self.sites, "waiting")
        elif event.kind == "round_closed":
            self.closed = max(self.closed, event.round)
        elif event.kind == "waiting":
            self.state = "waiting for parties that are away"
        elif event.kind == "model_chosen":
            self.chosen = event.round
        elif event.kind == "tested":
            self.tested = aucs(event.data)
        elif event.kind == "finished":
            words = str(event.data.get("status", ""))
            self.state, self.ended, self.reason = ENDINGS.get(words, plain(words or event.text)), words, event.text

    def _site(self, event: StudyEvent, *, me: str) -> None:
        site = plain(event.site)
        states = {"site_started": "asked", "site_absent": "away", "site_present": "here", "site_evaluated": "measured",
                  "evaluated": "measured"}  # fmt: skip
        state = outcome_of(event) if event.kind == "site_replied" else states.get(event.kind)
        if state is None or (site not in self.sites and len(self.sites) >= MOST_SITES):
            return
        self.sites[site] = plain(state)
        if event.kind == "evaluated" or (event.kind == "site_present" and event.text.startswith("evaluator,")):
            self.evaluators.add(site)
        if (event.kind, event.code) in ALIVE:
            self.heard_of[site] = event.time
        if event.kind in ("site_present", "site_absent"):
            self.here[site] = event.kind == "site_present"
        if event.site != me:
            return
        if event.kind == "site_replied":
            self.own[event.round] = plain(state)
            self.seconds = number(event.data, "seconds")
            self.bytes_up += int(number(event.data, "bytes_up") or 0)
            self.bytes_down += int(number(event.data, "bytes_down") or 0)
        for name in ("epsilon", "budget"):
            value = number(event.data, name)
            if value is not None:
                setattr(self, name, value)


@dataclass
class Story:
    """All studies of one member. me: its name; rounds: of the protocols that it knows, by study; certificate_ends: says
    when its certificate does, seconds since 1970, None where that is not known; asked again, since it is renewed.

    lock: held while an event is taken in; another thread that reads more than one field holds it, too.
    """

    me: str
    rounds: Mapping[str, int] = field(default_factory=dict)
    certificate_ends: Callable[[], float | None] = lambda: None
    studies: dict[str, StudyStory] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def apply(self, event: StudyEvent) -> StudyStory | None:
        """Take in one event; the study that it belongs to, or None when there are too many."""
        with self.lock:
            if event.study not in self.studies:
                if len(self.studies) >= MOST_STUDIES:
                    return None
                self.studies[event.study] = StudyStory(event.study, rounds=self.rounds.get(event.study, 0))
            study = self.studies[event.study]
            if event.number > study.last:  # a stream that begins anew tells no event twice
                study.apply(event, me=self.me)
            return study

    @property
    def after(self) -> dict[str, int]:
        """From where the stream goes on, for `WatchRequest`."""
        return {name: study.last for name, study in self.studies.items()}


Page = Callable[[Story, Callable[[], Mapping[str, protocol.Protocol]]], AbstractContextManager[Watcher]]
"""Opens a page of a member's story; the second gives the protocols that came to this site, by study."""


def outcome_of(reply: StudyEvent) -> str:
    """What a site's reply came to. Of another site there are no numbers, and the code says it: none where it
    contributed, else `late`, `refused`, `abstained`, ..."""
    return str(reply.data.get("outcome") or reply.code or "contributed")


def number(data: Mapping[str, float | str], name: str) -> float | None:
    """A finite number of an event, or None when it is absent or none."""
    value = data.get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def aucs(data: Mapping[str, float | str]) -> dict[str, float]:
    """AUCs of an event by model, as far as they are numbers."""
    found = {name.removeprefix("auc_"): number(data, name) for name in data if name.startswith("auc_")}
    return {model: value for model, value in found.items() if value is not None}
