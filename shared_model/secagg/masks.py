"""Keys that two sites agree on, and the masks that are made of them; used by both ends of the secure sum.

A mask is the key stream of AES-256 in counter mode, read as numbers modulo 2**bits. Its key has all 256 bits: it comes
from X25519 (RFC 7748) or a random seed through HKDF-SHA-256 (RFC 5869), bound to the sum and to both sites and used for
one mask only, so that the counter may start at zero.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from numpy.typing import NDArray

from shared_model.errors import MessageError

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
_CHUNK_BYTES: Final = 1 << 18  # stays in the processor's cache between making the mask and adding it

Words = NDArray[np.uint32] | NDArray[np.uint64]


def public_hex(private: bytes) -> str:
    """The public X25519 key of 32 private bytes, as 64 hexadecimal digits."""
    public = X25519PrivateKey.from_private_bytes(private).public_key()
    return public.public_bytes(Encoding.Raw, PublicFormat.Raw).hex()


def agree(private: bytes, public: str, *label: str) -> bytes:
    """The 32-byte key that the owners of two X25519 keys share for what `label` says.

    Raises:
        MessageError: the other's key is a point of small order, with which everybody would agree on the same.
    """
    other = X25519PublicKey.from_public_bytes(bytes.fromhex(public))
    try:
        shared = X25519PrivateKey.from_private_bytes(private).exchange(other)
    except ValueError:
        raise MessageError("a key with which no secret can be agreed on (a point of small order)") from None
    return derive(shared, *label)


def derive(secret: bytes, *label: str) -> bytes:
    """A 32-byte key for what `label` says; other labels give keys that have nothing to do with it."""
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=_info(label)).derive(secret)


def apply(words: Words, key: bytes, *, subtract: bool = False) -> None:
    """Add the mask of `key` to `words` in place, modulo two to their width; `subtract` takes it away again."""
    assert len(key) == KEY_BYTES and words.flags.c_contiguous
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    width = words.dtype.itemsize
    zeros, mask = bytes(_CHUNK_BYTES), bytearray(_CHUNK_BYTES)
    for start in range(0, len(words), _CHUNK_BYTES // width):
        part = words[start : start + _CHUNK_BYTES // width]
        stream.update_into(memoryview(zeros)[: len(part) * width], memoryview(mask)[: len(part) * width])
        numbers = np.frombuffer(mask, dtype=words.dtype, count=len(part))
        (np.subtract if subtract else np.add)(part, numbers, out=part)


def seal(key: bytes, nonce: bytes, plain: bytes, about: Iterable[str]) -> bytes:
    """Nonce, and `plain` encrypted and authenticated together with `about` (ChaCha20-Poly1305, RFC 8439)."""
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, plain, _info(about))


def unseal(key: bytes, sealed: bytes, about: Iterable[str]) -> bytes:
    """What :func:`seal` encrypted.

    Raises:
        MessageError: another key, another `about`, or a changed byte.
    """
    try:
        return ChaCha20Poly1305(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _info(about))
    except (InvalidTag, ValueError):
        raise MessageError("a sealed share cannot be opened: it is not what its sender sealed for this site") from None


def _info(label: Iterable[str]) -> bytes:
    # JSON keeps the words apart, so that no two labels give the same bytes.
    return json.dumps(["mammofed secure sum 1", *label], separators=(",", ":")).encode()
