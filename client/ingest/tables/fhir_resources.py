"""What one FHIR R4 resource says of a woman, by the rules: raw facts, before it is known whose they are.

Called by :mod:`client.ingest.tables.fhir`. Elements are checked where they are used; free text is never read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from client.ingest.tables.dates import Span, parse_fhir_date
from client.ingest.tables.facts import How
from client.ingest.tables.fhir_elements import (
    LeftOutError,
    affirmed,
    check_status,
    codings_of,
    dicts,
    period_of,
    quantity_of,
    when,
)
from client.ingest.tables.fhir_rules import DIAGNOSIS, FhirRule, Match, RuleBook

_GREATEST = 1e6  # no clinical value is above it, in any unit of the rules; JSON has 1e999 too


@dataclass(frozen=True, slots=True)
class RawFact:
    """A fact before it is known whose it is. known, since, until: unshifted days."""

    field: str
    how: How
    cell: str
    known: str
    since: Span
    until: str
    same_day: bool
    within_days: int | None
    key: str


@dataclass(frozen=True)
class Wanted:
    """What is looked for. onset_as_recorded, diagnoses: as :class:`client.ingest.tables.fhir.FhirSource` says."""

    book: RuleBook
    onset_as_recorded: bool
    diagnoses: bool


def raw_facts(wanted: Wanted, resource: dict[str, Any]) -> list[RawFact]:
    """All that is looked for in a resource; nothing of a kind that no rule is about.

    Raises:
        LeftOutError: it cannot be used; why, as a reason of `UNUSED`.
    """
    reader = _READERS.get(resource["resourceType"])
    return [] if reader is None else list(reader(wanted, resource))


def _observation(wanted: Wanted, resource: dict[str, Any]) -> Iterator[RawFact]:
    for part in (resource, *dicts(resource.get("component"))):
        codings = codings_of(part.get("code"))
        value = codings_of(part.get("valueCodeableConcept"))
        by_value = [m for m in wanted.book.matches("Observation", value) if m.cell is not None]
        by_code = [m for m in wanted.book.matches("Observation", codings) if m.cell is None or affirmed(part)]
        for match in (*by_value, *by_code):
            check_status(resource)
            if resource.get("focus"):  # it is about somebody else: a fetus, a relative
                raise LeftOutError("about_another")
            about = when(resource, "effective")
            issued = parse_fhir_date(resource.get("issued"))
            known = max((span.last for span in (about, issued) if span is not None), default=None)
            if known is None:
                raise LeftOutError("no_date")
            cell = match.cell if match.cell is not None else _measured(match.rule, part)
            if cell is not None:
                yield _raw(match, cell, known, about or Span(known, known))


def _measured(rule: FhirRule, part: dict[str, Any]) -> str | None:
    """The value in the contract's unit; None where the rule has no cell for it.

    Raises:
        LeftOutError: no number, or an unknown unit.
    """
    quantity, integer = part.get("valueQuantity"), part.get("valueInteger")
    number, unit = (integer, "1") if quantity is None else quantity_of(quantity)
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not abs(number) < _GREATEST:
        raise LeftOutError("no_value")
    if unit not in rule.units:
        raise LeftOutError("unknown_unit")
    scaled = number * rule.units[unit]
    text = str(int(scaled)) if scaled == int(scaled) else repr(round(scaled, 6))
    return rule.numbers.get(text) if rule.numbers else text


def _condition(wanted: Wanted, resource: dict[str, Any]) -> Iterator[RawFact]:
    for match in wanted.book.matches("Condition", codings_of(resource.get("code"))):
        _condition_holds(resource)
        onset, recorded = when(resource, "onset"), parse_fhir_date(resource.get("recordedDate"))
        if recorded is None and wanted.onset_as_recorded:
            recorded = onset
        if match.rule.field == DIAGNOSIS:
            if not wanted.diagnoses:
                continue
            about = onset or recorded  # the day of the disease counts, whenever it was written down
            if about is None:
                raise LeftOutError("no_date")
            yield _raw(match, "1", about.last, about)
        elif recorded is None:
            raise LeftOutError("no_date")
        else:
            ended = when(resource, "abatement")
            yield _raw(match, match.cell or "yes", recorded.last, onset or recorded, until=ended.first if ended else "")


def _condition_holds(resource: dict[str, Any]) -> None:
    """verificationStatus (R4 condition-ver-status) must be `confirmed` where it is given."""
    given = codings_of(resource.get("verificationStatus"))
    if given and not any(code == "confirmed" for _, code in given):
        raise LeftOutError("status")


def _procedure(wanted: Wanted, resource: dict[str, Any]) -> Iterator[RawFact]:
    for match in wanted.book.matches("Procedure", codings_of(resource.get("code"))):
        check_status(resource)
        done = when(resource, "performed")
        if done is None:
            raise LeftOutError("no_date")
        yield _raw(match, match.cell or "yes", done.last, done, key=done.last)


def _medication(wanted: Wanted, resource: dict[str, Any]) -> Iterator[RawFact]:
    for match in wanted.book.matches("MedicationStatement", codings_of(resource.get("medicationCodeableConcept"))):
        check_status(resource)
        used, asserted = period_of(resource, "effective"), parse_fhir_date(resource.get("dateAsserted"))
        if used is None:
            raise LeftOutError("no_date")
        start, end = used
        if not end and resource["status"] != "active":
            raise LeftOutError("no_date")  # it ended, nobody says when
        yield _raw(match, match.cell or "yes", asserted.last if asserted else start.last, start, until=end)


def _relative(wanted: Wanted, resource: dict[str, Any]) -> Iterator[RawFact]:
    relation = codings_of(resource.get("relationship"))
    for match in wanted.book.matches("FamilyMemberHistory", relation):
        check_status(resource)
        told = parse_fhir_date(resource.get("date"))
        if told is None:
            raise LeftOutError("no_date")
        ill = any(wanted.book.names(match.rule.codes, codings_of(condition.get("code")))
                  for condition in dicts(resource.get("condition")))  # fmt: skip
        yield _raw(match, str(int(ill)), told.last, told, key=_relative_key(resource, relation))


def _relative_key(resource: dict[str, Any], relation: list[tuple[str, str]]) -> str:
    """Equal for two records of one relative: there is one mother, others are told apart by name, birth or id."""
    codes = {code for _, code in relation}
    if codes & {"MTH", "NMTH"}:
        return "mother"
    told = next((str(resource[part]) for part in ("name", "bornDate", "bornString", "id") if resource.get(part)), "")
    return f"{sorted(codes)} {told.casefold()}"


_READERS: dict[str, Callable[[Wanted, dict[str, Any]], Iterator[RawFact]]] = {
    "Observation": _observation, "Condition": _condition, "Procedure": _procedure,
    "MedicationStatement": _medication, "FamilyMemberHistory": _relative,
}  # fmt: skip


def _raw(match: Match, cell: str, known: str, since: Span, *, until: str = "", key: str = "") -> RawFact:
    rule = match.rule
    return RawFact(rule.field, rule.how, cell, known, since, until, rule.same_day, rule.within_days, key)
