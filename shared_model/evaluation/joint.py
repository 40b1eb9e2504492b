"""Two models compared on all sites' women without a score leaving a site: joint histograms, added up. No torch.

For each class a site counts its women by (bin of the first model's score, bin of the second's). The sum of all sites'
counts determines the pooled AUCs, their ROC curves, calibration and DeLong's paired test, exactly for the binned
scores: DeLong's components of a woman depend on her bin alone. Counts are whole numbers, so they can be added inside a
secure sum. One woman is in exactly one count: adding or removing her changes the table by 1 in L2 norm, the ledger's
unit for noise. Tables whose small cells were set to zero are not for an AUC: what is missing is not missing at random.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit, ndtr, ndtri

from shared_model.evaluation.auc import Difference, Floats, Interval, split_classes
from shared_model.evaluation.calibration import newton
from shared_model.protocol import Protocol

Counts = NDArray[np.int64]
PUBLIC, IMAGE = "public", "image"
EXACT: Final = (PUBLIC, IMAGE)
NOISED: Final = (PUBLIC,)  # a second table would hold each woman again, and cost twice


def rivals_of(protocol: Protocol) -> tuple[str, ...]:
    """What the fused model is counted against at each site, a table each: the initial weights, its own image branch."""
    return EXACT if protocol.summed else NOISED


def joint_histogram(labels: ArrayLike, first: ArrayLike, second: ArrayLike, *, bins: int) -> Counts:
    """Counts [2, bins, bins]: negatives (0) and positives (1) by bin of the first and of the second model's
    probability, equal bins of [0, 1].

    Args:
        labels: 0 or 1, [N]. first, second: logits of the same women, [N].

    Raises:
        ValueError: as :func:`shared_model.evaluation.auc.split_classes`.
    """
    counts = np.zeros((2, bins, bins), dtype=np.int64)
    ones, twos = split_classes(labels, first), split_classes(labels, second)
    for row in (0, 1):
        a, b = (np.minimum((expit(part[1 - row]) * bins).astype(np.int64), bins - 1) for part in (ones, twos))
        np.add.at(counts[row], (a, b), 1)
    return counts


@dataclass(frozen=True)
class JointResult:
    """n, positives: sums of the counts, noised like them. first, second: AUCs. difference: first minus second with the
    paired test. noise_share: share of the difference's variance that comes from noise, in [0, 1]."""

    n: float
    positives: float
    first: Interval
    second: Interval
    difference: Difference
    noise_share: float


def joint_result(tables: Sequence[ArrayLike], *, confidence: float, noise_std: float = 0.0) -> JointResult:
    """What the sum of the sites' tables says.

    Args:
        tables: [2, bins, bins] each, of one shape; with noise they may have negative entries, which are kept: setting
            them to zero would shift the AUC.
        confidence: of all intervals.
        noise_std: standard deviation of the noise that *each site* added to each count. It widens intervals and test by
            the delta method; the estimates stay unbiased to first order but where an AUC is cut off at 0 or 1.

    Raises:
        ValueError: no table, other shapes, or numbers that are not finite.
    """
    added = _sum(tables)
    noise = noise_std * math.sqrt(len(tables))
    negatives, positives = added
    n, m = float(negatives.sum()), float(positives.sum())
    nothing = Interval(None, None, None)
    if n < 2 or m < 2:
        return JointResult(n + m, m, nothing, nothing, Difference(None, None, None, None), 0.0)
    parts = [_components(negatives.sum(axis=1 - axis) / n, positives.sum(axis=1 - axis) / m) for axis in (0, 1)]
    aucs = [float(positives.sum(axis=1 - axis) @ parts[axis][0] / m) for axis in (0, 1)]
    # Influence of one woman of a bin pair on each AUC, times her class' size; [bins, bins] for each model.
    square = np.zeros_like(positives)
    up = [parts[0][0][:, None] - aucs[0] + square, parts[1][0][None, :] - aucs[1] + square]
    down = [parts[0][1][:, None] - aucs[0] + square, parts[1][1][None, :] - aucs[1] + square]

    def variance(a: Floats, b: Floats) -> tuple[float, float]:
        sampling = float((positives * a**2).sum()) / m / (m - 1) + float((negatives * b**2).sum()) / n / (n - 1)
        return max(sampling, 0.0), noise**2 * float((a**2).sum() / m**2 + (b**2).sum() / n**2)

    z = float(ndtri((1 + confidence) / 2))
    found = [(auc, *variance(a, b)) for auc, a, b in zip(aucs, up, down, strict=True)]
    intervals = [_auc_interval(auc, sampling, z) if not noise else _noised_interval(auc, sampling + extra, z)
                 for auc, sampling, extra in found]  # fmt: skip
    sampling, extra = variance(up[0] - up[1], down[0] - down[1])
    error, value = math.sqrt(sampling + extra), aucs[0] - aucs[1]
    if error < 1e-9:
        same = abs(value) < 1e-12  # two that are perfect and opposed tell no variance either, as in `auc.paired_delong`
        gap = Difference(value, value if same else None, value if same else None, 1.0 if same else None)
    else:
        gap = Difference(value, value - z * error, value + z * error, float(2 * ndtr(-abs(value) / error)))
    share = extra / (sampling + extra) if sampling + extra > 0 else 0.0
    return JointResult(n + m, m, intervals[0], intervals[1], gap, share)


def marginal(tables: Sequence[ArrayLike], *, model: int) -> Floats:
    """Counts [2, bins] of one of the two models (0 or 1), all sites together."""
    result: Floats = _sum(tables).sum(axis=2 - model)
    return result


def binned_roc(counts: ArrayLike) -> list[list[float]]:
    """ROC of counts [2, bins] as [false positive rate, sensitivity], from (0, 0) to (1, 1); [] when a class is empty.
    Noise can make it step back or beyond an edge."""
    negatives, positives = np.asarray(counts, dtype=np.float64)
    if negatives.sum() <= 0 or positives.sum() <= 0:
        return []
    x, y = (np.concatenate([[0.0], np.cumsum(c[::-1]) / c.sum()]) for c in (negatives, positives))
    return [[float(a), float(b)] for a, b in zip(x, y, strict=True)]


def binned_calibration(counts: ArrayLike) -> tuple[float | None, float | None]:
    """Calibration slope and intercept in the large of counts [2, bins], each woman at the middle of her bin; None where
    the counts do not determine them. Negative counts (noise) are taken as 0."""
    negatives, positives = np.maximum(np.asarray(counts, dtype=np.float64), 0.0)
    bins = len(negatives)
    z, y = np.tile(logit((np.arange(bins) + 0.5) / bins), 2), np.repeat([0.0, 1.0], bins)
    w = np.concatenate([negatives, positives])
    if negatives.sum() == 0 or positives.sum() == 0:
        return None, None
    line = newton(y, np.column_stack([np.ones_like(z), z]), offset=np.zeros_like(z), weights=w)
    large = newton(y, np.ones((len(y), 1)), offset=z, weights=w)
    return (None if line is None else float(line.beta[1])), (None if large is None else float(large.beta[0]))


def _sum(tables: Sequence[ArrayLike]) -> Floats:
    arrays = [np.asarray(table, dtype=np.float64) for table in tables]
    if not arrays or any(a.shape != arrays[0].shape or a.ndim != 3 or a.shape[0] != 2 or a.shape[1] != a.shape[2]
                         or not np.isfinite(a).all() for a in arrays):  # fmt: skip
        raise ValueError(f"need tables [2, bins, bins] of finite numbers, found {[a.shape for a in arrays]}")
    result: Floats = np.sum(arrays, axis=0)
    return result


def _components(q: Floats, p: Floats) -> tuple[Floats, Floats]:
    """DeLong's components by bin from the shares of negatives q and positives p: for a positive, for a negative."""
    below = np.concatenate([[0.0], np.cumsum(q)[:-1]]) + q / 2
    above = p.sum() - np.cumsum(p) + p / 2
    return below, above


def _noised_interval(auc: float, variance: float, z: float) -> Interval:
    """On the AUC's own scale: noise can carry the estimate beyond 0 or 1, where no logit is. Cut off there."""
    reach = z * math.sqrt(variance)
    value, low, high = (min(max(x, 0.0), 1.0) for x in (auc, auc - reach, auc + reach))
    return Interval(value, low, high)


def _auc_interval(auc: float, variance: float, z: float) -> Interval:
    """On the logit scale, as `auc.auc_interval`; without spread or at an edge, no bounds."""
    if not 0 < auc < 1 or variance <= 0:
        return Interval(auc, None, None)
    reach, centre = z * math.sqrt(variance) / (auc * (1 - auc)), math.log(auc / (1 - auc))
    return Interval(auc, float(expit(centre - reach)), float(expit(centre + reach)))
