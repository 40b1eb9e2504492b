"""The site's durable record of privacy spent; the trainer reserves before noise is drawn and settles afterwards.

A reservation counts from the moment it is on the disk, settled or not: a crash in between over-counts and can never
under-count. Groups hold disjoint patients (a salted-hash split), so the site's epsilon is the greatest of its groups
(parallel composition); within a group everything composes. One JSON file of plain numbers with a checksum, replaced
atomically; beside it an empty `ledger.begun`, by which a lost ledger is told from none.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from client.privacy.accountant import Account
from shared_model.errors import BudgetExhaustedError, MammoFedError, PrivacyError, StorageError
from shared_model.messages import PrivacySpent
from shared_model.protocol import Protocol

SCHEMA_VERSION = 2  # 1 had no checksum; it is still read
MAX_LEDGER_BYTES = 64 << 20

Group = Literal["train", "metrics"]
Record = dict[str, Any]  # one entry as JSON, checked by `_parse`
GROUPS: tuple[Group, ...] = ("train", "metrics")


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


class Ledger:
    """All entries of one site in one JSON file; safe between threads and processes of one machine (file lock).

    Args:
        path: the ledger file; it is created by the first reservation.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._begun = path, path.with_suffix(".begun")

    def spent(self, group: Group, *, delta: float) -> float:
        """Epsilon that the patients of `group` have spent at `delta`, reservations included."""
        return self.account(group).epsilon(delta=delta)

    def site_epsilon(self, *, delta: float) -> float:
        """Greatest epsilon of any group: what the site can state for each of its patients."""
        return max(self.spent(group, delta=delta) for group in GROUPS)

    def account(self, group: Group) -> Account:
        """Everything that `group` has taken part in, as plain numbers."""
        rows = [[e["noise_multiplier"], e["sample_rate"], e["steps"]] for e in self._read() if e["group"] == group]
        return Account.from_lists(rows)

    def records(self) -> list[Record]:
        """All entries as they are in the file, oldest first."""
        return self._read()

    def reserve(self, entry: LedgerEntry, *, budget: float, delta: float) -> int:
        """Charge `entry` and put it on the disk; the caller may draw noise only after this has returned.

        Args:
            entry: the planned steps; all of them are charged, whatever happens afterwards.
            budget: greatest epsilon that the group may reach at `delta`.

        Returns:
            the reservation's id, for :meth:`settle`.

        Raises:
            BudgetExhaustedError: the group cannot afford the entry; nothing was written.
            StorageError: the ledger cannot be read or written.
        """
        with self._locked():
            entries = self._read()
            same = [e for e in entries if e["group"] == entry.group]
            account = Account.from_lists([e["noise_multiplier"], e["sample_rate"], e["steps"]] for e in same)
            charge = {k: getattr(entry, k) for k in ("noise_multiplier", "sample_rate", "steps")}
            after = account.add(**charge).epsilon(delta=delta)
            if after > budget:
                raise BudgetExhaustedError(
                    f"round {entry.round} would bring the patients of group `{entry.group}` to epsilon {after:.3f}",
                    found=f"{account.epsilon(delta=delta):.3f} spent",
                    expected=f"at most {budget:.3f} at delta {delta:g}",
                    remedy="the site sits this round out; a new budget is the site's own decision",
                )  # fmt: skip
            identity = len(entries) + 1
            record = {"id": identity, "state": "reserved", "reserved_at": _now(), "settled_at": None, **asdict(entry)}
            self._write([*entries, record])
        return identity

    def settle(self, identity: int) -> None:
        """Mark a reservation as used. It counted before and goes on counting; settling twice is harmless.

        Raises:
            PrivacyError: no such reservation.
        """
        with self._locked():
            entries = self._read()
            if not 1 <= identity <= len(entries):
                raise PrivacyError("no such reservation in the ledger", found=identity, expected=f"1..{len(entries)}")
            record = entries[identity - 1]
            if record["state"] == "reserved":
                entries[identity - 1] = {**record, "state": "settled", "settled_at": _now()}
                self._write(entries)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.with_suffix(".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise _storage(self.path, error.strerror or str(error)) from None

    def _read(self) -> list[Record]:
        try:
            with self.path.open("rb") as stream:
                data = stream.read(MAX_LEDGER_BYTES + 1)
        except FileNotFoundError:
            if self._begun.exists():  # a ledger that is gone is no empty one
                raise _storage(self.path, "it was begun and is gone") from None
            return []
        except OSError as error:
            raise _storage(self.path, error.strerror or str(error)) from None
        return _parse(data, self.path)

    def _write(self, entries: list[Record]) -> None:
        document = {"schema_version": SCHEMA_VERSION, "entries": entries, "sha256": _checksum(entries)}
        text = json.dumps(document, indent=1)
        temporary = self.path.with_suffix(".new")
        with temporary.open("w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(self.path)
        self._begun.touch()
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name, too, must survive a power cut before noise is drawn
        finally:
            os.close(folder)


def privacy_spent(ledger: Ledger, protocol: Protocol) -> PrivacySpent:
    """State of the training patients' account, as the trainer reports it after a request."""
    account, terms = ledger.account("train"), protocol.privacy
    return PrivacySpent(
        epsilon=account.epsilon(delta=terms.delta), budget=terms.epsilon, delta=terms.delta,
        noise_multiplier=terms.noise_multiplier, sample_rate=protocol.training.sample_rate, steps=account.steps,
    )  # fmt: skip


def _parse(data: bytes, path: Path) -> list[Record]:
    try:
        if len(data) > MAX_LEDGER_BYTES:
            raise ValueError("too large")
        document = json.loads(data)
        version, entries = document["schema_version"], list[Record](document["entries"])
        if version not in (1, SCHEMA_VERSION):
            raise ValueError(f"schema version {version}")
        # One flipped bit makes a sigma of 1 one of 9, and the epsilon a fraction of what was spent.
        if ("sha256" in document) != (version == SCHEMA_VERSION) or (
            version == SCHEMA_VERSION and document["sha256"] != _checksum(entries)
        ):
            raise ValueError("its checksum is not that of its entries")
        for position, record in enumerate(entries, start=1):
            known = record["group"] in GROUPS and record["state"] in ("reserved", "settled")
            if record["id"] != position or not known:
                raise ValueError(f"entry {position} is inconsistent")
            Account.from_lists([[record["noise_multiplier"], record["sample_rate"], record["steps"]]])
    except (ValueError, KeyError, TypeError, RecursionError, MammoFedError) as error:
        # Fail closed: a ledger that cannot be read is never taken for an empty one.
        raise _storage(path, f"damaged ({error})") from None
    return entries


def _checksum(entries: list[Record]) -> str:
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def _storage(path: Path, reason: str) -> StorageError:
    remedy = "nothing is trained until it is restored from backup"
    return StorageError(f"privacy ledger {path.name}: {reason}", remedy=remedy)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
