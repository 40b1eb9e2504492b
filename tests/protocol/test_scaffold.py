"""SCAFFOLD with all control variates at the coordinator: the paper's numbers, no drift, the same bits when resumed."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.aggregation import scaffold
from server.aggregation.gate import inspect, norm_bound
from server.aggregation.strategies import Aggregator
from server.rounds.loop import run_study
from shared_model.errors import ProtocolError
from shared_model.messages import TrainRequest, weights_sha256
from tests import fake_grid as fake

RATE, STEPS = 0.1, 10
NODES = {name: 1 + number for number, name in enumerate(fake.SITES)}
# Four hospitals that disagree about where the minimum is and how steep it is: f_i(y) = (y - a_i) H_i (y - a_i) / 2.
MINIMA = {"ash": [0.0, 1.0], "birch": [2.0, -1.0], "cedar": [-1.0, 3.0], "dogwood": [4.0, 0.0]}
CURVES = {"ash": [1.0, 0.1], "birch": [0.2, 1.5], "cedar": [0.5, 0.5], "dogwood": [2.0, 0.3]}
SHARES = dict(zip(fake.SITES, np.array([1, 2, 3, 1]) / 7, strict=True))
Vector = np.ndarray[Any, Any]


def protocol(strategy: str, *, rounds: Sequence[int] = (60,)) -> fake.Protocol:
    phases = [{"name": f"p{i}", "rounds": count, "objective": "fusion", "learning_rate": RATE, "encoder_rate": 1.0}
              for i, count in enumerate(rounds)]  # fmt: skip
    return fake.make_protocol(federation__strategy=strategy, federation__server_learning_rate=1.0,
                              training__steps_per_round=STEPS, training__phases=phases)  # fmt: skip


def gradient(site: str, y: Vector) -> Vector:
    return np.array(CURVES[site]) * (y - np.array(MINIMA[site]))


def local_steps(site: str, start: Vector, correction: Vector) -> Vector:
    y = start.astype(np.float64)
    for _ in range(STEPS):
        y = y - RATE * (gradient(site, y) + correction)
    return y


OPTIMUM = sum(SHARES[s] * np.array(CURVES[s]) * MINIMA[s] for s in fake.SITES) / sum(
    SHARES[s] * np.array(CURVES[s]) for s in fake.SITES
)


def one_round(aggregator: Aggregator, number: int, weights: fake.Weights, sites: Sequence[str]) -> fake.Weights:
    request = TrainRequest(study="fake", protocol_sha256="ab" * 32, round=number, attempt=1,
                           weights_sha256=weights_sha256(weights))  # fmt: skip
    aggregator.compose(weights, request, {site: NODES[site] for site in sites})
    updates = {}
    for site in sites:
        sent = aggregator.correction(site)
        y = local_steps(site, weights["w"], sent.tensors["w"] if sent else np.zeros(2))
        updates[site] = {"w": y.astype(np.float32)}
    return aggregator.aggregate(number, updates)


def walk(strategy: str, rounds: int, sites: Callable[[int], Sequence[str]] = lambda _: fake.SITES) -> list[Vector]:
    fake.FakeGrid([])
    aggregator, weights, way = Aggregator(protocol(strategy)), {"w": np.zeros(2, dtype=np.float32)}, []
    for number in range(1, rounds + 1):
        weights = one_round(aggregator, number, weights, sites(number))
        way.append(weights["w"])
    return way


def reference(rounds: int, sites: Callable[[int], Sequence[str]]) -> list[Vector]:
    """Karimireddy et al. 2020, algorithm 1 as it is printed: sites keep c_i, option II, the server keeps c."""
    x, c, own, way = np.zeros(2), np.zeros(2), {site: np.zeros(2) for site in fake.SITES}, []
    for number in range(1, rounds + 1):
        chosen = sites(number)
        ends = {site: local_steps(site, x, c - own[site]) for site in chosen}
        new = {site: own[site] - c + (x - ends[site]) / (STEPS * RATE) for site in chosen}
        x = sum(SHARES[site] * ends[site] for site in chosen) / sum(SHARES[site] for site in chosen)
        c = c + sum(SHARES[site] * (new[site] - own[site]) for site in chosen)
        own |= new
        way.append(x)
    return way


@pytest.mark.parametrize("sampled", [4, 2])
def test_the_numbers_are_the_papers(sampled: int) -> None:
    def sites(number: int) -> list[str]:
        return sorted((fake.SITES[number % 4 :] + fake.SITES[: number % 4])[:sampled])

    for ours, theirs in zip(walk("scaffold", 20, sites), reference(20, sites), strict=True):
        assert np.allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_unlike_hospitals_pull_fedavg_away_and_not_scaffold() -> None:
    drifted, corrected = walk("fedavg", 60)[-1], walk("scaffold", 60)[-1]
    assert np.linalg.norm(drifted - OPTIMUM) > 0.1
    assert np.linalg.norm(corrected - OPTIMUM) < 1e-3


def test_a_resumed_coordinator_goes_on_with_the_same_bits() -> None:
    fake.FakeGrid([])
    aggregator, weights = Aggregator(protocol("scaffold")), {"w": np.zeros(2, dtype=np.float32)}
    for number in range(1, 5):
        weights = one_round(aggregator, number, weights, fake.SITES)
        resumed = Aggregator(protocol("scaffold"))
        resumed.load_state(aggregator.state())
        again = one_round(resumed, number + 1, weights, fake.SITES)
        aside = Aggregator(protocol("scaffold"))
        aside.load_state(aggregator.state())
        assert weights_sha256(again) == weights_sha256(one_round(aside, number + 1, weights, fake.SITES))
        assert weights_sha256(resumed.state()) == weights_sha256(aside.state())


def test_corrections_of_a_round_cancel_out_and_each_site_gets_its_own() -> None:
    fake.FakeGrid([])
    aggregator, weights = Aggregator(protocol("scaffold")), {"w": np.zeros(2, dtype=np.float32)}
    weights = one_round(aggregator, 1, weights, fake.SITES)
    one_round(aggregator, 2, weights, fake.SITES)
    sent = {site: aggregator.correction(site) for site in fake.SITES}
    assert len({one.sha256 for one in sent.values() if one}) == 4
    assert np.allclose(sum(SHARES[s] * one.tensors["w"] for s, one in sent.items() if one), 0, atol=1e-6)


def test_a_new_phase_begins_without_corrections() -> None:
    fake.FakeGrid([])
    aggregator, weights = Aggregator(protocol("scaffold", rounds=(2, 2))), {"w": np.zeros(2, dtype=np.float32)}
    norms = []
    for number in range(1, 5):
        weights = one_round(aggregator, number, weights, fake.SITES)
        sent = aggregator.correction("ash")
        norms.append(sent.norm if sent else -1.0)
    assert norms[0] == norms[2] == 0 and min(norms[1], norms[3]) > 0.1


def test_a_tensor_that_was_not_trained_keeps_its_control_variate() -> None:
    variates = scaffold.ControlVariates(protocol("scaffold"))
    before = {name: np.ones(2, dtype=np.float32) for name in ("trained", "frozen")}
    variates.load_state({f"c_i.ash.{name}": np.full(2, 0.5, dtype=np.float32) for name in before})
    sent = variates.corrections(2, before, {"ash": 1})
    variates.learn(2, before, {"ash": {**before, "trained": before["trained"] - 0.1}}, sent)
    state = variates.state()
    assert (state["c_i.ash.frozen"] == 0.5).all() and (state["c_i.ash.trained"] != 0.5).all()


def test_more_sites_than_a_checkpoint_holds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    variates = scaffold.ControlVariates(protocol("scaffold"))
    monkeypatch.setattr(scaffold, "MAX_STATE_BYTES", 4 * 8 - 1)
    with pytest.raises(ProtocolError, match="one more model for each site in every checkpoint"):
        variates.corrections(1, {"w": np.zeros(2, dtype=np.float32)}, {"ash": 1})


# --- the gate and the loop -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("private", [False, True])
def test_the_gate_lets_an_honest_correction_pass_and_no_larger_one(private: bool) -> None:
    changes: Mapping[str, Any] = fake.PRIVATE if private else {}
    terms = fake.make_protocol(federation__strategy="scaffold", federation__server_learning_rate=1.0, **changes)
    random = np.random.default_rng(0)
    start = {"w": random.normal(size=500).astype(np.float32)}
    direction = random.normal(size=500)
    direction /= np.linalg.norm(direction)
    steps = terms.training.steps_per_round  # every gradient is clipped to 1, points one way, and so does the correction
    far = 100.0 * direction
    update = {"w": (start["w"] - terms.learning_rate(1) * steps * (direction + far)).astype(np.float32)}
    bounds = [norm_bound(terms, 1, start, site="ash", correction=norm) for norm in (100.0, 0.0)]
    assert inspect(update, start, norm_bound=bounds[0]) is None
    refused = inspect(update, start, norm_bound=bounds[1])
    assert refused is not None and refused.code == "norm"


def test_a_reply_for_another_correction_is_refused(tmp_path: Path) -> None:
    terms = fake.make_protocol(**fake.STRATEGIES["scaffold"])
    grid = fake.make_grid(terms)
    grid.party("ash").faults[2] = fake.fields(correction_sha256="0" * 64)
    grid.party("birch").faults[3] = fake.fields(correction_sha256=None)
    run_study(grid=grid, protocol=terms, run_dir=tmp_path, initial=fake.initial_weights(), observer=lambda _: None,
              stop=threading.Event())  # fmt: skip
    query = "SELECT round, site, reason FROM participation WHERE outcome = 'refused' ORDER BY 1"
    with sqlite3.connect(tmp_path / "journal.sqlite") as db:
        rows = db.execute(query).fetchall()
    assert rows == [(n, s, "identity: the reply is for another correction") for n, s in ((2, "ash"), (3, "birch"))]
