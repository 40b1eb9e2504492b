"""The parts of a study's report that readers of evidence ask for: claims, model card, datasheets, checklists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.reporting.checklists import CLAIM, TRIPOD_AI, checklist, counted
from server.reporting.claims import Claim, claims, contradictions
from server.reporting.facts import Facts, mapping
from server.reporting.maps import figures_of, maps_part
from server.reporting.words import MODELS, PAIRS, women
from shared_model.passport import PASSPORT

JUDGED = ("fused", "image", "clinical")


def evidence_parts(facts: Facts) -> dict[str, Any]:
    """Values for the template. A run of an earlier checkout has no `evidence` and shows the rest."""
    evidence = mapping(facts.held_out.get("evidence"))
    artefacts = artefacts_of(facts)
    tripod, claim = checklist(TRIPOD_AI, artefacts), checklist(CLAIM, artefacts)
    return {
        "maps": maps_part(facts.run_dir, mapping(facts.summary.get("model")).get("sha256")), "evidence": evidence,
        "evidence_models": [(MODELS[name], row) for name, row in _models(evidence)],
        "claims": _claims(facts, evidence), "contradictions": contradictions(), "model_card": _model_card(facts),
        "datasheets": _datasheets(facts), "tripod": tripod, "tripod_counted": counted(tripod), "claim": claim,
        "claim_counted": counted(claim),
    }  # fmt: skip


def _models(evidence: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(name, row) for name, row in mapping(evidence.get("models")).items() if name in JUDGED]


def artefacts_of(facts: Facts) -> dict[str, bool]:
    """Which artefacts this run has, for the checklists."""
    fused = mapping(mapping(facts.held_out.get("models")).get("fused"))
    return {
        "answer": fused.get("auc") is not None, "data": facts.data != "", "metrics": fused.get("auc") is not None,
        "protocol": True, "model": bool(facts.summary.get("model")), "versions": bool(facts.summary.get("versions")),
        "subgroups": bool(facts.held_out.get("subgroups")),
        "sites": bool(mapping(mapping(facts.summary.get("metrics")).get("sites"))), "recalibration": False,
        "site_matrix_or_other_arm": False,
        "primary": facts.protocol.evaluation.primary is not None,
        "maps": figures_of(facts.run_dir, mapping(facts.summary.get("model")).get("sha256"))[0] is not None,
    }  # fmt: skip


def _claims(facts: Facts, evidence: Mapping[str, Any]) -> list[Claim]:
    models = mapping(facts.held_out.get("models"))
    if mapping(models.get("fused")).get("auc") is None:
        return []
    n, positives = facts.held_out.get("n"), facts.held_out.get("positives")
    fused, image = ({**mapping(models.get(name)), "n": n, "positives": positives} for name in ("fused", "image"))
    pair = mapping(mapping(evidence.get("pairs")).get("fused_vs_image"))
    pair = pair or mapping(mapping(facts.held_out.get("comparisons")).get("fused_vs_image"))
    return claims(fused, image, pair, p=pair.get("p"))


def _model_card(facts: Facts) -> list[tuple[str, str]]:
    protocol, model = facts.protocol, mapping(facts.summary.get("model"))
    spent = [row["epsilon"] for row in facts.privacy.values() if row.get("epsilon") is not None]
    privacy = "none" if not protocol.private else (
        f"at most epsilon {max(spent):.2f} spent by a hospital at delta {protocol.privacy.delta:g}; unit patient, add "
        "or remove one, PRV accountant" if spent else "nothing was spent"
    )  # fmt: skip
    primary = protocol.evaluation.primary or "not declared"
    n, positives = (women(facts.held_out.get(name)) for name in ("n", "positives"))
    return [
        ("Intended use", "Research on federated training. Not for care: no clinical claim, no reader study."),
        ("What it does", "One number a woman: the probability of cancer at this examination from her films and her "
                         "clinical table; from either alone, where the other is missing."),
        ("Trained by", f"{len(facts.sites)} hospitals; the data: {facts.data or 'not stated'}"),
        ("Evaluated on", f"{n} held-out women, {positives} with cancer" if facts.held_out else "not done"),
        ("Primary endpoint", PAIRS.get(primary, primary.replace("_", " "))),
        ("Privacy", privacy),
        ("Weights (SHA-256)", str(model.get("sha256") or "not done")),
        ("Passport", "passport.json beside the weights; `mammofed passport verify` checks both"
         if (facts.run_dir / PASSPORT).is_file() else "not done"),
        ("Explanations", "made at a site, for its own patients; how well heat maps point to lesions: see Heat maps"),
        ("Known limits", "the cautions at the head, and the subgroups"),
    ]  # fmt: skip


def _datasheets(facts: Facts) -> list[dict[str, str]]:
    told = mapping(mapping(facts.summary.get("metrics")).get("sites"))
    participation = mapping(facts.summary.get("participation"))
    rows = []
    for site in sorted(facts.protocol.federation.sites, key=lambda s: s.name):
        own = mapping(told.get(site.name))
        epsilon = mapping(facts.privacy.get(site.name)).get("epsilon")
        rows.append({
            "site": site.name, "patients": f"{site.patients:,}", "n": _count(own, "n"),
            "positives": _count(own, "positives"),
            "rounds": str(mapping(participation.get(site.name)).get("contributed", 0)),
            "epsilon": "not done" if epsilon is None else f"{epsilon:.2f}",
        })  # fmt: skip
    return rows


def _count(own: Mapping[str, Any], name: str) -> str:
    value = own.get(name)
    if value is None:
        return "suppressed" if own.get("suppressed") else women(value) if name in own else "not done"
    return women(value)
