"""Files that are there whole or not at all, for their owner alone; used by the store of films and by the outbox."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from shared_model.errors import StorageError
from shared_model.private_files import sync_folder


def make_folder(path: Path) -> None:
    """Make a folder that only its owner can enter, and what is missing above it, durably.

    Raises:
        StorageError: the disk refuses.
    """
    try:
        if path.is_dir():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        raise _refused(path, error) from None


def read_bounded(path: Path, limit: int) -> bytes | None:
    """Bytes of a file of at most `limit`; None where it is absent or longer.

    Raises:
        StorageError: it is there and cannot be read.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}", remedy="check the disk") from None
    return data if len(data) <= limit else None


class FolderLock:
    """One process at a time in a folder. The kernel gives the lock back when its holder dies, however it dies."""

    def __init__(self, folder: Path) -> None:
        """Take the lock.

        Raises:
            StorageError: another process holds it, or the disk refuses.
        """
        path = folder / "lock"
        try:
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _refused(folder, error) from None
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._handle)
            raise StorageError(f"another process works in {folder}", expected="one at a time",
                               remedy="wait until it has ended, or end it") from None  # fmt: skip

    def release(self) -> None:
        """Give the folder back."""
        os.close(self._handle)


def _refused(folder: Path, error: OSError) -> StorageError:
    return StorageError(f"{folder} could not be written: {error.strerror}",
                        remedy="make room or check the disk and its permissions, then start again")  # fmt: skip
