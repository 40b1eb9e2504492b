"""For whom the model works less well, in a sentence for the answers of studies and of comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from server.reporting.claims import interval
from server.reporting.words import level, women
from shared_model.evaluation.gain import too_few


def for_whom(rows: Sequence[Mapping[str, Any]], auc: float | None) -> str:
    """The sentence; empty without subgroups or without an AUC of all women.

    Args:
        rows: of `subgroups.subgroup_table`, counts of few women None (`server.rounds.withheld`).
        auc: of all women together, in [0, 1].

    >>> for_whom([{"name": "density", "level": "d", "suppressed": True}], 0.8)
    'No subgroup of the held-out women is large enough to judge.'
    """
    if not rows or auc is None:
        return ""
    told = [row for row in rows if row.get("auc_high") is not None]
    large = sum(row.get("positives") is not None and not too_few(row["n"], row["positives"]) for row in told)
    if not large:
        return "No subgroup of the held-out women is large enough to judge."
    low = {(row["n"], row["positives"], row["auc"]): row for row in reversed(told) if row["auc_high"] < auc}
    if not low:
        return ("No subgroup of the held-out women has an AUC clearly below that of all women together "
                f"(large enough to judge: {large} of {len(rows)}).")  # fmt: skip
    groups = "; ".join(
        f"{row['name'].replace('_', ' ')} {level(row)}: AUC {interval(row, 'auc')}, n = {women(row['n'])} "
        f"({women(row['positives'])} with cancer)" for row in reversed(low.values())  # the same women named twice once
    )  # fmt: skip
    return f"It works less well for some (interval wholly below the AUC of all women): {groups}."
