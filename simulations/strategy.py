"""What the configuration groups `strategy` and `personal` become in a protocol; used by `plan` and `launch`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from shared_model.errors import ConfigError
from shared_model.strategies import (
    LEAST_SUM_SITES,
    least_replies,
    robustness_fault,
    scaffold_fault,
    secure_sum_fault,
)

Config = Mapping[str, Any]  # the resolved Hydra tree as plain values


def suited_training(config: Config) -> dict[str, Any]:
    """The recipe `training` as the strategy's sites can run it.

    A strategy that names a `client_optimizer` replaces another one by it: with `client_momentum`, and with every
    phase's learning rate times `client_rate_factor`, since a rate of AdamW means nothing to SGD. A recipe that has the
    wanted optimiser already (the private ones do) stays as it is.
    """
    training, strategy = dict(config["training"]), config["strategy"]
    wanted = strategy.get("client_optimizer")
    if wanted is None or training["optimizer"] == wanted:
        return training
    factor = float(strategy["client_rate_factor"])
    phases = [{**phase, "learning_rate": float(phase["learning_rate"]) * factor} for phase in training["phases"]]
    return {**training, "optimizer": wanted, "momentum": float(strategy["client_momentum"]), "phases": phases}


def default_quorum(sites: int) -> int:
    """All but one of up to ten sites asked, nine in ten of more: of a hundred, more than one is away on any day."""
    return max(1, min(sites - 1, math.ceil(0.9 * sites)))


def quorum(config: Config, sites: int) -> int:
    """Fewest replies of a round: as configured, or :func:`default_quorum`, or as many as the strategy's promise
    needs (a robust one that must withstand f sites), as far as there are sites."""
    strategy = config["strategy"]
    if strategy["quorum"]:
        return int(strategy["quorum"])
    sampled = int(strategy["sites_per_round"] or sites)
    needed = least_replies(strategy["kind"], int(strategy.get("byzantine", 0)))
    if config["secure_sum"]["kind"] == "masked":
        needed = max(needed, LEAST_SUM_SITES)
    return min(sampled, max(default_quorum(sampled), needed))


def federation(config: Config, sites: Mapping[str, int]) -> dict[str, Any]:
    """The protocol's `federation`. sites: rounded number of training patients by name."""
    strategy, total = config["strategy"], sum(sites.values())
    robust = {key: strategy[key] for key in ("byzantine", "krum_select") if key in strategy}
    return {
        "strategy": strategy["kind"],
        "server_learning_rate": strategy["server_learning_rate"],
        "server_beta_1": strategy["server_beta_1"],
        "server_beta_2": strategy["server_beta_2"],
        "server_tau": strategy["server_tau"],
        **robust,
        "personal": config["personal"]["kind"],
        "secure_sum": config["secure_sum"]["kind"],
        "sites": [{"name": name, "patients": size, "weight": size / total} for name, size in sites.items()],
        "sites_per_round": strategy["sites_per_round"] or len(sites),
        "quorum": quorum(config, len(sites)),
        "deadline_s": strategy["deadline_s"],
        "attempts": strategy["attempts"],
    }


def check_strategy(config: Config) -> None:
    """Say before any film is made what the protocol would refuse after all are.

    Raises:
        ConfigError: the strategy cannot keep its promise with these sites, or does not go with the recipe.
    """
    strategy = config["strategy"]
    fault = robustness_fault(
        strategy["kind"], byzantine=int(strategy.get("byzantine", 0)), krum_select=int(strategy.get("krum_select", 1)),
        quorum=quorum(config, int(config["sites"])),
    )  # fmt: skip
    if fault:
        raise ConfigError(f"strategy.{fault}")
    if config["secure_sum"]["kind"] == "masked":
        sites = int(config["sites"])
        fault = secure_sum_fault(
            strategy["kind"], weights=[1.0] * sites, quorum=quorum(config, sites),
            sites_per_round=int(strategy["sites_per_round"] or sites),
        )  # fmt: skip
        if fault:
            raise ConfigError(fault)
    if strategy["kind"] == "scaffold":
        training = suited_training(config)
        fault = scaffold_fault(
            optimizer=training["optimizer"], momentum=training["momentum"], ema_decay=training["ema_decay"],
            proximal_mu=strategy["proximal_mu"], personal=config["personal"]["kind"],
        )  # fmt: skip
        if fault:
            raise ConfigError(fault)
