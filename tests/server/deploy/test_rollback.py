"""A study goes on without one site: from the right checkpoint, under a protocol that others can approve, on record."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from server.cli import server as server_group
from server.deploy.home import CoordinatorFile, CoordinatorHome
from server.deploy.rollback import plan_rollback, roll_back
from server.deploy.studies import StudyFolder, Wanted, Wish, find_study, start
from server.rounds.checkpoint import read_arrays, read_checkpoint
from server.rounds.follow import contributions, read_events
from server.rounds.influence import influence_of, influences
from server.rounds.loop import run_study
from shared_model.errors import ConfigError, ProtocolError, StorageError
from shared_model.messages import weights_sha256
from shared_model.private_files import make_private_folder
from shared_model.proposal import read_protocol
from shared_model.protocol import Protocol
from tests import fake_grid as fake

ROUNDS = 6


def run(
    run_dir: Path, *, rounds: int = ROUNDS, absent: int = 2, stop_after: int = ROUNDS, private: bool = True
) -> Protocol:
    """A study in which cedar is absent from the first `absent` rounds."""
    phases = [{"name": "first", "rounds": 2, "objective": "image", "learning_rate": 0.5, "encoder_rate": 1.0},
              {"name": "then", "rounds": rounds - 2, "objective": "fusion", "learning_rate": 0.5,
               "encoder_rate": 1.0}]  # fmt: skip
    protocol = fake.make_protocol(training__phases=phases, federation__quorum=2, federation__attempts=1,
                                  **(fake.PRIVATE if private else {}))
    grid, stop = fake.make_grid(protocol), threading.Event()
    for number in range(1, absent + 1):
        grid.party("cedar").faults[number] = fake.lost

    def observe(event: object) -> None:
        if getattr(event, "kind", "") == "round_closed" and getattr(event, "round", 0) >= stop_after:
            stop.set()

    run_study(grid=grid, protocol=protocol, run_dir=run_dir, initial=fake.initial_weights(), observer=observe,
              stop=stop)  # fmt: skip
    return protocol


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stopped after round 4 of 6; cedar is in rounds 3 and 4."""
    path = tmp_path_factory.mktemp("run") / "study"
    run(path, stop_after=4)
    return path


@pytest.fixture
def home(tmp_path: Path) -> CoordinatorHome:
    settings = CoordinatorFile(name="hub", title="Hub", hosts=("localhost",), port=1, enrol_port=2, link_port=3)
    made = CoordinatorHome.create(tmp_path / "hub", settings)
    study = made.study("study")
    make_private_folder(study)
    run(study, stop_after=4)
    StudyFolder(study).want(Wanted(wish=Wish.STOPPED))
    return made


def test_who_is_in_each_model_is_read_from_the_journal(stopped: Path) -> None:
    found = contributions(stopped / "journal.sqlite")
    assert sorted(found) == [1, 2, 3, 4]
    assert [("cedar" in found[number]) for number in (1, 2, 3, 4)] == [False, False, True, True]


def test_it_goes_on_from_the_last_model_that_the_site_is_not_in(stopped: Path) -> None:
    old = Protocol.read(stopped / "protocol.json")
    plan = plan_rollback(stopped, without="cedar")
    kept = read_checkpoint(stopped, 2, protocol_sha256=old.sha256).weights
    assert (plan.kept, plan.lost) == (2, 2)
    assert weights_sha256(plan.weights) == weights_sha256(kept) == plan.protocol.initial_weights.sha256
    assert plan.protocol.study == f"{old.study}-without-cedar" and plan.protocol.initial_weights.origin == "study"
    assert [site.name for site in plan.protocol.federation.sites] == ["ash", "birch", "dogwood"]
    assert old.sha256[:16] in plan.protocol.initial_weights.recipe
    changed = {"study", "initial_weights", "training", "federation"}
    before, after = old.model_dump(), plan.protocol.model_dump()
    assert {name for name in before if before[name] != after[name]} == changed


@pytest.mark.parametrize(("private", "rounds", "expected"), [(True, None, 2), (False, None, 4), (True, 7, 7)])
def test_private_rounds_that_were_paid_for_are_not_run_again_unless_said(
    tmp_path: Path, private: bool, rounds: int | None, expected: int
) -> None:
    run(tmp_path, stop_after=4, private=private)
    assert Protocol.read(tmp_path / "protocol.json").private is private
    plan = plan_rollback(tmp_path, without="cedar", rounds=rounds)
    assert plan.protocol.rounds == expected
    assert [phase.name for phase in plan.protocol.training.phases] == ["then"]


def test_a_site_that_was_in_from_the_start_leaves_the_initial_weights(stopped: Path) -> None:
    plan = plan_rollback(stopped, without="ash", rounds=6)
    assert plan.kept == 0 and plan.protocol.initial_weights.origin == "random"
    assert [(phase.name, phase.rounds) for phase in plan.protocol.training.phases] == [("first", 2), ("then", 4)]
    short = plan_rollback(stopped, without="ash", rounds=1)
    assert [phase.name for phase in short.protocol.training.phases] == ["then"]


def test_what_cannot_be_done_is_said(stopped: Path, tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="not part of the study"):
        plan_rollback(stopped, without="elm")
    run(tmp_path / "never", absent=ROUNDS, stop_after=1)
    with pytest.raises(ConfigError, match="gave to no closed round"):
        plan_rollback(tmp_path / "never", without="cedar")
    run(tmp_path / "done")
    with pytest.raises(ProtocolError, match="epsilon is spent"):
        plan_rollback(tmp_path / "done", without="cedar")
    assert plan_rollback(tmp_path / "done", without="cedar", rounds=3).lost == 4
    (tmp_path / "done" / "checkpoints" / "round-0002.safetensors").unlink()
    with pytest.raises(StorageError):
        plan_rollback(tmp_path / "done", without="cedar", rounds=3)


def test_the_old_study_ends_on_record_and_the_new_one_can_be_proposed_and_run(
    home: CoordinatorHome, tmp_path: Path
) -> None:
    folder = tmp_path / "again"
    done = CliRunner().invoke(server_group, ["rollback", str(home.folder), "study", "--without", "cedar", "--to",
                                             str(folder), "--yes"])  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "Kept         round 2" in done.output and "Thrown away  2 closed rounds" in done.output
    protocol, weights = read_protocol(folder / "protocol.yaml"), read_arrays(folder / "initial.safetensors")
    assert weights_sha256(weights) == protocol.initial_weights.sha256
    old = find_study(home, "study")
    assert old.wanted().wish is Wish.ENDED
    (event,) = [event for _, event in read_events(old.journal, after=0) if event.code == "rolled_back"]
    assert event.site == "cedar" and protocol.study in event.text
    kinds = [json.loads(line)["kind"] for line in (home.folder / "audit.jsonl").read_text().splitlines()]
    assert kinds[-1] == "study_rolled_back"
    with pytest.raises(ConfigError, match="has ended"):
        start(home, "study", again=True)
    outcome = run_study(grid=fake.make_grid(protocol), protocol=protocol, run_dir=tmp_path / "new", initial=weights,
                        observer=lambda _: None, stop=threading.Event())  # fmt: skip
    assert outcome.status == "COMPLETE" and outcome.rounds_completed == 2
    assert not any("cedar" in sites for sites in contributions(tmp_path / "new" / "journal.sqlite").values())


def test_a_running_study_and_a_full_folder_are_left_alone(home: CoordinatorHome, tmp_path: Path) -> None:
    study = find_study(home, "study")
    plan = plan_rollback(study.path, without="cedar")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(ConfigError, match="not empty"):
        roll_back(home, "study", plan, tmp_path / "full", without="cedar")
    study.want(Wanted(wish=Wish.RUNNING))
    with pytest.raises(ConfigError, match="is running"):
        roll_back(home, "study", plan, tmp_path / "new", without="cedar")
    assert not (tmp_path / "new").exists()


# influence


def test_influence_is_the_leave_one_out_of_the_weighted_mean() -> None:
    random = np.random.default_rng(0)
    base = {"w": random.normal(size=(3, 2)).astype(np.float32), "b": np.zeros((), np.float32)}
    updates = {site: {name: array + random.normal(size=array.shape).astype(np.float32) for name, array in base.items()}
               for site in "abc"}  # fmt: skip
    weights = {"a": 1.0, "b": 2.0, "c": 3.0}
    found = influences(updates, base, weights)

    def mean(sites: str) -> np.ndarray:
        steps = [np.concatenate([(updates[s][n] - base[n]).ravel() for n in sorted(base)]) for s in sites]
        return np.average(steps, axis=0, weights=[weights[s] for s in sites])

    for site, others in (("a", "bc"), ("b", "ac"), ("c", "ab")):
        step, rest = mean(site), mean(others)
        assert found[site].norm == pytest.approx(np.linalg.norm(step), rel=1e-5)
        cosine = step @ rest / np.linalg.norm(step) / np.linalg.norm(rest)
        assert found[site].cosine == pytest.approx(cosine, rel=1e-4)
        shift = np.linalg.norm(mean("abc") - rest) / np.linalg.norm(mean("abc"))
        assert found[site].shift == pytest.approx(shift, rel=1e-4)
    alone = influences({"a": updates["a"]}, base, weights)["a"]
    assert alone.cosine is None and set(alone.numbers()) == {"norm"}


def test_a_site_that_pulls_away_stands_first(tmp_path: Path) -> None:
    protocol = fake.make_protocol(federation__attempts=1)
    grid = fake.make_grid(protocol)
    for number in range(1, protocol.rounds + 1):
        grid.party("birch").faults[number] = fake.changed(
            lambda weights: {name: array + np.float32(0.5) for name, array in weights.items()})
    run_study(grid=grid, protocol=protocol, run_dir=tmp_path, initial=fake.initial_weights(),
              observer=lambda _: None, stop=threading.Event())  # fmt: skip
    rows = influence_of(tmp_path)
    assert rows[0].site == "birch" and rows[0].rounds == protocol.rounds
    shown = CliRunner().invoke(server_group, ["influence", str(tmp_path)], env={"COLUMNS": "160"})
    assert shown.exit_code == 0 and "birch" in shown.output and "most of a step is noise" in shown.output


def test_with_a_secure_sum_nobody_can_say(tmp_path: Path) -> None:
    protocol = fake.make_protocol(federation__secure_sum="masked", federation__quorum=3)
    (tmp_path / "protocol.json").write_text(protocol.to_json())
    with pytest.raises(ConfigError, match="sums updates securely"):
        influence_of(tmp_path)
    with pytest.raises(ConfigError, match="no study"):
        influence_of(tmp_path / "nowhere")
