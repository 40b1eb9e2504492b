"""All hospitals' own women together, from joint histograms: the answer's sentence, and what the passport states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.reporting.facts import Facts, mapping
from server.reporting.passport_metrics import score_of
from shared_model.passport.document import Difference, JointPart
from shared_model.protocol import Protocol


def joint_part(facts: Facts) -> JointPart | None:
    """For the passport; None where nothing was counted."""
    joint = mapping(mapping(facts.summary.get("metrics")).get("joint"))
    if not joint:
        return None
    counts = {"n": tens(joint.get("n")), "positives": tens(joint.get("positives"))}
    return JointPart(
        how=joint["how"], sites=joint["sites"], bins=joint["bins"], noise_std=joint.get("noise_std"), **counts,
        epsilon=charged(facts.summary) if joint["how"] == "noised" else None,
        models={name: score_of({**mapping(row), **counts}) for name, row in mapping(joint.get("models")).items()},
        pairs=tuple(Difference(name=name, **{k: row.get(k) for k in ("difference", "low", "high", "p")})
                    for name, row in mapping(joint.get("pairs")).items()),
        withheld=str(joint.get("withheld") or ""),
    )  # fmt: skip


def joint_sentence(summary: Mapping[str, Any], protocol: Protocol) -> str:
    """For the answer: AUC of all hospitals' own women with interval and n, how it was obtained, and at which price;
    empty where nothing was counted."""
    joint = mapping(mapping(summary.get("metrics")).get("joint"))
    if not joint:
        return ""
    if joint.get("withheld"):
        return f"Of the own test women of {joint['sites']} hospitals together nothing is shown: {joint['withheld']}."
    models = mapping(joint.get("models"))
    fused, percent = mapping(models.get("fused")), round(100 * protocol.evaluation.confidence)
    if fused.get("auc") is None:
        return ""
    bounds = ("" if fused.get("auc_low") is None else
              f" ({percent} % interval {fused['auc_low']:.3f} to {fused['auc_high']:.3f})")  # fmt: skip
    rival = mapping(models.get("public")).get("auc")
    return (
        f"On the own test women of {joint['sites']} hospitals together (some {tens(joint['n']):,}, "
        f"{tens(joint['positives']):,} with cancer) the fused model reaches {fused['auc']:.3f}{bounds}"
        + (f", the weights that training began with {rival:.3f}" if rival is not None else "")
        + f": {_how(joint, charged(summary))}."
    )


def charged(summary: Mapping[str, Any]) -> float | None:
    """The greatest epsilon that a hospital's own test women were charged; None where nobody said."""
    rows = mapping(summary.get("privacy")).values()
    found = [row["metrics_epsilon"] for row in rows if row.get("metrics_epsilon") is not None]
    return max(found) if found else None


def tens(women: float | None) -> int | None:
    """A number of women as hospitals' sizes are told: to tens, and none below 0, where noise can carry it."""
    return None if women is None else max(0, 10 * round(women / 10))


def _how(joint: Mapping[str, Any], epsilon: float | None) -> str:
    if joint["how"] == "masked":
        return "from joint histograms, summed exactly under masks, which no epsilon covers; no score left a hospital"
    share = mapping(mapping(joint.get("pairs")).get("fused_vs_public")).get("noise_share")
    return (
        "from each hospital's joint histogram with noise, the interval widened for it"
        + (f" ({100 * share:.0f} % of the variance of the difference is noise)" if share is not None else "")
        + ("; charged to each hospital's ledger" if epsilon is None else
           f"; charged to each hospital's ledger, at most epsilon {epsilon:.2f} a woman")
        + "; no score left a hospital"
    )
