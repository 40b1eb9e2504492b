"""Flower's strategies as aggregators: sampling stays ours, their state is plain arrays, their results float32."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from server.aggregation.flower import quiet_flower
from server.aggregation.methods import make_strategy, trim_share
from server.aggregation.strategies import Aggregator
from server.aggregation.view import SampledView
from shared_model.errors import ProtocolError, RoundError, StorageError
from shared_model.messages import TrainRequest, weights_sha256
from tests import fake_grid as fake


@pytest.fixture(autouse=True)
def identity() -> None:
    fake.FakeGrid([])


NODES = {name: 11 + number for number, name in enumerate(fake.SITES)}
REMEMBER = {"fedavgm": {"momentum_vector"}, "fedadam": {"m_t", "v_t"}, "fedyogi": {"m_t", "v_t"},
            "scaffold": {f"c_i.{name}" for name in fake.SITES}}  # fmt: skip


def ask(weights: fake.Weights, round_number: int) -> TrainRequest:
    return TrainRequest(study="fake", protocol_sha256="ab" * 32, round=round_number, attempt=1,
                        weights_sha256=weights_sha256(weights))  # fmt: skip


def one_round(aggregator: Aggregator, protocol: fake.Protocol, weights: fake.Weights, number: int) -> fake.Weights:
    aggregator.compose(weights, ask(weights, number), NODES)
    return aggregator.aggregate(number, updates_of(aggregator, protocol, weights, number, fake.SITES))


def updates_of(
    aggregator: Aggregator, protocol: fake.Protocol, weights: fake.Weights, number: int, names: Iterable[str]
) -> dict[str, fake.Weights]:
    sent = {name: aggregator.correction(name) for name in names}
    corrections = {name: dict(one.tensors) if one else None for name, one in sent.items()}
    return {name: fake.fit(weights, protocol, name, number, corrections[name]) for name in names}


@pytest.mark.parametrize("strategy", fake.STRATEGIES)
def test_what_no_site_trained_stays_to_the_bit(strategy: str) -> None:
    """Also after rounds in which it moved: no rounding of an average, no momentum. Sites encode their films
    again whenever the encoder's bits change."""
    protocol = fake.make_protocol(**fake.STRATEGIES[strategy])
    aggregator, weights = Aggregator(protocol), fake.initial_weights()
    for number in (1, 2):
        weights = one_round(aggregator, protocol, weights, number)
    aggregator.compose(weights, ask(weights, 3), NODES)
    resting, *moving = sorted(weights)
    updates = updates_of(aggregator, protocol, weights, 3, fake.SITES)
    for update in updates.values():
        update[resting] = weights[resting].copy()
    after = aggregator.aggregate(3, updates)
    assert np.array_equal(after[resting], weights[resting])
    assert any(not np.array_equal(after[name], weights[name]) for name in moving)


@pytest.mark.parametrize("strategy", fake.STRATEGIES)
def test_exactly_the_chosen_nodes_are_asked(strategy: str) -> None:
    protocol = fake.make_protocol(**fake.STRATEGIES[strategy])
    weights, nodes = fake.initial_weights(), {"ash": 205, "cedar": 17, "birch": 4}
    messages = Aggregator(protocol).compose(weights, ask(weights, 3), nodes)
    assert sorted(message.metadata.dst_node_id for message in messages) == [4, 17, 205]
    for message in messages:
        assert message.metadata.message_type == "train" and message.metadata.group_id == "3"
        request = TrainRequest.model_validate_json(str(message.content["message"]["json"]))
        assert request.model_copy(update={"correction_sha256": None}) == ask(weights, 3)
        beside = {f"correction.{name}" for name in weights} if strategy == "scaffold" else set()
        assert set(message.content["arrays"]) == set(weights) | beside
        assert (request.correction_sha256 is not None) == bool(beside)
        assert message.content["arrays"]["head.bias"].shape == ()  # a scalar stays one


@pytest.mark.parametrize("strategy", fake.STRATEGIES)
def test_result_is_float32_and_does_not_depend_on_the_order_of_updates(strategy: str) -> None:
    protocol = fake.make_protocol(**fake.STRATEGIES[strategy])
    weights, results = fake.initial_weights(), []
    for names in (fake.SITES, fake.SITES[::-1]):
        aggregator = Aggregator(protocol)
        aggregator.compose(weights, ask(weights, 1), NODES)
        results.append(aggregator.aggregate(1, updates_of(aggregator, protocol, weights, 1, names)))
    assert weights_sha256(results[0]) == weights_sha256(results[1])
    assert all(array.dtype == np.float32 for array in results[0].values())
    assert {name: array.shape for name, array in results[0].items()} == {n: a.shape for n, a in weights.items()}


def test_fedadam_follows_the_paper() -> None:
    """Reddi et al. 2021, algorithm 2, with the bias correction that Flower adds (Kingma and Ba 2015, before 2.1)."""
    protocol = fake.make_protocol(federation__strategy="fedadam")
    aggregator, weights = Aggregator(protocol), fake.initial_weights()
    terms = protocol.federation
    total = sum(site.weight for site in terms.sites)
    first = second = {name: np.zeros_like(array, dtype=float) for name, array in weights.items()}
    expected = {name: array.astype(float) for name, array in weights.items()}
    for number in (1, 2, 3):
        sites = {site: fake.fit(weights, protocol, site.name, number) for site in terms.sites}
        delta = {n: sum(s.weight / total * u[n].astype(float) for s, u in sites.items()) - expected[n] for n in weights}
        first = {n: 0.9 * first[n] + 0.1 * delta[n] for n in weights}
        second = {n: 0.99 * second[n] + 0.01 * delta[n] ** 2 for n in weights}
        step = terms.server_learning_rate * np.sqrt(1 - 0.99 ** (number + 1)) / (1 - 0.9 ** (number + 1))
        expected = {n: expected[n] + step * first[n] / (np.sqrt(second[n]) + terms.server_tau) for n in weights}
        weights = one_round(aggregator, protocol, weights, number)
        for name in weights:
            assert np.allclose(weights[name], expected[name], rtol=1e-4, atol=1e-5)


def test_fedavgm_follows_the_paper() -> None:
    """Hsu et al. 2019, section 3.2: v <- beta v + delta, w <- w + eta v."""
    protocol = fake.make_protocol(**fake.STRATEGIES["fedavgm"])
    aggregator, weights = Aggregator(protocol), fake.initial_weights()
    terms, total = protocol.federation, sum(site.weight for site in protocol.federation.sites)
    velocity = {name: np.zeros_like(array, dtype=float) for name, array in weights.items()}
    for number in (1, 2, 3):
        sites = {site: fake.fit(weights, protocol, site.name, number) for site in terms.sites}
        mean = {n: sum(s.weight / total * u[n].astype(float) for s, u in sites.items()) for n in weights}
        velocity = {n: terms.server_beta_1 * velocity[n] + mean[n] - weights[n] for n in weights}
        expected = {n: weights[n] + terms.server_learning_rate * velocity[n] for n in weights}
        weights = one_round(aggregator, protocol, weights, number)
        for name in weights:
            assert np.allclose(weights[name], expected[name], rtol=1e-5, atol=1e-6)


def test_fedyogi_follows_the_paper() -> None:
    """Reddi et al. 2021, algorithm 2 with v of Yogi; both moments start at 0, as Flower has it."""
    protocol = fake.make_protocol(**fake.STRATEGIES["fedyogi"])
    aggregator, weights = Aggregator(protocol), fake.initial_weights()
    terms, total = protocol.federation, sum(site.weight for site in protocol.federation.sites)
    first = second = {name: np.zeros_like(array, dtype=float) for name, array in weights.items()}
    for number in (1, 2, 3):
        sites = {site: fake.fit(weights, protocol, site.name, number) for site in terms.sites}
        delta = {n: sum(s.weight / total * u[n].astype(float) for s, u in sites.items()) - weights[n] for n in weights}
        first = {n: 0.9 * first[n] + 0.1 * delta[n] for n in weights}
        square = {n: delta[n] ** 2 for n in weights}
        second = {n: second[n] - 0.01 * square[n] * np.sign(second[n] - square[n]) for n in weights}
        step = terms.server_learning_rate
        expected = {n: weights[n] + step * first[n] / (np.sqrt(second[n]) + terms.server_tau) for n in weights}
        weights = one_round(aggregator, protocol, weights, number)
        for name in weights:
            assert np.allclose(weights[name], expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strategy", REMEMBER)
def test_state_goes_out_and_in_as_plain_arrays_to_the_bit(strategy: str) -> None:
    protocol = fake.make_protocol(**fake.STRATEGIES[strategy])
    aggregator, weights = Aggregator(protocol), fake.initial_weights()
    for number in (1, 2):
        weights = one_round(aggregator, protocol, weights, number)
    state = aggregator.state()
    assert set(state) == {f"{part}.{name}" for part in REMEMBER[strategy] for name in weights}
    other = Aggregator(protocol)
    other.load_state({name: array.copy() for name, array in reversed(state.items())})
    forgetful = Aggregator(protocol)
    expected = weights_sha256(one_round(aggregator, protocol, weights, 3))
    assert weights_sha256(one_round(other, protocol, weights, 3)) == expected
    assert weights_sha256(other.state()) == weights_sha256(aggregator.state())
    assert weights_sha256(one_round(forgetful, protocol, weights, 3)) != expected


@pytest.mark.parametrize("strategy", [name for name in fake.STRATEGIES if name not in REMEMBER])
def test_averaging_strategies_have_no_state(strategy: str) -> None:
    aggregator = Aggregator(protocol := fake.make_protocol(**fake.STRATEGIES[strategy]))
    one_round(aggregator, protocol, fake.initial_weights(), 1)
    assert aggregator.state() == {}
    aggregator.load_state({})


@pytest.mark.parametrize("strategy", fake.STRATEGIES)
@pytest.mark.parametrize("foreign", ["m_t", "momentum_vector", "c_i.ash", "c_i.elder", "eval"])
def test_state_of_another_strategy_is_refused(strategy: str, foreign: str) -> None:
    if foreign in REMEMBER.get(strategy, ()) and foreign != "m_t":
        return
    with pytest.raises(StorageError, match="another strategy"):
        Aggregator(fake.make_protocol(**fake.STRATEGIES[strategy])).load_state(
            {f"{foreign}.head.bias": np.zeros((), dtype=np.float32)}
        )


# --- robust strategies ---------------------------------------------------------------------------------------------


SIX = [{"name": name, "patients": 40, "weight": 1.0} for name in (*fake.SITES, "elder", "fir")]
SIX_SITES = {"federation__sites": SIX, "federation__sites_per_round": 6, "federation__quorum": 5}


@pytest.mark.parametrize("strategy", ["fedmedian", "trimmed_mean", "krum"])
def test_one_liar_does_not_carry_a_robust_model_away(strategy: str) -> None:
    """He may say anything; the average follows him, the robust ones stay among the honest."""
    changes = {**SIX_SITES, "federation__strategy": strategy, "federation__byzantine": 1}
    protocol = fake.make_protocol(**changes)
    aggregator, weights = Aggregator(protocol), fake.initial_weights()
    aggregator.compose(weights, ask(weights, 1), {"ash": 1})
    updates = {site["name"]: fake.fit(weights, protocol, str(site["name"]), 1) for site in SIX}
    honest = {name: np.stack([u[name] for s, u in updates.items() if s != "elder"]) for name in weights}
    updates["elder"] = {name: np.asarray(array + 1e3, dtype=np.float32) for name, array in weights.items()}
    result = aggregator.aggregate(1, updates)
    for name, array in result.items():
        assert (array >= honest[name].min(axis=0) - 1e-5).all() and (array <= honest[name].max(axis=0) + 1e-5).all()


def test_trimmed_mean_cuts_exactly_the_wanted_number_from_each_end() -> None:
    """Flower takes a share: int(0.1 x 4) would cut nobody, and int(n x (f / n)) may lose one to rounding."""
    for replies in range(3, 200):
        for byzantine in range(1, (replies - 1) // 2 + 1):
            share = trim_share(byzantine, replies)
            assert int(share * replies) == byzantine and share < 0.5


def test_krum_tells_updates_apart_whose_weights_are_large() -> None:
    """Squared distances of the weights themselves would be rounding: |w|^2 is 1e8 here, the distances some 1e-2."""
    protocol = fake.make_protocol(**SIX_SITES, federation__strategy="krum", federation__byzantine=1)
    random, base = np.random.default_rng(0), {"w": np.full(10_000, 100.0, dtype=np.float32)}
    steps = {str(site["name"]): 1e-2 * random.normal(size=10_000) for site in SIX}
    steps["cedar"] = np.mean([step for name, step in steps.items() if name != "cedar"], axis=0)  # the most central one
    updates = {name: {"w": (base["w"] + step).astype(np.float32)} for name, step in steps.items()}
    aggregator = Aggregator(protocol)
    aggregator.compose(base, ask(base, 1), {"ash": 1})
    assert np.allclose(aggregator.aggregate(1, updates)["w"], updates["cedar"]["w"], rtol=0, atol=1e-5)
    assert aggregator.taken == ("cedar",)  # and the journal says that the others were left out


def test_multi_krum_averages_the_most_central_ones() -> None:
    changes = {**SIX_SITES, "federation__strategy": "krum", "federation__byzantine": 1, "federation__krum_select": 2}
    protocol = fake.make_protocol(**changes)
    values = dict(zip([str(site["name"]) for site in SIX], (0.0, 1.0, 1.1, 1.3, 9.0, 2.5), strict=True))
    base, aggregator = {"w": np.zeros(3, dtype=np.float32)}, Aggregator(protocol)
    aggregator.compose(base, ask(base, 1), {"ash": 1})
    result = aggregator.aggregate(1, {n: {"w": np.full(3, v, dtype=np.float32)} for n, v in values.items()})
    assert np.allclose(result["w"], 1.05)
    assert [values[site] for site in aggregator.taken] == [1.0, 1.1]


@pytest.mark.parametrize(("changes", "words"), [
    ({"strategy": "fedmedian"}, "withstand nobody is an unweighted average"),
    ({"strategy": "trimmed_mean"}, "withstand nobody is an unweighted average"),
    ({"strategy": "trimmed_mean", "byzantine": 2}, "only with 5 or more replies, found a quorum of 3"),
    ({"strategy": "krum", "byzantine": 1}, "only with 5 or more replies, found a quorum of 3"),
    ({"strategy": "krum", "krum_select": 2}, "krum_select: only n - f - 2 updates.*expected at most 1"),
    ({"strategy": "fedavg", "byzantine": 1}, "fedavg withstands no lying site"),
    ({"strategy": "scaffold", "personal": "head"}, "federation.personal: scaffold takes the mean gradient"),
])  # fmt: skip
def test_a_promise_that_the_strategy_cannot_keep_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        fake.make_protocol(**{f"federation__{name}": value for name, value in changes.items()})


@pytest.mark.parametrize(("name", "value"), [
    ("optimizer", "adamw"), ("momentum", 0.9), ("ema_decay", 0.9), ("proximal_mu", 0.1),
])  # fmt: skip
def test_scaffold_is_refused_where_a_step_is_no_gradient(name: str, value: object) -> None:
    with pytest.raises(ProtocolError, match=rf"training\.{name}: scaffold takes the mean gradient"):
        fake.make_protocol(federation__strategy="scaffold", **{f"training__{name}": value})


def test_personal_tensors_go_with_no_weight_decay() -> None:
    with pytest.raises(ProtocolError, match=r"training\.weight_decay.*cannot bound an update"):
        fake.make_protocol(federation__personal="head", training__weight_decay=0.1)


def test_fedprox_without_its_term_is_refused() -> None:
    with pytest.raises(ProtocolError, match="fedprox needs a proximal term"):
        make_strategy(fake.make_protocol(federation__strategy="fedprox"))


def test_fedavgm_without_momentum_is_refused() -> None:
    with pytest.raises(ProtocolError, match="fedavgm needs a momentum"):
        make_strategy(fake.make_protocol(federation__strategy="fedavgm", federation__server_beta_1=0.0))


def test_nothing_to_aggregate_is_an_error() -> None:
    aggregator = Aggregator(fake.make_protocol())
    with pytest.raises(RoundError, match="nothing to aggregate"):
        aggregator.aggregate(1, {"ash": fake.initial_weights()})


def test_aggregate_that_overflows_is_an_error() -> None:
    protocol = fake.make_protocol(federation__strategy="fedadam", federation__server_learning_rate=1e300)
    with pytest.raises(RoundError, match="not finite"), np.errstate(over="ignore"):
        one_round(Aggregator(protocol), protocol, fake.initial_weights(), 1)


def test_the_view_of_sampled_sites_is_read_only() -> None:
    view = SampledView([3, 1])
    assert list(view.get_node_ids()) == [3, 1]
    for touch in (
        lambda: view.run, lambda: view.set_run(None), lambda: view.create_message(), lambda: view.push_messages([]),  # type: ignore[arg-type]
        lambda: view.pull_messages([]), lambda: view.send_and_receive([]),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match="read-only"):
            touch()


def test_flower_says_each_warning_once_and_nothing_below() -> None:
    logger, heard = logging.getLogger("flwr"), list[str]()
    logger.propagate = True
    root, own = logging.Handler(), logging.Handler()
    root.emit = own.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(root)
    logger.addHandler(own)
    try:
        quiet_flower()
        logger.info("configure_train: Sampled 4 nodes")
        logger.warning("once")
    finally:
        logging.getLogger().removeHandler(root)
        logger.removeHandler(own)
    assert heard == ["once"]


def test_the_coordinator_imports_no_torch() -> None:
    code = "import sys, server.app, server.rounds.loop; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
