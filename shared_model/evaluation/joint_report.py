"""The document of joint histograms: all sites' women together, without a score having left a site. Needs no torch.

`joint` in `summary.json`, written by the coordinator from the sum of the sites' tables (:mod:`.joint`)::

    {"how": "masked" | "noised", "sites", "bins", "noise_std", "n", "positives",
     "models": {"fused" | "public" | "image": {"auc"*, "calibration_slope", "calibration_intercept",
        "roc": [[false positive rate, sensitivity], ...], "calibration": [[stated, observed, n], ...]}},
     "pairs": {"fused_vs_public" | "fused_vs_image": {"difference", "low", "high", "p", "noise_share"}}}

or {"how", "sites", "bins", "withheld": why}. A name with * stands for three, `name`, `name_low`, `name_high`.
noise_std: of each count of the sum. Figures come from all counts as they are; of curves alone, neighbouring bins are
put together until they hold `SUPPRESS_BELOW` women, so that no step tells of a few.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike

from shared_model.evaluation.auc import Difference, Floats
from shared_model.evaluation.evidence import three
from shared_model.evaluation.joint import binned_calibration, binned_roc, joint_result, marginal
from shared_model.evaluation.subgroups import SUPPRESS_BELOW

Document = dict[str, Any]
FUSED: Final = "fused"
How = Literal["masked", "noised"]


def joint_document(
    tables: Mapping[str, ArrayLike], *, how: How, sites: int, noise_stds: Sequence[float], confidence: float
) -> Document:
    """The document.

    Args:
        tables: [2, bins, bins] by rival, already added up over the sites: women by the fused model's score and the
            rival's. At least one; all of the same women.
        noise_stds: of the noise that each site added to each of its counts; empty: none was added.

    Raises:
        ValueError: no tables, other shapes, numbers that are not finite, counts below 0 without noise, or tables that
            are not of the same women.
    """
    arrays = {name: np.asarray(table, dtype=np.float64) for name, table in tables.items()}
    fused = [marginal([table], model=0) for table in arrays.values()]
    if not fused or any(not np.array_equal(fused[0], other) for other in fused):
        raise ValueError("joint tables of one study are of the same women by the same fused score")
    if not noise_stds and any((table < 0).any() for table in arrays.values()):
        raise ValueError("counts below 0 that no noise explains")
    counts, noise = fused[0], math.sqrt(sum(std**2 for std in noise_stds))
    about: Document = {"how": how, "sites": sites, "bins": counts.shape[1]}
    if counts.sum(axis=1).min() < SUPPRESS_BELOW:
        return about | {"withheld": f"fewer than {SUPPRESS_BELOW} women with or without cancer in the sum"}
    found = {name: joint_result([table], confidence=confidence, noise_std=noise) for name, table in arrays.items()}
    first = next(iter(found.values()))
    rows = {FUSED: three("auc", first.first) | _curves(counts)}
    for name, result in found.items():
        rows[name] = three("auc", result.second) | _curves(marginal([arrays[name]], model=1))
    return about | {
        "noise_std": noise, "n": first.n, "positives": first.positives, "models": rows,
        "pairs": {f"{FUSED}_vs_{name}": _gap(result.difference) | {"noise_share": result.noise_share}
                  for name, result in found.items()},
    }  # fmt: skip


def _gap(gap: Difference) -> Document:
    """Cut off at -1 and 1, beyond which noise alone can carry it."""
    value, low, high = (None if x is None else min(max(x, -1.0), 1.0) for x in (gap.value, gap.low, gap.high))
    return {"difference": value, "low": low, "high": high, "p": gap.p}


def _curves(counts: Floats) -> Document:
    slope, intercept = binned_calibration(counts)
    groups = _groups(counts)
    merged = np.array([counts[:, part].sum(axis=1) for part in groups]).T
    return {
        "calibration_slope": slope, "calibration_intercept": intercept, "roc": _roc(merged),
        "calibration": _reliability(counts, groups),
    }  # fmt: skip


def _groups(counts: Floats) -> list[slice]:
    """Neighbouring bins, each group with `SUPPRESS_BELOW` women or more; what is left over joins the last one."""
    total, start, found = counts.sum(axis=0), 0, []
    for end in range(1, len(total) + 1):
        if total[start:end].sum() >= SUPPRESS_BELOW:
            found.append(slice(start, end))
            start = end
    if start < len(total):
        found[-1:] = [slice(found[-1].start if found else 0, len(total))]
    return found


def _roc(merged: Floats) -> list[list[float]]:
    """:func:`binned_roc`, kept within [0, 1] where noise carries it beyond."""
    return [[min(max(x, 0.0), 1.0) for x in point] for point in binned_roc(merged)]


def _reliability(counts: Floats, groups: Sequence[slice]) -> list[list[float]]:
    """[mean stated risk, observed share, women] of each group; a woman states the middle of her bin."""
    shown, centres = np.maximum(counts, 0.0), (np.arange(counts.shape[1]) + 0.5) / counts.shape[1]
    rows = []
    for part in groups:
        women = shown[:, part].sum(axis=0)
        if women.sum() > 0:
            stated, observed = women @ centres[part] / women.sum(), shown[1, part].sum() / women.sum()
            rows.append([float(stated), float(observed), float(women.sum())])
    return rows
