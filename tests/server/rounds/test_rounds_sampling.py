"""Who is drawn and which model is chosen: pure functions of the protocol and of journalled facts."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from server.rounds.sampling import choose_round, choose_sites, draw, due
from tests import fake_grid as fake


def test_draw_is_the_same_for_ever() -> None:
    """Written down: a change would resume a running study with other sites."""
    protocol = fake.make_protocol()
    assert [draw(protocol, number)[0] for number in range(1, 9)] == FIRST_DRAWN
    assert draw(fake.make_protocol(seed=4), 1) != draw(protocol, 1)


FIRST_DRAWN = ["ash", "birch", "birch", "cedar", "ash", "dogwood", "dogwood", "ash"]


def test_draw_is_fair() -> None:
    protocol = fake.make_protocol()
    counts = Counter(draw(protocol, number)[0] for number in range(1, 4001))
    assert all(900 < count < 1100 for count in counts.values()) and len(counts) == 4


@given(
    number=st.integers(1, 50), size=st.integers(1, 4), contributed=st.sets(st.sampled_from(fake.SITES)),
    failed=st.sets(st.sampled_from(fake.SITES)),
)  # fmt: skip
def test_chosen_sites_keep_contributors_prefer_the_untried_and_are_in_name_order(
    number: int, size: int, contributed: set[str], failed: set[str]
) -> None:
    protocol = fake.make_protocol(federation__sites_per_round=size, federation__quorum=1)
    contributed, failed = set(sorted(contributed)[:size]), failed - contributed
    chosen = choose_sites(protocol, number, contributed=contributed, failed=failed)
    assert list(chosen) == sorted(chosen) and len(set(chosen)) == len(chosen) == size
    assert contributed <= set(chosen)
    untried = set(fake.SITES) - contributed - failed
    assert not set(chosen) & failed or untried <= set(chosen)


def test_choose_round_by_rule() -> None:
    best = fake.make_protocol()
    assert choose_round(best, {1: 0.7, 2: 0.9, 3: 0.9, 4: 0.8}) == 2  # ties to the earlier
    assert choose_round(best, {}) is None
    last = fake.make_protocol(evaluation__selection_rule="last")
    assert choose_round(last, {1: 0.9}) == 4 and choose_round(last, {}) == 4


def test_due_every_nth_and_always_the_last() -> None:
    protocol = fake.make_protocol(evaluation__every=3)
    assert [number for number in range(1, 5) if due(protocol, number)] == [3, 4]
