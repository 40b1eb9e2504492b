"""How finely seconds are told: the ladder of a study that protects women, and the millisecond of one that does not."""

from __future__ import annotations

import itertools
import random

import pytest
from pydantic import ValidationError

from shared_model.phases import MOST_S, STEPS, PhaseSeconds, told
from tests.fake_grid import PRIVATE, make_protocol


def times(count: int = 2000) -> list[float]:
    draw = random.Random(1)
    return [10 ** draw.uniform(-4, 6) for _ in range(count)]


@pytest.mark.parametrize("coarse", [False, True])
def test_what_is_told_is_told_again_the_same(coarse: bool) -> None:
    for seconds in times():
        once = told(seconds, coarse=coarse)
        assert told(once, coarse=coarse) == once


def test_a_decade_has_twenty_steps_of_about_twelve_percent() -> None:
    for decade in (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0):
        steps = sorted({told(decade * (1 + 9 * i / 20_000), coarse=True) for i in range(20_001)})
        assert steps[0] == decade and steps[-1] == pytest.approx(10 * decade) and len(steps) == STEPS + 1
        ratios = [b / a for a, b in itertools.pairwise(steps)]
        assert min(ratios) > 1.05 and max(ratios) < 1.19, ratios


def test_one_woman_more_changes_hardly_any_reading() -> None:
    """With 200 women one is half a percent of the time: about one reading in 24 lies so near to an edge that it turns;
    to the millisecond every one does."""
    found = [(told(t, coarse=True), told(t * 201 / 200, coarse=True)) for t in times() if t > 0.5]
    assert 0 < sum(a != b for a, b in found) < 0.08 * len(found)
    assert all(told(t, coarse=False) != told(t * 201 / 200, coarse=False) for t in times() if t > 0.5)


def test_no_time_is_below_nothing_or_beyond_the_most() -> None:
    for coarse in (False, True):
        assert told(-1e-9, coarse=coarse) == told(0.0, coarse=coarse) == 0.0
        assert told(1e12, coarse=coarse) == MOST_S
    for wrong in (-0.001, MOST_S + 1, float("nan")):
        with pytest.raises(ValidationError):
            PhaseSeconds(train=wrong)


def test_times_are_coarse_where_women_are_protected_or_sites_hidden() -> None:
    assert not make_protocol().coarse_times
    assert make_protocol(**PRIVATE).coarse_times
    assert make_protocol(federation__secure_sum="masked").coarse_times
