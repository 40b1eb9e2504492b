"""The ledger's file: hash-chained lines of `shared_model.audit`, and an anchor that tells a shorter copy; for `ledger`.

The anchor is a small file *outside* the folder of the ledger that says how far the ledger reached. It is written after
each append and before anybody hears of it, so the ledger may be ahead of it (a crash in between) and is never behind,
unless an older copy was put back or the end was cut off. That is what tells a line that a crash cut, of which nobody
heard, from one that was lost later.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared_model.audit.entries import MAX_LINE_BYTES, ZERO, Entry, Value, parse, read_lines
from shared_model.errors import AuditError, StorageError
from shared_model.private_files import write_private

MAX_LEDGER_BYTES: Final = 64 << 20
MAX_ANCHOR_BYTES: Final = 4096
RESTORE: Final = "nothing is trained until it is restored from backup"


class Head(BaseModel):
    """How far a ledger reached: entry `sequence` of ledger `log` had hash `sha256`, and with it all before."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    log: str = Field(pattern=r"^[0-9a-f]{32}$")
    sequence: int = Field(ge=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The anchor in a file; None where there is none.

        Raises:
            StorageError: it cannot be read, or is no anchor.
        """
        try:
            with path.open("rb") as stream:
                return cls.model_validate_json(stream.read(MAX_ANCHOR_BYTES + 1))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"the ledger's anchor cannot be read: {error.strerror}") from None
        except ValidationError:
            raise StorageError("the ledger's anchor is damaged", remedy=RESTORE) from None

    def write(self, path: Path) -> None:
        """Keep it, durably, in place of the one before.

        Raises:
            StorageError: the disk refuses.
        """
        write_private(path, json.dumps(self.model_dump()).encode() + b"\n")


@dataclass(frozen=True)
class Chain:
    """The lines of a ledger, checked. size: bytes of whole lines. torn: what a crash left after them. unended: the last
    entry is whole but for its newline, and counts."""

    entries: tuple[Entry, ...]
    size: int
    torn: bytes = b""
    unended: bool = False

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Check every line.

        Raises:
            AuditError: naming the first bad one.
        """
        entries: list[Entry] = []
        previous, size = ZERO, 0
        for number, line in enumerate(read_lines(io.BytesIO(data)), start=1):
            cut = not line.endswith(b"\n") and len(line) <= MAX_LINE_BYTES
            try:
                entry = parse(line + b"\n" if cut else line, number=number, previous=previous)
            except AuditError:
                if cut:
                    return cls(tuple(entries), size, torn=line)
                raise
            entries.append(entry)
            previous = entry.sha256
            size += len(line)
            if cut:
                return cls(tuple(entries), size, unended=True)
        return cls(tuple(entries), size)

    @property
    def head(self) -> Head:
        """The last entry's."""
        last = self.entries[-1]
        return Head(log=str(self.entries[0].fields["log"]), sequence=last.sequence, sha256=last.sha256)

    def check_reaches(self, head: Head, *, witness: str) -> None:
        """Refuse a ledger that is not the continuation of what somebody recorded of it.

        Args:
            witness: who recorded it, in words.

        Raises:
            StorageError: an older copy was put back, the end was cut off, or it is another ledger.
        """
        mine = self.head
        if mine.log != head.log:
            problem = "it is another ledger than the one that was written here"
        elif mine.sequence < head.sequence:
            problem = "an older copy was put back, or its end was cut off"
        elif self.entries[head.sequence - 1].sha256 != head.sha256:
            problem = "it was written anew"
        else:
            return
        raise StorageError(f"privacy ledger: {problem} ({witness})", found=f"{mine.sequence} entries",
                           expected=f"entry {head.sequence} as it was recorded",
                           remedy="put the newest copy back; what this one lacks was spent all the same")  # fmt: skip


def follow(entries: Sequence[Entry], *, time: str, salt: str, kind: str, fields: Mapping[str, Value]) -> Entry:
    """The next entry after `entries`.

    Raises:
        StorageError: no such entry can be written.
    """
    entry = Entry(sequence=len(entries) + 1, time=time, kind=kind, fields=dict(fields), salt=salt,
                  previous=entries[-1].sha256 if entries else ZERO)  # fmt: skip
    if fault := entry.check() or ("too long" if len(entry.line()) > MAX_LINE_BYTES else ""):
        raise StorageError(f"no entry of the privacy ledger: {fault}")
    return entry
