"""AUC over the folds of a cross-validation, each fold judged by a model of its own; used by reports of designs.

Scores of different models are never ranked against each other: a pair of women counts only where one model scored both
(Airola et al. 2011, Computational Statistics & Data Analysis 55:1828, on the bias of pooling). Two averages of the
folds' AUCs remain. The **mean** is the cross-validated AUC; its variance is that of LeDell, Petersen and van der Laan
2015 (Electronic Journal of Statistics 9:1583), which for the mean of the folds is the sum of their DeLong variances
over k squared. The **pooled** AUC is over all pairs of women within folds: folds weighted by their pairs.

Neither interval knows how much another division into folds, or another training, would change: they are conditional on
the models. No unbiased estimate of that variance exists from one cross-validation (Bengio and Grandvalet 2004, JMLR
5:1089), and the SD over folds is none. Needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr, ndtri

from shared_model.evaluation.auc import Difference, Interval, delong_variance, roc_auc


@dataclass(frozen=True)
class Fold:
    """Women of one fold: labels [N] 0 or 1, and scores [N] of the one model that never trained on them."""

    labels: ArrayLike
    scores: ArrayLike


@dataclass(frozen=True)
class CrossValidated:
    """mean, pooled: see the module. sd: over the folds' AUCs, None with one. folds: those that have both outcomes."""

    mean: Interval
    pooled: Interval
    sd: float | None
    folds: int


def cross_validated_auc(folds: Sequence[Fold], *, confidence: float) -> CrossValidated | None:
    """Both averages over folds; folds without both outcomes do not enter, and None is said where none has them.

    An interval is None where a fold has fewer than two women of an outcome.

    >>> fold = Fold([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    >>> cross_validated_auc([fold, fold], confidence=0.95).mean.value
    0.75
    """
    known = [fold for fold in folds if roc_auc(fold.labels, fold.scores) is not None]
    if not known:
        return None
    areas = np.array([roc_auc(fold.labels, fold.scores) for fold in known], dtype=np.float64)
    variances = [_variance(fold) for fold in known]
    equal = np.full(len(known), 1 / len(known))
    pairs = np.array([_pairs(fold.labels) for fold in known], dtype=np.float64)
    return CrossValidated(
        _interval(areas, variances, equal, confidence), _interval(areas, variances, pairs / pairs.sum(), confidence),
        float(areas.std(ddof=1)) if len(areas) > 1 else None, len(known),
    )  # fmt: skip


def cross_validated_difference(
    first: Sequence[Fold], second: Sequence[Fold], *, confidence: float
) -> Difference | None:
    """Mean over folds of the difference of two models' AUCs on the same women (paired DeLong in each fold); None where
    no fold has both outcomes.

    Raises:
        ValueError: folds of different women.
    """
    gaps: list[float] = []
    variances: list[float | None] = []
    for one, two in zip(first, second, strict=True):
        if not np.array_equal(np.asarray(one.labels), np.asarray(two.labels)):
            raise ValueError("the folds of two models must be of the same women")
        if (a := roc_auc(one.labels, one.scores)) is None or (b := roc_auc(two.labels, two.scores)) is None:
            continue
        gaps.append(a - b)
        if min(_counts(one.labels)) < 2:
            variances.append(None)
            continue
        covariance = delong_variance(one.labels, one.scores, two.scores)[1]
        variances.append(float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]))
    if not gaps:
        return None
    value, known = float(np.mean(gaps)), [v for v in variances if v is not None]
    if len(known) < len(gaps) or sum(known) < 1e-18:
        return Difference(value, None, None, None)
    error = math.sqrt(max(0.0, sum(known))) / len(gaps)
    reach = float(ndtri((1 + confidence) / 2)) * error
    return Difference(value, value - reach, value + reach, float(2 * ndtr(-abs(value) / error)))


def unpaired_difference(one: Fold, two: Fold, *, confidence: float) -> Difference:
    """AUC of `one` minus that of `two`, other women of one model: their DeLong variances add up."""
    a, b = roc_auc(one.labels, one.scores), roc_auc(two.labels, two.scores)
    if a is None or b is None:
        return Difference(None, None, None, None)
    first, second = _variance(one), _variance(two)
    if first is None or second is None or first + second < 1e-18:
        return Difference(a - b, None, None, None)
    error = math.sqrt(first + second)
    reach = float(ndtri((1 + confidence) / 2)) * error
    return Difference(a - b, a - b - reach, a - b + reach, float(2 * ndtr(-abs(a - b) / error)))


def _interval(
    areas: np.ndarray[tuple[int], np.dtype[np.float64]], variances: Sequence[float | None],
    weights: np.ndarray[tuple[int], np.dtype[np.float64]], confidence: float,
) -> Interval:  # fmt: skip
    """Weighted mean with its interval on the logit scale, which stays within [0, 1] as DeLong's does here."""
    value = float(weights @ areas)
    known = [v for v in variances if v is not None]
    if len(known) < len(areas) or not 0 < value < 1:
        return Interval(value, None, None)
    error = math.sqrt(float(weights**2 @ np.array(known))) / (value * (1 - value))
    reach, centre = float(ndtri((1 + confidence) / 2)) * error, math.log(value / (1 - value))
    return Interval(value, 1 / (1 + math.exp(reach - centre)), 1 / (1 + math.exp(-centre - reach)))


def _variance(fold: Fold) -> float | None:
    return None if min(_counts(fold.labels)) < 2 else float(delong_variance(fold.labels, fold.scores)[1][0, 0])


def _counts(labels: ArrayLike) -> tuple[int, int]:
    y = np.asarray(labels).astype(bool)
    return int(y.sum()), int((~y).sum())


def _pairs(labels: ArrayLike) -> int:
    positives, negatives = _counts(labels)
    return positives * negatives
