"""How the clinical tables of two cohorts differ, field by field of the data contract; needs no torch.

Population stability index (Siddiqi 2006, Credit Risk Scorecards): sum of (p - q) ln(p / q) over the parts of a field,
p and q the shares of women in the first and second cohort. By custom below 0.1 nothing of note, from 0.25 a shift. Its
chance level for B parts and n and m women is about (B - 1) (1/n + 1/m) (Yurdakul 2018), which is stated beside it.
Counts of patients go in, so this is for whoever owns both cohorts; it is not released by a site.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shared_model.cohort.cohort import Cohort
from shared_model.contract import Contract
from shared_model.errors import CohortError

NUMBER_PARTS: Final = 5  # fifths of the first cohort
SHIFT: Final = 0.25
HALF: Final = 0.5  # women added to each part, so that an empty one gives no infinite index (Jeffreys)


@dataclass(frozen=True, kw_only=True)
class FieldDrift:
    """One field. index: as in the module; chance: what equal cohorts of this size would show on average. missing: share
    of women without the field, in the first and second cohort. first, second: shares by part, named in `parts`."""

    field: str
    index: float
    chance: float
    missing: tuple[float, float]
    parts: tuple[str, ...]
    first: tuple[float, ...]
    second: tuple[float, ...]

    @property
    def shifted(self) -> bool:
        """Whether it is worth a look: beyond custom, and beyond what chance does with so few women."""
        return self.index >= SHIFT and self.index > 3 * self.chance


def drift_of(first: Cohort, second: Cohort, contract: Contract) -> tuple[FieldDrift, ...]:
    """Every field of the contract and the share of positives, greatest index first.

    Raises:
        CohortError: a cohort is empty or of another contract.
    """
    for cohort in (first, second):
        if len(cohort) == 0 or cohort.contract_sha256 != contract.sha256:
            raise CohortError(f"cohort {cohort.path} cannot be compared", found=f"{len(cohort)} women",
                              expected=f"women, prepared by contract {contract.version}")  # fmt: skip
    rows = [_field(name, contract, columns, first, second) for name, columns in contract.groups.items()]
    labels = [np.stack([1.0 - c.labels, c.labels], axis=1) for c in (first, second)]
    rows.append(_drift("label", ("no cancer", "cancer"), labels[0], labels[1], missing=(0.0, 0.0)))
    return tuple(sorted(rows, key=lambda row: (-row.index, row.field)))


def _field(name: str, contract: Contract, columns: tuple[int, ...], first: Cohort, second: Cohort) -> FieldDrift:
    tables = [cohort.clinical[:, columns] for cohort in (first, second)]
    rows = [cohort.clinical_mask for cohort in (first, second)]
    absent = [(table[:, -1] > 0.5) | ~there for table, there in zip(tables, rows, strict=True)]
    names = [contract.feature_names[c].partition(".")[2] for c in columns[:-1]]
    if len(names) == 1:  # a number or a flag
        values = [table[:, 0][~gone] for table, gone in zip(tables, absent, strict=True)]
        edges = _edges(values[0], values[1])
        parts = [f"part {i + 1}" for i in range(len(edges) + 1)]
        hot = [_parts(table[:, 0], edges, gone) for table, gone in zip(tables, absent, strict=True)]
    else:
        levels = [np.where(table[:, :-1] > 0.5, 1.0, 0.0) for table in tables]
        parts, hot = names, [level * ~gone[:, None] for level, gone in zip(levels, absent, strict=True)]
    full = [np.concatenate([h, gone[:, None]], axis=1) for h, gone in zip(hot, absent, strict=True)]
    missing = float(absent[0].mean()), float(absent[1].mean())
    return _drift(name, (*parts, "missing"), full[0], full[1], missing=missing)


def _edges(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float64]:
    """Between the values where there are few (flags, counts), else fifths of the first cohort."""
    few = np.unique(np.concatenate([first, second]).astype(np.float64))
    if len(few) <= NUMBER_PARTS or len(first) == 0:
        return (few[1:] + few[:-1]) / 2
    return np.unique(np.quantile(first.astype(np.float64), np.linspace(0, 1, NUMBER_PARTS + 1)[1:-1]))


def _parts(values: NDArray[np.float32], edges: NDArray[np.float64], gone: NDArray[np.bool_]) -> NDArray[np.float64]:
    """One-hot [N, parts]; all zero where the value is missing."""
    place = np.searchsorted(edges, values, side="left")
    return np.eye(len(edges) + 1)[place] * ~gone[:, None]


def _drift(
    name: str, parts: tuple[str, ...], first: NDArray[np.floating], second: NDArray[np.floating], *,
    missing: tuple[float, float],
) -> FieldDrift:  # fmt: skip
    counts = [table.sum(axis=0) for table in (first, second)]
    p, q = ((c + HALF) / (c + HALF).sum() for c in counts)
    shares = [c / max(float(c.sum()), 1.0) for c in counts]
    used = int(((counts[0] + counts[1]) > 0).sum())
    return FieldDrift(
        field=name, index=float(((p - q) * np.log(p / q)).sum()),
        chance=max(used - 1, 0) * (1 / len(first) + 1 / len(second)), missing=missing, parts=parts,
        first=tuple(float(x) for x in shares[0]), second=tuple(float(x) for x in shares[1]),
    )  # fmt: skip


def as_values(rows: tuple[FieldDrift, ...]) -> list[Mapping[str, object]]:
    """As JSON values."""
    return [{**row.__dict__, "shifted": row.shifted} for row in rows]
