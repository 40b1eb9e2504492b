"""A half-done secure sum as bytes to be kept on the disk, and back; used by both ends.

A checksum finds damage. It is no protection against whoever may write the file: that is the file's mode.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Final, Literal, TypeVar

from pydantic import Field

from shared_model.errors import MessageError, StorageError
from shared_model.messages import Fields
from shared_model.protocol import Name, Sha256
from shared_model.secagg.documents import Keys, Shares, Statement, Unmasking, canonical, read
from shared_model.secagg.session import MAX_SITES, Session
from shared_model.secagg.site_states import Contributed, Finished, Keyed, Shared, Stated

MAX_KEPT_BYTES: Final = 128 << 20  # of the documents of `MAX_SITES` sites, without the words


class SiteKept(Fields):
    """A site's: where it is, and the hash of what it answered last."""

    kind: Literal["site"] = "site"
    session: Session
    site: Name
    asked: Sha256
    state: Annotated[Keyed | Shared | Contributed | Stated | Finished, Field(discriminator="step")]


class ServerKept(Fields):
    """The coordinator's: all documents that came. Its signing key is not in it."""

    kind: Literal["server"] = "server"
    session: Session
    stage: int = Field(ge=0, le=5)
    keys: tuple[Keys, ...] = Field(max_length=MAX_SITES)
    shares: tuple[Shares, ...] = Field(max_length=MAX_SITES)
    masked: tuple[tuple[Name, Sha256], ...] = Field(max_length=MAX_SITES)
    statements: tuple[Statement, ...] = Field(max_length=MAX_SITES)
    unmaskings: tuple[Unmasking, ...] = Field(max_length=MAX_SITES)


Kept = TypeVar("Kept", bound=Fields)


def pack(about: Fields, words: bytes) -> bytes:
    """Checksum, length of the document, document, words."""
    document = canonical(about.model_dump(mode="json"))
    body = len(document).to_bytes(8, "little") + document + words
    return hashlib.sha256(body).digest() + body


def unpack(kind: type[Kept], data: bytes) -> tuple[Kept, bytes]:
    """What :func:`pack` was given.

    Raises:
        StorageError: damaged or of another kind.
    """
    body, length = data[32:], int.from_bytes(data[32:40], "little")
    if len(data) < 40 or hashlib.sha256(body).digest() != data[:32] or length > len(body) - 8:
        raise damaged("is damaged")
    try:
        return read(kind, body[8 : 8 + length], limit=MAX_KEPT_BYTES), body[8 + length :]
    except MessageError as error:
        raise damaged(f"cannot be read: {error.problem}") from None


def damaged(how: str) -> StorageError:
    """The error for a kept sum that cannot be gone on with."""
    return StorageError(f"a kept secure sum {how}", remedy="open a new attempt; nothing of this one can be revealed")
