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
from client.ingest.tables.facts import Content, Fact, Identities, LeftOut
from client.ingest.tables.fhir_elements import (
    LeftOutError,
    identifier_of,
    reference_key,
)
from client.ingest.tables.fhir_resources import RawFact, Wanted, raw_facts
from client.ingest.tables.fhir_rules import DIAGNOSIS, FhirRule, RuleBook
from client.ingest.tables.json_stream import JsonFaultError, resources_of
from shared_model.contract import Contract
from shared_model.errors import ConfigError, ContractError

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


@dataclass
class _Reading:
    """State of one source. ids: reference -> patient ids that Patient resources gave it, births likewise."""

    source: FhirSource
    wanted: Wanted
    ids: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    births: dict[str, Span] = field(default_factory=dict)
    facts: dict[str, list[RawFact]] = field(default_factory=lambda: defaultdict(list))
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
    reading = _Reading(source, Wanted(book, source.onset_as_recorded, diagnoses=source.labels == "diagnoses"))
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
    try:
        if resource["resourceType"] == "Patient":
            _patient(reading, url, resource)
        elif facts := raw_facts(reading.wanted, resource):
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
        clear_until=clear, fields=reading.wanted.book.fields,
        complete=reading.wanted.book.hows(reading.source.complete if whole else ()),
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
