"""The state tables of a round's attempt and of a study; consulted by the journal at each step.

A step that a table does not allow is an error of ours and stops the study: nothing is journalled that could not happen.
`RESUME` says what a new process may rely on: weights live in memory until `SAVED`, so everything before it is asked
again, with the same identity (study, round, attempt, weights), to which trainers answer with the bytes they stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from shared_model.errors import RoundError


class RoundState(StrEnum):
    """Where one attempt of one round is."""

    NEW = "new"  # not in the journal yet
    OPENED = "opened"  # sites are chosen; requests may be out
    COLLECTED = "collected"  # the deadline is over or all replied; participation is journalled
    AGGREGATED = "aggregated"  # new weights, in memory
    EVALUATED = "evaluated"  # measured on `selection`, or not due
    SAVED = "saved"  # the checkpoint is on the disk
    CLOSED = "closed"  # done; what resume goes on from
    FAILED = "failed"  # below quorum; another attempt may follow


class RoundStep(StrEnum):
    """What happens to an attempt."""

    OPEN = "open"
    COLLECT = "collect"
    AGGREGATE = "aggregate"
    EVALUATE = "evaluate"
    SAVE = "save"
    CLOSE = "close"
    MISS_QUORUM = "miss_quorum"
    RESUME = "resume"  # a new process found the attempt in this state
    LOSE_CHECKPOINT = "lose_checkpoint"  # the checkpoint of a SAVED attempt cannot be read back


_R, _S = RoundState, RoundStep
ROUND_TABLE: Mapping[tuple[RoundState, RoundStep], RoundState] = {
    (_R.NEW, _S.OPEN): _R.OPENED,
    (_R.OPENED, _S.COLLECT): _R.COLLECTED,
    (_R.COLLECTED, _S.AGGREGATE): _R.AGGREGATED,
    (_R.COLLECTED, _S.MISS_QUORUM): _R.FAILED,
    (_R.AGGREGATED, _S.EVALUATE): _R.EVALUATED,
    (_R.EVALUATED, _S.SAVE): _R.SAVED,
    (_R.SAVED, _S.CLOSE): _R.CLOSED,
    (_R.OPENED, _S.RESUME): _R.OPENED,
    (_R.COLLECTED, _S.RESUME): _R.OPENED,
    (_R.AGGREGATED, _S.RESUME): _R.OPENED,
    (_R.EVALUATED, _S.RESUME): _R.OPENED,
    (_R.SAVED, _S.RESUME): _R.SAVED,
    (_R.SAVED, _S.LOSE_CHECKPOINT): _R.OPENED,
}


class StudyState(StrEnum):
    """Where a study is. The three in capitals are the `status` of summary.json."""

    NEW = "new"
    ROUNDS = "rounds"  # training
    CHOSEN = "chosen"  # all rounds closed, the model is chosen by the rule and written
    TESTED = "tested"  # `test` was opened and its result is journalled; of an exploration: its counts are
    COMPLETE = "COMPLETE"
    INCOMPLETE = "INCOMPLETE"  # a round or an evaluation could not be had; may be resumed
    STOPPED = "STOPPED"  # a person asked for it; may be resumed


class StudyStep(StrEnum):
    """What happens to a study."""

    START = "start"
    CHOOSE = "choose"
    TEST = "test"
    EXPLORE = "explore"  # the counts of an exploration are there, and with them all that it was for
    COMPLETE = "complete"
    GIVE_UP = "give_up"
    STOP = "stop"
    RESUME_ROUNDS = "resume_rounds"  # resumed with rounds to go
    RESUME_CHOSEN = "resume_chosen"  # resumed after the model was chosen
    RESUME_TESTED = "resume_tested"  # resumed after `test` was opened


_Y, _T = StudyState, StudyStep
STUDY_TABLE: Mapping[tuple[StudyState, StudyStep], StudyState] = {
    (_Y.NEW, _T.START): _Y.ROUNDS,
    (_Y.ROUNDS, _T.CHOOSE): _Y.CHOSEN,
    (_Y.ROUNDS, _T.EXPLORE): _Y.TESTED,
    (_Y.ROUNDS, _T.GIVE_UP): _Y.INCOMPLETE,
    (_Y.ROUNDS, _T.STOP): _Y.STOPPED,
    (_Y.ROUNDS, _T.RESUME_ROUNDS): _Y.ROUNDS,
    (_Y.CHOSEN, _T.TEST): _Y.TESTED,
    (_Y.CHOSEN, _T.GIVE_UP): _Y.INCOMPLETE,
    (_Y.CHOSEN, _T.STOP): _Y.STOPPED,
    (_Y.CHOSEN, _T.RESUME_CHOSEN): _Y.CHOSEN,
    (_Y.TESTED, _T.COMPLETE): _Y.COMPLETE,
    (_Y.TESTED, _T.STOP): _Y.STOPPED,
    (_Y.TESTED, _T.RESUME_TESTED): _Y.TESTED,
    **{
        (ended, resume): state
        for ended in (_Y.INCOMPLETE, _Y.STOPPED)
        for resume, state in (
            (_T.RESUME_ROUNDS, _Y.ROUNDS), (_T.RESUME_CHOSEN, _Y.CHOSEN), (_T.RESUME_TESTED, _Y.TESTED),
        )
    },
}  # fmt: skip


def next_round_state(state: RoundState, step: RoundStep) -> RoundState:
    """The cell of the round table.

    Raises:
        RoundError: the table does not allow the step.
    """
    try:
        return ROUND_TABLE[state, step]
    except KeyError:
        raise RoundError(f"a round that is {state} cannot {step}", remedy="report this with the journal") from None


def next_study_state(state: StudyState, step: StudyStep) -> StudyState:
    """The cell of the study table.

    Raises:
        RoundError: the table does not allow the step.
    """
    try:
        return STUDY_TABLE[state, step]
    except KeyError:
        raise RoundError(f"a study that is {state} cannot {step}", remedy="report this with the journal") from None
