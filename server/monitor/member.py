"""A member's studies as views for the page, made of what the coordinator's watch stream told (`shared_model.story`).

It shows of other hospitals what the stream lets out (`server.control.board.for_member`) and nothing else: not even what
the protocol that this site approved says of them. Its own terms (rounds, quorum, budget) are taken from that protocol.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from server.monitor.alarms import for_people, with_alarms
from server.monitor.reading import LATEST, parse_cursor
from server.monitor.rules import MonitorFile, Rules
from server.monitor.told import Look, Shown
from server.monitor.view import MemberView, StudyView
from server.monitor.web.source import Source
from shared_model.control import StudyEvent
from shared_model.protocol import Protocol
from shared_model.story import Story, Watcher

FRESH_S: Final = 0.5  # spans of time on the page go on by themselves
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
        study: that one alone; None: all.
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
        self._shown: dict[str, Shown] = {}
        self._views: dict[str, StudyView] = {}
        self._line = MemberView(name=story.me, up=False, since=clock(), words="connecting", hidden=HIDDEN)
        self.tunnel: Callable[[], str] | None = None

    # --- told ---

    def told(self, event: StudyEvent) -> None:
        """An event came; a study that begins may have brought its protocol."""
        if event.study not in self._known and event.study not in self._asked_for:
            self._asked_for.add(event.study)
            known = dict(self._protocols())  # before anything is locked: it reads files
            with self._story.lock:
                self._known, self._views = known, {}
        elif event.kind == "round_opened":
            self._asked_for.discard(event.study)

    def line(self, words: str, *, up: bool) -> None:
        """How the line is; it keeps its time while only the words change."""
        since = self._line.since if up == self._line.up else self._clock()
        self._line = replace(self._line, up=up, since=since, words=words)

    # --- read ---

    @property
    def first(self) -> str | None:
        """The study that was asked for, where one was."""
        return self._first

    @property
    def member(self) -> MemberView:
        """Who watches, and how its line is."""
        return self._line

    def names(self) -> Sequence[str]:
        """The study that was asked for; else all, those first that were heard of last."""
        with self._story.lock:
            found = sorted(self._story.studies.values(), key=lambda study: study.heard or 0.0, reverse=True)
        return [study.name for study in found if self._first in (None, study.name)]

    def head(self, name: str) -> StudyView | None:
        """A view for the list."""
        return self.whole(name)

    def read(self, name: str, since: str | None) -> StudyView | None:
        """What is new since a cursor, with the alarms of the whole."""
        view = self.whole(name)
        if view is None:
            return None
        with self._story.lock:
            changed = {one.number: one.changed for one in self._story.studies[name].by_round.values()}
        last = parse_cursor(view.cursor)[0]
        after = last if since == LATEST else parse_cursor(since)[0]
        if after == 0 or after > last:
            return view
        return replace(view, rounds=tuple(one for one in view.rounds if changed[one.number] > after),
                       events=tuple(event for event in view.events if event.id > after), whole=False)  # fmt: skip

    def whole(self, name: str) -> StudyView | None:
        """All of a study; made anew when something was told, and at most every half second else."""
        now, line, ends = self._clock(), self._line, self._story.certificate_ends()
        with self._story.lock:
            study = self._story.studies.get(name)
            if study is None or self._first not in (None, name):
                return None
            known = self._views.get(name)
            if known is not None and known.cursor == f"{study.last}.0" and known.member is line and (
                0 <= now - known.now < FRESH_S
            ):  # fmt: skip
                return known
            shown = self._shown.setdefault(name, Shown())
            look = Look(study, self._known.get(name), me=self._story.me, ends=ends, now=now, shown=shown)
            view = look.view(line)
            view = replace(view, alarms=for_people(with_alarms(self._rules, view)))
            self._views[name] = view
            return view

    def all(self) -> list[StudyView]:
        """All of every study."""
        return [view for name in self.names() if (view := self.whole(name)) is not None]
