"""How much each site moved each round's model, measured when it is made; written by `one_round`, read by the command.

Updates are in the coordinator's memory for one round only and are never kept, so that this is worked out then and three
numbers a site go into the journal (scope `influence`). They are functions of what the coordinator has seen anyway.

* `norm`: L2 length of the site's step, weights returned less weights sent.
* `cosine`: between the site's step and the weighted mean step of the others; None, and left out, when it is alone.
* `shift`: how far the weighted mean step would lie elsewhere without the site, as a share of its length: 0 is nobody, 1
  as far as the whole step.

All three are of the weighted mean (FedAvg's), whatever the strategy makes of the updates: a strategy with momentum or
with a median has no exact leave-one-out within one round. A site far from the others is no proof of anything: its women
may differ, and with privacy most of a step is noise, so that cosines lie near 0 for everybody.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from server.rounds.follow import metric_rows
from shared_model.errors import ConfigError
from shared_model.messages import Arrays
from shared_model.protocol import Protocol

SCOPE: Final = "influence"
Vector = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Influence:
    """One site in one round; see the module. cosine: None where no other site was in the round."""

    norm: float
    cosine: float | None
    shift: float | None

    def numbers(self) -> dict[str, float]:
        """What goes into the journal."""
        values = {"norm": self.norm, "cosine": self.cosine, "shift": self.shift}
        return {name: value for name, value in values.items() if value is not None}


def influences(updates: Mapping[str, Arrays], base: Arrays, weights: Mapping[str, float]) -> dict[str, Influence]:
    """Influence of each site in one round.

    Args:
        updates: weights that each site returned, all of the shapes of `base`.
        base: weights that they were sent.
        weights: of the sites in the mean, above 0.
    """
    steps = {site: _step(update, base) for site, update in updates.items()}
    total = sum(weights[site] for site in steps)
    mean = np.zeros(sum(array.size for array in base.values()))
    for site, step in steps.items():
        mean += weights[site] / total * step
    return {site: _one(step, mean, weights[site] / total) for site, step in steps.items()}


def _one(step: Vector, mean: Vector, share: float) -> Influence:
    norm, length = float(np.linalg.norm(step)), float(np.linalg.norm(mean))
    if share >= 1.0:
        return Influence(norm=norm, cosine=None, shift=None)
    others = (mean - share * step) / (1.0 - share)
    away = float(np.linalg.norm(others))
    cosine = float(step @ others) / (norm * away) if norm > 0 and away > 0 else 0.0
    shift = float(np.linalg.norm(mean - others)) / length if length > 0 else 0.0
    return Influence(norm=norm, cosine=min(1.0, max(-1.0, cosine)), shift=shift)


def _step(update: Arrays, base: Arrays) -> Vector:
    return np.concatenate([update[name].astype(np.float64).ravel() - base[name].astype(np.float64).ravel()
                           for name in sorted(base)])  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SiteInfluence:
    """One site over a whole study: rounds that it is in, and medians over them."""

    site: str
    rounds: int
    norm: float
    cosine: float | None
    shift: float | None


def influence_of(run_dir: Path) -> list[SiteInfluence]:
    """Each site's influence over the rounds of a run, the greatest shift first.

    Raises:
        ConfigError: no study is there, it sums updates securely, or no round has been closed since influence is kept.
    """
    if not (run_dir / "protocol.json").exists():
        raise ConfigError(f"no study is in {run_dir}", expected="a run directory")
    protocol = Protocol.read(run_dir / "protocol.json")
    if protocol.summed:
        raise ConfigError(
            f"{protocol.study} sums updates securely: nobody but the site has its update, so that nobody can say "
            "what it did alone", remedy="a study without `secure_sum`, if that must be known",
        )  # fmt: skip
    found: dict[str, dict[str, list[float]]] = {}
    for _, site, name, value in metric_rows(run_dir / "journal.sqlite", SCOPE):
        found.setdefault(site, {}).setdefault(name, []).append(value)
    if not found:
        raise ConfigError(f"{run_dir} has no influence on record", expected="at least one closed round",
                          remedy="it is written down when a round closes, from this release on")  # fmt: skip
    rows = [
        SiteInfluence(site=site, rounds=len(values["norm"]), norm=_median(values["norm"]) or 0.0,
                      cosine=_median(values.get("cosine", [])), shift=_median(values.get("shift", [])))
        for site, values in found.items()
    ]  # fmt: skip
    return sorted(rows, key=lambda row: (-(row.shift if row.shift is not None else math.inf), row.site))


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None
