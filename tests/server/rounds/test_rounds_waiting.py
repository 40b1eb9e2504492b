"""Outages: an attempt waits for lost parties, by a clock that the test turns, and every wait has an end."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from server.rounds.events import Event
from server.rounds.loop import StudyOutcome, run_study
from tests import fake_grid as fake

DEADLINE_S, PATIENCE_S = 600.0, 60.0
ALL = {"federation__deadline_s": DEADLINE_S, "federation__quorum": 4}  # every site is needed


class Clock(threading.Event):
    """The study's `stop` and its clock: waiting turns it, and what is planned happens on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.plan = 0.0, list[tuple[float, Callable[[], object]]]()

    def at(self, moment: float, action: Callable[[], object]) -> None:
        self.plan.append((moment, action))

    def turn(self, seconds: float) -> None:
        self.now += seconds
        for moment, action in [item for item in self.plan if item[0] <= self.now]:
            self.plan.remove((moment, action))
            action()

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.turn(timeout)
        return self.is_set()


class Network(fake.FakeGrid):
    """Nodes that can be lost and come back; a request that nobody answers takes all its time."""

    def __init__(self, protocol: fake.Protocol, clock: Clock) -> None:
        super().__init__(fake.make_grid(protocol).parties.values())
        self.clock, self.described, self._away = clock, 0, dict[str, tuple[int, fake.Party]]()

    def lose(self, name: str) -> None:
        node = next(node for node, party in self.parties.items() if party.name == name)
        self._away[name] = (node, self.parties.pop(node))

    def back(self, name: str, *, node: int | None = None) -> None:
        old, party = self._away.pop(name)
        self.parties[node or old] = party

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        sent = list(messages)
        self.described += sum(message.metadata.message_type == "query.describe" for message in sent)
        replies = super().send_and_receive(sent, timeout=timeout)
        if len(replies) < len(sent):
            self.clock.turn(timeout or 0.0)
        return replies


class Watcher:
    """Does something once when an event comes."""

    def __init__(self, kind: str, round_number: int, action: Callable[[], object]) -> None:
        self.events, self._when, self._action = list[Event](), (kind, round_number), action

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if self._when == (event.kind, event.round):
            self._when = ("", -1)
            self._action()


def start(
    grid: fake.FakeGrid, protocol: fake.Protocol, folder: Path, clock: Clock,
    observer: Callable[[Event], None] = lambda _: None, patience_s: float = PATIENCE_S, waits: bool = True,
) -> StudyOutcome:  # fmt: skip
    return run_study(
        grid=grid, protocol=protocol, run_dir=folder, initial=fake.initial_weights(), observer=observer, stop=clock,
        patience_s=patience_s, waits_for_lost=waits, clock=lambda: clock.now,
    )  # fmt: skip


def rows(folder: Path, query: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(f"file:{folder / 'journal.sqlite'}?mode=ro", uri=True) as db:
        return db.execute(query).fetchall()


def outcomes(folder: Path, site: str) -> list[str]:
    query = f"SELECT outcome FROM participation WHERE site = '{site}' ORDER BY round, attempt"
    return [row[0] for row in rows(folder, query)]


def model(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture
def undisturbed(tmp_path: Path) -> bytes:
    protocol, clock = fake.make_protocol(**ALL), Clock()
    assert start(Network(protocol, clock), protocol, tmp_path / "undisturbed", clock).status == "COMPLETE"
    assert clock.now == 0.0
    return model(tmp_path / "undisturbed")


@pytest.mark.parametrize("node", [None, 999])
def test_an_outage_of_six_minutes_is_survived_to_the_bit(tmp_path: Path, undisturbed: bytes, node: int | None) -> None:
    """The site comes back as the same node, or, with a new key, as another one."""
    protocol, clock = fake.make_protocol(**ALL), Clock()
    grid = Network(protocol, clock)
    clock.at(360.0, lambda: grid.back("ash", node=node))
    watch = Watcher("site_started", 2, lambda: grid.lose("ash"))
    assert start(grid, protocol, tmp_path, clock, watch).status == "COMPLETE"
    assert clock.now == 360.0 and model(tmp_path) == undisturbed
    assert outcomes(tmp_path, "ash") == ["contributed", "failed"] + ["contributed"] * 3
    (waiting,) = [event for event in watch.events if event.kind == "waiting"]
    assert (waiting.code, waiting.round) == ("outage", 2)
    assert waiting.text == "ash not there, 1 needed for the quorum; waiting at most 600 s"
    assert all(grid.party(name).trained == {(r, 1): 1 for r in range(1, 5)} for name in fake.SITES)


def test_all_sites_may_be_away_at_once(tmp_path: Path, undisturbed: bytes) -> None:
    protocol, clock = fake.make_protocol(**ALL), Clock()
    grid = Network(protocol, clock)

    def cut() -> None:
        for index, name in enumerate([*fake.SITES, "evaluator"]):
            grid.lose(name)
            clock.at(300.0 + 20 * index, lambda name=name: grid.back(name))

    assert start(grid, protocol, tmp_path, clock, Watcher("round_opened", 3, cut)).status == "COMPLETE"
    assert clock.now == 380.0 and model(tmp_path) == undisturbed


def test_a_site_that_stays_away_makes_the_study_incomplete_in_bounded_time(tmp_path: Path) -> None:
    protocol, clock = fake.make_protocol(**ALL, federation__attempts=3), Clock()
    grid = Network(protocol, clock)
    outcome = start(grid, protocol, tmp_path, clock, Watcher("site_started", 2, lambda: grid.lose("ash")))
    assert (outcome.status, outcome.rounds_completed) == ("INCOMPLETE", 1)
    assert clock.now == 2 * DEADLINE_S  # three attempts, two waits between them


def test_a_site_that_is_not_needed_is_not_waited_for(tmp_path: Path) -> None:
    protocol, clock = fake.make_protocol(federation__deadline_s=DEADLINE_S, federation__quorum=3), Clock()
    grid = Network(protocol, clock)
    watch = Watcher("site_started", 2, lambda: grid.lose("ash"))
    assert start(grid, protocol, tmp_path, clock, watch).status == "COMPLETE"
    assert clock.now == 0.0 and outcomes(tmp_path, "ash") == ["contributed", "failed", "failed", "failed"]


def test_one_that_was_lost_and_is_back_in_a_later_round_takes_part_again(tmp_path: Path) -> None:
    protocol, clock = fake.make_protocol(federation__deadline_s=DEADLINE_S, federation__quorum=3), Clock()
    grid = Network(protocol, clock)

    def observe(event: Event) -> None:
        if event.kind == "site_started" and event.site == "ash" and event.round == 2:
            grid.lose("ash")
        if event.kind == "round_closed" and event.round == 3:
            grid.back("ash", node=555)

    assert start(grid, protocol, tmp_path, clock, observe).status == "COMPLETE"
    assert outcomes(tmp_path, "ash") == ["contributed", "failed", "failed", "contributed"]
    lost = rows(tmp_path, "SELECT round, text FROM events WHERE code = 'lost' AND site = 'ash'")
    assert lost == [(None, "its node is not connected any more")]


def test_stop_ends_the_wait_and_resume_gives_the_same_bits(tmp_path: Path, undisturbed: bytes) -> None:
    protocol, clock = fake.make_protocol(**ALL), Clock()
    grid = Network(protocol, clock)
    clock.at(100.0, clock.set)
    outcome = start(grid, protocol, tmp_path, clock, Watcher("site_started", 2, lambda: grid.lose("ash")))
    assert (outcome.status, outcome.rounds_completed, clock.now) == ("STOPPED", 1, 100.0)
    grid.back("ash")
    clock.clear()
    assert start(grid, protocol, tmp_path, clock).status == "COMPLETE"
    assert model(tmp_path) == undisturbed


def test_an_evaluator_that_is_lost_costs_time_and_no_measurement(tmp_path: Path, undisturbed: bytes) -> None:
    protocol, clock = fake.make_protocol(**ALL), Clock()
    grid = Network(protocol, clock)
    clock.at(90.0, lambda: grid.back("evaluator"))
    assert start(
        grid, protocol, tmp_path, clock, Watcher("site_replied", 2, lambda: grid.lose("evaluator"))
    ).status == ("COMPLETE")
    assert clock.now == 90.0 and model(tmp_path) == undisturbed
    assert rows(tmp_path, "SELECT DISTINCT round FROM metrics WHERE scope = 'selection'") == [(1,), (2,), (3,), (4,)]


def test_stop_while_the_evaluator_is_away_is_a_stop(tmp_path: Path, undisturbed: bytes) -> None:
    protocol, clock = fake.make_protocol(**ALL), Clock()
    grid = Network(protocol, clock)
    clock.at(30.0, clock.set)
    outcome = start(grid, protocol, tmp_path, clock, Watcher("site_replied", 2, lambda: grid.lose("evaluator")))
    assert (outcome.status, outcome.rounds_completed) == ("STOPPED", 1)
    grid.back("evaluator")
    clock.clear()
    assert start(grid, protocol, tmp_path, clock).status == "COMPLETE"
    assert model(tmp_path) == undisturbed


def test_a_trainer_that_is_down_behind_a_good_connection_is_waited_for_and_asked_now_and_then(
    tmp_path: Path, undisturbed: bytes
) -> None:
    protocol, clock = fake.make_protocol(**ALL), Clock()
    grid = Network(protocol, clock)
    party = grid.party("ash")

    def down() -> None:
        party.faults = {0: fake.refuses, 2: fake.refuses}
        grid.described = 0

    clock.at(200.0, lambda: party.faults.clear())
    assert start(grid, protocol, tmp_path, clock, Watcher("site_started", 2, down)).status == "COMPLETE"
    assert clock.now == 210.0 and model(tmp_path) == undisturbed
    assert grid.described == 8  # at once, and every 30 s


def test_a_site_that_is_only_late_is_asked_again_at_once(tmp_path: Path) -> None:
    protocol, clock = fake.make_protocol(**ALL), Clock()
    grid = Network(protocol, clock)
    grid.party("ash").faults[2] = fake.late

    def hurry(event: Event) -> None:
        if event.kind == "attempt_failed":
            grid.party("ash").faults.clear()

    assert start(grid, protocol, tmp_path, clock, hurry).status == "COMPLETE"
    assert clock.now == DEADLINE_S and rows(tmp_path, "SELECT * FROM events WHERE kind = 'waiting'") == []


def test_on_one_machine_nobody_is_waited_for(tmp_path: Path) -> None:
    protocol, clock = fake.make_protocol(**ALL), Clock()
    grid = Network(protocol, clock)
    watch = Watcher("site_started", 2, lambda: grid.lose("ash"))
    assert start(grid, protocol, tmp_path, clock, watch, waits=False).status == "INCOMPLETE"
    assert clock.now == 0.0 and not any(event.kind == "waiting" for event in watch.events)


@pytest.mark.parametrize("comes", [True, False])
def test_waiting_for_parties_at_the_start_ends(tmp_path: Path, comes: bool) -> None:
    """Flower's own wait has no end; ours ends when all are there, or after `patience_s`."""
    protocol, clock = fake.make_protocol(federation__quorum=3), Clock()
    grid = Network(protocol, clock)
    grid.lose("ash")
    grid.parties[777] = fake.Party("zelkova", "site", protocol)  # another study's site does not count
    clock.at(3.0 if comes else 1e9, lambda: grid.back("ash"))
    assert start(grid, protocol, tmp_path, clock, patience_s=8.0).status == "COMPLETE"
    assert clock.now == (3.0 if comes else 8.0)
    assert set(outcomes(tmp_path, "ash")) == {"contributed" if comes else "failed"}


def test_an_enrolled_site_of_another_study_is_not_asked(tmp_path: Path) -> None:
    protocol, clock = fake.make_protocol(federation__quorum=3), Clock()
    grid = Network(protocol, clock)
    grid.parties[777] = fake.Party("zelkova", "site", protocol)
    bound = {node: (party.name, party.role) for node, party in grid.parties.items()}
    grid.lose("ash")  # somebody is missing, so that whoever stands for nobody is asked
    outcome = run_study(
        grid=grid, protocol=protocol, run_dir=tmp_path, initial=fake.initial_weights(), observer=lambda _: None,
        stop=clock, bound=lambda: bound,
    )  # fmt: skip
    assert outcome.status == "COMPLETE"
    assert grid.described == 4 and rows(tmp_path, "SELECT 1 FROM events WHERE code = 'unknown_site'") == []


def test_a_site_that_approves_later_is_taken_in_and_its_refusal_was_told_once(tmp_path: Path) -> None:
    protocol, clock = fake.make_protocol(federation__quorum=3), Clock()
    grid = Network(protocol, clock)
    party = grid.party("ash")
    party.approved = False

    def approve() -> None:
        party.approved = True

    watch = Watcher("round_closed", 2, approve)
    assert start(grid, protocol, tmp_path, clock, watch, patience_s=0.0).status == "COMPLETE"
    assert outcomes(tmp_path, "ash") == ["failed", "failed", "contributed", "contributed"]
    assert sum(event.code == "not_approved" for event in watch.events) == 1


def test_the_second_of_two_nodes_with_one_name_counts_when_the_first_is_gone(tmp_path: Path) -> None:
    """A site that was set up anew has another node, while Flower takes the old one for connected for a minute."""
    protocol, clock = fake.make_protocol(federation__quorum=3), Clock()
    grid = Network(protocol, clock)
    second = grid.parties[999] = fake.Party("ash", "site", protocol)
    grid.lose("birch")  # somebody is missing, so that the second is asked at all
    watch = Watcher("round_closed", 2, lambda: grid.lose("ash"))
    assert start(grid, protocol, tmp_path, clock, watch, patience_s=0.0).status == "COMPLETE"
    assert sum(event.code == "second_node" for event in watch.events) == 1
    assert set(second.trained) == {(3, 1), (4, 1)} and outcomes(tmp_path, "ash") == ["contributed"] * 4
