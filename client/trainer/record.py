"""What a trainer was asked under its coordinator's signature, and what it did: its audit log; used by `service`.

A courier is not trusted: it runs what came over the wire. So a request counts only with the coordinator's signature
over exactly this request, for this site, and each is taken once. Everything that was computed, and why something was
not, is one durable entry: hashes, numbers and words, never a patient.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from client.privacy.heads import head_fields, last_head
from client.privacy.ledger import Ledger
from client.trainer.peers import KEY_FILE
from shared_model.audit import AuditLog, Statement, Value
from shared_model.errors import MammoFedError, SignatureError, StorageError
from shared_model.messages import (
    AuditReply,
    AuditRequest,
    EvaluateReply,
    EvaluateRequest,
    Frame,
    SecureSumReply,
    SecureSumRequest,
    TrainReply,
    TrainRequest,
    parse_fields,
)
from shared_model.signed_protocol import Coordinator
from shared_model.signed_request import RequestBook, Signable, SignedRequest, bare
from shared_model.signing import SigningKey

LOG_FILE = "audit.jsonl"
TRAINED, EVALUATED, ABSTAINED, TURNED_AWAY = "round_trained", "model_evaluated", "request_abstained", "message_refused"
SUMMED = "sum_step_taken"
LISTED_REFUSALS: Final = 60  # an hour; a courier that sends nonsense must not fill the site's disk
HOUR_S: Final = 3600.0

log = logging.getLogger("mammofed.trainer")


class SiteRecord:
    """The audit log of one trainer and the book of its requests. Its signing key is born beside it and stays there.

    After a disk that refused, the log is opened, and so checked, again with the next request.

    Args:
        state: the trainer's own folder, claimed by this process.
        site: name of the party; the owner of the log.
        coordinator: whose signature counts.
        release: what is installed here.
        ledger: its head goes into the log with every answer, so that whoever vouches for this log vouches for it.
        clock: seconds that only grow.

    Attributes:
        key: signs the log, and this site's part in secure sums.

    Raises:
        AuditError: the log was changed, or belongs to another site or key.
        SignatureError, StorageError: the key or the log cannot be used, or the ledger is not the one that the log has.
    """

    def __init__(
        self, state: Path, *, site: str, coordinator: Coordinator, release: str, ledger: Ledger | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._state, self._site, self._coordinator, self._release = state, site, coordinator, release
        self._clock, self._mutex, self._ledger = clock, threading.RLock(), ledger
        self._refusals: deque[float] = deque()
        self._unlisted = 0
        self._log: AuditLog | None = None
        with self._opened():
            pass

    def close(self) -> None:
        """Let another process write the log."""
        with self._mutex:
            if self._log is not None:
                self._log.close()
                self._log = None

    def admit(self, frame: Frame) -> SignedRequest:
        """Take a request, durably, before anything is computed for it. A repetition passes: it gets the kept reply.

        Raises:
            SignatureError: it comes without the coordinator's signature, or the signature is over another request.
            MessageError: for another site or release, or its slot was taken by another request.
            StorageError: the log cannot be written; nothing may be computed.
        """
        if frame.envelope is None:
            raise SignatureError("the request comes without the coordinator's signature",
                                 expected=f"one of {self._coordinator.name}",
                                 remedy="the coordinator starts the study with its signing key")  # fmt: skip
        signed = SignedRequest.from_json(frame.envelope, coordinator=self._coordinator, site=self._site,
                                         release=self._release)  # fmt: skip
        if signed.request != bare(frame.message):
            raise SignatureError("the coordinator signed another request than the one that came", expected="the same",
                                 found=f"{frame.message.kind} beside a signed {signed.request.kind}")  # fmt: skip
        with self._opened():
            self._book.admit(signed)
        return signed

    def answered(self, signed: SignedRequest, reply: bytes) -> None:
        """Note what was made of a request, once: a repetition that gets the kept bytes leaves no second entry.

        Raises:
            StorageError: the log cannot be written; the reply must not be sent.
        """
        with self._opened() as entries:
            if signed.identity not in self._answered:
                kind, fields = _made_of(signed.request, reply)
                entries.append(kind, identity=signed.identity, **fields, **head_fields(self._ledger))
                self._answered.add(signed.identity)

    def refused(self, error: MammoFedError, *, words: str) -> None:
        """Note a refusal or failure; at most `LISTED_REFUSALS` an hour, and the next one says how many were left out.

        Args:
            words: the reason, without paths and identities.
        """
        with self._mutex:
            now = self._clock()
            while self._refusals and now - self._refusals[0] >= HOUR_S:
                self._refusals.popleft()
            if len(self._refusals) >= LISTED_REFUSALS:
                self._unlisted += 1
                return
            self._refusals.append(now)
            try:
                with self._opened() as entries:
                    entries.append(TURNED_AWAY, code=error.exit_code, words=words, unlisted_before=self._unlisted)
                self._unlisted = 0
            except MammoFedError as fault:  # the asker gets its answer all the same: nothing was computed
                log.warning("%s: a refusal could not be noted: %s", self._site, fault)

    def exchange(self, request: AuditRequest) -> AuditReply:
        """Record how the coordinator's log went on, and show how this one did.

        Raises:
            AuditError: what came is no statement, does not begin where the record ends, or proves a rewritten log; or
                this log is shorter than what the coordinator recorded.
            SignatureError: the coordinator did not sign it.
        """
        with self._opened() as entries:
            if request.statement is not None:
                entries.record(Statement.from_json(request.statement), owner=self._coordinator.name,
                               key=self._coordinator.verify_key)  # fmt: skip
            return AuditReply(
                owner=self._site, key=self.key.public.hex, log=entries.log,
                statement=entries.statement(request.since).to_json(),
                recorded=entries.witnessed(self._coordinator.name),
            )  # fmt: skip

    @contextlib.contextmanager
    def _opened(self) -> Iterator[AuditLog]:
        """The log, opened and read when it is not; closed again where the disk refuses."""
        with self._mutex:
            try:
                if self._log is None:
                    self._open()
                assert self._log is not None
                yield self._log
            except StorageError:
                self.close()
                raise

    def _open(self) -> None:
        path, key = self._state / LOG_FILE, self._state / KEY_FILE
        born = not (path.exists() or key.exists())  # a log whose key is gone is not gone on with under another
        self.key = SigningKey.create(key) if born else SigningKey.load(key)
        entries = AuditLog(path, owner=self._site, key=self.key)
        try:
            self._book = RequestBook(entries)
            answers = [entry.fields for entry in entries.entries()
                       if entry.kind in (TRAINED, EVALUATED, ABSTAINED, SUMMED)]  # fmt: skip
            self._answered = {str(fields["identity"]) for fields in answers}
            if self._ledger is not None and (head := last_head(answers)) is not None:
                self._ledger.check_reaches(head, witness="the trainer's audit log has more")
        except BaseException:
            entries.close()
            raise
        self._log = entries


def _made_of(request: Signable, reply: bytes) -> tuple[str, dict[str, Value]]:
    """Kind and fields of the entry for an answered request. The reply's hash stands for every byte that left."""
    message = parse_fields(reply)
    assert isinstance(message, TrainReply | EvaluateReply | SecureSumReply)
    fields: dict[str, Value] = {
        "asked": request.kind, "study": request.study, "protocol_sha256": request.protocol_sha256,
        "round": request.round, "reply_sha256": hashlib.sha256(reply).hexdigest(),
    }  # fmt: skip
    match request:
        case TrainRequest():
            fields["attempt"] = request.attempt
        case EvaluateRequest():
            fields |= {"scope": request.scope, "image_only": request.image_only}
        case SecureSumRequest():
            fields |= {"what": request.what, "attempt": request.attempt, "step": request.step}
    if isinstance(message, SecureSumReply):
        return SUMMED, fields
    if message.privacy is not None:
        fields |= {"epsilon": message.privacy.epsilon, "budget": message.privacy.budget, "delta": message.privacy.delta}
    if message.outcome == "abstained":
        return ABSTAINED, fields
    return TRAINED if isinstance(message, TrainReply) else EVALUATED, fields
