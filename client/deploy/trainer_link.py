"""What the courier asks of the trainer for its heartbeat, over the trainer's socket; used by `site join`."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from client.deploy.peer_keys import read_published
from client.deploy.presence import Trainer
from client.trainer.client import call, listens
from shared_model.control import TrainerState
from shared_model.errors import MessageError, TrainerError
from shared_model.messages import (
    AuditReply,
    AuditRequest,
    DescribeReply,
    DescribeRequest,
    ErrorReply,
    Frame,
    Message,
    Request,
    decode,
    encode,
)  # fmt: skip

CALL_S = 10.0
BEAT_S = 1.0  # that a heartbeat waits for the trainer: one that hangs is told of, and does not silence the site


class TrainerLink:
    """One trainer, as the courier sees it. What it said last of itself is kept for the questions of one beat.

    Args:
        key: file of the trainer's public key (`client.deploy.peer_keys`).
        beat_s, call_s: seconds that a heartbeat waits for it, and after which it counts as down.
        first_s: that the first heartbeat waits, before which nothing is known of it; None: as long as the call.
    """

    def __init__(
        self, socket: Path, site: str, *, key: Path | None = None, beat_s: float = BEAT_S, call_s: float = CALL_S,
        first_s: float | None = None,
    ) -> None:  # fmt: skip
        self._socket, self._site, self._key, self._beat_s, self._call_s = socket, site, key, beat_s, call_s
        self._first_s = call_s if first_s is None else first_s
        self._approved: tuple[str, ...] = ()
        self._found: TrainerState | None = None
        self._asking: threading.Thread | None = None

    def as_trainer(self) -> Trainer:
        """For :class:`client.deploy.presence.Presence`."""
        return Trainer(state=self.state, audit=self.audit, decided=self.decided)

    def state(self) -> TrainerState:
        """Whether it answers, on what device, and its key. One that is being started again is down, and no error.

        One that does not answer at once stays what it was until its time is over: it may be busy, or hang. The first
        answer is waited for that long, so that one that is just slow is not told of as down when the courier begins.
        """
        if self._asking is None:
            self._asking = threading.Thread(target=self._look, name="trainer", daemon=True)
            self._asking.start()
        self._asking.join(self._first_s if self._found is None else self._beat_s)
        if not self._asking.is_alive():
            self._asking = None
        return self._found or self._down()

    def _down(self) -> TrainerState:
        return TrainerState(up=False, key=read_published(self._key) if self._key is not None else None)

    def _look(self) -> None:
        found = self._down()
        try:
            found = self._ask_state()
        finally:
            self._found = found

    def _ask_state(self) -> TrainerState:
        down = self._down()
        if not listens(self._socket):
            return down
        try:
            reply = self._ask(DescribeRequest())
        except (TrainerError, MessageError):
            return down
        if not isinstance(reply, DescribeReply):
            return down
        self._approved = reply.protocols
        return down.model_copy(update={"up": True, "device": reply.device})

    def decided(self) -> tuple[Sequence[str], Sequence[str]]:
        """SHA-256 of the protocols that it serves. What was declined never reaches the courier: it stays proposed."""
        return self._approved, ()

    def audit(self, since: int, statement: str | None) -> AuditReply:
        """Exchange statements about audit logs.

        Raises:
            TrainerError: it does not answer, or refuses.
        """
        if self._asking is not None:
            raise TrainerError("the trainer has not answered yet")  # and this would wait for it as long again
        try:
            reply = self._ask(AuditRequest(since=since, statement=statement))
        except MessageError as error:
            raise TrainerError(f"the trainer's answer is no message: {error.problem}") from None
        if isinstance(reply, ErrorReply):
            raise TrainerError(reply.reason)
        if not isinstance(reply, AuditReply):
            raise TrainerError("the trainer answers another question", found=reply.kind)
        return reply

    def _ask(self, request: Request) -> Message:
        return decode(call(self._socket, self._site, encode(Frame(request)), self._call_s)).message
