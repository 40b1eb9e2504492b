"""A finished study as a comparison reads it from its run directory; called by document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.reporting.facts import mapping, read_object
from server.rounds.summary import validator
from shared_model.errors import StorageError
from shared_model.evaluation.kept import KeptScores
from shared_model.protocol import Protocol
from simulations.comparison.scores import evaluator_scores, hospitals_of
from simulations.population.specs import Population


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """What a run directory says.

    scores: of the held-out women; None where nothing was kept. hospitals: None for other than synthetic cohorts.
    left_out: the vendor that was taken from them. note: what could not be read of these three, in words.
    """

    summary: Mapping[str, Any]
    protocol: Protocol
    left_out: str | None
    hospitals: Population | None
    scores: KeptScores | None
    note: str

    @property
    def confidence(self) -> float:
        """Of all intervals of the study, (0, 1)."""
        return self.protocol.evaluation.confidence

    @property
    def held_out(self) -> Mapping[str, Any]:
        """The document about `test`, empty when it was not opened."""
        return mapping(self.summary["metrics"]["held_out"])

    def model(self, name: str) -> dict[str, Any] | None:
        """AUC and bounds of `fused`, `image`, `clinical` or `public_weights`; None when not measured."""
        models = {**mapping(self.held_out.get("models")), "public_weights": self.held_out.get("public_weights")}
        found = mapping(models.get(name))
        return None if found.get("auc") is None else {k: found.get(k) for k in ("auc", "auc_low", "auc_high")}


def read_study(run_dir: Path) -> StudyResult:
    """Read a run directory.

    Raises:
        StorageError: summary or launch.json are absent or damaged.
        ProtocolError: `protocol.json` is absent or was changed.
    """
    if not (run_dir / "summary.json").is_file():
        raise StorageError("the study left no summary", expected="summary.json of a study that ended",
                           remedy=f"if it was begun: `mammofed simulate resume {run_dir}`")  # fmt: skip
    summary = read_object(run_dir / "summary.json")
    fault = next(iter(validator().iter_errors(summary)), None)
    if fault is not None:
        raise StorageError(f"{run_dir / 'summary.json'} is damaged", found=fault.message[:200],
                           remedy=f"write it again: `mammofed report {run_dir}`")  # fmt: skip
    protocol, settings = Protocol.read(run_dir / "protocol.json"), read_object(run_dir / "launch.json")
    hospitals, scores, note = None, None, ""
    try:
        scores = evaluator_scores(run_dir, protocol)
        hospitals = hospitals_of(settings) if scores is not None else None
    except StorageError as error:  # the summary is good, and worth its row
        note = str(error)
    left_out = mapping(settings.get("cohort")).get("leave_out")
    return StudyResult(summary=summary, protocol=protocol, left_out=left_out, hospitals=hospitals, scores=scores,
                       note=note)  # fmt: skip
