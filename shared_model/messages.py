"""What crosses between coordinator and site: declared fields and named tensors, bounded and checked before allocation.

Used by the courier's shim, the trainer and the server; needs neither torch nor Flower. On the wire a message is one
safetensors file whose metadata holds kind and fields as JSON, so that both ends decode into declared types only. Where
a coordinator signs, the metadata holds its envelope (`shared_model.signed_request`) as well, which is opaque here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.numpy import save as save_safetensors

from shared_model.errors import MessageError
from shared_model.phases import PhaseSeconds
from shared_model.tensors import CORRECTION as CORRECTION
from shared_model.tensors import MASKED as MASKED
from shared_model.tensors import MAX_TENSOR_BYTES, load, typed
from shared_model.tensors import Arrays as Arrays

MAX_HEADER_BYTES = 1 << 20
MAX_FRAME_BYTES = MAX_TENSOR_BYTES
MAX_REPORT_BYTES = 8 << 20
MAX_ENVELOPE_BYTES = 16 << 10
MAX_DOCUMENT_CHARS = 1 << 20  # shared_model.secagg.documents.MAX_DOCUMENT_BYTES, all ASCII (a test says so)
MAX_STATEMENT_CHARS = 384 << 10  # shared_model.audit.heads.MAX_STATEMENT_BYTES fits (a test says so)
CHUNK_BYTES = 1 << 20

Sha256 = Field(pattern=r"^[0-9a-f]{64}$")
OptionalSha256 = Field(default=None, pattern=r"^[0-9a-f]{64}$")
SiteName = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")


class Fields(BaseModel):
    """Base of all messages' fields: immutable, finite numbers, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DescribeRequest(Fields):
    """Who are you?"""

    kind: Literal["describe"] = "describe"


class DescribeReply(Fields):
    """What a trainer says about itself; nothing here depends on a patient.

    key: the public key that signs its audit log and its part in a secure sum (64 hex digits); None: nothing is signed.
    """

    kind: Literal["described"] = "described"
    site: str = SiteName
    role: Literal["site", "evaluator"]
    release: str = Field(max_length=32)
    protocols: tuple[str, ...] = Field(max_length=100)
    device: str = Field(max_length=100)
    key: str | None = OptionalSha256


class TrainRequest(Fields):
    """Train one round from the weights that come along. (study, round, attempt, :attr:`identity`) identifies it.

    correction_sha256: of the tensors named `correction.*` that come beside the weights, for strategy `scaffold` only.
    """

    kind: Literal["train"] = "train"
    study: str = Field(max_length=64)
    protocol_sha256: str = Sha256
    round: int = Field(ge=1)
    attempt: int = Field(ge=1)
    weights_sha256: str = Sha256
    correction_sha256: str | None = OptionalSha256

    @property
    def identity(self) -> str:
        """Hex SHA-256 of all tensors that come along: two requests for one round and attempt differ by it alone."""
        if self.correction_sha256 is None:
            return self.weights_sha256
        return hashlib.sha256(f"{self.weights_sha256}/{self.correction_sha256}".encode()).hexdigest()


class PrivacySpent(Fields):
    """State of a site's accountant after a request, for its training patients."""

    unit: Literal["patient"] = "patient"
    adjacency: Literal["add_or_remove_one"] = "add_or_remove_one"
    accountant: Literal["prv"] = "prv"
    epsilon: float = Field(ge=0)
    budget: float = Field(ge=0)
    delta: float = Field(gt=0, lt=1)
    noise_multiplier: float = Field(ge=0)
    sample_rate: float = Field(gt=0, le=1)
    steps: int = Field(ge=0)


class TrainReply(Fields):
    """A site's answer to a :class:`TrainRequest`. `weights` come as tensors beside it, only when `trained`, and never
    in a study with a secure sum, where the update stays at the site until it is masked.

    seconds: of training, with reading the patients and accounting. phases: of the whole request, from its arrival on;
        None where the trainer does not tell. Both as `shared_model.phases.told` tells them.
    loss: mean training loss of the round, dimensionless; absent under DP (it is not noised, so it stays at the site).
    """

    kind: Literal["trained"] = "trained"
    site: str = SiteName
    study: str = Field(max_length=64)
    round: int = Field(ge=1)
    attempt: int = Field(ge=1)
    weights_sha256: str = Sha256
    correction_sha256: str | None = OptionalSha256
    outcome: Literal["trained", "abstained"]
    reason: str = Field(default="", max_length=300)
    seconds: float = Field(ge=0)
    phases: PhaseSeconds | None = None
    loss: float | None = None
    privacy: PrivacySpent | None = None


class EvaluateRequest(Fields):
    """Evaluate the weights that come along on one split.

    scope: `selection` and `test` are the evaluator's; `site` asks a hospital, once and at the end, about its own women.
    reference: a second evaluation of the *initial* weights is wanted for the row "public weights only".
    threshold, temperature: taken from `selection`, applied to `test` and `site`.
    """

    kind: Literal["evaluate"] = "evaluate"
    study: str = Field(max_length=64)
    protocol_sha256: str = Sha256
    round: int = Field(ge=0)
    weights_sha256: str = Sha256
    scope: Literal["selection", "test", "site"]
    image_only: bool = False
    thresholds: dict[str, float] = Field(default_factory=dict, max_length=16)
    temperature: float = Field(default=1.0, ge=1e-6, le=1e6)  # beyond it a score over it could overflow


class EvaluateReply(Fields):
    """Result of an evaluation: one JSON document whose schema `shared_model.evaluation` owns."""

    kind: Literal["evaluated"] = "evaluated"
    site: str = SiteName
    study: str = Field(max_length=64)
    round: int = Field(ge=0)
    weights_sha256: str = Sha256
    scope: Literal["selection", "test", "site"]
    outcome: Literal["evaluated", "abstained"]
    reason: str = Field(default="", max_length=300)
    seconds: float = Field(ge=0)
    report: str = Field(default="{}", max_length=MAX_REPORT_BYTES)
    privacy: PrivacySpent | None = None


SumStep = Literal["keys", "share", "mask", "confirm", "unmask"]


class SecureSumRequest(Fields):
    """One step of a secure sum: the coordinator's signed document of `shared_model.secagg`, and which sum it is of.

    what: `update`, or the name of another quantity that the protocol lets be summed. attempt: of the sum.
    asked: the attempt number of the training request whose update is summed; 0 where it is no update.
    document: JSON text that the envelope names by `document_sha256` only, or logs would grow with it.
    """

    kind: Literal["secure_sum"] = "secure_sum"
    study: str = Field(max_length=64)
    protocol_sha256: str = Sha256
    what: str = SiteName
    round: int = Field(ge=0)
    attempt: int = Field(ge=1)
    asked: int = Field(ge=0)
    step: SumStep
    document_sha256: str = Sha256
    document: str = Field(max_length=MAX_DOCUMENT_CHARS)

    @classmethod
    def carrying(cls, document: bytes, **fields: object) -> SecureSumRequest:
        """The request that carries a document."""
        text = document.decode("ascii")
        return cls.model_validate({**fields, "document": text, "document_sha256": _sha256(document)})

    @property
    def bare(self) -> SecureSumRequest:
        """What is signed: without the document, which its hash stands for."""
        return self.model_copy(update={"document": ""})

    def opened(self) -> bytes:
        """The document's bytes.

        Raises:
            MessageError: it is not the one that the request names.
        """
        data = self.document.encode()
        if _sha256(data) != self.document_sha256:
            raise MessageError("the document of a secure sum is not the one that its request names",
                               found=_sha256(data)[:12], expected=self.document_sha256[:12])  # fmt: skip
        return data


class SecureSumReply(Fields):
    """The site's signed document; the masked words of step `mask` come beside it as the tensor `masked_words`.

    seconds: that the site took for this step when it was first asked for it.
    """

    kind: Literal["secure_summed"] = "secure_summed"
    site: str = SiteName
    study: str = Field(max_length=64)
    what: str = SiteName
    round: int = Field(ge=0)
    attempt: int = Field(ge=1)
    step: SumStep
    document: str = Field(max_length=MAX_DOCUMENT_CHARS)
    seconds: float = Field(default=0.0, ge=0)


class ErrorReply(Fields):
    """A refusal or failure in words, with the exit code of the error tree; no identity, no path of the site."""

    kind: Literal["error"] = "error"
    code: int
    reason: str = Field(max_length=500)


class AuditRequest(Fields):
    """Exchange heads of audit logs. The courier asks on the coordinator's behalf, and can forge neither side's.

    since: up to which entry of this trainer's log the coordinator has recorded it (0: nothing).
    statement: how the coordinator's own log went on since what the last reply says is recorded here, as
        `shared_model.audit.Statement` writes it; None: nothing new.
    """

    kind: Literal["audit"] = "audit"
    since: int = Field(ge=0, le=2**53 - 1)
    statement: str | None = Field(default=None, max_length=MAX_STATEMENT_CHARS)


class AuditReply(Fields):
    """How far the trainer's audit log reaches, signed; it tells nothing of what is in the log.

    owner, key, log: whose log, the public key that signs its heads (64 hex digits), and which of the owner's logs.
    statement: JSON of `shared_model.audit.Statement` from `since` on; the receiver checks it with `AuditLog.record`.
    recorded: up to which entry the coordinator's log is recorded here, where its next statement must begin.
    """

    kind: Literal["audited"] = "audited"
    owner: str = SiteName
    key: str = Sha256
    log: str = Field(pattern=r"^[0-9a-f]{32}$")
    statement: str = Field(max_length=MAX_STATEMENT_CHARS)
    recorded: int = Field(ge=0, le=2**53 - 1)


Request = DescribeRequest | TrainRequest | EvaluateRequest | SecureSumRequest | AuditRequest
Reply = DescribeReply | TrainReply | EvaluateReply | SecureSumReply | AuditReply | ErrorReply
Message = Request | Reply

_FIELDS, _ENVELOPE = "message", "envelope"  # in the metadata of the safetensors file

_TYPES: dict[str, type[Fields]] = {
    "describe": DescribeRequest, "described": DescribeReply, "train": TrainRequest, "trained": TrainReply,
    "evaluate": EvaluateRequest, "evaluated": EvaluateReply, "audit": AuditRequest, "audited": AuditReply,
    "secure_sum": SecureSumRequest, "secure_summed": SecureSumReply, "error": ErrorReply,
}  # fmt: skip


@dataclass(frozen=True)
class Frame:
    """One message: its fields and, where the kind has them, named float32 tensors.

    envelope: the coordinator's signature over a request (`SignedRequest.to_json`), ASCII; None: unsigned.
    """

    message: Message
    arrays: Arrays = field(default_factory=dict)
    envelope: bytes | None = None


def weights_sha256(arrays: Arrays) -> str:
    """Hex SHA-256 over names, shapes and float32 bytes in name order; the identity of a set of weights."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name], dtype="<f4", order="C")
        digest.update(f"{name}:{array.shape};".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def split_correction(arrays: Arrays) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.float32]]]:
    """Tensors of a training request -> weights, and the correction beside them under the weights' own names."""
    weights = {name: array for name, array in arrays.items() if not name.startswith(CORRECTION)}
    beside = {name.removeprefix(CORRECTION): arrays[name] for name in arrays if name.startswith(CORRECTION)}
    return weights, beside


def encode(frame: Frame) -> bytes:
    """Frame -> bytes.

    Raises:
        MessageError: above `MAX_FRAME_BYTES`, or the envelope is no ASCII text of at most `MAX_ENVELOPE_BYTES`.
    """
    tensors = {name: typed(name, array) for name, array in frame.arrays.items()}
    metadata = {_FIELDS: frame.message.model_dump_json()}
    if frame.envelope is not None:
        if len(frame.envelope) > MAX_ENVELOPE_BYTES or not frame.envelope.isascii():
            raise MessageError("the request's envelope is too large or no text", found=f"{len(frame.envelope)} bytes",
                               expected=f"at most {MAX_ENVELOPE_BYTES}, ASCII")  # fmt: skip
        metadata[_ENVELOPE] = frame.envelope.decode("ascii")
    data = save_safetensors(tensors, metadata=metadata)
    if len(data) > MAX_FRAME_BYTES:
        raise MessageError("message is too large", found=f"{len(data)} bytes", expected=f"at most {MAX_FRAME_BYTES}",
                           remedy="choose a smaller model size")  # fmt: skip
    return data


def decode(data: bytes) -> Frame:
    """Bytes that are not trusted -> Frame. Only float32 tensors; unknown kinds and fields are refused.

    Raises:
        MessageError: in words, never with the content.
    """
    metadata = _metadata(data)
    message, envelope = parse_message(metadata[_FIELDS]), metadata.get(_ENVELOPE)
    arrays = load(data)
    return Frame(message, arrays, None if envelope is None else envelope.encode("ascii"))


def parse_fields(data: bytes) -> Message:
    """The fields of an encoded frame alone, without touching its tensors (what the courier needs for its log)."""
    return parse_message(_metadata(data)[_FIELDS])


def _metadata(data: bytes) -> dict[str, str]:
    """The texts in the header of an encoded frame: the message's fields, and its envelope where there is one."""
    if len(data) > MAX_FRAME_BYTES:
        raise MessageError("message is too large", found=len(data), expected=f"at most {MAX_FRAME_BYTES} bytes")
    length = int.from_bytes(data[:8], "little") if len(data) >= 8 else -1
    if not 2 <= length <= MAX_HEADER_BYTES + MAX_REPORT_BYTES or 8 + length > len(data):
        raise MessageError("message is damaged: bad header length", found=length)
    try:
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    except (ValueError, KeyError, TypeError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict) or set(metadata) not in ({_FIELDS}, {_FIELDS, _ENVELOPE}) or not all(
        isinstance(text, str) for text in metadata.values()
    ):  # fmt: skip
        raise MessageError("message is damaged: header is not what a MammoFed message has")
    envelope = metadata.get(_ENVELOPE, "")
    if len(envelope) > MAX_ENVELOPE_BYTES or not envelope.isascii():
        raise MessageError("the request's envelope is too large or no text", found=f"{len(envelope)} characters",
                           expected=f"at most {MAX_ENVELOPE_BYTES}, ASCII")  # fmt: skip
    return metadata


def parse_message(text: str) -> Message:
    """JSON text of a message's fields -> typed message.

    Raises:
        MessageError: unknown kind, or a field is missing, unknown or out of bounds.
    """
    try:
        values = json.loads(text)
        kind = values["kind"]
        declared = _TYPES[kind]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise MessageError("message of an unknown kind", expected=sorted(_TYPES)) from None
    try:
        return declared.model_validate(values)  # type: ignore[return-value]
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False)[:5])
        raise MessageError(f"message of kind {kind!r} breaks its schema: {faults}") from None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def check_shapes(arrays: Arrays, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse tensors that are not exactly those expected (no broadcasting, none missing, none more).

    Raises:
        MessageError: naming the first difference.
    """
    if set(arrays) != set(expected):
        missing, extra = sorted(set(expected) - set(arrays)), sorted(set(arrays) - set(expected))
        raise MessageError("tensors are not those of the model", found=f"missing {missing[:3]}, unknown {extra[:3]}")
    for name, shape in expected.items():
        if arrays[name].shape != shape:
            raise MessageError(f"tensor {name} has a wrong shape", found=arrays[name].shape, expected=shape)
