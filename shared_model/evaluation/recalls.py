"""Fewer recalls at the same sensitivity: two models, each at its own threshold, on the same women. No torch.

The threshold of each model is read off these women at the wanted sensitivity: that is the only way to match two models
exactly, and it makes both look better than a threshold from other women would. Reports print it beside the operating
point whose threshold came from `selection`. The bootstrap chooses the thresholds anew in every replicate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from shared_model.evaluation.auc import Floats, Interval, split_classes
from shared_model.evaluation.bootstrap import percentile_interval


@dataclass(frozen=True)
class RecallReduction:
    """fewer: 1 - (false positive rate of the first / of the second), 0.27 is 27 % fewer; negative when the first
    recalls more. first, second: their false positive rates. p: two-sided, of the bootstrap, at least 1 / replicates."""

    sensitivity: float
    fewer: Interval
    first: float | None
    second: float | None
    p: float | None


def false_positive_rate(labels: ArrayLike, scores: ArrayLike, *, sensitivity: float) -> float | None:
    """Share of negatives recalled when the threshold is the highest that still finds `sensitivity` of the positives;
    None without both classes. At that threshold `score >= threshold` is a recall."""
    positives, negatives = split_classes(labels, scores)
    if len(positives) == 0 or len(negatives) == 0:
        return None
    return float((negatives >= _threshold(np.sort(positives), sensitivity)).mean())


def recall_reduction(
    labels: ArrayLike, first: ArrayLike, second: ArrayLike, *, sensitivity: float, confidence: float, replicates: int,
    seed: int,
) -> RecallReduction:  # fmt: skip
    """Reduction of false positive recalls by the first model, with a stratified, paired bootstrap over women.

    Raises:
        ValueError: sensitivity not in (0, 1], or no replicate.
    """
    if not 0 < sensitivity <= 1 or replicates < 1:
        raise ValueError(f"need a sensitivity in (0, 1] and replicates, found {sensitivity}, {replicates}")
    one, two = split_classes(labels, first), split_classes(labels, second)
    m, n = len(one[0]), len(one[1])
    if min(m, n) == 0:
        return RecallReduction(sensitivity, Interval(None, None, None), None, None, None)
    rates = [float((part[1] >= _threshold(np.sort(part[0]), sensitivity)).mean()) for part in (one, two)]
    if rates[1] == 0:
        return RecallReduction(sensitivity, Interval(None, None, None), rates[0], rates[1], None)
    rng = np.random.default_rng(seed)
    ratios = np.empty(replicates)
    for place in range(replicates):
        rows, columns = rng.integers(0, m, m), rng.integers(0, n, n)
        drawn = [(part[1][columns] >= _threshold(np.sort(part[0][rows]), sensitivity)).mean() for part in (one, two)]
        ratios[place] = drawn[0] / drawn[1] if drawn[1] > 0 else (1.0 if drawn[0] == 0 else np.inf)
    low, high = percentile_interval(1 - np.minimum(ratios, 1e6), confidence=confidence)
    tail = min(float((ratios >= 1).mean()), float((ratios <= 1).mean()))
    p = min(1.0, 2 * max(tail, 1 / (2 * replicates)))
    return RecallReduction(sensitivity, Interval(1 - rates[0] / rates[1], low, high), rates[0], rates[1], p)


def _threshold(ascending: Floats, sensitivity: float) -> float:
    """Score of the positive that must still be found; `ascending`: the positives' scores in order."""
    needed = math.ceil(sensitivity * len(ascending) - 1e-9)
    return float(ascending[len(ascending) - needed])
