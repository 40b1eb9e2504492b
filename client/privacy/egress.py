"""The egress gate: the one function through which every byte leaves a trainer; called by its service.

A reply passes when it is, byte for byte, a declared answer to what was asked (:mod:`client.privacy.egress_rules`), and
once it stands on the site's list of what left (:mod:`client.privacy.egress_log`), value by value. Only then is there a
:class:`Released`, and only a `Released` is written to the socket (`client.trainer.server`; a test reads the code).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Self

from client.privacy.egress_log import EgressLog
from client.privacy.egress_rules import Asked, Party, values_of
from client.privacy.egress_values import Value
from client.privacy.scrub import without_identity
from shared_model.errors import EgressError, MammoFedError, StorageError
from shared_model.messages import (
    AuditReply,
    DescribeReply,
    ErrorReply,
    EvaluateReply,
    Frame,
    Message,
    SecureSumReply,
    TrainReply,
    decode,
    encode,
)

NOBODY: Final = "this machine"
CONSTANT: Final = "the site cannot list what leaves it, so nothing leaves; the site's own log has the details"

_SEAL: Final = object()

log = logging.getLogger("mammofed.trainer")


class Released(bytes):
    """Bytes that may leave. Nobody but the gate makes one: the constructor wants its seal."""

    def __new__(cls, data: bytes, *, seal: object) -> Self:
        if seal is not _SEAL:
            raise EgressError("bytes were to leave past the egress gate", remedy="this is a fault of the release")
        return super().__new__(cls, data)


def released(data: object) -> Released:
    """`data`, if the gate let it go; asked at the socket, where a type checker no longer looks.

    Raises:
        EgressError: something else.
    """
    if type(data) is not Released:
        raise EgressError("bytes were to leave past the egress gate", remedy="this is a fault of the release")
    return data


class EgressGate:
    """The gate of one site.

    Args:
        state: the trainer's own folder, claimed by this process; the list is kept there.
        party: whose it is.
        recipient: name of the coordinator; None: nobody else, all parties live on this machine.
        paths: of the site, taken out of every word that leaves.

    Raises:
        StorageError, AuditError: the list cannot be used; a site without one sends nothing.
    """

    def __init__(self, state: Path, *, party: Party, recipient: str | None, paths: Iterable[Path]) -> None:
        self._party, self._recipient, self._paths = party, recipient or NOBODY, tuple(paths)
        self._log = EgressLog(state, owner=party.site)

    def close(self) -> None:
        """Let another process write the list; the next release takes it again."""
        self._log.close()

    def release(self, data: bytes, asked: Asked) -> Released:
        """Let a reply go: checked, listed on the disk, and then as it is. It never changes a reply.

        A reply that went before goes again, with the same bytes, and is listed as a repetition.

        Args:
            data: an encoded frame.
            asked: what it answers.

        Raises:
            EgressError: it is not what may leave.
            MessageError: it is no frame at all.
            StorageError, AuditError: it could not be listed.
        """
        frame = decode(data)
        values = values_of(frame, asked, self._party)
        if encode(frame) != data:  # padding, a field twice: what the list names must be all that there is
            raise EgressError("a reply that is not written as it reads", found=frame.message.kind)
        self._list(frame.message, values, data)
        return Released(data, seal=_SEAL)

    def refusal(self, error: MammoFedError) -> Released:
        """Words of an error, scrubbed. It always gives an answer: one that cannot be listed is a constant, which tells
        nothing but that."""
        words, code = self.words_of(error), error.exit_code
        reply = ErrorReply(code=code, reason=words)
        data = encode(Frame(reply))
        value = Value.of_field("reason", {"code": code, "reason": words}, purpose="why nothing came of a request",
                               protection="scrubbed")  # fmt: skip
        try:
            self._list(reply, [value], data)
        except MammoFedError as fault:
            log.error("%s: a refusal could not be listed: %s", self._party.site, fault)
            data = encode(Frame(ErrorReply(code=StorageError.exit_code, reason=CONSTANT)))
        return Released(data, seal=_SEAL)

    def words_of(self, error: MammoFedError) -> str:
        """What :meth:`refusal` would say."""
        return without_identity(str(error), paths=self._paths)

    def _list(self, message: Message, values: list[Value], data: bytes) -> None:
        sha256 = hashlib.sha256(data).hexdigest()
        if isinstance(message, ErrorReply | DescribeReply | AuditReply):
            self._log.often(values, kind=message.kind, sha256=sha256, size=len(data), reply=message.kind,
                            recipient=self._recipient)  # fmt: skip
            return
        assert isinstance(message, TrainReply | EvaluateReply | SecureSumReply)  # what the rules let pass
        self._log.once(
            values, sha256=sha256, size=len(data), reply=message.kind, recipient=self._recipient,
            study=message.study, round=message.round, attempt=getattr(message, "attempt", None),
            outcome=f"step {message.step}" if isinstance(message, SecureSumReply) else message.outcome,
        )  # fmt: skip
