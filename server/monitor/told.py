"""What a member's story of a study looks like as a view; called by `member`.

Of another hospital than the member itself nothing is filled in but outcomes and times, whatever else is at hand.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from statistics import median
from typing import Final

from server.monitor.cells import MODELS, gives, outcome_of, privacy_of
from server.monitor.reading import ends_of, privacy_words
from server.monitor.standing import Facts, clock_words, standing
from server.monitor.view import (
    Auc,
    Best,
    Cell,
    EventView,
    MemberView,
    Outcome,
    PartyView,
    PhasesView,
    RoundView,
    SitePrivacy,
    SiteView,
    Step,
    StudyView,
)
from shared_model.control import StudyEvent
from shared_model.protocol import Protocol
from shared_model.story import KEPT, RoundStory, StudyStory, number
from shared_model.story import outcome_of as said

DURATIONS: Final = 10  # rounds that say what one takes
GOES_ON: Final = ("preparing", "running", "stalled")


@dataclass
class Shown:
    """What was made of a study before and has not changed since. rounds: by number, with what they depended on."""

    rounds: dict[int, tuple[object, RoundView]] = field(default_factory=dict)
    events: deque[EventView] = field(default_factory=lambda: deque(maxlen=KEPT))

    def events_of(self, study: StudyStory) -> tuple[EventView, ...]:
        """The events that are kept, oldest first."""
        last = self.events[-1].id if self.events else 0
        new = list(takewhile(lambda event: event.number > last, reversed(study.kept)))
        self.events.extend(map(_event, reversed(new)))
        return tuple(self.events)


class Look:
    """One look at a study, under its story's lock.

    Args:
        protocol: None when it is not known here. me: the member's name; ends: when its certificate does, and now:
        seconds since 1970. shown: by looks before.
    """

    def __init__(
        self, study: StudyStory, protocol: Protocol | None, *, me: str, now: float, shown: Shown,
        ends: float | None = None,
    ) -> None:  # fmt: skip
        self.study, self.protocol, self.me, self.now, self._shown, self.ends = study, protocol, me, now, shown, ends
        self.rounds = [study.by_round[key] for key in sorted(study.by_round)]
        self.newest = self.rounds[-1] if self.rounds and self.rounds[-1].number else None
        self.is_open = self.newest is not None and self.newest.state == "opened" and not study.ended

    @cached_property
    def names(self) -> list[str]:
        """The hospitals: the protocol's, or those that were ever asked."""
        if self.protocol is not None:
            return sorted(site.name for site in self.protocol.federation.sites)
        return sorted({self.me}.union(*(one.asked | one.replies.keys() for one in self.rounds)))

    @cached_property
    def durations(self) -> list[float]:
        """Seconds of the last closed rounds."""
        spans = [_span(one) for one in self.rounds if one.state == "closed"]
        return [span for span in spans[-DURATIONS:] if span is not None]

    @cached_property
    def views(self) -> list[RoundView]:
        """All rounds, by number."""
        names, kept = tuple(self.names), self._shown.rounds
        for one in self.rounds:
            stamp = (one.changed, names, self.protocol is None)
            if one.number not in kept or kept[one.number][0] != stamp:
                kept[one.number] = stamp, self.round(one)
        return [kept[one.number][1] for one in self.rounds]

    @cached_property
    def latest(self) -> dict[str, Cell]:
        """Cells of the newest round that was collected, by site."""
        collected = (view for view in reversed(self.views) if view.number and view.state not in ("", "opened"))
        found = next(collected, None)
        return {cell.site: cell for cell in found.cells} if found is not None else {}

    @cached_property
    def counts(self) -> dict[str, Counter[str]]:
        """Closed rounds of each site by outcome."""
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for cell in (cell for view in self.views if view.state == "closed" for cell in view.cells):
            found[cell.site][cell.outcome] += 1
        return found

    def view(self, line: MemberView) -> StudyView:
        """All of it. line: how the member's line is."""
        study, protocol = self.study, self.protocol
        sites = tuple(self.site(name) for name in self.names)
        newest, opened = self.newest, _opened(self.newest)
        deadline_s = protocol.federation.deadline_s if protocol else None
        deadline = opened + deadline_s if self.is_open and opened is not None and deadline_s else None
        round_s = median(self.durations) if self.durations else None
        planned = protocol.rounds if protocol else 0
        state = _state(study)
        left = planned - study.closed
        ends = None  # nobody knows while the line is down
        if line.up:
            ends = ends_of(self.now, opened, is_open=self.is_open, round_s=round_s, left=left, state=state)
        contributed = sum(site.now == "contributed" for site in sites)
        missed = sorted((cell.site, cell.outcome) for cell in self.latest.values()
                        if cell.outcome not in ("contributed", "not_sampled", "waiting"))  # fmt: skip
        asked = len(newest.asked) if newest is not None else 0
        facts = Facts(
            now=self.now, state=state, planned=planned, closed=study.closed, round=study.round, sites=len(sites),
            round_open=self.is_open, quorum=protocol.federation.quorum if protocol else 0, asked=asked,
            round_opened=opened, deadline=deadline, ends=ends, round_s=round_s, contributed=contributed, silent=(),
            waits=study.waits, reason=study.reason, alive=True, preparing=False, deployed=True, daemon=True,
            wish="running", stepped=study.heard, activity="", missed=missed,
            missed_round=newest.number - self.is_open if newest is not None else 0,
            explores=bool(protocol and protocol.exploration),
        )  # fmt: skip
        status, sentence = standing(facts)
        if not line.up and status in GOES_ON:
            lost = f"the connection to the coordinator is lost since {clock_words(line.since, self.now)}"
            status, sentence = "unknown", f"{lost}; before that: {sentence}"
        return StudyView(
            run=study.name, name=study.name, now=self.now, status=status, sentence=sentence, state=state,
            reason=study.reason, round=study.round, attempt=study.attempt, planned=planned, closed=study.closed,
            phase=self.phase(study.round), started=study.started, last_step=study.heard, deadline=deadline,
            deadline_s=deadline_s, ends=ends if status in ("running", "stalled") else None, round_s=round_s,
            quorum=facts.quorum, asked_per_round=protocol.federation.sites_per_round if protocol else 0,
            contributed=contributed, due=tuple(site.name for site in sites if self.is_open and site.now == "asked"),
            deployed=True, alive=True, strategy=protocol.federation.strategy if protocol else "",
            score=protocol.evaluation.score if protocol else "fused",
            collapse_auc=protocol.evaluation.collapse_auc if protocol else None,
            private=bool(protocol and protocol.private), coarse_times=bool(protocol and protocol.coarse_times),
            privacy_words=privacy_words(protocol), explores=facts.explores,
            release=protocol.release if protocol else "", protocol_sha256=protocol.sha256 if protocol else "",
            best=self.best(), test={model: Auc(value=value) for model, value in study.tested.items()},
            bytes_up=study.bytes_up, bytes_down=study.bytes_down, sites=sites, rounds=tuple(self.views),
            evaluators=tuple(map(self.evaluator, sorted(study.evaluators))),
            events=self._shown.events_of(study), cursor=f"{study.last}.0", member=line,
        )  # fmt: skip

    def phase(self, of: int) -> str:
        """Name of a round's phase, where the protocol is known."""
        protocol = self.protocol
        return protocol.training.phase(of).name if protocol is not None and 1 <= of <= protocol.rounds else ""

    def best(self) -> Best | None:
        """The chosen round, or the one that the protocol's rule would choose now."""
        if self.protocol is None:
            return None
        terms, chosen = self.protocol.evaluation, self.study.chosen
        found = [(one.auc[terms.score], one.number) for one in self.rounds
                 if one.number and terms.score in one.auc and chosen in (None, one.number)]  # fmt: skip
        if not found:
            return None
        value, of = found[-1] if terms.selection_rule == "last" else max(found, key=lambda pair: (pair[0], -pair[1]))
        return Best(round=of, auc=Auc(value=value), model=terms.score, rule=terms.selection_rule,
                    chosen=chosen is not None)  # fmt: skip

    def site(self, name: str) -> SiteView:
        """One hospital: of another one no number, not even what the protocol has."""
        study, mine, cell = self.study, name == self.me, self.latest.get(name)
        open_now = self.is_open and self.newest is not None
        now = ("asked" if self.newest and name in self.newest.asked else "waiting") if open_now else (
            cell.outcome if cell else "waiting")  # fmt: skip
        terms = self.protocol.federation.site(name) if mine and self.protocol is not None else None
        return SiteView(
            name=name, patients=terms.patients if terms else None, now=now,
            reason=cell.reason if cell and not open_now else "", heard=study.heard_of.get(name),
            present=study.here.get(name), rounds=dict(self.counts[name]), seconds=study.seconds if mine else None,
            bytes_up=study.bytes_up if mine and study.own else None,
            bytes_down=study.bytes_down if mine and study.own else None,
            privacy=self.privacy() if mine else None,
            gives=gives(self.protocol) if self.protocol else "", phases=cell.phases if cell else None,
            certificate_expires=self.ends if mine else None,
        )  # fmt: skip

    def evaluator(self, name: str) -> PartyView:
        """Who measures: whether it is there, and when it was heard last; more is not told to members."""
        return PartyView(name=name, heard=self.study.heard_of.get(name), present=self.study.here.get(name))

    def privacy(self) -> SitePrivacy | None:
        """What this member has spent by its own replies, and where that leads."""
        study, protocol = self.study, self.protocol
        if protocol is None or self.me not in self.names:
            return None
        row = None
        if study.epsilon is not None:
            trained = [of for of, outcome in study.own.items()
                       if outcome == "contributed" and 1 <= of <= protocol.rounds]  # fmt: skip
            budget = protocol.privacy.epsilon if study.budget is None else study.budget
            row = (self.me, max(trained, default=0), study.epsilon, budget, protocol.privacy.delta,
                   sum(protocol.steps(of) for of in trained))  # fmt: skip
        return privacy_of(protocol, row, self.latest[self.me].outcome if self.me in self.latest else "waiting")

    def round(self, one: RoundStory) -> RoundView:
        """One round, with what is told of each site in it."""
        cells = tuple(self.cells(one)) if one.number else ()
        return RoundView(
            number=one.number, attempt=one.attempt, state=one.state, phase=self.phase(one.number), opened=_opened(one),
            seconds=_span(one), contributed=sum(cell.outcome == "contributed" for cell in cells), cells=cells,
            steps=tuple(Step(attempt=of, name=name, time=moment) for of, name, moment in one.steps),
            auc={model: Auc(value=one.auc[model]) for model in MODELS if model in one.auc},
        )  # fmt: skip

    def cells(self, one: RoundStory) -> list[Cell]:
        """A round's cells in the order of names."""
        return [_cell(one, name, mine=name == self.me) for name in self.names]


def _cell(one: RoundStory, site: str, *, mine: bool) -> Cell:
    reply = one.replies.get(site)
    outcome = _outcome(one, site)
    if reply is None:
        return Cell(site=site, outcome=outcome, bytes_up=None, bytes_down=None)
    data = reply.data if mine else {}
    up, down = number(data, "bytes_up"), number(data, "bytes_down")
    return Cell(
        site=site, outcome=outcome, reason=reply.text if mine else "", code=reply.code,
        seconds=number(data, "seconds"), phases=_phases(data), bytes_up=None if up is None else int(up),
        bytes_down=None if down is None else int(down), loss=number(data, "loss"), epsilon=number(data, "epsilon"),
    )  # fmt: skip


def _phases(data: Mapping[str, float | str]) -> PhasesView | None:
    """Where an own round's seconds went, as far as they are told (`server.rounds.events`)."""
    names = [name for name in PhasesView.__dataclass_fields__ if number(data, f"{name}_s") is not None]
    return PhasesView(**{name: number(data, f"{name}_s") for name in names}) if names else None


def _outcome(one: RoundStory, site: str) -> Outcome:
    reply = one.replies.get(site)
    if reply is not None:
        return outcome_of(said(reply), reply.text)[0]
    if site in one.asked:
        return "asked" if one.state == "opened" else "waiting"
    if site in one.held:
        return "contributed"
    return "waiting" if one.state == "opened" else "not_sampled"


def _state(study: StudyStory) -> str:
    """As the coordinator's journal calls it."""
    if study.ended:
        return study.ended
    if study.tested:
        return "tested"
    if study.chosen is not None:
        return "chosen"
    return "rounds" if study.started is not None or study.by_round else "new"


def _opened(one: RoundStory | None) -> float | None:
    """When the last attempt was opened."""
    return next((moment for _, name, moment in reversed(one.steps if one else []) if name == "open"), None)


def _span(one: RoundStory) -> float | None:
    opened = _opened(one)
    return None if opened is None else one.steps[-1][2] - opened


def _event(event: StudyEvent) -> EventView:
    return EventView(
        id=event.number, time=event.time, kind=event.kind, severity=event.severity, code=event.code, round=event.round,
        attempt=event.attempt, site=event.site, text=event.text, data=event.data,
    )  # fmt: skip
