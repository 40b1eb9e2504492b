"""What a clinician, a statistician and a regulator ask of scores, as plain numbers; used by the test report, by
comparisons of trainings and by `site gain`. Needs no torch.

One model on some women (:func:`model_evidence`)::

    {"n", "positives", "auc"*, "average_precision", "partial_auc", "max_fpr", "threshold", "accuracy", "sensitivity"*,
     "specificity"*, "brier", "ece", "adaptive_ece", "calibration_slope"*, "calibration_intercept"*,
     "at_prevalence": {"prevalence", "ppv"*, "npv"*, "recalls", "found", "missed"} | null,
     "roc": [[false positive rate, sensitivity], ...], "calibration": [[stated, observed, n], ...],
     "decision": [[threshold, net benefit, of recalling all], ...], "bands": [...]}

Two models on the same women (:func:`pair_evidence`)::

    {"n", "positives", "difference", "low", "high", "p", "sensitivity", "fewer_recalls"*, "fewer_recalls_p",
     "false_positive_rates": [first, second]}

A name with * stands for three, `name`, `name_low`, `name_high`. What the women do not determine is null.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from shared_model.evaluation.auc import (
    Interval,
    auc_interval,
    average_precision,
    paired_delong,
    partial_auc,
    roc_points,
    split_classes,
)
from shared_model.evaluation.calibration import calibration
from shared_model.evaluation.decision import decision_curve
from shared_model.evaluation.deployment import deployment
from shared_model.evaluation.multiple import holm
from shared_model.evaluation.operating import OperatingPoint, operating_point
from shared_model.evaluation.recalibration import shift_prior
from shared_model.evaluation.recalls import recall_reduction
from shared_model.evaluation.use import risk_bands

Document = dict[str, Any]
PREVALENCE, SENSITIVITY = 0.006, 0.85  # where a protocol declares none; the reasons stand in configs/evaluation
MAX_FPR = 0.15  # of the partial AUC: recall rates above 15 % are not screening
SEED = 20_261_126  # of the bootstrap, fixed and public: who repeats the report gets the same bounds


def three(name: str, interval: Interval) -> Document:
    """An interval as `name`, `name_low`, `name_high`."""
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def model_evidence(
    labels: ArrayLike, logits: ArrayLike, *, threshold: float | None, temperature: float = 1.0, confidence: float,
    prevalence: float = PREVALENCE, curves: bool = True,
) -> Document:  # fmt: skip
    """One model on some women.

    Args:
        labels: 0 or 1, [N]. logits: [N].
        threshold: on logits, from other women; None: nothing that needs one is stated.
        temperature: logits are divided by it wherever a probability is meant; from other women.
        prevalence: of the women to be screened.
        curves: with `roc` and `calibration`, which a document may have elsewhere.

    Raises:
        ValueError: no woman, or numbers out of range.
    """
    positives, negatives = split_classes(labels, logits)
    z = np.asarray(logits, dtype=np.float64) / temperature
    fit = calibration(labels, z, confidence=confidence)
    share = len(positives) / len(z)
    screened = expit(shift_prior(z, trained=share, target=prevalence)) if 0 < share < 1 else None
    return {
        "n": len(z), "positives": len(positives), **three("auc", auc_interval(labels, logits, confidence=confidence)),
        "average_precision": average_precision(labels, logits), "max_fpr": MAX_FPR,
        "partial_auc": partial_auc(labels, logits, max_fpr=MAX_FPR), "threshold": threshold,
        **_at_threshold(positives, negatives, threshold, confidence, prevalence),
        "brier": fit.brier, "ece": fit.ece, "adaptive_ece": fit.adaptive_ece,
        **three("calibration_slope", fit.slope_interval), **three("calibration_intercept", fit.intercept_interval),
        **({"roc": roc_points(labels, logits), "calibration": fit.bins} if curves else {}),
        "decision": [] if screened is None else decision_curve(labels, screened, prevalence=prevalence),
        "bands": risk_bands(labels, expit(z), confidence=confidence),
    }  # fmt: skip


def _at_threshold(
    positives: Any, negatives: Any, threshold: float | None, confidence: float, prevalence: float
) -> Document:
    if threshold is None:
        nothing = OperatingPoint(0.0, Interval(None, None, None), Interval(None, None, None))
        return {"accuracy": None, **_point(nothing), "at_prevalence": None}
    m, n = len(positives), len(negatives)
    labels, scores = np.repeat([1, 0], [m, n]), np.concatenate([positives, negatives])
    point = operating_point(labels, scores, threshold=threshold, confidence=confidence)
    right = int((positives > threshold).sum() + (negatives <= threshold).sum())
    carried = deployment(point, positives=m, negatives=n, prevalence=prevalence, confidence=confidence)
    at = None if carried is None else {
        "prevalence": prevalence, **three("ppv", carried.ppv), **three("npv", carried.npv), "recalls": carried.recalls,
        "found": carried.found, "missed": carried.missed,
    }  # fmt: skip
    return {"accuracy": right / (m + n), **_point(point), "at_prevalence": at}


def _point(point: OperatingPoint) -> Document:
    return three("sensitivity", point.sensitivity) | three("specificity", point.specificity)


def pair_evidence(
    labels: ArrayLike, first: ArrayLike, second: ArrayLike, *, confidence: float, sensitivity: float = SENSITIVITY,
    replicates: int,
) -> Document:  # fmt: skip
    """The first model against the second on the same women.

    Args:
        sensitivity: at which recalls are compared. replicates: of its bootstrap; 0: recalls are compared without one.
    """
    positives, negatives = split_classes(labels, first)
    gap = paired_delong(labels, first, second, confidence=confidence)
    recalls = recall_reduction(labels, first, second, sensitivity=sensitivity, confidence=confidence,
                               replicates=max(replicates, 1), seed=SEED)  # fmt: skip
    fewer = recalls.fewer if replicates else Interval(recalls.fewer.value, None, None)
    return {
        "n": len(positives) + len(negatives), "positives": len(positives),
        "difference": gap.value, "low": gap.low, "high": gap.high, "p": gap.p, "sensitivity": sensitivity,
        **three("fewer_recalls", fewer), "fewer_recalls_p": recalls.p if replicates else None,
        "false_positive_rates": [recalls.first, recalls.second],
    }  # fmt: skip


def adjusted(pairs: Mapping[str, Mapping[str, Any]], *, primary: str | None) -> dict[str, float | None]:
    """p by comparison: the primary one as it is, all others adjusted together by Holm; without a primary one, all."""
    others = holm({name: row.get("p") for name, row in pairs.items() if name != primary})
    return {name: row.get("p") if name == primary else others[name] for name, row in pairs.items()}
