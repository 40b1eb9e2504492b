"""What is shown lets nobody work a small count out: an attacker tries every table that fits to what he sees."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.ingest.suppression import Sum, hidden_counts

T = 4  # a small threshold, so that everything can be tried


def feasible(name: str, counts: dict[str, int], sums: Sequence[Sum], hidden: frozenset[str]) -> set[int]:
    """Values of a hidden count in all tables of positive hidden counts up to 24 that fit to what is shown."""
    unknown = sorted(hidden)
    grid = np.stack([g.ravel() for g in np.meshgrid(*[np.arange(1, 25)] * len(unknown), indexing="ij")])
    tried = {n: np.full(grid.shape[1], count) for n, count in counts.items()} | dict(zip(unknown, grid, strict=True))
    fits = np.ones(grid.shape[1], dtype=bool)
    for table in sums:
        fits &= tried[table.total] == sum(tried[part] for part in table.parts)
    return set(tried[name][fits].tolist())


@settings(max_examples=60)
@given(parts=st.lists(st.integers(0, 7), min_size=2, max_size=4))
def test_one_table_keeps_its_small_counts(parts: list[int]) -> None:
    names = tuple(f"p{k}" for k in range(len(parts)))
    counts = dict(zip(names, parts, strict=True)) | {"n": sum(parts)}
    sums = [Sum("n", names)]
    hidden = hidden_counts(counts, sums, threshold=T)
    check(counts, sums, hidden)


@settings(max_examples=40)
@given(a=st.integers(0, 6), b=st.integers(0, 6), c=st.integers(0, 6), d=st.integers(0, 6))
def test_tables_that_share_counts_keep_them_too(a: int, b: int, c: int, d: int) -> None:
    counts = {"a": a, "b": b, "c": c, "ab": a + b, "n": a + b + c, "d": d, "m": a + d}
    sums = [Sum("n", ("ab", "c")), Sum("ab", ("a", "b")), Sum("m", ("a", "d"))]
    hidden = hidden_counts(counts, sums, threshold=T)
    if len(hidden) <= 4:  # more take long to try
        check(counts, sums, hidden)


def check(counts: dict[str, int], sums: Sequence[Sum], hidden: frozenset[str]) -> None:
    assert not any(counts[name] == 0 for name in hidden)
    for name, count in counts.items():
        if 0 < count < T:
            assert name in hidden
            values = feasible(name, counts, sums, hidden)
            assert max(values) >= T and len(values) >= T, f"{name} is one of {values}"


@pytest.mark.parametrize(
    ("parts", "hidden"),
    [
        ({"a": 20, "b": 30}, set()),
        ({"a": 0, "b": 30}, set()),
        ({"a": 3, "b": 30}, {"a", "b"}),
        ({"a": 3, "b": 30, "c": 12}, {"a", "c"}),
        ({"a": 3, "b": 30, "c": 2}, {"a", "b", "c"}),  # two that add up to 5 are hidden by a third
        ({"a": 9, "b": 9, "c": 30}, {"a", "b"}),
        ({"a": 3, "b": 0}, {"a", "n"}),  # nothing else is there to hide: the total goes
        ({"a": 3, "b": 2}, {"a", "b", "n"}),
    ],
)  # fmt: skip
def test_which_counts_go(parts: dict[str, int], hidden: set[str]) -> None:
    counts = parts | {"n": sum(parts.values())}
    assert hidden_counts(counts, [Sum("n", tuple(parts))], threshold=10) == hidden


def test_a_count_in_no_table_is_hidden_by_itself() -> None:
    assert hidden_counts({"x": 3, "y": 10}, [], threshold=10) == {"x"}


def test_few_who_were_set_aside_do_not_hide_how_many_were_prepared() -> None:
    """The number of prepared women stands in every table; how many came stands in one."""
    counts = {"found": 600, "prepared": 596, "aside": 4, "positive": 160, "negative": 436, "old": 300, "young": 296}
    sums = [Sum("found", ("prepared", "aside")), Sum("prepared", ("positive", "negative")),
            Sum("prepared", ("old", "young"))]  # fmt: skip
    assert hidden_counts(counts, sums, threshold=10) == {"aside", "found"}
