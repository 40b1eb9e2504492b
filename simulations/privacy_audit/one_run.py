"""A lower bound on epsilon from one run: membership of many examples guessed right too often; pure functions.

Steinke, Nasr and Jagielski (2023, https://arxiv.org/abs/2305.08846), theorem 5.2: if each of m examples was put into
the data by a fair coin, and a training is (epsilon, delta)-private, then an auditor who guesses r of them has v or more
right with probability at most that of a Binomial(r, 1 / (1 + exp(-epsilon))), and a term for delta.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CLEAREST = 1 / 8  # of the examples guessed in, and as many guessed out, by who guesses only where it is clearest
MOST = 20.0


class Bound(NamedTuple):
    """epsilon: at least so much, with the stated confidence. guesses, right: that it rests on."""

    epsilon: float
    guesses: int
    right: int


def p_value(*, examples: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Probability at most that an (epsilon, delta)-private training lets `right` or more of `guesses` be right."""
    q = 1.0 / (1.0 + math.exp(-epsilon))
    beta = float(stats.binom.sf(right - 1, guesses, q))
    masses = stats.binom.pmf(np.arange(right + 1), guesses, q)
    # sum_{j=1..i} P[X = right - j], over i, for i = 1..right: the greatest is what delta can add.
    sums = np.cumsum(masses[right - 1 :: -1]) if right else np.zeros(1)
    alpha = float(np.max(sums / np.arange(1, len(sums) + 1)))
    return min(1.0, beta + 2.0 * examples * delta * alpha)


def epsilon_at_least(*, examples: int, guesses: int, right: int, delta: float, error: float) -> float:
    """Greatest epsilon that is refuted with confidence 1 - error; 0 when none is."""
    def refuted(epsilon: float) -> bool:
        return p_value(examples=examples, guesses=guesses, right=right, epsilon=epsilon, delta=delta) < error

    if not refuted(0.0):
        return 0.0
    low, high = 0.0, MOST
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def bound(scores: NDArray[np.float64], inside: NDArray[np.bool_], *, delta: float, error: float) -> Bound:
    """The better of two auditors: one guesses all examples by the sign of their scores, the other only the clearest.

    Args:
        scores: of each example, above zero for more likely in than out.
        inside: whether it was, by independent fair coins.
        error: probability at most that the bound is above a true epsilon; each auditor has half of it.
    """
    order, few = np.argsort(scores, kind="stable"), max(1, int(len(scores) * CLEAREST))
    auditors = (
        (len(scores), int(np.sum((scores > 0) == inside))),
        (2 * few, int((~inside[order[:few]]).sum() + inside[order[-few:]].sum())),
    )  # fmt: skip
    bounds = [
        Bound(epsilon_at_least(examples=len(scores), guesses=guesses, right=right, delta=delta, error=error / 2),
              guesses, right)
        for guesses, right in auditors
    ]  # fmt: skip
    return max(bounds)


def power(examples: int, *, delta: float, error: float) -> float:
    """The bound that an auditor who is always right would show: claims above it cannot be refuted."""
    inside = np.arange(examples) % 2 == 0
    return bound(inside - 0.5, inside, delta=delta, error=error).epsilon
