"""Forest plot of hospitals' estimates and what they come to together. Drawn as `plots` draws; shapes tell all apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes

from server.reporting.plots import GRID, INK, SERIES, svg


def forest(rows: Mapping[str, Mapping[str, Any]], pooled: Mapping[str, Any], *, axis: str) -> str:
    """Each hospital a square with its interval, all together a diamond, a further hospital a dashed line.

    Args:
        rows: by hospital `n`, `auc`, `auc_low`, `auc_high`; those without an AUC are named and have no square.
        pooled: of them: `auc`, `auc_low`, `auc_high`, `k` (how many entered), `new_site`.
        axis: what the horizontal axis shows.
    """
    names, mean, new_site = list(rows), float(pooled["auc"]), pooled["new_site"]
    together = "all together" if pooled["k"] == len(rows) else f"{pooled['k']} of {len(rows)} together"
    ends = [mean if pooled[key] is None else float(pooled[key]) for key in ("auc_low", "auc_high")]

    def draw(axes: Axes) -> None:
        axes.axvline(mean, color=GRID, linewidth=1.2)
        for place, row in enumerate(rows.values()):
            if row.get("auc") is None:
                continue
            low, high = (row["auc"] if row.get(k) is None else row[k] for k in ("auc_low", "auc_high"))
            axes.plot([low, high], [place, place], color=INK, linewidth=1.4)
            axes.plot([row["auc"]], [place], "s", color=INK, markersize=6)
        at = len(names) + 0.2
        axes.fill([ends[0], mean, ends[1], mean], [at, at - 0.28, at, at + 0.28], color=SERIES["fused"])
        labels, places = [_label(name, row) for name, row in rows.items()] + [together], [*range(len(names)), at]
        if new_site is not None:
            axes.plot(new_site, [at + 0.8, at + 0.8], "--|", color=SERIES["fused"], linewidth=1.6, markersize=9)
            labels, places = [*labels, "a further hospital"], [*places, at + 0.8]
        axes.set_yticks(places, labels)
        axes.set_ylim(places[-1] + 0.6, -0.6)
        axes.set(xlabel=axis)

    words = "; ".join(f"{name} {row['auc']:.3f}" for name, row in rows.items() if row.get("auc") is not None)
    words += f"; {together} {mean:.3f} ({ends[0]:.3f} to {ends[1]:.3f})"
    return svg("forest", draw, title="Hospitals and all together", description=words,
               size=(6.6, 1.8 + 0.42 * (len(names) + 2)))  # fmt: skip


def _label(name: str, row: Mapping[str, Any]) -> str:
    n = row.get("n")
    return f"{name} (n = {n:,.0f})" if isinstance(n, (int, float)) else name
