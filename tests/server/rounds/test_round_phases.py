"""What the coordinator makes of a site's seconds: they fit into the round trip, and nothing unknown is invented."""

from __future__ import annotations

import random
import sqlite3
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from server.aggregation.flower import WAITED, Exchange
from server.rounds.journal import Journal, Participation
from server.rounds.loop import run_study
from server.rounds.phases import Phases, phases_of
from server.rounds.states import RoundStep, StudyStep
from shared_model.messages import DescribeRequest, Frame, TrainReply
from shared_model.phases import PhaseSeconds, told
from tests import fake_grid as fake


def parts(phases: Phases) -> list[float]:
    found = (phases.wait, phases.load, phases.train, phases.mask, phases.send)
    return [value for value in found if value is not None]


@pytest.mark.parametrize("coarse", [False, True])
def test_the_phases_are_no_more_than_the_round_trip_and_make_it_up(coarse: bool) -> None:
    draw = random.Random(2)
    for _ in range(500):
        own = {name: told(10 ** draw.uniform(-3, 3), coarse=coarse) for name in ("wait", "load", "train", "mask")}
        site = PhaseSeconds(**own)
        trip = site.total * draw.uniform(1.0, 2.0) + 0.002
        found = phases_of(site, trip=trip, waited=0.1, coarse=coarse)
        assert found.round_trip is not None and len(parts(found)) == 5
        assert sum(parts(found)) <= found.round_trip + 1e-6
        assert sum(parts(found)) == pytest.approx(trip, rel=0.13 if coarse else 0.001, abs=0.01)


def test_what_is_left_of_the_trip_is_sending() -> None:
    found = phases_of(PhaseSeconds(wait=1.0, load=2.0, train=30.0), trip=40.0, waited=3.0, coarse=False)
    assert found == Phases(round_trip=40.0, wait=4.0, load=2.0, train=30.0, mask=0.0, send=4.0)


def test_the_steps_of_a_secure_sum_are_masking_and_their_way_is_sending() -> None:
    found = phases_of(PhaseSeconds(load=2.0, train=30.0, mask=1.0), trip=40.0, summed=(5.0, 20.0), coarse=False)
    assert found == Phases(round_trip=60.0, wait=0.0, load=2.0, train=30.0, mask=6.0, send=22.0)


def test_a_kept_reply_tells_of_its_first_time_and_nothing_is_said_of_sending() -> None:
    found = phases_of(PhaseSeconds(load=2.0, train=30.0), trip=0.4, coarse=False)
    assert (found.round_trip, found.train, found.send) == (0.4, 30.0, None)


def test_what_a_carrier_says_that_it_waited_is_no_more_than_what_is_left() -> None:
    found = phases_of(PhaseSeconds(train=30.0), trip=31.0, waited=1e6, coarse=False)
    assert (found.wait, found.send) == (1.0, 0.0)


def test_of_a_site_that_tells_nothing_only_the_round_trip_is_known() -> None:
    assert phases_of(None, trip=3.2, coarse=False) == Phases(round_trip=3.2)


class Turned:
    now = 50.0

    def __call__(self) -> float:
        return self.now


class Polled(fake.FakeGrid):
    """As Flower's own: replies are fetched by and by, and handed over together; each party takes 10 s longer."""

    def __init__(self, parties: Iterable[fake.Party], clock: Turned) -> None:
        super().__init__(parties)
        self.clock, self.there = clock, list[Message]()

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        self.there = super().send_and_receive(messages, timeout=timeout)
        found = list[Message]()
        while self.there:
            self.clock.now += 10.0
            found += self.pull_messages([])
        self.clock.now += 100.0
        return found

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self.there.pop(0)]


def describe(grid: fake.FakeGrid, clock: Turned) -> dict[int, float | None]:
    exchange = Exchange(grid, clock=clock)
    answers = exchange.ask(dict.fromkeys(exchange.nodes(), Frame(DescribeRequest())), timeout_s=9.0)
    return {node: answer.seconds for node, answer in answers.items()}


def test_each_reply_has_its_own_round_trip() -> None:
    protocol, clock = fake.make_protocol(), Turned()
    grid = Polled(fake.make_grid(protocol).parties.values(), clock)
    found = describe(grid, clock)
    assert sorted(found.values()) == [10.0, 20.0, 30.0, 40.0, 50.0]  # type: ignore[type-var]
    assert "pull_messages" not in vars(grid)  # as it was
    assert sorted(describe(grid, clock).values()) == [10.0, 20.0, 30.0, 40.0, 50.0]  # type: ignore[type-var]


def test_of_a_grid_that_fetches_otherwise_the_end_counts() -> None:
    clock = Turned()

    class Whole(fake.FakeGrid):
        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
            clock.now += 7.0
            return super().send_and_receive(messages, timeout=timeout)[:-1]

    found = describe(Whole(fake.make_grid(fake.make_protocol()).parties.values()), clock)
    assert sorted(map(str, found.values())) == ["7.0", "7.0", "7.0", "7.0", "None"]  # nothing came of one


@pytest.mark.parametrize(("said", "waited"), [(2.5, 2.5), (-1.0, 0.0), (float("nan"), 0.0), (3, 0.0), ("x", 0.0)])
def test_only_a_number_of_seconds_counts_as_waiting(said: Any, waited: float) -> None:
    class Saying(fake.FakeGrid):
        def _deliver(self, message: Message) -> Message | None:
            reply = super()._deliver(message)
            assert reply is not None
            fields = reply.content.config_records["message"]
            return Message(RecordDict({"message": ConfigRecord({**fields, WAITED: said})}), reply_to=message)

    grid = Saying(fake.make_grid(fake.make_protocol()).parties.values())
    (answer,) = Exchange(grid).ask({101: Frame(DescribeRequest())}, timeout_s=9.0).values()
    assert answer.frame is not None and answer.waited == waited


def test_the_round_loop_journals_them_and_says_them(tmp_path: Path) -> None:
    protocol, events = fake.make_protocol(federation__quorum=2), list[Any]()
    grid = fake.make_grid(protocol)
    phases = PhaseSeconds(load=1.0, train=5.0)

    def tells(reply: fake.Frame) -> fake.Frame:
        assert isinstance(reply.message, TrainReply)
        return Frame(reply.message.model_copy(update={"phases": phases}), reply.arrays)

    grid.party("ash").faults[1] = tells
    grid.party("birch").faults[1] = lambda reply: None  # late
    run_study(grid=grid, protocol=protocol, run_dir=tmp_path, initial=fake.initial_weights(), observer=events.append,
              stop=threading.Event())  # fmt: skip
    with sqlite3.connect(tmp_path / "journal.sqlite") as db:
        rows = {row[0]: row[1:] for row in db.execute("SELECT site, load, train, send FROM phases WHERE round = 1")}
    assert rows == {"ash": (1.0, 5.0, None), "cedar": (None,) * 3, "dogwood": (None,) * 3}
    (told_of,) = [e.data for e in events if (e.kind, e.site, e.round) == ("site_replied", "ash", 1)]
    assert (told_of["load_s"], told_of["train_s"]) == (1.0, 5.0) and "send_s" not in told_of
    (late,) = [e.data for e in events if (e.kind, e.site, e.round) == ("site_replied", "birch", 1)]
    assert "round_trip_s" not in late


def test_of_a_site_that_does_not_answer_the_second_time_nothing_old_stays(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    row = Participation(site="ash", outcome="contributed", reason="", asked=1, seconds=1.5, bytes_up=7, bytes_down=9,
                        phases=Phases(round_trip=3.0, train=1.5))  # fmt: skip
    with Journal(path, lambda _: None) as journal, journal.entry():
        journal.participation(1, 1, row)
        journal.participation(1, 1, replace(row, outcome="late", phases=None))
        journal.participation(2, 1, replace(row, outcome="late", phases=None))
    with Journal(path, lambda _: None) as journal:
        assert journal.rows("SELECT * FROM phases") == [(1, 1, "ash", None, None, None, None, None, None)]


def without_phases(path: Path) -> None:
    """Make a journal one of a release that knew no phases."""
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE phases")
        db.execute("DELETE FROM seals WHERE name = 'phases'")


def test_a_journal_of_an_earlier_release_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    row = Participation(site="ash", outcome="contributed", reason="", asked=1, seconds=1.5, bytes_up=7, bytes_down=9,
                        phases=Phases(round_trip=3.0, train=1.5))  # fmt: skip
    with Journal(path, lambda _: None) as journal:
        with journal.study_step(StudyStep.START):
            pass
        with journal.round_step(1, 1, RoundStep.OPEN, weights_before="a"):
            journal.participation(1, 1, row)
    without_phases(path)
    with Journal(path, lambda _: None) as journal:
        assert journal.rows("SELECT * FROM phases") == []
        with journal.entry():
            journal.participation(1, 2, row)
    with Journal(path, lambda _: None) as journal:  # every row, and those of the new table, has its seal
        assert journal.rows("SELECT round_trip, train, load FROM phases") == [(3.0, 1.5, None)]
