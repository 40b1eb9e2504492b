"""Figures of the comparison's report: gains by hospital with intervals, decision curve. Drawn as `plots` draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from server.reporting.plots import GRID, INK, SERIES, svg

MARKS = ("o", "s", "D", "^", "v")  # arms are told apart by shape as well as by colour
COLOURS = tuple(SERIES.values())


def gains(rows: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Difference in AUC against the hospital's own model, by hospital and arm, with intervals; zero is a line.

    rows: arm -> hospital -> `difference`, `difference_low`, `difference_high`.
    """
    sites = sorted({site for arm in rows.values() for site in arm})

    def draw(axes: Axes) -> None:
        axes.axvline(0, color=INK, linewidth=1, linestyle=(0, (2, 3)))
        for place, (arm, found) in enumerate(rows.items()):
            offset = (place - (len(rows) - 1) / 2) * 0.22
            known = [(i, found[site]) for i, site in enumerate(sites) if site in found]
            known = [(i, row) for i, row in known if row["difference_low"] is not None]
            if not known:
                continue
            x = [row["difference"] for _, row in known]
            reach = [[row["difference"] - row["difference_low"] for _, row in known],
                     [row["difference_high"] - row["difference"] for _, row in known]]  # fmt: skip
            axes.errorbar(x, [i + offset for i, _ in known], xerr=reach, fmt=MARKS[place % len(MARKS)], capsize=3,
                          color=COLOURS[place % len(COLOURS)], label=arm.replace("_", " "), linewidth=1.6,
                          linestyle="none")  # fmt: skip
        axes.set_yticks(range(len(sites)), sites)
        axes.set_ylim(len(sites) - 0.5, -0.5)
        axes.set(xlabel="AUC of the shared model minus that of the hospital's own")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=max(len(rows), 1))

    words = "; ".join(
        f"{arm}, {site} {row['difference']:+.3f}"
        for arm, found in rows.items() for site, row in found.items() if row["difference"] is not None
    )  # fmt: skip
    return svg("gains", draw, title="Gain by hospital", description=words, size=(6.6, 1.8 + 0.75 * len(sites)))


def decision(curve: Sequence[Sequence[float]], *, prevalence: float) -> str:
    """Net benefit by threshold probability, per 1,000 women. curve: [threshold, model, recalling all] each."""

    def draw(axes: Axes) -> None:
        x = [100 * row[0] for row in curve]
        axes.axhline(0, color=GRID, linewidth=1.5, label="recall none")
        axes.plot(x, [1000 * row[2] for row in curve], ":", color=SERIES["public"], label="recall all")
        axes.plot(x, [1000 * row[1] for row in curve], "-o", color=SERIES["fused"], markersize=4, label="shared model")
        top = 1000 * prevalence
        axes.set(xlabel="threshold probability, %", ylabel="net benefit, cancers per 1,000 women",
                 ylim=(-0.35 * top, 1.1 * top))  # fmt: skip
        axes.legend(loc="upper right", fontsize=9)

    best = ", ".join(f"{100 * row[0]:g} %: {1000 * row[1]:.2f}" for row in curve)
    return svg("decision", draw, title="Decision curve", description=f"Net benefit per 1,000 women at {best}.",
               size=(5.2, 4.4))  # fmt: skip
