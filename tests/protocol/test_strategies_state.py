"""Flower's strategies as aggregators: sampling stays ours, their state is plain arrays, their results float32."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from server.aggregation.flower import quiet_flower
from server.aggregation.strategies import Aggregator, SampledView, make_strategy
from shared_model.errors import ProtocolError, RoundError, StorageError
from shared_model.messages import TrainRequest, weights_sha256
from tests import fake_grid as fake


@pytest.fixture(autouse=True)
def identity() -> None:
    fake.FakeGrid([])


def ask(weights: fake.Weights, round_number: int) -> TrainRequest:
    return TrainRequest(study="fake", protocol_sha256="ab" * 32, round=round_number, attempt=1,
                        weights_sha256=weights_sha256(weights))  # fmt: skip


def one_round(aggregator: Aggregator, protocol: fake.Protocol, weights: fake.Weights, number: int) -> fake.Weights:
    aggregator.compose(weights, ask(weights, number), [11, 12])
    updates = {site.name: fake.fit(weights, protocol, site.name, number) for site in protocol.federation.sites}
    return aggregator.aggregate(number, updates)


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "fedadam"])
def test_exactly_the_chosen_nodes_are_asked_with_one_content(strategy: str) -> None:
    protocol = fake.make_protocol(federation__strategy=strategy, training__proximal_mu=0.1)
    weights = fake.initial_weights()
    messages = Aggregator(protocol).compose(weights, ask(weights, 3), [205, 17, 4])
    assert sorted(message.metadata.dst_node_id for message in messages) == [4, 17, 205]
    for message in messages:
        assert message.metadata.message_type == "train" and message.metadata.group_id == "3"
        assert TrainRequest.model_validate_json(str(message.content["message"]["json"])) == ask(weights, 3)
        assert set(message.content["arrays"]) == set(weights)
        assert message.content["arrays"]["head.bias"].shape == ()  # a scalar stays one


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "fedadam"])
def test_result_is_float32_and_does_not_depend_on_the_order_of_updates(strategy: str) -> None:
    protocol = fake.make_protocol(federation__strategy=strategy, training__proximal_mu=0.1)
    weights, results = fake.initial_weights(), []
    for names in (fake.SITES, fake.SITES[::-1]):
        aggregator = Aggregator(protocol)
        aggregator.compose(weights, ask(weights, 1), [1])
        results.append(aggregator.aggregate(1, {name: fake.fit(weights, protocol, name, 1) for name in names}))
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


def test_state_goes_out_and_in_as_plain_arrays_to_the_bit() -> None:
    protocol = fake.make_protocol(federation__strategy="fedadam")
    aggregator, weights = Aggregator(protocol), fake.initial_weights()
    for number in (1, 2):
        weights = one_round(aggregator, protocol, weights, number)
    state = aggregator.state()
    assert set(state) == {f"{moment}.{name}" for moment in ("m_t", "v_t") for name in weights}
    other = Aggregator(protocol)
    other.load_state({name: array.copy() for name, array in state.items()})
    forgetful = Aggregator(protocol)
    expected = weights_sha256(one_round(aggregator, protocol, weights, 3))
    assert weights_sha256(one_round(other, protocol, weights, 3)) == expected
    assert weights_sha256(one_round(forgetful, protocol, weights, 3)) != expected


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox"])
def test_averaging_strategies_have_no_state_and_take_none(strategy: str) -> None:
    protocol = fake.make_protocol(federation__strategy=strategy, training__proximal_mu=0.1)
    aggregator = Aggregator(protocol)
    one_round(aggregator, protocol, fake.initial_weights(), 1)
    assert aggregator.state() == {}
    aggregator.load_state({})
    with pytest.raises(StorageError, match="another strategy"):
        aggregator.load_state({"m_t.head.bias": np.zeros((), dtype=np.float32)})


def test_fedprox_without_its_term_is_refused() -> None:
    with pytest.raises(ProtocolError, match="fedprox needs a proximal term"):
        make_strategy(fake.make_protocol(federation__strategy="fedprox"))


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
