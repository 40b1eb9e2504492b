"""Checks an audit log offline: the chain line by line, and the heads that others hold; for `mammofed audit verify`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from shared_model.audit.entries import CHANGED, Entry, read_entries
from shared_model.audit.heads import Head, SignedHead
from shared_model.audit.log import HEAD_RECORDED, HEAD_REFUSED, LOG_ADMITTED, TAIL_REMOVED
from shared_model.errors import AuditError, SignatureError, StorageError
from shared_model.signing import VerifyKey


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What holds of a log. `heads` that others hold fit it, the last of them at entry `covered`: what comes after that
    entry is consistent in itself, and nobody else vouches for it yet.

    repairs: unfinished lines removed after crashes. refusals: rewritten logs of others that this one recorded.
    """

    owner: str
    log: str
    key: VerifyKey
    entries: int
    sha256: str
    first: str
    last: str
    repairs: int
    refusals: int
    heads: int
    covered: int


@dataclass(frozen=True, kw_only=True)
class _Held:
    """A signed head and where it was found."""

    source: str
    signed: SignedHead


def verify(
    path: Path, *, key: VerifyKey | None = None, heads: Iterable[SignedHead] = (), witnesses: Iterable[Path] = ()
) -> Verified:
    """Check a whole log.

    Args:
        key: its owner's public key, known from elsewhere. None: that of the first line, which a forger could have
            written along with the rest; compare its six words.
        heads: signed heads of this log that somebody kept.
        witnesses: logs of other parties, checked themselves first; every head of this log in them must fit.

    Raises:
        AuditError: naming the first bad line, or the head that does not fit.
        SignatureError: a head is not signed by the log's owner.
        StorageError: a file cannot be read.
    """
    with _reading(path) as stream:
        first = next(read_entries(stream), None)
    if first is None:
        raise AuditError(f"{path} is empty: an audit log has at least its first line", remedy=CHANGED)
    owner, log = str(first.fields["owner"]), str(first.fields["log"])
    own_key = VerifyKey.from_hex(str(first.fields["key"]))
    if key is not None and key != own_key:
        raise AuditError("the log was opened with another key", line=1, found=own_key.hex, expected=key.hex)
    held = [_Held(source="a kept head", signed=signed) for signed in heads]
    for witness in witnesses:
        held += _recorded(witness, owner, log)
    wanted: dict[int, list[_Held]] = {}
    for one in held:
        _check_signed(one, owner, log, own_key)
        wanted.setdefault(one.signed.head.sequence, []).append(one)
    return _walk(path, wanted, own_key)


def _walk(path: Path, wanted: dict[int, list[_Held]], key: VerifyKey) -> Verified:
    first = last = None
    repairs = refusals = 0
    with _reading(path) as stream:
        for entry in read_entries(stream):
            first, last = first or entry, entry
            repairs += entry.kind == TAIL_REMOVED
            refusals += entry.kind == HEAD_REFUSED
            for one in wanted.get(entry.sequence, ()):
                if one.signed.head.sha256 != entry.sha256:
                    raise AuditError(f"this line or one before it was rewritten after its head was given to others "
                                     f"({one.source})", line=entry.sequence, found=entry.sha256[:16],
                                     expected=one.signed.head.sha256[:16], remedy=CHANGED)  # fmt: skip
    assert first is not None and last is not None  # `verify` has read the first line
    missing = [one for sequence in sorted(wanted) if sequence > last.sequence for one in wanted[sequence]]
    if missing:
        raise AuditError(f"lines are missing at the end ({missing[0].source})", line=last.sequence + 1,
                         found=f"{last.sequence} entries",
                         expected=f"at least {missing[-1].signed.head.sequence}", remedy=CHANGED)  # fmt: skip
    return Verified(
        owner=str(first.fields["owner"]), log=str(first.fields["log"]), key=key, entries=last.sequence,
        sha256=last.sha256, first=first.time, last=last.time, repairs=repairs, refusals=refusals,
        heads=sum(map(len, wanted.values())), covered=max(wanted, default=0),
    )  # fmt: skip


def _check_signed(one: _Held, owner: str, log: str, key: VerifyKey) -> None:
    head = one.signed.head
    if head.owner != owner:
        raise AuditError(f"{one.source} is of another party's log", found=head.owner, expected=owner)
    if head.log != log:
        raise AuditError(f"{one.source} is of another log of {owner}: this one may stand in its place",
                         found=f"head of log {head.log}", expected=f"log {log}",
                         remedy=f"ask {owner} for every log that it has had, and why a new one was begun")  # fmt: skip
    try:
        one.signed.verify(key)
    except SignatureError as error:
        raise SignatureError(f"{one.source}, entry {head.sequence}: {error.problem}", expected=error.expected,
                             remedy=error.remedy) from None  # fmt: skip


def _recorded(witness: Path, owner: str, log: str) -> list[_Held]:
    """The heads of `owner`'s log that another party's log has.

    Raises:
        AuditError: the other log is bad itself, or knows `owner` by other logs only.
    """
    held: list[_Held] = []
    logs: set[str] = set()
    try:
        with _reading(witness) as stream:
            for entry in read_entries(stream):
                if entry.kind in (HEAD_RECORDED, LOG_ADMITTED) and entry.fields.get("owner") == owner:
                    logs.add(str(entry.fields.get("log")))
                    if entry.kind == HEAD_RECORDED and entry.fields.get("log") == log:
                        held.append(_Held(source=f"line {entry.sequence} of {witness.name}", signed=_signed(entry)))
    except AuditError as error:
        raise AuditError(f"the witness {witness} is no good itself: {error.problem}", found=error.found,
                         expected=error.expected, remedy=error.remedy) from None  # fmt: skip
    if logs and log not in logs:
        raise AuditError(f"the witness {witness} recorded another log of {owner}: this one may stand in its place",
                         found=f"log {log}", expected=f"one of {sorted(logs)[:3]}",
                         remedy=f"ask {owner} for the log that was recorded")  # fmt: skip
    return held


def _signed(entry: Entry) -> SignedHead:
    names = ("owner", "log", "sequence", "sha256", "time")
    try:
        head = Head.model_validate({name: entry.fields[name] for name in names})
        return SignedHead.model_validate({"head": head, "signature": entry.fields["signature"]})
    except (KeyError, ValueError):
        raise AuditError("a recorded head of a wrong form", line=entry.sequence) from None


@contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as stream:
            yield stream
    except OSError as error:
        raise StorageError(f"the audit log {path} cannot be read: {error.strerror}") from None
