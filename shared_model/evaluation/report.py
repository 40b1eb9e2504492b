"""The JSON documents of an evaluation: what leaves the evaluator; written by the trainer, read by server and report.

`selection` (every evaluated round)::

    {"n", "positives", "auc": {"fused", "image", "clinical"}, "thresholds": {the same names, "rule_out"}, "temperature",
     "brier" (fused, after temperature)}

`test` (opened once, at the end)::

    {"n", "positives",
     "models": {"fused" | "image" | "clinical": {"auc", "auc_low", "auc_high", "average_precision",
        "sensitivity", "sensitivity_low", "sensitivity_high", "specificity", "specificity_low", "specificity_high",
        "threshold", "brier", "calibration_slope", "calibration_intercept", "ece",
        "roc": [[false positive rate, sensitivity], ...], "calibration": [[stated, observed, n], ...]}},
     "comparisons": {"fused_vs_image", "fused_vs_clinical": {"difference", "low", "high", "p"}}   (paired DeLong; with
        `reference` also "fused_vs_public"),
     "bootstrap": {"replicates", "models": {name: {"auc_low", "auc_high", "sensitivity_low", "sensitivity_high"}},
        "comparisons": {name: {"low", "high"}}}   (only with replicates and both classes),
     "evidence": {"prevalence", "sensitivity", "primary", "replicates",
        "rule_out": {"wanted", "threshold", "sensitivity"*, "set_aside", "missed"} | null,
        "second_reader": see `second_reader` (absent where nobody's reading of these women is known),
        "models": {name: model_evidence}, "pairs": {name: pair_evidence with "p_adjusted"}}   (see `evidence`),
     "gate": {"image_mean", "image_sd"}   (over women with both modalities; null without),
     "subgroups": [{"name", "level", "n", "positives", "auc", "auc_low", "auc_high"} | {"name", "level", "suppressed"}]
        (with a threshold for the fused model also its sensitivity and specificity there, with intervals)}

A number that the patients do not determine (no positive, say) is null. Thresholds are on logits, `score > threshold` is
positive, and they come from `selection` alone; a model without a threshold gets null there. The temperature was fitted
to the fused logit and is applied to it alone; ranks do not depend on it. A woman without films has the public prior as
image score, likewise without a table, so that all models are judged on the same women. Needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shared_model.errors import CohortError
from shared_model.evaluation.auc import auc_interval, average_precision, paired_delong, roc_auc, roc_points
from shared_model.evaluation.bootstrap import bootstrap, percentile_interval
from shared_model.evaluation.calibration import calibration, fit_temperature
from shared_model.evaluation.evidence import PREVALENCE, SENSITIVITY, adjusted, model_evidence, pair_evidence, three
from shared_model.evaluation.operating import operating_point, threshold_at_specificity
from shared_model.evaluation.scores import Scores
from shared_model.evaluation.second_reader import second_reader
from shared_model.evaluation.subgroups import subgroup_table
from shared_model.evaluation.use import rule_out, rule_out_threshold
from shared_model.protocol import EvaluationTerms
from shared_model.readings import ARBITER, NO, READER, YES

if TYPE_CHECKING:
    import pandas as pd

Document = dict[str, Any]
COMPARISONS = (("fused", "image"), ("fused", "clinical"))
RULE_OUT = 0.97  # share of cancers that ruling out must keep, on `selection`; `test` shows what it keeps there
DECISIONS = {YES: 1.0, NO: 0.0}
BOOTSTRAP_SEED = 20_261_122  # fixed and public: who repeats the report gets the same bounds


def selection_report(scores: Scores, terms: EvaluationTerms) -> Document:
    """The `selection` document.

    Raises:
        CohortError: the split lacks positives or negatives, so that nothing can be chosen on it.
    """
    positives = int(scores.labels.sum())
    if not 0 < positives < len(scores):
        raise CohortError(
            "the selection split needs positives and negatives", found=f"{positives} positives of {len(scores)}",
            remedy="prepare a larger held-out cohort",
        )  # fmt: skip
    models, labels = scores.models, scores.labels
    temperature = fit_temperature(labels, scores.fused)
    lowest = rule_out_threshold(labels, scores.fused, sensitivity=RULE_OUT)
    return {
        "n": len(scores),
        "positives": positives,
        "auc": {name: roc_auc(labels, s) for name, s in models.items()},
        "thresholds": {
            name: threshold_at_specificity(labels, s, specificity=terms.specificity) for name, s in models.items()
        } | ({} if lowest is None else {"rule_out": lowest}),
        "temperature": temperature,
        "brier": calibration(labels, scores.fused, temperature=temperature).brier,
    }


def test_report(
    scores: Scores,
    thresholds: Mapping[str, float],
    temperature: float,
    terms: EvaluationTerms,
    attributes: pd.DataFrame,
    reference: NDArray[np.float64] | None = None,
) -> Document:
    """The `test` document.

    Args:
        scores: of the split.
        thresholds: on logits, by model name, from `selection`.
        temperature: of the fused logit, from `selection`.
        terms: confidence of all intervals, replicates of the bootstrap.
        attributes: of the same patients in the same order, for subgroups.
        reference: scores [N] of the initial weights on the same patients, for what hospitals added to them.

    Raises:
        CohortError: the split is empty.
    """
    if len(scores) == 0:
        raise CohortError("the split to report on is empty", remedy="prepare a larger cohort")
    document: Document = {
        "n": len(scores),
        "positives": int(scores.labels.sum()),
        "models": {
            name: _model(scores, name, thresholds.get(name), temperature if name == "fused" else 1.0, terms)
            for name in scores.models
        },
        "comparisons": {
            f"{a}_vs_{b}": _comparison(scores.labels, scores.models[a], scores.models[b], terms) for a, b in COMPARISONS
        },
        "gate": _gate(scores),
        "subgroups": subgroup_table(scores.labels, scores.fused, attributes, confidence=terms.confidence,
                                    threshold=thresholds.get("fused")),
        "evidence": _evidence(scores, thresholds, temperature, terms, reference)
        | _second_reader(scores, thresholds.get("fused"), attributes, terms),
    }  # fmt: skip
    if reference is not None:
        document["comparisons"]["fused_vs_public"] = _comparison(scores.labels, scores.fused, reference, terms)
    if terms.bootstrap and 0 < document["positives"] < len(scores):
        document["bootstrap"] = _bootstrap(scores, thresholds, terms)
    return document


test_report.__test__ = False  # type: ignore[attr-defined]  # a report on the test split, not a test


def _model(
    scores: Scores, name: str, threshold: float | None, temperature: float, terms: EvaluationTerms
) -> Document:
    labels, s = scores.labels, scores.models[name]
    auc = auc_interval(labels, s, confidence=terms.confidence)
    fit = calibration(labels, s, temperature=temperature)
    document: Document = {
        "auc": auc.value, "auc_low": auc.low, "auc_high": auc.high, "average_precision": average_precision(labels, s),
        "threshold": threshold,
        **dict.fromkeys(f"{what}{end}" for what in ("sensitivity", "specificity") for end in ("", "_low", "_high")),
        "brier": fit.brier, "calibration_slope": fit.slope, "calibration_intercept": fit.intercept, "ece": fit.ece,
        "roc": roc_points(labels, s), "calibration": fit.bins,
    }  # fmt: skip
    if threshold is not None:
        point = operating_point(labels, s, threshold=threshold, confidence=terms.confidence)
        for what, share in (("sensitivity", point.sensitivity), ("specificity", point.specificity)):
            document |= {what: share.value, f"{what}_low": share.low, f"{what}_high": share.high}
    return document


def _evidence(
    scores: Scores, thresholds: Mapping[str, float], temperature: float, terms: EvaluationTerms,
    reference: NDArray[np.float64] | None,
) -> Document:  # fmt: skip
    prevalence, sensitivity = terms.prevalence or PREVALENCE, terms.sensitivity or SENSITIVITY
    others = {"image": scores.image, "clinical": scores.clinical} | ({} if reference is None else {"public": reference})
    pairs = {
        f"fused_vs_{name}": pair_evidence(scores.labels, scores.fused, other, confidence=terms.confidence,
                                          sensitivity=sensitivity, replicates=terms.bootstrap)
        for name, other in others.items()
    }  # fmt: skip
    p = adjusted(pairs, primary=terms.primary)
    return {
        "rule_out": _rule_out(scores, thresholds.get("rule_out"), prevalence, terms.confidence),
        "prevalence": prevalence, "sensitivity": sensitivity, "primary": terms.primary, "replicates": terms.bootstrap,
        "models": {
            name: model_evidence(
                scores.labels, s, threshold=thresholds.get(name), confidence=terms.confidence, prevalence=prevalence,
                temperature=temperature if name == "fused" else 1.0, curves=False,
            )
            for name, s in scores.models.items()
        },
        "pairs": {name: row | {"p_adjusted": p[name]} for name, row in pairs.items()},
    }  # fmt: skip


def _rule_out(scores: Scores, threshold: float | None, prevalence: float, confidence: float) -> Document | None:
    """Women whom the model would set aside as at no need of a reader, by a threshold that `selection` chose."""
    found = None if threshold is None else rule_out(
        scores.labels, scores.fused, threshold=threshold, prevalence=prevalence, confidence=confidence
    )  # fmt: skip
    if found is None:
        return None
    return {"wanted": RULE_OUT, "threshold": found.threshold, **three("sensitivity", found.sensitivity),
            "set_aside": found.set_aside, "missed": found.missed}  # fmt: skip


def _second_reader(
    scores: Scores, threshold: float | None, attributes: pd.DataFrame, terms: EvaluationTerms
) -> Document:
    """The model beside radiologists, where the cohort knows what they decided."""
    if threshold is None or READER not in attributes:
        return {}
    reader, arbiter = ([DECISIONS.get(said, math.nan) for said in attributes[name].tolist()] if name in attributes
                       else None for name in (READER, ARBITER))  # fmt: skip
    assert reader is not None
    found = second_reader(
        scores.labels, reader, scores.fused, threshold=threshold, arbiter=arbiter, confidence=terms.confidence,
        prevalence=terms.prevalence or PREVALENCE,
    )  # fmt: skip
    return {} if found is None else {"second_reader": found}


def _comparison(
    labels: NDArray[np.uint8], first: NDArray[np.float64], second: NDArray[np.float64], terms: EvaluationTerms
) -> Document:
    gap = paired_delong(labels, first, second, confidence=terms.confidence)
    return {"difference": gap.value, "low": gap.low, "high": gap.high, "p": gap.p}


def _gate(scores: Scores) -> Document:
    both = (scores.gate > 0).all(axis=1)
    image = scores.gate[both, 0]
    return {
        "image_mean": float(np.mean(image)) if len(image) else None,
        "image_sd": float(np.std(image)) if len(image) else None,
    }


def _bootstrap(scores: Scores, thresholds: Mapping[str, float], terms: EvaluationTerms) -> Document:
    drawn = bootstrap(
        scores.labels, scores.models, thresholds=thresholds, replicates=terms.bootstrap, seed=BOOTSTRAP_SEED
    )
    models: dict[str, Document] = {}
    for name, values in drawn.auc.items():
        low, high = percentile_interval(values, confidence=terms.confidence)
        models[name] = {"auc_low": low, "auc_high": high, "sensitivity_low": None, "sensitivity_high": None}
    for name, values in drawn.sensitivity.items():
        low, high = percentile_interval(values, confidence=terms.confidence)
        models[name] |= {"sensitivity_low": low, "sensitivity_high": high}
    comparisons = {}
    for a, b in COMPARISONS:
        low, high = percentile_interval(drawn.auc[a] - drawn.auc[b], confidence=terms.confidence)
        comparisons[f"{a}_vs_{b}"] = {"low": low, "high": high}
    return {"replicates": terms.bootstrap, "models": models, "comparisons": comparisons}
