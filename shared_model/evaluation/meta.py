"""Several sites' or populations' estimates put together: random effects; used by reports. Needs no torch.

Between-site variance by DerSimonian and Laird 1986 (Controlled Clinical Trials 7:177). Interval by Hartung and Knapp
2001 (Stat Med 20:3875) with t on k - 1 degrees of freedom, its error never below that of DerSimonian and Laird (the
modification of Roever, Knapp and Friede 2015, BMC Med Res Methodol 15:99). Prediction interval of Higgins, Thompson and
Spiegelhalter 2009 (JRSS A 172:137) with t on k - 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from shared_model.evaluation.auc import Interval


@dataclass(frozen=True)
class Pooled:
    """mean: of the sites' true values. k: sites that entered. tau2: variance between sites, on the scale of the
    estimates. i2: share of the scatter that is between sites, in [0, 1]. new_site: where a further site's true value is
    expected; None below three sites. p: two-sided, that the mean is 0 on that scale."""

    mean: Interval
    k: int
    tau2: float
    i2: float
    new_site: tuple[float, float] | None
    p: float | None = None


def random_effects(estimates: Sequence[float], errors: Sequence[float], *, confidence: float) -> Pooled | None:
    """Put estimates together; None without any.

    Args:
        estimates: of the sites; errors: their standard errors, above 0.

    Raises:
        ValueError: lengths differ, or an error is not above 0 and finite.
    """
    y, s = np.asarray(estimates, dtype=np.float64), np.asarray(errors, dtype=np.float64)
    if y.shape != s.shape or not np.isfinite(y).all() or not (np.isfinite(s) & (s > 0)).all():
        raise ValueError("each estimate needs a standard error above 0")
    k = len(y)
    if k == 0:
        return None
    weight = 1 / s**2
    if k == 1:
        reach, only = float(ndtri((1 + confidence) / 2) * s[0]), float(y[0])
        return Pooled(Interval(only, only - reach, only + reach), 1, 0.0, 0.0, None, 2 * float(ndtr(-abs(only) / s[0])))
    fixed = float(weight @ y / weight.sum())
    q = float(weight @ (y - fixed) ** 2)
    tau2 = max(0.0, (q - (k - 1)) / float(weight.sum() - (weight**2).sum() / weight.sum()))
    weight = 1 / (s**2 + tau2)
    mean = float(weight @ y / weight.sum())
    scale = max(1.0, float(weight @ (y - mean) ** 2) / (k - 1))
    error = math.sqrt(scale / float(weight.sum()))
    reach = float(stdtrit(k - 1, (1 + confidence) / 2)) * error
    new_site = None
    if k > 2:
        far = float(stdtrit(k - 2, (1 + confidence) / 2)) * math.sqrt(tau2 + 1 / float(weight.sum()))
        new_site = mean - far, mean + far
    i2 = max(0.0, 1 - (k - 1) / q) if q > 0 else 0.0
    p = 2 * float(stdtr(k - 1, -abs(mean) / error))
    return Pooled(Interval(mean, mean - reach, mean + reach), k, tau2, i2, new_site, p)


def pooled_share(intervals: Sequence[Interval], *, confidence: float) -> Pooled | None:
    """AUCs or shares of sites on the logit scale, back on their own; those without an interval, or with a value or a
    bound of 0 or 1, do not enter. A single one is returned as it is.

    `tau2` stays on the logit scale. `confidence` must be that of the intervals.
    """
    z = float(ndtri((1 + confidence) / 2))
    if len(intervals) == 1:
        return Pooled(intervals[0], 1, 0.0, 0.0, None)
    known = [
        (_logit(i.value), (_logit(i.high) - _logit(i.low)) / (2 * z)) for i in intervals
        if i.value is not None and i.low is not None and i.high is not None and 0 < i.low < i.high < 1
        and 0 < i.value < 1
    ]  # fmt: skip
    found = random_effects([y for y, _ in known], [s for _, s in known], confidence=confidence)
    if found is None:
        return None
    mean = found.mean
    assert mean.value is not None and mean.low is not None and mean.high is not None
    back = Interval(_expit(mean.value), _expit(mean.low), _expit(mean.high))
    new = found.new_site
    return Pooled(back, found.k, found.tau2, found.i2, None if new is None else (_expit(new[0]), _expit(new[1])))


def pooled_difference(gaps: Sequence[Interval], *, confidence: float) -> Pooled | None:
    """Differences as they are; those without an interval do not enter. `confidence` must be that of the intervals."""
    z = float(ndtri((1 + confidence) / 2))
    known = [(i.value, (i.high - i.low) / (2 * z)) for i in gaps
             if i.value is not None and i.low is not None and i.high is not None and i.high > i.low]  # fmt: skip
    return random_effects([y for y, _ in known], [s for _, s in known], confidence=confidence)


def _logit(p: float) -> float:
    return math.log(p / (1 - p))


def _expit(x: float) -> float:
    return 1 / (1 + math.exp(-x))
