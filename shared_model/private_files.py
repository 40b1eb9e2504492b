"""Files for their owner alone, there whole or not at all: keys, certificates, registries, films; used at both ends.

What root writes into a folder belongs to the folder's owner: an administrator who approves a study as root leaves a
file that the trainer's user can read.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
import time
from pathlib import Path

from shared_model.errors import StorageError

MAX_PRIVATE_BYTES = 1 << 20  # the largest file here is a key with its chain, some 4 KB
LOOK_S = 0.25  # who only looks has a lock for microseconds, unless the machine takes the processor away just then


def make_private_folder(path: Path) -> None:
    """Make a folder that only its owner can enter, durably; one that is there is made so.

    Raises:
        StorageError: the disk refuses.
    """
    try:
        new = not path.exists()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
        if new and os.geteuid() == 0:
            owner = path.parent.stat()
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
        sync_folder(path.parent)
    except OSError as error:
        raise _refused(path, error) from None


def write_private(path: Path, data: bytes, *, spool: Path | None = None) -> None:
    """Write a file of mode 0600: temporary file, fsync, rename, fsync of the folder.

    spool: where the temporary file lies meanwhile, on the same file system; None: beside `path`.

    Raises:
        StorageError: the disk refuses; what was there before is still there.
    """
    partial = (path.parent if spool is None else spool) / f".{path.name}.{secrets.token_hex(8)}"
    try:
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            if os.geteuid() == 0:
                owner = path.parent.stat()
                os.fchown(stream.fileno(), owner.st_uid, owner.st_gid)
            os.fsync(stream.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise _refused(path, error) from None


def read_private(path: Path, *, limit: int = MAX_PRIVATE_BYTES) -> bytes:
    """Bytes of a file that nobody but its owner may read or write.

    Raises:
        StorageError: absent, unreadable, too long, or open to others: then it may be known, and is not used.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        with os.fdopen(handle, "rb") as stream:
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            if mode & 0o077:
                raise StorageError(f"{path} is open to other users", found=f"mode {mode:04o}", expected="mode 0600",
                                   remedy="if others could read it, make new keys; else chmod 600")  # fmt: skip
            data = stream.read(limit + 1)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}", remedy="check that it is there") from None
    if len(data) > limit:
        raise StorageError(f"{path} is too long", expected=f"at most {limit} bytes", remedy="restore it from a backup")
    return data


def take_lock(handle: int) -> bool:
    """Take the lock (flock(2)) of an open file, which the kernel gives back however this process ends.

    Somebody who only looks (:func:`is_held`) is waited for, and not taken for its holder.

    Returns:
        whether this process has it now; False: another one has.
    """
    end = time.monotonic() + LOOK_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(0.01)
        else:
            return True


def is_held(path: Path) -> bool:
    """Whether another process has its lock (flock(2)) on a file; False where there is none."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def remove_private(path: Path) -> None:
    """Remove a file durably; one that is absent is fine.

    Raises:
        StorageError: the disk refuses.
    """
    try:
        path.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        raise _refused(path, error) from None


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: a rename is so only then (fsync(2))."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _refused(path: Path, error: OSError) -> StorageError:
    return StorageError(f"{path} could not be written: {error.strerror}",
                        remedy="make room or check the disk and its permissions, then start again")  # fmt: skip
