"""Who takes part where nodes are bound to enrolled names: nobody under another's name, nobody who is not enrolled."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict
from safetensors.numpy import save_file

from server.app import app
from server.deploy.home import CoordinatorFile, CoordinatorHome
from server.deploy.nodes import Node
from server.deploy.studies import StudyFolder, Wanted, Wish
from server.rounds.events import Event
from server.rounds.loop import StudyOutcome, run_study
from shared_model.errors import MammoFedError, StorageError
from shared_model.flower_app import HOME
from shared_model.private_files import write_private
from tests import fake_grid as fake

Bound = Mapping[int, tuple[str, str]]


def honest(grid: fake.FakeGrid) -> dict[int, tuple[str, str]]:
    """Each node bound to the party that it is."""
    return {node: (party.name, party.role) for node, party in grid.parties.items()}


def node_of(grid: fake.FakeGrid, name: str) -> int:
    return next(node for node, party in grid.parties.items() if party.name == name)


def run(
    grid: fake.FakeGrid, folder: Path, bound: Callable[[], Bound] | None, protocol: fake.Protocol | None = None
) -> tuple[StudyOutcome, list[Event]]:
    events: list[Event] = []
    outcome = run_study(
        grid=grid, protocol=protocol or fake.make_protocol(), run_dir=folder, initial=fake.initial_weights(),
        observer=events.append, stop=threading.Event(), bound=bound,
    )  # fmt: skip
    return outcome, events


def alarms(events: list[Event]) -> list[tuple[str, str | None]]:
    return [(event.code, event.site) for event in events if event.kind == "alarm"]


def test_with_everybody_under_their_own_names_the_binding_changes_nothing(tmp_path: Path) -> None:
    protocol = fake.make_protocol()
    grid = fake.make_grid(protocol)
    outcome, events = run(grid, tmp_path / "bound", lambda: honest(grid))
    assert outcome.status == "COMPLETE" and alarms(events) == []
    run(fake.make_grid(protocol), tmp_path / "free", None)
    assert (tmp_path / "bound/model.safetensors").read_bytes() == (tmp_path / "free/model.safetensors").read_bytes()


def test_a_node_under_anothers_name_is_left_out_and_named_by_its_own(tmp_path: Path) -> None:
    """`ash` says that it is `birch`, and is asked before the real one: it trains nothing, and birch is birch."""
    protocol = fake.make_protocol()
    liar = fake.Party("birch", "site", protocol)
    honests = [fake.Party(name, "site", protocol) for name in ("birch", "cedar", "dogwood")]
    grid = fake.FakeGrid([liar, *honests, fake.Party("evaluator", "evaluator", protocol)])
    bound = honest(grid) | {101: ("ash", "site")}
    outcome, events = run(grid, tmp_path, lambda: bound)
    assert outcome.status == "COMPLETE" and not liar.trained and honests[0].trained
    assert alarms(events) == [("another_name", "ash")], "birch has done nothing, and its record says nothing"
    (text,) = (event.text for event in events if event.kind == "alarm")
    assert "101" in text and "says that it is birch (site), and was enrolled as ash (site)" in text


@pytest.mark.parametrize(("enrolled", "says"), [("site", "evaluator"), ("evaluator", "site")])
def test_a_node_in_another_role_is_left_out_and_the_role_is_named(tmp_path: Path, enrolled: str, says: str) -> None:
    """A site that says it is the evaluator would choose the model; an evaluator that trains would see every update."""
    protocol = fake.make_protocol()
    liar = fake.Party("ash", says, protocol)
    rest = [fake.Party(name, "site", protocol) for name in ("birch", "cedar", "dogwood")]
    grid = fake.FakeGrid([liar, *rest, fake.Party("evaluator", "evaluator", protocol)])
    outcome, events = run(grid, tmp_path, lambda: honest(grid) | {101: ("ash", enrolled)})
    assert outcome.status == "COMPLETE" and not liar.trained and not liar.measured
    assert alarms(events) == [("another_name", "ash")]
    (text,) = (event.text for event in events if event.kind == "alarm")
    assert f"says that it is ash ({says}), and was enrolled as ash ({enrolled})" in text


def test_a_node_that_nobody_is_enrolled_with_is_not_even_asked(tmp_path: Path) -> None:
    protocol = fake.make_protocol()
    grid = fake.make_grid(protocol)
    stranger = fake.Party("ash", "site", protocol)
    asked: list[object] = []
    stranger.handle = lambda frame: asked.append(frame)  # type: ignore[assignment, method-assign, return-value, func-returns-value]
    grid.parties = {7: stranger, **grid.parties}
    outcome, events = run(grid, tmp_path, lambda: {n: who for n, who in honest(grid).items() if n != 7})
    assert outcome.status == "COMPLETE" and asked == [] and alarms(events) == []


def test_who_is_revoked_while_a_study_runs_is_gone_at_its_next_attempt(tmp_path: Path) -> None:
    protocol = fake.make_protocol(federation__quorum=3)
    grid = fake.make_grid(protocol)
    ash = node_of(grid, "ash")
    shut_out = threading.Event()
    events: list[Event] = []

    def observe(event: Event) -> None:
        events.append(event)
        if event.kind == "round_closed" and event.round == 2:
            shut_out.set()

    outcome = run_study(
        grid=grid, protocol=protocol, run_dir=tmp_path, initial=fake.initial_weights(), observer=observe,
        stop=threading.Event(),
        bound=lambda: {n: who for n, who in honest(grid).items() if not (shut_out.is_set() and n == ash)},
    )  # fmt: skip
    assert outcome.status == "COMPLETE"
    assert {number for number, _ in grid.party("ash").trained} == {1, 2}
    assert [(e.kind, e.code, e.site) for e in events if e.code == "lost"] == [("site_absent", "lost", "ash")]


def test_a_site_that_enrols_again_takes_part_under_its_new_node(tmp_path: Path) -> None:
    protocol = fake.make_protocol(federation__quorum=3)
    grid = fake.make_grid(protocol)
    old, party = node_of(grid, "ash"), grid.party("ash")

    def observe(event: Event) -> None:
        if event.kind == "round_closed" and event.round == 2:
            grid.parties = {n: p for n, p in grid.parties.items() if n != old} | {999: party}

    outcome = run_study(
        grid=grid, protocol=protocol, run_dir=tmp_path, initial=fake.initial_weights(), observer=observe,
        stop=threading.Event(), bound=lambda: honest(grid),
    )  # fmt: skip
    assert outcome.status == "COMPLETE" and {number for number, _ in party.trained} == {1, 2, 3, 4}


# --- the record on the disk, as the ServerApp of a coordinator reads it ---


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CoordinatorHome:
    """A coordinator whose operator wants the study `unit` to run."""
    settings = CoordinatorFile(name="hub", title="Hub", hosts=("localhost",))
    made = CoordinatorHome.create(tmp_path / "hub", settings)
    monkeypatch.setenv(HOME, str(made.folder))
    folder = made.study("unit")
    folder.mkdir()
    (folder / "protocol.json").write_text(fake.make_protocol().to_json())
    save_file(fake.initial_weights(), folder / "initial.safetensors")
    StudyFolder(folder).want(Wanted(wish=Wish.RUNNING))
    return made


def context() -> Context:
    return Context(1, 0, {}, RecordDict(), {"study": "unit", "patience-seconds": 0.0})


def test_the_server_app_leaves_out_whom_the_daemons_record_does_not_have(home: CoordinatorHome) -> None:
    grid = fake.make_grid(fake.make_protocol())
    found = {n: Node(site=name, role=role, key="k") for n, (name, role) in honest(grid).items()}
    found[node_of(grid, "ash")] = Node(site="elm", role="site", key="k")
    home.nodes.write(found)
    app(grid, context())
    assert not grid.party("ash").trained and grid.party("birch").trained
    assert json.loads((home.study("unit") / "summary.json").read_text())["status"] == "COMPLETE"


def test_a_record_that_is_not_there_yet_lets_nobody_in(home: CoordinatorHome) -> None:
    grid = fake.make_grid(fake.make_protocol(federation__deadline_s=1.0))
    with pytest.raises(MammoFedError):
        app(grid, context())
    assert not any(party.trained for party in grid.parties.values())


def test_a_damaged_record_stops_the_run_in_words(home: CoordinatorHome) -> None:
    grid = fake.make_grid(fake.make_protocol())
    write_private(home.folder / "link" / "nodes.json", b"{")
    with pytest.raises(StorageError, match=r"nodes.json is damaged"):
        app(grid, context())
    assert not any(party.trained for party in grid.parties.values())
