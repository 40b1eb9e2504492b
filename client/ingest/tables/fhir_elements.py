"""Elements of FHIR R4 resources, each checked where it is read; called by fhir. Pure; free text is never looked at."""

from __future__ import annotations

from typing import Any

from client.ingest.tables.dates import Span, parse_fhir_date

STATUS = {
    "Observation": ("status", {"final", "amended", "corrected"}),
    "Procedure": ("status", {"completed"}),
    "MedicationStatement": ("status", {"active", "completed", "stopped"}),
    "FamilyMemberHistory": ("status", {"partial", "completed"}),
}
"""Element and the codes of records that are done and hold (R4 value sets); Condition: see `condition_holds` in fhir."""


class LeftOutError(Exception):
    """Why a resource is not used; one of a few words: the count it goes to."""


def reference_key(reference: str) -> str:
    """`Patient/7` of `https://ehr.example/fhir/Patient/7/_history/2`; a URN as it is; "" for what is no patient's."""
    if reference.startswith("urn:"):
        return reference
    parts = reference.split("/_history/", 1)[0].rsplit("/", 2)[-2:]
    return "/".join(parts) if len(parts) == 2 and parts[0] == "Patient" and parts[1] else ""


def identifier_of(resource: dict[str, Any], system: str | None) -> str:
    """The value of the identifier that is the films' PatientID, "" where that is not clear."""
    listed = [i for i in dicts(resource.get("identifier")) if isinstance(i.get("value"), str) and i["value"].strip()]
    if system is not None:
        listed = [i for i in listed if i.get("system") == system]
    elif len(listed) > 1:
        listed = [i for i in listed if any(code == "MR" for _, code in codings_of(i.get("type")))]
    values = {i["value"].strip() for i in listed if i.get("use") != "old"}
    return values.pop() if len(values) == 1 else ""


def affirmed(part: dict[str, Any]) -> bool:
    """Whether a finding that stands in `code` is said to be there: no value, or the value true."""
    return part.get("valueBoolean", not any(key.startswith("value") for key in part)) is True


def quantity_of(quantity: object) -> tuple[object, str]:
    """(value, UCUM code); a comparator (`<`) makes it no value. Without any unit: the unit 1."""
    if not isinstance(quantity, dict) or quantity.get("comparator"):
        return None, ""
    unit = quantity.get("code", quantity.get("unit", "1"))
    return quantity.get("value"), unit if isinstance(unit, str) else ""


def check_status(resource: dict[str, Any]) -> None:
    """Raises LeftOutError unless the record is done and holds."""
    element, done = STATUS[resource["resourceType"]]
    given = resource.get(element)
    if not isinstance(given, str) or given not in done:
        raise LeftOutError("status")


def when(resource: dict[str, Any], element: str) -> Span | None:
    """The span of `<element>DateTime`, or of `<element>Period` by its end (its start where it has none)."""
    if (span := parse_fhir_date(resource.get(f"{element}DateTime", resource.get(f"{element}Instant")))) is not None:
        return span
    period = period_of(resource, element)
    if period is None:
        return None
    return Span(period[0].first, max(period[1], period[0].last))


def period_of(resource: dict[str, Any], element: str) -> tuple[Span, str] | None:
    """(start, last day or "") of `<element>Period`, or of `<element>DateTime` as a start."""
    period = resource.get(f"{element}Period")
    if isinstance(period, dict):
        start, end = parse_fhir_date(period.get("start")), parse_fhir_date(period.get("end"))
        if start is None and end is None:
            return None
        return start or end or Span("", ""), end.last if end else ""
    start = parse_fhir_date(resource.get(f"{element}DateTime"))
    return None if start is None else (start, "")


def codings_of(concept: object) -> list[tuple[str, str]]:
    """(system, code) pairs of a CodeableConcept."""
    listed = dicts(concept.get("coding")) if isinstance(concept, dict) else []
    return [(c["system"], c["code"]) for c in listed if isinstance(c.get("system"), str)
            and isinstance(c.get("code"), str)]  # fmt: skip


def dicts(value: object) -> list[dict[str, Any]]:
    """The objects of an array; what is no array has none."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
