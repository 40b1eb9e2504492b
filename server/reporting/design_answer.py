"""What a design's `design.json` answers, in sentences; opens its page and its tables in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NAMES = {
    "cross_validation": "Cross-validation across the federation", "leave_one_site_out": "Leave-one-site-out",
    "temporal": "Temporal hold-out",
}  # fmt: skip
SMALL = 20  # women with cancer below which an AUC says next to nothing


def headline(document: Mapping[str, Any]) -> list[str]:
    """The answer of the design, what the threshold does, what probabilities are worth, and the price in privacy."""
    first = {"cross_validation": _cross_validation, "leave_one_site_out": _left_out, "temporal": _temporal}
    sentences = first[document["design"]](document)
    if pooled := document["pooled"]:
        sentences += [_decisions(document, pooled), _probabilities(document, pooled)]
    return [*sentences, privacy_words(document)]


def run_words(name: str) -> str:
    """A run's name in words; a hospital keeps its own: `without site_01`, `fold 0`."""
    head, _, rest = name.partition("_")
    return f"{head} {rest}"


def women_words(document: Mapping[str, Any]) -> str:
    """Of the tested women."""
    women = document["women"]
    return f"{women['tested']:,} women, {women['positives']:,} with cancer"


def selection_words(document: Mapping[str, Any]) -> str:
    """Where round, threshold and temperature come from."""
    women = document["women"]
    return (
        f"Round, threshold and temperature of each run are chosen on the evaluator's selection "
        f"({women['selection']:,} women, {women['selection_positives']:,} with cancer), who train in no run and are "
        "tested in none."
    )


def span(row: Mapping[str, Any], name: str, *, digits: int = 3) -> str:
    """`0.871 (0.850 to 0.890)` out of `name`, `name_low`, `name_high`."""
    value, low, high = (row.get(f"{name}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return "not determined"
    words = f"{value:.{digits}f}"
    return words if low is None or high is None else f"{words} ({low:.{digits}f} to {high:.{digits}f})"


def shares(row: Mapping[str, Any], name: str) -> str:
    """The same in percent."""
    value, low, high = (row.get(f"{name}{end}") for end in ("", "_low", "_high"))
    if value is None or low is None or high is None:
        return "not determined"
    return f"{100 * value:.0f} % ({100 * low:.0f} to {100 * high:.0f})"


def _cross_validation(document: Mapping[str, Any]) -> list[str]:
    folds = document["folds"]
    fused = folds["fused"]
    return [
        f"Cross-validated AUC {span(fused, 'mean')}: mean of {folds['k']} folds, SD over folds {fused['sd']:.3f}; "
        f"{women_words(document)}, each tested once, by a federation that never trained on her.",
        f"Over all pairs of women that one model scored: {span(fused, 'pooled')}. Films alone "
        f"{folds['image']['mean']:.3f}, table alone {folds['clinical']['mean']:.3f}; films and table beat films alone "
        f"by {span(folds['image'], 'difference')}.",
    ]


def _left_out(document: Mapping[str, Any]) -> list[str]:
    rows, across = document["sites"], document["across"]
    known = [row for row in rows if row["auc"] is not None]
    least = min(known, key=lambda row: row["auc"])
    sentences = [
        f"At hospitals that took no part the AUC is {least['auc']:.3f} (at {least['site']}, the lowest) to "
        f"{max(row['auc'] for row in known):.3f}"
        + ("" if across is None else f"; put together {span(across, 'auc')}")
        + f"; {women_words(document)}."
    ]
    if across is not None and across["new_site"] is not None:
        low, high = across["new_site"]
        sentences.append(f"A further hospital may expect an AUC between {low:.2f} and {high:.2f} (prediction interval "
                         f"from {across['k']} hospitals).")  # fmt: skip
    compared = [row for row in rows if row["shared"] and row["shared"]["difference"] is not None]
    if compared:
        gaps = ", ".join(f"{row['site']} {row['shared']['difference']:+.3f}" for row in compared)
        clear = [row["site"] for row in compared if (row["shared"]["p_adjusted"] or 1.0) < 0.05]
        sentences.append(
            f"Against the federation that had the hospital, on its women whom neither trained on: {gaps}; "
            + (f"clear of chance at {', '.join(clear)}." if clear else "none clear of chance (paired DeLong, Holm).")
        )
    return sentences


def _temporal(document: Mapping[str, Any]) -> list[str]:
    periods = document["periods"]
    later, earlier, gap = periods["later"], periods["earlier"], periods["difference"]
    sentences = [
        f"On women examined from {periods['until']:g} on the AUC is {span(later, 'auc')} ({later['n']:,} women, "
        f"{later['positives']:,} with cancer); the model trained on earlier ones."
    ]
    if earlier is not None and gap is not None and gap["difference"] is not None:
        sentences.append(
            f"Earlier women whom it did not train on: {span(earlier, 'auc')} ({earlier['n']:,} women, "
            f"{earlier['positives']:,} with cancer); later minus earlier {span(gap, 'difference')}, other women."
        )
    unknown = sum(periods["unknown"].values())
    if unknown:
        sentences.append(f"{unknown:,} women without a known year are in neither part.")
    if document["cohort"] == "synthetic" and not document["settings"].get("years"):
        sentences.append("Synthetic women do not change over the years, so that a difference here is chance.")
    return sentences


def _decisions(document: Mapping[str, Any], pooled: Mapping[str, Any]) -> str:
    return (
        f"At each run's own threshold, set for {100 * document['specificity']:.0f} % specificity on other women: "
        f"sensitivity {shares(pooled, 'sensitivity')}, realised specificity {shares(pooled, 'specificity')}."
    )


def _probabilities(document: Mapping[str, Any], pooled: Mapping[str, Any]) -> str:
    slope, intercept = (span(pooled, f"calibration_{name}", digits=2) for name in ("slope", "intercept"))
    return (
        f"Probabilities after each run's own temperature: calibration slope {slope} (1 is right), intercept "
        f"{intercept} (0 is right)."
    )


def privacy_words(document: Mapping[str, Any]) -> str:
    """How all releases add up."""
    privacy, runs = document["privacy"], len(document["runs"])
    if privacy is None:
        return f"{runs} training{'s' if runs > 1 else ''} without differential privacy."
    site = max(privacy["spent"], key=lambda name: privacy["spent"][name])
    times = max(privacy["releases"].values())
    head = (
        f"All releases add up: a woman trains in up to {times} of {runs} trainings" if times > 1
        else f"A woman trains in at most one of {runs} training{'s' if runs > 1 else ''}"
    )  # fmt: skip
    return (
        f"{head} and has spent epsilon {privacy['spent'][site]:.2f} at most (ledger of {site}; delta "
        f"{privacy['delta']:g}, unit {privacy['unit']}, {privacy['adjacency']}, {privacy['accountant']} accountant; "
        f"granted {privacy['granted']:g}; one training alone {privacy['one']:.2f})."
    )


def abstentions(document: Mapping[str, Any]) -> int:
    """Rounds in which a site of a run did not contribute, over all runs."""
    counts = [(int(row["rounds"] or 0), count) for row in document["runs"] for count in row["contributed"].values()]
    return sum(max(0, planned - count) for planned, count in counts)


def next_steps(document: Mapping[str, Any]) -> list[str]:
    """What to do with these results: where they are weak, and what would say more."""
    steps = [*_weak_points(document)]
    pooled, wanted = document["pooled"], 100 * document["specificity"]
    if missed := _missed_specificity(document):
        found = ", ".join(f"{name} {100 * value:.0f} %" for name, value in missed.items())
        steps.append(f"The threshold for {wanted:.0f} % specificity does not carry over ({found}): let each hospital "
                     "set it on women of its own before use.")  # fmt: skip
    if pooled:
        slope = pooled["calibration_slope_low"], pooled["calibration_slope_high"]
        shift = pooled["calibration_intercept_low"], pooled["calibration_intercept_high"]
        if None not in (*slope, *shift) and not (slope[0] <= 1 <= slope[1] and shift[0] <= 0 <= shift[1]):
            steps.append("Probabilities do not carry over: recalibrate at each hospital (`mammofed site gain` shows "
                         f"calibration before and after).{_stretched(pooled)}")  # fmt: skip
    if count := abstentions(document):
        steps.append(f"Sites missed {count} rounds in all: `mammofed report RUN_DIR/design/RUN` says which, and why.")
    others = {"cross_validation": "leave_one_site_out", "leave_one_site_out": "cross_validation",
              "temporal": "leave_one_site_out"}  # fmt: skip
    steps.append(f"Another question of the same women: design={others[document['design']]}.")
    steps.append("The model for release is none of these: train it on all women with `mammofed simulate` "
                 "(design=held_out); that is one more release about each of them.")  # fmt: skip
    return steps


def _stretched(pooled: Mapping[str, Any]) -> str:
    """Why a temperature made the slope worse, where it did: it cannot shift, and flattens scores that are all too low
    or too high."""
    before, after = pooled["before"], pooled["calibration_slope"]
    slope, low, high = (before.get(f"calibration_{name}") for name in ("slope", "intercept_low", "intercept_high"))
    if slope is None or low is None or high is None or low <= 0 <= high or abs(slope - 1) >= abs(after - 1):
        return ""
    return (
        f" Before the temperature the slope was {slope:.2f} and the intercept {before['calibration_intercept']:+.2f}: "
        f"all scores are too {'low' if low > 0 else 'high'}, and a temperature can only flatten them."
    )


def _missed_specificity(document: Mapping[str, Any]) -> dict[str, float]:
    """Realised specificity where its interval leaves out what was wanted: of all tested women, and of the groups that
    the design is about (a hospital left out, earlier and later women)."""
    rows: dict[str, Any] = {"all women": document["pooled"]}
    if document["design"] == "leave_one_site_out":
        rows |= {row["site"]: row for row in document["sites"]}
    if document["periods"]:
        rows |= {f"{name} women": document["periods"][name] for name in ("earlier", "later")}
    return {name: row["specificity"] for name, row in rows.items() if row and row["specificity_low"] is not None
            and not row["specificity_low"] <= document["specificity"] <= row["specificity_high"]}  # fmt: skip


def _weak_points(document: Mapping[str, Any]) -> Sequence[str]:
    rows = document["sites"] or []
    few = [row["site"] for row in rows if row["positives"] < SMALL]
    weak = []
    if few:
        weak.append(f"Fewer than {SMALL} women with cancer at {', '.join(few)}: nothing can be said of them yet.")
    if document["design"] == "leave_one_site_out" and len(rows) < 5:
        weak.append(f"{len(rows)} hospitals say little about a further one: the prediction interval is wide for it, "
                    "and is not to be read as a range of hospitals in the world.")  # fmt: skip
    return weak
