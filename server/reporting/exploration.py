"""The page of an exploration: the counts of all sites together, and what protects them; called by `report`.

An exploration trains nothing and opens no test, so that a study's page would say untrue things of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.reporting.facts import Facts
from server.reporting.words import template
from server.rounds.explore import FILE, read_exploration


def render_exploration(facts: Facts) -> str:
    """The page as text; the same facts give the same bytes.

    Raises:
        StorageError: `exploration.json` cannot be read.
    """
    found = read_exploration(facts.run_dir) if (facts.run_dir / FILE).exists() else None
    return template("exploration.html.j2").render(
        facts=facts, protocol=facts.protocol, summary=facts.summary, found=found, answer=_answer(facts, found),
        rows=[] if found is None else _rows(found),
    )


def _answer(facts: Facts, found: Mapping[str, Any] | None) -> str:
    asked = len(facts.protocol.federation.sites)
    if found is None:
        return f"This exploration is {facts.summary.get('status', 'INCOMPLETE')}: there are no counts."
    how = "exact" if found["exact"] else f"each with noise of standard deviation {found['noise_std']:.3g}"
    return f"The women of {len(found['sites'])} of {asked} sites, counted together, {how}."


def _rows(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(what, value, women) of every cell; what a site's few women would show is said to be below the bound."""
    rows = []
    for histogram in found["histograms"]:
        unit = f" ({histogram['unit']})" if histogram["unit"] else ""
        for cell, count in zip(histogram["cells"], histogram["counts"], strict=True):
            shown = f"< {found['suppress_below']}" if count is None else f"{count:,.0f}"
            rows.append((histogram["name"].replace("_", " ") + unit, cell, shown))
    return rows
