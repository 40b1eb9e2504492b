"""What site and coordinator say to each other beside Flower: the documents of the gRPC service `mammofed.Control`.

    Enrol      EnrolRequest     -> EnrolReply       at the door for enrolment, without a certificate
    Renew      RenewRequest     -> EnrolReply       all others: with the site's certificate
    Documents  DocumentsRequest -> DocumentsReply   signed protocols that name this site; node keys of their other sites
    Beat       BeatRequest      -> BeatReply        every few seconds: who is there, time, statements of audit logs
    Watch      WatchRequest     -> StudyEvent ...   how the site's studies go, until somebody ends it
    Leave      LeaveRequest     -> LeaveReply       the site takes no part any more

Each document is JSON of bounded size; an unknown field is an error. A refusal is gRPC's status with a `Refusal` as
its details. The messages are bytes to gRPC, so there is no generated code.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared_model.audit.heads import MAX_STATEMENT_BYTES, LogId, Owner, Statement
from shared_model.certificates import REFUSALS, Role
from shared_model.enrolment import Base64
from shared_model.errors import CertificateError, ControlError, EnrolmentError, MammoFedError, StorageError
from shared_model.protocol import Name, Sha256

SERVICE: Final = "mammofed.Control"
MAX_REQUEST_BYTES: Final = 2 * MAX_STATEMENT_BYTES + (64 << 10)  # a beat with two statements
MAX_REPLY_BYTES: Final = 8 << 20
MAX_PROTOCOLS: Final = 1000  # offered to one site at one time
MAX_MEMBERS: Final = 1000
MAX_WORDS: Final = 400  # characters of one text for a person
MAX_REFUSAL_BYTES: Final = 3 << 10  # gRPC's headers have 8 KiB in all
WATCHING: Final = ("mammofed-watch", "open")  # gRPC's initial metadata of a watch that is let in
AHEAD_S: Final = 5.0
BEHIND_S: Final = 300.0
"""How far a site's clock may be off: Flower refuses signatures from more than 5 s ahead or 305 s behind."""
COURIER_BEHIND_S: Final = 5.0
"""A courier hands no message on that seems to come from further in the future (`client/app.py`)."""

Words = Annotated[str, Field(max_length=MAX_WORDS)]
Party = Literal["courier", "trainer"]
"""Which of a site's two audit logs."""


class Document(BaseModel):
    """Base of all documents."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def encode(self) -> bytes:
        """As JSON bytes."""
        return self.model_dump_json().encode()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read what is not trusted.

        Raises:
            ControlError: `not_a_document`: too large, or of another form.
        """
        if len(data) <= MAX_REPLY_BYTES:
            try:
                return cls.model_validate_json(data)
            except ValidationError as error:
                found = ", ".join(".".join(map(str, e["loc"])) or "JSON" for e in error.errors(include_url=False)[:5])
        else:
            found = f"{len(data)} bytes"
        raise ControlError(f"not a {cls.__name__} of the control service", reason="not_a_document", found=found[:200],
                           remedy="use the same release at both ends")  # fmt: skip


# --- documents ---


class MemberKey(Document):
    """Another party of this site's studies. node: its public node key (SPKI), from which the six words come.

    trainer: public key of its trainer, as its courier told it; None: not told yet.
    """

    site: Name
    role: Role
    node: Base64
    trainer: Sha256 | None = None


class DocumentsRequest(Document):
    """have: SHA-256 of the protocols that the site has already."""

    have: tuple[Sha256, ...] = Field(default=(), max_length=MAX_PROTOCOLS)


class DocumentsReply(Document):
    """offered: SHA-256 of all protocols that name the site. protocols: files of some that it does not have; it asks
    again until it has all. Each is checked by its signature, not by who carried it.
    """

    offered: tuple[Sha256, ...] = Field(max_length=MAX_PROTOCOLS)
    protocols: tuple[Base64, ...] = Field(max_length=MAX_PROTOCOLS)
    members: tuple[MemberKey, ...] = Field(max_length=MAX_MEMBERS)


# --- heartbeat ---


class TrainerState(Document):
    """Whether the site's trainer answers, on what device, and its public signing key (64 hexadecimal digits)."""

    up: bool
    device: Annotated[str, Field(max_length=100)] = ""
    key: Sha256 | None = None


class PartyLog(Document):
    """One of a site's audit logs. log: its id; key: its public Ed25519 key.

    statement: how it went on since the entry that the coordinator asked for; None: nothing new, or not asked yet.
    recorded: up to where the *coordinator's* log is recorded in this one.
    """

    party: Party
    owner: Owner
    log: LogId
    key: Sha256
    statement: Statement | None = None
    recorded: int = Field(ge=0)


class BeatRequest(Document):
    """A sign of life. time: the site's clock, seconds since 1970.

    approved, declined: SHA-256 of the protocols that the site's administrator has decided on.
    """

    time: float = Field(gt=0, lt=1e11, allow_inf_nan=False)
    release: Annotated[str, Field(max_length=40)]
    trainer: TrainerState
    approved: tuple[Sha256, ...] = Field(default=(), max_length=MAX_PROTOCOLS)
    declined: tuple[Sha256, ...] = Field(default=(), max_length=MAX_PROTOCOLS)
    logs: tuple[PartyLog, ...] = Field(default=(), max_length=2)


class PartyAnswer(Document):
    """What goes to one of the site's logs. since: from where its next statement is wanted; statement: how the
    coordinator's log went on since `recorded`, None when nothing has happened.
    """

    party: Party
    since: int = Field(ge=0)
    statement: Statement | None = None


class BeatReply(Document):
    """time: the coordinator's clock. notices: what a person at the site should know."""

    time: float
    release: Annotated[str, Field(max_length=40)]
    logs: tuple[PartyAnswer, ...] = Field(default=(), max_length=2)
    notices: tuple[Words, ...] = Field(default=(), max_length=20)


# --- events ---


class WatchRequest(Document):
    """after: study -> number of the last event that the site has; a study that is not named begins with its first."""

    after: dict[Name, Annotated[int, Field(ge=0)]] = Field(default_factory=dict, max_length=MAX_PROTOCOLS)


class StudyEvent(Document):
    """An event of a study's journal as one site may see it: of another site the kind, but neither words nor numbers."""

    study: Name
    number: int = Field(ge=1)
    time: float
    kind: Annotated[str, Field(max_length=40)]
    severity: Literal["info", "warning", "error"]
    code: Annotated[str, Field(max_length=60)] = ""
    round: int = 0
    attempt: int = 0
    site: Annotated[str, Field(max_length=63)] | None = None
    text: Annotated[str, Field(max_length=1000)] = ""
    data: dict[str, float | str] = Field(default_factory=dict, max_length=64)


# --- goodbye ---


class LeaveRequest(Document):
    """The site takes no part any more; what it contributed stays in the models of closed rounds."""

    reason: Words = ""


class LeaveReply(Document):
    """It is on record."""


# --- refusals ---


class Refusal(Document):
    """Why a call was refused, free of identities and paths."""

    kind: Literal["control", "certificate", "enrolment", "storage"]
    reason: Annotated[str, Field(max_length=60)] = ""
    problem: Words
    found: Words | None = None
    expected: Words | None = None
    remedy: Words | None = None

    @classmethod
    def of(cls, error: MammoFedError) -> Self:
        """An error in words that may be sent. Of a storage error nothing but that there is one: it names our paths."""
        if isinstance(error, StorageError):
            return cls(kind="storage", problem="the coordinator's disk refuses",
                       remedy="the coordinator has to look after it; this goes on by itself then")  # fmt: skip
        kind = "enrolment" if isinstance(error, EnrolmentError) else "certificate"
        if not isinstance(error, EnrolmentError | CertificateError):
            kind = "control"
        return cls.model_validate({
            "kind": kind, "reason": str(getattr(error, "reason", "")), "problem": error.problem[:MAX_WORDS],
            "found": _short(error.found), "expected": _short(error.expected), "remedy": _short(error.remedy),
        })  # fmt: skip

    def error(self) -> MammoFedError:
        """The error again; its words are the coordinator's, made harmless for a terminal."""
        problem, found, expected, remedy = map(plain, (self.problem, self.found, self.expected, self.remedy))
        words = {"found": found or None, "expected": expected or None, "remedy": remedy or None}
        if self.kind == "enrolment":
            return EnrolmentError(problem, **words)
        if self.kind == "certificate":
            return CertificateError(problem, reason=self.reason if self.reason in REFUSALS else "unknown", **words)
        return ControlError(problem, reason="storage" if self.kind == "storage" else plain(self.reason), **words)


def plain(text: str | None) -> str:
    """Another party's words as one line of printable characters, so that they cannot disguise a log or a terminal."""
    line = " ".join((text or "").split())
    return "".join(c if c.isprintable() else "?" for c in line)[:MAX_WORDS]


def _short(value: object) -> str | None:
    return None if value is None else str(value)[:MAX_WORDS]
