"""Runs a study from its protocol to its result, or goes on with one that was interrupted.

Called by the ServerApp and by the simulator's launcher. The journal decides what is to be done; this file only walks
through it. Every `round_step` and `study_step` is one durable entry, and between any two of them the process may die.
"""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np

from server.aggregation.flower import Exchange, Grid, Signer, quiet_flower
from server.aggregation.gate import norm_bounds
from server.aggregation.strategies import Aggregator
from server.rounds.checkpoint import Checkpoint, read_checkpoint, write_bytes, write_checkpoint
from server.rounds.ending import ask_sites, choose_model, measure_initial, open_test
from server.rounds.events import Observer
from server.rounds.explore import explore
from server.rounds.journal import Journal
from server.rounds.one_round import Weights, run_round
from server.rounds.states import StudyState, StudyStep
from server.rounds.study import Bound, Roster, Study
from server.rounds.summary import write_summary
from server.rounds.waiting import StopRequested, gather
from shared_model.errors import ConfigError, ProtocolError, RoundError, StorageError, WeightsError
from shared_model.messages import MAX_FRAME_BYTES, MAX_HEADER_BYTES, Arrays, weights_sha256
from shared_model.private_files import take_lock
from shared_model.protocol import Protocol
from shared_model.signing import SigningKey

Status = Literal["COMPLETE", "INCOMPLETE", "STOPPED"]
ENDS: Mapping[StudyStep, Status] = {
    StudyStep.COMPLETE: "COMPLETE", StudyStep.GIVE_UP: "INCOMPLETE", StudyStep.STOP: "STOPPED",
}  # fmt: skip
STOPPED = "stopped by request; resume goes on from the last closed round"


@dataclass(frozen=True, kw_only=True)
class StudyOutcome:
    """How a run of the loop ended. rounds_completed: closed rounds in all; reason: in words, empty when COMPLETE."""

    status: Status
    rounds_completed: int
    reason: str


def run_study(
    *, grid: Grid, protocol: Protocol, run_dir: Path, initial: Arrays, observer: Observer, stop: threading.Event,
    patience_s: float = 0.0, waits_for_lost: bool = False, signer: Signer | None = None, bound: Bound | None = None,
    signing: SigningKey | None = None, clock: Callable[[], float] = time.monotonic,
) -> StudyOutcome:  # fmt: skip
    """Run or resume the study of `run_dir` until it is complete, cannot go on, or is stopped; then write its summary.

    Args:
        grid: Flower's way to the nodes; its `send_and_receive` must honour its timeout and, as Flower's own do, write
            the id that it gives to a message into that message.
        initial: weights that the protocol names by hash.
        observer: told of every event after it is on the disk; what it raises ends the run, resumably.
        stop: checked between steps; the round that is running is closed first, unless it waits for lost parties.
        patience_s: how long to wait for the parties at the start.
        waits_for_lost: before each further attempt, wait for parties that were lost, at most the protocol's deadline;
            False where none comes back by itself, on one machine.
        signer: signs each request for its site (`server.rounds.signer`); None: unsigned, on one machine.
        bound: which node was enrolled as which party, asked again at each roll call; a node that says another name, or
            is bound to none, is left out. None: nobody was enrolled, on one machine, and names are believed.
        signing: the coordinator's key, for a study with a secure sum; it signs the documents of the sums.
        clock: seconds, monotonic; what waits for lost parties are measured by.

    Raises:
        ConfigError: a study with a secure sum, and nothing to sign with.
        ProtocolError: the run directory belongs to another protocol, or the protocol bounds no update.
        WeightsError: `initial` are not the protocol's weights, or more than a message may hold.
        StorageError: the run directory cannot be written or is in use; closed rounds are safe.
    """
    quiet_flower()
    _check(protocol, initial)
    if protocol.summed and (signing is None or signer is None):
        raise ConfigError("a study with a secure sum needs the coordinator's signing key", found="unsigned requests",
                          remedy="run it at a coordinator, or with `mammofed simulate`")  # fmt: skip
    run_dir.mkdir(parents=True, exist_ok=True)
    with alone(run_dir):
        _freeze(run_dir, protocol)
        with Journal(run_dir / "journal.sqlite", observer) as journal:
            roster = Roster()
            study = Study(
                protocol=protocol, run_dir=run_dir, journal=journal, stop=stop, roster=roster, bound=bound,
                exchange=Exchange(grid, signer=signer, name_of=roster.name_of), aggregator=Aggregator(protocol),
                clock=clock, signing=signing, outage_s=protocol.federation.deadline_s if waits_for_lost else 0.0,
                initial={name: np.asarray(array, dtype=np.float32) for name, array in initial.items()},
            )  # fmt: skip
            outcome = _run(study, patience_s=patience_s)
        write_summary(run_dir)
    return outcome


def _run(study: Study, *, patience_s: float) -> StudyOutcome:
    journal = study.journal
    if journal.study_state() is StudyState.COMPLETE:
        return StudyOutcome(status="COMPLETE", rounds_completed=journal.last_closed(), reason="")
    journal.begin_session(versions())
    _begin(study)
    gather(study, patience_s=patience_s)
    try:
        reason = _walk(study)
        step = StudyStep.STOP if reason else StudyStep.COMPLETE
    except StopRequested:
        step, reason = StudyStep.STOP, STOPPED
    except RoundError as error:  # quorum or evaluator; anything else ends the process and leaves the state for resume
        step, reason = StudyStep.GIVE_UP, str(error)
    closed = journal.last_closed()
    with journal.study_step(step):
        study.note("finished", reason, severity="error" if step is StudyStep.GIVE_UP else "info", code=step.value,
                   data={"status": ENDS[step], "rounds_completed": closed})  # fmt: skip
    return StudyOutcome(status=ENDS[step], rounds_completed=closed, reason=reason)


def _begin(study: Study) -> None:
    """Journal the start, or the resumption at the place where the journal says the study is."""
    journal, protocol = study.journal, study.protocol
    if journal.study_state() is StudyState.NEW:
        later = sorted(p.name for p in (study.run_dir / "checkpoints").glob("round-*") if p.suffix == ".safetensors")
        if later[1:]:  # to begin again would hide what was done, an opened `test` among it
            raise StorageError(
                f"{journal.path} knows no round, but later checkpoints are there", found=later[-1],
                expected="the journal that belongs to them",
                remedy="restore the run directory from its backup, or start in an empty directory",
            )  # fmt: skip
        zero = Checkpoint(round=0, protocol_sha256=protocol.sha256, weights=study.initial, strategy={})
        write_checkpoint(study.run_dir, zero)
        with journal.study_step(StudyStep.START):
            journal.put("study", protocol.study)
            journal.put("release", protocol.release)
            journal.put("protocol_sha256", protocol.sha256)
            study.note("study_started", f"{protocol.rounds} rounds, {len(protocol.federation.sites)} sites")
        return
    tested = journal.rows("SELECT 1 FROM steps WHERE step IN (?, ?)", StudyStep.TEST.value, StudyStep.EXPLORE.value)
    chosen = journal.get("chosen") is not None
    step = StudyStep.RESUME_TESTED if tested else StudyStep.RESUME_CHOSEN if chosen else StudyStep.RESUME_ROUNDS
    with journal.study_step(step):
        study.note("study_resumed", f"{journal.last_closed()} of {protocol.rounds} rounds are closed")


def _walk(study: Study) -> str:
    """Everything between start and end; returns why it stopped early, or an empty text."""
    journal = study.journal
    if study.protocol.exploration is not None:
        if journal.study_state() is StudyState.ROUNDS:
            explore(study)
        return ""
    if journal.study_state() is StudyState.ROUNDS:
        if study.stop.is_set():
            return STOPPED
        measure_initial(study)
        closed = journal.last_closed()
        checkpoint = read_checkpoint(study.run_dir, closed, protocol_sha256=study.protocol.sha256)
        study.aggregator.load_state(checkpoint.strategy)
        weights: Weights = checkpoint.weights
        for number in range(closed + 1, study.protocol.rounds + 1):
            if study.stop.is_set():
                return STOPPED
            weights = run_round(study, number, weights)
        choose_model(study)
    if study.stop.is_set():
        return STOPPED
    if journal.study_state() is StudyState.CHOSEN:
        open_test(study)
    if study.stop.is_set():
        return STOPPED
    ask_sites(study)
    return ""


def _check(protocol: Protocol, initial: Arrays) -> None:
    found = weights_sha256(initial)
    if found != protocol.initial_weights.sha256:
        raise WeightsError("the initial weights are not those that the protocol names", found=found,
                           expected=protocol.initial_weights.sha256, remedy="give the approved weights")  # fmt: skip
    size = sum(array.size * 4 for array in initial.values()) * (2 if protocol.federation.strategy == "scaffold" else 1)
    if size + MAX_HEADER_BYTES > MAX_FRAME_BYTES:
        raise WeightsError(
            "the model is too large for one message", found=f"{size} bytes, with what the strategy sends beside it",
            expected=f"at most {MAX_FRAME_BYTES - MAX_HEADER_BYTES} bytes", remedy="choose a smaller model",
        )  # fmt: skip
    norm_bounds(protocol, 1, initial)  # refused before anything is trained, when the protocol bounds no update


def _freeze(run_dir: Path, protocol: Protocol) -> None:
    path = run_dir / "protocol.json"
    if not path.exists():
        write_bytes(path, protocol.to_json().encode())
    found = Protocol.read(path).sha256
    if found != protocol.sha256:
        raise ProtocolError(f"{run_dir} belongs to another protocol", found=found, expected=protocol.sha256,
                            remedy="start in an empty directory")  # fmt: skip


@contextmanager
def alone(run_dir: Path) -> Iterator[None]:
    """One coordinator at a time; the kernel frees the lock however the process ends (flock(2))."""
    with (run_dir / "journal.lock").open("w") as stream:
        if not take_lock(stream.fileno()):
            raise StorageError(f"{run_dir} is in use by another coordinator", remedy="wait for it or stop it")
        yield


def versions() -> dict[str, str]:
    """Versions of what computes on the coordinator's side."""
    names = ("mammofed", "flwr", "numpy", "safetensors", "pydantic")
    return {"python": platform.python_version()} | {name: version(name) for name in names}
