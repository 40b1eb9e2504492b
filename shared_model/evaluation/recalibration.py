"""Put probabilities right without touching ranks: Platt's line, and another prevalence; used by reports and sites.

What is fitted here is fitted on other women than those it is judged on. Logits in and out, natural log odds. No torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from shared_model.evaluation.auc import Floats, split_classes
from shared_model.evaluation.calibration import newton


@dataclass(frozen=True)
class Platt:
    """logit' = slope * logit + intercept (Platt 1999, Advances in Large Margin Classifiers, p. 61)."""

    slope: float
    intercept: float

    def __call__(self, logits: ArrayLike) -> Floats:
        """Recalibrated logits."""
        return self.slope * np.asarray(logits, dtype=np.float64) + self.intercept


def fit_platt(labels: ArrayLike, logits: ArrayLike) -> Platt | None:
    """Maximum likelihood; None where it does not exist: a class is empty, logits are constant or classes are apart."""
    positives, negatives = split_classes(labels, logits)
    y, z = np.asarray(labels, dtype=np.float64), np.asarray(logits, dtype=np.float64)
    if len(positives) == 0 or len(negatives) == 0 or np.ptp(z) == 0:
        return None
    found = newton(y, np.column_stack([z, np.ones_like(z)]), offset=np.zeros_like(z))
    return None if found is None else Platt(float(found.beta[0]), float(found.beta[1]))


def platt_sums(labels: ArrayLike, logits: ArrayLike, line: Platt) -> tuple[Floats, NDArray[np.float64]]:
    """Gradient [2] and information [2, 2] of the log likelihood at `line`: sums over women, so that sites' sums can be
    added (in a secure sum) and one Newton step be made of them, see :func:`platt_step`. Order: slope, intercept."""
    y, z = np.asarray(labels, dtype=np.float64), np.asarray(logits, dtype=np.float64)
    p = expit(line(z))
    x = np.column_stack([z, np.ones_like(z)])
    return x.T @ (y - p), (x * (p * (1 - p))[:, None]).T @ x


def platt_step(line: Platt, gradient: Floats, information: NDArray[np.float64]) -> Platt:
    """The next line from the sites' added sums.

    Raises:
        ValueError: the information cannot be inverted (a class is empty, or classes are apart).
    """
    if np.linalg.cond(information) > 1e12:
        raise ValueError("the sums do not determine a line: a class is empty, or the classes are apart")
    slope, intercept = np.array([line.slope, line.intercept]) + np.linalg.solve(information, gradient)
    return Platt(float(slope), float(intercept))


def shift_prior(logits: ArrayLike, *, trained: float, target: float) -> Floats:
    """Logits for another prevalence, all else equal (Saerens et al. 2002, Neural Computation 14:21).

    Args:
        trained, target: prevalences in (0, 1) that the logits are right for, and should be.

    Raises:
        ValueError: a prevalence is not in (0, 1).

    >>> round(float(shift_prior([0.0], trained=0.5, target=0.01)[0]), 3)
    -4.595
    """
    if not (0 < trained < 1 and 0 < target < 1):
        raise ValueError(f"prevalences must be in (0, 1), found {trained} and {target}")
    shift = math.log(target / (1 - target)) - math.log(trained / (1 - trained))
    result: Floats = np.asarray(logits, dtype=np.float64) + shift
    return result


def cross_fitted(labels: ArrayLike, logits: ArrayLike, *, folds: int = 5, seed: int = 0) -> Floats | None:
    """Each woman's logit after Platt's line fitted on the other folds' women, so that nobody judges a line that she
    helped to fit; None where a fold's line does not exist. Folds are dealt out within each class.
    """
    y, z = np.asarray(labels), np.asarray(logits, dtype=np.float64)
    rng, fold = np.random.default_rng(seed), np.zeros(len(y), dtype=np.int64)
    for value in (0, 1):
        rows = rng.permutation(np.flatnonzero(y == value))
        fold[rows] = np.arange(len(rows)) % folds
    out = np.empty(len(y))
    for place in range(folds):
        inside = fold == place
        line = fit_platt(y[~inside], z[~inside])
        if line is None:
            return None
        out[inside] = line(z[inside])
    return out
