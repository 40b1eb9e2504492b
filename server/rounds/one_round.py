"""One round from its first attempt to its closing, or from wherever an earlier process left it. Called by the loop."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from server.rounds.attempt import Attempt
from server.rounds.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from server.rounds.ending import note_auc
from server.rounds.influence import SCOPE as INFLUENCE
from server.rounds.influence import influences
from server.rounds.measure import Measurement, auc_of, evaluator_measures, record
from server.rounds.roll_call import call_roll
from server.rounds.sampling import due
from server.rounds.states import RoundState, RoundStep
from server.rounds.study import Study, names_in_words
from server.rounds.sums import forget_sums
from server.rounds.waiting import wait_for_sites
from shared_model.errors import QuorumError, RoundError, StorageError
from shared_model.messages import Arrays, weights_sha256

Weights = Mapping[str, NDArray[np.float32]]


def run_round(study: Study, number: int, weights: Weights) -> Weights:
    """Run round `number` from `weights`, in as many attempts as the protocol allows to one process.

    Raises:
        QuorumError: too few sites contributed in each of them.
        StopRequested: somebody asked for it while an attempt waited for lost sites.
        StorageError: the journal began this round from other weights, or the checkpoint cannot be written.
    """
    sha256, held, contributed = weights_sha256(weights), dict[str, Arrays](), 0
    forget_sums(study.run_dir, before=number)
    found = study.journal.last_attempt(number)
    if found is not None and found.weights_before != sha256:
        raise StorageError(f"round {number} was begun from other weights", found=sha256, expected=found.weights_before,
                           remedy="restore the run directory from its backup")  # fmt: skip
    interrupted = found.attempt if found is not None and found.state is not RoundState.FAILED else 0
    if found is not None and interrupted:
        closed = _take_up(study, number, interrupted, found.weights_after)
        if closed is not None:
            return closed
    first = interrupted or (found.attempt + 1 if found is not None else 1)
    for number_of_attempt in range(first, first + study.protocol.federation.attempts):
        attempt = Attempt(study, number, number_of_attempt, weights=weights, sha256=sha256, held=held)
        if number_of_attempt == first:
            call_roll(study)
        else:
            wait_for_sites(study, attempt.sites, held=held, round_number=number)
        if number_of_attempt != interrupted:
            attempt.open()
        contributed = attempt.collect()
        if contributed >= study.protocol.federation.quorum:
            return _close(study, attempt)
        _miss(study, attempt, contributed=contributed)
    raise QuorumError(
        f"round {number} has no quorum after {study.protocol.federation.attempts} attempts",
        found=f"{contributed} sites",
        expected=f"at least {study.protocol.federation.quorum}",
        remedy="see in the report what kept each site out, then resume the study",
    )  # fmt: skip


def _take_up(study: Study, number: int, attempt: int, weights_after: str | None) -> Weights | None:
    """Go on with an interrupted attempt: closed at once when its checkpoint is good, else to be asked again (None)."""
    journal = study.journal
    with journal.round_step(number, attempt, RoundStep.RESUME):
        pass
    if journal.round_state(number, attempt) is not RoundState.SAVED:
        return None
    try:
        checkpoint = read_checkpoint(study.run_dir, number, protocol_sha256=study.protocol.sha256)
        if weights_sha256(checkpoint.weights) != weights_after:
            raise StorageError(f"the checkpoint of round {number} is not the journalled one")
    except StorageError as error:
        with journal.round_step(number, attempt, RoundStep.LOSE_CHECKPOINT):
            study.note("alarm", str(error), severity="warning", code="checkpoint_lost", round_number=number,
                       attempt=attempt)  # fmt: skip
        return None
    study.aggregator.load_state(checkpoint.strategy)
    _mark_closed(study, number, attempt)
    return checkpoint.weights


def _miss(study: Study, attempt: Attempt, *, contributed: int) -> None:
    with study.journal.round_step(attempt.round, attempt.attempt, RoundStep.MISS_QUORUM):
        text = f"{contributed} of {len(attempt.sites)} sites contributed, {study.protocol.federation.quorum} are needed"
        study.note("attempt_failed", text, severity="warning", code="quorum", round_number=attempt.round,
                   attempt=attempt.attempt, data={"contributed": contributed})  # fmt: skip


def _close(study: Study, attempt: Attempt) -> Weights:
    """Aggregate, evaluate, save, close: one journal entry each."""
    number, journal = attempt.round, study.journal
    updates = attempt.updates()
    if attempt.mean is not None and attempt.mean.weights is not None:
        weights = study.aggregator.aggregate_mean(number, attempt.mean.weights, attempt.mean.sites)
    else:
        weights = study.aggregator.aggregate(number, updates)
    with journal.round_step(number, attempt.attempt, RoundStep.AGGREGATE):
        for site in sorted(updates.keys() - set(study.aggregator.taken)):
            study.note("left_out", f"{study.protocol.federation.strategy} did not take this site's update",
                       code="not_taken", site=site, round_number=number, attempt=attempt.attempt)  # fmt: skip
        for site, found in influences(updates, attempt.base, _weights_of(study)).items():
            journal.metrics(number, INFLUENCE, site, found.numbers())
    _evaluate(study, number, attempt.attempt, weights)
    state = study.aggregator.state()
    path = write_checkpoint(
        study.run_dir,
        Checkpoint(round=number, protocol_sha256=study.protocol.sha256, weights=weights, strategy=state),
    )
    with journal.round_step(number, attempt.attempt, RoundStep.SAVE, weights_after=weights_sha256(weights)):
        study.note("checkpoint_written", path.name, round_number=number, attempt=attempt.attempt)
    _mark_closed(study, number, attempt.attempt)
    return weights


def _weights_of(study: Study) -> dict[str, float]:
    return {site.name: site.weight for site in study.protocol.federation.sites}


def _mark_closed(study: Study, number: int, attempt: int) -> None:
    with study.journal.round_step(number, attempt, RoundStep.CLOSE):
        rows = study.journal.rows(
            "SELECT site FROM participation WHERE round = ? AND attempt = ? AND outcome = 'contributed' ORDER BY site",
            number, attempt,
        )  # fmt: skip
        text = f"contributed: {names_in_words([row[0] for row in rows])}"
        study.note("round_closed", text, round_number=number, attempt=attempt, data={"contributed": len(rows)})


def _evaluate(study: Study, number: int, attempt: int, weights: Weights) -> None:
    """Measure on `selection` where due. An evaluator that fails does not cost the round: it is an alarm, and the
    round's model cannot be chosen."""
    measured: Measurement | None = None
    fault = ""
    if due(study.protocol, number):
        try:
            measured = evaluator_measures(study, "selection", round_number=number, weights=weights)
        except RoundError as error:
            fault = str(error)
    with study.journal.round_step(number, attempt, RoundStep.EVALUATE):
        if fault:
            study.note("alarm", fault, severity="error", code="evaluator", round_number=number, attempt=attempt)
        if measured is not None:
            _watch_collapse(study, number, image=auc_of(measured.document).get("image"))
            record(study, "selection", measured)
            note_auc(study, measured, attempt=attempt)


def _watch_collapse(study: Study, number: int, *, image: float | None) -> None:
    """Alarm when the image branch falls below the protocol's level: once, when it was not below in the round before."""
    level = study.protocol.evaluation.collapse_auc
    before = study.journal.rows(
        "SELECT value FROM metrics WHERE name = 'auc_image' AND scope IN ('initial', 'selection') AND round < ? "
        "ORDER BY round DESC LIMIT 1", number,
    )  # fmt: skip
    if before and image is not None and image < level <= before[0][0]:
        text = f"the image branch's AUC on `selection` fell from {before[0][0]:.3f} to {image:.3f}, below {level:g}"
        study.note("alarm", text, severity="warning", code="collapse", round_number=number, data={"auc_image": image})
