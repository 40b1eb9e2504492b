"""Shares of a woman's clinical factors in her score: exact Shapley values of groups; used by case reports.

A group is one field of the data contract with all its columns (value, levels, missing flag). The background is the
contract's public reference patient, never another woman's row. Up to 15 groups all 2^n coalitions are scored (Shapley
1953; one cached image token, so a coalition costs one pass of the small table branch); beyond that captum samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from captum.attr import ShapleyValueSampling
from numpy.typing import NDArray
from torch import Tensor

from shared_model.cohort.batch import PatientBatch
from shared_model.errors import ConfigError
from shared_model.fusion import FusionModel

EXACT_GROUPS = 15
SAMPLES = 200  # permutations beyond that; error some 0.003 logits for 12 groups
ROWS_AT_A_TIME = 8192


@dataclass(frozen=True, kw_only=True)
class FactorShares:
    """Shares in logits. reference: score with the reference patient's table and the woman's own films; full: her score.
    shares: field -> what her value adds; they sum to full - reference. exact: whether all coalitions were scored."""

    reference: float
    full: float
    shares: Mapping[str, float]
    exact: bool

    @property
    def gap(self) -> float:
        """|sum of shares - (full - reference)|: 0 but for rounding where exact."""
        return abs(sum(self.shares.values()) - (self.full - self.reference))

    def ranked(self) -> list[tuple[str, float]]:
        """Fields by the size of their share, the greatest first."""
        return sorted(self.shares.items(), key=lambda pair: (-abs(pair[1]), pair[0]))


def factor_shares(
    model: FusionModel, woman: PatientBatch, *, groups: Mapping[str, Sequence[int]], reference_F: NDArray[np.float32]
) -> FactorShares | None:
    """Shapley values of one woman (B = 1), or None where she has no clinical row.

    Fields that are as in the reference patient get 0 without being permuted: they are dummies of this game.

    Args:
        groups: field -> its feature columns. reference_F: the background row.

    Raises:
        ConfigError: groups and reference are not the model's.
    """
    if not bool(woman.clinical_mask_B[0]):
        return None
    width = model.config.n_clinical
    if reference_F.shape != (width,) or sorted(i for g in groups.values() for i in g) != list(range(width)):
        raise ConfigError("factors are not those of the model", found=f"{len(reference_F)} features",
                          expected=f"{width}, each in one group")  # fmt: skip
    row, base = woman.clinical_BF[0], torch.from_numpy(reference_F).to(woman.clinical_BF)
    differing = [name for name, columns in groups.items() if not torch.equal(row[list(columns)], base[list(columns)])]
    score = _Scorer(model, woman)
    exact = len(differing) <= EXACT_GROUPS
    found = (_enumerated if exact else _sampled)(score, row, base, [list(groups[name]) for name in differing])
    shares = dict.fromkeys(groups, 0.0) | dict(zip(differing, found, strict=True))
    ends = score(torch.stack([base, row]))
    return FactorShares(reference=float(ends[0]), full=float(ends[1]), shares=shares, exact=exact)


class _Scorer:
    """Rows [n, F] -> fused logits [n] with the woman's films as they are, encoded once."""

    def __init__(self, model: FusionModel, woman: PatientBatch) -> None:
        self._model = model.eval()
        with torch.no_grad():
            present = woman.modality_mask_B2 > 0
            mask = woman.view_mask_BV & present[:, :1]
            self._views = model.describe_views(woman.pixels_BVCHW, mask)
            self._image, self._weights = model.bag(self._views, mask)
        self._mask, self._present = mask, torch.stack([mask.any(dim=1), present[:, 1]], dim=1)

    @torch.no_grad()
    def __call__(self, rows_nF: Tensor) -> Tensor:
        scores = []
        for start in range(0, len(rows_nF), ROWS_AT_A_TIME):
            part = rows_nF[start : start + ROWS_AT_A_TIME]
            image, present, views, mask, weights = (
                tensor.expand(len(part), *tensor.shape[1:])
                for tensor in (self._image, self._present, self._views, self._mask, self._weights)
            )
            scores.append(self._model.fuse(image, part, present, views, mask, weights).logit_B)
        return torch.cat(scores)


def _enumerated(score: _Scorer, row: Tensor, base: Tensor, groups: list[list[int]]) -> list[float]:
    """phi_i = sum over coalitions S without i of |S|! (n - |S| - 1)! / n! (v(S + i) - v(S))."""
    n = len(groups)
    if n == 0:
        return []
    coalitions = np.arange(1 << n)
    member = (coalitions[:, None] >> np.arange(n)) & 1
    pick = torch.zeros(len(coalitions), len(row), dtype=torch.bool, device=row.device)
    for i, columns in enumerate(groups):
        pick[:, columns] = torch.from_numpy(member[:, i : i + 1] == 1).to(row.device)
    value = score(torch.where(pick, row, base)).double().cpu().numpy()
    size = member.sum(axis=1)
    weight = np.array([math.factorial(s) * math.factorial(n - s - 1) for s in range(n)]) / math.factorial(n)
    shares = []
    for i in range(n):
        without = coalitions[member[:, i] == 0]
        shares.append(float(np.sum(weight[size[without]] * (value[without | (1 << i)] - value[without]))))
    return shares


def _sampled(score: _Scorer, row: Tensor, base: Tensor, groups: list[list[int]]) -> list[float]:
    masks = torch.full_like(row, len(groups), dtype=torch.int64)
    for i, columns in enumerate(groups):
        masks[columns] = i
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the same woman gets the same shares
        found = ShapleyValueSampling(score).attribute(
            row.unsqueeze(0), baselines=base.unsqueeze(0), feature_mask=masks.unsqueeze(0), n_samples=SAMPLES,
            perturbations_per_eval=64,
        )[0]  # fmt: skip
    return [float(found[columns[0]]) for columns in groups]
