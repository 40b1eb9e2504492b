"""Scores of finished studies on their held-out women: paired differences, and AUC by vendors that no site had.

The simulator made all parties and owns their folders, so it may read what the simulated *evaluator* keeps on its disk.
In a real deployment those scores stay with the coordinator's evaluator, and nobody else computes what is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.reporting.facts import mapping
from shared_model.errors import ConfigError, StorageError
from shared_model.evaluation.auc import auc_interval, paired_delong
from shared_model.evaluation.kept import KeptScores, kept_path, read_kept
from shared_model.evaluation.subgroups import SUPPRESS_BELOW
from shared_model.protocol import Protocol
from simulations.hospitals import synthetic_hospitals
from simulations.hospitals.shifts import site_vendors
from simulations.population.specs import Population

Document = dict[str, Any]
GROUP = ("n", "positives", "auc", "auc_low", "auc_high", "difference")  # null for a group too small to be told about


def evaluator_scores(run_dir: Path, protocol: Protocol) -> KeptScores | None:
    """What the evaluator of a run kept, None when it kept nothing (an older release, an unfinished study).

    Raises:
        StorageError: the file is damaged.
    """
    path = kept_path(run_dir / "sites" / "evaluator" / "state", protocol)
    return read_kept(path) if path.is_file() else None


def paired_difference(scores: KeptScores, first: KeptScores, *, confidence: float) -> Document | None:
    """AUC of the fused model minus that of `first` on the same women (DeLong); None where they are not the same."""
    return _paired(scores, first, np.ones(len(scores.label), dtype=bool), confidence)


def hospitals_of(settings: Mapping[str, Any]) -> Population | None:
    """The synthetic hospitals that a run's launch.json asked for; None for cohorts of another kind.

    Raises:
        StorageError: it describes none.
    """
    if mapping(settings.get("cohort")).get("kind") != "synthetic":
        return None
    try:
        return synthetic_hospitals(settings)
    except (ConfigError, KeyError, TypeError, AttributeError) as error:  # whoever wrote it
        raise StorageError("launch.json does not describe synthetic hospitals", found=str(error)[:200],
                           remedy="restore it from the run's backup") from None  # fmt: skip


def vendor_groups(
    population: Population, left_out: str | None, scores: KeptScores, first: KeptScores | None, *, confidence: float
) -> Document:
    """AUC of the fused model on women whose vendor no site had, vendor by vendor, and on those of the other vendors.

    Args:
        left_out: the vendor that was taken from the sites on purpose.
        first: scores of the comparison's first study, for the difference on each group's women.

    Returns:
        {"left_out": name or null, "seen": group, "unseen": [group, ...]}, the vendor that was left out first; a group
        is {"vendors", "n", "positives", "auc", "auc_low", "auc_high", "difference"}.
    """
    names = {vendor.manufacturer: vendor.name for vendor in population.held_out.vendors}
    known = site_vendors(population)
    unseen = sorted(set(names.values()) - set(known), key=lambda name: (name != left_out, name))

    def group(wanted: tuple[str, ...]) -> Document:
        members = scores.of_vendors([maker for maker, name in names.items() if name in wanted])
        if members.sum() < SUPPRESS_BELOW:  # as in the report's own subgroups
            return {"vendors": list(wanted), **dict.fromkeys(GROUP)}
        auc = auc_interval(scores.label[members], scores.fused[members], confidence=confidence)
        difference = None if first is None else _paired(scores, first, members, confidence)
        return {
            "vendors": list(wanted), "n": int(members.sum()), "positives": int(scores.label[members].sum()),
            "auc": auc.value, "auc_low": auc.low, "auc_high": auc.high, "difference": difference,
        }  # fmt: skip

    return {"left_out": left_out, "seen": group(known), "unseen": [group((name,)) for name in unseen]}


def _paired(scores: KeptScores, first: KeptScores, members: NDArray[np.bool_], confidence: float) -> Document | None:
    if scores.women != first.women or not np.array_equal(scores.label, first.label):
        return None
    gap = paired_delong(scores.label[members], scores.fused[members], first.fused[members], confidence=confidence)
    if gap.value is None:
        return None
    return {"value": gap.value, "low": gap.low, "high": gap.high, "p": gap.p, "method": "paired_delong"}
