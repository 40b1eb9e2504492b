"""Types of the data contract's YAML file, checked when it is read; used by `Contract` and to document the fields."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

SCHEMA_VERSION = 1
CLINICAL_COLUMNS: tuple[str, ...] = ("patient_id", "label", "exam_date")
"""Columns of `clinical.csv` that are not clinical fields; the first two must be there."""
REQUIRED_COLUMNS: tuple[str, ...] = ("patient_id", "label")
FLAG_LEVELS: tuple[str, ...] = ("no", "yes")

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
Text = Annotated[str, StringConstraints(min_length=1, max_length=400)]
Token = Annotated[str, StringConstraints(max_length=80)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Code = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,18}(-[0-9])?$")]

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII)
_MAX_EXACT = 1e15  # whole numbers below it are exact in float64


def column_key(name: object) -> str:
    """A column name as it is compared: lower case, every run of other signs one underscore (`Breast Density` and
    `breast_density` are one column in real tables).

    >>> column_key("Breast density (ACR)")
    'breast_density_acr'
    """
    return re.sub(r"[^a-z0-9]+", "_", str(name).casefold()).strip("_")


def token_of(cell: object) -> str:
    """A cell as it is compared with codes: trimmed, lower case, numbers in one spelling (`2.0`, `02` and 2 are `2`).

    Missing values (None, NaN, NA) are the empty string.

    >>> token_of(2.0), token_of(" YES "), token_of(float("nan"))
    ('2', 'yes', '')
    """
    if isinstance(cell, (bool, np.bool_)):
        return str(int(cell))  # True equals 1 in Python, so it has to mean the same
    if cell is None or type(cell).__name__ in ("NAType", "NaTType") or cell != cell:  # NaN alone differs from itself
        return ""
    text = " ".join(str(cell).split()).casefold()
    if len(text) <= 40 and _NUMBER.fullmatch(text):
        number = float(text)
        if abs(number) < _MAX_EXACT and number == int(number):
            return str(int(number))
    return text


def number_of(token: str) -> float | None:
    """The number that a token spells in plain ASCII decimal notation, else None. May be infinite (`1e999`)."""
    return float(token) if len(token) <= 40 and _NUMBER.fullmatch(token) else None


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Codes(_Part):
    """Where a field is found in standard records: FHIR resource or element, LOINC and SNOMED CT codes."""

    fhir: Text | None = None
    loinc: tuple[Code, ...] = ()
    snomed: tuple[Code, ...] = ()


class ClinicalField(_Part):
    """One clinical field.

    range: hard limits in `unit`; winsor: public limits inside them; center, scale: public constants in `unit`, the
    model sees (value - center) / scale. levels: vocabulary of a category, or levels of a number that are no number
    (`nulliparous`). accepts: further spellings by level. reference: value or level of the public reference patient.
    known_before_read: must be true; a field that is known only afterwards cannot be in the contract.
    """

    name: Name
    kind: Literal["number", "flag", "category"]
    description: Text
    source: Text
    known_before_read: bool
    unit: Text | None = None
    whole: bool = False
    range: tuple[Finite, Finite] | None = None
    winsor: tuple[Finite, Finite] | None = None
    center: Finite = 0.0
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    levels: tuple[Name, ...] = ()
    accepts: dict[str, tuple[Token, ...]] = {}
    reference: Finite | str | None = None
    missing_codes: tuple[Token, ...] = ()
    codes: Codes = Codes()
    level_codes: dict[str, Code] = {}

    @model_validator(mode="after")
    def _consistent(self) -> ClinicalField:
        fault = self._number_fault() if self.kind == "number" else self._word_fault()
        if len(set(self.vocabulary)) != len(self.vocabulary):
            fault = "levels must be unique"
        if unknown := (set(self.accepts) | set(self.level_codes)) - set(self.vocabulary):
            fault = f"accepts and level_codes name levels that do not exist: {sorted(unknown)}"
        if not self.known_before_read:
            fault = "a field that is not known before the read would leak its outcome; remove it"
        if fault is not None:
            raise ValueError(f"field {self.name}: {fault}")
        return self

    def _number_fault(self) -> str | None:
        if self.range is None or self.winsor is None or self.unit is None:
            return "a number needs unit, range and winsor"
        if not self.range[0] <= self.winsor[0] < self.winsor[1] <= self.range[1]:
            return "need range[0] <= winsor[0] < winsor[1] <= range[1]"
        if isinstance(self.reference, str) or not self.winsor[0] <= self.reference_value <= self.winsor[1]:
            return "the reference of a number is a number within winsor"
        return None

    def _word_fault(self) -> str | None:
        if self.range is not None or self.winsor is not None or self.center != 0 or self.scale != 1 or self.whole:
            return "range, winsor, whole, center and scale belong to numbers"
        if self.kind == "flag" and (self.levels or self.reference is not None):
            return "a flag has the levels no and yes, and no as reference"
        if self.kind == "category" and (len(self.levels) < 2 or self.reference not in self.levels):
            return "a category needs two or more levels and one of them as reference"
        return None

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """All levels, of a flag too."""
        return FLAG_LEVELS if self.kind == "flag" else self.levels

    @property
    def reference_value(self) -> float:
        """The reference of a number, in `unit` (its center unless stated otherwise)."""
        return float(self.reference) if isinstance(self.reference, (int, float)) else self.center

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the columns that the field becomes, the missing flag last."""
        parts = ("value", *self.levels) if self.kind == "number" else ("yes",) if self.kind == "flag" else self.levels
        return tuple(f"{self.name}.{part}" for part in (*parts, "missing"))


class DenyRule(_Part):
    """Column names that are refused, and why. match, unless: shell patterns over :func:`column_key`."""

    reason: Text
    match: tuple[Token, ...] = Field(min_length=1)
    unless: tuple[Token, ...] = ()

    def denies(self, key: str) -> bool:
        """Whether the column with this key is refused by this rule."""
        return any(fnmatchcase(key, m) for m in self.match) and not any(fnmatchcase(key, u) for u in self.unless)


class ContractFile(_Part):
    """The whole YAML file."""

    schema_number: Literal[1] = Field(alias="schema")
    version: Annotated[str, StringConstraints(pattern=r"^\d+\.\d+\.\d+$", max_length=32)]
    missing_codes: tuple[Token, ...]
    flag_accepts: dict[str, tuple[Token, ...]]
    fields: tuple[ClinicalField, ...] = Field(min_length=1, max_length=256)
    deny: tuple[DenyRule, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> ContractFile:
        names = [field.name for field in self.fields]
        if len(set(names)) != len(names) or set(names) & set(CLINICAL_COLUMNS):
            raise ValueError(f"fields: names must be unique and none of {CLINICAL_COLUMNS}")
        if not set(self.flag_accepts) <= set(FLAG_LEVELS):
            raise ValueError(f"flag_accepts: levels are {FLAG_LEVELS}")
        for field in self.fields:
            for rule in self.deny:
                if rule.denies(field.name):
                    raise ValueError(f"field {field.name} is on the deny-list: {rule.reason}")
            self.spellings(field)
        return self

    def denial(self, key: str) -> str | None:
        """Why a column is refused, or None."""
        return next((rule.reason for rule in self.deny if rule.denies(key)), None)

    def spellings(self, field: ClinicalField) -> dict[str, str | None]:
        """Token -> level of a field, None for "not known". The field's own lists go before those for all fields.

        Raises:
            ValueError: one spelling would mean two things.
        """
        table: dict[str, str | None] = {token_of(code): None for code in self.missing_codes}
        if field.kind == "flag":
            table.update({token_of(t): level for level, tokens in self.flag_accepts.items() for t in tokens})
        own: dict[str, str | None] = {level: level for level in field.vocabulary}
        pairs: list[tuple[str, str | None]] = [(t, level) for level, tokens in field.accepts.items() for t in tokens]
        for text, level in pairs + [(t, None) for t in field.missing_codes]:
            if own.setdefault(token_of(text), level) != level:
                raise ValueError(f"field {field.name}: {text!r} is said to mean two things")
        return table | own
