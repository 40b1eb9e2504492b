"""The writer of an audit log: one process, one line an entry, on the disk before :meth:`AuditLog.append` returns.

What a crash can leave is the beginning of a line that nobody was told of; the next start removes it and says so in the
log. Anything else that does not fit stops the start: a log that was changed is evidence, never repaired.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from shared_model.audit.entries import (
    MAX_LINE_BYTES,
    OPENED,
    ZERO,
    Entry,
    Value,
    check_first,
    parse,
    read_entries,
)
from shared_model.audit.file import AppendFile
from shared_model.audit.heads import MAX_STEPS, Head, SignedHead, Statement
from shared_model.errors import AuditError
from shared_model.signing import SigningKey, VerifyKey

TAIL_REMOVED, HEAD_RECORDED, HEAD_REFUSED = "tail_removed", "head_recorded", "head_refused"
LOG_ADMITTED = "log_admitted"
AGAIN_S = 5.0
RESERVED = frozenset({OPENED, TAIL_REMOVED, HEAD_RECORDED, HEAD_REFUSED, LOG_ADMITTED})  # written by this module alone


@dataclass(frozen=True, kw_only=True)
class Witnessed:
    """What is recorded here of another party's log: how far it reached, and whether it was caught rewriting."""

    log: str
    sequence: int
    sha256: str
    refused: bool = False


class AuditLog:
    """The log of one party; a context manager, safe between threads. Opening reads and checks all of it.

    It keeps 64 bytes an entry in memory, which is what statements are made of.

    Args:
        path: the log; made, for its owner alone, where there is none.
        owner: name of the party, as the others know it.
        key: signs its heads; the public half stands in the first line and cannot change.
        quiet: kinds of entries that are written often and are no news to others; the next news covers them.
        clock: seconds since 1970.

    Raises:
        StorageError: another process writes it, or the disk refuses; a later entry tries again.
        AuditError: it was changed, or belongs to another owner or key.
    """

    def __init__(
        self, path: Path, *, owner: str, key: SigningKey, quiet: frozenset[str] = frozenset(),
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self.path, self.owner = path, owner
        self._key, self._clock, self._mutex = key, clock, threading.RLock()
        self._contents, self._hashes = bytearray(), bytearray()
        self._witnessed: dict[str, Witnessed] = {}
        self._quiet = quiet | {HEAD_RECORDED}
        self._again = 0.0
        self.log = ""
        self.news = 0
        """Number of the last entry that is more than a head recorded, or quiet. Parties that told each other of every
        entry would never end, since to record a head is an entry as well: they tell of news."""
        self._file = AppendFile(path)
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let another process write; the end of this one does so, too."""
        with self._mutex:
            self._file.close()

    # --- writing ---

    def append(self, kind: str, **fields: Value) -> Entry:
        """Put an entry on the disk.

        Args:
            kind: what happened, like `round_closed`.
            fields: flat, of this entry only, without identities or secrets; at most 64 and 64 KiB in all.

        Raises:
            AuditError: no such entry can be written; nothing was.
            StorageError: the disk refuses, and the entry is not there. A later one opens the log again, at most every
                `AGAIN_S`.
        """
        if kind in RESERVED:
            raise AuditError("entries of this kind are the log's own", found=kind)
        return self._append(kind, fields)

    def entries(self) -> Iterator[Entry]:
        """All entries from the disk, checked again, oldest first; also while others are appended.

        Raises:
            AuditError: the file was changed since it was opened.
        """
        with self._mutex:
            count = self.sequence
        with self.path.open("rb") as stream:
            for entry in read_entries(stream):
                if entry.sequence > count:
                    return
                yield entry

    @property
    def key(self) -> VerifyKey:
        """The public key that checks its heads."""
        return self._key.public

    @property
    def broken(self) -> str:
        """Why nothing can be written any more until the log is opened again; empty: it can."""
        return self._file.broken

    @property
    def sequence(self) -> int:
        """Number of the last entry."""
        return len(self._hashes) // 32

    # --- heads: this log's, for the others ---

    def head(self) -> SignedHead:
        """Sign how far this log reaches; to be kept by others, or in a drawer."""
        with self._mutex:
            return self._signed(self.sequence)

    def statement(self, since: int) -> Statement:
        """Show somebody who recorded entry `since` (0: none) how the log went on, at most `MAX_STEPS` entries further.

        Repeat with the head's `sequence` until it is :attr:`sequence`.

        Raises:
            AuditError: this log is shorter than what the other recorded: it was cut, or restored from an old backup.
        """
        with self._mutex:
            if not 0 <= since <= self.sequence:
                raise AuditError(
                    f"the audit log of {self.owner} is shorter than what another party recorded of it",
                    found=f"{self.sequence} entries", expected=f"at least {since}",
                    remedy="it was cut, or restored from an old backup: keep it, begin a new one, tell the others why",
                )  # fmt: skip
            until = min(self.sequence, since + MAX_STEPS)
            steps = bytes(self._contents[32 * since : 32 * until])
            return Statement(
                signed=self._signed(until), since=since,
                contents=tuple(steps[at : at + 32].hex() for at in range(0, len(steps), 32)),
            )  # fmt: skip

    # --- heads: the others', recorded here ---

    def witnessed(self, owner: str) -> int:
        """Up to which entry `owner`'s log is recorded here; what its next statement must begin `since`."""
        known = self._witnessed.get(owner)
        return known.sequence if known else 0

    def refuses(self, owner: str) -> bool:
        """Whether `owner`'s log was caught rewriting; then no statement of it is taken."""
        known = self._witnessed.get(owner)
        return known is not None and known.refused

    def record(self, statement: Statement, *, owner: str, key: VerifyKey) -> None:
        """Check that another party's log only grew since the last time, and record its head.

        Args:
            statement: as received; not trusted.
            owner, key: who sent it, as enrolment knows them.

        Raises:
            SignatureError: not signed by `key`; nothing is recorded.
            AuditError: of another party, not from where the record ends, or of a rewritten log. The last is recorded
                with the signature, which proves it, and no statement of that log is taken from then on.
        """
        head = statement.signed.head
        if head.owner != owner or owner == self.owner:
            raise AuditError("a statement about another party's log", found=head.owner, expected=owner)
        statement.signed.verify(key)
        with self._mutex:
            known = self._witnessed.get(owner) or Witnessed(log=head.log, sequence=0, sha256=ZERO)
            if known.refused or head.log != known.log:
                self._refuse(statement, known, key)
            if statement.since != known.sequence:
                raise AuditError(f"the statement about the log of {owner} does not begin where the record ends",
                                 found=f"since {statement.since}", expected=f"since {known.sequence}",
                                 remedy="ask for it from there")  # fmt: skip
            if not statement.follows(known.sha256):
                self._refuse(statement, known, key)
            if head.sequence > known.sequence:
                self._append(HEAD_RECORDED, _evidence(statement.signed, key))

    def admit(self, owner: str, log: str, *, reason: str) -> None:
        """Take a new log of `owner` from now on, after a human learnt why the old one ended.

        Raises:
            AuditError: it is the log that is recorded already.
        """
        with self._mutex:
            known = self._witnessed.get(owner)
            if known and known.log == log:
                raise AuditError(f"this log of {owner} is recorded already, and what was rewritten is not taken back",
                                 found=log, expected="a new log")  # fmt: skip
            self._append(LOG_ADMITTED, {"owner": owner, "log": log, "reason": reason[:300]})

    # --- inside ---

    def _start(self) -> None:
        removed = self._load()
        if not self.sequence:
            fields: dict[str, Value] = {"owner": self.owner, "log": secrets.token_hex(16), "key": self._key.public.hex}
            self._append(OPENED, fields)
            self._file.sync_name()
        if removed is not None:
            self._append(TAIL_REMOVED, {"bytes": len(removed), "sha256": hashlib.sha256(removed).hexdigest()})

    def _load(self) -> bytes | None:
        """Read and check all lines; removes an unfinished last one and returns it."""
        size = 0
        for number, line in enumerate(self._file.lines(), start=1):
            torn = not line.endswith(b"\n") and len(line) <= MAX_LINE_BYTES
            try:
                entry = parse(line + b"\n" if torn else line, number=number, previous=self._hash(self.sequence))
            except AuditError:
                if not torn:
                    raise
                self._file.cut(size)
                return line
            check_first(entry)
            if number == 1:
                self._check_owner(entry)
            self._take(entry)
            if torn:  # whole but for its newline: a head may have told of it, so it is finished and not removed
                self._file.append(b"\n")
                return None
            size += len(line)
        return None

    def _open_again(self) -> None:
        """After the disk refused: read and check all of it anew, now and then, and go on if that is well.

        Raises:
            StorageError: the disk still refuses, or another process has the log. AuditError: it was changed.
        """
        if time.monotonic() < self._again:
            return  # and the file says why it is closed
        self._again = time.monotonic() + AGAIN_S
        self._file.close()
        fresh = AuditLog(self.path, owner=self.owner, key=self._key, quiet=self._quiet, clock=self._clock)
        self._file, self._contents, self._hashes = fresh._file, fresh._contents, fresh._hashes
        self._witnessed, self.log, self.news = fresh._witnessed, fresh.log, fresh.news

    def _check_owner(self, first: Entry) -> None:
        for name, what, mine in (("owner", "owner", self.owner), ("key", "signing key", self._key.public.hex)):
            if first.fields[name] != mine:
                raise AuditError(f"{self.path} is the audit log of another {what}", found=first.fields[name],
                                 expected=mine, remedy="use the log's own key, or begin a new log")  # fmt: skip

    def _append(self, kind: str, fields: dict[str, Value]) -> Entry:
        with self._mutex:
            if self._file.broken:
                self._open_again()
            entry = Entry(sequence=self.sequence + 1, time=_utc(self._clock()), kind=kind, fields=dict(fields),
                          previous=self._hash(self.sequence), salt=secrets.token_hex(16))  # fmt: skip
            if fault := entry.check():
                raise AuditError(f"no entry of the audit log: {fault}")
            line = entry.line()
            if len(line) > MAX_LINE_BYTES:
                raise AuditError("no entry of the audit log: too long", found=f"{len(line)} bytes",
                                 expected=f"at most {MAX_LINE_BYTES}")  # fmt: skip
            self._file.append(line)
            self._take(entry)
            return entry

    def _take(self, entry: Entry) -> None:
        """Account for an entry that is on the disk."""
        self._contents += entry.content
        self._hashes += bytes.fromhex(entry.sha256)
        if entry.kind not in self._quiet:
            self.news = entry.sequence
        fields = entry.fields
        if entry.kind == OPENED:
            self.log = str(fields["log"])
        elif entry.kind in (HEAD_RECORDED, HEAD_REFUSED, LOG_ADMITTED):
            owner = str(fields["owner"])
            if entry.kind == HEAD_RECORDED:
                self._witnessed[owner] = Witnessed(log=str(fields["log"]), sequence=int(fields["sequence"] or 0),
                                                   sha256=str(fields["sha256"]))  # fmt: skip
            elif entry.kind == LOG_ADMITTED:
                self._witnessed[owner] = Witnessed(log=str(fields["log"]), sequence=0, sha256=ZERO)
            else:
                self._witnessed[owner] = Witnessed(
                    log=str(fields["recorded_log"]), sequence=int(fields["recorded_sequence"] or 0),
                    sha256=str(fields["recorded_sha256"]), refused=True,
                )  # fmt: skip

    def _refuse(self, statement: Statement, known: Witnessed, key: VerifyKey) -> None:
        """Record the proof, once, and raise."""
        head = statement.signed.head
        another = head.log != known.log
        if not known.refused:
            recorded: dict[str, Value] = {"recorded_log": known.log, "recorded_sequence": known.sequence,
                                          "recorded_sha256": known.sha256}  # fmt: skip
            self._append(HEAD_REFUSED, _evidence(statement.signed, key) | recorded)
        raise AuditError(
            f"{head.owner} shows another audit log than before" if another
            else f"the audit log of {head.owner} was rewritten after it was recorded here",
            found=f"log {head.log[:8]}, entry {head.sequence}",
            expected=f"log {known.log[:8]} as recorded to entry {known.sequence}",
            remedy=f"talk to {head.owner}; a new log is taken after a human admitted it",
        )  # fmt: skip

    def _hash(self, sequence: int) -> str:
        return self._hashes[32 * (sequence - 1) : 32 * sequence].hex() if sequence else ZERO

    def _signed(self, sequence: int) -> SignedHead:
        self._file.check()
        head = Head(owner=self.owner, log=self.log, sequence=sequence, sha256=self._hash(sequence),
                    time=_utc(self._clock()))  # fmt: skip
        return SignedHead.sign(head, self._key)


def _evidence(signed: SignedHead, key: VerifyKey) -> dict[str, Value]:
    """A signed head as the fields of an entry; `verify` puts it together again."""
    head = signed.head
    return {"owner": head.owner, "log": head.log, "sequence": head.sequence, "sha256": head.sha256, "time": head.time,
            "signature": signed.signature, "key": key.hex}  # fmt: skip


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
