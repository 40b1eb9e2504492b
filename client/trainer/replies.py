"""Durable replies of a site, so that a repeated request gets the same bytes and never new noise; used by the trainer.

Layout: `<state>/replies/<study>-<protocol hash>/<slot>.<identity>.frame`. A slot is what may be answered once (a round
and attempt, or a final evaluation); the identity says with which weights. A pruned reply leaves an empty `.gone`, so
that the slot stays taken. A file is the reply and then the SHA-256 of name and reply: what the disk has changed since
is never sent, for the coordinator could not tell it from what the site had trained.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from pathlib import Path

from shared_model.errors import MessageError, PrivacyError, StorageError
from shared_model.messages import MAX_FRAME_BYTES
from shared_model.private_files import sync_folder

_NAME = re.compile(r"^[a-z0-9_-]{1,96}$")
DIGEST_BYTES = 32
_IDENTITY = re.compile(r"^[0-9a-f]{64}$")


class ReplyStore:
    """Replies of one site, by (study folder, slot).

    Args:
        folder: where they lie; created when the first reply is stored.
        keep: how many rounds of a study stay (a coordinator only ever repeats the round that it is in).
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        self._folder, self._keep = folder, keep

    def find(self, study: str, slot: str, identity: str) -> bytes | None:
        """The stored reply, or None when the slot is free.

        Args:
            study: folder name, made of checked protocol fields only.
            identity: hex SHA-256 that tells requests for one slot apart.

        Raises:
            PrivacyError: the slot was answered for another identity, or its reply has been pruned.
            StorageError: the reply cannot be read back.
        """
        path = self._path(study, slot, identity)
        taken = sorted(path.parent.glob(f"{slot}.*")) if path.parent.is_dir() else []
        taken = [p for p in taken if p.suffix in (".frame", ".gone")]
        if not taken:
            return None
        if path not in taken:
            if path.with_suffix(".gone") in taken:
                raise PrivacyError("this round was answered long ago and its reply is no longer kept", found=slot,
                                   remedy="go on from the last closed round")  # fmt: skip
            raise PrivacyError("this round was already answered for other weights", found=slot,
                               expected="the weights of the first request, or the next attempt",
                               remedy="resume the study from its own journal")  # fmt: skip
        return self._read(path)

    def make_room(self, study: str, slot: str, identity: str, size: int) -> None:
        """Take the disk space of a reply of `size` bytes before anything is charged for it; `store` then uses it.

        Raises:
            StorageError: disk full or not writable.
        """
        temporary = self._path(study, slot, identity).with_suffix(".tmp")
        try:
            temporary.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as stream:
                os.posix_fallocate(stream.fileno(), 0, size + DIGEST_BYTES)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise StorageError("there is no room for the reply; nothing was charged or trained", found=error.strerror,
                               expected=f"{size} bytes free",
                               remedy="make room on the site's disk and repeat the round") from None  # fmt: skip

    def store(self, study: str, slot: str, identity: str, data: bytes) -> None:
        """Write a reply durably (temporary file, fsync, rename, fsync of the folder) before it is sent.

        Raises:
            StorageError: disk full or not writable; nothing must be sent then.
        """
        path = self._path(study, slot, identity)
        temporary = path.with_suffix(".tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("r+b" if temporary.exists() else "wb") as stream:  # "wb" would give the room back
                stream.write(data + _digest(path, data))
                stream.truncate()
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise StorageError("the reply could not be stored; nothing was sent", found=error.strerror,
                               remedy="make room on the site's disk and repeat the round") from None  # fmt: skip
        with contextlib.suppress(OSError):  # what could not be pruned is only kept for longer
            self._prune(path.parent)

    def _path(self, study: str, slot: str, identity: str) -> Path:
        if not (_NAME.match(study) and _NAME.match(slot) and _IDENTITY.match(identity)):
            raise MessageError("a name that cannot be a reply's", expected="lower-case letters, digits, - and _")
        return self._folder / study / f"{slot}.{identity}.frame"

    def _read(self, path: Path) -> bytes:
        try:
            with path.open("rb") as stream:
                content = stream.read(MAX_FRAME_BYTES + DIGEST_BYTES + 1)
        except OSError as error:
            raise StorageError("a stored reply cannot be read back", found=error.strerror) from None
        data = content[:-DIGEST_BYTES]
        if not 0 < len(data) <= MAX_FRAME_BYTES or content[-DIGEST_BYTES:] != _digest(path, data):
            raise StorageError("a stored reply is damaged; it is not sent", found=f"{len(content)} bytes",
                               remedy="restore the site's state from its backup, then resume the study")  # fmt: skip
        return data

    def _prune(self, folder: Path) -> None:
        rounds = sorted(folder.glob("round-*.frame"))
        for path in rounds[: -self._keep]:
            path.with_suffix(".gone").touch()  # first the mark, so that a crash between the two frees no slot
            path.unlink(missing_ok=True)


def round_slot(round_number: int, attempt: int) -> str:
    """Slot of one training request; sorts by time."""
    return f"round-{round_number:06d}-{attempt:02d}"


def _digest(path: Path, data: bytes) -> bytes:
    """SHA-256 of a reply and of the name that it is stored under, which says what it answers."""
    digest = hashlib.sha256(f"{path.parent.name}/{path.name}\n".encode())
    digest.update(data)
    return digest.digest()
