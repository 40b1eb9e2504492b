"""Ed25519 keys on disk, signatures that are good for one purpose only, and the six words that two people compare.

Used by whoever signs or checks protocols, requests and heads of audit logs. A signature is made over a purpose and a
payload together (domain separation), so that none can be shown as another: a signed head is never a signed request.
"""

from __future__ import annotations

import os
import secrets
import stat
from enum import StrEnum
from pathlib import Path
from typing import Final, Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from shared_model.errors import SignatureError, StorageError
from shared_model.fingerprint import six_words
from shared_model.private_files import sync_folder

MAX_KEY_BYTES: Final = 4096  # an Ed25519 key in PKCS #8 has 119 bytes in PEM

_FIELD_PRIME: Final = 2**255 - 19
# y coordinates of the eight points of small order (RFC 7748, section 7; the list of libsodium): a "key" among them
# accepts one signature for nearly every message, and whoever registered it could deny everything it ever signed.
_SMALL_ORDER_Y: Final = frozenset({
    0, 1, _FIELD_PRIME - 1,
    0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826,
    0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7,
})  # fmt: skip


class Purpose(StrEnum):
    """What a signature is for. A name is never given a new meaning."""

    AUDIT_HEAD = "audit-head"
    PASSPORT = "passport"
    PROTOCOL = "protocol"
    REQUEST = "request"
    SECURE_SUM = "secure-sum"


class VerifyKey:
    """A public Ed25519 key; equal to another by its 32 bytes.

    Args:
        raw: the key as RFC 8032 encodes it, 32 bytes that are not trusted.

    Raises:
        SignatureError: not a key, or one of the points of small order.
    """

    def __init__(self, raw: bytes) -> None:
        if len(raw) != 32:
            raise SignatureError("a public key of a wrong length", found=f"{len(raw)} bytes", expected="32 bytes")
        if (int.from_bytes(raw, "little") & (2**255 - 1)) % _FIELD_PRIME in _SMALL_ORDER_Y:
            raise SignatureError("a public key that binds nobody to what it signs (a point of small order)",
                                 remedy="ask its owner for a properly made key")  # fmt: skip
        self.raw, self._key = raw, Ed25519PublicKey.from_public_bytes(raw)

    @classmethod
    def from_hex(cls, text: str) -> Self:
        """Read the 64 lower-case hexadecimal digits that :attr:`hex` gives.

        Raises:
            SignatureError: anything else.
        """
        return cls(_unhex(text, 32, "public key"))

    @property
    def hex(self) -> str:
        """64 lower-case hexadecimal digits."""
        return self.raw.hex()

    @property
    def spki(self) -> bytes:
        """The key as DER SubjectPublicKeyInfo, the form that certificates hold and fingerprints are made of."""
        return self._key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    @property
    def fingerprint(self) -> str:
        """Six words to compare over the phone; takes some 0.1 s on purpose (see `shared_model.fingerprint`)."""
        return six_words(self.spki)

    def verify(self, purpose: Purpose, payload: bytes, signature: str) -> None:
        """Check that the owner of this key signed `payload` for `purpose`.

        Args:
            signature: 128 lower-case hexadecimal digits.

        Raises:
            SignatureError: it did not.
        """
        try:
            self._key.verify(_unhex(signature, 64, "signature"), _separated(purpose, payload))
        except InvalidSignature:
            raise SignatureError(
                f"the signature ({purpose}) does not fit the content and the key",
                expected=f"one of the key {self.hex[:16]}",
                remedy="take it from its owner again; should it fail again, compare the six words over the phone",
            ) from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VerifyKey) and self.raw == other.raw

    def __hash__(self) -> int:
        return hash(self.raw)

    def __repr__(self) -> str:
        return f"VerifyKey({self.hex[:16]})"


class SigningKey:
    """A private Ed25519 key. It is born where it is used and leaves neither its file nor this object."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = VerifyKey(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))

    @classmethod
    def generate(cls) -> Self:
        """A new key in memory only; for tests and rehearsals."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def create(cls, path: Path) -> Self:
        """Make a new key and put it on the disk as PKCS #8 (PEM) of mode 0600, whole or not at all.

        Raises:
            StorageError: there is a file already (it is never replaced), or the disk refuses.
        """
        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                with os.fdopen(handle, "wb") as stream:
                    stream.write(pem)
                    stream.flush()
                    os.fsync(stream.fileno())
                os.link(partial, path)  # unlike rename(2) it fails where a key lies already
            finally:
                partial.unlink(missing_ok=True)
            sync_folder(path.parent)
        except FileExistsError:
            raise StorageError(f"{path} exists already and a key is never replaced", expected="a free path",
                               remedy="use the key that lies there, or move it away") from None  # fmt: skip
        except OSError as error:
            raise StorageError(f"{path} could not be written: {error.strerror}",
                               remedy="check the disk and its permissions") from None  # fmt: skip
        return cls(key)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the key that :meth:`create` made.

        Raises:
            SignatureError: it is no such key, or others could have read it.
            StorageError: it is absent or cannot be read.
        """
        try:
            key = load_pem_private_key(_read_private(path), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):  # the parser's own words could repeat what it read
            raise SignatureError(f"{path} is no private key in PKCS #8", remedy="restore it from backup") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise SignatureError(f"{path} holds a key of another kind", expected="Ed25519")
        return cls(key)

    def sign(self, purpose: Purpose, payload: bytes) -> str:
        """Signature over purpose and payload: 128 lower-case hexadecimal digits."""
        return self._key.sign(_separated(purpose, payload)).hex()

    def __repr__(self) -> str:
        return f"SigningKey(public={self.public.hex[:16]})"

    def __reduce__(self) -> str:
        raise TypeError("a private key is not copied or serialised")


def _separated(purpose: Purpose, payload: bytes) -> bytes:
    # No purpose holds a zero byte, so no two (purpose, payload) give the same bytes.
    return b"mammofed signature 1\0" + purpose.value.encode() + b"\0" + payload


def _unhex(text: str, length: int, what: str) -> bytes:
    if len(text) != 2 * length or not set(text) <= set("0123456789abcdef"):
        raise SignatureError(f"a {what} of a wrong form", found=f"{len(text)} characters",
                             expected=f"{2 * length} lower-case hexadecimal digits")  # fmt: skip
    return bytes.fromhex(text)


def _read_private(path: Path) -> bytes:
    """Bytes of a key file that belongs to this user and that nobody else may read."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise SignatureError(f"{path} is not a regular file")
            if status.st_mode & 0o077:
                raise SignatureError(
                    f"{path} can be read by others", found=f"mode {stat.S_IMODE(status.st_mode):04o}",
                    expected="0600", remedy="make a new key and enrol it: this one may be known to others",
                )  # fmt: skip
            if status.st_uid != os.geteuid():
                raise SignatureError(f"{path} belongs to another user", found=f"uid {status.st_uid}",
                                     expected=f"uid {os.geteuid()}")  # fmt: skip
            data = stream.read(MAX_KEY_BYTES + 1)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}",
                           remedy="restore the key from backup, or enrol again") from None  # fmt: skip
    if len(data) > MAX_KEY_BYTES:
        raise SignatureError(f"{path} is too large for a key", expected=f"at most {MAX_KEY_BYTES} bytes")
    return data
