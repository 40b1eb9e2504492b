"""Turns one column of a clinical table into model features by the contract; called by `Contract.encode`.

Letters: N rows, F features. Nothing is estimated from the data: the same cell gives the same features at every site.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shared_model.contract.schema import ClinicalField, number_of, token_of

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class FieldCounts:
    """What became of one field's N cells; known, missing, impossible and unmapped add up to N.

    known: used. missing: empty or a missing code. impossible: outside the hard range, field emptied. unmapped: no
    number and no level of the contract, field emptied. winsorised: the part of `known` that was moved to a public
    limit. absent: the table has no such column (all N cells are missing). first_bad_row: ordinal of the first
    impossible or unmapped cell, data rows counted from 1; the cell itself is not kept, it belongs to a patient.
    """

    known: int
    missing: int
    impossible: int
    unmapped: int
    winsorised: int
    absent: bool
    first_bad_row: int | None


@dataclass(frozen=True, kw_only=True)
class EncodingReport:
    """What became of a table: counts by field, and columns that the contract does not know (ignored)."""

    source: str
    rows: int
    fields: Mapping[str, FieldCounts]
    ignored_columns: tuple[str, ...]

    @property
    def absent_columns(self) -> tuple[str, ...]:
        """Fields that the table has no column for."""
        return tuple(name for name, counts in self.fields.items() if counts.absent)

    def as_dict(self) -> dict[str, object]:
        """The report as plain JSON values; it holds counts and column names, no cell."""
        return {**asdict(self), "absent_columns": self.absent_columns, "ignored_columns": list(self.ignored_columns)}


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """values: float32 [N, F], finite. present: bool [N], True where any field is known. report: what was emptied."""

    values: NDArray[np.float32]
    present: NDArray[np.bool_]
    report: EncodingReport


_OUTCOMES = ("known", "missing", "impossible", "unmapped")


@dataclass(frozen=True)
class _Meaning:
    """What one distinct cell means; outcome is one of `_OUTCOMES`."""

    outcome: str
    value: float = 0.0
    level: str | None = None
    winsorised: bool = False


def meaning_of(cell: object, field: ClinicalField, spellings: Mapping[str, str | None]) -> _Meaning:
    """Reads one cell of `field`; `spellings` as made by `ContractFile.spellings`."""
    token = token_of(cell)
    if token in spellings:
        level = spellings[token]
        return _Meaning("missing") if level is None else _Meaning("known", level=level)
    if field.kind != "number":
        return _Meaning("unmapped")
    number = number_of(token)
    if number is None:
        return _Meaning("impossible" if token in ("inf", "-inf", "infinity", "-infinity") else "unmapped")
    assert field.range is not None and field.winsor is not None
    if not field.range[0] <= number <= field.range[1] or (field.whole and number != int(number)):
        return _Meaning("impossible")
    moved = min(max(number, field.winsor[0]), field.winsor[1])
    return _Meaning("known", value=moved, winsorised=moved != number)


def features_of(meaning: _Meaning, field: ClinicalField) -> list[float]:
    """The features of one cell, in the order of `field.feature_names`: 0 everywhere and missing = 1 when not known."""
    known = meaning.outcome == "known"
    if field.kind == "flag":
        parts = [float(meaning.level == "yes")]
    else:
        parts = [float(meaning.level == level) for level in field.levels]
        if field.kind == "number":
            value = (meaning.value - field.center) / field.scale if known and meaning.level is None else 0.0
            parts.insert(0, value)
    return [*parts, float(not known)]


def encode_column(
    column: pd.Series | None, field: ClinicalField, spellings: Mapping[str, str | None], *, rows: int
) -> tuple[NDArray[np.float32], FieldCounts]:
    """Features [N, width of the field] and counts of one column; None stands for a column that is not there.

    Each distinct cell is read once, so a table of a million rows costs about as much as its distinct values.
    """
    import pandas as pd  # half a second that only an importer needs

    absent = column is None
    if column is None:
        column = pd.Series([None] * rows, dtype=object)
    codes, uniques = pd.factorize(column.astype(object), use_na_sentinel=False)
    meanings = [meaning_of(cell, field, spellings) for cell in uniques]
    width = len(field.feature_names)
    table = np.array([features_of(m, field) for m in meanings], dtype=np.float32).reshape(-1, width)
    outcome_N = np.array([_OUTCOMES.index(m.outcome) for m in meanings], dtype=np.int8)[codes]
    winsorised_N = np.array([m.winsorised for m in meanings], dtype=bool)[codes]
    known, missing, impossible, unmapped = np.bincount(outcome_N, minlength=len(_OUTCOMES)).tolist()
    bad = np.flatnonzero(outcome_N >= _OUTCOMES.index("impossible"))
    counts = FieldCounts(
        known=known, missing=missing, impossible=impossible, unmapped=unmapped, winsorised=int(winsorised_N.sum()),
        absent=absent,
        first_bad_row=int(bad[0]) + 1 if bad.size else None,
    )  # fmt: skip
    return table[codes], counts
