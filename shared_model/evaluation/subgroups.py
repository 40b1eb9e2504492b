"""A model in subgroups of women, at the global threshold, with small groups suppressed; used by reports. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared_model.evaluation.auc import auc_interval
from shared_model.evaluation.operating import operating_point
from shared_model.lesion_types import LESION_TYPE, NO_CANCER
from shared_model.readings import READINGS

if TYPE_CHECKING:
    import pandas as pd

SUPPRESS_BELOW = 10  # women: fewer could be recognised by those who know who was there
MAX_LEVELS = 20  # a column with more (an identifier, a date) makes no subgroups
UNKNOWN = "unknown"
AGE_BANDS = ((50, "under 50"), (60, "50-59"), (70, "60-69"), (np.inf, "70 and over"))


def subgroup_table(
    labels: ArrayLike, scores: ArrayLike, attributes: pd.DataFrame, *, confidence: float, threshold: float | None = None
) -> list[dict[str, Any]]:
    """One row for each level of each attribute, in the order of columns and then of levels.

    Attributes in words make groups as they are, `age_years` by decade; other numbers and columns of more than
    `MAX_LEVELS` levels make none. Groups of fewer than `SUPPRESS_BELOW` women say only that they exist; where one group
    of an attribute is suppressed, so is the next smallest, or the total would give the first away.

    Levels of `lesion_type` are cancers: each is judged against all women without cancer, who are in every one of its
    rows, so that its size, for suppression, is its number of cancers.

    Args:
        threshold: the model's one threshold, from other women: sensitivity and specificity of each group are at it, not
            at a threshold of the group's own. None: neither is stated.

    Raises:
        ValueError: `attributes` has another number of rows than `labels`.
    """
    y, s = np.asarray(labels), np.asarray(scores)
    if len(attributes) != len(y):
        raise ValueError(f"attributes of {len(attributes)} patients for scores of {len(y)}")
    rows: list[dict[str, Any]] = []
    for name in attributes.columns:
        groups = _levels(str(name), attributes[name].tolist())
        counted = y == 1 if name == LESION_TYPE else np.ones(len(y), dtype=bool)
        hidden = _hidden({level: int((members & counted).sum()) for level, members in groups.items()})
        for level, members in groups.items():
            cell = {"suppressed": True} if level in hidden else _cell(y[members], s[members], confidence, threshold)
            rows.append({"name": str(name), "level": level, **cell})
    return rows


def _hidden(sizes: Mapping[str, int]) -> set[str]:
    """Levels that are not shown; never exactly one of several."""
    hidden = {level for level, n in sizes.items() if n < SUPPRESS_BELOW}
    if len(hidden) == 1 and len(sizes) > 1:
        hidden.add(min((level for level in sizes if level not in hidden), key=lambda level: sizes[level]))
    return hidden


def row_size(row: Mapping[str, Any]) -> int:
    """Of how many women a row of :func:`subgroup_table` tells something that others do not: what suppression counts."""
    return int(row.get("positives" if row["name"] == LESION_TYPE else "n", 0))


def _levels(name: str, values: list[object]) -> Mapping[str, NDArray[np.bool_]]:
    if name == LESION_TYPE:
        return _lesion_levels(values)
    if name in READINGS:  # decided at the read that the model is to make: no women whom anybody could pick beforehand
        return {}
    numbers = any(isinstance(v, float | int) and not isinstance(v, bool) and v == v for v in values)
    if numbers and name != "age_years":
        return {}
    words = np.array([_band(v) if numbers else _word(v) for v in values], dtype=object)
    order = [band for _, band in AGE_BANDS] if numbers else sorted(set(words) - {UNKNOWN})
    found = [level for level in [*order, UNKNOWN] if (words == level).any()]
    if len(found) > MAX_LEVELS or found == [UNKNOWN]:
        return {}
    return {level: words == level for level in found}


def _lesion_levels(values: list[object]) -> Mapping[str, NDArray[np.bool_]]:
    """Each kind with all women without cancer. Cancers of an unknown kind are a level from `SUPPRESS_BELOW` on: they
    are what is missing and no kind, and a few of them must not hide the smallest kind."""
    words = np.array([_word(v) for v in values], dtype=object)
    found = sorted(set(words) - {UNKNOWN, NO_CANCER})
    if not found:
        return {}
    if (words == UNKNOWN).sum() >= SUPPRESS_BELOW:
        found.append(UNKNOWN)
    return {level: (words == level) | (words == NO_CANCER) for level in found}


def _word(value: object) -> str:
    return UNKNOWN if value is None or value != value or value == "" else str(value)


def _band(value: object) -> str:
    if not isinstance(value, float | int) or value != value:
        return UNKNOWN
    return next(band for limit, band in AGE_BANDS if value < limit)


def _cell(y: NDArray[Any], s: NDArray[Any], confidence: float, threshold: float | None) -> dict[str, Any]:
    auc = auc_interval(y, s, confidence=confidence)
    cell: dict[str, Any] = {
        "n": len(y), "positives": int(y.sum()), "auc": auc.value, "auc_low": auc.low, "auc_high": auc.high,
    }  # fmt: skip
    if threshold is not None:
        point = operating_point(y, s, threshold=threshold, confidence=confidence)
        for what, share in (("sensitivity", point.sensitivity), ("specificity", point.specificity)):
            cell |= {what: share.value, f"{what}_low": share.low, f"{what}_high": share.high}
    return cell


def subgroup_members(name: str, values: list[object]) -> Mapping[str, NDArray[np.bool_]]:
    """Members by level of one attribute, bool [N], by the rules of :func:`subgroup_table`; small levels among them."""
    return _levels(name, values)
