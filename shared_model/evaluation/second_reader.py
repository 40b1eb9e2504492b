"""The model as second reader of films that radiologists have read: simulated rules, with paired intervals. No torch.

`evidence.second_reader` of a test report::

    {"n", "positives", "threshold", "prevalence", "left_out", "rules": [{"rule", "sensitivity"*, "specificity"*,
        "sensitivity_gain"*, "specificity_gain"*, "recalls", "found", "arbitrations", "reads"}]}

A name with * stands for three, `name`, `name_low`, `name_high`. Gains are differences from the reader alone on the same
women. Per 1,000 women screened at the prevalence: recalls, found (cancers), arbitrations (null: the rule has none),
reads by people. It is arithmetic on decisions that were made without a model: nobody knows from it how a radiologist
reads who sees a score.
"""

from __future__ import annotations

import math
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared_model.evaluation.auc import Interval
from shared_model.evaluation.evidence import three
from shared_model.evaluation.operating import wilson

Document = dict[str, Any]
Rule = Literal["reader", "model", "either", "both", "arbitrated", "two_readers"]
RULES: Final[tuple[Rule, ...]] = ("reader", "model", "either", "both", "arbitrated", "two_readers")
Marks = NDArray[np.bool_]


def second_reader(
    labels: ArrayLike, reader: ArrayLike, scores: ArrayLike, *, threshold: float, arbiter: ArrayLike | None = None,
    prevalence: float, confidence: float,
) -> Document | None:  # fmt: skip
    """What each rule does on women whose outcome is known; None without women of both classes who were read.

    Rules: the reader alone; the model alone; recall if either does; recall if both do; `arbitrated`: recall if both do,
    and where they differ the second radiologist decides; `two_readers`: two radiologists, recall if either does. The
    last two need `arbiter`.

    Args:
        labels: 0 or 1, [N]. scores: of the model, [N]; above `threshold` (from other women) it recalls.
        reader, arbiter: decisions 0 or 1, [N]; NaN where a woman was not read. She is left out, and counted.
        prevalence: of cancer among the women to be screened, in (0, 1).

    Raises:
        ValueError: lengths differ, or decisions are not 0, 1 or NaN.
    """
    y, s = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    columns = [np.asarray(c, dtype=np.float64) for c in (reader, arbiter) if c is not None]
    if any(c.shape != y.shape or not np.isin(c[~np.isnan(c)], (0, 1)).all() for c in (*columns,)) or s.shape != y.shape:
        raise ValueError("decisions must be 0, 1 or NaN, one a woman, as many as labels and scores")
    known = ~np.isnan(np.stack(columns)).any(axis=0)
    cancer, decided = y[known] == 1, [c[known] == 1 for c in columns]
    if not 0 < cancer.sum() < len(cancer):
        return None
    recalled = _recalled(decided[0], s[known] > threshold, decided[1] if len(decided) > 1 else None)
    differ = decided[0] != recalled["model"]
    return {
        "n": len(cancer), "positives": int(cancer.sum()), "left_out": int((~known).sum()), "threshold": threshold,
        "prevalence": prevalence,
        "rules": [{"rule": rule, **_row(rule, recalled[rule], decided[0], differ, cancer, prevalence, confidence)}
                  for rule in RULES if rule in recalled],
    }  # fmt: skip


def _recalled(reader: Marks, model: Marks, arbiter: Marks | None) -> dict[Rule, Marks]:
    found: dict[Rule, Marks] = {"reader": reader, "model": model, "either": reader | model, "both": reader & model}
    if arbiter is not None:
        found |= {"arbitrated": np.where(reader == model, reader, arbiter), "two_readers": reader | arbiter}
    return found


def _row(
    rule: Rule, recalled: Marks, reader: Marks, differ: Marks, cancer: Marks, prevalence: float, confidence: float
) -> Document:
    def share(marks: Marks) -> float:
        """Of women screened, at the prevalence."""
        return prevalence * float(marks[cancer].mean()) + (1 - prevalence) * float(marks[~cancer].mean())

    arbitrated = share(differ) if rule == "arbitrated" else None
    people = {"model": 0.0, "two_readers": 2.0, "arbitrated": 1.0 + (arbitrated or 0.0)}
    sensitivity = wilson(int(recalled[cancer].sum()), int(cancer.sum()), confidence=confidence)
    specificity = wilson(int((~recalled[~cancer]).sum()), int((~cancer).sum()), confidence=confidence)
    gains = [paired_gain(a, b, confidence=confidence) for a, b in (
        (recalled[cancer], reader[cancer]), (~recalled[~cancer], ~reader[~cancer]))]  # fmt: skip
    return {
        **three("sensitivity", sensitivity), **three("specificity", specificity),
        **three("sensitivity_gain", gains[0]), **three("specificity_gain", gains[1]),
        "recalls": 1000 * share(recalled), "found": 1000 * prevalence * float(recalled[cancer].mean()),
        "arbitrations": None if arbitrated is None else 1000 * arbitrated, "reads": 1000 * people.get(rule, 1.0),
    }  # fmt: skip


def paired_gain(first: ArrayLike, second: ArrayLike, *, confidence: float) -> Interval:
    """Share of the first minus share of the second on the same women, with the interval of Newcombe 1998 (Stat Med
    17:2635, method 10: Wilson's limits of both, with their correlation).

    Args:
        first, second: yes or no, [N], N at least 1.

    >>> paired_gain([1, 1, 1, 0], [1, 0, 0, 0], confidence=0.95).value
    0.5
    """
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    n, both, neither = len(a), int((a & b).sum()), int((~a & ~b).sum())
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    one, two = (wilson(int(x.sum()), n, confidence=confidence) for x in (a, b))
    assert one.value is not None and one.low is not None and one.high is not None
    assert two.value is not None and two.low is not None and two.high is not None
    phi = _phi(both, only_a, only_b, neither)
    gap = one.value - two.value
    below = _reach(one.value - one.low, two.high - two.value, phi)
    above = _reach(one.high - one.value, two.value - two.low, phi)
    return Interval(gap, gap - below, gap + above)


def _phi(both: int, only_a: int, only_b: int, neither: int) -> float:
    """Correlation of two decisions, its covariance shrunk towards 0 by half a woman (Newcombe's correction)."""
    product = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    if product == 0:
        return 0.0
    excess = float(both * neither - only_a * only_b)
    if excess > 0:
        excess = max(excess - (both + only_a + only_b + neither) / 2, 0.0)
    return excess / math.sqrt(product)


def _reach(mine: float, other: float, phi: float) -> float:
    return math.sqrt(max(mine**2 - 2 * phi * mine * other + other**2, 0.0))
