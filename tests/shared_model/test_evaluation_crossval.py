"""AUC over folds: against the influence curve it comes from, against a simulation, and never across models."""

from __future__ import annotations

import numpy as np
import pytest

from shared_model.evaluation.auc import paired_delong, roc_auc
from shared_model.evaluation.crossval import (
    Fold,
    cross_validated_auc,
    cross_validated_difference,
    unpaired_difference,
)


def folds(seed: int, *, k: int = 5, n: int = 80, shift: float = 0.0) -> list[Fold]:
    """Folds of a model each; the models of later folds state scores that are higher by `shift`, at the same ranking."""
    rng = np.random.default_rng(seed)
    found = []
    for place in range(k):
        labels = (np.arange(n) % 4 == 0).astype(int)
        found.append(Fold(labels, rng.normal(size=n) + 1.2 * labels + shift * place))
    return found


def influence_curve_error(parts: list[Fold]) -> float:
    """Standard error by the influence curve of LeDell et al. 2015, section 4, woman by woman as they print it."""
    squares, total = [], 0
    for part in parts:
        y, s = np.asarray(part.labels), np.asarray(part.scores)
        area, share, curve = roc_auc(y, s), y.mean(), np.empty(len(y))
        for i in range(len(y)):
            other = s[y == 0] if y[i] else s[y == 1]
            better = np.mean(s[i] > other) if y[i] else np.mean(s[i] < other)
            curve[i] = (better - area) / (share if y[i] else 1 - share)
        squares.append(np.mean(curve**2))
        total += len(y)
    return float(np.sqrt(np.mean(squares) / total))


def test_the_interval_is_that_of_the_influence_curve() -> None:
    parts = folds(1, n=400)
    found = cross_validated_auc(parts, confidence=0.95)
    assert found is not None and found.mean.value is not None and found.mean.low is not None
    assert found.mean.value == pytest.approx(np.mean([roc_auc(f.labels, f.scores) for f in parts]))
    error = influence_curve_error(parts)
    reach = 1.959964 * error / (found.mean.value * (1 - found.mean.value))
    low = 1 / (1 + np.exp(reach - np.log(found.mean.value / (1 - found.mean.value))))
    assert found.mean.low == pytest.approx(low, abs=3e-4)  # DeLong divides by n - 1, the influence curve by n


def test_the_interval_covers_the_truth() -> None:
    """Normal classes 1.2 apart: the true AUC is Phi(1.2 / sqrt 2) = 0.802."""
    hits = [found.mean.low < 0.8019 < found.mean.high for seed in range(300)  # type: ignore[operator]
            if (found := cross_validated_auc(folds(seed), confidence=0.95))]  # fmt: skip
    assert 0.92 <= np.mean(hits) <= 0.98


def test_scores_of_different_models_are_never_ranked_against_each_other() -> None:
    here, shifted = (cross_validated_auc(folds(3, shift=shift), confidence=0.95) for shift in (0.0, 50.0))
    assert here == shifted  # each fold's own ranking is the same
    together = [np.concatenate([np.asarray(getattr(f, what)) for f in folds(3, shift=50.0)])
                for what in ("labels", "scores")]  # fmt: skip
    assert here is not None and here.pooled.value is not None
    naive = roc_auc(*together)
    assert naive is not None and naive < here.pooled.value - 0.2


def test_the_pooled_figure_weighs_folds_by_their_pairs_and_says_what_it_cannot() -> None:
    good, bad = Fold([0, 0, 0, 0, 1, 1], [0, 1, 2, 3, 4, 5]), Fold([0, 1], [1, 0])
    found = cross_validated_auc([good, bad], confidence=0.95)
    assert found is not None and found.mean.value == 0.5 and found.pooled.value == pytest.approx(8 / 9)
    assert found.mean.low is None and found.sd == pytest.approx(0.5**0.5)  # one woman of a class has no variance
    lame = cross_validated_auc([good, Fold([0, 0], [1, 2])], confidence=0.95)
    assert lame is not None and lame.folds == 1 and lame.sd is None
    assert cross_validated_auc([Fold([1, 1], [1, 2])], confidence=0.95) is None


def test_differences_are_paired_where_women_are_the_same_and_not_where_they_are_others() -> None:
    one, two = folds(5), folds(6)
    same = [Fold(a.labels, np.asarray(a.scores) + 0.1 * np.asarray(b.scores)) for a, b in zip(one, two, strict=True)]
    gap = cross_validated_difference(one, same, confidence=0.95)
    each = [paired_delong(a.labels, a.scores, b.scores, confidence=0.95) for a, b in zip(one, same, strict=True)]
    assert gap is not None and gap.value == pytest.approx(np.mean([e.value for e in each]))
    assert gap.low is not None and gap.high is not None
    widths = [e.high - e.low for e in each]  # type: ignore[operator]
    assert gap.high - gap.low == pytest.approx(np.sqrt(np.sum(np.square(widths))) / 5)
    other = unpaired_difference(one[0], two[0], confidence=0.95)
    assert other.low is not None and other.high is not None and other.high - other.low > 2 * (gap.high - gap.low)
    with pytest.raises(ValueError, match="same women"):
        cross_validated_difference(one, [Fold(1 - np.asarray(f.labels), f.scores) for f in two], confidence=0.95)
