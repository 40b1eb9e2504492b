"""Every cell of both state tables, written out a second time as a picture."""

from __future__ import annotations

import pytest

from server.rounds.states import (
    ROUND_TABLE,
    STUDY_TABLE,
    RoundState,
    RoundStep,
    StudyState,
    StudyStep,
    next_round_state,
    next_study_state,
)
from shared_model.errors import RoundError

# rows: states; columns: steps; a dot: refused
ROUND = """
            open    collect    aggregate   evaluate   save   close   miss_quorum  resume  lose_checkpoint
new         opened  .          .           .          .      .       .            .       .
opened      .       collected  .           .          .      .       .            opened  .
collected   .       .          aggregated  .          .      .       failed       opened  .
aggregated  .       .          .           evaluated  .      .       .            opened  .
evaluated   .       .          .           .          saved  .       .            opened  .
saved       .       .          .           .          .      closed  .            saved   opened
closed      .       .          .           .          .      .       .            .       .
failed      .       .          .           .          .      .       .            .       .
"""
STUDY = """
            start   choose  test    explore  complete  give_up     stop     resume_rounds  resume_chosen  resume_tested
new         rounds  .       .       .        .         .           .        .              .              .
rounds      .       chosen  .       tested   .         INCOMPLETE  STOPPED  rounds         .              .
chosen      .       .       tested  .        .         INCOMPLETE  STOPPED  .              chosen         .
tested      .       .       .       .        COMPLETE  .           STOPPED  .              .              tested
COMPLETE    .       .       .       .        .         .           .        .              .              .
INCOMPLETE  .       .       .       .        .         .           .        rounds         chosen         tested
STOPPED     .       .       .       .        .         .           .        rounds         chosen         tested
"""


def cells(picture: str) -> dict[tuple[str, str], str]:
    head, *lines = (line.split() for line in picture.strip().splitlines())
    return {(state, step): cell for state, *row in lines for step, cell in zip(head, row, strict=True)}


def test_the_pictures_have_every_state_and_every_step() -> None:
    assert set(cells(ROUND)) == {(state, step) for state in RoundState for step in RoundStep}
    assert set(cells(STUDY)) == {(state, step) for state in StudyState for step in StudyStep}
    assert len(ROUND_TABLE) == sum(cell != "." for cell in cells(ROUND).values())
    assert len(STUDY_TABLE) == sum(cell != "." for cell in cells(STUDY).values())


@pytest.mark.parametrize(("state", "step", "expected"), [(*key, cell) for key, cell in cells(ROUND).items()])
def test_round_cell(state: str, step: str, expected: str) -> None:
    if expected == ".":
        with pytest.raises(RoundError, match=f"a round that is {state} cannot {step}"):
            next_round_state(RoundState(state), RoundStep(step))
    else:
        assert next_round_state(RoundState(state), RoundStep(step)) == expected


@pytest.mark.parametrize(("state", "step", "expected"), [(*key, cell) for key, cell in cells(STUDY).items()])
def test_study_cell(state: str, step: str, expected: str) -> None:
    if expected == ".":
        with pytest.raises(RoundError, match=f"a study that is {state} cannot {step}"):
            next_study_state(StudyState(state), StudyStep(step))
    else:
        assert next_study_state(StudyState(state), StudyStep(step)) == expected
