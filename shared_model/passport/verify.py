"""Checks a passport against what lies beside it, offline; for `mammofed passport verify` and users of a model."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from shared_model.errors import MammoFedError, PassportError
from shared_model.map_figures import LOCALISATION
from shared_model.messages import MAX_FRAME_BYTES, Arrays, weights_sha256
from shared_model.passport.document import PASSPORT, FilePart
from shared_model.passport.signed import AGAIN, SignedPassport
from shared_model.protocol import Protocol
from shared_model.signing import VerifyKey

WEIGHTS, PROTOCOL = "model.safetensors", "protocol.json"
LATER = ("release.json", "privacy-deltas.json", LOCALISATION)  # that may have come after a passport was signed
MAX_FILE_BYTES = 4 * MAX_FRAME_BYTES


@dataclass(frozen=True)
class Verified:
    """A passport whose signature and files fit. absent: files that it names, needs not, and that do not lie here.
    unsigned: files of a model that lie here and that it does not name."""

    signed: SignedPassport
    folder: Path
    checked: tuple[str, ...]
    absent: tuple[str, ...]
    unsigned: tuple[str, ...] = ()


def find_passport(place: Path) -> Path:
    """The passport of a folder, or the file itself."""
    return place / PASSPORT if place.is_dir() else place


def verify(place: Path, *, key: VerifyKey | None = None) -> Verified:
    """Check a passport (or the one of a folder): signature, audit head, every file's hash, weights and protocol.

    Args:
        key: the signer's public key, known from elsewhere. None: the passport's own word.

    Raises:
        SignatureError: the passport was changed, or is of another key.
        PassportError: it is malformed, or a file is absent that it needs, or is not the one that it names.
    """
    path = find_passport(place)
    signed = SignedPassport.read(path, key=key)
    folder, passport = path.parent, signed.passport
    if signed.signer.kind == "coordinator" and passport.record.head is not None:
        passport.record.head.verify(signed.signer.verify_key)
    checked, absent = [], []
    for part in passport.files:
        if not (folder / part.name).exists() and not part.needed:
            absent.append(part.name)
            continue
        _check(folder / part.name, part)
        checked.append(part.name)
    if not {WEIGHTS, PROTOCOL} <= set(checked):
        raise PassportError(f"{path} names neither weights nor protocol", expected=f"{WEIGHTS}, {PROTOCOL}")
    _same("protocol", _protocol(folder / PROTOCOL).sha256, passport.protocol_sha256)
    _same("weights", weights_sha256(read_weights(folder / WEIGHTS)), passport.model.sha256)
    unsigned = tuple(name for name in LATER if name not in (*checked, *absent) and (folder / name).exists())
    return Verified(signed, folder, tuple(checked), tuple(absent), unsigned)


def read_weights(path: Path) -> Arrays:
    """The tensors of a weights file of bounded size.

    Raises:
        PassportError: absent, too large or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = load(_bytes(path))
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise PassportError(f"{path} is damaged: {type(error).__name__}", remedy=AGAIN) from None
    if any(str(array.dtype) != "float32" for array in arrays.values()):
        raise PassportError(f"{path} holds tensors of a wrong type", expected="float32", remedy=AGAIN)
    return arrays


def _check(path: Path, part: FilePart) -> None:
    data = _bytes(path, limit=part.bytes)
    found = hashlib.sha256(data).hexdigest()
    if len(data) != part.bytes or found != part.sha256:
        raise PassportError(f"{path} is not the file that the passport names", found=f"{len(data)} bytes, {found[:16]}",
                            expected=f"{part.bytes} bytes, {part.sha256[:16]}", remedy=AGAIN)  # fmt: skip


def _bytes(path: Path, *, limit: int = MAX_FILE_BYTES) -> bytes:
    """At most limit + 1 bytes of a regular file; a pipe or a device is never waited for."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise PassportError(f"{path} is no regular file", remedy=AGAIN)
            data = stream.read(min(limit, MAX_FILE_BYTES) + 1)
    except OSError as error:
        raise PassportError(f"{path}, which the passport names, cannot be read: {error.strerror}",
                            remedy="keep the passport beside its files") from None  # fmt: skip
    if len(data) > MAX_FILE_BYTES:
        raise PassportError(f"{path} is too large", expected=f"at most {MAX_FILE_BYTES} bytes", remedy=AGAIN)
    return data


def _protocol(path: Path) -> Protocol:
    try:
        return Protocol.read(path)
    except MammoFedError as error:
        raise PassportError(f"{path} is no protocol: {error.problem}", remedy=AGAIN) from None


def _same(what: str, found: str, expected: str) -> None:
    if found != expected:
        raise PassportError(f"the {what} beside the passport are not those that it names", found=found[:16],
                            expected=expected[:16], remedy=AGAIN)  # fmt: skip
