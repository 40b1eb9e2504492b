"""A member's studies as views: what a story becomes, what is never filled in of others, cursors, and the line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from server.control.board import Proposal, for_member
from server.monitor.member import MemberStudies
from server.monitor.reading import LATEST
from server.monitor.view import PhasesView, merge, to_json
from server.monitor.web.wire import Sender, round_whole
from server.rounds.events import Event
from shared_model.certificates import Member
from shared_model.protocol import Protocol
from shared_model.story import Story
from simulations.benchmarks.staged_run import staged_protocol
from tests.enrolled import Clock

SITES = ("north", "south", "west")
SECRET, PRIVATE_WORDS = 77.125, "words of south alone"


class Told:
    """A member's page, told what a coordinator's journal holds as the coordinator tells it to north."""

    def __init__(self, protocols: Mapping[str, Protocol] | None = None, **options: Any) -> None:
        self.clock, self.protocol = Clock(1.8e9), staged_protocol(sites=SITES, rounds=3)
        self.known = {"staged": self.protocol} if protocols is None else dict(protocols)
        self.story = Story("north")
        self.page = MemberStudies(self.story, lambda: self.known, clock=self.clock, **options)
        self.number = 0
        self.page.line("connected", up=True)

    def tell(self, kind: Any, number: int = 0, attempt: int = 1, **values: Any) -> None:
        self.number, self.clock.now = self.number + 1, self.clock.now + 1.0
        event = Event(time=self.clock.now, kind=kind, round=number, attempt=attempt if number else 0, **values)
        proposal = Proposal(study="staged", sha256="ab" * 32, file=b"", sites=frozenset(SITES))
        told = for_member(proposal, self.number, event, Member("north"))
        self.story.apply(told)
        self.page.told(told)

    def round(self, number: int, *, south: str = "contributed", attempt: int = 1) -> None:
        self.open(number, attempt=attempt)
        for site in SITES:
            outcome = south if site == "south" else "contributed"
            numbers = {"seconds": 2.5, "bytes_up": 1000.0, "bytes_down": 500.0, "epsilon": 1.5, "budget": 8.0,
                       "load_s": 0.5, "train_s": 2.0, "round_trip_s": 3.0}  # fmt: skip
            if site != "north":
                numbers = dict.fromkeys(numbers, SECRET)
            self.tell("site_replied", number, attempt, site=site, code="" if outcome == "contributed" else outcome,
                      text=PRIVATE_WORDS if site == "south" else "", data={"outcome": outcome, **numbers})  # fmt: skip
        self.tell("evaluated", number, attempt, site="evaluator", data={"auc_fused": 0.7 + 0.01 * number})
        self.tell("round_closed", number, attempt, data={"contributed": 3.0})

    def open(self, number: int, *, attempt: int = 1) -> None:
        self.tell("round_opened", number, attempt)
        for site in SITES:
            self.tell("site_started", number, attempt, site=site)

    def view(self, since: str | None = None) -> Any:
        found = self.page.read("staged", since)
        assert found is not None
        return found


@pytest.fixture
def told() -> Told:
    told = Told()
    told.tell("study_started")
    return told


def test_a_round_is_shown_with_own_numbers_and_others_outcomes(told: Told) -> None:
    told.round(1, south="late")
    told.open(2)
    view = told.view()
    assert (view.status, view.round, view.closed, view.planned, view.quorum) == ("running", 2, 1, 3, 2)
    assert view.sentence.startswith("round 2 of 3, 3 of 3 sites asked, ends about ")
    assert view.sentence.endswith("; south late in round 1")
    assert [(one.number, one.state, one.contributed, one.seconds) for one in view.rounds] == [
        (1, "closed", 2, 8.0), (2, "opened", 0, 3.0 - 3.0)]  # fmt: skip
    north, south, west = view.sites
    assert (north.seconds, north.bytes_up, north.patients, north.rounds) == (2.5, 1000, 100, {"contributed": 1})
    assert north.phases == PhasesView(load=0.5, train=2.0, round_trip=3.0) == view.rounds[0].cells[0].phases
    assert north.privacy is not None and north.privacy.epsilon == 1.5 and north.privacy.budget == 8.0
    assert (south.now, south.rounds, west.heard is not None) == ("asked", {"late": 1}, True)
    assert view.best is not None and (view.best.round, view.best.auc.value) == (1, 0.71)
    assert (view.bytes_up, view.bytes_down, view.due) == (1000, 500, SITES)


def test_of_others_nothing_is_filled_in_that_is_not_told(told: Told) -> None:
    told.round(1, south="refused")
    view = told.view()
    for site in view.sites[1:]:
        assert (site.patients, site.seconds, site.bytes_up, site.bytes_down, site.privacy, site.phases) == (None,) * 6
        assert (site.device, site.words, site.reason, site.certificate_expires) == ("", "", "", None)
    for cell in view.rounds[0].cells[1:]:
        assert (cell.seconds, cell.bytes_up, cell.bytes_down, cell.loss, cell.epsilon, cell.phases, cell.reason) == (
            None, None, None, None, None, None, "")  # fmt: skip
    for page in (to_json(view).decode(), str(Sender().message(view)), str(round_whole(view.rounds[0]))):
        assert PRIVATE_WORDS not in page and str(SECRET) not in page


def test_a_member_sees_its_own_certificate_s_end_and_is_warned_of_it(told: Told) -> None:
    told.round(1)
    assert [site.certificate_expires for site in told.view().sites] == [None, None, None]
    told.story.certificate_ends = lambda: told.clock.now + 2 * 86_400.0
    told.clock.now += 1.0
    view = told.view()
    assert [site.certificate_expires for site in view.sites] == [told.clock.now + 2 * 86_400.0, None, None]
    assert [(alarm.rule, alarm.site) for alarm in view.alarms] == [("certificate_expiring", "north")]
    told.story.certificate_ends = lambda: told.clock.now + 25 * 86_400.0  # it was renewed
    told.clock.now += 1.0
    assert told.view().alarms == ()


def test_a_member_sees_whether_the_evaluator_lives(told: Told) -> None:
    told.tell("site_present", site="held-out", text="evaluator, cuda:0")
    (there,) = told.view().evaluators
    assert (there.name, there.present, there.heard) == ("held-out", True, told.clock.now)
    told.tell("evaluated", 1, site="held-out", data={"auc_fused": 0.7})
    measured = told.clock.now
    told.tell("site_absent", site="held-out", code="lost", severity="warning")
    (gone,) = told.view().evaluators
    assert (gone.present, gone.heard, gone.device) == (False, measured, "")
    assert {site.name for site in told.view().sites} == set(SITES), "it is no hospital"


def test_before_a_first_answer_no_bytes_are_shown(told: Told) -> None:
    told.open(1)
    north, *_ = told.view().sites
    assert (north.bytes_up, north.bytes_down) == (None, None) == (told.view().rounds[0].cells[0].bytes_up, None)


def test_the_page_says_what_a_member_is_not_told(told: Told) -> None:
    assert told.view().member.name == "north" and "Of other hospitals" in told.view().member.hidden


def test_a_lost_line_is_no_running_study_and_keeps_its_time(told: Told) -> None:
    told.round(1)
    told.clock.now += 5
    told.page.line("the line broke", up=False)
    since = told.clock.now
    told.clock.now += 60
    told.page.line("nobody answers", up=False)
    view = told.view()
    assert (view.status, view.member.up, view.member.since, view.member.words) == (
        "unknown", False, since, "nobody answers")  # fmt: skip
    assert view.sentence.startswith("the connection to the coordinator is lost since ")
    assert view.sentence.endswith("; before that: round 1 of 3, 3 of 3 sites") and view.ends is None
    told.page.line("connected", up=True)
    assert told.view().status == "running"


def test_a_study_that_has_ended_stays_ended_without_a_line(told: Told) -> None:
    for number in (1, 2, 3):
        told.round(number)
    told.tell("model_chosen", 2)
    told.tell("tested", 2, data={"auc_fused": 0.8})
    told.tell("finished", data={"status": "COMPLETE", "rounds_completed": 3.0})
    told.page.line("the coordinator is gone", up=False)
    view = told.view()
    assert (view.status, view.best.round, view.best.chosen, view.test["fused"].value) == ("complete", 2, True, 0.8)


@pytest.mark.parametrize(("status", "word"), [("INCOMPLETE", "incomplete"), ("STOPPED", "incomplete")])
def test_other_ends_have_their_words(told: Told, status: str, word: str) -> None:
    told.round(1)
    told.tell("finished", text="round 2 has no quorum", data={"status": status})
    assert told.view().status == word
    told.tell("study_resumed")
    assert told.view().status == "running"


def test_a_cursor_brings_what_is_new_and_merges_into_the_whole(told: Told) -> None:
    told.round(1)
    before = told.view()
    assert before.whole and told.view(before.cursor).rounds == () == told.view(before.cursor).events
    told.open(2)
    new = told.view(before.cursor)
    assert not new.whole and [one.number for one in new.rounds] == [2] and len(new.events) == 4
    both = merge(before, new)
    assert both.rounds == told.view().rounds and both.events == told.view().events
    assert told.view("999.0").whole, "of another stream"
    assert told.view(LATEST).events == () and told.page.read("nowhere", None) is None


def test_what_did_not_change_is_not_made_anew(told: Told) -> None:
    """Else a look at 500 rounds of 50 sites takes half a second."""
    told.round(1)
    before = told.view()
    told.round(2)
    after = told.view()
    assert after.rounds[0] is before.rounds[0] and after.events[0] is before.events[0]
    assert [event.id for event in after.events] == list(range(1, told.number + 1))
    assert told.view() is after
    told.clock.now += 1
    assert told.view() is not after


def test_a_second_attempt_counts_who_is_in_it_already(told: Told) -> None:
    told.open(1)
    told.tell("site_replied", 1, site="north", data={"outcome": "contributed"})
    told.tell("site_replied", 1, site="south", code="late", severity="warning")
    told.tell("attempt_failed", 1, code="quorum", severity="warning")
    told.tell("round_opened", 1, 2)
    told.tell("site_started", 1, 2, site="south")
    assert [cell.outcome for cell in told.view().rounds[0].cells] == ["contributed", "asked", "waiting"]
    told.tell("site_replied", 1, 2, site="south")
    assert [cell.outcome for cell in told.view().rounds[0].cells] == ["contributed", "contributed", "not_sampled"]
    assert [step.name for step in told.view().rounds[0].steps] == ["open", "collect", "miss_quorum", "open", "collect"]


def test_without_the_protocol_it_says_so_and_makes_nothing_up() -> None:
    told = Told(protocols={})
    told.tell("study_started")
    told.round(1)
    view = told.view()
    assert (view.planned, view.quorum, view.best, view.protocol_sha256) == (0, 0, None, "")
    assert view.sentence == "round 1, 3 of 3 sites" and "cannot be read" in view.privacy_words
    told.known["staged"] = told.protocol
    told.round(2)
    assert told.view().planned == 3, "it came with the next round"


def test_while_the_study_waits_it_is_stalled_in_the_coordinators_words(told: Told) -> None:
    told.open(1)
    told.tell("waiting", 1, severity="warning", code="outage", text="2 of 3 sites are connected")
    assert told.view().status == "stalled" and "2 of 3 sites are connected" in told.view().sentence
    told.tell("site_present", site="west")
    assert told.view().status == "stalled"
    told.tell("site_started", 1, site="west")
    assert told.view().status == "running"


def test_one_study_alone_where_it_was_asked_for(told: Told) -> None:
    other = Told(study="another")
    other.tell("study_started")
    assert (other.page.first, list(other.page.names()), other.page.read("staged", None)) == ("another", [], None)
    assert (told.page.first, list(told.page.names()), len(told.page.all())) == (None, ["staged"], 1)
