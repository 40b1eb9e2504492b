"""Where a site's privacy spending leads: epsilon at the study's end and the last round that its budget allows.

A monitor cannot run the sites' accountant (it takes seconds and needs torch), so the way between what a site reported
last and the study's end is interpolated along the curve of Gaussian differential privacy: DP-SGD tends to a Gaussian
mechanism whose mu grows with the square root of x = sum of q^2 (exp(1/sigma^2) - 1) over steps (Bu, Dong, Long, Su
2020, arXiv:1911.11607), and epsilon follows from mu and delta (Dong, Roth, Su 2022, arXiv:1905.02383, corollary 2.13).
The curve is scaled so that all rounds together cost what the protocol was calibrated to; a test holds it against the
accountant. What a site itself reports is shown as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from shared_model.protocol import Protocol

HALVINGS = 60
TOLERANCE = 1.002  # of a budget: the last round of a calibrated study lands on it


def epsilon_of(mu: float, delta: float) -> float:
    """Epsilon of a mu-Gaussian mechanism at delta; 0 for mu = 0."""
    if mu <= 0:
        return 0.0

    def delta_of(epsilon: float) -> float:
        return _phi(mu / 2 - epsilon / mu) - math.exp(min(epsilon, 700.0)) * _phi(-mu / 2 - epsilon / mu)

    low, high = 0.0, 1.0
    while delta_of(high) > delta:
        low, high = high, high * 2
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_of(middle) > delta else (low, middle)
    return high


def _phi(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2.0))


@dataclass(frozen=True)
class Outlook:
    """What a protocol's rounds cost. costs: x of each round, from round 1; steps: until its end; scale: of mu."""

    costs: tuple[float, ...]
    steps: tuple[int, ...]
    scale: float
    delta: float

    @classmethod
    def of(cls, protocol: Protocol) -> Outlook:
        """The outlook of a study with privacy."""
        return _outlook(protocol)

    def curve(self, x: float) -> float:
        """Epsilon after rounds of cost x."""
        return _point(self.scale * math.sqrt(max(0.0, x)), self.delta)

    def spent(self, number: int, steps: int) -> tuple[float, bool]:
        """x of a site that says after round `number` that it has done so many steps, and whether it can have done them
        all in this study."""
        planned = self.steps[number - 1] if number else 0
        return sum(self.costs[:number]) * min(1.0, steps / planned if planned else 0.0), steps <= planned

    def project(
        self, epsilon: float, *, budget: float, spent: float, next_round: int, fresh: bool
    ) -> tuple[float, int | None]:
        """Epsilon at the end, and the last affordable round (None: all), for a site that takes part in all from
        `next_round` on.

        Args:
            epsilon: reported last. spent: x of what it did for that.
            fresh: its patients were in no study before; else what they have spent is sought on the curve.
        """
        spent = spent if fresh else self._inverse(epsilon)
        left = self.costs[next_round - 1 :]
        base, last = self.curve(spent), self.curve(spent + sum(left))
        # The curve's error at the last report fades towards the end, on which the protocol was calibrated.
        stretch = (last - epsilon) / (last - base) if last > base else 0.0
        x, affordable = spent, None
        for number, cost in enumerate(left, start=next_round):
            x += cost
            if epsilon + stretch * (self.curve(x) - base) > budget * TOLERANCE:
                affordable = number - 1
                break
        return max(epsilon, last), affordable

    def _inverse(self, epsilon: float) -> float:
        low, high = 0.0, max(sum(self.costs), 1e-12)
        while self.curve(high) < epsilon:
            low, high = high, high * 2
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if self.curve(middle) < epsilon else (low, middle)
        return high


@lru_cache(maxsize=1 << 16)
def _point(mu: float, delta: float) -> float:
    return epsilon_of(mu, delta)


@lru_cache(maxsize=64)
def _outlook(protocol: Protocol) -> Outlook:
    costs = tuple(
        protocol.steps(n) * protocol.sample_rate(n) ** 2 * math.expm1(min(protocol.noise_multiplier(n) ** -2, 500.0))
        for n in range(1, protocol.rounds + 1)
    )
    wanted, delta, total = protocol.privacy.epsilon, protocol.privacy.delta, math.sqrt(sum(costs))
    low, high = 1e-6, 1.0
    while epsilon_of(high * total, delta) < wanted and high < 1e9:
        low, high = high, high * 2
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if epsilon_of(middle * total, delta) < wanted else (low, middle)
    return Outlook(costs, tuple(accumulate(protocol.steps(n) for n in range(1, protocol.rounds + 1))), high, delta)


def words_of(epsilon: float, budget: float, projected: float, last_round: int | None, *, planned: int) -> str:
    """One site's outlook in a sentence."""
    spent = f"{epsilon:.2f} of {budget:.2f} is spent"
    if last_round is not None:
        end = "it can afford no further round" if last_round <= 0 else f"it drops out after round {last_round}"
        return f"{spent}; {end} of {planned}"
    return f"{spent}; about {projected:.2f} at the end"


def meaning(epsilon: float, delta: float) -> str:
    """What an epsilon means, in words for people who are no statisticians."""
    odds = math.exp(min(epsilon, 50.0))
    factor = f"{odds:.1f}" if odds < 10 else f"{odds:,.0f}" if odds < 1e6 else f"{odds:.0e}"
    return (
        f"Epsilon {epsilon:.2f} at delta {delta:g}, for each patient: whatever somebody knows already and does with "
        f"all that a site has sent, the odds that they give to one woman having been in the training change by at most "
        f"a factor of {factor}, but for a chance of {delta:g}. Smaller is better."
    )
