"""summary.json: its schema, and that it says what the journal says however the study ended."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from server.rounds.checkpoint import read_safetensors
from server.rounds.events import Event
from server.rounds.loop import run_study
from server.rounds.summary import validator, write_summary
from shared_model.errors import ProtocolError, StorageError
from tests import fake_grid as fake


def run(
    folder: Path, *, spoil: Callable[[fake.FakeGrid], None] = lambda _: None,
    observer: Callable[[Event], None] = lambda _: None, stop: threading.Event | None = None, **changes: Any,
) -> dict[str, Any]:  # fmt: skip
    protocol = fake.make_protocol(**changes)
    grid = fake.make_grid(protocol)
    spoil(grid)
    run_study(grid=grid, protocol=protocol, run_dir=folder, initial=fake.initial_weights(), observer=observer,
              stop=stop or threading.Event())  # fmt: skip
    document: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    validator().validate(document)
    return document


def test_schema_itself_is_valid() -> None:
    Draft202012Validator.check_schema(validator().schema)


def test_complete_private_study(tmp_path: Path) -> None:
    document = run(tmp_path, **fake.PRIVATE)
    assert document["status"] == "COMPLETE" and document["rounds_completed"] == document["rounds_planned"] == 4
    assert document["participation"] == {name: {"contributed": 4} for name in fake.SITES}
    assert document["privacy_mode"] == "patient" and set(document["privacy"]) == set(fake.SITES)
    assert document["privacy"]["ash"] == {
        "unit": "patient", "epsilon": pytest.approx(1.6), "delta": 1e-5, "adjacency": "add_or_remove_one",
        "accountant": "prv", "noise_multiplier": 1.0, "sampling_rate": 0.5, "budget": 8.0, "steps": 16,
        "metrics_epsilon": pytest.approx(1.6),
    }  # fmt: skip
    held_out = document["metrics"]["held_out"]
    assert set(held_out["models"]) == {"fused", "image", "clinical"} and held_out["n"] == 200
    assert held_out["public_weights"]["auc"] < 0.5 < held_out["models"]["fused"]["auc"]
    assert [row["round"] for row in document["metrics"]["selection"]] == [0, 1, 2, 3, 4]
    assert set(document["metrics"]["sites"]) == set(fake.SITES)
    weights_sha = read_safetensors(tmp_path / "model.safetensors", "model")[1]["sha256"]
    assert document["model"]["sha256"] == weights_sha and document["alarms"] == []
    assert document["versions"]["flwr"] == "1.41.0" and document["seconds"] > 0
    assert document["bytes"]["up"] > 0 and document["bytes"]["down"] > 0


def test_study_without_privacy_states_none(tmp_path: Path) -> None:
    document = run(tmp_path)
    assert document["privacy_mode"] == "none" and document["privacy"] == {}


def test_incomplete_study_claims_nothing(tmp_path: Path) -> None:
    def spoil(grid: fake.FakeGrid) -> None:
        for name in ("ash", "birch"):
            grid.party(name).faults[2] = fake.lost

    document = run(tmp_path, spoil=spoil)
    assert document["status"] == "INCOMPLETE" and document["rounds_completed"] == 1
    assert document["metrics"]["held_out"] is None and document["model"] is None
    assert document["participation"]["ash"] == {"contributed": 1}  # rounds that were closed


def test_stopped_study(tmp_path: Path) -> None:
    stop = threading.Event()
    document = run(tmp_path, stop=stop, observer=lambda e: stop.set() if e.kind == "round_closed" else None)
    assert document["status"] == "STOPPED" and document["rounds_completed"] == 1


def test_killed_study_is_incomplete(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def die(event: Event) -> None:
        if event.kind == "round_closed" and event.round == 2:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path, observer=die)
    assert not (tmp_path / "summary.json").exists()
    document = write_summary(tmp_path)
    assert document["status"] == "INCOMPLETE" and document["rounds_completed"] == 2


def test_outcomes_are_counted_by_the_attempt_that_closed_the_round(tmp_path: Path) -> None:
    def spoil(grid: fake.FakeGrid) -> None:
        grid.party("ash").faults.update({2: fake.late, 3: fake.fields(outcome="abstained", reason="budget")})
        grid.party("birch").faults[3] = fake.changed(fake.with_nan)
        grid.party("cedar").faults[4] = fake.lost

    document = run(tmp_path, spoil=spoil, federation__quorum=2)
    assert document["participation"]["ash"] == {"abstained": 1, "contributed": 2, "late": 1}
    assert document["participation"]["birch"] == {"contributed": 3, "refused": 1}
    assert document["participation"]["cedar"] == {"contributed": 3, "failed": 1}


def test_nothing_is_claimed_of_a_site_whose_training_answers_were_all_lost(tmp_path: Path) -> None:
    """It trained and spent, but the coordinator never heard: epsilon is unknown, not zero."""

    def lose_training(reply: fake.Frame) -> fake.Frame | None:
        return None if isinstance(reply.message, fake.TrainReply) else reply

    def spoil(grid: fake.FakeGrid) -> None:
        grid.party("ash").faults.update(dict.fromkeys(range(1, 5), lose_training))

    row = run(tmp_path, spoil=spoil, **fake.PRIVATE)["privacy"]["ash"]
    assert row["epsilon"] is None and row["steps"] is None and row["metrics_epsilon"] > 0


def test_alarms_are_listed(tmp_path: Path) -> None:
    def spoil(grid: fake.FakeGrid) -> None:
        grid.party("evaluator").image_auc = {0: 0.9, 1: 0.5}

    (alarm,) = run(tmp_path, spoil=spoil)["alarms"]
    assert alarm["code"] == "collapse" and alarm["round"] == 1 and alarm["severity"] == "warning"


def test_writing_it_again_gives_the_same_bytes(tmp_path: Path) -> None:
    run(tmp_path, **fake.PRIVATE)
    before = (tmp_path / "summary.json").read_bytes()
    write_summary(tmp_path)
    assert (tmp_path / "summary.json").read_bytes() == before


@pytest.mark.parametrize(
    "breach",
    [
        lambda d: d.update(status="DONE"), lambda d: d.pop("privacy"), lambda d: d.update(extra=1),
        lambda d: d["privacy"]["ash"].pop("delta"), lambda d: d["privacy"]["ash"].update(unit="image"),
        lambda d: d["privacy"]["ash"].update(epsilon=-1), lambda d: d["participation"]["ash"].update(great=1),
        lambda d: d["metrics"].pop("held_out"), lambda d: d["model"].update(sha256="x"),
        lambda d: d["metrics"]["held_out"]["models"]["fused"].update(auc=1.5), lambda d: d["bytes"].pop("up"),
        lambda d: d.update(rounds_completed=2.5),
    ],
)  # fmt: skip
def test_schema_refuses(tmp_path_factory: pytest.TempPathFactory, breach: Callable[[dict[str, Any]], object]) -> None:
    document = copy.deepcopy(complete_document(tmp_path_factory))
    breach(document)
    assert not validator().is_valid(document)


def complete_document(factory: pytest.TempPathFactory, made: dict[str, Any] = {}) -> dict[str, Any]:  # noqa: B006 - made once
    if not made:
        made.update(run(factory.mktemp("complete"), **fake.PRIVATE))
    return made


def test_directories_without_a_study_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="cannot read the protocol"):
        write_summary(tmp_path)
    (tmp_path / "protocol.json").write_text(fake.make_protocol().to_json())
    with pytest.raises(StorageError, match="no journal"):
        write_summary(tmp_path)
