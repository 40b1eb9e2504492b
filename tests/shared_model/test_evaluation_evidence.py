"""Counts instead of scores, recalls at matched sensitivity, what a point means where cancer is rare, and its use."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit

from shared_model.evaluation.auc import auc_interval, paired_delong, roc_auc, roc_points
from shared_model.evaluation.calibration import calibration
from shared_model.evaluation.decision import decision_curve
from shared_model.evaluation.deployment import deployment
from shared_model.evaluation.joint import binned_calibration, binned_roc, joint_histogram, joint_result, marginal
from shared_model.evaluation.meta import pooled_share, random_effects
from shared_model.evaluation.operating import operating_point, wilson
from shared_model.evaluation.recalibration import Platt, fit_platt, platt_step, platt_sums, shift_prior
from shared_model.evaluation.recalls import false_positive_rate, recall_reduction
from shared_model.evaluation.use import risk_bands, rule_out, rule_out_threshold
from tests.shared_model.test_evaluation_against_others import women

BINS = 32


def binned(logits: np.ndarray) -> np.ndarray:
    """Each woman's score replaced by the middle of her bin."""
    return np.minimum((expit(logits) * BINS).astype(int), BINS - 1) + 0.5


def test_three_sites_counts_give_the_pooled_test_of_the_binned_scores_exactly() -> None:
    y, one, two = women(900)
    parts = np.array_split(np.arange(900), 3)
    tables = [joint_histogram(y[i], one[i], two[i], bins=BINS) for i in parts]
    assert sum(int(t.sum()) for t in tables) == 900
    found = joint_result(tables, confidence=0.95)
    gap = paired_delong(y, binned(one), binned(two), confidence=0.95)
    for name in ("value", "low", "high", "p"):
        assert getattr(found.difference, name) == pytest.approx(getattr(gap, name)), name
    for ours, scores in ((found.first, one), (found.second, two)):
        exact = auc_interval(y, binned(scores), confidence=0.95)
        assert (ours.value, ours.low, ours.high) == pytest.approx((exact.value, exact.low, exact.high))
        assert ours.value == pytest.approx(roc_auc(y, scores), abs=0.004)  # and binning costs little
    assert (found.n, found.positives, found.noise_share) == (900, int(y.sum()), 0.0)


def test_curves_of_counts_are_those_of_the_binned_scores() -> None:
    y, one, two = women(900)
    tables = [joint_histogram(y, one, two, bins=BINS)]
    first = marginal(tables, model=0)
    np.testing.assert_array_equal(first[1], np.histogram(expit(one[y == 1]), bins=BINS, range=(0, 1))[0])
    curve = {tuple(np.round(p, 9)) for p in roc_points(y, binned(two), limit=1000)}
    assert curve <= {tuple(np.round(p, 9)) for p in binned_roc(marginal(tables, model=1))}
    exact = calibration(y, logit(binned(one) / BINS))
    assert binned_calibration(first) == pytest.approx((exact.slope, exact.intercept))
    assert binned_roc(np.zeros((2, 4))) == []
    assert binned_calibration([[3.0, 1.0], [0.0, 0.0]]) == (None, None)


def test_noise_widens_the_interval_by_as_much_as_the_estimates_scatter() -> None:
    y, one, two = women(3000)
    table, rng, std = joint_histogram(y, one, two, bins=8).astype(float), np.random.default_rng(1), 3.0
    noised = [joint_result([table + rng.normal(0, std, table.shape)], confidence=0.95, noise_std=std)
              for _ in range(400)]  # fmt: skip
    quiet = joint_result([table], confidence=0.95)
    found = np.array([r.difference.value for r in noised])
    assert abs(found.mean() - quiet.difference.value) < 3 * found.std() / 20
    predicted = np.mean([(r.difference.high - r.difference.low) / (2 * 1.96) * r.noise_share**0.5 for r in noised])
    assert found.std() == pytest.approx(predicted, rel=0.15)
    halves = joint_result([table / 2 + rng.normal(0, std, table.shape) for _ in range(2)], confidence=0.95,
                          noise_std=std)  # fmt: skip
    assert halves.noise_share > noised[0].noise_share  # each site adds its own


def test_tables_that_do_not_fit_together_are_refused() -> None:
    for wrong in ([], [np.zeros((2, 4, 4)), np.zeros((2, 8, 8))], [np.zeros((2, 4))], [np.full((2, 4, 4), np.nan)]):
        with pytest.raises(ValueError, match="need tables"):
            joint_result(wrong, confidence=0.95)
    assert joint_result([np.zeros((2, 4, 4))], confidence=0.95).difference.p is None


def test_recalls_at_matched_sensitivity() -> None:
    y = np.array([1] * 10 + [0] * 10)
    perfect, shifted = np.r_[np.arange(10) + 10, np.arange(10)], np.r_[np.arange(10) + 5, np.arange(10)]
    assert false_positive_rate(y, perfect, sensitivity=1.0) == 0.0
    assert false_positive_rate(y, shifted, sensitivity=1.0) == 0.5
    assert false_positive_rate(y, shifted, sensitivity=0.8) == pytest.approx(0.3)
    y, one, two = women(900)
    found = recall_reduction(y, one, two, sensitivity=0.85, confidence=0.95, replicates=400, seed=3)
    assert found.fewer.value == pytest.approx(1 - found.first / found.second)
    assert 0 < found.fewer.low < found.fewer.value < found.fewer.high < 1
    assert found.p == pytest.approx(1 / 400)
    same = recall_reduction(y, one, one, sensitivity=0.85, confidence=0.95, replicates=100, seed=3)
    assert (same.fewer.value, same.fewer.low, same.p) == (0.0, 0.0, 1.0)
    back = recall_reduction(y, two, one, sensitivity=0.85, confidence=0.95, replicates=100, seed=3)
    assert back.fewer.value < 0


def test_predictive_values_at_a_screening_prevalence() -> None:
    """Worked by hand: of 1,000 women 6 have cancer, 4.8 are found; 994 x 0.1 are recalled in vain."""
    y = np.repeat([1, 0], [100, 100])
    scores = np.r_[np.ones(80), np.zeros(20), np.ones(10), np.zeros(90)]
    point = operating_point(y, scores, threshold=0.5, confidence=0.95)
    found = deployment(point, positives=100, negatives=100, prevalence=0.006, confidence=0.95)
    assert found is not None
    assert (found.recalls, found.found, found.missed) == pytest.approx((104.2, 4.8, 1.2))
    assert found.ppv.value == pytest.approx(4.8 / 104.2)
    assert found.npv.value == pytest.approx(994 * 0.9 / (994 * 0.9 + 1.2))
    assert found.ppv.low < found.ppv.value < found.ppv.high and found.npv.low < found.npv.value < found.npv.high
    perfect = operating_point(y, y.astype(float), threshold=0.5, confidence=0.95)
    edge = deployment(perfect, positives=100, negatives=100, prevalence=0.006, confidence=0.95)
    assert edge is not None and edge.ppv.value == 1.0 and edge.ppv.low < 0.5 and edge.npv.high == 1.0


def test_coverage_of_the_predictive_values_interval() -> None:
    rng, hits = np.random.default_rng(0), 0
    truth = 0.05 * 0.8 / (0.05 * 0.8 + 0.95 * 0.1)
    y = np.repeat([1, 0], [80, 200])
    for _ in range(500):
        s = np.r_[rng.random(80) < 0.8, rng.random(200) < 0.1].astype(float)
        found = deployment(operating_point(y, s, threshold=0.5, confidence=0.95), positives=80, negatives=200,
                           prevalence=0.05, confidence=0.95)  # fmt: skip
        hits += found.ppv.low <= truth <= found.ppv.high
    assert 0.92 < hits / 500 < 0.985


def test_decision_curve() -> None:
    y = np.repeat([1, 0], [20, 80])
    assert decision_curve(y, y, thresholds=[0.1]) == [[0.1, pytest.approx(0.2), pytest.approx(0.2 - 0.8 / 9)]]
    rows = decision_curve(y, np.full(100, 0.5), prevalence=0.006, thresholds=[0.01])
    assert rows[0][1] == rows[0][2] == pytest.approx(0.006 - 0.994 / 99)  # recalls all
    assert decision_curve(np.ones(3), np.ones(3)) == []
    with pytest.raises(ValueError, match="threshold"):
        decision_curve(y, y, thresholds=[1.0])


def test_sites_sums_fit_the_line_that_all_women_would() -> None:
    y, s, _ = women(900)
    whole, line = fit_platt(y, s), Platt(1.0, 0.0)
    for _ in range(12):
        sums = [platt_sums(y[i], s[i], line) for i in np.array_split(np.arange(900), 3)]
        line = platt_step(line, sum(g for g, _ in sums), sum(h for _, h in sums))
    assert whole is not None
    assert (line.slope, line.intercept) == pytest.approx((whole.slope, whole.intercept))
    assert calibration(y, whole(s)).slope == pytest.approx(1.0)
    assert fit_platt(np.ones(5), np.arange(5.0)) is None and fit_platt([0, 1], [0.0, 1.0]) is None
    with pytest.raises(ValueError, match="do not determine"):
        platt_step(line, np.zeros(2), np.zeros((2, 2)))


def test_prior_shift_is_bayes_rule() -> None:
    p = np.array([0.1, 0.5, 0.9])
    odds = p / (1 - p) * (0.006 / 0.994) / (0.3 / 0.7)
    np.testing.assert_allclose(expit(shift_prior(logit(p), trained=0.3, target=0.006)), odds / (1 + odds))
    with pytest.raises(ValueError, match="prevalences"):
        shift_prior([0.0], trained=0.0, target=0.5)


def test_random_effects_at_the_edges() -> None:
    assert random_effects([], [], confidence=0.95) is None
    one = random_effects([0.5], [0.1], confidence=0.95)
    assert one is not None and one.mean.low == pytest.approx(0.304, abs=1e-3) and one.new_site is None
    alike = random_effects([0.5, 0.5, 0.5], [0.1, 0.2, 0.3], confidence=0.95)
    assert alike is not None and (alike.tau2, alike.i2) == (0.0, 0.0) and alike.mean.value == pytest.approx(0.5)
    with pytest.raises(ValueError, match="standard error"):
        random_effects([0.5], [0.0], confidence=0.95)
    y, s, _ = women(900)
    areas = [auc_interval(y[i], s[i], confidence=0.95) for i in np.array_split(np.arange(900), 4)]
    pooled = pooled_share(areas, confidence=0.95)
    assert pooled is not None and pooled.k == 4
    assert pooled.mean.low < pooled.mean.value < pooled.mean.high < 1
    assert pooled.mean.value == pytest.approx(roc_auc(y, s), abs=0.02)


def test_shares_at_the_edge_do_not_break_the_pool() -> None:
    edge, inner = wilson(0, 5, confidence=0.95), wilson(3, 5, confidence=0.95)
    assert pooled_share([edge], confidence=0.95).mean == edge
    assert pooled_share([edge, inner], confidence=0.95).k == 1
    assert pooled_share([edge, edge], confidence=0.95) is None


def test_hartung_knapp_covers_what_it_should_with_four_sites() -> None:
    rng, hits = np.random.default_rng(0), 0
    errors = np.array([0.1, 0.15, 0.2, 0.3])
    for _ in range(500):
        found = random_effects(rng.normal(1.0, 0.3, 4) + rng.normal(0, errors), errors, confidence=0.95)
        hits += found.mean.low <= 1.0 <= found.mean.high
    assert hits / 500 > 0.925


def test_ruling_out_keeps_the_sensitivity_it_was_chosen_for() -> None:
    y, s, _ = women(900)
    threshold = rule_out_threshold(y, s, sensitivity=0.97)
    assert threshold is not None
    found = rule_out(y, s, threshold=threshold, prevalence=0.006, confidence=0.95)
    assert found is not None and found.sensitivity.value >= 0.97
    assert found.missed == pytest.approx(6 * (1 - found.sensitivity.value))
    assert found.set_aside == pytest.approx((s[y == 0] <= threshold).mean(), abs=0.01)
    assert rule_out_threshold(np.zeros(4), s[:4], sensitivity=0.9) is None


def test_bands_count_every_woman_once() -> None:
    y, s, _ = women(900)
    rows = risk_bands(y, expit(s), confidence=0.95)
    assert [r["name"] for r in rows] == ["low", "moderate", "raised", "high"]
    assert sum(r["n"] for r in rows) == 900 and sum(r["positives"] for r in rows) == y.sum()
    rates = [r["rate"] for r in rows if r["n"] > 20]
    assert rates == sorted(rates)
    with pytest.raises(ValueError, match="ascend"):
        risk_bands(y, expit(s), confidence=0.95, edges=[0.5, 0.2])
