"""The sum is right for every pattern of dropouts above the threshold, and below it nothing is revealed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations_with_replacement, product

import numpy as np
import pytest

from shared_model.errors import QuorumError
from shared_model.secagg import threshold
from tests.shared_model.secagg.sums import NEVER, STEPS, Play, names, session


def patterns(count: int, *, above: bool) -> Iterator[tuple[int, ...]]:
    """Which step each site is the first not to answer; `NEVER`: it stays."""
    for steps in product(range(NEVER + 1), repeat=count):
        if (sum(step == NEVER for step in steps) >= threshold(count)) == above:
            yield steps


def test_the_threshold_is_three_and_two_thirds() -> None:
    assert [threshold(count) for count in (3, 4, 5, 6, 7, 9, 10, 50, 256)] == [3, 3, 4, 4, 5, 6, 7, 34, 171]
    for count in range(3, 257):
        assert threshold(count) >= 3 and 3 * threshold(count) >= 2 * count and threshold(count) <= count
        assert 2 * threshold(count) > count + 1  # no two disjoint halves, also with one colluding site


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("count", [3, 4, 5])
def test_the_sum_is_the_plain_sum_for_every_dropout_above_the_threshold(count: int, bits: int) -> None:
    seen = 0
    for steps in patterns(count, above=True):
        play = Play(session(count, bits=bits), dict(zip(names(count), steps, strict=True)))
        found = play.run()
        assert list(found.survivors) == play.there("mask")
        assert np.abs(found.total - play.plain()).max() <= found.error
        assert found.error < (1e-7 if bits == 32 else 1e-14)
        assert found.weight == pytest.approx(sum(play.terms.coefficients[s] for s in found.survivors))
        seen += 1
    assert seen == {3: 1, 4: 1 + 4 * 5, 5: 1 + 5 * 5}[count]


@pytest.mark.parametrize("count", [3, 4, 5])
def test_below_the_threshold_it_stops_and_no_share_was_given_out(count: int) -> None:
    """Which of the sites falls out changes nothing (above): each number of dropouts at each step is tried once."""
    for steps in combinations_with_replacement(range(NEVER + 1), count):
        if sum(step == NEVER for step in steps) >= threshold(count):
            continue
        play = Play(session(count), dict(zip(names(count), steps, strict=True)))
        with pytest.raises(QuorumError, match="nothing was revealed"):
            play.run()
        stated = len(play.there("confirm"))
        gave = [name for name, site in play.sites.items() if site.state.step == "finished"]
        assert len(gave) < threshold(count)
        assert not gave or stated >= threshold(count)


def test_ten_sites_of_which_three_fall_out_at_three_steps() -> None:
    play = Play(session(10), {"site-00": 1, "site-04": 2, "site-09": 3})
    found = play.run()
    assert len(found.survivors) == 8
    assert np.abs(found.total - play.plain()).max() <= found.error
    assert np.allclose(found.mean, play.plain() / found.weight)


@pytest.mark.parametrize("gone", range(len(STEPS)))
def test_every_party_may_crash_after_every_step(gone: int) -> None:
    play = Play(session(4), {"site-02": gone}, kept=True)
    found = play.run()
    assert np.abs(found.total - play.plain()).max() <= found.error
