"""What a study's noise costs in AUC, from the table that `measure` made; pure functions over its rows.

Trainings are grouped by what they asked for (women, epsilon, rounds) and put in order of their noise index. Between
measured groups the mean loss is interpolated over the logarithm of the index, after the pool of neighbours that makes
it rise (isotonic regression); the interval is that of single trainings of the neighbouring groups: one study is one
draw of women and of noise. Nothing is said beyond the measured range.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.isotonic import IsotonicRegression

from shared_model.errors import StorageError

TABLE = Path(__file__).with_name("measured.json")
COVERAGE = (0.05, 0.95)  # of single trainings


@dataclass(frozen=True, kw_only=True)
class Loss:
    """AUC lost to noise. low, high: in which nine of ten measured trainings lie. bound: "" for an interpolation,
    `at most` or `at least` where the index lies beyond what was measured."""

    mean: float
    low: float
    high: float
    bound: str = ""

    @property
    def words(self) -> str:
        """For a sentence."""
        return f"{self.bound} {self.mean:.3f} ({self.low:.3f} to {self.high:.3f})".strip()


@dataclass(frozen=True, kw_only=True)
class Group:
    """Trainings that asked for the same. losses: AUC without noise minus AUC, of each."""

    index: float
    patients: int
    epsilon: float
    rounds: int
    losses: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The table. gain: what training without noise adds over the public weights, mean. command, made: where it comes
    from. held_out: women that every AUC was taken on."""

    groups: tuple[Group, ...]
    gain: float
    command: str
    made: str
    held_out: int

    def loss(self, index: float) -> Loss:
        """What a study with this noise index loses."""
        logs = np.log([group.index for group in self.groups])
        raw = [float(np.mean(group.losses)) for group in self.groups]
        weights = [len(group.losses) for group in self.groups]
        means = IsotonicRegression().fit_transform(logs, raw, sample_weight=weights)
        lows, highs = (
            IsotonicRegression().fit_transform(logs, [float(np.quantile(g.losses, q)) for g in self.groups])
            for q in COVERAGE
        )
        at = math.log(index) if index > 0 else -math.inf
        values = (float(np.interp(at, logs, column)) for column in (means, lows, highs))
        mean, low, high = values
        beyond = "at most" if at < logs[0] else "at least" if at > logs[-1] else ""
        return Loss(mean=mean, low=low, high=high, bound=beyond)

    def index_for(self, loss: float) -> float | None:
        """The greatest index of which the mean loss is at most `loss`; None where every measured one loses more."""
        indices = [group.index for group in self.groups]
        grid = np.geomspace(indices[0], indices[-1], 400)
        good = [float(index) for index in grid if self.loss(float(index)).mean <= loss]
        return max(good) if good else None


@cache
def read_table(path: Path = TABLE) -> Measured:
    """The table that this release ships, or another one.

    Raises:
        StorageError: it is absent or damaged.
    """
    try:
        document = json.loads(path.read_bytes())
        groups = groups_of(document["rows"])
        gains = {
            (row["seed"], row["patients"], row["rounds"]):
            row["auc_without_noise"] - document["auc_at_start"][str(row["seed"])] for row in document["rows"]
        }  # fmt: skip
        return Measured(groups=groups, gain=float(np.mean(list(gains.values()))),
                        command=document["command"], made=document["made"], held_out=document["held_out"])  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{path} is absent or damaged: {error}", remedy="install the release again") from None


def groups_of(rows: Sequence[dict[str, Any]]) -> tuple[Group, ...]:
    """Rows that asked for the same together, in order of their noise index."""
    found: dict[tuple[int, float, int], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        found[row["patients"], row["epsilon"], row["rounds"]].append(row)
    groups = [
        Group(index=float(np.mean([row["noise_index"] for row in members])), patients=patients, epsilon=epsilon,
              rounds=rounds, losses=tuple(row["auc_without_noise"] - row["auc"] for row in members))
        for (patients, epsilon, rounds), members in found.items()
    ]  # fmt: skip
    return tuple(sorted(groups, key=lambda group: group.index))
