"""Every statistic of a report against somebody else's: scikit-learn, scipy, statsmodels, MLstatkit."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
from MLstatkit import Delong_test
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score
from statsmodels.stats.meta_analysis import combine_effects
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from shared_model.evaluation.auc import average_precision, delong_variance, paired_delong, partial_auc, roc_auc
from shared_model.evaluation.calibration import calibration
from shared_model.evaluation.meta import random_effects
from shared_model.evaluation.multiple import holm
from shared_model.evaluation.operating import wilson
from shared_model.evaluation.recalibration import fit_platt


def women(n: int = 500, *, seed: int = 0, ties: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and two models' logits."""
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.3).astype(int)
    common = rng.normal(size=n)
    one, two = (rng.normal(gain * y - 1 + 0.7 * common, 1) for gain in (1.6, 1.1))
    return (y, one.round(1), two.round(1)) if ties else (y, one, two)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_areas_are_scikit_learns(seed: int, ties: bool) -> None:
    y, s, _ = women(seed=seed, ties=ties)
    assert roc_auc(y, s) == pytest.approx(roc_auc_score(y, s))
    assert average_precision(y, s) == pytest.approx(average_precision_score(y, s))
    for edge in (0.05, 0.15, 0.5, 1.0):
        assert partial_auc(y, s, max_fpr=edge) == pytest.approx(roc_auc_score(y, s, max_fpr=edge))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_delong_is_mlstatkits(seed: int, ties: bool) -> None:
    y, one, two = women(seed=seed, ties=ties)
    z, p, (low, high), _, auc_one, auc_two, _ = Delong_test(y, one, two)
    gap = paired_delong(y, one, two, confidence=0.95)
    assert (gap.value, gap.p) == pytest.approx((auc_one - auc_two, p))
    assert gap.value is not None and gap.low is not None
    assert -gap.value / ((gap.value - gap.low) / 1.959964) == pytest.approx(z, rel=1e-5)
    error = np.sqrt(delong_variance(y, one)[1][0, 0])
    assert (auc_one - 1.959964 * error, auc_one + 1.959964 * error) == pytest.approx((low, high), rel=1e-5)


def test_wilson_is_statsmodels() -> None:
    for found, of in ((0, 7), (7, 7), (3, 50), (92, 100)):
        ours = wilson(found, of, confidence=0.9)
        assert (ours.low, ours.high) == pytest.approx(proportion_confint(found, of, alpha=0.1, method="wilson"))


@pytest.mark.parametrize("seed", range(3))
def test_calibration_line_and_its_errors_are_statsmodels(seed: int) -> None:
    y, s, _ = women(seed=seed)
    ours = calibration(y, s, confidence=0.95)
    line = sm.GLM(y, sm.add_constant(s), family=sm.families.Binomial()).fit()
    large = sm.GLM(y, np.ones((len(y), 1)), family=sm.families.Binomial(), offset=s).fit()
    assert ours.slope == pytest.approx(line.params[1], rel=1e-6)
    assert (ours.slope_interval.low, ours.slope_interval.high) == pytest.approx(line.conf_int()[1], rel=1e-5)
    assert ours.intercept == pytest.approx(large.params[0], rel=1e-6)
    bounds = large.conf_int()[0]
    assert (ours.intercept_interval.low, ours.intercept_interval.high) == pytest.approx(bounds, rel=1e-5)
    assert ours.brier == pytest.approx(brier_score_loss(y, expit(s)))


def test_platt_is_an_unpenalised_logistic_regression() -> None:
    y, s, _ = women()
    theirs = LogisticRegression(C=np.inf, tol=1e-10).fit(s[:, None], y)
    line = fit_platt(y, s)
    assert line is not None
    assert (line.slope, line.intercept) == pytest.approx((theirs.coef_[0, 0], theirs.intercept_[0]), rel=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_random_effects_are_statsmodels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    errors = rng.uniform(0.05, 0.3, 6)
    estimates = rng.normal(1.5, 0.4, 6) + rng.normal(0, errors)
    theirs = combine_effects(estimates, errors**2, method_re="dl", use_t=True, alpha=0.05)
    ours = random_effects(estimates.tolist(), errors.tolist(), confidence=0.95)
    assert ours is not None
    assert ours.tau2 == pytest.approx(max(theirs.tau2, 0.0))
    assert ours.i2 == pytest.approx(max(theirs.i2, 0.0))
    assert ours.mean.value == pytest.approx(theirs.mean_effect_re)
    error = max(theirs.sd_eff_w_re_hksj, theirs.sd_eff_w_re)
    low, high = theirs.mean_effect_re - 2.570582 * error, theirs.mean_effect_re + 2.570582 * error
    assert (ours.mean.low, ours.mean.high) == pytest.approx((low, high), rel=1e-5)


def test_holm_is_statsmodels() -> None:
    p = np.random.default_rng(0).uniform(0, 0.2, 9)
    ours = holm({str(i): float(value) for i, value in enumerate(p)})
    assert list(ours.values()) == pytest.approx(multipletests(p, method="holm")[1])
