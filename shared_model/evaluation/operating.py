"""Operating points: a threshold taken from one split and what it does on another; used by reports. Needs no torch.

A threshold is chosen on `selection` only. Whoever reads it off the very patients it is judged on prints the specificity
that was asked for and hides what it costs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri

from shared_model.evaluation.auc import Interval, split_classes


@dataclass(frozen=True)
class OperatingPoint:
    """What `score > threshold` means positive does to some patients: sensitivity and specificity, Wilson intervals."""

    threshold: float
    sensitivity: Interval
    specificity: Interval


def threshold_at_specificity(labels: ArrayLike, scores: ArrayLike, *, specificity: float) -> float:
    """Smallest negative's score t such that `score > t` leaves at least `specificity` of the negatives unrecalled.

    Raises:
        ValueError: no negative, or specificity not in (0, 1].
    """
    _, negatives = split_classes(labels, scores)
    if not 0 < specificity <= 1 or len(negatives) == 0:
        raise ValueError(f"need a negative and a specificity in (0, 1], found {len(negatives)}, {specificity}")
    rank = math.ceil(specificity * len(negatives) - 1e-9)
    return float(np.sort(negatives)[rank - 1])


def wilson(successes: int, trials: int, *, confidence: float) -> Interval:
    """Share of successes with Wilson's score interval (Wilson 1927, JASA 22:209); None without trials.

    >>> wilson(92, 100, confidence=0.95).low
    0.8501...
    """
    if trials == 0:
        return Interval(None, None, None)
    z = float(ndtri((1 + confidence) / 2))
    share, extra = successes / trials, z * z / trials
    centre = (share + extra / 2) / (1 + extra)
    reach = z * math.sqrt(share * (1 - share) / trials + extra / (4 * trials)) / (1 + extra)
    return Interval(share, max(0.0, centre - reach), min(1.0, centre + reach))


def operating_point(labels: ArrayLike, scores: ArrayLike, *, threshold: float, confidence: float) -> OperatingPoint:
    """Sensitivity and specificity that a given threshold really has on these patients."""
    positives, negatives = split_classes(labels, scores)
    found, spared = int((positives > threshold).sum()), int((negatives <= threshold).sum())
    return OperatingPoint(
        threshold,
        wilson(found, len(positives), confidence=confidence),
        wilson(spared, len(negatives), confidence=confidence),
    )
