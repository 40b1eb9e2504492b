"""Reads FHIR R4 files (Bundles, single resources, NDJSON) into dated facts of women; called by sources.

Only what the rules ask for is looked at: elements are checked where they are used, free text is never read, and a
resource that is not as R4 says is counted and left out. Dates are those on which the *record* held a fact, not those
that the fact is about: what was written after the exam was not known at its read.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from client.ingest.settings import SitePath
from client.ingest.tables.dates import Span, days_after, days_between, parse_fhir_date
from client.ingest.tables.facts import Content, Fact, How, Identities, LeftOut
from client.ingest.tables.fhir_elements import (
    LeftOutError,
    affirmed,
    check_status,
    codings_of,
    dicts,
    identifier_of,
    period_of,
    quantity_of,
    reference_key,
    when,
)
from client.ingest.tables.fhir_rules import DIAGNOSIS, FhirRule, Match, RuleBook
from client.ingest.tables.json_stream import JsonFaultError, resources_of
from shared_model.contract import Contract
from shared_model.errors import ConfigError, ContractError

_GREATEST = 1e6  # no clinical value is above it, in any unit of the rules; JSON has 1e999 too
SUFFIXES = (".json", ".ndjson")
UNUSED = {
    "unknown_patient": "facts are of a patient whom no Patient resource names; export Patient with them",
    "two_patients": "references stand for two patients and were not used; correct the export",
    "no_identifier": "Patient resources have no identifier that was asked for; see identifier_system in site.yaml",
    "no_subject": "resources do not say whose they are and were not used",
    "no_date": "resources have no date, so that they cannot be put before an exam; they were not used",
    "no_value": "resources hold no value that can be read and were not used",
    "unknown_unit": "resources have a unit that is not known and were not used",
    "status": "resources are refuted, entered in error or not final and were not used",
    "about_another": "resources are about somebody else and were not used",
}
"""Why resources tell nothing, in words that follow a count."""


class NegativeLabels(BaseModel):
    """The site's word that the export holds every breast cancer up to a day. until: that day."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    until: date


class FhirSource(BaseModel):
    """A file or folder of FHIR R4 JSON.

    identifier_system: of the Patient.identifier that is the films' PatientID; None: the one of type MR, or the only
    one. labels: `diagnoses` makes positive labels of Conditions. negatives: makes negative ones of their absence.
    complete: fields of which no record means "no" (`prior_biopsies` 0, `hrt` none). same_day: fields whose records of
    the exam's own day were written before the read. onset_as_recorded: for Conditions without recordedDate.
    systems, rules: the site's own code systems (short name -> URI) and rules, as in fhir.yaml.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["fhir"]
    path: SitePath
    identifier_system: str | None = None
    labels: Literal["none", "diagnoses"] = "none"
    negatives: NegativeLabels | None = None
    complete: tuple[str, ...] = ()
    same_day: tuple[str, ...] = ()
    onset_as_recorded: bool = False
    systems: dict[str, str] = {}
    rules: tuple[FhirRule, ...] = ()


@dataclass(frozen=True, slots=True)
class _Raw:
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


@dataclass
class _Reading:
    """State of one source. ids: reference -> patient ids that Patient resources gave it, births likewise."""

    source: FhirSource
    book: RuleBook
    ids: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    births: dict[str, Span] = field(default_factory=dict)
    facts: dict[str, list[_Raw]] = field(default_factory=lambda: defaultdict(list))
    counts: Counter[str] = field(default_factory=Counter)


def read_fhir(source: FhirSource, *, contract: Contract, identities: Identities, name: str) -> Content:
    """Everything that the rules find in the files, in order of their names.

    Raises:
        ContractError: there is no readable file.
        ConfigError: the source's settings name what there is not.
    """
    book = RuleBook(contract, own=source.rules, systems=source.systems, same_day=source.same_day, name=name)
    if unknown := sorted(set(source.complete) - set(book.fields)):
        raise ConfigError(f"{name}: complete names fields that no rule gives", found=", ".join(unknown),
                          expected=", ".join(book.fields), remedy="correct it in site.yaml")  # fmt: skip
    reading = _Reading(source, book)
    left_out: list[LeftOut] = []
    files = _files(source.path, name)
    for ordinal, path in enumerate(files, start=1):
        if path.is_symlink() or not path.is_file():
            left_out.append(LeftOut(name, "file", ordinal, "", "no_plain_file", os.fspath(path)))
            continue
        try:
            for url, resource in resources_of(path):
                reading.counts["resources"] += 1
                _take(reading, url, resource)
        except (JsonFaultError, OSError):
            left_out.append(LeftOut(name, "file", ordinal, "", "not_fhir", os.fspath(path)))
    return _content(reading, identities, name, tuple(left_out), files=len(files))


def _files(path: Path, name: str) -> list[Path]:
    """Links are listed, so that they are set aside, and not followed; a single file may have any name."""
    if path.is_file():
        return [path.resolve()]

    def fail(error: OSError) -> None:  # what cannot be seen could hold a diagnosis
        raise ContractError(f"{name}: a folder below its path cannot be read: {error.strerror}",
                            remedy="give the importer the right to list it") from None  # fmt: skip

    found: list[Path] = []
    for folder, folders, files in os.walk(path, onerror=fail if path.exists() else None):
        found += [Path(folder, file) for file in files if file.casefold().endswith(SUFFIXES)]
        found += [Path(folder, linked) for linked in folders if Path(folder, linked).is_symlink()]
    if all(at.is_symlink() for at in found):
        raise ContractError(f"{name}: no FHIR file", expected="a file, or a folder with .json or .ndjson files",
                            remedy="correct the path in site.yaml, or export FHIR R4 Bundles there")  # fmt: skip
    return sorted(found, key=os.fsencode)


def _take(reading: _Reading, url: str, resource: dict[str, Any]) -> None:
    kind = resource["resourceType"]
    try:
        if kind == "Patient":
            _patient(reading, url, resource)
        elif kind in _READERS:
            facts = list(_READERS[kind](reading, resource))
            if facts:
                reading.facts[_subject(resource)] += facts
                reading.counts["used"] += 1
    except LeftOutError as reason:
        reading.counts[str(reason)] += 1


# Whose it is


def _patient(reading: _Reading, url: str, resource: dict[str, Any]) -> None:
    chosen = identifier_of(resource, reading.source.identifier_system)
    keys = {reference_key(url)} | ({f"Patient/{resource['id']}"} if isinstance(resource.get("id"), str) else set())
    if not chosen or not keys - {""}:
        raise LeftOutError("no_identifier")
    for key in keys - {""}:
        reading.ids[key].add(chosen)
        if (born := parse_fhir_date(resource.get("birthDate"))) is not None:
            reading.births[key] = born
    reading.counts["patients"] += 1


def _subject(resource: dict[str, Any]) -> str:
    subject = resource.get("patient" if resource["resourceType"] == "FamilyMemberHistory" else "subject")
    if not isinstance(subject, dict):
        raise LeftOutError("no_subject")
    identifier = subject.get("identifier")
    if isinstance(subject.get("reference"), str) and subject["reference"]:
        return reference_key(subject["reference"])
    if isinstance(identifier, dict) and isinstance(identifier.get("value"), str) and identifier["value"].strip():
        return f"identifier {identifier.get('system')} {identifier['value'].strip()}"
    raise LeftOutError("no_subject")


# What it says


def _observation(reading: _Reading, resource: dict[str, Any]) -> Iterator[_Raw]:
    for part in (resource, *dicts(resource.get("component"))):
        codings = codings_of(part.get("code"))
        value = codings_of(part.get("valueCodeableConcept"))
        by_value = [m for m in reading.book.matches("Observation", value) if m.cell is not None]
        by_code = [m for m in reading.book.matches("Observation", codings) if m.cell is None or affirmed(part)]
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


def _condition(reading: _Reading, resource: dict[str, Any]) -> Iterator[_Raw]:
    for match in reading.book.matches("Condition", codings_of(resource.get("code"))):
        _condition_holds(resource)
        onset, recorded = when(resource, "onset"), parse_fhir_date(resource.get("recordedDate"))
        if recorded is None and reading.source.onset_as_recorded:
            recorded = onset
        if match.rule.field == DIAGNOSIS:
            if reading.source.labels == "none":
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


def _procedure(reading: _Reading, resource: dict[str, Any]) -> Iterator[_Raw]:
    for match in reading.book.matches("Procedure", codings_of(resource.get("code"))):
        check_status(resource)
        done = when(resource, "performed")
        if done is None:
            raise LeftOutError("no_date")
        yield _raw(match, match.cell or "yes", done.last, done, key=done.last)


def _medication(reading: _Reading, resource: dict[str, Any]) -> Iterator[_Raw]:
    for match in reading.book.matches("MedicationStatement", codings_of(resource.get("medicationCodeableConcept"))):
        check_status(resource)
        used, asserted = period_of(resource, "effective"), parse_fhir_date(resource.get("dateAsserted"))
        if used is None:
            raise LeftOutError("no_date")
        start, end = used
        if not end and resource["status"] != "active":
            raise LeftOutError("no_date")  # it ended, nobody says when
        yield _raw(match, match.cell or "yes", asserted.last if asserted else start.last, start, until=end)


def _relative(reading: _Reading, resource: dict[str, Any]) -> Iterator[_Raw]:
    relation = codings_of(resource.get("relationship"))
    for match in reading.book.matches("FamilyMemberHistory", relation):
        check_status(resource)
        told = parse_fhir_date(resource.get("date"))
        if told is None:
            raise LeftOutError("no_date")
        ill = any(reading.book.names(match.rule.codes, codings_of(condition.get("code")))
                  for condition in dicts(resource.get("condition")))  # fmt: skip
        yield _raw(match, str(int(ill)), told.last, told, key=_relative_key(resource, relation))


def _relative_key(resource: dict[str, Any], relation: list[tuple[str, str]]) -> str:
    """Equal for two records of one relative: there is one mother, others are told apart by name, birth or id."""
    codes = {code for _, code in relation}
    if codes & {"MTH", "NMTH"}:
        return "mother"
    told = next((str(resource[part]) for part in ("name", "bornDate", "bornString", "id") if resource.get(part)), "")
    return f"{sorted(codes)} {told.casefold()}"


_READERS = {
    "Observation": _observation, "Condition": _condition, "Procedure": _procedure,
    "MedicationStatement": _medication, "FamilyMemberHistory": _relative,
}  # fmt: skip


def _raw(match: Match, cell: str, known: str, since: Span, *, until: str = "", key: str = "") -> _Raw:
    rule = match.rule
    return _Raw(rule.field, rule.how, cell, known, since, until, rule.same_day, rule.within_days, key)


# Put together


def _content(
    reading: _Reading, identities: Identities, name: str, left_out: tuple[LeftOut, ...], *, files: int
) -> Content:
    facts: dict[str, list[Fact]] = defaultdict(list)
    diagnoses: dict[str, list[Span]] = defaultdict(list)
    women: set[str] = set()
    owners = {key: _owner(reading, key, ids, identities) for key, ids in reading.ids.items()}
    for key, pseudonym in owners.items():
        if pseudonym:
            women.add(pseudonym)
        if pseudonym and key in reading.births:
            facts[pseudonym].append(_birth_fact(reading.births[key], pseudonym, identities))
    for key, raws in reading.facts.items():
        pseudonym = owners.get(key) or _logical(reading, key, identities)
        if not pseudonym:
            reading.counts["unknown_patient"] += len(raws)
            continue
        women.add(pseudonym)
        for raw in raws:
            span = Span(*(identities.date(pseudonym, d) for d in (raw.since.first, raw.since.last)))
            if raw.field == DIAGNOSIS:
                diagnoses[pseudonym].append(span)
                continue
            until = identities.date(pseudonym, raw.until) if raw.until else ""
            facts[pseudonym].append(
                Fact(raw.field, raw.how, raw.cell, identities.date(pseudonym, raw.known), span.last, until,
                     raw.same_day, raw.within_days, raw.key)
            )  # fmt: skip
    for pseudonym in women:
        facts.setdefault(pseudonym, [])
    negatives = reading.source.negatives
    # Of a damaged file nobody knows what it held, so that nothing may be concluded from what is not there.
    whole = not left_out
    clear = {p: identities.date(p, negatives.until.strftime("%Y%m%d")) for p in women} if negatives and whole else {}
    return Content(
        name, facts={p: _unrepeated(listed) for p, listed in facts.items()}, diagnoses=dict(diagnoses),
        clear_until=clear, fields=reading.book.fields,
        complete=reading.book.hows(reading.source.complete if whole else ()),
        left_out=left_out, counts=reading.counts + Counter(files=files),
        warnings=tuple(_warnings(reading, name, left_out)),
    )  # fmt: skip


def _warnings(reading: _Reading, name: str, left_out: tuple[LeftOut, ...]) -> Iterator[str]:
    if left_out:
        yield (f"{name}: {len(left_out)} files cannot be read, so that no missing record is taken "
               "for a no (settings complete and negatives)")  # fmt: skip
    for reason, count in sorted(reading.counts.items()):
        if reason in UNUSED:
            yield f"{name}: {count} {UNUSED[reason]}"


def _unrepeated(facts: list[Fact]) -> list[Fact]:
    """Each fact once: exports repeat resources, and a Patient is known by its URL and by its id."""
    return list(dict.fromkeys(facts))


def _owner(reading: _Reading, key: str, ids: set[str], identities: Identities) -> str:
    if len(ids) != 1:  # one reference for two women: whose facts are they?
        reading.counts["two_patients"] += 1
        return ""
    return identities.pseudonym(next(iter(ids)))


def _logical(reading: _Reading, key: str, identities: Identities) -> str:
    """The woman of a reference by identifier, where the site says which system is the films' PatientID."""
    system = reading.source.identifier_system
    prefix = f"identifier {system} "
    return identities.pseudonym(key.removeprefix(prefix)) if system and key.startswith(prefix) else ""


def _birth_fact(born: Span, pseudonym: str, identities: Identities) -> Fact:
    middle = days_after(born.first, days_between(born.first, born.last) // 2)
    return Fact("age", "birth", "", "", identities.date(pseudonym, middle))
