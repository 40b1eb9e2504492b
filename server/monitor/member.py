"""A member's studies as views for the page, made of what the coordinator's watch stream told (`shared_model.story`).

It shows of other hospitals what the stream lets out (`server.control.board.for_member`) and nothing else: not even what
the protocol that this site approved says of them. Its own terms (rounds, quorum, budget) are taken from that protocol.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from server.monitor.alarms import evaluate, gathered
from server.monitor.reading import LATEST, parse_cursor
from server.monitor.rules import MonitorFile, Rules
from server.monitor.told import Look, event_of
from server.monitor.view import MemberView, RoundView, StudyView
from server.monitor.web.source import Source
from shared_model.control import StudyEvent
from shared_model.protocol import Protocol
from shared_model.story import RoundStory, Story, Watcher

HIDDEN: Final = (
    "Of other hospitals the coordinator tells a member that something happened (asked, contributed, late, refused, "
    "away), and no more: not how long they took, what they sent, lost or spent, what machines they have, nor their "
    "words. Their rounded sizes stand in the protocol that your site approved. Norms of updates and intervals of an "
    "AUC are told to no member."
)


class MemberStudies(Source, Watcher):
    """The studies of one member: told by the thread that follows the stream, read by the page's.

    Args:
        story: what was heard; whoever follows takes each event into it before :meth:`told`.
        protocols: those that came to this site, by study; asked again when a study is heard of that is not among them.
        study: the one to begin with.
        clock: seconds since 1970.
    """

    def __init__(
        self, story: Story, protocols: Callable[[], Mapping[str, Protocol]], *, study: str | None = None,
        rules: Rules | None = None, clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._story, self._protocols, self._first, self._clock = story, protocols, study, clock
        self._rules = rules or MonitorFile.read(None).rules
        self._known = dict(protocols())
        self._asked_for: set[str] = set()
        self._rounds: dict[tuple[str, int], tuple[object, RoundView]] = {}
        self._line = MemberView(name=story.me, up=False, since=clock(), words="connecting", hidden=HIDDEN)
        self.tunnel: Callable[[], str] | None = None

    # --- told ---

    def told(self, event: StudyEvent) -> None:
        """An event came; a study that begins may have brought its protocol."""
        if event.study not in self._known and event.study not in self._asked_for:
            self._asked_for.add(event.study)
            self._known = dict(self._protocols())
        elif event.kind == "round_opened":
            self._asked_for.discard(event.study)

    def line(self, words: str, *, up: bool) -> None:
        """How the line is; it keeps its time while only the words change."""
        since = self._line.since if up == self._line.up else self._clock()
        self._line = replace(self._line, up=up, since=since, words=words)

    # --- read ---

    @property
    def first(self) -> str | None:
        """The study that was asked for."""
        return self._first

    @property
    def member(self) -> MemberView:
        """Who watches, and how its line is."""
        return self._line

    def names(self) -> Sequence[str]:
        """The study that was asked for, then those that were heard of last."""
        with self._story.lock:
            found = sorted(self._story.studies.values(), key=lambda study: study.heard or 0.0, reverse=True)
        names = [study.name for study in found]
        return names if self._first is None else sorted(names, key=lambda name: name != self._first)

    def head(self, name: str) -> StudyView | None:
        """A view without rounds and events."""
        return self._view(name, LATEST)

    def read(self, name: str, since: str | None) -> StudyView | None:
        """What is new since a cursor; the rules for alarms need the whole."""
        whole = self.whole(name)
        if whole is None or since is None:
            return whole
        view = self._view(name, since)
        return view and replace(view, alarms=whole.alarms)

    def whole(self, name: str) -> StudyView | None:
        """All of a study."""
        view = self._view(name, None)
        return view and replace(view, alarms=gathered(evaluate(self._rules, view)))

    def all(self) -> list[StudyView]:
        """All of every study."""
        return [view for name in self.names() if (view := self.whole(name)) is not None]

    def _view(self, name: str, since: str | None) -> StudyView | None:
        with self._story.lock:
            study = self._story.studies.get(name)
            if study is None:
                return None
            look = Look(study, self._known.get(name), me=self._story.me, now=self._clock())
            last = study.last
            event = last if since == LATEST else parse_cursor(since)[0]
            whole = event == 0 or event > last
            after = 0 if whole else event
            rounds = tuple(self._round(look, one) for one in look.rounds if one.changed > after)
            events = tuple(event_of(found) for found in study.kept if found.number > after)
            return replace(look.view(self._line), rounds=rounds, events=events, whole=whole, cursor=f"{last}.0")

    def _round(self, look: Look, one: RoundStory) -> RoundView:
        key, stamp = (look.study.name, one.number), (one.changed, look.protocol is None)
        known = self._rounds.get(key)
        if known is None or known[0] != stamp:
            self._rounds[key] = known = stamp, look.round(one)
        return known[1]
