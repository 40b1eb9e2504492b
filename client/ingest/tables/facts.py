"""The one form that every clinical source is read into: rows of a table, and facts with the day they were known.

Dates are YYYYMMDD, shifted by the woman's own number of days; cells are text as the data contract reads it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from client.ingest.tables.dates import Span

How = Literal["latest", "count", "ever", "current", "relatives", "since", "birth"]
"""How facts of one field become its cell as of an exam; see `client/ingest/as_of.py`."""


class Identities(Protocol):
    """What the readers need of the de-identifier."""

    def pseudonym(self, patient_id: str) -> str:
        """Keyed pseudonym; "" for an empty id."""
        ...

    def date(self, pseudonym: str, yyyymmdd: str) -> str:
        """The date, shifted by this woman's number of days."""
        ...


@dataclass(frozen=True)
class Plain:
    """Pseudonyms without shifted dates, for folders whose films are not shifted either (the simulator's)."""

    pseudonyms: PseudonymSource

    def pseudonym(self, patient_id: str) -> str:
        """As :class:`Identities`."""
        return self.pseudonyms.of(patient_id)

    def date(self, pseudonym: str, yyyymmdd: str) -> str:
        """The date as it is."""
        return yyyymmdd


class PseudonymSource(Protocol):
    """`client.ingest.pseudonyms.Pseudonyms`."""

    def of(self, patient_id: str) -> str:
        """The pseudonym of an id."""
        ...


@dataclass(frozen=True, slots=True)
class Row:
    """One data row of a table.

    ordinal: data row from 1. exam: the exam that the row names, "" for none; bad_date: its cell is no date.
    recorded: the day on which the row was written, "" where not stated. label: the cell, trimmed; None where the table
    has no such column. label_date: of the diagnosis (label 1) or the last day of follow-up (label 0).
    cells: contract field -> cell. known: contract field -> day on which that cell was written, where stated by itself.
    """

    ordinal: int
    pseudonym: str
    exam: str = ""
    bad_date: bool = False
    recorded: str = ""
    label: str | None = None
    label_date: Span | None = None
    cells: Mapping[str, str] = field(default_factory=dict)
    known: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing known of a woman.

    known: first day on which the record held it. since: the day it is about (event, start of use), `known` where that
    is all there is. until: last day on which it held, "" for open. same_day: whether a record of the exam's own day was
    written before the read. within_days: how long it tells something of an exam, None for ever. key: equal for records
    of one event (never shown).
    """

    field: str
    how: How
    cell: str
    known: str
    since: str
    until: str = ""
    same_day: bool = False
    within_days: int | None = None
    key: str = ""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A row or file of a source that is not in the cohort, and why. ordinal: in its source, from 1. path: of a file;
    it may name somebody."""

    source: str
    kind: Literal["row", "file"]
    ordinal: int
    pseudonym: str
    reason: str
    path: str = field(default="", repr=False)


@dataclass(frozen=True)
class Content:
    """What one source holds.

    source: how messages name it (kind and file name as the site's configuration has it). fields: contract fields that
    it can give. found: data rows. facts (a woman whom the source knows has at least an empty list), diagnoses (days of
    breast cancer), clear_until (last day up to which no diagnosis means none): by pseudonym. complete: fields of which
    no fact means "no", on the site's word, and how their facts count.
    ignored: columns that nobody asked for. counts: what became of rows or resources, by words of a closed list.
    """

    source: str
    rows: tuple[Row, ...] = ()
    facts: Mapping[str, list[Fact]] = field(default_factory=dict)
    diagnoses: Mapping[str, list[Span]] = field(default_factory=dict)
    clear_until: Mapping[str, str] = field(default_factory=dict)
    complete: Mapping[str, How] = field(default_factory=dict)
    fields: tuple[str, ...] = ()
    found: int = 0
    left_out: tuple[LeftOut, ...] = ()
    ignored: tuple[str, ...] = ()
    counts: Counter[str] = field(default_factory=Counter)
    warnings: tuple[str, ...] = ()
