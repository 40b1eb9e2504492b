"""What one hospital gained: the shared model beside its own and beside public weights, on its own test women.

Used by `site gain` and by comparisons of trainings. The women are the hospital's own and were trained on by none of the
three models. The document::

    {"n", "positives", "models": {"shared" | "local" | "public": model_evidence},
     "pairs": {"shared_vs_local", "shared_vs_public": pair_evidence},
     "transfer": {"wanted": specificity | null, "sensitivity"*, "specificity"*}   (the coordinator's threshold here),
     "recalibration": {"folds", "before": {...}, "after": {...} | null}   (slope, intercept, adaptive_ece, brier)}

Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from shared_model.evaluation.calibration import calibration
from shared_model.evaluation.evidence import SENSITIVITY, Document, model_evidence, pair_evidence
from shared_model.evaluation.recalibration import cross_fitted

FOLDS = 5
SHARED = "shared"
LEAST = 10  # women of each kind: with fewer a single one can move an AUC by more than a tenth


def too_few(n: int, positives: int) -> bool:
    """Whether `n` women, `positives` with cancer, are too few to say which of two models is better, whatever an
    interval says."""
    return min(positives, n - positives) < LEAST


def gain(
    labels: ArrayLike, logits: Mapping[str, ArrayLike], *, thresholds: Mapping[str, float], temperature: float = 1.0,
    confidence: float, wanted_specificity: float | None = None, sensitivity: float = SENSITIVITY, replicates: int,
) -> Document:  # fmt: skip
    """The document.

    Args:
        labels: of the hospital's test women, [N], at least one.
        logits: by model, `shared` among them; those that were not made are left out.
        thresholds: on logits, by model, as far as other women have given one.
        temperature: of the shared model, from the coordinator's `selection`.
        wanted_specificity: for which the shared model's threshold was chosen there.
        replicates: of the recalls' bootstrap.
    """
    shared = np.asarray(logits[SHARED], dtype=np.float64)
    models = {
        name: model_evidence(labels, z, threshold=thresholds.get(name), confidence=confidence,
                             temperature=temperature if name == SHARED else 1.0)
        for name, z in logits.items()
    }  # fmt: skip
    pairs = {
        f"{SHARED}_vs_{name}": pair_evidence(labels, shared, z, confidence=confidence, sensitivity=sensitivity,
                                             replicates=replicates)
        for name, z in logits.items() if name != SHARED
    }  # fmt: skip
    own = models[SHARED]
    return {
        "n": own["n"], "positives": own["positives"], "models": models, "pairs": pairs,
        "transfer": {"wanted": wanted_specificity}
        | {f"{what}{end}": own[f"{what}{end}"] for what in ("sensitivity", "specificity")
           for end in ("", "_low", "_high")},
        "recalibration": _recalibration(labels, shared / temperature, confidence),
    }  # fmt: skip


def _recalibration(labels: ArrayLike, logits: Any, confidence: float) -> Document:
    after = cross_fitted(labels, logits, folds=FOLDS)
    return {
        "folds": FOLDS, "before": _fit(labels, logits, confidence),
        "after": None if after is None else _fit(labels, after, confidence),
    }  # fmt: skip


def _fit(labels: ArrayLike, logits: ArrayLike, confidence: float) -> Document:
    found = calibration(labels, logits, confidence=confidence)
    return {"slope": found.slope, "intercept": found.intercept, "adaptive_ece": found.adaptive_ece,
            "brier": found.brier}  # fmt: skip
