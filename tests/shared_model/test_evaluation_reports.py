"""Scoring a cohort, the JSON documents, subgroups, and metrics from counts."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit

from shared_model.cohort.batch import PatientBatch
from shared_model.errors import CohortError, WeightsError
from shared_model.evaluation import (
    Scores,
    evaluate_cohort,
    metrics_from_histogram,
    score_histogram,
    selection_report,
    test_report,
)
from shared_model.evaluation.auc import auc_interval, roc_auc
from shared_model.evaluation.subgroups import subgroup_table
from shared_model.fusion import FusionConfig, FusionModel, build_model
from shared_model.protocol import EvaluationTerms

TERMS = EvaluationTerms(
    selection_rule="best_selection_auc", every=1, specificity=0.85, confidence=0.95, bootstrap=200, collapse_auc=0.55
)
F, H, W, N = 8, 40, 40, 23


class Women:
    """A cohort in memory: hands out batches and counts them."""

    def __init__(self, count: int = N) -> None:
        g = torch.Generator().manual_seed(0)
        mask = torch.rand(count, 4, generator=g) > 0.3
        pixels = torch.rand(count, 4, 2, H, W, generator=g) * mask[:, :, None, None, None]
        labels = (torch.rand(count, generator=g) > 0.6).float()
        table = torch.rand(count, generator=g) > 0.2
        self.all = PatientBatch(pixels, mask, torch.randn(count, F, generator=g), table, labels)
        self.sizes: list[int] = []

    def batch(self, indices: object) -> PatientBatch:
        at = torch.as_tensor(np.asarray(indices))
        self.sizes.append(len(at))
        b = self.all
        return PatientBatch(
            b.pixels_BVCHW[at], b.view_mask_BV[at], b.clinical_BF[at], b.clinical_mask_B[at], b.labels_B[at]
        )


def tiny() -> FusionModel:
    return build_model(
        FusionConfig(size="tiny", fusion="gated", n_clinical=F, height=H, width=W), seed=0, prevalence=0.3
    )


def made_up(n: int = 400, *, seed: int = 0) -> Scores:
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.3).astype(np.uint8)
    image, clinical = rng.normal(1.2 * y - 1), rng.normal(0.9 * y - 1)
    gate = np.column_stack([np.full(n, 0.6), np.full(n, 0.4)])
    gate[:5] = [1.0, 0.0]
    return Scores(y, image + clinical + 1, image, clinical, gate)


def test_scores_come_in_the_order_asked_and_do_not_depend_on_the_batch() -> None:
    model, women = tiny(), Women()
    order = [7, 3, 22, 0, 11, 4, 19]
    model.fold_views = False
    model.train()
    one = evaluate_cohort(model, women, order, batch_size=3, device=torch.device("cpu"))
    assert women.sizes == [3, 3, 1]
    assert model.training
    assert not model.fold_views
    two = evaluate_cohort(model, women, order, batch_size=100, device=torch.device("cpu"))
    with torch.no_grad():
        direct = model(women.batch(order))
    for got in (one, two):
        np.testing.assert_allclose(got.fused, direct.logit_B.numpy(), atol=1e-5)
        np.testing.assert_allclose(got.image, direct.image_logit_B.numpy(), atol=1e-5)
        np.testing.assert_allclose(got.clinical, direct.clinical_logit_B.numpy(), atol=1e-5)
        np.testing.assert_allclose(got.gate, direct.gate_B2.numpy(), atol=1e-5)
        assert got.labels.tolist() == women.all.labels_B[order].tolist()
    empty = evaluate_cohort(model, women, [], batch_size=4, device=torch.device("cpu"))
    assert len(empty) == 0
    assert empty.gate.shape == (0, 2)


def test_a_model_that_has_blown_up_is_refused() -> None:
    model = tiny()
    with torch.no_grad():
        model.image_head.bias.fill_(float("nan"))
    with pytest.raises(WeightsError, match="not finite"):
        evaluate_cohort(model, Women(), range(N), batch_size=8, device=torch.device("cpu"))


def test_selection_document() -> None:
    scores = made_up()
    document = json.loads(json.dumps(selection_report(scores, TERMS), allow_nan=False))
    assert set(document) == {"n", "positives", "auc", "thresholds", "temperature", "brier"}
    assert set(document["auc"]) == {"fused", "image", "clinical"}
    assert set(document["thresholds"]) == {"fused", "image", "clinical", "rule_out"}
    assert (scores.fused[scores.labels == 1] > document["thresholds"]["rule_out"]).mean() >= 0.97
    assert document["auc"]["fused"] == pytest.approx(roc_auc(scores.labels, scores.fused))
    negatives = scores.fused[scores.labels == 0]
    assert (negatives <= document["thresholds"]["fused"]).mean() == pytest.approx(0.85, abs=0.005)
    assert document["temperature"] > 0
    for labels in (np.zeros(400, np.uint8), np.ones(400, np.uint8)):
        with pytest.raises(CohortError, match="positives and negatives"):
            selection_report(Scores(labels, scores.fused, scores.image, scores.clinical, scores.gate), TERMS)


def test_test_document() -> None:
    chosen = selection_report(made_up(seed=1), TERMS)
    scores = made_up()
    attributes = pd.DataFrame({"vendor": ["A", "B"] * 200})
    document = json.loads(
        json.dumps(
            test_report(scores, chosen["thresholds"], chosen["temperature"], TERMS, attributes), allow_nan=False
        )
    )
    assert set(document) == {
        "n", "positives", "models", "comparisons", "gate", "subgroups", "bootstrap", "evidence",
    }  # fmt: skip
    assert set(document["models"]) == {"fused", "image", "clinical"}
    fused = document["models"]["fused"]
    assert set(fused) == {
        "auc", "auc_low", "auc_high", "average_precision", "sensitivity", "sensitivity_low", "sensitivity_high",
        "specificity", "specificity_low", "specificity_high", "threshold", "brier", "calibration_slope",
        "calibration_intercept", "ece", "roc", "calibration",
    }  # fmt: skip
    assert fused["auc_low"] < fused["auc"] < fused["auc_high"]
    assert fused["threshold"] == chosen["thresholds"]["fused"]
    assert fused["specificity"] == pytest.approx((scores.fused[scores.labels == 0] <= fused["threshold"]).mean())
    assert fused["specificity"] != 0.85, "the realised one, not the one that was asked for"
    assert len(fused["roc"]) <= 200
    gap = document["comparisons"]["fused_vs_image"]
    assert gap["difference"] == pytest.approx(fused["auc"] - document["models"]["image"]["auc"])
    assert gap["low"] < gap["difference"] < gap["high"]
    assert gap["p"] < 0.05
    drawn = document["bootstrap"]
    assert drawn["replicates"] == 200
    assert drawn["models"]["fused"]["auc_low"] < fused["auc"] < drawn["models"]["fused"]["auc_high"]
    assert drawn["comparisons"]["fused_vs_image"]["low"] < gap["difference"]
    assert [(row["name"], row["level"], row["n"]) for row in document["subgroups"]] == [
        ("vendor", "A", 200), ("vendor", "B", 200),
    ]  # fmt: skip
    assert document["gate"]["image_mean"] == pytest.approx(0.6)
    aside = document["evidence"]["rule_out"]
    assert aside["threshold"] == chosen["thresholds"]["rule_out"] and 0 < aside["set_aside"] < 1


def test_temperature_changes_the_fused_probabilities_alone() -> None:
    scores, attributes = made_up(), pd.DataFrame(index=range(400))
    one, two = (test_report(scores, {}, t, TERMS, attributes) for t in (1.0, 3.0))
    assert one["models"]["image"] == two["models"]["image"]
    assert one["models"]["fused"]["brier"] != two["models"]["fused"]["brier"]
    assert one["models"]["fused"]["auc"] == two["models"]["fused"]["auc"]
    assert one["models"]["fused"]["threshold"] is None
    assert one["models"]["fused"]["sensitivity"] is None


@pytest.mark.parametrize("label", [0, 1])
def test_a_site_without_one_class_still_gets_its_document(label: int) -> None:
    scores = made_up(50)
    bare = Scores(np.full(50, label, np.uint8), scores.fused, scores.image, scores.clinical, scores.gate)
    document = test_report(bare, {"fused": 0.0}, 1.0, TERMS, pd.DataFrame({"vendor": ["A"] * 50}))
    json.dumps(document, allow_nan=False)
    fused = document["models"]["fused"]
    assert fused["auc"] is None
    assert (fused["sensitivity"] is None) == (label == 0)
    assert (fused["specificity"] is None) == (label == 1)
    assert "bootstrap" not in document
    assert document["comparisons"]["fused_vs_image"]["p"] is None
    with pytest.raises(CohortError, match="empty"):
        test_report(Scores(*(a[:0] for a in (bare.labels, bare.fused, bare.image, bare.clinical, bare.gate))),
                    {}, 1.0, TERMS, pd.DataFrame())  # fmt: skip


def test_subgroups_are_banded_and_small_ones_suppressed() -> None:
    scores = made_up(100)
    attributes = pd.DataFrame(
        {
            "pseudonym": [f"{i:016x}" for i in range(100)],
            "vendor": ["A"] * 60 + ["B"] * 31 + ["C"] * 9,
            "density": ["b"] * 50 + [None] * 50,
            "age_years": [45.0] * 20 + [50.0] * 20 + [69.9] * 20 + [70.0] * 20 + [float("nan")] * 20,
            "height": np.arange(100.0),
        }
    )
    rows = subgroup_table(scores.labels, scores.fused, attributes, confidence=0.95)
    assert [(r["name"], r["level"]) for r in rows] == [
        ("vendor", "A"), ("vendor", "B"), ("vendor", "C"), ("density", "b"), ("density", "unknown"),
        ("age_years", "under 50"), ("age_years", "50-59"), ("age_years", "60-69"), ("age_years", "70 and over"),
        ("age_years", "unknown"),
    ]  # fmt: skip
    assert rows[2] == {"name": "vendor", "level": "C", "suppressed": True}
    assert rows[1] == {"name": "vendor", "level": "B", "suppressed": True}, "100 - 60 - 31 would tell the nine"
    first = auc_interval(scores.labels[:60], scores.fused[:60], confidence=0.95)
    assert (rows[0]["n"], rows[0]["auc"], rows[0]["auc_low"]) == (60, first.value, first.low)
    with pytest.raises(ValueError, match="99"):
        subgroup_table(scores.labels[:99], scores.fused[:99], attributes, confidence=0.95)


def test_a_histogram_counts_every_woman_once() -> None:
    scores = made_up()
    counts = score_histogram(scores.labels, scores.fused, 16)
    assert counts.dtype == np.int64
    assert counts.shape == (2, 16)
    assert counts.sum(axis=1).tolist() == [int((scores.labels == 0).sum()), int(scores.labels.sum())]
    index = np.floor(expit(scores.fused) * 16).astype(int)
    assert counts[1].tolist() == [int(((index == b) & (scores.labels == 1)).sum()) for b in range(16)]
    without = score_histogram(scores.labels[1:], scores.fused[1:], 16)
    assert np.abs(counts - without).sum() == 1, "one woman, one count"
    edges = score_histogram([0, 1], [-1e3, 1e3], 16)
    assert (edges[0, 0], edges[1, -1]) == (1, 1)


@pytest.mark.parametrize(("bins", "within"), [(16, 0.012), (64, 0.003), (256, 0.001)])
def test_metrics_from_counts_are_those_of_the_binned_scores(bins: int, within: float) -> None:
    scores = made_up(2000)
    found = metrics_from_histogram(score_histogram(scores.labels, scores.fused, bins))
    binned = np.floor(expit(scores.fused) * bins)
    exact = auc_interval(scores.labels, binned, confidence=0.95)
    assert found["auc"] == pytest.approx(exact.value, abs=1e-12)
    assert found["auc"] == pytest.approx(roc_auc(scores.labels, scores.fused), abs=within)
    assert found["auc_low"] == pytest.approx(exact.low, abs=0.002)
    assert found["auc_high"] == pytest.approx(exact.high, abs=0.002)
    assert found["brier"] == pytest.approx(np.mean((expit(scores.fused) - scores.labels) ** 2), abs=0.02)
    assert (found["n"], found["positives"]) == (2000, int(scores.labels.sum()))


def test_noise_widens_the_interval_as_it_should() -> None:
    scores = made_up(600)
    counts = score_histogram(scores.labels, scores.fused, 16).astype(float) + 20  # so that noise clips nothing
    rng = np.random.default_rng(0)
    noised = [metrics_from_histogram(counts + rng.normal(0, 3, counts.shape))["auc"] for _ in range(2000)]
    quiet = metrics_from_histogram(counts)
    loud = metrics_from_histogram(counts, noise_std=3.0)
    half = [(d["auc_high"] - d["auc_low"]) / 2 / 1.959964 for d in (quiet, loud)]  # type: ignore[operator]
    assert np.std(np.array(noised, dtype=float)) == pytest.approx(np.sqrt(half[1] ** 2 - half[0] ** 2), rel=0.1)


def test_counts_below_zero_and_empty_classes() -> None:
    found = metrics_from_histogram([[5.0, -2.0], [-1.0, 4.0]])
    assert (found["n"], found["positives"], found["auc"]) == (9.0, 4.0, 1.0)
    nobody = metrics_from_histogram([[5.0, 2.0], [-1.0, -0.5]])
    assert (nobody["auc"], nobody["auc_low"]) == (None, None)
    assert metrics_from_histogram(np.zeros((2, 4)))["brier"] is None
    with pytest.raises(ValueError, match="finite"):
        metrics_from_histogram([[np.nan, 1.0], [1.0, 1.0]])


def test_reports_need_no_torch() -> None:
    code = "import sys, shared_model.evaluation as e, shared_model.evaluation.report; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
