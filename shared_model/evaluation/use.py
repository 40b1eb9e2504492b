"""How a score would be used: ruling out, risk bands; used by reports. Needs no torch.

All of it is simulation on women whose outcome is known. None of it says how readers behave when they see a score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from shared_model.evaluation.auc import Interval, split_classes
from shared_model.evaluation.operating import wilson

BANDS = (0.02, 0.1, 0.3)  # edges of the bands, stated probability in an enriched cohort; reports name the prevalence
BAND_NAMES = ("low", "moderate", "raised", "high")


@dataclass(frozen=True)
class RuleOut:
    """Women at or below `threshold` are set aside. set_aside: share of all women, at the stated prevalence. missed:
    cancers among them per 1,000 women screened. sensitivity: kept among cancers, with its interval."""

    threshold: float
    sensitivity: Interval
    set_aside: float
    missed: float


def rule_out_threshold(labels: ArrayLike, scores: ArrayLike, *, sensitivity: float) -> float | None:
    """Greatest threshold that keeps `sensitivity` of the cancers above it; from `selection`, never from `test`. None
    without a positive."""
    positives, _ = split_classes(labels, scores)
    if len(positives) == 0:
        return None
    ascending = np.sort(positives)
    lowest = float(ascending[len(ascending) - math.ceil(sensitivity * len(ascending) - 1e-9)])
    return float(np.nextafter(lowest, -math.inf))


def rule_out(
    labels: ArrayLike, scores: ArrayLike, *, threshold: float, prevalence: float, confidence: float
) -> RuleOut | None:
    """What a given threshold does on these women, at a stated prevalence; None without both classes."""
    positives, negatives = split_classes(labels, scores)
    if len(positives) == 0 or len(negatives) == 0:
        return None
    kept = wilson(int((positives > threshold).sum()), len(positives), confidence=confidence)
    assert kept.value is not None
    aside = float((negatives <= threshold).mean())
    lost = 1 - kept.value
    return RuleOut(threshold, kept, (1 - prevalence) * aside + prevalence * lost, 1000 * prevalence * lost)


def risk_bands(
    labels: ArrayLike, probabilities: ArrayLike, *, confidence: float, edges: Sequence[float] = BANDS
) -> list[dict[str, object]]:
    """By band of stated probability: name, from, to, women, cancers, observed rate with Wilson's interval, mean stated.

    Raises:
        ValueError: edges are not ascending within (0, 1).
    """
    if list(edges) != sorted(set(edges)) or not all(0 < e < 1 for e in edges):
        raise ValueError(f"edges must ascend within (0, 1), found {list(edges)}")
    y, p = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    band = np.searchsorted(edges, p, "right")
    rows: list[dict[str, object]] = []
    for place, (low, high) in enumerate(zip((0.0, *edges), (*edges, 1.0), strict=True)):
        inside = band == place
        found = wilson(int(y[inside].sum()), int(inside.sum()), confidence=confidence)
        rows.append({
            "name": BAND_NAMES[place] if len(edges) + 1 == len(BAND_NAMES) else str(place + 1), "from": low, "to": high,
            "n": int(inside.sum()), "positives": int(y[inside].sum()), "stated": float(p[inside].mean()) if inside.any()
            else None, "rate": found.value, "rate_low": found.low, "rate_high": found.high,
        })  # fmt: skip
    return rows
