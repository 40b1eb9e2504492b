"""Metrics from counts alone: what a hospital can release of its own women with noise; used by the trainer. No torch.

One woman is in exactly one of the 2 x bins counts, so adding or removing her changes the histogram by 1 in L2 norm.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, ndtri

from shared_model.evaluation.auc import Floats, split_classes


def score_histogram(labels: ArrayLike, scores: ArrayLike, bins: int) -> NDArray[np.int64]:
    """Counts [2, bins] of negatives (row 0) and positives (row 1) by probability, equal bins of [0, 1].

    Args:
        labels: 0 or 1, [N].
        scores: logits, [N].
        bins: public number of bins.

    Raises:
        ValueError: as :func:`shared_model.evaluation.auc.split_classes`.
    """
    counts = np.zeros((2, bins), dtype=np.int64)
    for row, logits in enumerate(reversed(split_classes(labels, scores))):
        index = np.minimum((expit(logits) * bins).astype(np.int64), bins - 1)
        counts[row] = np.bincount(index, minlength=bins)
    return counts


def metrics_from_histogram(
    histogram: ArrayLike, *, noise_std: float = 0.0, confidence: float = 0.95
) -> dict[str, float | None]:
    """What the counts of :func:`score_histogram` tell, exact up to binning, possibly noised.

    Args:
        histogram: [2, bins]; counts below 0 (noise) are taken as 0.
        noise_std: standard deviation of the noise on each count, for the interval.
        confidence: of the interval.

    Returns:
        n, positives (sums of the counts, noised like them), auc, auc_low, auc_high (sampling by DeLong on the bins,
        noise by the delta method, clipping not counted), brier. None where a class is empty.

    Raises:
        ValueError: not two rows of finite numbers.
    """
    counts = np.asarray(histogram, dtype=np.float64)
    if counts.ndim != 2 or counts.shape[0] != 2 or not np.isfinite(counts).all():
        raise ValueError(f"a histogram is [2, bins] of finite numbers, found {counts.shape}")
    negative, positive = np.maximum(counts, 0.0)
    n, m = float(negative.sum()), float(positive.sum())
    centres = (np.arange(len(negative)) + 0.5) / len(negative)
    brier = (negative @ centres**2 + positive @ (1 - centres) ** 2) / (n + m) if n + m > 0 else None
    document: dict[str, float | None] = {
        "n": n + m, "positives": m, "auc": None, "auc_low": None, "auc_high": None,
        "brier": None if brier is None else float(brier),
    }  # fmt: skip
    if n > 0 and m > 0:
        auc, error = _auc_with_error(negative / n, positive / m, n=n, m=m, noise_std=noise_std)
        reach = float(ndtri((1 + confidence) / 2)) * error
        document |= {"auc": auc, "auc_low": max(0.0, auc - reach), "auc_high": min(1.0, auc + reach)}
    return document


def _auc_with_error(q: Floats, p: Floats, *, n: float, m: float, noise_std: float) -> tuple[float, float]:
    """AUC and standard error from the shares of negatives q and positives p in each bin."""
    below = np.concatenate([[0.0], np.cumsum(q)[:-1]]) + q / 2  # for a positive of the bin: negatives below her
    above = 1.0 - np.concatenate([[0.0], np.cumsum(p)[:-1]]) - p / 2
    auc = float(p @ below)
    spread_m, spread_n = float(p @ (below - auc) ** 2), float(q @ (above - auc) ** 2)
    sampling = spread_m / max(m - 1, 1.0) + spread_n / max(n - 1, 1.0)
    # d auc / d count of a positive bin = (below - auc) / m, of a negative bin (above - auc) / n
    noise = noise_std**2 * (((below - auc) ** 2).sum() / m**2 + ((above - auc) ** 2).sum() / n**2)
    return auc, math.sqrt(sampling + float(noise))
