"""What an operating point means where cancer is rare: PPV, NPV and recalls per 1,000 women; used by reports. No torch.

Study cohorts are enriched with cancers, so their own PPV means nothing. Sensitivity and specificity are carried over to
a stated prevalence by Bayes' rule; that assumes the same mix of cases within each class, which a report must say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.special import expit, ndtri

from shared_model.evaluation.auc import Interval
from shared_model.evaluation.operating import OperatingPoint


@dataclass(frozen=True)
class Deployment:
    """At one prevalence. ppv, npv: shares in [0, 1] with intervals. Per 1,000 women screened: recalls, found (cancers
    recalled), missed (cancers not recalled)."""

    prevalence: float
    ppv: Interval
    npv: Interval
    recalls: float
    found: float
    missed: float


def deployment(
    point: OperatingPoint, *, positives: int, negatives: int, prevalence: float, confidence: float
) -> Deployment | None:
    """Carry an operating point over to a prevalence; None where a class was empty.

    Intervals of PPV and NPV are on the logit scale with the delta method for case-control samples (Mercaldo, Lau and
    Zhou 2007, Stat Med 26:2170), with their continuity correction at shares of 0 and 1.

    Args:
        point: measured sensitivity and specificity.
        positives, negatives: women it was measured on.
        prevalence: in (0, 1), of the women to be screened.

    Raises:
        ValueError: prevalence not in (0, 1).
    """
    if not 0 < prevalence < 1:
        raise ValueError(f"prevalence must be in (0, 1), found {prevalence}")
    se, sp = point.sensitivity.value, point.specificity.value
    if se is None or sp is None:
        return None
    z = float(ndtri((1 + confidence) / 2))
    recalls = prevalence * se + (1 - prevalence) * (1 - sp)
    rest = 1 - recalls
    return Deployment(
        prevalence,
        _predictive(prevalence * se / recalls if recalls > 0 else None, se, sp, positives, negatives, prevalence, z),
        # the NPV is the PPV with the classes exchanged
        _predictive((1 - prevalence) * sp / rest if rest > 0 else None, sp, se, negatives, positives,
                    1 - prevalence, z),
        1000 * recalls, 1000 * prevalence * se, 1000 * prevalence * (1 - se),
    )  # fmt: skip


def _predictive(
    value: float | None, hit: float, spare: float, hits: int, others: int, prior: float, z: float
) -> Interval:
    """Predictive value with its interval. hit: share found of the class that it predicts (its `hits` women), spare:
    share of the other class that is rightly left out."""
    if value is None:
        return Interval(None, None, None)
    value = min(value, 1.0)  # a quotient of rounded sums
    if hit in (0.0, 1.0) or spare in (0.0, 1.0):
        hit = (hit * hits + z * z / 2) / (hits + z * z)
        spare = (spare * others + z * z / 2) / (others + z * z)
    middle = math.log(prior * hit / ((1 - prior) * (1 - spare)))
    reach = z * math.sqrt((1 - hit) / hit / hits + spare / (1 - spare) / others)
    low, high = float(expit(middle - reach)), float(expit(middle + reach))
    return Interval(value, min(low, value), max(high, value))

