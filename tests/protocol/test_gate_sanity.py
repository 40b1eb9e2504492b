"""The sanity gate: what it refuses, that plain Flower takes it, and that no honest update is refused."""

from __future__ import annotations

import math
import threading
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from hypothesis import given, settings
from hypothesis import strategies as st

from server.aggregation.gate import inspect, norm_bound, norm_bounds, norm_of_difference
from server.rounds.checkpoint import read_checkpoint
from server.rounds.loop import run_study
from shared_model.errors import ProtocolError
from tests import fake_grid as fake

POISON = {"nan": fake.with_nan, "x1000": fake.times_1000, "broadcastable": fake.broadcastable}
CODES = {"nan": "non_finite", "x1000": "norm", "broadcastable": "shape"}


def weights_after_one_round(folder: Path, poison: str | None) -> dict[str, np.ndarray]:
    """Global weights after round 1 with one site poisoned, through the whole loop."""
    protocol = fake.make_protocol()
    grid = fake.make_grid(protocol)
    if poison is not None:
        grid.party("cedar").faults[1] = fake.changed(POISON[poison])
    run_study(grid=grid, protocol=protocol, run_dir=folder, initial=fake.initial_weights(), observer=lambda _: None,
              stop=threading.Event())  # fmt: skip
    return dict(read_checkpoint(folder, 1, protocol_sha256=protocol.sha256).weights)


def plain_flower(poison: str) -> dict[str, np.ndarray]:
    """What Flower's own FedAvg makes of the same four replies."""
    protocol, start = fake.make_protocol(), fake.initial_weights()
    fake.FakeGrid([])  # gives Flower the identity that Message() wants
    request = Message(RecordDict(), 1, "train")
    replies = []
    for site in protocol.federation.sites:
        update = fake.fit(start, protocol, site.name, 1)
        if site.name == "cedar":
            update = POISON[poison](update)
        content = {"arrays": ArrayRecord({name: Array(np.asarray(a)) for name, a in update.items()}),
                   "metrics": MetricRecord({"num-examples": site.weight})}  # fmt: skip
        replies.append(Message(RecordDict(content), reply_to=request))
    # The poisoned one last, where the accumulator has the right shape already and numpy broadcasts.
    replies.sort(key=lambda reply: reply.content["arrays"]["encoder.weight"].shape != (5, 3))
    record, _ = FedAvg(min_available_nodes=1).aggregate_train(1, replies)
    assert record is not None
    return {name: array.numpy() for name, array in record.items()}


@pytest.mark.parametrize("poison", POISON)
def test_a_poisoned_update_does_not_move_the_model_and_plain_flower_lets_it(tmp_path: Path, poison: str) -> None:
    start = fake.initial_weights()
    clean = weights_after_one_round(tmp_path / "clean", None)
    guarded = weights_after_one_round(tmp_path / "guarded", poison)
    honest = norm_of_difference(clean, start)
    assert norm_of_difference(guarded, clean) < honest  # three sites instead of four, nothing else
    flower = plain_flower(poison)
    assert flower["encoder.weight"].shape == (5, 3)
    moved = norm_of_difference(flower, clean)
    if poison == "nan":
        assert math.isnan(moved)
    elif poison == "x1000":
        assert moved > 100 * honest
    else:  # accepted in silence: every row got the same values
        assert norm_of_difference(flower, guarded) > 0.05 * honest


@pytest.mark.parametrize("poison", POISON)
def test_rejections_have_codes(poison: str) -> None:
    protocol, start = fake.make_protocol(), fake.initial_weights()
    update = fake.fit(start, protocol, "cedar", 1)
    bound = norm_bound(protocol, 1, start, site="cedar")
    assert inspect(update, start, norm_bound=bound) is None
    rejection = inspect(POISON[poison](update), start, norm_bound=bound)
    assert rejection is not None and rejection.code == CODES[poison]


def test_infinity_and_overflowing_values_are_refused_without_warnings() -> None:
    start = fake.initial_weights()
    for value, code in ((np.inf, "non_finite"), (3e38, "norm")):
        update = {**start, "head.weight": np.full(3, value, dtype=np.float32)}
        with np.errstate(all="raise"):
            rejection = inspect(update, start, norm_bound=1.0)
        assert rejection is not None and rejection.code == code


def test_a_round_in_which_all_sites_fail_is_no_success_and_plain_flower_says_it_is(tmp_path: Path) -> None:
    protocol = fake.make_protocol()
    grid = fake.make_grid(protocol)
    for name in fake.SITES:
        for number in range(1, protocol.rounds + 1):
            grid.party(name).faults[number] = fake.lost
    outcome = run_study(grid=grid, protocol=protocol, run_dir=tmp_path, initial=fake.initial_weights(),
                        observer=lambda _: None, stop=threading.Event())  # fmt: skip
    assert outcome.status == "INCOMPLETE" and outcome.rounds_completed == 0

    class AllFail(fake.FakeGrid):
        def _deliver(self, message: Message) -> Message:
            return Message(Error(5, "node unavailable"), reply_to=message)

    strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=1)
    start = ArrayRecord({name: Array(array) for name, array in fake.initial_weights().items()})
    result = strategy.start(grid=AllFail(grid.parties.values()), initial_arrays=start, num_rounds=3)
    assert dict(result.arrays) == {} and result.train_metrics_clientapp == {}  # it came to an end, with no model at all


OPTIMISERS = st.fixed_dictionaries(
    {
        "momentum": st.sampled_from([0.0, 0.5, 0.9]), "rate": st.floats(1e-3, 1.0), "steps": st.integers(1, 12),
        "decay": st.sampled_from([0.0, 0.01, 0.2]), "encoder_rate": st.sampled_from([0.1, 1.0, 3.0]),
        "seed": st.integers(0, 1 << 20),
    }
)  # fmt: skip


def protocol_with(values: dict[str, float], **changes: object) -> fake.Protocol:
    phase = {"name": "all", "rounds": 1, "objective": "fusion", "learning_rate": values["rate"],
             "encoder_rate": values["encoder_rate"]}  # fmt: skip
    return fake.make_protocol(
        training__momentum=values["momentum"], training__steps_per_round=values["steps"],
        training__weight_decay=values["decay"], training__phases=[phase], **changes,
    )  # fmt: skip


def walk(start: np.ndarray, values: dict[str, float], gradients: list[np.ndarray]) -> np.ndarray:
    """SGD with momentum as torch.optim.SGD has it, weight decay after the noise, greatest step size everywhere."""
    weights, velocity = start.astype(np.float64), np.zeros(start.size)
    rate = values["rate"] * max(1.0, values["encoder_rate"])
    for gradient in gradients:
        velocity = values["momentum"] * velocity + gradient
        weights = weights - rate * velocity - rate * values["decay"] * weights
    return weights


def as_update(flat: np.ndarray) -> dict[str, np.ndarray]:
    return {"w": flat.astype(np.float32)}


@given(values=OPTIMISERS, clip=st.floats(0.01, 10.0))
@settings(max_examples=60)
def test_no_honest_sgd_update_is_refused_even_when_every_gradient_is_clipped_and_points_one_way(
    values: dict[str, float], clip: float
) -> None:
    protocol = protocol_with(values, training__gradient_clip=clip)
    random = np.random.default_rng(int(values["seed"]))
    start, direction = random.normal(size=500), random.normal(size=500)
    gradients = [clip * direction / np.linalg.norm(direction)] * int(values["steps"])
    update = as_update(walk(start, values, gradients))
    bound = norm_bound(protocol, 1, as_update(start), site="ash")
    assert inspect(update, as_update(start), norm_bound=bound) is None


@given(values=OPTIMISERS, clip=st.floats(0.01, 10.0), sigma=st.floats(0.3, 20.0), patients=st.integers(10, 400),
       rate=st.floats(0.01, 1.0))  # fmt: skip
@settings(max_examples=60)
def test_no_honest_private_update_is_refused(
    values: dict[str, float], clip: float, sigma: float, patients: int, rate: float
) -> None:
    sites = [{"name": "ash", "patients": patients, "weight": 1.0}]
    federation = {"federation__sites": sites, "federation__sites_per_round": 1, "federation__quorum": 1}
    protocol = protocol_with(
        values, **{**fake.PRIVATE, "privacy__noise_multiplier": sigma}, privacy__clip=clip, training__sample_rate=rate,
        **federation,
    )  # fmt: skip
    random = np.random.default_rng(int(values["seed"]))
    start, direction = random.normal(size=500), random.normal(size=500)
    direction /= np.linalg.norm(direction)
    gradients = []
    for _ in range(int(values["steps"])):
        drawn = random.binomial(int(patients * 1.4), rate)  # more patients than the rounded size says
        noise = sigma * clip * random.normal(size=500)
        gradients.append((drawn * clip * direction + noise) / protocol.expected_batch("ash", 1))
    update = as_update(walk(start, values, gradients))
    bound = norm_bound(protocol, 1, as_update(start), site="ash")
    assert inspect(update, as_update(start), norm_bound=bound) is None


@given(rate=st.floats(1e-4, 0.1), steps=st.integers(1, 60), seed=st.integers(0, 1 << 20),
       scale=st.sampled_from([1e-6, 1.0, 1e6]), quiet=st.integers(0, 30))  # fmt: skip
@settings(max_examples=60)
def test_no_honest_adamw_update_is_refused(rate: float, steps: int, seed: int, scale: float, quiet: int) -> None:
    """Adam from zero moments (Kingma and Ba 2015, algorithm 1), gradients that all agree, after a quiet stretch."""
    values = {"momentum": 0.0, "rate": rate, "steps": steps, "decay": 0.0, "encoder_rate": 1.0}
    protocol = protocol_with(values, training__optimizer="adamw")
    random = np.random.default_rng(seed)
    start, direction = random.normal(size=300), random.normal(size=300) * scale
    weights, first, second = start.copy(), np.zeros(300), np.zeros(300)
    for step in range(1, steps + 1):
        gradient = direction * (1e-3 if step <= quiet else 1.0)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        weights -= rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    bound = norm_bound(protocol, 1, as_update(start), site="ash")
    assert inspect(as_update(weights), as_update(start), norm_bound=bound) is None


def test_the_bound_is_not_loose_under_privacy() -> None:
    """With the noise of a usual study the norm is within a factor of three of the bound; times 1000 is far off."""
    sites = [{"name": "ash", "patients": 200, "weight": 1.0}]
    protocol = fake.make_protocol(
        **fake.PRIVATE, federation__sites=sites, federation__sites_per_round=1, federation__quorum=1,
        training__sample_rate=0.25,
    )  # fmt: skip
    random = np.random.default_rng(0)
    start = random.normal(size=100_000)
    batch, steps = protocol.expected_batch("ash", 1), protocol.training.steps_per_round
    noise = [random.normal(size=start.size) / batch for _ in range(steps)]
    values = {"momentum": 0.0, "rate": 1.0, "decay": 0.0, "encoder_rate": 1.0}
    update = as_update(walk(start, values, noise))
    bound = norm_bound(protocol, 1, as_update(start), site="ash")
    assert norm_of_difference(update, as_update(start)) < bound < 3 * norm_of_difference(update, as_update(start))


def test_a_protocol_that_bounds_nothing_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    protocol = fake.make_protocol(training__gradient_clip=0.0)
    grid = fake.make_grid(protocol)
    with pytest.raises(ProtocolError, match=r"training\.gradient_clip"):
        run_study(grid=grid, protocol=protocol, run_dir=tmp_path, initial=fake.initial_weights(),
                  observer=lambda _: None, stop=threading.Event())  # fmt: skip
    assert grid.timeouts == []


@pytest.mark.parametrize(("used", "told", "passes"), [
    (3.0, 3.0, True), (3.0, None, False), (4.0, 4.0, True), (8.0, 8.0, False), (8.0, 1e12, False),
])  # fmt: skip
def test_a_site_whose_policy_adds_noise_passes_and_nobody_buys_a_bound(
    used: float, told: float | None, passes: bool
) -> None:
    """The protocol says sigma 1; an honest update of the site's own sigma is judged by what the site tells of it."""
    start = fake.initial_weights()
    protocol = fake.make_protocol(privacy__mode="patient", privacy__noise_multiplier=1.0, training__engine="loop",
                                  training__sample_rate=0.01)  # fmt: skip
    terms = protocol.privacy.model_copy(update={"noise_multiplier": used})
    honest = norm_bound(protocol.model_copy(update={"privacy": terms}), 1, start, site="cedar")
    size = sum(array.size for array in start.values())
    update = {name: array + np.float32(0.999 * honest / math.sqrt(size)) for name, array in start.items()}
    bounds = norm_bounds(protocol, 1, start, noise={} if told is None else {"cedar": told})
    assert (inspect(update, start, norm_bound=bounds["cedar"]) is None) == passes
    assert bounds["birch"] == norm_bound(protocol, 1, start, site="birch"), "what one tells is no other's"
