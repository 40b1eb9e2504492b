"""The file under a chain: one process appends, each call is flushed before it returns, a failure closes it for good."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from shared_model.audit.entries import read_lines
from shared_model.errors import AuditError, StorageError
from shared_model.private_files import take_lock


class AppendFile:
    """The file of an audit log or a privacy ledger, for its owner alone (0600), made where there is none.

    broken: why it takes no more.

    Args:
        name: what it is called in errors.

    Raises:
        StorageError: another process holds it, it is no regular file, or the disk refuses.
    """

    def __init__(self, path: Path, *, name: str | None = None) -> None:
        self.path, self._name, self.broken = path, name or f"the audit log {path}", ""
        self._handle = _open(path, self._name)
        self.size = os.fstat(self._handle).st_size

    def close(self) -> None:
        """Let another process write; the end of this one does so, too."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def lines(self) -> Iterator[bytes]:
        """All lines from the beginning, each bounded."""
        with _in_words(self._name), os.fdopen(os.dup(self._handle), "rb") as stream:
            stream.seek(0)
            yield from read_lines(stream)

    def append(self, data: bytes) -> None:
        """Add bytes to the end; they are on the disk when this returns, or not in the file when it raises.

        Raises:
            StorageError: the disk refuses, now or before; the file must be opened again.
            AuditError: somebody else changed the file.
        """
        if self.broken or self._handle < 0:
            raise StorageError(f"{self._name} is closed: {self.broken or 'it was closed'}",
                               remedy="make room or check the disk, then start again")  # fmt: skip
        self.check()
        try:
            _write(self._handle, data)
            os.fsync(self._handle)
        except OSError as error:
            # What the kernel still has of a failed write is unknown: nothing more is written through this handle.
            self.broken = error.strerror or str(error)
            with contextlib.suppress(OSError):
                os.ftruncate(self._handle, self.size)
            raise StorageError(f"{self._name} could not be written: {self.broken}",
                               remedy="make room or check the disk, then start again") from None  # fmt: skip
        self.size += len(data)

    def cut(self, size: int) -> None:
        """Shorten the file to `size` bytes, durably."""
        with _in_words(self._name):
            os.ftruncate(self._handle, size)
            os.fsync(self._handle)
        self.size = size

    def sync_name(self) -> None:
        """Make the file's name durable: a new file is there after a power cut only then (fsync(2))."""
        with _in_words(self._name):
            handle = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def check(self) -> None:
        """Refuse to go on where the file is no longer what this process wrote: nobody else has business in it.

        Raises:
            AuditError: it was changed, removed or replaced.
        """
        with _in_words(self._name):
            mine, there = os.fstat(self._handle), self.path.stat()
        if mine.st_size != self.size or (mine.st_dev, mine.st_ino) != (there.st_dev, there.st_ino):
            raise AuditError(f"{self._name} was changed or replaced while it was being written",
                             found=f"{mine.st_size} bytes", expected=f"the same file of {self.size} bytes",
                             remedy="keep what is there, find out who did it, and begin a new log")  # fmt: skip


def _open(path: Path, name: str) -> int:
    """Open or make the file and take its lock, which the kernel gives back however the process ends (flock(2))."""
    with _in_words(name):
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        handle = os.open(path, flags, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise StorageError(f"{name} is not a regular file")
        if not take_lock(handle):
            raise StorageError(f"another process writes {name}", expected="one at a time",
                               remedy="wait until it has ended, or end it")  # fmt: skip
    except BaseException:
        os.close(handle)
        raise
    return handle


def _write(handle: int, data: bytes) -> None:
    while data:
        written = os.write(handle, data)
        if not written:
            raise OSError(errno.EIO, "nothing was written")
        data = data[written:]


@contextlib.contextmanager
def _in_words(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{name} cannot be used: {error.strerror}",
                           remedy="check the disk and its permissions, then start again") from None  # fmt: skip
