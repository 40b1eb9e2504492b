"""What a woman's facts said on the day of an exam, field by field; called by joining. No I/O.

A fact counts from the day on which the record held it. One of the exam's own day counts only where its rule says that
such a record is written before the read; what was written later was not known at it, whatever day it is about.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

from client.ingest.tables.dates import YEAR_DAYS, age_on, days_between
from client.ingest.tables.facts import Fact, How

NOTHING: Mapping[How, str] = {
    "count": "0", "relatives": "0", "ever": "no", "current": "none", "since": "never"
}  # fmt: skip
"""The cell of a field that no fact is about, where the site says that its records are complete."""
OLDEST_AGE = 89  # HIPAA Safe Harbor, 45 CFR 164.514(b)(2)(i)(C): ages over 89 are one category


def cells_as_of(
    facts: Sequence[Fact], exam: str, *, complete: Mapping[str, How] | None = None
) -> tuple[dict[str, str], Counter[str]]:
    """(contract field -> cell; counts of facts that were not used: `too_late`, `stale`).

    Args:
        exam: day of the exam, YYYYMMDD.
        complete: fields of which no fact means "no", and how their facts count.
    """
    notes: Counter[str] = Counter()
    by_field: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        if fact.how != "birth" and not _known_by(fact, exam):
            notes["too_late"] += 1
        elif fact.within_days is not None and not _still_tells(fact, exam):
            notes["stale"] += 1
        else:
            by_field[fact.field].append(fact)
    cells: dict[str, str] = {}
    for name, listed in by_field.items():
        cell = _HOW[listed[0].how](listed, exam)
        if cell is not None:
            cells[name] = cell
    for name, how in (complete or {}).items():
        if name not in cells and how in NOTHING:
            cells[name] = NOTHING[how]
    return cells, notes


def _known_by(fact: Fact, exam: str) -> bool:
    return fact.known < exam or (fact.same_day and fact.known == exam)


def _still_tells(fact: Fact, exam: str) -> bool:
    assert fact.within_days is not None
    return days_between(fact.known, exam) <= fact.within_days and not (fact.until and fact.until < exam)


def _latest(facts: Sequence[Fact], exam: str) -> str | None:
    del exam
    return max(facts, key=lambda fact: (fact.known, fact.since)).cell


def _count(facts: Sequence[Fact], exam: str) -> str | None:
    del exam
    return str(len({fact.key for fact in facts}))


def _ever(facts: Sequence[Fact], exam: str) -> str | None:
    del exam
    return facts[0].cell


def _current(facts: Sequence[Fact], exam: str) -> str | None:
    """Of several drugs in use the one that the field's vocabulary puts together: estrogen and combined are combined."""
    used = {fact.cell for fact in facts if fact.since <= exam and not (fact.until and fact.until < exam)}
    return "combined" if "combined" in used else min(used, default=None)


def _relatives(facts: Sequence[Fact], exam: str) -> str | None:
    del exam
    ill: dict[str, bool] = defaultdict(bool)
    for fact in facts:
        ill[fact.key] |= fact.cell == "1"
    return str(sum(ill.values()))


def _since(facts: Sequence[Fact], exam: str) -> str | None:
    last = max((fact.since for fact in facts if fact.since < exam), default=None)
    return None if last is None else repr(round(days_between(last, exam) / YEAR_DAYS, 2))


def _birth(facts: Sequence[Fact], exam: str) -> str | None:
    """Completed years; two birth dates of one woman that differ by more than a year make her age unknown."""
    ages = sorted(age_on(fact.since, exam) for fact in facts)
    return str(min(ages[-1], OLDEST_AGE)) if ages[-1] - ages[0] <= 1 and ages[-1] >= 0 else None


_HOW: Mapping[How, Callable[[Sequence[Fact], str], str | None]] = {
    "latest": _latest, "count": _count, "ever": _ever, "current": _current, "relatives": _relatives, "since": _since,
    "birth": _birth,
}  # fmt: skip
