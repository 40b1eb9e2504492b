"""What the courier asks of the trainer for its heartbeat, over the trainer's socket; used by `site join`."""

from __future__ import annotations

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


class TrainerLink:
    """One trainer, as the courier sees it. What it said last of itself is kept for the questions of one beat.

    Args:
        key: file of the trainer's public key (`client.deploy.peer_keys`).
    """

    def __init__(self, socket: Path, site: str, *, key: Path | None = None) -> None:
        self._socket, self._site, self._key = socket, site, key
        self._approved: tuple[str, ...] = ()

    def as_trainer(self) -> Trainer:
        """For :class:`client.deploy.presence.Presence`."""
        return Trainer(state=self.state, audit=self.audit, decided=self.decided)

    def state(self) -> TrainerState:
        """Whether it answers, on what device, and its key. One that is being started again is down, and no error."""
        key = read_published(self._key) if self._key is not None else None
        if not listens(self._socket):
            return TrainerState(up=False, key=key)
        try:
            reply = self._ask(DescribeRequest())
        except (TrainerError, MessageError):
            return TrainerState(up=False, key=key)
        if not isinstance(reply, DescribeReply):
            return TrainerState(up=False, key=key)
        self._approved = reply.protocols
        return TrainerState(up=True, device=reply.device, key=key)

    def decided(self) -> tuple[Sequence[str], Sequence[str]]:
        """SHA-256 of the protocols that it serves. What was declined never reaches the courier: it stays proposed."""
        return self._approved, ()

    def audit(self, since: int, statement: str | None) -> AuditReply:
        """Exchange statements about audit logs.

        Raises:
            TrainerError: it does not answer, or refuses.
        """
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
        return decode(call(self._socket, self._site, encode(Frame(request)), CALL_S)).message
