"""How well the heat maps of a comparison's federated models point to lesions; for the evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shared_model.evaluation.auc import Interval
from shared_model.evaluation.evidence import three
from shared_model.evaluation.meta import pooled_share
from simulations.baselines.comparison import CONFIDENCE
from simulations.baselines.trained import Trained
from simulations.maps_at_end import METHOD


def maps_of(own: Sequence[Trained]) -> dict[str, Any] | None:
    """One arm's federated model of each population, by the method that sites show, all populations together.

    Returns:
        {"method", "women", "films", "chance", "moved" (most of any population), "rank_correlation", "pointing"*,
        "initial"* of the weights that training began with}, a name with * as value, `_low` and `_high`; None unless
        each population was measured.
    """
    known = [row for t in own if (row := ((t.maps or {}).get("methods") or {}).get(METHOD)) is not None]
    if len(known) < len(own):
        return None
    began = [row["initial"] for row in known if row["initial"] is not None]
    moved = [((t.maps or {}).get("encoder") or {}).get("moved") or 0.0 for t in own]
    return {
        "method": METHOD, "women": sum(r["women"] for r in known), "films": sum(r["films"] for r in known),
        "chance": float(np.mean([r["chance"] for r in known])), "moved": max(moved),
        "rank_correlation": float(np.mean([r["randomised"]["rank_correlation"] for r in known])),
        **_pooled("pointing", known), **_pooled("initial", began),
    }  # fmt: skip


def _pooled(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    shares = [Interval(*(row["pointing"][end] for end in ("value", "low", "high"))) for row in rows]
    found = pooled_share(shares, confidence=CONFIDENCE)
    return three(name, Interval(None, None, None) if found is None else found.mean)
