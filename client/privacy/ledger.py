"""The site's durable record of privacy spent; the trainer reserves before noise is drawn and settles afterwards.

A reservation counts from the moment it is on the disk, settled or not: a crash in between over-counts and can never
under-count. Entries are about sets of patients; a patient's account is that of every set that she is in, over rounds,
runs and studies, so it never falls, and the budget is kept for the one who has spent most. The file is append-only and
hash-chained (`client.privacy.chain`, schema 3); the first reservation turns a file of an older schema into a chain.
"""

from __future__ import annotations

import fcntl
import hashlib
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from client.privacy.accountant import Account
from client.privacy.book import (
    GROUPS,
    OPENED,
    PATIENTS,
    PATIENTS_PART,
    RESERVED,
    SCHEMA_VERSION,
    SETTLED,
    TAIL_REMOVED,
    Book,
    Group,
    Record,
    Spender,
    worst,
)
from client.privacy.chain import MAX_LEDGER_BYTES, RESTORE, Chain, Head, follow
from client.privacy.legacy import parse_legacy
from client.privacy.patients import digests, fingerprint, to_parts
from shared_model.audit.entries import Entry, Value
from shared_model.audit.file import AppendFile
from shared_model.errors import BudgetExhaustedError, MammoFedError, PrivacyError, StorageError
from shared_model.messages import PrivacySpent
from shared_model.private_files import write_private
from shared_model.protocol import Protocol

__all__ = ["GROUPS", "SCHEMA_VERSION", "Group", "Ledger", "LedgerEntry", "Record", "privacy_spent"]

DELTA = 1e-5  # at which accounts are compared where the caller names no delta
DAMAGE = (ValueError, KeyError, TypeError, IndexError, RecursionError, PrivacyError)


@dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """One use of a group's patients: `steps` Poisson-sampled Gaussian steps on behalf of a request."""

    group: Group
    study: str
    protocol_sha256: str
    round: int
    attempt: int
    noise_multiplier: float
    sample_rate: float
    steps: int


@dataclass(frozen=True)
class _State:
    """The file as it was read: chain and book; an older file has a book alone, an absent one neither."""

    chain: Chain
    book: Book
    legacy: bytes = b""


class Ledger:
    """All entries of one site in one file; safe between threads and processes of one machine (file lock).

    Args:
        path: the ledger file; it is created by the first reservation.
        anchor: where it is kept how far the ledger reached; by default beside the folder that the ledger is in.
    """

    def __init__(self, path: Path, *, anchor: Path | None = None) -> None:
        self.path, self._begun = path, path.with_suffix(".begun")
        self._seen: Head | None = None  # how far this very process saw it reach
        self.anchor = anchor or path.absolute().parent.with_name(f"{path.absolute().parent.name}-{path.stem}.anchor")

    # --- reading ---

    def spent(self, group: Group, *, delta: float, pseudonyms: Sequence[str] | None = None) -> float:
        """Epsilon that the patients of `group` have spent at `delta`, reservations included."""
        return self.account(group, pseudonyms=pseudonyms, delta=delta).epsilon(delta=delta)

    def site_epsilon(self, *, delta: float) -> float:
        """Greatest epsilon of any group: what the site can state for each of its patients."""
        return max(self.spent(group, delta=delta) for group in GROUPS)

    def account(self, group: Group, *, pseudonyms: Sequence[str] | None = None, delta: float = DELTA) -> Account:
        """Everything that the one of these patients who has spent most (at `delta`) has taken part in."""
        return worst(self.spenders(group, pseudonyms=pseudonyms), delta=delta)

    def spenders(self, group: Group, *, pseudonyms: Sequence[str] | None = None) -> list[Spender]:
        """The accounts of patients, one for each kind: those of `pseudonyms`, or all that the group ever had."""
        book = self._load().book
        return book.spenders(group, None if pseudonyms is None else digests(pseudonyms, salt=book.salt))

    def records(self) -> list[Record]:
        """All reservations, oldest first: what was charged, its state, times, and the set of patients."""
        return self._load().book.records

    def head(self) -> Head | None:
        """How far the ledger reaches, for others to record; None before the first reservation of this schema."""
        chain = self._load().chain
        return chain.head if chain.entries else None

    def check_reaches(self, head: Head, *, witness: str) -> None:
        """Refuse to go on with a ledger that does not hold what `witness` recorded of it.

        Raises:
            StorageError: an older copy was put back, or another ledger.
        """
        self.check_heads([head], witness=witness)

    def check_heads(self, heads: Iterable[Head], *, witness: str) -> None:
        """:meth:`check_reaches` for many, in one reading."""
        state = self._load()
        for head in heads:
            _reaches(state, self.path, head, witness)

    # --- writing ---

    def reserve(
        self, entry: LedgerEntry, *, budget: float, delta: float, pseudonyms: Sequence[str] | None = None
    ) -> int:
        """Charge `entry` and put it on the disk; the caller may draw noise only after this has returned.

        Args:
            entry: the planned steps; all of them are charged, whatever happens afterwards.
            budget: greatest epsilon that any of the patients may reach at `delta`.
            pseudonyms: whose data are used; None: unknown, and charged to everybody of the group.

        Returns:
            the reservation's id, for :meth:`settle`.

        Raises:
            BudgetExhaustedError: a patient cannot afford the entry; nothing was written.
            StorageError: the ledger cannot be read or written.
        """
        with self._locked():
            state = self._load()
            if not state.chain.entries:
                state = self._begin(state)
            book = state.book
            patients = None if pseudonyms is None else digests(pseudonyms, salt=book.salt)
            if patients is not None and not len(patients):
                raise PrivacyError("a reservation for no patient", expected="at least one")
            _check_budget(book.spenders(entry.group, patients), entry, budget=budget, delta=delta)
            lines: list[tuple[str, dict[str, Value]]] = []
            name = None
            if patients is not None:
                name = fingerprint(patients)
                if name not in book.sets:
                    lines += [(PATIENTS_PART, {"part": part, "digests": text})
                              for part, text in enumerate(to_parts(patients))]  # fmt: skip
                    lines.append((PATIENTS, {"patients": name, "count": len(patients)}))
            identity = len(book.records) + 1
            lines.append((RESERVED, {"reservation": identity, "patients": name, **asdict(entry)}))
            self._append(state, lines)
        return identity

    def settle(self, identity: int) -> None:
        """Mark a reservation as used. It counted before and goes on counting; settling twice is harmless.

        Raises:
            PrivacyError: no such reservation.
        """
        with self._locked():
            state = self._load()
            records = state.book.records
            if not 1 <= identity <= len(records):
                raise PrivacyError("no such reservation in the ledger", found=identity, expected=f"1..{len(records)}")
            if records[identity - 1]["state"] == "reserved":
                if not state.chain.entries:
                    state = self._begin(state)
                self._append(state, [(SETTLED, {"reservation": identity})])

    # --- inside ---

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.with_suffix(".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise _storage(self.path, error.strerror or str(error)) from None

    def _load(self) -> _State:
        """Read and check all of it. The anchor comes first: a writer in between makes the ledger longer, not it."""
        seen, anchor = self._seen, Head.read(self.anchor)
        try:
            with self.path.open("rb") as stream:
                data = stream.read(MAX_LEDGER_BYTES + 1)
        except FileNotFoundError:
            if anchor is not None or self._begun.exists():  # a ledger that is gone is no empty one
                raise _storage(self.path, "it was begun and is gone") from None
            return _State(Chain((), 0), Book())
        except OSError as error:
            raise _storage(self.path, error.strerror or str(error)) from None
        try:
            state = _parse(data)
        except (*DAMAGE, MammoFedError) as error:
            # Fail closed: a ledger that cannot be read is never taken for an empty one.
            raise _storage(self.path, f"damaged ({error})") from None
        if anchor is not None:
            _reaches(state, self.path, anchor, "its anchor")
        if seen is not None:
            _reaches(state, self.path, seen, "this process has read more")
        if state.chain.entries:
            self._seen = state.chain.head
        return state

    def _begin(self, state: _State) -> _State:
        """Make the chain, from the entries of an older file where there is one: there whole, or not at all."""
        old = state.book.records
        fields: dict[str, Value] = {
            "schema": SCHEMA_VERSION, "log": secrets.token_hex(16), "salt": secrets.token_hex(32),
            "born": 1 + sum(2 if record["state"] == "settled" else 1 for record in old),
            "migrated_sha256": hashlib.sha256(state.legacy).hexdigest() if state.legacy else None,
        }  # fmt: skip
        entries = _lined((), [(OPENED, fields), *_migrated(old)])
        if state.legacy:
            write_private(self.path.with_name(f"{self.path.name}.schema2"), state.legacy)
        data = b"".join(entry.line() for entry in entries)
        write_private(self.path, data)
        chain = Chain(entries, len(data))
        chain.head.write(self.anchor)
        return _State(chain, Book.of(entries))

    def _append(self, state: _State, lines: Sequence[tuple[str, dict[str, Value]]]) -> None:
        """Put lines on the disk, then the anchor; nobody hears of them before both are there."""
        chain = state.chain
        if Head.read(self.anchor) is None and len(chain.entries) > state.book.born:
            raise _storage(self.path, "its anchor is gone, so that nobody can tell whether this is the newest copy")
        if chain.torn:
            removed: dict[str, Value] = {"bytes": len(chain.torn), "sha256": hashlib.sha256(chain.torn).hexdigest()}
            lines = [(TAIL_REMOVED, removed), *lines]
        new = _lined(chain.entries, lines)
        data = (b"\n" if chain.unended else b"") + b"".join(entry.line() for entry in new)
        if chain.size + len(data) > MAX_LEDGER_BYTES:
            raise _storage(self.path, f"it is full ({MAX_LEDGER_BYTES >> 20} MB)")
        file = AppendFile(self.path, name=f"privacy ledger {self.path.name}")
        try:
            if chain.torn:
                file.cut(chain.size)
            file.append(data)
        finally:
            file.close()
        Chain((*chain.entries, *new), chain.size + len(data)).head.write(self.anchor)


def privacy_spent(ledger: Ledger, protocol: Protocol, *, pseudonyms: Sequence[str] | None = None) -> PrivacySpent:
    """State of the training patients' account, as the trainer reports it after a request."""
    terms = protocol.privacy
    account = ledger.account("train", pseudonyms=pseudonyms, delta=terms.delta)
    return PrivacySpent(
        epsilon=account.epsilon(delta=terms.delta), budget=terms.epsilon, delta=terms.delta,
        noise_multiplier=terms.noise_multiplier, sample_rate=protocol.training.sample_rate, steps=account.steps,
    )  # fmt: skip


def _check_budget(spenders: Sequence[Spender], entry: LedgerEntry, *, budget: float, delta: float) -> None:
    charge = Account().add(noise_multiplier=entry.noise_multiplier, sample_rate=entry.sample_rate, steps=entry.steps)
    account = worst([replace(spender, account=spender.account.merge(charge)) for spender in spenders], delta=delta)
    after = account.epsilon(delta=delta)
    if after > budget:
        before = worst(spenders, delta=delta).epsilon(delta=delta)
        raise BudgetExhaustedError(
            f"round {entry.round} would bring the patients of group `{entry.group}` to epsilon {after:.3f}",
            found=f"{before:.3f} spent",
            expected=f"at most {budget:.3f} at delta {delta:g}",
            remedy="the site sits this round out; a new budget is the site's own decision",
        )  # fmt: skip


def _parse(data: bytes) -> _State:
    if len(data) > MAX_LEDGER_BYTES:
        raise ValueError("too large")
    if not data.startswith(b'{"fields":'):
        return _State(Chain((), 0), Book(schema=2, records=[{**r, "patients": None} for r in parse_legacy(data)]), data)
    chain = Chain.of(data)
    if not chain.entries:
        raise ValueError("no whole line")
    return _State(chain, Book.of(chain.entries))


def _migrated(records: Sequence[Record]) -> Iterator[tuple[str, dict[str, Value]]]:
    """The lines for the entries of an older file; nobody knows whom they were about, so they count for all."""
    for record in records:
        fields = {name: record[name] for name in LedgerEntry.__dataclass_fields__}
        yield RESERVED, {"reservation": record["id"], "patients": None, **fields,
                         "reserved_at": str(record.get("reserved_at"))}  # fmt: skip
        if record["state"] == "settled":
            yield SETTLED, {"reservation": record["id"], "settled_at": str(record.get("settled_at"))}


def _lined(before: Sequence[Entry], lines: Sequence[tuple[str, dict[str, Value]]]) -> tuple[Entry, ...]:
    entries, time = list(before), datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    for kind, fields in lines:
        entries.append(follow(entries, time=time, salt=secrets.token_hex(16), kind=kind, fields=fields))
    return tuple(entries[len(before) :])


def _reaches(state: _State, path: Path, head: Head, witness: str) -> None:
    if not state.chain.entries:
        raise _storage(path, f"an older copy was put back, of before the ledger was a chain, or it is gone ({witness})")
    state.chain.check_reaches(head, witness=witness)


def _storage(path: Path, reason: str) -> StorageError:
    return StorageError(f"privacy ledger {path.name}: {reason}", remedy=RESTORE)
