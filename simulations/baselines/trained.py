"""What one job of a comparison left: its scores, and what its own `selection` chose; read for the evidence."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared_model.map_figures import LOCALISATION, read_map_figures
from simulations.baselines.jobs import ONCE, Job
from simulations.baselines.scores import FILE, PartyScores, read_scores


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One job's scores and what its own `selection` chose.

    thresholds: by score. temperature: of the fused logit. maps: figures of its heat maps as plain values, None where
    they were not measured.
    """

    job: Job
    scores: Mapping[str, PartyScores]
    thresholds: Mapping[str, float]
    temperature: float
    summary: Mapping[str, Any]
    maps: Mapping[str, Any] | None = None

    def logits(self, party: str) -> NDArray[np.float64]:
        """The score that the job is judged by, [N]."""
        found: NDArray[np.float64] = getattr(self.scores[party], self.job.score)
        return found

    def labels(self, party: str) -> NDArray[np.uint8]:
        """Of the same women."""
        return self.scores[party].labels

    @property
    def threshold(self) -> float | None:
        """Of that score."""
        return self.thresholds.get(self.job.score)


Population = Mapping[str, Trained]  # by job name


def read_population(jobs: Sequence[Job], folder: Path) -> Population:
    """All jobs of one population from its folder.

    Raises:
        StorageError: a job's scores are absent or damaged.
    """
    return {job.name: _trained(job, folder / job.name) for job in jobs}


def _trained(job: Job, home: Path) -> Trained:
    path = home / "summary.json"
    summary = json.loads(path.read_bytes()) if path.exists() else {}
    chosen = selection_of(home / "journal.sqlite", summary)
    return Trained(
        job=job, scores=read_scores(home / FILE), thresholds=chosen.get("thresholds") or {},
        temperature=float(chosen.get("temperature") or 1.0), summary=summary, maps=_maps(home, summary),
    )  # fmt: skip


def _maps(home: Path, summary: Mapping[str, Any]) -> Mapping[str, Any] | None:
    if not (chosen := summary.get("model")):
        return None
    found = read_map_figures(home / LOCALISATION, model_sha256=chosen["sha256"], remedy="resume the run")
    return None if found is None else found.model_dump(mode="json")


def selection_of(journal: Path, summary: Mapping[str, Any]) -> Mapping[str, Any]:
    """The `selection` document of the chosen round; empty for a job that chose nothing."""
    chosen = summary.get("model")
    if not journal.exists() or not chosen:
        return {}
    connection = sqlite3.connect(f"{journal.resolve().as_uri()}?mode=ro", uri=True)
    try:
        row = connection.execute(
            "SELECT document FROM reports WHERE scope = 'selection' AND round = ?", (chosen["round"],)
        ).fetchone()
    finally:
        connection.close()
    return json.loads(row[0]) if row else {}


def rival(arm: str, baseline: str, population: Population) -> Trained | None:
    """The arm's own, else the first arm's of what no setting changes."""
    if (found := population.get(f"{arm}/{baseline}")) is not None or baseline not in ONCE:
        return found
    return next((t for t in population.values() if t.job.baseline == baseline), None)
