"""A round's request under the coordinator's signature, for one site; and the book that takes each request once.

The courier, which carries the envelope, can neither change it nor turn it to another site, round or set of weights. The
trainer checks it before it computes anything. No clock is asked: a site that was away for three weeks goes on, and an
old request that comes again is answered with the bytes that it got the first time.
"""

from __future__ import annotations

import hashlib
import json
import threading
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, ValidationError

from shared_model.audit import AuditLog
from shared_model.errors import MessageError, SignatureError
from shared_model.messages import (
    MAX_ENVELOPE_BYTES,
    EvaluateRequest,
    Fields,
    Message,
    SecureSumRequest,
    SiteName,
    TrainRequest,
)
from shared_model.signed_protocol import Coordinator
from shared_model.signing import Purpose, SigningKey

ADMITTED, REFUSED = "request_admitted", "request_refused"

Signable = TrainRequest | EvaluateRequest | SecureSumRequest
Asked = Annotated[Signable, Field(discriminator="kind")]


class SignedRequest(Fields):
    """A request, whom it is for, and the signature over all of it. The weights that come along are named by hash.

    Made by :meth:`sign`, read by :meth:`from_json`. It covers every field of the request: study, protocol, round,
    attempt, hashes of weights and correction; for an evaluation also scope, thresholds and temperature.
    """

    schema_version: Literal[1] = 1
    release: str = Field(max_length=32)
    coordinator: str = SiteName
    site: str = SiteName
    request: Asked
    signature: str = Field(pattern=r"^[0-9a-f]{128}$")

    @classmethod
    def sign(
        cls, request: Signable, *, site: str, release: str, name: str, key: SigningKey
    ) -> Self:
        """Sign `request` for `site` as coordinator `name`; of a document that it carries, only the hash.

        Raises:
            MessageError: a name or the request breaks the schema.
        """
        values = {"release": release, "coordinator": name, "site": site, "signature": "0" * 128,
                  "request": bare(request).model_dump(mode="json")}  # fmt: skip
        unsigned = _parse(cls, json.dumps(values).encode())
        return unsigned.model_copy(update={"signature": key.sign(Purpose.REQUEST, unsigned.payload())})

    def payload(self) -> bytes:
        """The bytes that are signed: all members but the signature, as JSON with sorted keys and no spaces."""
        values = self.model_dump(mode="json", exclude={"signature"})
        return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    def to_json(self) -> bytes:
        """The one form of the envelope, to be sent beside the tensors."""
        values = self.model_dump(mode="json")
        return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    @classmethod
    def from_json(cls, data: bytes, *, coordinator: Coordinator, site: str, release: str) -> Self:
        """Read an envelope that is not trusted.

        Args:
            coordinator: whom this site enrolled with.
            site: this site.
            release: what is installed here.

        Raises:
            MessageError: too large, of another form or release, or for another site.
            SignatureError: the coordinator did not sign this.
        """
        signed = _parse(cls, data)
        if signed.release != release:
            raise MessageError("the request is of another release than the one installed here", found=signed.release,
                               expected=release, remedy="install the protocol's release at every party")  # fmt: skip
        if signed.coordinator != coordinator.name:
            raise SignatureError("the request is not of the coordinator that this site enrolled with",
                                 found=signed.coordinator, expected=coordinator.name)  # fmt: skip
        coordinator.verify_key.verify(Purpose.REQUEST, signed.payload(), signed.signature)
        if signed.site != site:
            raise MessageError("the request is for another site", found=signed.site, expected=site)
        if data != signed.to_json():
            raise MessageError("the request is written in another form than the coordinator's")
        return signed

    @property
    def identity(self) -> str:
        """Hex SHA-256 of the signed request: two requests of one slot differ by it."""
        return hashlib.sha256(self.payload()).hexdigest()

    @property
    def slot(self) -> str | None:
        """What may be asked once in a protocol (a round's attempt, the opening of `test`); None: as often as liked."""
        match self.request:
            case TrainRequest(round=number, attempt=attempt):
                return f"train/{number}/{attempt}"
            case EvaluateRequest(scope="test", image_only=image_only):
                return "test-image-only" if image_only else "test"
            case SecureSumRequest(what=what, round=number, attempt=attempt, step=step):
                return f"secure-sum/{what}/{number}/{attempt}/{step}"
        return None


def bare(message: Message) -> Message:
    """What is signed of a message: all of it, but for a document that is named by its hash."""
    return message.bare if isinstance(message, SecureSumRequest) else message


class RequestBook:
    """Which requests a trainer took, so that no slot is asked twice with another body. Its record is the audit log.

    Args:
        log: the trainer's own; what it took before is read from it.

    Raises:
        AuditError: the log was changed.
    """

    def __init__(self, log: AuditLog) -> None:
        self._log, self._mutex = log, threading.Lock()
        self._taken: dict[tuple[str, str], str] = {}
        self._refused: set[tuple[str, str]] = set()
        for entry in log.entries():
            if entry.kind in (ADMITTED, REFUSED):
                key = (str(entry.fields["protocol_sha256"]), str(entry.fields["slot"]))
                if entry.kind == ADMITTED:
                    self._taken[key] = str(entry.fields["identity"])
                else:
                    self._refused.add(key)

    def admit(self, signed: SignedRequest) -> bool:
        """Take a request that :meth:`SignedRequest.from_json` let pass; it is on the disk before this returns.

        Returns:
            whether it is new; False: a repetition, to be answered with the reply that is kept.

        Raises:
            MessageError: its slot was taken with another body; both signatures are then in the log.
            StorageError: the log cannot be written; nothing may be computed.
        """
        with self._mutex:
            return signed.slot is None or self._admit(signed, signed.slot)

    def _admit(self, signed: SignedRequest, slot: str) -> bool:
        key = (signed.request.protocol_sha256, slot)
        before = self._taken.get(key)
        if before == signed.identity:
            return False
        if before is None or key not in self._refused:  # one proof is enough, and repetitions must not fill the disk
            self._log.append(
                ADMITTED if before is None else REFUSED, study=signed.request.study,
                protocol_sha256=signed.request.protocol_sha256, slot=slot, identity=signed.identity,
                **_content(signed.request), envelope=signed.to_json().decode("ascii"),
            )  # fmt: skip
        if before is not None:
            self._refused.add(key)
            raise MessageError(f"{slot} was asked before with another body", found=signed.identity[:12],
                               expected=before[:12],
                               remedy="the coordinator opens a new attempt; both signed requests are in the audit log",
                               )  # fmt: skip
        self._taken[key] = signed.identity
        return True


def _content(request: Signable) -> dict[str, str]:
    """Hash of what comes beside a request."""
    if isinstance(request, SecureSumRequest):
        return {"document_sha256": request.document_sha256}
    return {"weights_sha256": request.weights_sha256}


_Envelope = TypeVar("_Envelope", bound=Fields)


def _parse(model: type[_Envelope], data: bytes) -> _Envelope:
    if len(data) > MAX_ENVELOPE_BYTES:
        raise MessageError("the request's envelope is too large", found=len(data),
                           expected=f"at most {MAX_ENVELOPE_BYTES} bytes")  # fmt: skip
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'JSON'}: {e['msg']}"
                           for e in error.errors(include_url=False, include_input=False)[:5])  # fmt: skip
        raise MessageError(f"the request's envelope breaks its schema: {faults}") from None
