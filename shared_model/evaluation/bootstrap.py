"""Bootstrap over patients, stratified by outcome and paired between models; used by the test report. Needs no torch.

A replicate draws as many positives from the positives and negatives from the negatives as there are, so that none lacks
a class; all models see the same women.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from shared_model.evaluation.auc import Floats, split_classes

CHUNK = 250  # replicates at a time: bounds memory at some ten MB for a thousand patients


@dataclass(frozen=True)
class Replicates:
    """AUC and sensitivity by replicate: model name -> [replicates]; sensitivity of models with a threshold only."""

    auc: Mapping[str, Floats]
    sensitivity: Mapping[str, Floats]


def bootstrap(
    labels: ArrayLike, scores: Mapping[str, Floats], *, thresholds: Mapping[str, float], replicates: int, seed: int
) -> Replicates:
    """Resample the patients.

    Raises:
        ValueError: a class is empty or there is no replicate.
    """
    parts = {name: split_classes(labels, s) for name, s in scores.items()}
    m, n = (len(part) for part in next(iter(parts.values())))
    if min(m, n, replicates) < 1:
        raise ValueError(f"a bootstrap needs both classes and replicates, found {m}, {n}, {replicates}")
    rng = np.random.default_rng(seed)
    auc: dict[str, list[Floats]] = {name: [] for name in scores}
    sensitivity: dict[str, list[Floats]] = {name: [] for name in scores if name in thresholds}
    for start in range(0, replicates, CHUNK):
        rows = min(CHUNK, replicates - start)
        positive_RM = rng.multinomial(m, np.full(m, 1 / m), size=rows).astype(np.float64)
        negative_RN = rng.multinomial(n, np.full(n, 1 / n), size=rows).astype(np.float64)
        for name, (positives, negatives) in parts.items():
            auc[name].append(_weighted_auc(positives, negatives, positive_RM, negative_RN))
            if name in thresholds:
                sensitivity[name].append(positive_RM @ (positives > thresholds[name]) / m)
    return Replicates(
        {k: np.concatenate(v) for k, v in auc.items()}, {k: np.concatenate(v) for k, v in sensitivity.items()}
    )


def _weighted_auc(positives: Floats, negatives: Floats, positive_RM: Floats, negative_RN: Floats) -> Floats:
    order = np.argsort(negatives)
    ordered = negatives[order]
    cumulative = np.zeros((len(negative_RN), len(ordered) + 1))
    np.cumsum(negative_RN[:, order], axis=1, out=cumulative[:, 1:])
    left, right = np.searchsorted(ordered, positives, "left"), np.searchsorted(ordered, positives, "right")
    below = (cumulative[:, left] + cumulative[:, right]) / 2
    result: Floats = (positive_RM * below).sum(axis=1) / (positive_RM.shape[1] * negative_RN.shape[1])
    return result


def percentile_interval(values: Floats, *, confidence: float) -> tuple[float, float]:
    """The middle `confidence` share of the replicates."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
