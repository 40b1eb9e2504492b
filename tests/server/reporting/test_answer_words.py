"""For whom a model works less well, and which claims a result has reached."""

from __future__ import annotations

import pytest

from server.reporting.claims import claims, interval
from server.reporting.for_whom import for_whom
from shared_model.evaluation.joint import joint_result

DENSE = {"name": "density", "level": "d", "n": 90, "positives": 30, "auc": 0.61, "auc_low": 0.5, "auc_high": 0.71}
OLD = {"name": "age_years", "level": "70 and over", "n": 80, "positives": 25, "auc": 0.85, "auc_low": 0.76,
       "auc_high": 0.91}  # fmt: skip
FEW = {"name": "views", "level": "2", "n": 20, "positives": None, "auc": 0.7, "auc_low": 0.4, "auc_high": 0.9}


def test_for_whom_is_answered_whatever_the_answer_is() -> None:
    found = for_whom([DENSE, OLD], 0.84)
    assert "density d: AUC 0.610" in found and "n = 90 (30 with cancer)" in found and "70" not in found
    assert "No subgroup of the held-out women has an AUC clearly below" in for_whom([OLD, FEW], 0.84)
    assert "(large enough to judge: 1 of 2)" in for_whom([OLD, FEW], 0.84)
    assert "large enough to judge" in for_whom([FEW], 0.84)  # counts that the journal withheld
    assert for_whom([], 0.84) == "" and for_whom([DENSE], None) == ""


def test_the_same_women_named_twice_are_said_once() -> None:
    twin = DENSE | {"name": "vendor", "level": "X"}
    assert for_whom([DENSE, twin], 0.84).count("AUC 0.610") == 1


@pytest.mark.parametrize(("difference", "reached"), [(0.06, "yes"), (-0.06, "no")])
def test_a_small_p_of_a_loss_reaches_no_claim(difference: float, reached: str) -> None:
    rows = claims({"n": 400, "positives": 80}, {}, {"difference": difference}, p=0.001)
    assert rows[-1].reached == reached


def test_bounds_that_meet_are_not_printed() -> None:
    assert interval({"auc": 0.5, "auc_low": 0.5, "auc_high": 0.5}, "auc") == "0.500"


def test_two_opposed_perfect_models_have_no_p() -> None:
    """Neither varies on these women, so that nothing is known of their difference, as in `auc.paired_delong`."""
    table = [[[0, 5], [0, 0]], [[0, 0], [5, 0]]]  # negatives low by the first, high by the second
    gap = joint_result([table], confidence=0.95).difference
    assert (gap.value, gap.low, gap.high, gap.p) == (1.0, None, None, None)
