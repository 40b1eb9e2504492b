"""Writes `report.html` of a run directory: the answer in a sentence first, then what stands behind it.

Called by the launcher at the end of a study and again whenever somebody asks. The page needs nothing from outside:
style and figures are inside it, and a content security policy forbids the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from server.reporting import evidence_plots, plots
from server.reporting.answer import answer, model_rows, unheard_sites
from server.reporting.data_words import data_words
from server.reporting.exploration import render_exploration
from server.reporting.facts import Facts, mapping, read_facts
from server.reporting.federated import federated_parts
from server.reporting.replaced import replacement_part
from server.reporting.study_evidence import evidence_parts
from server.reporting.words import template, write_page

MAX_STRIP_CELLS = 20_000  # sites x rounds drawn one by one; above, the counts alone
SITE_METRICS = ("auc", "sensitivity", "specificity", "brier", "n", "positives")
OUTCOMES = ("contributed", "abstained", "late", "refused", "failed", "not_sampled")


def write_report(run_dir: Path) -> Path:
    """Write the report into `run_dir` and return its path.

    Raises:
        StorageError: summary or journal cannot be read, or the report cannot be written.
        ProtocolError: the frozen protocol cannot be read or was changed.
    """
    return write_page(run_dir, render(read_facts(run_dir)))


def render(facts: Facts) -> str:
    """The page as text; the same facts give the same bytes."""
    if facts.protocol.exploration is not None:
        return render_exploration(facts)
    patients = {site.name: site.patients for site in facts.protocol.federation.sites}
    sites_metrics = _sites_metrics(facts)
    return template("report.html.j2").render(
        facts=facts, summary=facts.summary, protocol=facts.protocol,
        answer=answer(facts.summary, facts.protocol, data=facts.data),
        models=model_rows(facts.summary, facts.protocol), unheard=unheard_sites(facts.summary),
        comparisons=_comparisons(facts), figures=_figures(facts),
        strip=_strip(facts),
        counts=participation_counts(facts), outcomes=OUTCOMES, subgroups=facts.held_out.get("subgroups") or [],
        other_deltas=other_deltas(facts), sites_metrics=sites_metrics, patients=patients,
        site_metric_names=[n for n in SITE_METRICS if any(n in row for _, row in sites_metrics)],
        site_sizes=", ".join(f"{patients[site]:,}" for site in facts.sites), curve_rows=_curve_rows(facts),
        fused=mapping(mapping(facts.held_out.get("models")).get("fused")), data=data_words(facts.data),
        versions=mapping(facts.summary.get("versions")), model=mapping(facts.summary.get("model")),
        **evidence_parts(facts), **federated_parts(facts),
        **replacement_part(facts),
    )  # fmt: skip


def participation_counts(facts: Facts) -> dict[str, Mapping[str, int]]:
    """Rounds by outcome for each site, counted from the journal (the last attempt of each round)."""
    counts = {site: Counter[str]() for site in facts.sites}
    for (site, _), outcome in facts.participation.items():
        counts.setdefault(site, Counter())[outcome] += 1
    return dict(counts)


def other_deltas(facts: Facts) -> list[str]:
    """The deltas, as written, at which epsilon is stated besides the protocol's own; greatest first."""
    found = {delta for row in facts.other_deltas.values() for delta in row}
    return sorted(found, key=float, reverse=True)


def _comparisons(facts: Facts) -> list[dict[str, Any]]:
    """Those that `evidence` does not have with more said of them."""
    rows, further = (mapping(found) for found in (facts.held_out.get("comparisons"), mapping(
        facts.held_out.get("evidence")).get("pairs")))  # fmt: skip
    return [{"key": name, **row} for name, row in rows.items() if row and name not in further]


def _figures(facts: Facts) -> dict[str, Markup]:
    # Markup: our own SVG, whose every text came through an escaping writer.
    figures = {}
    rows = {row["key"]: row for row in model_rows(facts.summary, facts.protocol)}
    if facts.curves:
        chosen = mapping(facts.summary.get("model")).get("round")
        figures["learning"] = Markup(plots.learning_curves(facts.curves, chosen=chosen or None))  # noqa: S704
    curves = {name: row["roc"] for name, row in rows.items() if row.get("roc")}
    if curves:
        figures["roc"] = Markup(plots.roc(curves, auc={name: rows[name]["auc"] for name in curves}))  # noqa: S704
    evidence = mapping(facts.held_out.get("evidence"))
    if curve := mapping(mapping(evidence.get("models")).get("fused")).get("decision"):
        figures["decision"] = Markup(  # noqa: S704
            evidence_plots.decision(curve, prevalence=evidence["prevalence"])
        )
    fused = rows.get("fused", {})
    if fused.get("calibration"):
        figures["calibration"] = Markup(  # noqa: S704
            plots.calibration(fused["calibration"], slope=fused.get("calibration_slope"), ece=fused.get("ece"))
        )
    return figures


def _strip(facts: Facts) -> list[tuple[str, list[tuple[int, str, str]]]]:
    """Participation as (site, [(round, outcome, words)]); empty when it has too many cells to draw."""
    rounds = range(1, max((number for _, number in facts.participation), default=0) + 1)
    if len(rounds) * len(facts.sites) > MAX_STRIP_CELLS:
        return []
    return [
        (site, [(r, facts.participation.get((site, r), ""), facts.reasons.get((site, r), "")) for r in rounds])
        for site in facts.sites
        if rounds
    ]


def _sites_metrics(facts: Facts) -> list[tuple[str, Mapping[str, Any]]]:
    rows = mapping(mapping(facts.summary.get("metrics")).get("sites"))
    # Without privacy a site's document is a whole `test` report; its fused model is what compares with the histogram's.
    flat = {site: {**row, **mapping(mapping(row.get("models")).get("fused"))} for site, row in rows.items()}
    return sorted(flat.items())


def _curve_rows(facts: Facts) -> list[tuple[int, list[float | None]]]:
    values = [dict(zip(curve.rounds, curve.values, strict=True)) for curve in facts.curves]
    return [(r, [curve.get(r) for curve in values]) for r in sorted({r for curve in values for r in curve})]
