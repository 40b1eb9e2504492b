"""What a site's two parties and the coordinator tell each other of their audit logs, so that each is witnessed.

Carried by :mod:`client.deploy.presence` with its heartbeat. A log that was cut or rewritten shows at whoever recorded
how long it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from client.deploy.inbox import Inbox
from client.deploy.status import LogStatus
from shared_model.audit import AuditLog, Statement
from shared_model.control import Party, PartyAnswer, PartyLog, plain
from shared_model.enrolment import courier_name
from shared_model.errors import MammoFedError
from shared_model.signing import SigningKey

COURIER: Final[Party] = "courier"
TRAINER: Final[Party] = "trainer"
SLOW_S: Final = 3.0


class AuditAnswer(Protocol):
    """What a trainer says of its audit log: `shared_model.messages.AuditReply`."""

    @property
    def owner(self) -> str: ...

    @property
    def key(self) -> str: ...

    @property
    def log(self) -> str: ...

    @property
    def statement(self) -> str: ...

    @property
    def recorded(self) -> int: ...


TrainerAudit = Callable[[int, str | None], AuditAnswer]
"""(since, the coordinator's statement or None) -> the trainer's answer; raises TrainerError where nobody answers."""


@dataclass
class _Log:
    """One party's exchange. wanted: from where the coordinator wants its next statement; None: not said yet.

    told: the coordinator's statement that has to go to the trainer.
    """

    wanted: int | None = None
    told: str | None = None
    words: str = ""
    seen: PartyLog | None = None
    asked: float = float("-inf")


def courier_log(folder: Path, site: str, *, clock: Callable[[], float] = time.time) -> AuditLog:
    """Open the courier's audit log; its key is made with it.

    Raises:
        StorageError: another process has it, or the disk refuses. AuditError: it was changed.
    """
    path = folder / "signing.key"
    key = SigningKey.load(path) if path.exists() else SigningKey.create(path)
    return AuditLog(folder / "audit.jsonl", owner=courier_name(site), key=key, clock=clock)


class AuditExchange:
    """The courier's side of it.

    Args:
        audit: the courier's log (`courier_log`). inbox: knows whose statements count.
        every_s: between looks at the trainer's log. clock: seconds since 1970.
    """

    def __init__(self, audit: AuditLog, inbox: Inbox, *, every_s: float, clock: Callable[[], float]) -> None:
        self.audit, self._inbox, self._every_s, self._clock = audit, inbox, every_s, clock
        self._logs: dict[Party, _Log] = {COURIER: _Log(), TRAINER: _Log()}

    def heard(self, answers: Sequence[PartyAnswer]) -> list[str]:
        """Take in what the coordinator says; what does not fit comes back in words."""
        for answer in answers:
            party = self._logs[answer.party]
            party.wanted = answer.since
            if answer.statement is None:
                continue
            if answer.party == TRAINER:
                party.told, party.asked = answer.statement.to_json(), float("-inf")
                continue
            try:
                self._record(answer.statement)
                party.words = ""
            except MammoFedError as error:
                party.words = str(error)
        return [f"audit log of the {name}: {party.words}" for name, party in self._logs.items() if party.words]

    def status(self) -> dict[str, LogStatus]:
        """How both logs are, by party."""
        return {name: LogStatus(recorded=party.seen.recorded if party.seen else 0, words=party.words)
                for name, party in self._logs.items()}  # fmt: skip

    def courier_says(self) -> PartyLog:
        """Of the courier's own log."""
        mine, audit = self._logs[COURIER], self.audit
        statement = None
        if mine.wanted is not None and not audit.news <= mine.wanted <= audit.sequence:
            # Shorter than the coordinator has it: show just how far we are, it finds the difference.
            statement = audit.statement(min(mine.wanted, audit.sequence))
        coordinator = self._inbox.coordinator
        recorded = audit.witnessed(coordinator.name) if coordinator else 0
        mine.seen = PartyLog(party=COURIER, owner=audit.owner, log=audit.log, key=audit.key.hex, statement=statement,
                             recorded=recorded)  # fmt: skip
        return mine.seen

    def trainer_says(self, audit: TrainerAudit, notices: list[str]) -> list[PartyLog]:
        """Of the trainer's log; asked again only when something is to be told or some time has gone by."""
        its, now = self._logs[TRAINER], self._clock()
        if its.seen is not None and 0 <= now - its.asked < self._every_s:
            return [its.seen.model_copy(update={"statement": None})]
        its.asked = now
        answer = self._ask_trainer(audit, its, notices)
        if answer is None:
            return []
        statement = Statement.from_json(answer.statement)
        shown = its.wanted is not None and its.wanted != statement.signed.head.sequence
        its.seen = PartyLog(party=TRAINER, owner=answer.owner, log=answer.log, key=answer.key, recorded=answer.recorded,
                            statement=statement if shown else None)  # fmt: skip
        return [its.seen]

    def _record(self, statement: Statement) -> None:
        coordinator = self._inbox.coordinator
        if coordinator is not None:
            self.audit.record(statement, owner=coordinator.name, key=coordinator.verify_key)

    def _ask_trainer(self, audit: TrainerAudit, its: _Log, notices: list[str]) -> AuditAnswer | None:
        """Its answer; when it refuses what the coordinator says or wants, that is a notice, and it is asked for less.

        A trainer whose log is shorter than the coordinator has it cannot answer from there; then what it has is shown,
        and the coordinator finds the difference.
        """
        told, its.told = its.told, None
        wanted, began = its.wanted or 0, time.monotonic()
        for since, statement in dict.fromkeys(((wanted, told), (wanted, None), (0, None))):
            try:
                return audit(since, statement)
            except MammoFedError as error:
                if not notices:
                    notices.append(plain(f"audit log of the trainer: {error}"))
                if time.monotonic() - began > SLOW_S:  # it does not answer; the heartbeat is not to wait for it
                    break
        return None
