"""The four figures that this project was started with, beside what a study found, and why the four cannot all be true.

The arithmetic is that of two normal distributions of equal spread (the binormal model of an ROC curve): AUC,
sensitivity at a specificity, and recalls at a sensitivity then follow from each other (Su and Liu 1993, JASA 88:1350).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scipy.special import ndtr, ndtri

AUC_FUSED, AUC_IMAGE, SENSITIVITY, SPECIFICITY, FEWER = 0.94, 0.88, 0.92, 0.85, 0.27
MATCHED = 0.85  # sensitivity at which the claim's recalls are worked out here; the claim names none


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claimed figure beside ours. ours: in words with its interval, or that it was not measured. reached: `yes`
    when the whole interval is at least the claimed figure, `no` when all of it is below, else `undecided`."""

    what: str
    claimed: str
    ours: str
    basis: str
    reached: str


def sensitivity_at(auc: float, specificity: float) -> float:
    """Sensitivity at a specificity on the equal-variance binormal curve of an AUC.

    >>> round(sensitivity_at(0.94, 0.85), 3)
    0.877
    """
    return float(ndtr(math.sqrt(2) * ndtri(auc) + ndtri(1 - specificity)))


def recalls_saved(better: float, worse: float, sensitivity: float) -> float:
    """Share of false positive recalls that a better AUC saves at the same sensitivity, on binormal curves.

    >>> round(recalls_saved(0.94, 0.88, 0.85), 2)
    0.54
    """
    first, second = (float(ndtr(ndtri(sensitivity) - math.sqrt(2) * ndtri(auc))) for auc in (better, worse))
    return 1 - first / second


def partner(fused: float, image: float) -> float:
    """AUC that an independent second score needs to lift one AUC to another: z_fused^2 = z_image^2 + z_partner^2.

    >>> round(partner(0.94, 0.88), 3)
    0.846
    """
    return float(ndtr(math.sqrt(ndtri(fused) ** 2 - ndtri(image) ** 2)))


def contradictions() -> list[str]:
    """Why no one study can have found all four, as sentences; every number in them is computed here."""
    needed = next(a / 1000 for a in range(900, 1000) if sensitivity_at(a / 1000, SPECIFICITY) >= SENSITIVITY)
    enough = next(a / 1000 for a in range(880, 1000) if recalls_saved(a / 1000, AUC_IMAGE, MATCHED) >= FEWER)
    return [
        f"An AUC of {AUC_FUSED:.2f} goes with a sensitivity of {pct(sensitivity_at(AUC_FUSED, SPECIFICITY), 1)} at "
        f"{pct(SPECIFICITY)} specificity; {pct(SENSITIVITY)} there takes an AUC of {needed:.3f}.",
        f"Going from {AUC_IMAGE:.2f} to {AUC_FUSED:.2f} would save {pct(recalls_saved(AUC_FUSED, AUC_IMAGE, MATCHED))} "
        f"of false recalls at {pct(MATCHED)} sensitivity, not {pct(FEWER)}; {pct(FEWER)} is what {enough:.2f} saves. "
        "The claim does not say at which sensitivity it counts.",
        f"To lift {AUC_IMAGE:.2f} to {AUC_FUSED:.2f}, a table that adds to the films needs an AUC of "
        f"{partner(AUC_FUSED, AUC_IMAGE):.3f} by itself. Published risk models from such tables have 0.60 to 0.67.",
        "A p value without the number of women says how large the study was, not how much was gained.",
    ]


def claims(
    fused: Mapping[str, Any], image: Mapping[str, Any], pair: Mapping[str, Any], *, p: float | None
) -> list[Claim]:
    """The four rows. fused, image: a model's `auc*`, `sensitivity*`, `specificity*`, `n`, `positives`. pair:
    `difference*` and `fewer_recalls*` of the two on the same women. p: of the primary test."""
    told = fused.get("n") and fused.get("positives") is not None
    women = f"n = {fused['n']:,}, {fused['positives']:,} with cancer" if told else "n not stated"
    shown = p is not None and p < 0.01 and (pair.get("difference") or 0) > 0  # the claim is of a gain
    gap = interval(pair, "difference", digits=3) if "difference_low" in pair else _gap(pair)
    return [
        Claim(what="AUC, films and table against films alone", claimed=f"{AUC_FUSED:.2f} against {AUC_IMAGE:.2f}",
              ours=f"{interval(fused, 'auc')} against {interval(image, 'auc')}; difference {gap}", basis=women,
              reached=_reached(fused, "auc", AUC_FUSED)),
        Claim(what=f"Sensitivity at {pct(SPECIFICITY)} specificity", claimed=f"{pct(SENSITIVITY)}",
              ours=f"{interval(fused, 'sensitivity', percent=True)}; realised specificity "
                   f"{interval(fused, 'specificity', percent=True)}",
              basis=f"{women}; threshold from other women", reached=_reached(fused, "sensitivity", SENSITIVITY)),
        Claim(what=f"Fewer false recalls at the same sensitivity ({pct(pair.get('sensitivity', MATCHED))})",
              claimed=f"{pct(FEWER)}", ours=interval(pair, "fewer_recalls", percent=True), basis=women,
              reached=_reached(pair, "fewer_recalls", FEWER)),
        Claim(what="p of the difference in AUC", claimed="< 0.01", ours=p_words(p), basis=women,
              reached="not measured" if p is None else "yes" if shown else "no"),
    ]  # fmt: skip


def _reached(row: Mapping[str, Any], name: str, claimed: float) -> str:
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    if row.get(name) is None:
        return "not measured"
    return "undecided" if low is None or high is None or low < claimed <= high else "yes" if low >= claimed else "no"


def _gap(pair: Mapping[str, Any]) -> str:
    return interval({"difference": pair.get("difference"), "difference_low": pair.get("low"),
                     "difference_high": pair.get("high")}, "difference")  # fmt: skip


def interval(row: Mapping[str, Any], name: str, *, percent: bool = False, digits: int = 3) -> str:
    """`0.870 (0.840 to 0.900)` out of the keys `name`, `name_low`, `name_high`; `not measured` without a value.

    Bounds that meet are not printed: one score for all women is no measured certainty (as in `words`).
    """
    value, low, high = (row.get(f"{name}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return "not measured"

    def show(x: float) -> str:
        return pct(x) if percent else f"{x:.{digits}f}"

    if low is None or high is None or low == high:
        return show(value)
    return f"{show(value)} ({show(low)}\u00a0to\u00a0{show(high)})"


def pct(share: float, digits: int = 0) -> str:
    """A share as `92 %`, with a space that does not break."""
    return f"{100 * share:.{digits}f}\u00a0%"


def p_words(p: float | None) -> str:
    """A p value as papers print it."""
    return "not tested" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
