"""The bench of the privacy guards runs the real ones, and its shares add up."""

from __future__ import annotations

import pytest

from simulations.benchmarks import privacy
from simulations.benchmarks.bench import SECTIONS
from simulations.benchmarks.dp_engines import Case


def test_the_guards_are_measured_as_shares_of_a_step() -> None:
    case = Case(size="tiny", height=48, width=48, of_plain=None, of_hooks=None, memory=None)
    step, *guards, total = privacy.measure(case, turns=1)
    assert step.value > 0 and [row.name.partition(": ")[2].split(" ")[0] for row in guards] == [
        "noise", "ledger,", "egress",
    ]  # fmt: skip
    assert total.value == pytest.approx(sum(row.value for row in guards)) and total.at_most == 5.0
    assert SECTIONS["privacy"][1] == privacy.__name__
