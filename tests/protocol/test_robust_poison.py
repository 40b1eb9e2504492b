"""A site that poisons within the sanity gate's bound, round after round: what each strategy makes of it.

The gate refuses what no honest site could send; these lies pass it. Attacks: towards the opposite of what the honest
learn, as far as the bound lets it go; the same, just beyond the honest spread (Baruch et al. 2019,
https://arxiv.org/abs/1902.06156); and not having trained at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from server.aggregation.gate import inspect, norm_bound, norm_of_difference
from server.aggregation.strategies import Aggregator
from shared_model.messages import TrainRequest, weights_sha256
from tests import fake_grid as fake

SIX = [{"name": name, "patients": 40, "weight": 1.0} for name in (*fake.SITES, "elder", "fir")]
LIAR, ROUNDS = "elder", 8
ROBUST = ("fedmedian", "trimmed_mean", "krum")
Honest = Mapping[str, fake.Weights]
Attack = Callable[[fake.Weights, Honest, float], fake.Weights]


@pytest.fixture(autouse=True)
def identity() -> None:
    fake.FakeGrid([])


def opposite(base: fake.Weights, honest: Honest, bound: float) -> fake.Weights:
    """As far as the bound allows, against the honest mean."""
    mean = {name: np.mean([u[name] - base[name] for u in honest.values()], axis=0) for name in base}
    length = norm_of_difference({n: (base[n] + mean[n]).astype(np.float32) for n in base}, base)
    return {name: (base[name] - 0.99 * bound / length * mean[name]).astype(np.float32) for name in base}


def a_little(base: fake.Weights, honest: Honest, bound: float) -> fake.Weights:
    """One and a half standard deviations of the honest from their mean, in every coordinate against it."""
    lie = {}
    for name, array in base.items():
        steps = np.stack([u[name] - array for u in honest.values()])
        lie[name] = (array + steps.mean(0) - 1.5 * np.sign(steps.mean(0)) * steps.std(0)).astype(np.float32)
    return lie


def idle(base: fake.Weights, honest: Honest, bound: float) -> fake.Weights:
    return {name: np.array(array) for name, array in base.items()}


def study(strategy: str, attack: Attack | None) -> tuple[float, float]:
    """AUC on other women after the last round, and the greatest share of a coordinate's honest range that the model
    went beyond it in any round (0: it stayed among the honest)."""
    byzantine = 0 if strategy == "fedavg" else 1
    protocol = fake.make_protocol(
        federation__sites=SIX, federation__sites_per_round=6, federation__quorum=6, federation__strategy=strategy,
        federation__byzantine=byzantine,
        training__phases=[{"name": "all", "rounds": ROUNDS, "objective": "fusion", "learning_rate": 1.0,
                           "encoder_rate": 1.0}],
    )  # fmt: skip
    aggregator, weights, beyond = Aggregator(protocol), fake.initial_weights(), 0.0
    nodes = {str(site["name"]): 11 + number for number, site in enumerate(SIX)}
    for number in range(1, ROUNDS + 1):
        request = TrainRequest(study="fake", protocol_sha256="ab" * 32, round=number, attempt=1,
                               weights_sha256=weights_sha256(weights))  # fmt: skip
        aggregator.compose(weights, request, nodes)
        updates = {name: fake.fit(weights, protocol, name, number) for name in nodes}
        honest = {name: update for name, update in updates.items() if name != LIAR or attack is None}
        bound = norm_bound(protocol, number, weights, site=LIAR)
        if attack is not None:
            updates[LIAR] = attack(weights, honest, bound)
            assert inspect(updates[LIAR], weights, norm_bound=bound) is None, "the lie must pass the gate"
        result = dict(aggregator.aggregate(number, updates))
        for name, array in result.items():
            stack = np.stack([update[name] for update in honest.values()])
            low, high = stack.min(0), stack.max(0)
            outside = np.maximum(low - array, array - high) / np.maximum(high - low, 1e-6)
            beyond = max(beyond, float(outside.max()))
        weights = result
    x, y = fake.women(999, 2000)
    return fake.auc(fake.logits(weights, x), y), beyond


@pytest.fixture(scope="module")
def clean() -> dict[str, float]:
    fake.FakeGrid([])
    return {strategy: study(strategy, None)[0] for strategy in ("fedavg", *ROBUST)}


@pytest.mark.parametrize("attack", [opposite, a_little, idle], ids=lambda attack: attack.__name__)
@pytest.mark.parametrize("strategy", ROBUST)
def test_a_liar_within_the_bound_leaves_a_robust_model_among_the_honest(
    clean: dict[str, float], strategy: str, attack: Attack
) -> None:
    auc, beyond = study(strategy, attack)
    assert auc > clean[strategy] - 0.05
    # Krum takes one update whole, and who stands still is often the most central one: no harm, and a round lost.
    if (strategy, attack) != ("krum", idle):
        assert beyond <= 1e-4


def test_the_same_liar_turns_a_plain_average_around(clean: dict[str, float]) -> None:
    """So the attack is one, and the gate alone is no defence: choose a robust strategy where a site may lie."""
    auc, beyond = study("fedavg", opposite)
    assert beyond > 0.5
    assert auc < clean["fedavg"] - 0.2


@pytest.mark.parametrize("strategy", ["fedavg", *ROBUST])
def test_how_far_a_liar_moves_one_round_is_bounded_by_the_gate(strategy: str) -> None:
    """The model of a poisoned round lies no further from the clean one than the liar's share of twice the bound, for an
    average; a robust strategy's stays within the honest updates' own spread."""
    protocol = fake.make_protocol(
        federation__sites=SIX, federation__sites_per_round=6, federation__quorum=6, federation__strategy=strategy,
        federation__byzantine=0 if strategy == "fedavg" else 1,
    )  # fmt: skip
    weights = fake.initial_weights()
    request = TrainRequest(study="fake", protocol_sha256="ab" * 32, round=1, attempt=1,
                           weights_sha256=weights_sha256(weights))  # fmt: skip
    updates = {str(site["name"]): fake.fit(weights, protocol, str(site["name"]), 1) for site in SIX}
    bound = norm_bound(protocol, 1, weights, site=LIAR)
    honest = {name: update for name, update in updates.items() if name != LIAR}
    results = []
    for sent in (updates, {**updates, LIAR: opposite(weights, honest, bound)}):
        aggregator = Aggregator(protocol)
        aggregator.compose(weights, request, {"ash": 1})
        results.append(dict(aggregator.aggregate(1, sent)))
    moved = norm_of_difference(results[1], results[0])
    spread = max(norm_of_difference(a, b) for a in honest.values() for b in honest.values())
    assert moved <= (2 * bound / 6 if strategy == "fedavg" else spread)
