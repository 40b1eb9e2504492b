"""Signed heads of audit logs, and the statements by which a receiver sees that a log only grew; sent every round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Final, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared_model.audit.entries import MAX_SEQUENCE, chain
from shared_model.errors import AuditError, StorageError
from shared_model.signing import Purpose, SigningKey, VerifyKey

MAX_STEPS: Final = 4096  # entries that one statement spans; a longer way takes several
MAX_HEAD_BYTES: Final = 4096
MAX_STATEMENT_BYTES: Final = MAX_HEAD_BYTES + 80 * MAX_STEPS

Owner = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
LogId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Sequence = Annotated[int, Field(ge=1, le=MAX_SEQUENCE)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Head(_Strict):
    """Up to where a log reaches: entry `sequence` of log `log` of `owner` has hash `sha256`, and all before stand."""

    schema_version: Literal[1] = 1
    owner: Owner
    log: LogId
    sequence: Sequence
    sha256: Hash
    time: str = Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$")

    def canonical(self) -> bytes:
        """The bytes that are signed: JSON with sorted keys and no spaces."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":")).encode("ascii")


class SignedHead(_Strict):
    """A head and its owner's signature. It does not carry the key: who checks it knows the key already."""

    head: Head
    signature: str = Field(pattern=r"^[0-9a-f]{128}$")

    @classmethod
    def sign(cls, head: Head, key: SigningKey) -> Self:
        """Sign a head."""
        return cls(head=head, signature=key.sign(Purpose.AUDIT_HEAD, head.canonical()))

    def verify(self, key: VerifyKey) -> None:
        """Check the signature.

        Raises:
            SignatureError: the owner of `key` did not sign this head.
        """
        key.verify(Purpose.AUDIT_HEAD, self.head.canonical(), self.signature)

    def to_json(self) -> str:
        """One line, to be kept in a file beside others or sent."""
        return self.model_dump_json() + "\n"

    @classmethod
    def from_json(cls, data: bytes | str) -> Self:
        """Read what is not trusted.

        Raises:
            AuditError: no signed head.
        """
        return _read(cls, data, limit=MAX_HEAD_BYTES, what="signed head")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file of bounded size.

        Raises:
            StorageError: it cannot be read.
            AuditError: it holds no signed head.
        """
        try:
            with path.open("rb") as stream:
                return cls.from_json(stream.read(MAX_HEAD_BYTES + 1))
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}") from None


class Statement(_Strict):
    """A signed head and the way to it: hashes of the contents of entries `since` + 1 to the head's.

    Whoever recorded the hash of entry `since` computes the head's from it, and finds any entry that was changed since.
    """

    signed: SignedHead
    since: int = Field(ge=0, le=MAX_SEQUENCE)
    contents: tuple[Hash, ...] = Field(max_length=MAX_STEPS)

    def follows(self, sha256: str) -> bool:
        """Whether the head is reached from `sha256`, the recorded hash of entry `since` (64 zeros for 0)."""
        head = self.signed.head
        if self.since + len(self.contents) != head.sequence:
            return False
        for content in self.contents:
            sha256 = chain(sha256, bytes.fromhex(content))
        return sha256 == head.sha256

    def to_json(self) -> str:
        """The message to send."""
        return self.model_dump_json() + "\n"

    @classmethod
    def from_json(cls, data: bytes | str) -> Self:
        """Read what is not trusted.

        Raises:
            AuditError: no statement.
        """
        return _read(cls, data, limit=MAX_STATEMENT_BYTES, what="statement about an audit log")


_Model = TypeVar("_Model", bound=_Strict)


def _read(model: type[_Model], data: bytes | str, *, limit: int, what: str) -> _Model:
    if len(data) > limit:
        raise AuditError(f"too large for a {what}", found=len(data), expected=f"at most {limit} bytes")
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        places = ", ".join(".".join(map(str, e["loc"])) or "JSON" for e in error.errors(include_url=False)[:5])
        raise AuditError(f"no {what}", found=f"wrong: {places}") from None
