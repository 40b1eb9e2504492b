"""What a model must not be used for, in words, each sentence from what the study recorded; for the passport."""

from __future__ import annotations

from pathlib import Path

from server.reporting.data_words import data_words
from server.reporting.facts import Facts, mapping
from server.reporting.maps import sentence_of
from server.reporting.words import level

MAPS = "Heat maps, where a site shows them"  # begins that limit, in passports of earlier releases too
FEW_POSITIVES = 50  # women with cancer below which an AUC's interval is some 0.15 wide


def limits_of(facts: Facts) -> tuple[str, ...]:
    """Sentences, the gravest first."""
    found = [
        "This model is no medical device and no diagnosis: no authority has assessed it, and no film may go unread "
        "because of it.",
        data_words(facts.data).caution,
        *_study(facts), *_privacy(facts), *_input(facts),
        maps_limit(facts.run_dir, mapping(facts.summary.get("model")).get("sha256")), *_groups(facts),
    ]  # fmt: skip
    return tuple(found)


def _study(facts: Facts) -> list[str]:
    words = []
    if facts.summary["status"] != "COMPLETE":
        words.append(f"The study is {facts.summary['status']}: its model is not a result.")
    held_out = facts.held_out
    if not held_out:
        return [*words, "The model was never judged on held-out women."]
    n, positives = held_out.get("n"), held_out.get("positives")
    if n is None or positives is None:
        words.append("It was judged once, on too few held-out women to say how many: nothing follows from its figures.")
        return words
    words.append(
        f"It was judged once, on {n:,} held-out women, {positives:,} with cancer ({100 * positives / n:.1f} %). Where "
        "cancer is rarer, as in screening, its probabilities are too high and its positive predictive value is "
        "lower: recalibrate before use."
    )
    if positives < FEW_POSITIVES:
        words.append(f"Of {positives} women with cancer nothing fine can be said: read the intervals, not the figures.")
    fused = mapping(mapping(held_out.get("models")).get("fused"))
    if fused.get("auc_low") is not None and fused["auc_low"] <= 0.5:
        words.append("Its interval includes an AUC of 0.5: it was not shown to be better than chance.")
    for name, what in (("fused_vs_image", "the films alone"), ("fused_vs_clinical", "the table alone"),
                       ("fused_vs_public", "the initial weights alone")):  # fmt: skip
        low = mapping(mapping(held_out.get("comparisons")).get(name)).get("low")
        if low is not None and low <= 0:
            words.append(f"It was not shown to be better than {what}.")
    return words


def _privacy(facts: Facts) -> list[str]:
    terms = facts.protocol.privacy
    if not facts.protocol.private:
        return ["It was trained without differential privacy: its weights may tell of single patients, and it must not "
                "be handed out where they are real."]  # fmt: skip
    return [f"What it tells of any one training patient is bounded by the epsilon of her site (delta {terms.delta:g}), "
            "for this study's rounds and what that site's ledger held before; other releases of the same patients add "
            "to it."]  # fmt: skip


def _input(facts: Facts) -> list[str]:
    pipeline = facts.protocol.pipeline
    return [
        f"It takes films prepared by pipeline {pipeline.sha256[:12]} ({pipeline.height} x {pipeline.width} pixels of "
        f"{pipeline.spacing_mm:g} mm: lesions of few pixels are not in them) and tables by contract "
        f"{facts.protocol.contract.version}; anything else gives numbers without meaning.",
        "The threshold was chosen for all hospitals together; one hospital may find another specificity at it.",
    ]  # fmt: skip


def maps_limit(run_dir: Path, model_sha256: object) -> str:
    """What heat maps of this model are worth; it begins with `MAPS`."""
    words = sentence_of(run_dir, model_sha256)
    return f"{MAPS} (as known when this was signed): {words}"[:1000]


def _groups(facts: Facts) -> list[str]:
    rows = facts.held_out.get("subgroups") or []
    small = sorted({f"{row['name'].replace('_', ' ')} {level(row)}" for row in rows if row.get("suppressed")})
    if not small:
        return []
    shown = ", ".join(small[:8]) + (f" and {len(small) - 8} others" if len(small) > 8 else "")
    return [f"For women of these groups there were too few to say anything: {shown[:700]}."]
