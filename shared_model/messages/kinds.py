"""The kinds of messages, and the declared fields of each."""

from __future__ import annotations

import hashlib
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from shared_model.errors import MessageError
from shared_model.phases import PhaseSeconds

MAX_REPORT_BYTES = 8 << 20
MAX_DOCUMENT_CHARS = 1 << 20  # shared_model.secagg.documents.MAX_DOCUMENT_BYTES, all ASCII (a test says so)
MAX_STATEMENT_CHARS = 384 << 10  # shared_model.audit.heads.MAX_STATEMENT_BYTES fits (a test says so)

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

KINDS: dict[str, type[Fields]] = {
    "describe": DescribeRequest, "described": DescribeReply, "train": TrainRequest, "trained": TrainReply,
    "evaluate": EvaluateRequest, "evaluated": EvaluateReply, "audit": AuditRequest, "audited": AuditReply,
    "secure_sum": SecureSumRequest, "secure_summed": SecureSumReply, "error": ErrorReply,
}  # fmt: skip


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
