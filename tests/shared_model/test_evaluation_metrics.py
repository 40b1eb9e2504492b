"""Metrics against brute force, closed forms and published values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from shared_model.evaluation.auc import (
    auc_interval,
    average_precision,
    components,
    delong_variance,
    paired_delong,
    roc_auc,
    roc_points,
    split_classes,
)
from shared_model.evaluation.bootstrap import bootstrap, percentile_interval
from shared_model.evaluation.calibration import calibration, fit_temperature
from shared_model.evaluation.collapse import collapse_alarm
from shared_model.evaluation.operating import operating_point, threshold_at_specificity, wilson

Floats = NDArray[np.float64]


def patients(n: int = 400, *, seed: int = 0, prevalence: float = 0.26) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Labels and two correlated scores, the first the better one."""
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < prevalence).astype(np.int64)
    one = rng.normal(1.3 * y)
    return y, one, 0.6 * one + rng.normal(0.4 * y)


def kernel(positives: Floats, negatives: Floats) -> Floats:
    """The Mann-Whitney kernel of every pair [m, n]: 1, 1/2 for a tie, 0."""
    gap = positives[:, None] - negatives[None, :]
    return np.where(gap > 0, 1.0, np.where(gap == 0, 0.5, 0.0))


def brute_force(y: NDArray[np.int64], *scores: Floats) -> tuple[Floats, Floats]:
    """AUCs and DeLong covariance straight from all pairs, as equations 1-5 of DeLong et al. 1988 state them."""
    kernels = [kernel(s[y == 1], s[y == 0]) for s in scores]
    m, n = kernels[0].shape
    aucs = np.array([k.sum() / (m * n) for k in kernels])
    covariance = np.zeros((len(scores), len(scores)))
    for r, one in enumerate(kernels):
        for s, two in enumerate(kernels):
            v10 = sum((one[i].mean() - aucs[r]) * (two[i].mean() - aucs[s]) for i in range(m)) / (m - 1)
            v01 = sum((one[:, j].mean() - aucs[r]) * (two[:, j].mean() - aucs[s]) for j in range(n)) / (n - 1)
            covariance[r, s] = v10 / m + v01 / n
    return aucs, covariance


@given(
    data=st.lists(st.tuples(st.sampled_from([0, 1]), st.integers(-3, 3), st.integers(-3, 3)), min_size=4, max_size=40)
)
@settings(max_examples=100)
def test_delong_is_the_brute_force_u_statistic(data: list[tuple[int, int, int]]) -> None:
    """With many ties on purpose: integers from -3 to 3."""
    y, one, two = (np.array(column) for column in zip(*data, strict=True))
    if min(y.sum(), len(y) - y.sum()) < 2:
        with pytest.raises(ValueError, match="two patients"):
            delong_variance(y, one)
        return
    expected_aucs, expected = brute_force(y, one.astype(float), two.astype(float))
    aucs, covariance = delong_variance(y, one, two)
    np.testing.assert_allclose(aucs, expected_aucs, atol=1e-12)
    np.testing.assert_allclose(covariance, expected, atol=1e-12)


def test_components_are_placements() -> None:
    y, one, _ = patients(60)
    positives, negatives = split_classes(y, one.round(1))
    pairs = kernel(positives, negatives)
    first, second = components(positives, negatives)
    np.testing.assert_allclose(first, pairs.mean(1))
    np.testing.assert_allclose(second, pairs.mean(0))


def test_auc_precision_and_curve_agree_with_scikit_learn() -> None:
    y, one, two = patients()
    for s in (one, two, one.round(1), np.zeros(len(y))):
        assert roc_auc(y, s) == pytest.approx(roc_auc_score(y, s), abs=1e-12)
        assert average_precision(y, s) == pytest.approx(average_precision_score(y, s), abs=1e-12)
    fpr, tpr, _ = roc_curve(y, one, drop_intermediate=False)
    np.testing.assert_allclose(np.array(roc_points(y, one, limit=10_000)), np.column_stack([fpr, tpr]))
    short = np.array(roc_points(y, one, limit=200))
    assert len(short) == 200
    assert short[0].tolist() == [0, 0]
    assert short[-1].tolist() == [1, 1]
    assert (np.diff(short, axis=0) >= 0).all()


def test_intervals_cover_what_they_promise() -> None:
    """Binormal scores of known AUC: some 95 % of the intervals hold it; 4 standard errors of 400 trials is 4.4 %."""
    truth, held = 0.821, 0
    for seed in range(400):
        y, one, _ = patients(150, seed=seed)
        interval = auc_interval(y, one, confidence=0.95)
        assert interval.low is not None
        assert interval.high is not None
        held += interval.low <= truth <= interval.high
    assert 0.906 <= held / 400 <= 0.994


def test_a_test_of_equal_models_rejects_as_often_as_it_says() -> None:
    rejected = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        y = (rng.random(150) < 0.3).astype(int)
        common = rng.normal(y * 1.0)
        p = paired_delong(y, common + rng.normal(size=150), common + rng.normal(size=150), confidence=0.95).p
        assert p is not None
        rejected += p < 0.05
    assert 0.006 <= rejected / 400 <= 0.094


def test_paired_comparison_is_antisymmetric_and_consistent() -> None:
    y, one, two = patients()
    ab, ba = (paired_delong(y, *pair, confidence=0.95) for pair in ((one, two), (two, one)))
    assert ab.value is not None
    assert ab.low is not None
    assert ab.high is not None
    assert ab.value == pytest.approx(roc_auc_score(y, one) - roc_auc_score(y, two))
    assert (ab.value, ab.p) == (pytest.approx(-ba.value), pytest.approx(ba.p))  # type: ignore[operator]
    assert (ab.low > 0) == (ab.p < 0.05)  # type: ignore[operator]
    same = paired_delong(y, one, 3 * one + 1, confidence=0.95)
    assert (same.value, same.p) == (pytest.approx(0.0), 1.0)


def test_without_a_class_there_is_no_number() -> None:
    nobody = auc_interval([0, 0, 0], [1.0, 2.0, 3.0], confidence=0.95)
    assert (nobody.value, nobody.low, nobody.high) == (None, None, None)
    one = auc_interval([0, 0, 1], [1.0, 2.0, 3.0], confidence=0.95)
    assert (one.value, one.low, one.high) == (1.0, None, None)
    assert average_precision([0, 0], [0.1, 0.2]) is None
    assert roc_points([1, 1], [0.1, 0.2]) == []
    gap = paired_delong([0, 0, 1], [1.0, 2, 3], [3.0, 2, 1], confidence=0.95)
    assert (gap.value, gap.p) == (1.0, None)
    assert paired_delong([0, 0], [1.0, 2], [3.0, 2], confidence=0.95).value is None


def test_a_perfect_ranking_is_not_certain() -> None:
    y = np.array([0] * 30 + [1] * 20)
    perfect = auc_interval(y, y.astype(float), confidence=0.95)
    assert perfect.value == 1.0
    assert perfect.low == pytest.approx(0.025 ** (1 / 20))
    assert perfect.high == 1.0
    worst = auc_interval(y, -y.astype(float), confidence=0.95)
    assert (worst.low, worst.value) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("labels", "scores"), [([0, 1], [0.5]), ([0, 2], [0.1, 0.2]), ([0, 1], [0.1, math.nan]), ([[0, 1]], [[0.1, 0.2]])]
)
def test_bad_input_is_refused(labels: list[int], scores: list[float]) -> None:
    with pytest.raises(ValueError, match=r"labels"):
        roc_auc(labels, scores)


@given(
    negatives=st.lists(st.integers(0, 20), min_size=1, max_size=60),
    specificity=st.sampled_from([0.5, 0.85, 0.9, 0.95, 1.0]),
)
@settings(max_examples=100)
def test_a_threshold_keeps_its_specificity_and_no_lower_score_would(negatives: list[int], specificity: float) -> None:
    y, s = np.zeros(len(negatives)), np.array(negatives, dtype=float)
    t = threshold_at_specificity(y, s, specificity=specificity)
    assert (s <= t).mean() >= specificity - 1e-9
    lower = s[s < t]
    if len(lower):
        assert (s <= lower.max()).mean() < specificity
    point = operating_point(y, s, threshold=t, confidence=0.95)
    assert point.specificity.value == pytest.approx((s <= t).mean())
    assert point.sensitivity.value is None


def test_operating_point_counts() -> None:
    y = np.array([0] * 10 + [1] * 5)
    s = np.array([*range(10), 3, 8, 9, 10, 11], dtype=float)
    t = threshold_at_specificity(y, s, specificity=0.85)
    assert t == 8.0
    point = operating_point(y, s, threshold=t, confidence=0.95)
    assert point.specificity.value == 0.9
    assert point.sensitivity.value == 0.6
    with pytest.raises(ValueError, match="negative"):
        threshold_at_specificity([1, 1], [0.1, 0.2], specificity=0.85)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_values(successes: int, trials: int, low: float, high: float) -> None:
    interval = wilson(successes, trials, confidence=0.95)
    assert interval.low == pytest.approx(low, abs=5e-5)
    assert interval.high == pytest.approx(high, abs=5e-5)
    assert wilson(0, 0, confidence=0.95).value is None


def test_calibration_of_probabilities_that_are_right_and_wrong() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(-1, 1.2, 40_000)
    y = (rng.random(len(z)) < expit(z)).astype(float)
    right = calibration(y, z)
    assert right.slope == pytest.approx(1, abs=0.05)
    assert right.intercept == pytest.approx(0, abs=0.05)
    assert right.ece < 0.01
    assert right.brier == pytest.approx(np.mean(expit(z) * (1 - expit(z))), abs=0.005)
    extreme = calibration(y, 2 * z)
    assert extreme.slope == pytest.approx(0.5, abs=0.03)
    shifted = calibration(y, z + 1)
    assert shifted.slope == pytest.approx(1, abs=0.05)
    assert shifted.intercept == pytest.approx(-1, abs=0.05)
    assert shifted.ece > 0.1
    assert sum(n for _, _, n in right.bins) == len(y)
    assert len(right.bins) == 10


def test_calibration_where_it_is_not_determined() -> None:
    assert calibration([0, 0, 0], [0.1, 0.2, 0.3]).slope is None
    apart = calibration([0, 0, 1, 1], [-2.0, -1.0, 1.0, 2.0])
    assert apart.slope is None
    assert apart.intercept is not None
    assert calibration([0, 1, 0, 1], [0.5] * 4).slope is None
    with pytest.raises(ValueError, match="finite"):
        calibration([], [])


@pytest.mark.parametrize("truth", [0.5, 1.0, 3.0])
def test_temperature_is_found_again(truth: float) -> None:
    rng = np.random.default_rng(1)
    z = rng.normal(0, 1.5, 20_000)
    y = (rng.random(len(z)) < expit(z)).astype(float)
    found = fit_temperature(y, truth * z)
    assert found == pytest.approx(truth, rel=0.05)

    def nll(t: float) -> float:
        return float(np.logaddexp(0, np.where(y == 1, -1, 1) * truth * z / t).mean())

    assert nll(found) <= min(nll(found * 1.02), nll(found / 1.02))


def test_temperature_stays_bounded_where_the_likelihood_has_no_maximum() -> None:
    assert fit_temperature([0, 0, 1, 1], [-2.0, -1, 1, 2]) == pytest.approx(0.05, rel=1e-3)
    assert fit_temperature([1, 1, 0, 0], [-2.0, -1, 1, 2]) == pytest.approx(20.0, rel=1e-3)


def test_bootstrap_is_the_resampled_statistic() -> None:
    """Replicates are recomputed one by one, with repeated patients, by another implementation."""
    y, one, two = patients(80)
    two = two.round(1)
    drawn = bootstrap(y, {"a": one, "b": two}, thresholds={"a": 0.5}, replicates=300, seed=5)
    assert drawn.auc["a"].shape == drawn.auc["b"].shape == drawn.sensitivity["a"].shape == (300,)
    assert set(drawn.sensitivity) == {"a"}
    rng = np.random.default_rng(5)
    m, n = int(y.sum()), int((1 - y).sum())
    takes = rng.multinomial(m, np.full(m, 1 / m), size=250), rng.multinomial(n, np.full(n, 1 / n), size=250)
    for r in range(5):
        for name, s in (("a", one), ("b", two)):
            ones, zeros = np.repeat(s[y == 1], takes[0][r]), np.repeat(s[y == 0], takes[1][r])
            again = roc_auc_score([1] * m + [0] * n, np.concatenate([ones, zeros]))
            assert drawn.auc[name][r] == pytest.approx(again, abs=1e-12)
        assert drawn.sensitivity["a"][r] == pytest.approx((np.repeat(one[y == 1], takes[0][r]) > 0.5).mean())


def test_bootstrap_agrees_with_delong_and_repeats() -> None:
    y, one, two = patients(600)
    drawn = bootstrap(y, {"a": one, "b": two}, thresholds={}, replicates=2000, seed=1)
    low, high = percentile_interval(drawn.auc["a"], confidence=0.95)
    interval = auc_interval(y, one, confidence=0.95)
    assert (low, high) == (pytest.approx(interval.low, abs=0.01), pytest.approx(interval.high, abs=0.01))
    gap = paired_delong(y, one, two, confidence=0.95)
    low, high = percentile_interval(drawn.auc["a"] - drawn.auc["b"], confidence=0.95)
    assert (low, high) == (pytest.approx(gap.low, abs=0.01), pytest.approx(gap.high, abs=0.01))
    again = bootstrap(y, {"a": one, "b": two}, thresholds={}, replicates=2000, seed=1)
    assert np.array_equal(drawn.auc["a"], again.auc["a"])
    with pytest.raises(ValueError, match="both classes"):
        bootstrap([1, 1], {"a": np.ones(2)}, thresholds={}, replicates=10, seed=0)


@pytest.mark.parametrize(
    ("history", "alarm"),
    [
        ([], False), ([0.5], False), ([0.7, 0.5], True), ([0.7, 0.5, 0.5], False), ([0.5, 0.52, 0.55], False),
        ([0.5, 0.7, 0.69], False), ([0.7, None, 0.5], True), ([0.7, 0.5, None], True), ([0.7, 0.5, 0.7, 0.4], True),
        ([None, None], False),
    ],
)  # fmt: skip
def test_collapse_alarm(history: list[float | None], alarm: bool) -> None:
    found = collapse_alarm(history, floor=0.6)
    assert (found is not None) == alarm
    if found:
        assert found.best >= 0.6 > found.auc
        assert f"{found.auc:.3f}" in found.text
