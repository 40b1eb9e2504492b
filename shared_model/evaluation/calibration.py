"""Do the probabilities mean what they say: Brier, reliability, calibration line, temperature; used by reports.

Logits in, natural log odds. Needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from shared_model.evaluation.auc import Floats

BINS = 10
TEMPERATURE_BOUNDS = (0.05, 20.0)


@dataclass(frozen=True)
class Calibration:
    """brier: mean squared error of the probability. ece: expected calibration error over :func:`reliability`'s bins.
    slope: of the calibration line, 1 is right, below 1 too extreme. intercept: calibration in the large (slope held at
    1), 0 is right, negative when risks are stated too high (Van Calster et al. 2019, BMC Medicine 17:230). slope and
    intercept are None where the data do not determine them."""

    brier: float
    ece: float
    slope: float | None
    intercept: float | None
    bins: list[list[float]]


def calibration(labels: ArrayLike, logits: ArrayLike, *, temperature: float = 1.0) -> Calibration:
    """All of it for logits divided by a temperature.

    Raises:
        ValueError: no patient, or a logit is not finite.
    """
    y, z = np.asarray(labels, dtype=np.float64), np.asarray(logits, dtype=np.float64) / temperature
    if len(y) == 0 or y.shape != z.shape or not np.isfinite(z).all():
        raise ValueError("calibration needs patients and finite logits")
    p = expit(z)
    bins = reliability(y, p)
    ece = sum(n * abs(stated - observed) for stated, observed, n in bins) / len(y)
    slope, intercept = _line(y, z)
    return Calibration(float(np.mean((p - y) ** 2)), float(ece), slope, intercept, bins)


def reliability(labels: Floats, probabilities: Floats) -> list[list[float]]:
    """[mean stated probability, observed share, patients] of up to ten bins of equally many patients, in order."""
    order = np.argsort(probabilities, kind="stable")
    parts = [part for part in np.array_split(order, min(BINS, len(order))) if len(part)]
    return [[float(probabilities[i].mean()), float(labels[i].mean()), len(i)] for i in parts]


def _line(y: Floats, z: Floats) -> tuple[float | None, float | None]:
    if y.min() == y.max():
        return None, None
    intercept = _newton(y, np.ones((len(y), 1)), offset=z)
    joint = _newton(y, np.column_stack([np.ones_like(z), z]), offset=np.zeros_like(z)) if np.ptp(z) > 0 else None
    return (None if joint is None else float(joint[1])), (None if intercept is None else float(intercept[0]))


def _newton(y: Floats, x: NDArray[np.float64], *, offset: Floats) -> Floats | None:
    """Maximum likelihood of a logistic regression; None where it does not exist (classes apart)."""
    beta = np.zeros(x.shape[1])
    for _ in range(100):
        p = expit(x @ beta + offset)
        hessian = (x * (p * (1 - p))[:, None]).T @ x
        gradient = x.T @ (y - p)
        if np.linalg.cond(hessian) > 1e12:
            return None
        step = np.linalg.solve(hessian, gradient)
        beta = beta + step * min(1.0, 5.0 / max(float(np.abs(step).max()), 1e-300))
        if np.abs(beta).max() > 1e3:
            return None
        if np.abs(step).max() < 1e-10:
            return beta
    return None


def fit_temperature(labels: ArrayLike, logits: ArrayLike) -> float:
    """Temperature T that maximises the likelihood of logits / T (Guo et al. 2017, arXiv 1706.04599), within
    `TEMPERATURE_BOUNDS`.

    The likelihood is concave in 1/T, so the sign of its slope is bisected.
    """
    y, z = np.asarray(labels, dtype=np.float64), np.asarray(logits, dtype=np.float64)
    low, high = (1 / bound for bound in reversed(TEMPERATURE_BOUNDS))
    for _ in range(60):
        middle = float(np.sqrt(low * high))
        rising = float(((y - expit(middle * z)) * z).sum()) > 0
        low, high = (middle, high) if rising else (low, middle)
    return float(1 / np.sqrt(low * high))
