"""The way from the composed configuration to a frozen protocol: rounding, phases, noise, refusals."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any, get_args

import pytest
from hydra import compose, initialize_config_module
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from shared_model.errors import ConfigError, ProtocolError
from shared_model.protocol import Protocol
from shared_model.strategies import Personal, Strategy
from simulations.plan import build_protocol, noise_multipliers, phases, rounded
from simulations.strategy import check_strategy, default_quorum

CONFIGS = Path(__file__).parents[2] / "configs"
SHA = "0" * 64


@functools.cache
def composed(*overrides: str) -> DictConfig:
    with initialize_config_module(config_module="configs", version_base="1.3"):
        return compose("config", overrides=[*overrides, "name=quick"])


def configuration(*overrides: str) -> dict[str, Any]:
    values = OmegaConf.to_container(composed(*overrides), resolve=True)
    assert isinstance(values, dict)
    return {str(k): v for k, v in values.items()}


def protocol(*overrides: str, sigma: float = 2.0, sites: int = 2) -> Protocol:
    config = configuration(*overrides)
    return build_protocol(
        config,
        patients={"site_b": 104, "site_a": 296, **{f"site_{i}": 100 for i in range(sites - 2)}},
        sigmas=(0.0 if config["privacy"]["mode"] == "none" else sigma,) * len(config["training"]["phases"]),
        initial_weights={"sha256": SHA, "origin": "public", "recipe": "test"},
        contract={"version": "1", "sha256": SHA, "n_features": 40},
        pipeline={"sha256": SHA, "height": 112, "width": 84, "spacing_mm": 1.75},
    )


def test_sites_are_in_name_order_with_rounded_sizes_and_public_weights() -> None:
    sites = protocol().federation.sites
    assert [(s.name, s.patients) for s in sites] == [("site_a", 300), ("site_b", 100)]
    assert [s.weight for s in sites] == [0.75, 0.25]


def test_expected_batch_is_the_sampling_rate_times_the_public_size() -> None:
    frozen = protocol("training.sample_rate=0.25")
    assert frozen.expected_batch("site_a", 1) == 75.0
    with pytest.raises(ProtocolError, match="not part of the study"):
        frozen.expected_batch("site_z", 1)


STRATEGIES = ("fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedmedian", "trimmed_mean", "krum", "scaffold")


COMBINATIONS = [(s, p, "quick") for s in STRATEGIES for p in ("patient", "none")] + [("fedavg", "patient", "smoke")]


@pytest.mark.parametrize("strategy,privacy,study", COMBINATIONS)
def test_every_combination_of_groups_is_a_valid_protocol(strategy: str, privacy: str, study: str) -> None:
    frozen = protocol(f"strategy={strategy}", f"privacy={privacy}", f"study={study}", sites=5)
    assert (frozen.private, frozen.federation.strategy) == (privacy == "patient", strategy)
    assert Protocol.from_json(frozen.to_json()) == frozen


def test_the_groups_are_all_strategies_and_personalisations_that_a_protocol_knows() -> None:
    files = {group: {path.stem for path in (CONFIGS / group).glob("*.yaml")} for group in ("strategy", "personal")}
    assert files == {"strategy": set(get_args(Strategy)), "personal": set(get_args(Personal))}
    assert files["strategy"] == set(STRATEGIES)


@pytest.mark.parametrize("personal", get_args(Personal))
def test_what_stays_at_the_sites_is_part_of_the_protocol(personal: str) -> None:
    frozen = protocol(f"personal={personal}")
    assert frozen.federation.personal == personal
    assert (frozen.sha256 == protocol().sha256) == (personal == "none")


def test_scaffold_takes_sgd_in_place_of_adamw_and_leaves_a_recipe_that_has_it() -> None:
    adamw, sgd = protocol("privacy=none").training, protocol("privacy=none", "strategy=scaffold").training
    assert (adamw.optimizer, sgd.optimizer, sgd.momentum) == ("adamw", "sgd", 0.0)
    assert [p.learning_rate for p in sgd.phases] == [p.learning_rate * 50 for p in adamw.phases]
    assert protocol("strategy=scaffold").training == protocol().training


@pytest.mark.parametrize("overrides,least", [
    (["strategy=fedavg"], 4), (["strategy=krum"], 5), (["strategy=krum", "strategy.byzantine=0"], 4),
    (["strategy=trimmed_mean", "strategy.byzantine=2"], 5), (["strategy=trimmed_mean", "strategy.quorum=3"], 3),
    (["strategy=fedavg", "strategy.sites_per_round=2"], 1),
])  # fmt: skip
def test_the_quorum_is_what_the_strategys_promise_needs(overrides: list[str], least: int) -> None:
    assert protocol(*overrides, sites=5).federation.quorum == least


@pytest.mark.parametrize("overrides,words", [
    (["strategy=krum"], "strategy.quorum: krum withstands 1 lying sites only with 5 or more"),
    (["strategy=scaffold", "personal=head"], "federation.personal: scaffold"),
    (["strategy=scaffold", "training.momentum=0.5"], "training.momentum: scaffold"),
])  # fmt: skip
def test_what_a_strategy_cannot_do_is_said_before_any_film_is_made(overrides: list[str], words: str) -> None:
    check_strategy(configuration())
    with pytest.raises(ConfigError, match=words):
        check_strategy(configuration(*overrides))


@given(rounds=st.integers(2, 200))
@settings(max_examples=40)
def test_phases_fill_exactly_the_rounds(rounds: int) -> None:
    parts = [{"name": "a", "share": 0.4}, {"name": "b", "share": 0.6}]
    config = {"rounds": rounds, "training": {"scope": None, "phases": parts}}
    parts = phases(config)
    assert sum(p["rounds"] for p in parts) == rounds
    assert all(p["rounds"] >= 1 for p in parts)


@pytest.mark.parametrize(("scope", "learns"), [("adapters", True), ("all", True), ("features", False)])
def test_a_scope_that_trains_the_encoder_has_rates_for_it_in_the_private_recipe_too(scope: str, learns: bool) -> None:
    """The private recipe freezes the view encoder by a rate of 0: a scope alone would train nothing of it, silently."""
    (before,), (found,) = (phases(configuration("privacy=patient", *more)) for more in ([], [f"training={scope}"]))
    assert before["encoder_rate"] == 0 and found["scope"] == scope
    assert (found["encoder_rate"] > 0) == learns and (found["learning_rate"] < before["learning_rate"]) == learns
    plain = phases(configuration("privacy=none", f"training={scope}"))
    rates = [(part["learning_rate"], part["encoder_rate"]) for part in phases(configuration("privacy=none"))]
    assert [(part["learning_rate"], part["encoder_rate"]) for part in plain] == rates


def test_too_few_rounds_and_wrong_shares_are_refused() -> None:
    parts = [{"name": "a", "share": 0.5}, {"name": "b", "share": 0.5}]
    with pytest.raises(ConfigError, match="too few"):
        phases({"rounds": 1, "training": {"phases": parts}})
    parts[0]["share"] = 0.6
    with pytest.raises(ConfigError, match="add up"):
        phases({"rounds": 4, "training": {"phases": parts}})


@given(n=st.integers(0, 10_000), to=st.integers(1, 100))
def test_public_sizes_are_multiples_and_never_zero(n: int, to: int) -> None:
    assert rounded(n, to) % to == 0
    assert rounded(n, to) >= to
    assert abs(rounded(n, to) - n) <= max(to / 2, to - n)


@pytest.mark.parametrize("sites,quorum", [(1, 1), (2, 1), (4, 3), (10, 9), (11, 10), (20, 18), (100, 90)])
def test_few_sites_may_miss_one_and_many_a_tenth(sites: int, quorum: int) -> None:
    assert default_quorum(sites) == quorum


def test_noise_is_calibrated_to_the_budget_over_all_planned_steps() -> None:
    from client.privacy.accountant import Account

    config = configuration()
    (sigma,) = noise_multipliers(config)
    steps, rate = config["rounds"] * config["training"]["steps_per_round"], config["training"]["sample_rate"]
    spent = Account.from_lists([[sigma, rate, steps]]).epsilon(delta=config["privacy"]["delta"])
    assert 0.97 * config["privacy"]["epsilon"] < spent <= config["privacy"]["epsilon"]


def test_a_stated_noise_multiplier_is_taken_as_it_is_and_none_without_privacy() -> None:
    assert noise_multipliers(configuration("privacy.noise_multiplier=3.5")) == (3.5,)
    assert noise_multipliers(configuration("privacy=none")) == (0.0, 0.0)


@pytest.mark.parametrize("overrides,words", [
    (["training.oversampling=positives"], "oversampling"),
    (["training.oversampling=smote"], "oversampling"),
    (["training.engine=batch"], "mixes patients"),
    (["strategy.quorum=9"], "quorum"),
    (["evaluation.specificity=2"], "evaluation.specificity"),
    (["+training.learning_rate_encoder=1"], "learning_rate_encoder"),
])  # fmt: skip
def test_what_would_break_the_promise_or_is_unknown_is_refused_by_name(overrides: list[str], words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        protocol(*overrides)


def test_a_changed_protocol_file_is_found() -> None:
    envelope = json.loads(protocol().to_json())
    envelope["protocol"]["privacy"]["noise_multiplier"] = 0.01
    with pytest.raises(ProtocolError, match="changed after it was frozen"):
        Protocol.from_json(json.dumps(envelope))


@pytest.mark.parametrize("data", [b"", b"[]", b"{" * 5000, b"null", b'{"protocol": 1, "sha256": 2}', b"\xff\xfe"])
def test_garbage_is_refused_in_words(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        Protocol.from_json(data)


def test_the_learning_rate_decays_within_the_study() -> None:
    frozen = protocol("training.decay=sqrt")
    rates = [frozen.learning_rate(r) for r in range(1, frozen.rounds + 1)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == frozen.training.phases[0].learning_rate
    assert rates[-1] > 0


def test_frozen_means_frozen() -> None:
    with pytest.raises((dataclasses.FrozenInstanceError, ValueError)):
        protocol().seed = 3  # type: ignore[misc]
