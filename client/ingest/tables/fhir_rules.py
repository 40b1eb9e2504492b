"""The table of FHIR codes (fhir.yaml and a site's own additions), checked and made searchable; called by fhir."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from client.ingest.tables.facts import How
from shared_model.contract import Contract
from shared_model.errors import ConfigError

DIAGNOSIS = "diagnosis"
Resource = Literal["Observation", "Condition", "Procedure", "MedicationStatement", "FamilyMemberHistory"]
CodeText = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]{2,20} [A-Za-z0-9][A-Za-z0-9.-]{0,30}\*?$")]
_HOWS: dict[Resource, frozenset[str]] = {
    "Observation": frozenset({"latest", "ever"}), "Condition": frozenset({"latest", "ever"}),
    "Procedure": frozenset({"count", "since", "ever"}), "MedicationStatement": frozenset({"current"}),
    "FamilyMemberHistory": frozenset({"relatives"}),
}  # fmt: skip


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


class FhirRule(BaseModel):
    """One rule; the head of fhir.yaml says what its parts mean."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    field: str
    resource: Annotated[tuple[Resource, ...], BeforeValidator(_listed), Field(min_length=1)]
    how: How
    source: Annotated[str, Field(min_length=8, max_length=500)]
    codes: tuple[CodeText, ...] = ()
    values: dict[CodeText, str] = {}
    numbers: dict[str, str] = {}
    units: dict[str, float] = {}
    relations: tuple[CodeText, ...] = ()
    same_day: bool = False
    within_days: Annotated[int, Field(ge=1, le=36525)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> FhirRule:
        if bool(self.codes) == bool(self.values):
            raise ValueError(f"rule for {self.field}: give either codes or values")
        for resource in self.resource:
            if self.how not in _HOWS[resource]:
                raise ValueError(f"rule for {self.field}: {resource} cannot be `{self.how}`")
        if bool(self.relations) != (self.how == "relatives"):
            raise ValueError(f"rule for {self.field}: relations belong to FamilyMemberHistory")
        if self.codes and "Observation" in self.resource and not self.units and self.how == "latest":
            raise ValueError(f"rule for {self.field}: a measured value needs its units")
        return self


class RuleFile(BaseModel):
    """fhir.yaml. systems: short name -> the URIs that systems use for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_number: Literal[1] = Field(alias="schema")
    systems: dict[str, tuple[str, ...]]
    rules: tuple[FhirRule, ...]


@cache
def shipped_rules() -> RuleFile:
    """The table of this release."""
    text = resources.files("client.ingest.tables").joinpath("fhir.yaml").read_text(encoding="utf-8")
    return RuleFile.model_validate(yaml.safe_load(text))


@dataclass(frozen=True)
class Match:
    """A rule that a code belongs to. cell: what the code itself says, None where a value has to say it."""

    rule: FhirRule
    cell: str | None


class RuleBook:
    """Shipped and own rules by resource type and code.

    Args:
        own: further rules of the site. same_day: fields whose records of the exam's own day count, on the site's word.

    Raises:
        ConfigError: a rule names a field, a code system or a level that there is not.
    """

    def __init__(
        self, contract: Contract, *, own: Sequence[FhirRule] = (), systems: Mapping[str, str] | None = None,
        same_day: Iterable[str] = (), name: str = "FHIR rules",
    ) -> None:  # fmt: skip
        shipped = shipped_rules()
        uris = {uri: short for short, listed in shipped.systems.items() for uri in listed}
        self._short = uris | {uri: short for short, uri in (systems or {}).items()}
        known, self._exact = {f.name for f in contract.fields} | {DIAGNOSIS}, dict[tuple[str, str], list[Match]]()
        self._prefixes: list[tuple[str, str, Match]] = []
        opened = set(same_day)
        for rule in (*shipped.rules, *own):
            if rule.field not in known:
                if rule in shipped.rules:
                    continue  # another contract than the shipped one may lack a field
                raise _wrong(name, "a rule for an unknown field", rule.field)
            self._add(rule.model_copy(update={"same_day": True}) if rule.field in opened else rule, name)
        self.fields = tuple(f.name for f in contract.fields if f.name in self._ruled() | {"age"})
        if unknown := sorted(opened - set(self.fields)):
            raise _wrong(name, "same_day of a field that no rule gives", ", ".join(unknown))

    def matches(self, resource: str, codings: Iterable[tuple[str, str]]) -> list[Match]:
        """Rules for these (system URI, code) pairs, each rule once."""
        found: dict[int, Match] = {}
        for uri, code in codings:
            short = self._short.get(uri)
            if short is None:
                continue
            for match in self._exact.get((resource, f"{short} {code}"), ()):
                found.setdefault(id(match.rule), match)
            for kind, prefix, match in self._prefixes:
                if kind == resource and f"{short} {code}".startswith(prefix):
                    found.setdefault(id(match.rule), match)
        return list(found.values())

    def hows(self, fields: Iterable[str]) -> dict[str, How]:
        """How the facts of these fields count."""
        rules = [match.rule for matches in self._exact.values() for match in matches]
        rules += [match.rule for _, _, match in self._prefixes]
        found = {rule.field: rule.how for rule in rules}
        return {name: found.get(name, "birth") for name in fields}

    def names(self, texts: Iterable[str], codings: Iterable[tuple[str, str]]) -> bool:
        """Whether one of the codings is one of these `system code` texts."""
        listed = list(texts)
        for uri, code in codings:
            text = f"{self._short.get(uri, '?')} {code}"
            if any(text.startswith(t[:-1]) if t.endswith("*") else text == t for t in listed):
                return True
        return False

    def _ruled(self) -> set[str]:
        exact = {match.rule.field for matches in self._exact.values() for match in matches}
        return exact | {match.rule.field for _, _, match in self._prefixes}

    def _add(self, rule: FhirRule, name: str) -> None:
        pairs: list[tuple[str, str | None]] = [*((code, None) for code in rule.codes), *rule.values.items()]
        if rule.how == "relatives":
            pairs = [(code, None) for code in rule.relations]
        for text, cell in pairs:
            if text.split(" ", 1)[0] not in self._short.values():
                raise _wrong(name, "a rule with an unknown code system", text.split(" ", 1)[0])
            for resource in rule.resource:
                if text.endswith("*"):
                    self._prefixes.append((resource, text[:-1], Match(rule, cell)))
                else:
                    self._exact.setdefault((resource, text), []).append(Match(rule, cell))


def _wrong(name: str, problem: str, found: str) -> ConfigError:
    return ConfigError(f"{name}: {problem}", found=found, remedy="correct rules, systems or same_day in site.yaml")
