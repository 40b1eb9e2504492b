"""What crosses between a site and the coordinator in a secure sum: declared, bounded, signed documents in one form.

Every document names its sum by the session's digest and carries its author's Ed25519 signature over kind, sum and
content. Its bytes have one form only, so that any changed byte is refused, spaces included. The order of messages is in
`shared_model.secagg.site`.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Final, Self, TypeVar

from pydantic import Field, ValidationError

from shared_model.errors import MessageError
from shared_model.messages import Fields
from shared_model.protocol import Name, Sha256
from shared_model.secagg.session import MAX_SITES, Session
from shared_model.secagg.shamir import SHARE_DIGITS
from shared_model.signing import Purpose, SigningKey, VerifyKey

MAX_DOCUMENT_BYTES: Final = 1 << 20  # the shares of `MAX_SITES` sites take some 150 KB
_UNSIGNED: Final = "0" * 128

PublicKey = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Signature = Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]
Share = Annotated[str, Field(pattern=rf"^[0-9a-f]{{{SHARE_DIGITS}}}$")]
SealedShares = Annotated[str, Field(pattern=r"^[0-9a-f]{188}$")]  # nonce 12, two shares of 33, tag 16 bytes
Sites = Annotated[tuple[Name, ...], Field(min_length=1, max_length=MAX_SITES)]


class Document(Fields):
    """Base of all documents. session: digest of the :class:`Session`. signature: of the author, over all the rest."""

    session: Sha256
    signature: Signature = _UNSIGNED

    def signed(self, key: SigningKey) -> Self:
        """The same under the author's signature."""
        return self.model_copy(update={"signature": key.sign(Purpose.SECURE_SUM, self.payload())})

    def check(self, key: VerifyKey) -> None:
        """Refuse what the owner of `key` did not sign.

        Raises:
            SignatureError: that is so.
        """
        key.verify(Purpose.SECURE_SUM, self.payload(), self.signature)

    def payload(self) -> bytes:
        """The bytes that are signed: the kind and all fields but the signature."""
        return canonical([type(self).__name__, self.model_dump(mode="json", exclude={"signature"})])

    def to_bytes(self) -> bytes:
        """The document's one form: JSON with sorted keys and no spaces."""
        return canonical(self.model_dump(mode="json"))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read bytes that are not trusted; the signature is not looked at (see :meth:`check`).

        Raises:
            MessageError: too large, of another schema, or written in another form.
        """
        return read(cls, data)


Fielded = TypeVar("Fielded", bound=Fields)


def read(model: type[Fielded], data: bytes, *, limit: int = MAX_DOCUMENT_BYTES) -> Fielded:
    """Parse a declared document in its one form.

    Raises:
        MessageError: too large, of another schema, or written in another form.
    """
    what = f"a document of the secure sum ({model.__name__})"
    if len(data) > limit:
        raise MessageError(f"{what} is too large", found=len(data), expected=f"at most {limit} bytes")
    try:
        document = model.model_validate_json(data)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'JSON'}: {e['type']}"
                           for e in error.errors(include_url=False, include_input=False)[:5])  # fmt: skip
        raise MessageError(f"{what} breaks its schema: {faults}") from None
    if data != canonical(document.model_dump(mode="json")):
        raise MessageError(f"{what} is written in another form than ours")
    return document


class Opening(Document):
    """Coordinator: this is the sum, and who takes part."""

    terms: Session


class Keys(Document):
    """Site: my fresh public keys, for sealing shares and for agreeing on masks."""

    site: Name
    sealing_key: PublicKey
    mask_key: PublicKey


class Directory(Document):
    """Coordinator: the keys of all who answered, by name."""

    keys: tuple[Keys, ...] = Field(min_length=1, max_length=MAX_SITES)

    @property
    def digest(self) -> str:
        """Hex SHA-256 of what was signed."""
        return hashlib.sha256(self.payload()).hexdigest()


class Parcel(Fields):
    """Two shares (of the mask key and of the own seed), sealed by `sender` for `receiver`."""

    sender: Name
    receiver: Name
    sealed: SealedShares


class Shares(Document):
    """Site: my shares for each other site of the directory that I saw, and what my seed must hash to."""

    site: Name
    directory: Sha256
    seed_sha256: Sha256
    parcels: tuple[Parcel, ...] = Field(min_length=1, max_length=MAX_SITES)


class Delivery(Document):
    """Coordinator to one site: who shared, and what they sealed for it."""

    receiver: Name
    directory: Sha256
    sharers: Sites
    parcels: tuple[Parcel, ...] = Field(max_length=MAX_SITES)


class Masked(Document):
    """Site: my masked values; the words travel beside it and are named by their hash."""

    site: Name
    directory: Sha256
    sharers: Sites
    words_sha256: Sha256


class Survivors(Document):
    """Coordinator: whose masked values came, the same for all."""

    directory: Sha256
    sharers: Sites
    survivors: Sites


class Statement(Document):
    """Site: this is the directory, these are the sharers and these the survivors that I was told of."""

    site: Name
    directory: Sha256
    sharers: Sites
    survivors: Sites


class Statements(Document):
    """Coordinator: what the survivors stated."""

    statements: tuple[Statement, ...] = Field(min_length=1, max_length=MAX_SITES)


class OneShare(Fields):
    """A share of something of `owner`: a number of the field in hexadecimal."""

    owner: Name
    share: Share


class Unmasking(Document):
    """Site: shares of the seeds of the survivors, and of the mask keys of those who shared and then fell out."""

    site: Name
    seeds: tuple[OneShare, ...] = Field(max_length=MAX_SITES)
    mask_keys: tuple[OneShare, ...] = Field(max_length=MAX_SITES)


def canonical(values: object) -> bytes:
    """JSON with sorted keys and no spaces."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
