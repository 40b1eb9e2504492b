"""How much privacy some patients have spent: a list of plain numbers and one function of it; used by the ledger.

A row `(sigma, q, steps)` says that a mechanism with Gaussian noise of std sigma*C ran `steps` times on a Poisson
sample at rate q. Epsilon is for add-or-remove-one adjacency, by numerical composition of privacy loss random
variables (Gopi, Lee, Wutschitz 2021, arXiv:2106.02848) as Opacus implements it, always the upper bound; the tests
check it against the PLD of dp-accounting. Above `BEYOND`, where nobody is protected whatever the digits, it is the
looser bound of Renyi accounting (Mironov 2017, arXiv:1702.07476): the other's time and memory grow with epsilon, and
a protocol of little noise and very many steps must not stop the trainer that is about to refuse it.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from shared_model.errors import PrivacyError

COARSE, FINE = 0.01, 0.001  # error of epsilon that the upper bound includes; the fine one where epsilon is small
FINE_BELOW = 2.0
BEYOND = 300.0  # PRV takes 5 s for 75 and 22 s for 370, on one core


class Row(NamedTuple):
    """`steps` Poisson-sampled Gaussian steps: sigma = noise std / C, q in (0, 1]."""

    noise_multiplier: float
    sample_rate: float
    steps: int


@dataclass(frozen=True)
class Account:
    """Everything that one group of patients has taken part in. Immutable; rows are plain numbers.

    >>> account = Account().add(noise_multiplier=1.0, sample_rate=0.0625, steps=10)
    >>> account.as_lists()
    [[1.0, 0.0625, 10]]
    """

    rows: tuple[Row, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            _check(row)

    @classmethod
    def from_lists(cls, values: Iterable[Iterable[float]]) -> Account:
        """Rebuild from :meth:`as_lists` (JSON).

        Raises:
            PrivacyError: a row is not three numbers in range.
        """
        account = cls()
        for value in values:
            numbers = list(value)
            if len(numbers) != 3 or any(type(n) not in (int, float) for n in numbers) or numbers[2] != int(numbers[2]):
                raise PrivacyError("privacy history is damaged", found=numbers, expected="[sigma, q, steps]")
            account = account.add(noise_multiplier=numbers[0], sample_rate=numbers[1], steps=int(numbers[2]))
        return account

    def as_lists(self) -> list[list[float]]:
        """`[[sigma, q, steps], ...]`, ready for JSON."""
        return [[row.noise_multiplier, row.sample_rate, row.steps] for row in self.rows]

    def add(self, *, noise_multiplier: float, sample_rate: float, steps: int) -> Account:
        """The account after `steps` more; equal mechanisms share one row (composition does not depend on order)."""
        _check(Row(noise_multiplier, sample_rate, steps))
        counts = {(row.noise_multiplier, row.sample_rate): row.steps for row in self.rows}
        key = (float(noise_multiplier), float(sample_rate))
        counts[key] = counts.get(key, 0) + steps
        return Account(tuple(Row(sigma, rate, count) for (sigma, rate), count in sorted(counts.items())))

    def merge(self, other: Account) -> Account:
        """Both accounts composed on the same patients."""
        merged = self
        for row in other.rows:
            merged = merged.add(**row._asdict())
        return merged

    @property
    def steps(self) -> int:
        """Mechanism runs in all."""
        return sum(row.steps for row in self.rows)

    def epsilon(self, *, delta: float) -> float:
        """Epsilon spent at `delta` in (0, 1), dimensionless; 0.0 for an empty account. Cached (0.02-2 s each)."""
        if not 0.0 < delta < 1.0:
            raise PrivacyError("delta is out of range", found=delta, expected="0 < delta < 1")
        rows = tuple(row for row in self.rows if row.steps)
        return _prv_epsilon(rows, float(delta)) if rows else 0.0

    def estimate(self, *, delta: float) -> float:
        """About :meth:`epsilon`, to some 1e-4, at a tenth of its time where epsilon is small; no bound."""
        rows = tuple(row for row in self.rows if row.steps)
        coarse = _coarse_epsilon(rows, float(delta)) if rows else 0.0
        return max(0.0, coarse - (COARSE - FINE)) if coarse < FINE_BELOW else coarse


def _check(row: Row) -> None:
    sigma, rate, steps = row
    if not (math.isfinite(sigma) and sigma > 0 and 0 < rate <= 1 and isinstance(steps, int) and steps >= 0):
        raise PrivacyError(
            "mechanism outside what the accountant covers", found=tuple(row),
            expected="sigma > 0, 0 < q <= 1, steps >= 0",
        )  # fmt: skip


@functools.lru_cache(maxsize=4096)
def _prv_epsilon(rows: tuple[Row, ...], delta: float) -> float:
    epsilon = _coarse_epsilon(rows, delta)
    return _opacus_epsilon(rows, delta, FINE) if epsilon < FINE_BELOW else epsilon


@functools.lru_cache(maxsize=4096)
def _coarse_epsilon(rows: tuple[Row, ...], delta: float) -> float:
    if (rough := _renyi_epsilon(rows, delta)) > BEYOND:
        return rough
    return _opacus_epsilon(rows, delta, COARSE)


def _renyi_epsilon(rows: tuple[Row, ...], delta: float) -> float:
    """An upper bound in milliseconds; infinite where it knows none."""
    from opacus.accountants.rdp import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [tuple(row) for row in rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(accountant.get_epsilon(delta))


def _opacus_epsilon(rows: tuple[Row, ...], delta: float, error: float) -> float:
    from opacus.accountants.prv import PRVAccountant  # imports all of Opacus: only where an epsilon is wanted

    accountant = PRVAccountant()
    accountant.history = [tuple(row) for row in rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # log(0) where q = 1, and hints about RDP orders that only bound the grid
        epsilon = float(accountant.get_epsilon(delta, eps_error=error))
    if not math.isfinite(epsilon):
        raise PrivacyError("epsilon cannot be computed", found=[list(row) for row in rows], expected="a finite bound",
                           remedy="use more noise or fewer steps")  # fmt: skip
    return max(0.0, epsilon)
