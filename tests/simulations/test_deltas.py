"""Epsilon at further deltas agrees with the accountant's and never claims what it cannot know."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from client.privacy.accountant import Account
from server.reporting import Signature, write_passport
from shared_model.passport import verify
from shared_model.protocol import Protocol
from simulations.deltas import other_deltas, spent_in_order, write_other_deltas
from tests.client.conftest import make_protocol
from tests.finished import finish


def protocol() -> Protocol:
    """Three rounds of 20 steps, the last in a phase of its own with more noise."""
    phase = {"objective": "fusion", "learning_rate": 0.1, "encoder_rate": 1.0}
    phases = [{"name": "one", "rounds": 2, **phase}, {"name": "two", "rounds": 1, "noise_factor": 2.0, **phase}]
    return make_protocol(training__phases=phases, training__steps_per_round=20, training__sample_rate=0.1,
                         privacy__noise_multiplier=1.3)  # fmt: skip


def row(*, steps: int, epsilon: float | None = None) -> dict[str, Any]:
    mechanisms = spent_in_order(protocol(), steps)
    stated = Account.from_lists(mechanisms).epsilon(delta=1e-5) if epsilon is None else epsilon
    return {"mechanisms": mechanisms, "steps": steps, "delta": 1e-5, "epsilon": stated}


def test_what_a_site_spent_follows_the_phases() -> None:
    assert spent_in_order(protocol(), 40) == [(1.3, 0.1, 40)]
    assert spent_in_order(protocol(), 60) == [(1.3, 0.1, 40), (2.6, 0.1, 20)]
    assert spent_in_order(protocol(), 30) == []  # in no number of whole rounds


def test_epsilon_grows_as_delta_shrinks_and_is_kept_beside_the_summary(tmp_path: Path) -> None:
    (tmp_path / "protocol.json").write_text(protocol().to_json())
    write_other_deltas(tmp_path, {"privacy": {"north": row(steps=60), "west": row(steps=0)}}, [1e-4, 1e-5, 1e-6])
    found = json.loads((tmp_path / "privacy-deltas.json").read_text())
    assert list(found) == ["north"]
    assert found["north"]["0.0001"] < found["north"]["1e-05"] < found["north"]["1e-06"]
    assert found["north"]["1e-05"] == row(steps=60)["epsilon"]


def test_a_site_that_spent_elsewhere_is_left_out() -> None:
    assert other_deltas({"north": row(steps=60, epsilon=9.9)}, [1e-6]) == {}


def test_without_privacy_nothing_is_written(tmp_path: Path) -> None:
    write_other_deltas(tmp_path, {"privacy": {}}, [1e-6])
    assert list(tmp_path.iterdir()) == []


def test_what_a_passport_names_stays_as_it_was_signed(tmp_path: Path, study_maker: Callable[..., Any]) -> None:
    """A run that ended is resumed by a later release, which may reckon finer."""
    run = finish(study_maker(tmp_path / "study", private=True))
    (run / "privacy-deltas.json").write_text("{}\n")
    write_passport(run, Signature.of_run())
    write_other_deltas(run, {"privacy": {"north": row(steps=60)}}, [1e-6])
    assert "privacy-deltas.json" in verify(run).checked
