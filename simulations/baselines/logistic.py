"""Logistic regression on the encoded clinical table of all sites: what a statistician would try first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from shared_model.cohort import Cohort, split_indices
from simulations.baselines.jobs import POOLED_SITE
from simulations.baselines.scores import PartyScores
from simulations.parties import split_of

FOLDS, STRENGTHS = 5, (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def logistic_scores(config: Mapping[str, Any], cohorts: Mapping[str, Path], pooled: Path) -> dict[str, PartyScores]:
    """Fit on the training women of `pooled`, ridge penalty by five-fold cross-validated log loss, and score every
    party's test women. A woman without a row gets the mean logit of the training women.
    """
    cohort = Cohort.open(pooled)
    rows = split_indices(cohort, **split_of(config, POOLED_SITE))["train"]
    rows = rows[cohort.clinical_mask[rows]]
    model = make_pipeline(
        StandardScaler(),
        LogisticRegressionCV(Cs=list(STRENGTHS), cv=FOLDS, l1_ratios=(0.0,), scoring="neg_log_loss", max_iter=2000,
                             use_legacy_attributes=False),
    )  # fmt: skip
    model.fit(cohort.clinical[rows], cohort.labels[rows])
    middle = float(np.mean(model.decision_function(cohort.clinical[rows])))
    return {name: _scores(model, path, config, name, middle) for name, path in cohorts.items() if name != POOLED_SITE}


def _scores(model: Any, path: Path, config: Mapping[str, Any], name: str, middle: float) -> PartyScores:
    cohort = Cohort.open(path)
    rows = split_indices(cohort, **split_of(config, name))["test"]
    known: NDArray[np.bool_] = cohort.clinical_mask[rows]
    logit = np.full(len(rows), middle)
    if known.any():
        logit[known] = model.decision_function(cohort.clinical[rows[known]])
    nothing = np.zeros(len(rows))
    return PartyScores(labels=cohort.labels[rows], fused=logit, image=nothing, clinical=logit)
