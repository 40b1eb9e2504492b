"""The part of a forecast that needs torch; `command` runs it in a child process, as the launcher does.

Sigma and the initial weights come from the very functions that a run calls, epsilon from the accountant that the sites'
ledgers use.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shared_model.protocol import Protocol
from simulations.plan import Config, calibrate_and_initialise

TRAINING_COST = 4.0  # a training step against a forward pass; only sizes the miniature, no forecast depends on it


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a run works out before its first round. seconds: that it took, imports included.

    patient_s: seconds to train on one patient, roughly: how large a miniature this machine can run.
    """

    sigmas: tuple[float, ...]
    initial_weights: dict[str, str]
    seconds: float
    patient_s: float


@dataclass(frozen=True, kw_only=True)
class Spending:
    """Epsilon of a training patient whose site takes part in every round, at the protocol's delta.

    curve: (round, epsilon after it). other_deltas: epsilon after the last round by delta. metrics: of the site's own
    test women, once. seconds: mean of one sum, as each trainer process makes one a round.
    """

    curve: tuple[tuple[int, float], ...]
    other_deltas: dict[str, float]
    metrics: float
    seconds: float


def calibrate(config: Config, n_features: int, destination: Path) -> Calibration:
    """Sigma and initial weights, as a run makes them."""
    began = time.perf_counter()
    sigmas, initial = calibrate_and_initialise(config, n_features, destination)
    seconds = time.perf_counter() - began
    return Calibration(
        sigmas=sigmas, initial_weights=initial, seconds=seconds, patient_s=_patient_s(config, n_features)
    )


def _patient_s(config: Config, n_features: int) -> float:
    import torch

    from shared_model.cohort.batch import PatientBatch
    from shared_model.cohort.views import VIEWS
    from shared_model.fusion import FusionConfig, build_model

    model = config["model"]
    shape = FusionConfig(size=model["size"], fusion=config["fusion"]["kind"], n_clinical=n_features,
                         height=model["height"], width=model["width"])  # fmt: skip
    network = build_model(shape, seed=0, prevalence=0.5).eval()
    batch = PatientBatch(
        torch.zeros(1, len(VIEWS), 2, model["height"], model["width"]), torch.ones(1, len(VIEWS), dtype=torch.bool),
        torch.zeros(1, n_features), torch.ones(1, dtype=torch.bool), torch.zeros(1),
    )  # fmt: skip
    with torch.inference_mode():
        network(batch)  # the first pass sets things up
        began = time.perf_counter()
        network(batch)
    return TRAINING_COST * (time.perf_counter() - began)


def spend(protocol: Protocol, rounds: Sequence[int], deltas: Sequence[float]) -> Spending:
    """Epsilon after each of `rounds` (ascending) and, after the last, at further deltas."""
    from client.privacy.accountant import Account

    if not protocol.private:
        return Spending(curve=(), other_deltas={}, metrics=0.0, seconds=0.0)
    account, curve, done = Account(), [], 0
    Account().add(noise_multiplier=1.0, sample_rate=1.0, steps=1).epsilon(delta=0.5)  # imports all that the sum needs
    began = time.perf_counter()
    for stop in rounds:
        for number in range(done + 1, stop + 1):
            sigma, rate, steps = mechanism(protocol, number)
            account = account.add(noise_multiplier=sigma, sample_rate=rate, steps=steps)
        done = stop
        curve.append((stop, account.epsilon(delta=protocol.privacy.delta)))
    seconds = (time.perf_counter() - began) / max(1, len(curve))
    release = Account().add(noise_multiplier=protocol.privacy.metrics_noise_multiplier, sample_rate=1.0, steps=1)
    return Spending(
        curve=tuple(curve), other_deltas={f"{delta:g}": account.epsilon(delta=delta) for delta in deltas},
        metrics=release.epsilon(delta=protocol.privacy.delta) if protocol.metrics_alone else 0.0,
        seconds=seconds,
    )  # fmt: skip


def mechanism(protocol: Protocol, round_number: int) -> tuple[float, float, int]:
    """What one round charges to a site's ledger: (sigma, q, steps)."""
    protocol.training.phase(round_number)  # a round outside of the protocol is refused
    return protocol.noise_multiplier(round_number), protocol.sample_rate(round_number), protocol.steps(round_number)
