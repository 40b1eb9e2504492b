"""How much noise a wanted epsilon takes; called when a protocol is written (never during a round).

The accountant takes up to a second an answer, so it is asked as seldom as may be: the search begins where the central
limit theorem puts sigma, follows the accountant's coarse estimate, and asks for the bound itself three times or so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from client.privacy.accountant import Account
from shared_model.errors import PrivacyError

LEAST, MOST = 0.2, 1000.0  # noise multipliers; below 0.2 epsilon is in the hundreds and protects nobody
UNIT = 10_000  # four decimals
SCALE_LEAST, SCALE_STEPS = 0.3, 1024  # of several phases' sigmas: 0.3 to 1 in that many steps
SECANTS = 6  # of a search; where they have not found the place (a kink of the bound), halving does

Asked = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Spending:
    """What one phase of a study is to spend: its share of epsilon, q, and its steps over all its rounds."""

    share: float
    sample_rate: float
    steps: int


def noise_multipliers_for(
    *, epsilon: float, delta: float, phases: Sequence[Spending], asked: Asked = lambda: None
) -> tuple[float, ...]:
    """Sigma of each phase (four decimals, rounded up) so that all phases together cost at most `epsilon`.

    Each phase's sigma is first what its share of epsilon would take if it were alone. Shares are exact for one phase;
    several compose to less than the sum of what each costs alone, and what that saves is given back to all alike: every
    sigma is scaled by the one number that brings the composed PRV epsilon up to `epsilon`.

    Args:
        epsilon, delta: target over the whole study.
        phases: in order; shares are above 0 and sum to 1.
        asked: called before each question to the accountant, for who shows how far it is.

    Raises:
        PrivacyError: shares that do not sum to 1, no sigma up to 1000 suffices, or together they cost more.
    """
    if not phases or abs(sum(p.share for p in phases) - 1.0) > 1e-6 or any(p.share <= 0 for p in phases):
        raise PrivacyError("the phases' shares of epsilon must be above 0 and add up to 1",
                           found=[p.share for p in phases], remedy="set epsilon_share of each phase")  # fmt: skip
    alone = [
        noise_multiplier_for(epsilon=epsilon * p.share, delta=delta, sample_rate=p.sample_rate, steps=p.steps,
                             asked=asked)
        for p in phases
    ]  # fmt: skip
    if len(phases) == 1:
        return tuple(alone)

    def scaled(step: int) -> tuple[float, ...]:
        scale = SCALE_LEAST + (1.0 - SCALE_LEAST) * step / SCALE_STEPS
        return tuple(math.ceil(sigma * scale * UNIT) / UNIT for sigma in alone)

    def spent(step: int) -> float:
        asked()
        account = Account()
        for sigma, p in zip(scaled(step), phases, strict=True):
            account = account.add(noise_multiplier=sigma, sample_rate=p.sample_rate, steps=p.steps)
        return account.epsilon(delta=delta)

    found = _least(spent, epsilon, low=0, high=SCALE_STEPS, guess=round(0.8 * SCALE_STEPS))
    if found == SCALE_STEPS and spent(found) > epsilon:  # not to be expected; it was not asked yet, and is a promise
        raise PrivacyError("the phases together cost more than epsilon", found=epsilon,
                           remedy="give the phases more equal shares of epsilon")  # fmt: skip
    return scaled(found)


def noise_multiplier_for(
    *, epsilon: float, delta: float, sample_rate: float, steps: int, asked: Asked = lambda: None
) -> float:
    """Least sigma of four decimals whose PRV epsilon after all `steps` is at most `epsilon`; at least 0.2.

    Args:
        epsilon: target over the whole study, dimensionless, above 0.
        delta: in (0, 1).
        sample_rate: q in (0, 1].
        steps: optimiser steps over all rounds.
        asked: called before each question to the accountant.

    Raises:
        PrivacyError: no sigma up to 1000 suffices.
    """
    if not epsilon > 0:
        raise PrivacyError("epsilon must be above 0", found=epsilon)

    def account(sigma: int) -> Account:
        asked()
        return Account().add(noise_multiplier=sigma / UNIT, sample_rate=sample_rate, steps=steps)

    def spent(sigma: int) -> float:
        return account(sigma).epsilon(delta=delta)

    def about(sigma: int) -> float:
        return account(sigma).estimate(delta=delta)

    low, high = round(LEAST * UNIT) - 1, round(MOST * UNIT)
    guess = round(UNIT * _sigma_in_the_limit(epsilon, delta=delta, sample_rate=sample_rate, steps=steps))
    near = _least(about, epsilon, low=low, high=high, guess=guess, exact=False)
    found = _least(spent, epsilon, low=low, high=high, guess=near)
    if found == high and spent(high) > epsilon:
        raise PrivacyError("the privacy budget is too small for any useful training", found=epsilon,
                           remedy="raise epsilon, or lower the sampling rate or the number of steps")  # fmt: skip
    return found / UNIT


def _least(
    spent: Callable[[int], float], target: float, *, low: int, high: int, guess: int, exact: bool = True
) -> int:  # fmt: skip
    """The least number above `low` at which `spent`, which falls, is at most `target`, by secants of its logarithm;
    `low` is known not to hold and `high` to hold (neither is asked). exact: no, to some 1e-5 of it is enough."""
    seen: list[tuple[float, float]] = []  # logarithms: number, what is spent over the target
    at = min(max(guess, low + 1), high - 1)
    while high - low > 1:
        over = math.log(max(spent(at), 1e-12) / target)
        low, high = (at, high) if over > 0 else (low, at)
        seen.append((math.log(at), over))
        slope = -1.0  # of epsilon over sigma where there are many steps
        if len(seen) > 1 and seen[-1][0] != seen[-2][0]:
            slope = min(-0.1, (seen[-1][1] - seen[-2][1]) / (seen[-1][0] - seen[-2][0]))
        step = min(max(-over / slope, -math.log(4)), math.log(4))
        if not exact and abs(step) < 1e-5:
            return at
        wanted = math.ceil(at * math.exp(step) - 1e-9) if len(seen) <= SECANTS else (low + high) // 2
        at = min(max(wanted, low + 1), high - 1)
    return high


def _sigma_in_the_limit(epsilon: float, *, delta: float, sample_rate: float, steps: int) -> float:
    """Sigma of Gaussian differential privacy for many steps at a small rate (Bu, Dong, Long, Su 2020,
    arXiv:1911.11607, Corollary 4): mu = q sqrt(T (exp(1/sigma^2) - 1)). A guess, no bound."""

    def exceeded(mu: float) -> bool:
        first = math.erfc((epsilon / mu - mu / 2) / math.sqrt(2)) / 2
        second = math.erfc((epsilon / mu + mu / 2) / math.sqrt(2)) / 2
        return first - (math.exp(min(epsilon, 700.0)) * second if second else 0.0) > delta

    low, high = 1e-6, 1e3
    for _ in range(50):
        mu = math.sqrt(low * high)
        low, high = (low, mu) if exceeded(mu) else (mu, high)
    return 1.0 / math.sqrt(math.log1p((low / sample_rate) ** 2 / max(steps, 1)))
