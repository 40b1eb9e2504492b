"""How much noise a wanted epsilon takes; called when a protocol is written (never during a round)."""

from __future__ import annotations

import math

from scipy.optimize import brentq

from client.privacy.accountant import Account
from shared_model.errors import PrivacyError

LEAST, MOST = 0.2, 1000.0  # noise multipliers; below 0.2 epsilon is in the hundreds and protects nobody
DIGITS = 4


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
    while low >= high and spent(low) <= epsilon:
        if low <= LEAST:
            return LEAST
        low, high = max(LEAST, low / 2.0), low
    sigma = math.exp(float(brentq(excess, math.log(low), math.log(high), xtol=1e-4)))
    sigma = float(math.ceil(sigma * 10**DIGITS) / 10**DIGITS)
    while spent(sigma) > epsilon:  # the root is known to 1e-4 only, and the bound must hold
        sigma = float(round(sigma + 10**-DIGITS, DIGITS))
    return sigma
