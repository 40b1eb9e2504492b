"""Writes `report.html` of a comparison out of its `evidence.json`; for the comparison and for `mammofed report`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from server.reporting import evidence_plots, federated_plots, plots
from server.reporting.checklists import CLAIM, TRIPOD_AI, checklist, counted
from server.reporting.claims import claims, contradictions
from server.reporting.data_words import data_words
from server.reporting.evidence_answer import headline, women
from server.reporting.facts import read_object
from server.reporting.federated import AXIS
from server.reporting.maps import arms_part
from server.reporting.words import template, write_page
from shared_model.errors import StorageError

EVIDENCE_NAME = "evidence.json"
VERSION = 1
MODEL_NAMES = (
    ("public_only", "Public weights only, no hospital data"), ("logistic", "Logistic regression, pooled table"),
    ("clinical_only", "Federated, table only"), ("image_only", "Federated, films only"),
    ("pooled", "Pooled in one place, films + table"), ("federated", "Shared model: federated, films + table"),
)  # fmt: skip
ARM_CURVES = ("fused", "image", "clinical", "public")  # line styles of `plots`, lent to up to four arms


def write_evidence_report(run_dir: Path) -> Path:
    """Write the report of a comparison into `run_dir` and return its path.

    Raises:
        StorageError: `evidence.json` is absent, damaged or of another version, or the report cannot be written.
    """
    document = read_object(run_dir / EVIDENCE_NAME)
    if document.get("evidence_version") != VERSION or not document.get("arms"):
        raise StorageError(f"{run_dir / EVIDENCE_NAME} is not the evidence of a comparison",
                           found=document.get("evidence_version"), expected=f"evidence_version {VERSION} with arms",
                           remedy="make it again: `mammofed simulate resume RUN_DIR`")  # fmt: skip
    return write_page(run_dir, render_evidence(document))


def render_evidence(document: Mapping[str, Any]) -> str:
    """The page as text; the same document gives the same bytes."""
    arms = document["arms"]
    plain = next(iter(arms))
    facts = artefacts(document)
    tripod, claim = checklist(TRIPOD_AI, facts), checklist(CLAIM, facts)
    data = data_words(str(document["cohort"]))
    return template("evidence.html.j2").render(
        document=document, plain=plain, answer=headline(document), women=women(document), data=data,
        claims=_claims(arms[plain]), contradictions=contradictions(), claims_words=_claims_words(document, plain),
        model_names=MODEL_NAMES, figures=_figures(document, plain), site_words=_site_words(arms[plain]),
        operating=[(f"Arm {name.replace('_', ' ')}", arm["whole"]) for name, arm in arms.items()],
        calibrated=[(f"Arm {name.replace('_', ' ')}", arm["whole"]) for name, arm in arms.items()],
        maps=arms_part(arms), model_card=_model_card(document), datasheets=_datasheets(arms[plain]), tripod=tripod,
        tripod_counted=counted(tripod), claim=claim, claim_counted=counted(claim),
    )  # fmt: skip


def artefacts(document: Mapping[str, Any]) -> dict[str, bool]:
    """Which artefacts a comparison has, for the checklists."""
    arm = next(iter(document["arms"].values()))
    made = arm["made"]
    return {
        "answer": True, "data": document["cohort"] != "", "metrics": arm["whole"]["auc"] is not None,
        "protocol": all(m["protocol_sha256"] for m in made), "model": all(m["model"] for m in made),
        "versions": all(m["versions"] for m in made), "subgroups": bool(arm["subgroups"]), "sites": bool(arm["sites"]),
        "recalibration": any(s["recalibration"]["after"] for s in arm["sites"].values()),
        "primary": arm["primary"] in arm["pairs"],
        "site_matrix_or_other_arm": bool(arm["matrix"]) or len(document["arms"]) > 1,
        "maps": bool(arms_part(document["arms"])),
    }  # fmt: skip


def _claims(arm: Mapping[str, Any]) -> Any:
    pair = arm["pairs"].get("federated_vs_image_only", {})
    return claims(arm["models"]["federated"], arm["models"].get("image_only", {}), pair, p=pair.get("p"))


def _claims_words(document: Mapping[str, Any], plain: str) -> str:
    what = "without privacy" if not document["arms"][plain]["private"] else "with privacy"
    return (
        f"Ours: arm {plain.replace('_', ' ')}, {what}, {women(document)}; films alone are a federated model of their "
        f"own that never saw a table. {data_words(str(document['cohort'])).caution}"
    )


def _figures(document: Mapping[str, Any], plain: str) -> dict[str, Markup]:
    # Markup: our own SVG, whose every text came through an escaping writer.
    arms = document["arms"]
    rows = {
        name: {site: found["pairs"]["shared_vs_local"] for site, found in arm["sites"].items()
               if "shared_vs_local" in found["pairs"]} for name, arm in arms.items()
    }  # fmt: skip
    figures = {}
    if drawn := {name: found for name, found in rows.items()
                 if any(row["difference_low"] is not None for row in found.values())}:  # fmt: skip
        figures["gains"] = evidence_plots.gains(drawn)
    whole = arms[plain]["whole"]
    between = arms[plain]["between_sites"] or {}
    if between.get("rows") and between["k"] > 1:
        figures["forest"] = federated_plots.forest(between["rows"], between, axis=AXIS)
    curves = dict(zip(ARM_CURVES, ((name, arm) for name, arm in arms.items() if arm["whole"]["roc"]
                                   and arm["models"]["federated"]["auc"] is not None), strict=False))  # fmt: skip
    if curves:
        figures["roc"] = plots.roc(
            {key: arm["whole"]["roc"] for key, (_, arm) in curves.items()},
            auc={key: arm["models"]["federated"]["auc"] for key, (_, arm) in curves.items()},
            labels={key: name.replace("_", " ") for key, (name, _) in curves.items()},
        )
    figures["calibration"] = plots.calibration(whole["calibration"], slope=whole["calibration_slope"],
                                               ece=whole["ece"])  # fmt: skip
    if whole["decision"]:
        figures["decision"] = evidence_plots.decision(whole["decision"], prevalence=document["prevalence"])
    return {name: Markup(svg) for name, svg in figures.items()}  # noqa: S704


def _site_words(arm: Mapping[str, Any]) -> str:
    return ", ".join(f"{site} n = {row['n']:,}" for site, row in arm["sites"].items())


def _model_card(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    arms = document["arms"]
    first = next(iter(arms.values()))
    hashes = "; ".join(f"seed {m['seed']}: {m['model']['sha256'][:16]} of round {m['model']['round']}"
                       for m in first["made"] if m["model"])  # fmt: skip
    epsilon = "; ".join(
        f"{name.replace('_', ' ')}: " + ("none" if arm["epsilon"] is None else
        f"at most {arm['epsilon']:.2f} at delta {arm['delta']:g}, unit patient, add or remove one, PRV accountant")
        for name, arm in arms.items()
    )  # fmt: skip
    versions = first["made"][0]["versions"] if first["made"] else {}
    return [
        ("Intended use", "Research on federated training. Not for care: no clinical claim, no reader study."),
        ("What it does", "One number a woman: the probability of cancer at this examination from her films and her "
                         "clinical table; from either alone, where the other is missing."),
        ("Trained by", f"{len(first['sites'])} hospitals; the data: {document['cohort'] or 'not stated'}"),
        ("Evaluated on", women(document)),
        ("Performance", f"see Results; operating points at {document['specificity']:.0%} specificity"),
        ("Privacy", epsilon),
        ("Weights of the first arm (SHA-256)", hashes or "not done"),
        ("Software", ", ".join(f"{name} {version}" for name, version in sorted(versions.items())) or "not done"),
        ("Explanations", "made at a site, for its own patients; how well heat maps point to lesions: "
                         + ("see Heat maps" if arms_part(arms) else "not measured in this run")),
        ("Known limits", "see How little these women can show, and the subgroups"),
    ]  # fmt: skip


def _datasheets(arm: Mapping[str, Any]) -> list[dict[str, str]]:
    rows = []
    for site, found in arm["sites"].items():
        rounds = [m["participation"].get(site, {}).get("contributed", 0) for m in arm["made"]]  # by population
        rows.append({
            "site": site, "n": f"{found['n']:,}", "positives": f"{found['positives']:,}",
            "share": f"{found['positives'] / found['n']:.0%}" if found["n"] else "–",
            "rounds": ", ".join(str(r) for r in rounds),
        })  # fmt: skip
    return rows
