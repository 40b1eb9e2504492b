"""How well the model did, out of a run directory's summary into the passport; groups too small stay without figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from server.reporting.facts import Facts, mapping
from shared_model.passport.document import MAX_GROUPS, Difference, Group, MetricsPart, Score

NAMES: Final = tuple(name for name in Score.model_fields if name not in ("n", "positives"))


def metrics_part(facts: Facts) -> MetricsPart:
    """Held-out result by model, comparisons, subgroups, and what each site released."""
    held_out = facts.held_out
    counts = {name: held_out.get(name) for name in ("n", "positives")}
    models = {**mapping(held_out.get("models")), "initial": held_out.get("public_weights")}
    comparisons = mapping(held_out.get("comparisons")).items()
    sites = mapping(mapping(facts.summary.get("metrics")).get("sites"))
    return MetricsPart(
        confidence=facts.protocol.evaluation.confidence,
        test={name: score_of({**mapping(row), **counts}) for name, row in models.items() if mapping(row)},
        comparisons=tuple(Difference(name=name, **{k: row.get(k) for k in ("difference", "low", "high", "p")})
                          for name, row in comparisons if mapping(row)),
        groups=tuple(_group(row) for row in (held_out.get("subgroups") or [])[:MAX_GROUPS]),
        # Without privacy a site's document is a whole `test` report; its fused model compares with the histogram's.
        sites={site: score_of({**row, **mapping(mapping(row.get("models")).get("fused"))})
               for site, row in sorted(sites.items()) if mapping(row)},
    )  # fmt: skip


def score_of(row: Mapping[str, Any]) -> Score:
    """A row of an evaluation document, what it does not have as None."""
    values = {name: row.get(name) for name in NAMES}
    return Score(n=row.get("n"), positives=row.get("positives"), **values)


def _group(row: Mapping[str, Any]) -> Group:
    shown = None if row.get("suppressed") else score_of(row)
    return Group(name=str(row["name"]), level=str(row["level"]), score=shown)
