"""From the composed configuration to a frozen protocol, its initial weights and its calibrated noise."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from shared_model.errors import ConfigError
from shared_model.protocol import Protocol

Config = dict[str, Any]  # the resolved Hydra tree as plain values


def phases(config: Config) -> list[dict[str, Any]]:
    """Phases with whole rounds: shares of `rounds`, each phase at least one round, the last takes the rest.

    Raises:
        ConfigError: fewer rounds than phases, or shares that do not add up to 1.
    """
    rounds, parts = int(config["rounds"]), config["training"]["phases"]
    if rounds < len(parts):
        raise ConfigError("rounds: too few for the phases", found=rounds, expected=f"at least {len(parts)}")
    total = sum(float(p["share"]) for p in parts)
    if abs(total - 1.0) > 1e-6:
        raise ConfigError("training.phases: the shares must add up to 1", found=total)
    result, used = [], 0
    for index, part in enumerate(parts):
        left = len(parts) - 1 - index
        count = rounds - used if left == 0 else min(max(1, round(rounds * float(part["share"]))), rounds - used - left)
        used += count
        result.append({**{k: v for k, v in part.items() if k != "share"}, "rounds": count})
    return result


def rounded(patients: int, to: int) -> int:
    """Public size of a site: rounded to the nearest multiple of `to`, at least `to`."""
    return max(to, round(patients / to) * to)


def default_quorum(sites: int) -> int:
    """All but one of up to ten sites asked, nine in ten of more: of a hundred, more than one is away on any day."""
    return max(1, min(sites - 1, math.ceil(0.9 * sites)))


def total_steps(config: Config) -> int:
    """Optimiser steps T of a site over the whole study, if it takes part in every round."""
    return int(config["rounds"]) * int(config["training"]["steps_per_round"])


def noise_multiplier(config: Config) -> float:
    """Sigma of the study: as configured, or the least that keeps epsilon over all planned steps (PRV)."""
    privacy = config["privacy"]
    if privacy["mode"] == "none":
        return 0.0
    if privacy["noise_multiplier"] is not None:
        return float(privacy["noise_multiplier"])
    from client.privacy.calibration import noise_multiplier_for

    return noise_multiplier_for(
        epsilon=float(privacy["epsilon"]), delta=float(privacy["delta"]),
        sample_rate=float(config["training"]["sample_rate"]), steps=total_steps(config),
    )  # fmt: skip


def write_initial_weights(config: Config, *, n_features: int, destination: Path) -> dict[str, str]:
    """Build the model, load the public image path if asked for, write it as safetensors.

    Imports torch: called in a process of its own, so that the launcher stays small.

    Returns:
        the values of the protocol's `initial_weights`.
    """
    from safetensors.numpy import save_file

    from shared_model.fusion import FusionConfig, arrays_of, build_model, load_public_weights
    from shared_model.messages import weights_sha256

    model = build_model(
        FusionConfig(
            size=config["model"]["size"], fusion=config["fusion"]["kind"], n_clinical=n_features,
            height=config["model"]["height"], width=config["model"]["width"],
        ),
        seed=int(config["seed"]), prevalence=float(config["loss"]["prevalence"]),
    )  # fmt: skip
    recipe = f"random initialisation, seed {config['seed']}"
    if config["weights"] == "public":
        info = load_public_weights(model, config["model"]["size"])
        recipe = f"public {info.size} {info.sha256[:16]}: {info.recipe}"[:200]
    elif config["weights"] != "random":
        raise ConfigError("weights: unknown choice", found=config["weights"], expected="public or random")
    arrays = arrays_of(model)
    save_file(arrays, destination)
    return {"sha256": weights_sha256(arrays), "origin": config["weights"], "recipe": recipe}


def calibrate_and_initialise(config: Config, n_features: int, destination: Path) -> tuple[float, dict[str, str]]:
    """Both things that need torch before the trainers start, for one child process."""
    return noise_multiplier(config), write_initial_weights(config, n_features=n_features, destination=destination)


def build_protocol(
    config: Config,
    *,
    patients: Mapping[str, int],
    sigma: float,
    initial_weights: Mapping[str, str],
    contract: Mapping[str, object],
    pipeline: Mapping[str, object],
) -> Protocol:
    """Freeze the study.

    Args:
        patients: training patients of each site; they are rounded here, and only the rounded numbers go on.
    """
    strategy, training, privacy = config["strategy"], config["training"], config["privacy"]
    to = int(config["cohort"]["round_patients_to"])
    sizes = {name: rounded(count, to) for name, count in sorted(patients.items())}
    total = sum(sizes.values())
    sites_per_round = strategy["sites_per_round"] or len(sizes)
    return Protocol.create(
        {
            "study": config["name"],
            "release": version("mammofed"),
            "seed": config["seed"],
            "contract": dict(contract),
            "pipeline": dict(pipeline),
            "model": {"size": config["model"]["size"], "fusion": config["fusion"]["kind"]},
            "initial_weights": dict(initial_weights),
            "loss": config["loss"],
            "training": {
                **{k: v for k, v in training.items() if k != "phases"},
                "proximal_mu": strategy["proximal_mu"],
                "phases": phases(config),
                "augmentation": config["augmentation"],
            },
            "privacy": {**privacy, "noise_multiplier": sigma},
            "federation": {
                "strategy": strategy["kind"],
                "server_learning_rate": strategy["server_learning_rate"],
                "server_beta_1": strategy["server_beta_1"],
                "server_beta_2": strategy["server_beta_2"],
                "server_tau": strategy["server_tau"],
                "sites": [{"name": n, "patients": s, "weight": s / total} for n, s in sizes.items()],
                "sites_per_round": sites_per_round,
                "quorum": strategy["quorum"] or default_quorum(sites_per_round),
                "deadline_s": strategy["deadline_s"],
                "attempts": strategy["attempts"],
            },
            "evaluation": config["evaluation"],
        }
    )


def importer_key(seed: int, site: str) -> bytes:
    """Pseudonymisation key of a *simulated* importer: derived from the seed, so that a study can be made again.

    A real importer draws its key from the operating system and keeps it.
    """
    return hashlib.sha256(f"simulated importer key {seed} {site}".encode()).digest()
