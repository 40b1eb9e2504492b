"""The report's figures as inline SVG: matplotlib draws, the page's style sheet colours (for light and dark).

Text stays text (searchable, read aloud), ids are prefixed by the figure's name so that several figures share one page,
and the same numbers give the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from server.reporting.facts import Curve
from server.reporting.words import MODELS
from shared_model.evaluation.operating import wilson

# Colours that no figure uses otherwise; each is replaced by a variable of the style sheet.
INK, GRID = "#010203", "#010204"
SERIES = {"fused": "#010205", "image": "#010206", "clinical": "#010207", "public": "#010208"}
VARIABLES = {INK: "currentColor", GRID: "var(--grid)"} | {colour: f"var(--{name})" for name, colour in SERIES.items()}
LEAST_JOINED = 20  # women a dot of the reliability diagram: dots of fewer jump about, and a line would draw a shape
DASHES = {"fused": "-", "image": "--", "clinical": "-.", "public": ":"}  # told apart without colour as well
LABELS = {name: label[0].lower() + label[1:] for name, label in MODELS.items()}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 11.0, "text.color": INK, "axes.labelcolor": INK,
    "axes.edgecolor": GRID, "xtick.color": INK, "ytick.color": INK, "grid.color": GRID, "axes.grid": True,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "lines.linewidth": 2.0,
}  # fmt: skip


def learning_curves(curves: Sequence[Curve], *, chosen: int | None) -> str:
    """AUC on `selection` by round. chosen: the round whose model was kept, marked by a vertical line."""

    def draw(axes: Axes) -> None:
        for curve in curves:
            axes.plot(
                curve.rounds, curve.values, DASHES[curve.model], color=SERIES[curve.model], label=LABELS[curve.model],
                marker="o" if len(curve.rounds) <= 30 else "", markersize=4,
            )  # fmt: skip
        if chosen is not None:
            axes.axvline(chosen, color=INK, linewidth=1, linestyle=(0, (2, 3)))
            axes.annotate(
                "chosen", (chosen, 1.0), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=9
            )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="round", ylabel="AUC on the held-out selection split")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=len(curves))

    last = ", ".join(f"{LABELS[curve.model]} {curve.values[-1]:.3f}" for curve in curves)
    return svg("learning", draw, title="Learning curves", size=(6.6, 4.2),
                description=f"AUC by round; at the last round: {last}.")  # fmt: skip


def roc(
    points: Mapping[str, Sequence[Sequence[float]]], *, auc: Mapping[str, float], labels: Mapping[str, str] = LABELS,
    name: str = "roc", title: str = "ROC on the test split",
) -> str:  # fmt: skip
    """ROC curves. points: by model, (false positive rate, true positive rate) in [0, 1]; auc, labels: by model; name:
    of the figure, its own on its page."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=GRID, linewidth=1)
        for model, curve in points.items():
            axes.plot([p[0] for p in curve], [p[1] for p in curve], DASHES[model], color=SERIES[model],
                      label=f"{labels[model]} ({auc[model]:.3f})")  # fmt: skip
        axes.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        axes.legend(loc="lower right", fontsize=9)

    words = ", ".join(f"{labels[model]} {auc[model]:.3f}" for model in points)
    return svg(name, draw, title=title, description=f"Area under the curve: {words}.", size=(5.2, 5.2))


def calibration(
    bins: Sequence[Sequence[float]], *, slope: float | None, ece: float | None, name: str = "calibration",
    title: str = "Calibration on the test split",
) -> str:  # fmt: skip
    """Reliability diagram of the fused model. bins: (mean predicted risk, observed share, patients) each; name: as in
    :func:`roc`."""

    def draw(axes: Axes) -> None:
        most = max((b[2] for b in bins), default=1.0)
        axes.plot([0, 1], [0, 1], color=GRID, linewidth=1)
        if all(b[2] >= LEAST_JOINED for b in bins):
            axes.plot([b[0] for b in bins], [b[1] for b in bins], color=SERIES["fused"])
        shares = [wilson(round(b[1] * b[2]), round(b[2]), confidence=0.95) for b in bins]
        axes.vlines([b[0] for b in bins], [s.low or 0.0 for s in shares], [1.0 if s.high is None else s.high
                    for s in shares], color=SERIES["fused"], linewidth=1)  # fmt: skip
        axes.scatter([b[0] for b in bins], [b[1] for b in bins], s=[20 + 120 * b[2] / most for b in bins],
                     color=SERIES["fused"], zorder=3)  # fmt: skip
        axes.set(xlabel="predicted risk", ylabel="observed share with cancer", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02),
                 aspect="equal")  # fmt: skip

    found = {"slope": slope, "calibration error": ece}
    words = "; ".join(f"{what} {value:.3f}" for what, value in found.items() if value is not None)
    return svg(name, draw, title=title, size=(5.2, 5.2),
                description=f"Observed share against predicted risk, dots sized by patients. {words}.")  # fmt: skip


def svg(name: str, draw: Any, *, title: str, description: str, size: tuple[float, float]) -> str:
    """One figure as an `<svg>` element that names and describes itself; size in inches at 72 units each."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": f"mammofed-{name}"}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        draw(axes)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{name}-", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    # width and height go, the view box stays: the page decides how wide a figure is
    head = re.sub(r' (width|height)="[^"]*"', "", svg[: svg.index(">")])
    label = f' role="img" aria-labelledby="{name}-title {name}-desc">'
    words = f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(description)}</desc>'
    return head + label + words + svg[svg.index(">") + 1 :]
