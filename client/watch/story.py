"""What a member knows of its studies: a fold over the watch stream, without any output; drawn by `client.watch.show`.

The coordinator decides what a member may know (`server.control.board.for_member`): of another hospital that something
happened, but neither words nor numbers. So nothing is left out here, and nothing is made up.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from shared_model.control import StudyEvent, plain

RECENT = 8  # events that are shown
MOST_SITES = 1000  # names that a stream may bring: a protocol has no more
MOST_STUDIES = 1000
ENDINGS = {"COMPLETE": "complete", "INCOMPLETE": "incomplete", "STOPPED": "stopped"}


@dataclass
class StudyStory:
    """One study as a member sees it.

    rounds: of the protocol, 0 when it is not known here. seconds, epsilon, budget: the member's own, of its last
    reply. sites: name -> what was last heard of it in this round. auc: (round, fused AUC on `selection`).
    last: number of the last event, from which the stream goes on.
    """

    name: str
    rounds: int = 0
    last: int = 0
    state: str = "not begun"
    round: int = 0
    attempt: int = 1
    closed: int = 0
    heard: float | None = None
    seconds: float | None = None
    epsilon: float | None = None
    budget: float | None = None
    sites: dict[str, str] = field(default_factory=dict)
    auc: list[tuple[int, float]] = field(default_factory=list)
    own: dict[int, str] = field(default_factory=dict)
    alarms: int = 0
    recent: deque[StudyEvent] = field(default_factory=lambda: deque(maxlen=RECENT))

    def apply(self, event: StudyEvent, *, me: str) -> None:
        """Take in one event. me: this member's name."""
        self.last, self.heard = max(self.last, event.number), event.time
        if event.kind in ("study_started", "study_resumed"):
            self.state = "running"
        elif event.kind == "round_opened":
            self.state, self.round, self.attempt = "running", event.round, event.attempt
            self.sites = dict.fromkeys(self.sites, "waiting")
        elif event.kind == "round_closed":
            self.closed = max(self.closed, event.round)
        elif event.kind == "waiting":
            self.state = "waiting for parties that are away"
        elif event.kind == "finished":
            words = str(event.data.get("status", ""))
            self.state = ENDINGS.get(words, plain(words or event.text))
        elif event.kind == "evaluated":
            value = number(event.data, "auc_fused")
            if value is not None:
                self.auc.append((event.round, value))
        self.alarms += event.kind == "alarm"
        if event.site is not None:
            self._site(event, me=me)
        if event.severity != "info" or event.kind in ("round_closed", "model_chosen", "tested", "finished"):
            self.recent.append(event)

    def _site(self, event: StudyEvent, *, me: str) -> None:
        site = plain(event.site)
        states = {"site_started": "asked", "site_absent": "away", "site_present": "here", "site_evaluated": "measured"}
        state = states.get(event.kind)
        if event.kind == "site_replied":
            # Without numbers the code says it: none where it contributed, else `late`, `refused`, `abstained`, ...
            state = str(event.data.get("outcome") or event.code or "contributed")
        if state is None or (site not in self.sites and len(self.sites) >= MOST_SITES):
            return
        self.sites[site] = plain(state)
        if event.site != me:
            return
        if event.kind == "site_replied":
            self.own[event.round] = plain(state)
            self.seconds = number(event.data, "seconds")
        for name in ("epsilon", "budget"):
            value = number(event.data, name)
            if value is not None:
                setattr(self, name, value)


@dataclass
class Story:
    """All studies of one member. me: its name; rounds: of the protocols that it knows, by study."""

    me: str
    rounds: Mapping[str, int] = field(default_factory=dict)
    studies: dict[str, StudyStory] = field(default_factory=dict)

    def apply(self, event: StudyEvent) -> StudyStory | None:
        """Take in one event; the study that it belongs to, or None when there are too many."""
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


def number(data: Mapping[str, float | str], name: str) -> float | None:
    """A finite number of an event, or None when it is absent or none."""
    value = data.get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
