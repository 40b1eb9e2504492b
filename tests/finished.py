"""A small study's run directory as it lies when the study has ended; nothing was trained, figures are invented."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from server.rounds.checkpoint import write_safetensors
from server.rounds.journal import Journal, Participation
from server.rounds.states import RoundStep, StudyStep
from server.rounds.summary import write_summary
from shared_model.evaluation import Scores, selection_report, test_report
from shared_model.map_figures import LOCALISATION, MapFigures, write_map_figures
from shared_model.messages import PrivacySpent, weights_sha256
from tests.shared_model.test_map_figures import figure, share

OUTCOMES = {1: "contributed", 2: "late", 3: "contributed"}


def scores(women: int, *, seed: int = 0, gain: float = 1.0) -> Scores:
    """Logits of women of whom a third has cancer; gain: how far apart the two are."""
    random = np.random.default_rng(seed)
    labels = (np.arange(women) % 3 == 0).astype(np.uint8)
    columns = [random.normal(size=women) + gain * labels for _ in range(3)]
    return Scores(labels, *columns, np.full((women, 2), 0.5))


def finish(study: Any, *, rounds: int = 3, chosen: int = 2, spent: bool = True) -> Path:
    """Journal, weights and summary of a COMPLETE study in its own folder. study: a `SmallStudy` of so many rounds."""
    import pandas as pd

    root, protocol = study.root, study.protocol
    (root / "protocol.json").write_text(protocol.to_json())
    write_safetensors(root / "initial.safetensors", study.arrays, "initial", {})
    weights = {name: array + np.float32(0.01) for name, array in study.arrays.items()}
    sha256 = weights_sha256(weights)
    write_safetensors(root / "model.safetensors", weights, "model", {"round": chosen})
    held_out = scores(90)
    selection = selection_report(held_out, protocol.evaluation)
    attributes = pd.DataFrame({"vendor": ["A"] * 60 + ["B"] * 21 + ["C"] * 5 + ["D"] * 4})
    tested = test_report(held_out, thresholds=selection["thresholds"], temperature=selection["temperature"],
                         terms=protocol.evaluation, attributes=attributes,
                         reference=scores(90, seed=1, gain=0.2).fused)  # fmt: skip
    traffic: dict[str, Any] = {"weights": sha256, "seconds": 0.1, "bytes_up": 1, "bytes_down": 1}
    with Journal(root / "journal.sqlite", lambda _: None) as journal:
        journal.begin_session({"python": "3.11"})
        with journal.study_step(StudyStep.START):
            journal.put("study", protocol.study)
        for number in range(1, rounds + 1):
            _close(journal, protocol, number, sha256, spent=spent and protocol.private)
        with journal.study_step(StudyStep.CHOOSE):
            journal.report(chosen, "selection", "evaluator", document=selection, **traffic)
            journal.put("chosen", {"round": chosen, "rule": "best_selection_auc", "sha256": sha256})
        with journal.study_step(StudyStep.TEST):
            journal.report(chosen, "test", "evaluator", document=tested, **traffic)
            journal.report(0, "test_initial", "evaluator", document=tested, **traffic)
            for site in protocol.federation.sites:
                row = {"n": 41.3, "positives": 14.8, "auc": 0.8, "auc_low": 0.6, "auc_high": 0.95, "brier": 0.2}
                journal.report(chosen, "site", site.name, document=row, **traffic)
        with journal.study_step(StudyStep.COMPLETE):
            pass
    write_summary(root)
    return Path(root)


def measure(run_dir: Path, *, pointing: float = 0.6) -> None:
    """`localisation.json` of the run's own model. pointing: share of films, invented."""
    document = json.loads((run_dir / "summary.json").read_text())
    row = figure(share(pointing, pointing - 0.05), cohort="synthetic women")
    write_map_figures(run_dir / LOCALISATION, MapFigures.model_validate({
        "model_sha256": document["model"]["sha256"], "cohort": "synthetic women", "methods": {"hirescam": row},
    }))  # fmt: skip


def _close(journal: Journal, protocol: Any, number: int, sha256: str, *, spent: bool) -> None:
    steps = (RoundStep.OPEN, RoundStep.COLLECT, RoundStep.AGGREGATE, RoundStep.EVALUATE, RoundStep.SAVE,
             RoundStep.CLOSE)  # fmt: skip
    columns = {RoundStep.OPEN: {"weights_before": sha256}, RoundStep.SAVE: {"weights_after": sha256}}
    for step in steps:
        with journal.round_step(number, 1, step, **columns.get(step, {})):
            if step is not RoundStep.COLLECT:
                continue
            for site in protocol.federation.sites:
                outcome = OUTCOMES.get(number, "contributed") if site.name.endswith("1") else "contributed"
                journal.participation(number, 1, Participation(
                    site=site.name, outcome=outcome, reason="", asked=1, seconds=0.1, bytes_up=1, bytes_down=1,
                ))  # fmt: skip
                if spent:
                    journal.privacy(number, site.name, "training", PrivacySpent(
                        unit="patient", adjacency="add_or_remove_one", accountant="prv", epsilon=1.5 * number,
                        budget=8.0, delta=1e-5, noise_multiplier=1.0, sample_rate=0.25, steps=2 * number,
                    ))  # fmt: skip
