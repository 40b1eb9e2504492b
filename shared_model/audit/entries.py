"""One line of an audit log: its canonical bytes, its hash, and the strict reader; for the writer and for `verify`."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from shared_model.errors import AuditError

MAX_LINE_BYTES: Final = 64 << 10
MAX_FIELDS: Final = 64
MAX_SEQUENCE: Final = 1 << 40
MAX_INTEGER: Final = (1 << 63) - 1
ZERO: Final = "0" * 64
OPENED: Final = "log_opened"  # kind of the first entry: owner, the log's id, the owner's public key

Value = str | int | float | bool | None

_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
_HEX32: Final = re.compile(r"[0-9a-f]{32}")
_HEX64: Final = re.compile(r"[0-9a-f]{64}")
_MEMBERS: Final = {"fields", "kind", "previous", "salt", "sequence", "sha256", "time"}
_DOMAIN: Final = b"mammofed audit entry 1\0"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What happened: number from 1, UTC time with microseconds, kind, and flat fields without identities or secrets."""

    sequence: int
    time: str
    kind: str
    fields: Mapping[str, Value]
    previous: str
    salt: str

    def check(self) -> str:
        """Why this is no entry, in words; empty when it is one."""
        if not (type(self.sequence) is int and 1 <= self.sequence <= MAX_SEQUENCE):
            return "`sequence` is no number from 1"
        for name, pattern in (("time", _TIME), ("kind", _NAME), ("previous", _HEX64), ("salt", _HEX32)):
            value = getattr(self, name)
            if not (isinstance(value, str) and pattern.fullmatch(value)):
                return f"`{name}` has a wrong form"
        fields: Any = self.fields  # as :func:`parse` found it: its type is still to be shown
        if not isinstance(fields, Mapping) or len(fields) > MAX_FIELDS:
            return f"`fields` is no object of at most {MAX_FIELDS} members"
        for name, value in fields.items():
            if not (isinstance(name, str) and _NAME.fullmatch(name)):
                return "a field's name has a wrong form"
            if not (value is None or isinstance(value, str | int | float)):
                return f"field `{name}` is no text, number, boolean or null"
            if type(value) is int and abs(value) > MAX_INTEGER:
                return f"field `{name}` is too large a number"
            if isinstance(value, float) and not math.isfinite(value):
                return f"field `{name}` is not finite"
        return ""

    @property
    def content(self) -> bytes:
        """32 bytes: the hash of everything but the chain."""
        body = {"fields": dict(self.fields), "kind": self.kind, "salt": self.salt, "sequence": self.sequence,
                "time": self.time}  # fmt: skip
        return hashlib.sha256(_canonical(body)).digest()

    @property
    def sha256(self) -> str:
        """Hex hash of the entry and, through `previous`, of all before it."""
        return chain(self.previous, self.content)

    def line(self) -> bytes:
        """The canonical line, newline included."""
        members = {"fields": dict(self.fields), "kind": self.kind, "previous": self.previous, "salt": self.salt,
                   "sequence": self.sequence, "sha256": self.sha256, "time": self.time}  # fmt: skip
        return _canonical(members) + b"\n"


def chain(previous: str, content: bytes) -> str:
    """Hash of an entry from the hash of the one before it and the hash of its content."""
    return hashlib.sha256(_DOMAIN + bytes.fromhex(previous) + content).hexdigest()


def parse(line: bytes, *, number: int, previous: str) -> Entry:
    """Read line `number` (from 1), which must be what the writer writes, byte for byte.

    Args:
        line: with its newline; not trusted.
        previous: `sha256` of the line before.

    Raises:
        AuditError: in words that do not repeat the content.
    """
    if len(line) > MAX_LINE_BYTES:
        raise AuditError("too long for an entry", line=number, expected=f"at most {MAX_LINE_BYTES} bytes",
                         remedy=CHANGED)  # fmt: skip
    if not line.endswith(b"\n"):
        raise AuditError("not ended: a crash cut it, or somebody did", line=number, remedy=TORN)
    try:
        values: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise AuditError("not JSON", line=number, remedy=CHANGED) from None
    if not isinstance(values, dict) or set(values) != _MEMBERS:
        raise AuditError("not the members of an entry", line=number, remedy=CHANGED)
    stated = values.pop("sha256")
    entry = Entry(**values)
    if fault := entry.check():
        raise AuditError(fault, line=number, remedy=CHANGED)
    if entry.sequence != number:
        raise AuditError("entries are missing, added or moved", line=number, found=f"entry {entry.sequence}",
                         expected=f"entry {number}", remedy=CHANGED)  # fmt: skip
    if stated != entry.sha256:
        raise AuditError("changed after it was written", line=number, remedy=CHANGED)
    if entry.previous != previous:
        raise AuditError("does not follow the line before it", line=number, remedy=CHANGED)
    if line != entry.line():
        raise AuditError("written in another form than the log's own", line=number, remedy=CHANGED)
    return entry


def read_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Lines of a log, each bounded: one too long comes cut, so that :func:`parse` refuses it."""
    while line := stream.readline(MAX_LINE_BYTES + 1):
        yield line


def read_entries(stream: BinaryIO) -> Iterator[Entry]:
    """All entries of a log, checked one after another.

    Raises:
        AuditError: naming the first bad line.
    """
    previous = ZERO
    for number, line in enumerate(read_lines(stream), start=1):
        entry = parse(line, number=number, previous=previous)
        check_first(entry)
        previous = entry.sha256
        yield entry


def check_first(entry: Entry) -> None:
    """The first entry, and it alone, opens the log and says whose it is.

    Raises:
        AuditError: it does not.
    """
    if (entry.sequence == 1) != (entry.kind == OPENED):
        raise AuditError("a log opens with its first line and only there", line=entry.sequence, remedy=CHANGED)
    if entry.kind == OPENED and set(entry.fields) != {"owner", "log", "key"}:
        raise AuditError("the first line does not say whose log it is", line=1, remedy=CHANGED)


def _canonical(members: Mapping[str, object]) -> bytes:
    return json.dumps(members, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


CHANGED: Final = "keep the file as it is, tell the other parties, and compare it with a copy and with their records"
TORN: Final = (
    "after a crash the next start of its owner removes what is left of the line and says so in the log: start it, then "
    "verify again"
)
