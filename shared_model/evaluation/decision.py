"""Is acting on the model better than recalling all or none: decision curves (Vickers and Elkin 2006, Medical Decision
Making 26:565); used by reports. Needs no torch.

Net benefit at a threshold probability t is TP/n - FP/n * t/(1-t), in true positives per woman: t says how many false
recalls a found cancer is worth. In an enriched cohort both shares are weighted to the stated prevalence.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from shared_model.evaluation.auc import split_classes

THRESHOLDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.1, 0.15, 0.2)  # half a per cent to a fifth: what a recall is for


def decision_curve(
    labels: ArrayLike, probabilities: ArrayLike, *, prevalence: float | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
) -> list[list[float]]:  # fmt: skip
    """[threshold, net benefit of the model, of recalling all] by threshold; recalling none has 0. Empty without both
    classes.

    Args:
        probabilities: in [0, 1], right for the prevalence that is stated (see `recalibration.shift_prior`).
        prevalence: of the women to be screened; None: that of these women.

    Raises:
        ValueError: a threshold is not in (0, 1).
    """
    if not all(0 < t < 1 for t in thresholds):
        raise ValueError(f"threshold probabilities must be in (0, 1), found {list(thresholds)}")
    positives, negatives = split_classes(labels, probabilities)
    if len(positives) == 0 or len(negatives) == 0:
        return []
    share = len(positives) / (len(positives) + len(negatives)) if prevalence is None else prevalence
    rows = []
    for t in thresholds:
        odds = t / (1 - t)
        model = share * float(np.mean(positives >= t)) - (1 - share) * float(np.mean(negatives >= t)) * odds
        rows.append([float(t), model, share - (1 - share) * odds])
    return rows
