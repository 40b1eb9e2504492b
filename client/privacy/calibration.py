"""How much noise a wanted epsilon takes; called when a protocol is written (never during a round)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.optimize import brentq

from client.privacy.accountant import Account
from shared_model.errors import PrivacyError

LEAST, MOST = 0.2, 1000.0  # noise multipliers; below 0.2 epsilon is in the hundreds and protects nobody
DIGITS = 4


@dataclass(frozen=True, kw_only=True)
class Spending:
    """What one phase of a study is to spend: its share of epsilon, q, and its steps over all its rounds."""

    share: float
    sample_rate: float
    steps: int


def noise_multipliers_for(*, epsilon: float, delta: float, phases: Sequence[Spending]) -> tuple[float, ...]:
    """Sigma of each phase (four decimals, rounded up) so that all phases together cost at most `epsilon`.

    Each phase's sigma is first what its share of epsilon would take if it were alone. Shares are exact for one phase;
    several compose to less than the sum of what each costs alone, and what that saves is given back to all alike: every
    sigma is scaled by the one number that brings the composed PRV epsilon up to `epsilon`.

    Args:
        epsilon, delta: target over the whole study.
        phases: in order; shares are above 0 and sum to 1.

    Raises:
        PrivacyError: shares that do not sum to 1, or no sigma up to 1000 suffices.
    """
    if not phases or abs(sum(p.share for p in phases) - 1.0) > 1e-6 or any(p.share <= 0 for p in phases):
        raise PrivacyError("the phases' shares of epsilon must be above 0 and add up to 1",
                           found=[p.share for p in phases], remedy="set epsilon_share of each phase")  # fmt: skip
    alone = [
        noise_multiplier_for(epsilon=epsilon * p.share, delta=delta, sample_rate=p.sample_rate, steps=p.steps)
        for p in phases
    ]
    if len(phases) == 1:
        return tuple(alone)

    def scaled(scale: float) -> tuple[float, ...]:
        return tuple(math.ceil(sigma * scale * 10**DIGITS) / 10**DIGITS for sigma in alone)

    def spent(scale: float) -> float:
        account = Account()
        for sigma, p in zip(scaled(scale), phases, strict=True):
            account = account.add(noise_multiplier=sigma, sample_rate=p.sample_rate, steps=p.steps)
        return account.epsilon(delta=delta)

    low, high = 0.3, 1.0
    while high - low > 1e-3:  # the larger end always holds the budget
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) > epsilon else (low, middle)
    return scaled(high)


def noise_multiplier_for(*, epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
    """Least sigma (four decimals, rounded up) whose PRV epsilon after all `steps` is at most `epsilon`.

    Args:
        epsilon: target over the whole study, dimensionless, above 0.
        delta: in (0, 1).
        sample_rate: q in (0, 1].
        steps: optimiser steps over all rounds.

    Raises:
        PrivacyError: no sigma up to 1000 suffices.
    """

    def spent(sigma: float) -> float:
        return Account().add(noise_multiplier=sigma, sample_rate=sample_rate, steps=steps).epsilon(delta=delta)

    def excess(log_sigma: float) -> float:
        return math.log(spent(math.exp(log_sigma)) / epsilon)

    if not epsilon > 0:
        raise PrivacyError("epsilon must be above 0", found=epsilon)
    low, high = 1.0, 1.0
    while spent(high) > epsilon:
        low, high = high, high * 2.0
        if high > MOST:
            raise PrivacyError("the privacy budget is too small for any useful training", found=epsilon,
                               remedy="raise epsilon, or lower the sampling rate or the number of steps")  # fmt: skip
    while spent(low) <= epsilon:
        if low <= LEAST:
            return LEAST
        low, high = max(LEAST, low / 2.0), low
    sigma = math.exp(float(brentq(excess, math.log(low), math.log(high), xtol=1e-4)))
    sigma = float(math.ceil(sigma * 10**DIGITS) / 10**DIGITS)
    while spent(sigma) > epsilon:  # the root is known to 1e-4 only, and the bound must hold
        sigma = float(round(sigma + 10**-DIGITS, DIGITS))
    return sigma
