"""Epsilon at further deltas agrees with the accountant's and never claims what it cannot know."""

from __future__ import annotations

import json
from pathlib import Path

from client.privacy.accountant import Account
from simulations.deltas import other_deltas, write_other_deltas


def row(*, steps: int, epsilon: float | None = None) -> dict[str, float]:
    account = Account().add(noise_multiplier=1.3, sample_rate=0.1, steps=steps)
    stated = account.epsilon(delta=1e-5) if epsilon is None else epsilon
    return {"noise_multiplier": 1.3, "sampling_rate": 0.1, "steps": steps, "delta": 1e-5, "epsilon": stated}


def test_epsilon_grows_as_delta_shrinks_and_is_kept_beside_the_summary(tmp_path: Path) -> None:
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
