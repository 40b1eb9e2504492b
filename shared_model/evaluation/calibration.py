"""Do the probabilities mean what they say: Brier, reliability, calibration line, temperature; used by reports.

Logits in, natural log odds. Needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, ndtri

from shared_model.evaluation.auc import Floats, Interval

BINS = 10
ADAPTIVE_BINS = 15  # of the adaptive calibration error (Nixon et al. 2019, arXiv 1904.01685)
TEMPERATURE_BOUNDS = (0.05, 20.0)


@dataclass(frozen=True)
class Calibration:
    """brier: mean squared error of the probability. ece: expected calibration error over :func:`reliability`'s bins.
    adaptive_ece: the same over 15 bins of equally many women. slope: of the calibration line, 1 is right, below 1 too
    extreme. intercept: calibration in the large (slope held at 1), 0 is right, negative when risks are stated too high
    (Van Calster et al. 2019, BMC Medicine 17:230). slope and intercept are None where the data do not determine them;
    their intervals are Wald's, of the confidence asked for."""

    brier: float
    ece: float
    slope: float | None
    intercept: float | None
    bins: list[list[float]]
    adaptive_ece: float
    slope_interval: Interval
    intercept_interval: Interval


@dataclass(frozen=True)
class Fit:
    """Maximum likelihood of a logistic regression. beta [P], errors [P]: standard errors."""

    beta: Floats
    errors: Floats


def calibration(
    labels: ArrayLike, logits: ArrayLike, *, temperature: float = 1.0, confidence: float = 0.95
) -> Calibration:
    """All of it for logits divided by a temperature.

    Raises:
        ValueError: no patient, or a logit is not finite.
    """
    y, z = np.asarray(labels, dtype=np.float64), np.asarray(logits, dtype=np.float64) / temperature
    if len(y) == 0 or y.shape != z.shape or not np.isfinite(z).all():
        raise ValueError("calibration needs patients and finite logits")
    p = expit(z)
    bins = reliability(y, p)
    slope, intercept = _line(y, z)
    reach = float(ndtri((1 + confidence) / 2))
    return Calibration(
        float(np.mean((p - y) ** 2)), _error(bins), None if slope is None else float(slope.beta[1]),
        None if intercept is None else float(intercept.beta[0]), bins, _error(reliability(y, p, bins=ADAPTIVE_BINS)),
        _interval(slope, 1, reach), _interval(intercept, 0, reach),
    )  # fmt: skip


def reliability(labels: Floats, probabilities: Floats, *, bins: int = BINS) -> list[list[float]]:
    """[mean stated probability, observed share, patients] of up to `bins` bins of equally many patients, in order."""
    order = np.argsort(probabilities, kind="stable")
    parts = [part for part in np.array_split(order, min(bins, len(order))) if len(part)]
    return [[float(probabilities[i].mean()), float(labels[i].mean()), len(i)] for i in parts]


def _error(bins: list[list[float]]) -> float:
    return float(sum(n * abs(stated - observed) for stated, observed, n in bins) / sum(n for _, _, n in bins))


def _interval(fit: Fit | None, place: int, reach: float) -> Interval:
    if fit is None:
        return Interval(None, None, None)
    value, error = float(fit.beta[place]), float(fit.errors[place])
    return Interval(value, value - reach * error, value + reach * error)


def _line(y: Floats, z: Floats) -> tuple[Fit | None, Fit | None]:
    if y.min() == y.max():
        return None, None
    intercept = newton(y, np.ones((len(y), 1)), offset=z)
    joint = newton(y, np.column_stack([np.ones_like(z), z]), offset=np.zeros_like(z)) if np.ptp(z) > 0 else None
    return joint, intercept


def newton(y: Floats, x: NDArray[np.float64], *, offset: Floats, weights: Floats | None = None) -> Fit | None:
    """Maximum likelihood of a logistic regression; None where it does not exist (classes apart).

    Args:
        y: outcomes [N]; x: [N, P]; offset: [N], added to the linear predictor.
        weights: how many patients a row stands for, [N]; None: one each.
    """
    beta, w = np.zeros(x.shape[1]), np.ones(len(y)) if weights is None else weights
    for _ in range(100):
        p = expit(x @ beta + offset)
        hessian = (x * (w * p * (1 - p))[:, None]).T @ x
        gradient = x.T @ (w * (y - p))
        if np.linalg.cond(hessian) > 1e12:
            return None
        step = np.linalg.solve(hessian, gradient)
        beta = beta + step * min(1.0, 5.0 / max(float(np.abs(step).max()), 1e-300))
        if np.abs(beta).max() > 1e3:
            return None
        if np.abs(step).max() < 1e-10:
            return Fit(beta, np.sqrt(np.diag(np.linalg.inv(hessian))))
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
