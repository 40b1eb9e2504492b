"""AUC by subgroup, with small groups suppressed; used by the test report. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared_model.evaluation.auc import auc_interval

if TYPE_CHECKING:
    import pandas as pd

SUPPRESS_BELOW = 10  # women: fewer could be recognised by those who know who was there
MAX_LEVELS = 20  # a column with more (an identifier, a date) makes no subgroups
UNKNOWN = "unknown"
AGE_BANDS = ((50, "under 50"), (60, "50-59"), (70, "60-69"), (np.inf, "70 and over"))


def subgroup_table(
    labels: ArrayLike, scores: ArrayLike, attributes: pd.DataFrame, *, confidence: float
) -> list[dict[str, Any]]:
    """One row for each level of each attribute, in the order of columns and then of levels.

    Attributes in words make groups as they are, `age_years` by decade; other numbers and columns of more than
    `MAX_LEVELS` levels make none. Groups of fewer than `SUPPRESS_BELOW` women say only that they exist.

    Raises:
        ValueError: `attributes` has another number of rows than `labels`.
    """
    y, s = np.asarray(labels), np.asarray(scores)
    if len(attributes) != len(y):
        raise ValueError(f"attributes of {len(attributes)} patients for scores of {len(y)}")
    rows: list[dict[str, Any]] = []
    for name in attributes.columns:
        groups = _levels(str(name), attributes[name].tolist())
        for level, members in groups.items():
            rows.append({"name": str(name), "level": level, **_cell(y[members], s[members], confidence)})
    return rows


def _levels(name: str, values: list[object]) -> Mapping[str, NDArray[np.bool_]]:
    numbers = any(isinstance(v, float | int) and not isinstance(v, bool) and v == v for v in values)
    if numbers and name != "age_years":
        return {}
    words = np.array([_band(v) if numbers else _word(v) for v in values], dtype=object)
    order = [band for _, band in AGE_BANDS] if numbers else sorted(set(words) - {UNKNOWN})
    found = [level for level in [*order, UNKNOWN] if (words == level).any()]
    if len(found) > MAX_LEVELS or found == [UNKNOWN]:
        return {}
    return {level: words == level for level in found}


def _word(value: object) -> str:
    return UNKNOWN if value is None or value != value or value == "" else str(value)


def _band(value: object) -> str:
    if not isinstance(value, float | int) or value != value:
        return UNKNOWN
    return next(band for limit, band in AGE_BANDS if value < limit)


def _cell(y: NDArray[Any], s: NDArray[Any], confidence: float) -> dict[str, Any]:
    if len(y) < SUPPRESS_BELOW:
        return {"suppressed": True}
    auc = auc_interval(y, s, confidence=confidence)
    return {"n": len(y), "positives": int(y.sum()), "auc": auc.value, "auc_low": auc.low, "auc_high": auc.high}


def subgroup_members(name: str, values: list[object]) -> Mapping[str, NDArray[np.bool_]]:
    """Members by level of one attribute, bool [N], by the rules of :func:`subgroup_table`; small levels among them."""
    return _levels(name, values)
