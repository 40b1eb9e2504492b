"""The answer of a study, as sentences and as rows, as far as its numbers carry it; for the report and the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from server.reporting.facts import mapping
from server.reporting.for_whom import for_whom
from server.reporting.joint_words import joint_sentence
from server.reporting.smallness import how_little
from server.reporting.words import MODELS, women
from server.rounds.withheld import LEAST_WOMEN
from shared_model.evaluation.gain import too_few
from shared_model.protocol import Protocol

# By origin of the initial weights. Those of a study before (`server rollback`) have seen other hospitals' women.
START = {"public": "Public weights", "random": "Random weights", "study": "The weights that it went on from"}
SEEN = {"public": "no hospital data", "random": "no hospital data", "study": "nothing of this study"}
MODEL_ROWS = ("clinical", "image", "fused")


def model_rows(summary: Mapping[str, Any], protocol: Protocol) -> list[dict[str, Any]]:
    """Rows of the main table, from what was there before any hospital to the fused model; empty when not measured.

    Each row is a model of the `test` report with a `key` and a `label` for people.
    """
    held_out = mapping(mapping(summary.get("metrics")).get("held_out"))
    models = mapping(held_out.get("models"))
    rows = [{"key": name, "label": MODELS[name], **models[name]} for name in MODEL_ROWS if mapping(models.get(name))]
    public = mapping(held_out.get("public_weights"))
    if public:
        label = f"{START[protocol.initial_weights.origin]} only, {SEEN[protocol.initial_weights.origin]}"
        rows.insert(0, {"key": "public", "label": label, **public})
    return rows


def answer(summary: Mapping[str, Any], protocol: Protocol, *, data: str = "") -> list[str]:
    """Sentences in order of weight: what came of the study, how little that can show, what hospitals added, how
    it does on all hospitals' own women where they were counted together, what it cost in privacy.

    Args:
        summary: the content of `summary.json`. data: what the women are (`facts.data_of`), empty where nobody said.
    """
    held_out = mapping(mapping(summary.get("metrics")).get("held_out"))
    sentences = [_result(summary, held_out, protocol), _little(held_out, protocol, data), _added(held_out, protocol),
                 joint_sentence(summary, protocol), _cost(summary, protocol), _whom(held_out),
                 _alone(held_out)]  # fmt: skip
    return [sentence for sentence in sentences if sentence]


def _lower(start: str) -> str:
    return start[0].lower() + start[1:] if start.startswith("The") else f"the {start.lower()}"


def _result(summary: Mapping[str, Any], held_out: Mapping[str, Any], protocol: Protocol) -> str:
    fused = mapping(mapping(held_out.get("models")).get("fused"))
    done, planned = summary.get("rounds_completed", 0), summary.get("rounds_planned", protocol.rounds)
    sites = len(protocol.federation.sites)
    if summary.get("status") != "COMPLETE":
        words = f"This study is {summary.get('status', 'INCOMPLETE')}: {done} of {planned} rounds closed."
        return words + ("" if fused else " There is no held-out result.")
    if fused.get("auc") is None:
        return f"All {planned} rounds closed, and no held-out result was recorded."
    percent = round(100 * protocol.evaluation.confidence)
    bounds = ("the same score for all of them" if fused["auc_low"] == fused["auc_high"] else
              f"{percent} % interval {fused['auc_low']:.3f} to {fused['auc_high']:.3f}")  # fmt: skip
    return (
        f"After {done} rounds with {sites} hospitals, the fused model reaches an AUC of {fused['auc']:.3f} ({bounds}) "
        f"on {women(held_out.get('n'))} held-out women, {women(held_out.get('positives'))} with cancer."
    )


def _little(held_out: Mapping[str, Any], protocol: Protocol, data: str) -> str:
    fused = mapping(mapping(held_out.get("models")).get("fused"))
    if not held_out or fused.get("auc") is None:
        return ""
    n, positives = held_out.get("n"), held_out.get("positives")
    if n is None or positives is None:
        return (f"How little this can show: of the held-out women fewer than {LEAST_WOMEN} have cancer, or fewer have "
                "none. It is no evidence for or against the model.")  # fmt: skip
    return how_little(n, positives, fused.get("auc_low"), fused.get("auc_high"), kind=data,
                      confidence=protocol.evaluation.confidence)  # fmt: skip


def _added(held_out: Mapping[str, Any], protocol: Protocol) -> str:
    """What hospitals added to the initial weights: the difference, and whether its interval stays clear of zero."""
    public, fused = mapping(held_out.get("public_weights")), mapping(mapping(held_out.get("models")).get("fused"))
    if public.get("auc") is None or fused.get("auc") is None:
        return ""
    start, difference = START[protocol.initial_weights.origin], fused["auc"] - public["auc"]
    seen = SEEN[protocol.initial_weights.origin]
    if difference <= 0:
        return f"It is not better than {_lower(start)} alone, which reach {public['auc']:.3f} with {seen}."
    paired = mapping(mapping(held_out.get("comparisons")).get("fused_vs_public"))
    if paired.get("low") is not None:
        low, high, how = paired["low"], paired["high"], "paired DeLong"
    else:
        low, high = difference_interval(fused, public)
        how = "computed as if on different women, so rather too wide"
    judged = "clear of zero" if low > 0 else "not clear of zero"
    n, positives = held_out.get("n"), held_out.get("positives")
    if n is None or positives is None or too_few(n, positives):
        judged = "too few women to judge it"
    return (
        f"{start} alone, with {seen}, reach {public['auc']:.3f}: hospitals added {difference:.3f} "
        f"(interval {low:.3f} to {high:.3f}, {judged}; {how})."
    )


def _whom(held_out: Mapping[str, Any]) -> str:
    return for_whom(held_out.get("subgroups") or [], mapping(mapping(held_out.get("models")).get("fused")).get("auc"))


def _alone(held_out: Mapping[str, Any]) -> str:
    if not held_out:
        return ""
    return (
        "Whether a hospital is better off than with a model of its own is not in this run: a comparison with "
        "baselines=[local] trains them, and mammofed site gain asks it at the hospital."
    )


def difference_interval(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[float, float]:
    """Interval of the difference of two AUCs from their own intervals (MOVER; Zou & Donner 2008, Stat Med 27:1693).

    For independent samples; on the same women, whose scores agree more or less, it is wider than it need be.
    """
    (a, a_low, a_high), (b, b_low, b_high) = ((m["auc"], m["auc_low"], m["auc_high"]) for m in (first, second))
    difference = a - b
    return difference - math.hypot(a - a_low, b_high - b), difference + math.hypot(a_high - a, b - b_low)


def unheard_sites(summary: Mapping[str, Any]) -> list[str]:
    """Sites with lost answers (late, failed): they may have spent more than the coordinator was told."""
    participation = mapping(summary.get("participation"))
    return sorted(site for site, counts in participation.items() if any(counts.get(o) for o in ("late", "failed")))


def _cost(summary: Mapping[str, Any], protocol: Protocol) -> str:
    terms = protocol.privacy
    if not protocol.private:
        return (
            "No differential privacy was used: this bounds what is possible, and is nothing to run on patients' data."
        )
    unheard = unheard_sites(summary)
    if unheard:
        return (
            f"What {', '.join(unheard)} spent is not fully known here, because answers were lost; no hospital's own "
            f"ledger lets more than epsilon {terms.epsilon:g} pass for each patient (delta {terms.delta:g}, add or "
            "remove one patient)."
        )
    spent = [row["epsilon"] for row in mapping(summary.get("privacy")).values() if row.get("epsilon") is not None]
    if not spent:
        return "No privacy was spent."
    return (
        f"No hospital spent more than epsilon {max(spent):.2f} of {terms.epsilon:g} for each patient "
        f"(delta {terms.delta:g}, add or remove one patient)."
    )
