"""Whether a new model may replace an old one: not inferior overall, at each site, in each subgroup. Needs no torch.

Non-inferiority of the AUC: the interval of new minus old lies above -margin (FDA 2016, Non-Inferiority Clinical Trials,
section III). On the same women the interval is the paired one of DeLong; across sites' own releases, whose women's
scores nobody else has, it is made of the two AUCs' own intervals as if of different women (MOVER, Zou and Donner 2008,
Stat Med 27:1693), which is too wide rather than too narrow. It decides, and reads and writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shared_model.evaluation.auc import paired_delong
from shared_model.protocol import ReplacementTerms

Judged = Literal["not inferior", "not shown", "not judged"]
Bounds = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """New minus old AUC in one place. where: `overall`, `site` or `subgroup`; n, positives: women (noised at sites with
    privacy). verdict: `not shown`: the interval reaches below -margin; `not judged`: too few women, or no figures."""

    where: Literal["overall", "site", "subgroup"]
    name: str
    n: float | None
    positives: float | None
    difference: float | None
    low: float | None
    high: float | None
    margin: float
    verdict: Judged


@dataclass(frozen=True)
class Verdict:
    """replaces: shown not inferior overall, and wherever there were enough women to judge."""

    comparisons: tuple[Comparison, ...]

    @property
    def replaces(self) -> bool:
        """The answer. Overall must be shown; one site or subgroup where it is not shown is enough to say no."""
        overall = [c.verdict for c in self.comparisons if c.where == "overall"]
        return overall == ["not inferior"] and all(c.verdict != "not shown" for c in self.comparisons)


def on_the_same_women(
    labels: NDArray[np.uint8], new: NDArray[np.float64], old: NDArray[np.float64],
    groups: Mapping[str, NDArray[np.bool_]], *, terms: ReplacementTerms, confidence: float,
) -> tuple[Comparison, ...]:  # fmt: skip
    """Overall and in each subgroup.

    Args:
        labels, new, old: of N women; scores of any monotone scale.
        groups: members by name, bool [N]; too small ones are named and not judged.
        confidence: of the two-sided interval.
    """

    def compare(where: Literal["overall", "subgroup"], name: str, members: NDArray[np.bool_]) -> Comparison:
        y = labels[members]
        positives, margin = int(y.sum()), terms.margin if where == "overall" else terms.group_margin
        judged = where == "overall" or min(positives, len(y) - positives) >= terms.least_positives
        gap = paired_delong(y, new[members], old[members], confidence=confidence) if judged else None
        bounds = _bounds(gap.value, gap.low, gap.high) if gap is not None else None
        few = where == "subgroup" and not judged  # figures of few women stay unsaid
        return _comparison(where, name, None if few else len(y), None if few else positives, bounds, margin)

    everybody = np.ones(len(labels), dtype=bool)
    return (compare("overall", "all held-out women", everybody),
            *(compare("subgroup", name, members) for name, members in sorted(groups.items())))  # fmt: skip


def at_sites(
    new: Mapping[str, Mapping[str, Any]], old: Mapping[str, Mapping[str, Any]], sites: Iterable[str], *,
    terms: ReplacementTerms,
) -> tuple[Comparison, ...]:  # fmt: skip
    """At each site, from what it released in either study: rows with `auc`, `auc_low`, `auc_high`, `positives`, `n`."""
    found = []
    for site in sorted(sites):
        after, before = new.get(site) or {}, old.get(site) or {}
        rows = [_bounds(row.get("auc"), row.get("auc_low"), row.get("auc_high")) for row in (after, before)]
        fewest = min(float(row.get("positives") or 0) for row in (after, before))
        judged = None not in rows and fewest >= terms.least_positives
        bounds = difference_of(rows[0], rows[1]) if judged and rows[0] and rows[1] else None
        found.append(_comparison("site", site, after.get("n"), after.get("positives"), bounds, terms.group_margin))
    return tuple(found)


def difference_of(first: Bounds, second: Bounds) -> Bounds:
    """First minus second with its interval, from (value, low, high) of each, as if of different women (MOVER)."""
    (a, a_low, a_high), (b, b_low, b_high) = first, second
    return a - b, a - b - math.hypot(a - a_low, b_high - b), a - b + math.hypot(a_high - a, b - b_low)


def _bounds(value: float | None, low: float | None, high: float | None) -> Bounds | None:
    return None if value is None or low is None or high is None else (value, low, high)


def _comparison(
    where: Literal["overall", "site", "subgroup"], name: str, n: float | None, positives: float | None,
    bounds: Bounds | None, margin: float,
) -> Comparison:  # fmt: skip
    value, low, high = bounds or (None, None, None)
    verdict: Judged = "not judged" if low is None else "not inferior" if low > -margin else "not shown"
    return Comparison(where=where, name=name, n=n, positives=positives, difference=value, low=low, high=high,
                      margin=margin, verdict=verdict)  # fmt: skip
