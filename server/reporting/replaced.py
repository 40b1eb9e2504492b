"""What a report says of `replacement.json`: whether the model replaces the one that its study began from, or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from server.reporting.facts import Facts, mapping, read_object
from server.reporting.replacement import REPLACEMENT
from shared_model.errors import StorageError

FIELDS: Final = frozenset({"replaces", "old", "new", "comparisons", "drift"})


def replacement_part(facts: Facts) -> dict[str, Any]:
    """Values for `replacement.html.j2`: `replacement`, empty where nobody has judged.

    Raises:
        StorageError: the file is damaged, or judges another study's model.
    """
    path, terms = facts.run_dir / REPLACEMENT, facts.protocol.replacement
    if not path.is_file():
        return {"replacement": {}}
    document = read_object(path)
    if set(document) != FIELDS or mapping(document["new"]).get("study") != facts.protocol.study or terms is None:
        raise StorageError(f"{path} does not judge this study's model", found=mapping(document.get("new")).get("study"),
                           expected=facts.protocol.study,
                           remedy="take it away, or judge again: `mammofed server judge`")  # fmt: skip
    return {"replacement": {**document, "why": _why(document["comparisons"]),
                            "least_positives": terms.least_positives}}  # fmt: skip


def _why(rows: Sequence[Mapping[str, Any]]) -> str:
    """Where it was not shown to be not inferior; overall a place that could not be judged counts as well."""
    wanting = [row for row in rows if row["verdict"] == "not shown"
               or (row["where"] == "overall" and row["verdict"] != "not inferior")]  # fmt: skip
    places = [row["name"] if row["where"] == "overall" else f"{row['where']} {str(row['name']).replace('_', ' ')}"
              for row in wanting]  # fmt: skip
    return f"not shown to be not inferior for {', '.join(places)}" if places else "nothing was judged"
