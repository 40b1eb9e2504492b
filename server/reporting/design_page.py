"""Writes `report.html` of a design out of its `design.json`; for the design and for `mammofed report`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from server.reporting import design_plots, evidence_plots, plots
from server.reporting.data_words import data_words
from server.reporting.design_answer import NAMES, headline, next_steps, run_words, selection_words, women_words
from server.reporting.facts import read_object
from server.reporting.words import template, write_page
from shared_model.errors import StorageError

DESIGN_NAME = "design.json"
VERSION = 1


def write_design_report(run_dir: Path) -> Path:
    """Write the report of a design into `run_dir` and return its path.

    Raises:
        StorageError: `design.json` is absent, damaged or of another version, or the report cannot be written.
    """
    document = read_object(run_dir / DESIGN_NAME)
    if document.get("design_version") != VERSION or document.get("design") not in NAMES or not document.get("runs"):
        raise StorageError(f"{run_dir / DESIGN_NAME} is no result of a design", found=document.get("design_version"),
                           expected=f"design_version {VERSION} with runs",
                           remedy="make it again: `mammofed simulate resume RUN_DIR`")  # fmt: skip
    return write_page(run_dir, render_design(document))


def render_design(document: Mapping[str, Any]) -> str:
    """The page as text; the same document gives the same bytes."""
    pooled = document["pooled"]
    return template("design.html.j2", run=run_words).render(
        document=document, name=NAMES[document["design"]], answer=headline(document), women=women_words(document),
        selection=selection_words(document), data=data_words(str(document["cohort"])), steps=next_steps(document),
        before={**pooled, **pooled["before"]} if pooled else None, figures=_figures(document),
        left_out=document["design"] == "leave_one_site_out",
    )  # fmt: skip


def _figures(document: Mapping[str, Any]) -> dict[str, Markup]:
    # Markup: our own SVG, whose every text came through an escaping writer.
    rows, lines = design_plots.rows_of(document)
    figures = {"forest": design_plots.forest(rows, lines=lines, confidence=document["confidence"])}
    if pooled := document["pooled"]:
        figures["calibration"] = plots.calibration(pooled["calibration"], slope=pooled["calibration_slope"],
                                                   ece=pooled["ece"])  # fmt: skip
        if pooled["decision"]:
            figures["decision"] = evidence_plots.decision(pooled["decision"], prevalence=document["prevalence"])
    return {name: Markup(svg) for name, svg in figures.items()}  # noqa: S704
