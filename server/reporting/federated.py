"""What hospitals' own women say without a score having left one: values of the report's section, from the summary.

Joint histograms of all of them together (`metrics.joint`), and the hospitals' own results put together by random
effects. Tables in which small cells were withheld give no AUC here: what is missing is not missing at random.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from markupsafe import Markup

from server.reporting import federated_plots, plots
from server.reporting.facts import Facts, mapping
from server.reporting.words import MODELS, PAIRS
from shared_model.evaluation.auc import Interval
from shared_model.evaluation.meta import Pooled, pooled_difference, pooled_share

AXIS: Final = "AUC at the hospital, its own test women"


def federated_parts(facts: Facts) -> dict[str, Any]:
    """Values for `federated.html.j2`, all under the name `federated`."""
    metrics, confidence = mapping(facts.summary.get("metrics")), facts.protocol.evaluation.confidence
    joint, sites = mapping(metrics.get("joint")), mapping(metrics.get("sites"))
    rows = {site: {**mapping(row), **mapping(mapping(mapping(row).get("models")).get("fused"))}
            for site, row in sorted(sites.items())}  # fmt: skip
    across = pooled_share([_interval(row, "auc") for row in rows.values()], confidence=confidence) if rows else None
    figures = {}
    # Markup: our own SVG, whose every text came through an escaping writer.
    if curves := {name: row["roc"] for name, row in mapping(joint.get("models")).items() if row.get("roc")}:
        figures["roc"] = Markup(plots.roc(  # noqa: S704
            curves, auc={name: joint["models"][name]["auc"] for name in curves}, name="joint-roc",
            title="ROC on the hospitals' own test women",
        ))  # fmt: skip
    if bins := mapping(mapping(joint.get("models")).get("fused")).get("calibration"):
        figures["calibration"] = Markup(plots.calibration(  # noqa: S704
            bins, slope=joint["models"]["fused"]["calibration_slope"], ece=None, name="joint-calibration",
            title="Calibration on the hospitals' own test women",
        ))  # fmt: skip
    if across is not None and across.k > 1:
        figures["forest"] = Markup(  # noqa: S704
            federated_plots.forest(rows, pooled_row(across, "auc"), axis=AXIS)
        )
    return {"federated": {
        "joint": joint, "models": [(MODELS[name], row) for name, row in mapping(joint.get("models")).items()],
        "pairs": [(PAIRS[name], row) for name, row in mapping(joint.get("pairs")).items()],
        "across": pooled_row(across, "auc"), "left_out": _left_out(rows, across),
        "gaps": _gaps(sites, confidence), "figures": figures, "who": _who(rows),
    }}  # fmt: skip


def pooled_row(found: Pooled | None, name: str) -> dict[str, Any]:
    """A pooled estimate as a row: `name`, `name_low`, `name_high`, k, tau2, i2, new_site; empty where there is none."""
    if found is None:
        return {}
    mean = found.mean
    return {name: mean.value, f"{name}_low": mean.low, f"{name}_high": mean.high, "k": found.k, "tau2": found.tau2,
            "i2": found.i2, "new_site": found.new_site}  # fmt: skip


def _gaps(sites: Mapping[str, Any], confidence: float) -> list[tuple[str, dict[str, Any]]]:
    """Paired differences at the hospitals, put together; those that released none do not enter."""
    found = []
    for name, label in PAIRS.items():
        rows = [mapping(mapping(mapping(row).get("comparisons")).get(name)) for row in sites.values()]
        known = [Interval(row.get("difference"), row.get("low"), row.get("high")) for row in rows if row]
        pooled = pooled_difference(known, confidence=confidence)
        if pooled is not None and pooled.k > 1:
            found.append((label, pooled_row(pooled, "difference") | {"p": pooled.p}))
    return found


def _who(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Hospitals with their numbers of women, as far as these may be said."""
    return ", ".join(f"{site} n = {row['n']:,.0f}" if isinstance(row.get("n"), (int, float)) else site
                     for site, row in rows.items())  # fmt: skip


def _left_out(rows: Mapping[str, Mapping[str, Any]], across: Pooled | None) -> list[str]:
    """Hospitals whose AUC has no interval to be weighed by, or one that reaches 0 or 1."""
    if across is None or across.k == len(rows):
        return []
    return [site for site, row in rows.items() if not _enters(row)]


def _enters(row: Mapping[str, Any]) -> bool:
    bounds: Iterable[Any] = (row.get("auc_low"), row.get("auc"), row.get("auc_high"))
    return all(isinstance(x, (int, float)) and 0 < x < 1 for x in bounds)


def _interval(row: Mapping[str, Any], name: str) -> Interval:
    return Interval(row.get(name), row.get(f"{name}_low"), row.get(f"{name}_high"))
