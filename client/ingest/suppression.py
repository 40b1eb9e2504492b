"""Which counts of a page have to stay hidden so that no small one can be read off or worked out; called by summary.

Primary: counts from 1 to threshold - 1. Complementary: further ones, until from everything that is shown (totals
included, over all tables at once) each small count could still be anything from below to at least the threshold.
Method: cell suppression with an audit by linear programming (Willenborg and de Waal, Elements of Statistical Disclosure
Control, 2001, ch. 4). Zeros are shown.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog


@dataclass(frozen=True)
class Sum:
    """One table: the count `total` is the sum of the counts `parts`. A count may stand in several tables."""

    total: str
    parts: tuple[str, ...]


def hidden_counts(counts: Mapping[str, int], sums: Sequence[Sum], *, threshold: int) -> frozenset[str]:
    """Names of the counts to hide.

    Args:
        counts: every published count by name, 0 or more.
        sums: what adds up. threshold: least count that may be shown, besides 0.

    >>> sorted(hidden_counts({"n": 50, "a": 3, "b": 12, "c": 35}, [Sum("n", ("a", "b", "c"))], threshold=10))
    ['a', 'b']
    """
    hidden = {name for name, count in counts.items() if 0 < count < threshold}
    small = sorted(hidden)
    for group in _groups(sums):
        names = {name for table in group for name in (table.total, *table.parts)}
        mine = [name for name in small if name in names]
        while exposed := next((name for name in mine if _exposed(name, counts, group, hidden, threshold)), None):
            choice = _next_to_hide(exposed, counts, group, hidden)
            if choice is None:
                break  # everything of the table is hidden, its total too
            hidden.add(choice)
    return frozenset(hidden)


def _groups(sums: Sequence[Sum]) -> list[list[Sum]]:
    """Tables that have counts in common, directly or through others."""
    groups: list[tuple[set[str], list[Sum]]] = []
    for table in sums:
        names, members = {table.total, *table.parts}, [table]
        apart = []
        for other_names, others in groups:
            if names & other_names:
                names |= other_names
                members += others
            else:
                apart.append((other_names, others))
        groups = [*apart, (names, members)]
    return [members for _, members in groups]


def _exposed(name: str, counts: Mapping[str, int], group: Sequence[Sum], hidden: Iterable[str], threshold: int) -> bool:
    """Whether what is shown tells that this count is small: its feasible values end below the threshold, or are few."""
    low, high = _range(name, counts, group, set(hidden))
    return high < threshold or high - low < threshold - 1


def _range(name: str, counts: Mapping[str, int], group: Sequence[Sum], hidden: set[str]) -> tuple[float, float]:
    """Least and greatest value of a hidden count that fit to what is shown. Hidden counts are known not to be 0."""
    linked = _linked(name, group, hidden)
    if not linked:
        return 1.0, np.inf
    unknown = sorted({n for table in linked for n in (table.total, *table.parts) if n in hidden})
    if len(linked) == 1 and linked[0].total not in hidden:  # one equation needs no solver
        rest = counts[linked[0].total] - sum(counts[n] for n in linked[0].parts if n not in hidden)
        return (1.0, float(rest - len(unknown) + 1)) if len(unknown) > 1 else (float(rest), float(rest))
    place = {n: index for index, n in enumerate(unknown)}
    matrix, right = np.zeros((len(linked), len(unknown))), np.zeros(len(linked))
    for row, table in enumerate(linked):
        for n, sign in [(table.total, -1.0), *((part, 1.0) for part in table.parts)]:
            if n in place:
                matrix[row, place[n]] += sign
            else:
                right[row] -= sign * counts[n]
    aim = np.zeros(len(unknown))
    aim[place[name]] = 1.0
    low = linprog(aim, A_eq=matrix, b_eq=right, bounds=(1, None))
    high = linprog(-aim, A_eq=matrix, b_eq=right, bounds=(1, None))
    # Status 3: without bound. What cannot be solved counts as worked out, so that more is hidden.
    least = float(low.fun) if low.status == 0 and low.fun is not None else float(counts[name])
    most = -float(high.fun) if high.status == 0 and high.fun is not None else float(counts[name])
    return least, np.inf if high.status == 3 else most


def _linked(name: str, group: Sequence[Sum], hidden: set[str]) -> list[Sum]:
    """Tables that say something of a hidden count: those that it stands in, and on through other hidden counts."""
    reached, tables = {name}, list[Sum]()
    growing = True
    while growing:
        growing = False
        for table in group:
            names = {table.total, *table.parts} & hidden
            if table not in tables and names & reached:
                tables.append(table)
                reached |= names
                growing = True
    return tables


def _next_to_hide(exposed: str, counts: Mapping[str, int], group: Sequence[Sum], hidden: set[str]) -> str | None:
    """Of the tables that tell of the exposed count, one that still shows: such as stands in the fewest tables (the
    number of prepared women stands in all, and without it the page says nothing), parts before totals, the smallest."""
    tables = _linked(exposed, group, hidden)
    places: dict[str, int] = defaultdict(int)
    for table in group:
        for name in {table.total, *table.parts}:
            places[name] += 1
    totals = {table.total for table in tables}
    choices = {n for table in tables for n in (table.total, *table.parts) if n not in hidden and counts[n] > 0}
    return min(choices, key=lambda n: (places[n], n in totals, counts[n], n), default=None)
