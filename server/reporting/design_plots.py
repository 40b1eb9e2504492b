"""The figure of a design's report: AUC of each run or part with its interval, one under the other. Drawn as `plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from server.reporting.design_answer import run_words
from server.reporting.plots import INK, SERIES, svg

Row = Mapping[str, Any]  # name, n, auc, auc_low, auc_high, strong: drawn as a result of several


def rows_of(document: Mapping[str, Any]) -> tuple[list[Row], Mapping[str, float]]:
    """What is drawn of a design, from above, and vertical lines by label."""
    runs = {row["name"]: row for row in document["runs"]}
    if document["design"] == "cross_validation":
        fused = document["folds"]["fused"]
        rows = [_row(run_words(name), run) for name, run in runs.items()]
        rows.append(_row("mean of folds", {"n": document["women"]["tested"], **_renamed(fused, "mean")}, strong=True))
        rows += [_row(site["site"], site) for site in document["sites"]]
        return rows, {"mean of folds": fused["mean"]}
    if document["design"] == "leave_one_site_out":
        rows = [_row(f"{row['site']} left out", row) for row in document["sites"]]
        across = document["across"]
        if across is None:
            return rows, {}
        rows.append(_row("put together", {"n": document["women"]["tested"], **across}, strong=True))
        return rows, {"put together": across["auc"]}
    periods = document["periods"]
    rows = [_row(f"{row['year']} ({row['period']})", row) for row in periods["years"]]
    if periods["earlier"] is not None:
        rows.append(_row("all earlier", periods["earlier"], strong=True))
    rows.append(_row("all later", periods["later"], strong=True))
    return rows, {}


def _row(name: str, found: Mapping[str, Any], *, strong: bool = False) -> Row:
    return {"name": name, "strong": strong, **{key: found[key] for key in
            ("n", "auc", "auc_low", "auc_high")}}  # fmt: skip


def _renamed(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {f"auc{end}": found[f"{name}{end}"] for end in ("", "_low", "_high")}


def forest(rows: Sequence[Row], *, lines: Mapping[str, float], confidence: float) -> str:
    """AUCs with intervals; those of several women's groups together are diamonds. lines: label -> AUC."""
    known = [row for row in rows if row["auc"] is not None]

    def draw(axes: Axes) -> None:
        for value in lines.values():
            axes.axvline(value, color=INK, linewidth=1, linestyle=(0, (2, 3)))
        for place, row in enumerate(known):
            low, high = row["auc_low"], row["auc_high"]
            reach = None if low is None else [[row["auc"] - low], [high - row["auc"]]]
            mark, colour = ("D", SERIES["image"]) if row["strong"] else ("o", SERIES["fused"])
            axes.errorbar([row["auc"]], [place], xerr=reach, fmt=mark, color=colour, capsize=3, linewidth=1.6,
                          linestyle="none")  # fmt: skip
        axes.set_yticks(range(len(known)), [f"{row['name']}, n = {row['n']:,}" for row in known])
        axes.set_ylim(len(known) - 0.5, -0.5)
        axes.set(xlabel=f"AUC on women not trained on, {confidence:.0%} interval")

    words = "; ".join(f"{row['name']} {row['auc']:.3f}" for row in known)
    return svg("forest", draw, title="AUC by run and group", description=f"AUC: {words}.",
               size=(6.6, 1.2 + 0.42 * len(known)))  # fmt: skip
