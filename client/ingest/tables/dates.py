"""Dates of clinical tables as `YYYYMMDD` text, and spans of days where a date is written without its day; no I/O.

Text of that form sorts as the dates do, is what DICOM writes, and is what `Deidentifier.date` shifts.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

ISO = "%Y-%m-%d"
YEAR_DAYS = 365.2425  # mean Gregorian year
_YEARS = range(1880, 2200)  # what lies outside is a typing error or a code for "not known"
_DIRECTIVES = frozenset("YmdBbjHMSfzTp%IAa")
_FHIR = re.compile(r"(\d{4})(?:-(\d{2})(?:-(\d{2})(?:T[0-9:.]{2,20}(?:Z|[+-]\d{2}:\d{2})?)?)?)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Span:
    """Days `first` to `last` inclusive, YYYYMMDD; equal where the day is known."""

    first: str
    last: str


def day(value: date) -> str:
    """The date as YYYYMMDD."""
    return value.strftime("%Y%m%d")


def days_between(earlier: str, later: str) -> int:
    """Whole days from one YYYYMMDD to another; negative when `later` is before `earlier`."""
    return (date.fromisoformat(later) - date.fromisoformat(earlier)).days


def days_after(start: str, days: int) -> str:
    """The day that many days after (before, if negative) another, YYYYMMDD."""
    return day(date.fromisoformat(start) + timedelta(days=days))


def age_on(birth: str, on: str) -> int:
    """Completed years; both dates may be shifted by the same number of days (right to a day around the birthday)."""
    return int(days_between(birth, on) / YEAR_DAYS)


def check_format(text: str) -> str:
    """The format itself, if it says which century a date is of and uses directives that are read the same everywhere.

    Raises:
        ValueError: it does not.
    """
    if "%Y" not in text or not set(re.findall(r"%(.)", text)) <= _DIRECTIVES:
        raise ValueError("a date format has %Y and any of %m %d %b %B %j and a time, for example %d.%m.%Y")
    return text


def parse_date(text: str, formats: Sequence[str]) -> Span | None:
    """The day (or, for a format without one, the month or year) that the text names; None where it names none.

    >>> parse_date("03.02.2021", ("%d.%m.%Y",))
    Span(first='20210203', last='20210203')
    """
    cleaned = text.strip()
    for form in formats:
        try:
            # ISO 8601 in all its spellings of a day (20210203, 2021-W05-3), and strictly: `2021-2-3` is none
            found = datetime.strptime(cleaned, form) if form != ISO else date.fromisoformat(cleaned)
        except ValueError:
            continue
        month = any(code in form for code in ("%m", "%b", "%B", "%j"))
        exact = "%d" in form or "%j" in form
        return _span(found.year, found.month if month else None, found.day if exact else None)
    return None


def parse_fhir_date(value: object) -> Span | None:
    """A FHIR date, dateTime or instant (R4, 2.24.0.1), as written: the hospital's local day is meant.

    >>> parse_fhir_date("2021-02")
    Span(first='20210201', last='20210228')
    """
    match = _FHIR.fullmatch(value) if isinstance(value, str) and len(value) <= 40 else None
    if match is None:
        return None
    year, month, exact = (None if part is None else int(part) for part in match.groups())
    assert year is not None
    return _span(year, month, exact)


def _span(year: int, month: int | None, exact: int | None) -> Span | None:
    if year not in _YEARS:
        return None
    try:
        first = date(year, month or 1, exact or 1)
        last = first if exact else date(year, month or 12, calendar.monthrange(year, month or 12)[1])
    except (ValueError, IndexError):  # IndexError: month 13 in calendar
        return None
    return Span(day(first), day(last))
