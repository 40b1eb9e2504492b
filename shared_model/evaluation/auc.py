"""Area under the ROC curve with its interval, and the paired comparison of two models; used by reports.

One entry is one patient. The variance is that of DeLong, DeLong and Clarke-Pearson 1988 (Biometrics 44:837), computed
from ranks as in Sun and Xu 2014 (IEEE SPL 21:1389). Needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate with its bounds; any of the three is None where the data do not determine it."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference:
    """First AUC minus second on the same patients; p: two-sided, None where one class has fewer than two patients."""

    value: float | None
    low: float | None
    high: float | None
    p: float | None


def split_classes(labels: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats]:
    """Scores of the positives [m] and of the negatives [n].

    Raises:
        ValueError: lengths differ, a label is not 0 or 1, or a score is not finite.
    """
    y, s = np.asarray(labels).astype(np.float64), np.asarray(scores, dtype=np.float64)
    if y.ndim != 1 or y.shape != s.shape:
        raise ValueError(f"labels {y.shape} and scores {s.shape} must be equally long lists")
    if not np.isin(y, (0, 1)).all() or not np.isfinite(s).all():
        raise ValueError("labels must be 0 or 1 and scores finite")
    return s[y == 1], s[y == 0]


def components(positives: Floats, negatives: Floats) -> tuple[Floats, Floats]:
    """DeLong's structural components, each in [0, 1]; the mean of either is the AUC.

    First [m]: for each positive the share of negatives below her (ties count half). Second [n]: for each negative the
    share of positives above her.
    """
    low, high = np.sort(negatives), np.sort(positives)
    below = np.searchsorted(low, positives, "left") + np.searchsorted(low, positives, "right")
    above = 2 * len(high) - np.searchsorted(high, negatives, "left") - np.searchsorted(high, negatives, "right")
    return below / (2 * len(low)), above / (2 * len(high))


def roc_auc(labels: ArrayLike, scores: ArrayLike) -> float | None:
    """Probability that a positive outranks a negative (ties count half); None without both classes.

    >>> roc_auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    0.75
    """
    positives, negatives = split_classes(labels, scores)
    if len(positives) == 0 or len(negatives) == 0:
        return None
    return float(components(positives, negatives)[0].mean())


def delong_variance(labels: ArrayLike, *scores: ArrayLike) -> tuple[Floats, Floats]:
    """AUCs [M] of M models on the same patients and their covariance [M, M].

    Raises:
        ValueError: fewer than two patients in a class.
    """
    classes = [split_classes(labels, s) for s in scores]
    m, n = len(classes[0][0]), len(classes[0][1])
    if min(m, n) < 2:
        raise ValueError(f"DeLong's variance needs two patients of each class, found {m} and {n}")
    parts = [components(*pair) for pair in classes]
    positives, negatives = np.stack([p for p, _ in parts]), np.stack([n for _, n in parts])
    return positives.mean(axis=1), np.atleast_2d(np.cov(positives)) / m + np.atleast_2d(np.cov(negatives)) / n


def auc_interval(labels: ArrayLike, scores: ArrayLike, *, confidence: float) -> Interval:
    """AUC with DeLong's interval on the logit scale (delta method), which stays within [0, 1].

    At an AUC of 0 or 1 the variance is 0 and says nothing: the bounds are then those of Clopper and Pearson for as many
    trials as the smaller class has patients. Scores that are all the same have an AUC of 0.5 in whoever is asked, so
    both bounds are 0.5; reports then print none.
    """
    positives, negatives = split_classes(labels, scores)
    least = min(len(positives), len(negatives))
    value = roc_auc(labels, scores)
    if value is None or least < 2:
        return Interval(value, None, None)
    variance = float(delong_variance(labels, scores)[1][0, 0])
    if value in (0.0, 1.0):
        edge = ((1 - confidence) / 2) ** (1 / least)
        return Interval(value, edge, 1.0) if value == 1.0 else Interval(value, 0.0, 1 - edge)
    reach = float(ndtri((1 + confidence) / 2)) * np.sqrt(variance) / (value * (1 - value))
    centre = np.log(value / (1 - value))
    low, high = 1 / (1 + np.exp(-(centre - reach))), 1 / (1 + np.exp(-(centre + reach)))
    return Interval(value, float(low), float(high))


def paired_delong(labels: ArrayLike, first: ArrayLike, second: ArrayLike, *, confidence: float) -> Difference:
    """Difference of two correlated AUCs, its normal interval and two-sided p (DeLong's test)."""
    one, two = roc_auc(labels, first), roc_auc(labels, second)
    if one is None or two is None:
        return Difference(None, None, None, None)
    value = one - two
    try:
        _, covariance = delong_variance(labels, first, second)
    except ValueError:
        return Difference(value, None, None, None)
    variance = max(0.0, float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]))
    if variance < 1e-18:  # the same ranking, or both perfect; two that are perfect and opposed tell no variance either
        same = abs(value) < 1e-12
        return Difference(value, value if same else None, value if same else None, 1.0 if same else None)
    error = variance**0.5
    reach = float(ndtri((1 + confidence) / 2)) * error
    return Difference(value, value - reach, value + reach, float(2 * ndtr(-abs(value) / error)))


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float | None:
    """Area under the precision-recall curve by steps (no interpolation); None without a positive."""
    positives, negatives = split_classes(labels, scores)
    if len(positives) == 0:
        return None
    levels = np.unique(positives)[::-1]
    found = len(positives) - np.searchsorted(np.sort(positives), levels, "left")
    false = len(negatives) - np.searchsorted(np.sort(negatives), levels, "left")
    return float((np.diff(found, prepend=0) / len(positives) * found / (found + false)).sum())


def roc_points(labels: ArrayLike, scores: ArrayLike, *, limit: int = 200) -> list[list[float]]:
    """The ROC curve as at most `limit` points [false positive rate, sensitivity], from (0, 0) to (1, 1); [] when a
    class is empty."""
    positives, negatives = split_classes(labels, scores)
    if len(positives) == 0 or len(negatives) == 0:
        return []
    levels = np.unique(np.concatenate([positives, negatives]))[::-1]
    sensitivity = 1 - np.searchsorted(np.sort(positives), levels, "left") / len(positives)
    fpr = 1 - np.searchsorted(np.sort(negatives), levels, "left") / len(negatives)
    curve = np.vstack([[0.0, 0.0], np.column_stack([fpr, sensitivity])])
    if len(curve) > limit:
        curve = curve[np.linspace(0, len(curve) - 1, limit).round().astype(int)]
    return [[float(x), float(y)] for x, y in curve]


def partial_auc(labels: ArrayLike, scores: ArrayLike, *, max_fpr: float) -> float | None:
    """Area left of a false positive rate, standardised so that 0.5 is chance and 1 is perfect (McClish 1989, Medical
    Decision Making 9:190); None without both classes. scikit-learn's `roc_auc_score(max_fpr=...)` is the same.

    Raises:
        ValueError: max_fpr not in (0, 1].

    >>> partial_auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], max_fpr=0.5)
    0.666...
    """
    if not 0 < max_fpr <= 1:
        raise ValueError(f"max_fpr must be in (0, 1], found {max_fpr}")
    positives, negatives = split_classes(labels, scores)
    if len(positives) == 0 or len(negatives) == 0:
        return None
    levels = np.unique(np.concatenate([positives, negatives]))[::-1]
    height = np.concatenate([[0.0], 1 - np.searchsorted(np.sort(positives), levels, "left") / len(positives)])
    width = np.concatenate([[0.0], 1 - np.searchsorted(np.sort(negatives), levels, "left") / len(negatives)])
    inside = width <= max_fpr
    x, y = np.append(width[inside], max_fpr), np.append(height[inside], np.interp(max_fpr, width, height))
    area, least = float(np.trapezoid(y, x)), max_fpr**2 / 2
    return 0.5 * (1 + (area - least) / (max_fpr - least)) if max_fpr < 1 else area
