"""Which node is which party: release, approval, names; silence is absence and never a hang."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from server.rounds.events import Event
from server.rounds.loop import StudyOutcome, run_study
from tests import fake_grid as fake


def run(grid: fake.FakeGrid, protocol: fake.Protocol, folder: Path, **options: object) -> StudyOutcome:
    settings = {"observer": lambda _: None, "stop": threading.Event(), **options}
    return run_study(grid=grid, protocol=protocol, run_dir=folder, initial=fake.initial_weights(), **settings)  # type: ignore[arg-type]


def events(folder: Path, code: str) -> list[tuple[str, str]]:
    with sqlite3.connect(folder / "journal.sqlite") as db:
        return db.execute("SELECT site, text FROM events WHERE code = ? ORDER BY id", (code,)).fetchall()


def outcomes(folder: Path, site: str) -> set[str]:
    with sqlite3.connect(folder / "journal.sqlite") as db:
        return {row[0] for row in db.execute("SELECT outcome FROM participation WHERE site = ?", (site,))}


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"release": "0.0.9"}, "release", "release 0.0.9, the protocol is for 0.1.0"),
        ({"approved": False}, "not_approved", "has not approved this protocol"),
        ({"name": "zelkova"}, "unknown_site", "not in the protocol"),
    ],
)
def test_a_node_that_does_not_fit_is_left_out_and_the_rest_goes_on(
    tmp_path: Path, change: dict[str, object], code: str, words: str
) -> None:
    protocol = fake.make_protocol()
    grid = fake.make_grid(protocol)
    party = grid.party("ash")
    for name, value in change.items():
        setattr(party, name, value)
    assert run(grid, protocol, tmp_path).status == "COMPLETE"
    ((_, text),) = events(tmp_path, code)
    assert words in text
    assert not party.trained and outcomes(tmp_path, "ash") == {"failed"}
    assert [site for site, _ in events(tmp_path, "absent")] == ["ash"]


def test_of_two_nodes_with_one_name_the_first_counts(tmp_path: Path) -> None:
    protocol = fake.make_protocol()
    grid = fake.make_grid(protocol)
    first = grid.party("ash")
    grid.parties[999] = fake.Party("ash", "site", protocol)
    grid.parties[998] = fake.Party("evaluator", "evaluator", protocol)
    grid.parties.pop(next(node for node, party in grid.parties.items() if party.name == "birch"))
    assert run(grid, protocol, tmp_path).status == "COMPLETE"
    assert [site for site, _ in events(tmp_path, "second_node")] == ["evaluator", "ash"]
    assert first.trained and not grid.parties[999].trained and not grid.parties[998].measured


def test_a_silent_node_is_asked_again_and_joins_later(tmp_path: Path) -> None:
    protocol = fake.make_protocol()
    grid = fake.make_grid(protocol)
    grid.party("ash").faults[0] = fake.late

    def wake(event: Event) -> None:
        if event.kind == "round_closed" and event.round == 2:
            grid.party("ash").faults.clear()

    assert run(grid, protocol, tmp_path, observer=wake).status == "COMPLETE"
    assert {number for number, _ in grid.party("ash").trained} == {3, 4}
    assert "no reply within 5 s" in events(tmp_path, "no_answer")[0][1]
