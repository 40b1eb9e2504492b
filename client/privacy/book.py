"""What the lines of a ledger say: reservations, sets of patients, and what each patient has spent; used by `ledger`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np

from client.privacy.accountant import Account
from client.privacy.patients import Digests, fingerprint, from_parts, patterns
from shared_model.audit.entries import Entry, Value

SCHEMA_VERSION: Final = 3
OPENED, RESERVED, SETTLED, TAIL_REMOVED = "ledger_opened", "reserved", "settled", "tail_removed"
PATIENTS_PART, PATIENTS = "patients_part", "patients"

Group = Literal["train", "metrics"]
GROUPS: tuple[Group, ...] = ("train", "metrics")
Record = dict[str, Any]  # one reservation; the names of `RECORD` and id, state, reserved_at, settled_at
RECORD: Final[dict[str, type | tuple[type, ...]]] = {
    "group": str, "study": str, "protocol_sha256": str, "round": int, "attempt": int, "noise_multiplier": (int, float),
    "sample_rate": (int, float), "steps": int,
}  # fmt: skip


@dataclass(frozen=True)
class Spender:
    """Patients who have taken part in the same. count: how many; 0: any whom no set names."""

    count: int
    account: Account


@dataclass
class Book:
    """A ledger in memory. records: reservations, oldest first. sets: patients by fingerprint. labels: for which groups
    a set was used. schema: of the file."""

    schema: int = SCHEMA_VERSION
    salt: bytes = b""
    born: int = 0
    records: list[Record] = field(default_factory=list)
    sets: dict[str, Digests] = field(default_factory=dict)
    labels: dict[str, set[str]] = field(default_factory=dict)
    _parts: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Book:
        """Read the lines of a chain that was checked.

        Raises:
            ValueError, KeyError, TypeError, PrivacyError: a line that no release wrote. Nothing is passed over: what
                is not understood may be something that was spent.
        """
        book = cls()
        for entry in entries:
            book.take(entry)
        return book

    def take(self, entry: Entry) -> None:
        """Account for one more line."""
        fields = entry.fields
        if (entry.sequence == 1) != (entry.kind == OPENED):
            raise ValueError("a ledger opens with its first line and only there")
        if entry.kind == OPENED:
            self._open(fields)
        elif entry.kind == PATIENTS_PART:
            if fields["part"] == 0:
                self._parts = []  # what a crash left of the last time
            self._parts.append(str(fields["digests"]))
        elif entry.kind == PATIENTS:
            found = from_parts(self._parts)
            if fingerprint(found) != fields["patients"] or len(found) != fields["count"]:
                raise ValueError("a set of patients is not the one that it is called")
            self.sets[str(fields["patients"])] = found
        elif entry.kind == RESERVED:
            self._reserve(fields, entry.time)
        elif entry.kind == SETTLED:
            record = self.records[_number(fields["reservation"], upto=len(self.records)) - 1]
            record |= {"state": "settled", "settled_at": fields.get("settled_at", entry.time)}
        elif entry.kind != TAIL_REMOVED:
            raise ValueError(f"an entry of the unknown kind {entry.kind}")

    def _open(self, fields: Mapping[str, Value]) -> None:
        if fields["schema"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {fields['schema']}")
        self.salt, self.born = bytes.fromhex(str(fields["salt"])), _number(fields["born"], upto=1 << 40)

    def _reserve(self, fields: Mapping[str, Value], time: str) -> None:
        record = {name: fields[name] for name in RECORD}
        for name, kind in RECORD.items():
            if not isinstance(record[name], kind) or isinstance(record[name], bool):
                raise TypeError(f"a reservation's {name}")
        patients, number = fields["patients"], len(self.records) + 1
        if fields["reservation"] != number or record["group"] not in GROUPS:
            raise ValueError(f"reservation {number} is inconsistent")
        if patients is not None:
            if patients not in self.sets:
                raise ValueError(f"reservation {number} is about a set of patients that is not there")
            self.labels.setdefault(str(patients), set()).add(str(record["group"]))
        Account.from_lists([[record["noise_multiplier"], record["sample_rate"], record["steps"]]])  # type: ignore[list-item]
        self.records.append({"id": number, "state": "reserved", "reserved_at": fields.get("reserved_at", time),
                             "settled_at": None, **record, "patients": patients})  # fmt: skip

    # --- what was spent ---

    def spenders(self, group: Group, patients: Digests | None = None) -> list[Spender]:
        """What the patients of a set have taken part in, each with all that she has, one item for each kind.

        Entries that name no set (of older ledgers, whose split of `train` and `metrics` was pinned) count for every
        patient of their group, and for every one who was ever in a set of that group.

        Args:
            group: what the patients are about to be used for.
            patients: None: all whom a set of this group names, and one whom none does.
        """
        known = [self.sets[name] for name, labels in self.labels.items() if group in labels]
        everybody = patients is None
        asked = patients if patients is not None else np.unique(np.concatenate(known)) if known else None
        found: dict[Account, int] = {}
        if asked is not None:
            for pattern in patterns(asked, self.sets):
                account = self._account(pattern.sets, group)
                found[account] = found.get(account, 0) + pattern.count
        if everybody:
            found.setdefault(self._account(frozenset(), group), 0)
        return [Spender(count, account) for account, count in found.items()]

    def _account(self, sets: frozenset[str], group: Group) -> Account:
        groups = {str(group)}.union(*(self.labels.get(name, set()) for name in sets))
        return account_of(r for r in self.records if (r["group"] in groups if r["patients"] is None
                                                      else r["patients"] in sets))  # fmt: skip


def account_of(records: Iterable[Record]) -> Account:
    """All of these composed on the same patients."""
    return Account.from_lists([r["noise_multiplier"], r["sample_rate"], r["steps"]] for r in records)


def worst(spenders: Sequence[Spender], *, delta: float) -> Account:
    """The account of who has spent most at `delta`; an empty one where nobody is."""
    accounts = [spender.account for spender in spenders] or [Account()]
    return accounts[0] if len(accounts) == 1 else max(accounts, key=lambda account: account.epsilon(delta=delta))


def _number(value: Value, *, upto: int) -> int:
    if type(value) is not int or not 1 <= value <= upto:
        raise ValueError("a number out of range")
    return value
