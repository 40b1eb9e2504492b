"""From the composed configuration to a frozen protocol, its initial weights and its calibrated noise."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from shared_model.errors import ConfigError
from shared_model.imaging import PipelineConfig
from shared_model.protocol import BUILT_IN, Protocol
from simulations.released import is_released, read_released, replacement_of, spent_before
from simulations.strategy import federation, suited_training

Config = dict[str, Any]  # the resolved Hydra tree as plain values
NOT_TRAINING = ("phases", "scope", "encoder")  # of `training`: they go into the phases
NOT_TERMS = ("share", "epsilon_share")  # of a configured phase: they become whole rounds and a noise factor


def pipeline_of(config: Config) -> PipelineConfig:
    """The imaging pipeline that a study's films are prepared by."""
    imaging = config["imaging"]
    return PipelineConfig(**{**imaging, "percentiles": tuple(imaging["percentiles"])})


def phases(config: Config) -> list[dict[str, Any]]:
    """The protocol's phases, without their noise: shares of `rounds` as whole rounds, at least one a phase, the last
    phase takes the rest. `training.scope` stands for every phase's own where it is set; then a phase that left the view
    encoder as it was (`encoder_rate` 0) takes the rates of `training.encoder`, where the scope has them.

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
        terms = {k: v for k, v in part.items() if k not in NOT_TERMS}
        chosen = config["training"]["scope"]
        if chosen and not float(part.get("encoder_rate", 1.0)):
            terms |= config["training"].get("encoder") or {}
        result.append({**terms, "rounds": count, "scope": chosen or part.get("scope", "all")})
    return result


def rounded(patients: int, to: int) -> int:
    """Public size of a site: rounded to the nearest multiple of `to`, at least `to`."""
    return max(to, round(patients / to) * to)


def noise_multipliers(
    config: Config, *, releases: int = 1, asked: Callable[[], None] = lambda: None
) -> tuple[float, ...]:
    """Sigma of each phase: as configured, or the least that keep epsilon over all planned steps (PRV); zeros without
    privacy. From a released model, epsilon bounds its study and this one together: what that one spent is taken off
    (basic composition; the hospitals' ledgers compose more tightly).

    Args:
        releases: trainings like this one that a patient takes part in; epsilon bounds all of them together.
        asked: called before each question to the accountant, which takes up to a second.

    Raises:
        ConfigError: nothing is left.
    """
    privacy, parts = config["privacy"], config["training"]["phases"]
    if privacy["mode"] == "none":
        return (0.0,) * len(parts)
    if privacy["noise_multiplier"] is not None:
        return (float(privacy["noise_multiplier"]),) * len(parts)
    from client.privacy.calibration import Spending, noise_multipliers_for

    spendings = [
        Spending(
            share=float(part.get("epsilon_share", 1.0)),
            sample_rate=float(phase.get("sample_rate") or config["training"]["sample_rate"]),
            steps=releases * phase["rounds"]
            * int(phase.get("steps_per_round") or config["training"]["steps_per_round"]),
        )
        for part, phase in zip(parts, phases(config), strict=True)
    ]
    before = spent_before(config)
    left = float(privacy["epsilon"]) - before
    if before and round(left, 2) <= 0:
        raise ConfigError("privacy.epsilon: the patients were exposed to as much before, in the released model's study",
                          found=privacy["epsilon"], expected=f"more than {before:.2f}",
                          remedy="raise it, if the hospitals agree; it bounds both studies together")  # fmt: skip
    return noise_multipliers_for(epsilon=left, delta=float(privacy["delta"]), phases=spendings, asked=asked)


def modalities(config: Config) -> tuple[str, ...]:
    """What the model is made of; run directories of earlier releases do not say it."""
    return tuple(config["fusion"].get("modalities", BUILT_IN))


def write_initial_weights(config: Config, *, n_features: int, destination: Path) -> dict[str, str]:
    """Build the model, load the public image path if asked for, write it as safetensors.

    Imports torch: called in a process of its own, so that the launcher stays small.

    Returns:
        the values of the protocol's `initial_weights`.
    """
    from safetensors.numpy import save_file

    from shared_model.fusion import FusionConfig, arrays_of, build_model, load_arrays, load_public_weights
    from shared_model.messages import weights_sha256

    model = build_model(
        FusionConfig(
            size=config["model"]["size"], fusion=config["fusion"]["kind"], n_clinical=n_features,
            height=config["model"]["height"], width=config["model"]["width"],
            others=modalities(config)[2:],
        ),
        seed=int(config["seed"]), prevalence=float(config["loss"]["prevalence"]),
    )  # fmt: skip
    recipe = f"random initialisation, seed {config['seed']}"
    if config["weights"] == "public":
        info = load_public_weights(model, config["model"]["size"])
        recipe = f"public {info.size} {info.sha256[:16]}: {info.recipe}"[:200]
    origin = config["weights"]
    if is_released(config):
        released = read_released(Path(config["weights"]))
        load_arrays(model, released.weights)
        origin, recipe = "study", released.recipe
    arrays = arrays_of(model)
    save_file(arrays, destination)
    return {"sha256": weights_sha256(arrays), "origin": origin, "recipe": recipe}


def calibrate_and_initialise(
    config: Config, n_features: int, destination: Path
) -> tuple[tuple[float, ...], dict[str, str]]:
    """Both things that need torch before the trainers start, for one child process."""
    return noise_multipliers(config), write_initial_weights(config, n_features=n_features, destination=destination)


def build_protocol(
    config: Config,
    *,
    patients: Mapping[str, int],
    sigmas: Sequence[float],
    initial_weights: Mapping[str, str],
    contract: Mapping[str, object],
    pipeline: Mapping[str, object],
) -> Protocol:
    """Freeze the study.

    Args:
        patients: training patients of each site; they are rounded here, and only the rounded numbers go on.
        sigmas: noise multiplier of each phase; the protocol states the least and each phase's multiple of it.
    """
    training, privacy = suited_training(config), config["privacy"]
    to = int(config["cohort"]["round_patients_to"])
    sizes = {name: rounded(count, to) for name, count in sorted(patients.items())}
    sigma = min(sigmas)
    factors = [value / sigma if sigma else 1.0 for value in sigmas]
    return Protocol.create(
        {
            "study": config["name"],
            "release": version("mammofed"),
            "seed": config["seed"],
            "contract": dict(contract),
            "pipeline": dict(pipeline),
            "model": {"size": config["model"]["size"], "fusion": config["fusion"]["kind"],
                      "modalities": modalities(config)},
            "initial_weights": dict(initial_weights),
            "loss": config["loss"],
            "training": {
                **{k: v for k, v in training.items() if k not in NOT_TRAINING},
                "proximal_mu": config["strategy"]["proximal_mu"],
                "phases": [
                    {**phase, "noise_factor": factor}
                    for phase, factor in zip(phases({**config, "training": training}), factors, strict=True)
                ],
                "augmentation": config["augmentation"],
            },
            "privacy": {**privacy, "noise_multiplier": sigma},
            "federation": federation(config, sizes),
            "evaluation": config["evaluation"],
            "replacement": replacement_of(config),
        }
    )


def importer_key(seed: int, site: str) -> bytes:
    """Pseudonymisation key of a *simulated* importer: derived from the seed, so that a study can be made again.

    A real importer draws its key from the operating system and keeps it.
    """
    return hashlib.sha256(f"simulated importer key {seed} {site}".encode()).digest()
