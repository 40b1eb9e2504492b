"""What an epsilon bound cannot see: the noise that really reaches each tensor, for each engine, through a whole round.

The same patients are drawn in every step (q = 1), so that the weights of one private step, less the exact clipped step,
are pure noise. Checked per tensor: spread sigma C, normality, a zero mean; over steps: no correlation, no repetition.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from client.privacy.randomness import SecureRandomness
from client.training import local
from client.training.local import train_round
from shared_model.fusion import FusionModel, patient_loss_B

STEPS, SIGMA, CLIP, RATE, EXPECTED = 32, 1.5, 0.2, 0.5, 40.0
ALPHA = 1e-8  # each of four kinds of test, for each engine: the noise is new in each run, and good noise must pass
Make = Callable[..., Any]


@pytest.fixture
def noise_of(tiny_model: Make, memory_patients: Make, small_protocol: Make) -> Callable[..., dict[str, NDArray[Any]]]:
    """Noise of `STEPS` single-step rounds in units of sigma C: name -> [STEPS, P_i]."""

    def collect(engine: str, precision: str) -> dict[str, NDArray[Any]]:
        phases = [{"name": "f", "rounds": 1, "objective": "fusion", "learning_rate": RATE, "encoder_rate": 1.0}]
        protocol = small_protocol(
            training__engine=engine, training__precision=precision, training__steps_per_round=1,
            training__sample_rate=1.0, training__phases=phases, privacy__clip=CLIP, privacy__noise_multiplier=SIGMA,
        )  # fmt: skip
        cohort = memory_patients(4)
        loss = functools.partial(patient_loss_B, terms=protocol.loss, objective="fusion")
        twin: FusionModel = tiny_model().to(memory_format=torch.channels_last).train()
        trained = set(twin.trainable_parameters("fusion"))
        for name, parameter in twin.named_parameters():
            parameter.requires_grad_(name in trained)
        exact = local.make_engine(protocol, workers=1).clipped_sum(twin, cohort.all, clip=CLIP, loss=loss)
        rows: dict[str, list[NDArray[Any]]] = {}
        for step in range(STEPS):
            if step % 5 == 0:
                torch.manual_seed(7)  # whoever seeds the library must not get the same noise again
                np.random.seed(7)
            model: FusionModel = tiny_model()
            before = {name: p.detach().clone() for name, p in model.named_parameters()}
            train_round(model=model, cohort=cohort, indices=range(4), protocol=protocol, site="a", round_number=1,
                        device=torch.device("cpu"), randomness=SecureRandomness())  # fmt: skip
            moved = {name: p for name, p in model.named_parameters() if name in trained}
            assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if name not in trained)
            for (name, p), total in zip(moved.items(), exact.sums, strict=True):
                noisy = (before[name].double() - p.detach().double()) * EXPECTED / RATE
                rows.setdefault(name, []).append(((noisy - total.double()) / (SIGMA * CLIP)).flatten().numpy())
        return {name: np.stack(values) for name, values in rows.items()}

    return collect


def faults(noise: dict[str, NDArray[Any]]) -> list[str]:
    """What is wrong with the noise, in words; empty when it is what was promised."""
    found, tensors = [], len(noise)
    for name, rows in noise.items():
        low, high = stats.chi2.ppf([ALPHA / tensors, 1 - ALPHA / tensors], rows.size) / rows.size
        variance = float(np.mean(rows**2))
        if not low <= variance <= high:
            found.append(f"{name}: {np.sqrt(variance):.3f} of the promised spread")
        elif rows.size >= 500 and stats.kstest(rows.ravel()[:20_000], "norm").pvalue < ALPHA / tensors:
            found.append(f"{name}: not Gaussian")
    everything = np.concatenate(list(noise.values()), axis=1)
    limit = stats.norm.ppf(1 - ALPHA / STEPS**2) / np.sqrt(everything.shape[1])
    largest = float(np.abs(np.corrcoef(everything) - np.eye(STEPS)).max())
    if largest > limit:
        found.append(f"steps are correlated: {largest:.3f}")
    return found


@pytest.mark.parametrize(("engine", "precision"), [("loop", "fp32"), ("loop", "bf16"), ("opacus", "fp32")])
def test_the_promised_noise_is_in_every_tensor(
    noise_of: Callable[..., dict[str, NDArray[Any]]], engine: str, precision: str
) -> None:
    assert faults(noise_of(engine, precision)) == []


@pytest.mark.parametrize(("bug", "words"), [
    ("halved", r"image_head\.weight: 0\.[45]\d\d of the promised spread"),
    ("last tensors without", r"joint\.head\.final\.weight: 0\.000 of the promised spread"),
    ("repeated", "steps are correlated: 1.000"),
])  # fmt: skip
def test_the_test_sees_broken_noise(
    noise_of: Callable[..., dict[str, NDArray[Any]]], monkeypatch: pytest.MonkeyPatch, bug: str, words: str
) -> None:
    normal = SecureRandomness.normal

    def broken(self: SecureRandomness, count: int, *, std: float, device: torch.device) -> torch.Tensor:
        if bug == "halved":
            return normal(self, count, std=0.5 * std, device=device)
        if bug == "repeated":
            return torch.randn(count, generator=torch.Generator().manual_seed(3)) * std
        noise = normal(self, count, std=std, device=device)
        noise[-33:] = 0.0
        return noise

    monkeypatch.setattr(SecureRandomness, "normal", broken)
    assert any(re.search(words, fault) for fault in faults(noise_of("loop", "fp32")))

