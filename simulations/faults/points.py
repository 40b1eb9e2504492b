"""Where a party can be parked: every state of the round table at the coordinator, every durable step at a trainer.

Production code has no hook for this. After the fork, and in the forked process only, one function is replaced by itself
and the parking place before or after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

from client.privacy.ledger import Ledger
from client.trainer import evaluate as evaluate_module
from client.trainer import train as train_module
from client.trainer.replies import ReplyStore, round_slot
from server.rounds.journal import Journal
from server.rounds.states import RoundState, RoundStep, StudyStep, next_round_state, next_study_state
from simulations.faults.process import Port

# States of the round table and of the study, as they are journalled; NEW: just before the round is opened; SAVING: the
# checkpoint is on the disk, its state is not yet in the journal.
NEW, SAVING = RoundState.NEW.value, "saving"
SERVER_PLACES = (NEW, "opened", "collected", "failed", "aggregated", "evaluated", SAVING, "saved", "closed", "chosen",
                 "tested")  # fmt: skip
# training: everything is checked (and under privacy reserved), nothing is drawn. settled: drawn and settled, nothing is
# stored. storing, stored: before and after the reply is on the disk; nothing is sent.
SITE_PLACES = ("training", "settled", "storing", "stored")
# measuring, measured: a round's `selection`. testing, kept: the chosen model on `test`, before and after it is stored.
EVALUATOR_PLACES = ("measuring", "measured", "testing", "kept")


@dataclass(frozen=True)
class Point:
    """A place in one party's life. round: for places that come once a round."""

    party: str
    place: str
    round: int = 2

    def __str__(self) -> str:
        return f"{self.party}/{self.place}"


def install(point: Point, port: Port) -> None:
    """Make this process park at `point`, once."""
    first = _once(lambda: port.park(str(point)))
    if point.place in SERVER_PLACES:
        _on_the_journal(point, first)
    elif point.place in ("training", "measuring", "measured", "testing"):
        _on_the_work(point, first)
    else:
        _on_the_disk(point, first)


def _once(action: Callable[[], None]) -> Callable[[], None]:
    done: list[bool] = []

    def run() -> None:
        if not done:
            done.append(True)
            action()

    return run


def _on_the_journal(point: Point, park: Callable[[], None]) -> None:
    round_step, study_step = Journal.round_step, Journal.study_step

    @contextmanager
    def parking_round(
        self: Journal, round_number: int, attempt: int, step: RoundStep, **columns: str
    ) -> Iterator[None]:
        here = round_number == point.round
        if here and (point.place, step) in ((NEW, RoundStep.OPEN), (SAVING, RoundStep.SAVE)):
            park()
        state = next_round_state(self.round_state(round_number, attempt), step)
        with round_step(self, round_number, attempt, step, **columns):
            yield
        if here and state.value == point.place:
            park()

    @contextmanager
    def parking_study(self: Journal, step: StudyStep) -> Iterator[None]:
        state = next_study_state(self.study_state(), step)
        with study_step(self, step):
            yield
        if state.value == point.place:
            park()

    Journal.round_step = parking_round  # type: ignore[method-assign]
    Journal.study_step = parking_study  # type: ignore[method-assign]


def _on_the_work(point: Point, park: Callable[[], None]) -> None:
    """Requests are the third argument of both workers."""
    module: Any = train_module if point.place == "training" else evaluate_module
    name = "_train" if point.place == "training" else "_evaluate"
    work = getattr(module, name)

    @wraps(work)
    def parking(site: Any, protocol: Any, request: Any, *more: Any) -> Any:
        scope = getattr(request, "scope", "")
        here = (scope == "test" and not request.image_only) if point.place == "testing" else (
            request.round == point.round and scope != "test")  # fmt: skip
        if here and point.place != "measured":
            park()
        result = work(site, protocol, request, *more)
        if here and point.place == "measured":
            park()
        return result

    setattr(module, name, parking)


def _on_the_disk(point: Point, park: Callable[[], None]) -> None:
    store, settle = ReplyStore.store, Ledger.settle
    wanted = "test" if point.place == "kept" else round_slot(point.round, 1)[: len("round-000000")]

    def parking_store(self: ReplyStore, study: str, slot: str, identity: str, data: bytes) -> None:
        here = slot == wanted if point.place == "kept" else slot.startswith(wanted)
        if here and point.place == "storing":
            park()
        store(self, study, slot, identity, data)
        if here and point.place in ("stored", "kept"):
            park()

    def parking_settle(self: Ledger, identity: int) -> None:
        settle(self, identity)
        if self.records()[identity - 1]["round"] == point.round and point.place == "settled":
            park()

    ReplyStore.store = parking_store  # type: ignore[method-assign]
    Ledger.settle = parking_settle  # type: ignore[method-assign]
