"""A run directory made by hand, with everything that a report can show: numbers are invented and fixed."""

from __future__ import annotations

import json
import math
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np

from server.rounds.schema import TABLES
from shared_model.evaluation.evidence import model_evidence, pair_evidence
from shared_model.protocol import Protocol
from simulations.benchmarks.staged_run import SHA, staged_values

SITES = {"north": 300, "east": 250, "south": 180, "west": 100}
ROUNDS = 12
GAINS = (("fused", 0.79, 0.09), ("image", 0.79, 0.05), ("clinical", 0.5, 0.05))  # start and gain of the learning curves


def protocol_values(*, private: bool = True) -> dict[str, Any]:
    return staged_values(SITES, rounds=ROUNDS, private=private, quorum=2) | {"study": "quick"}


def model_report(auc: float) -> dict[str, Any]:
    roc = [[fpr / 100, (fpr / 100) ** ((1 - auc) / auc)] for fpr in range(101)]
    return {
        "auc": auc, "auc_low": auc - 0.03, "auc_high": auc + 0.025, "average_precision": auc - 0.2,
        "sensitivity": auc - 0.1, "sensitivity_low": auc - 0.2, "sensitivity_high": auc - 0.02, "specificity": 0.84,
        "threshold": 0.3, "brier": 0.1, "calibration_slope": 0.94, "calibration_intercept": 0.05, "ece": 0.03,
        "roc": roc,
        "calibration": [[0.05 + 0.1 * i, min(1.0, 0.04 + 0.105 * i), 60 - 5 * i] for i in range(10)],
    }  # fmt: skip


def evidence_values() -> dict[str, Any]:
    """As the trainer makes it, of invented women."""
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], [320, 80])
    scores = {"fused": rng.normal(1.6 * y - 1, 1), "image": rng.normal(1.3 * y - 1, 1)}
    pair = pair_evidence(y, scores["fused"], scores["image"], confidence=0.95, replicates=50)
    return {
        "prevalence": 0.006, "sensitivity": 0.85, "primary": "fused_vs_image", "replicates": 50,
        "models": {name: model_evidence(y, s, threshold=0.3, confidence=0.95, curves=False)
                   for name, s in scores.items()},
        "pairs": {"fused_vs_image": pair | {"p_adjusted": pair["p"]}},
    }  # fmt: skip


def summary_values(protocol: Protocol) -> dict[str, Any]:
    spent = {
        "unit": "patient", "epsilon": 7.4321, "delta": 1e-5, "adjacency": "add_or_remove_one", "accountant": "prv",
        "noise_multiplier": 1.3, "sampling_rate": 0.1, "budget": 8.0, "steps": 60, "metrics_epsilon": 1.21,
    }  # fmt: skip
    held_out = {
        "n": 400, "positives": 80,
        "models": {"fused": model_report(0.873), "image": model_report(0.842), "clinical": model_report(0.651)},
        "public_weights": model_report(0.79),
        "comparisons": {
            "fused_vs_image": {"difference": 0.031, "low": 0.011, "high": 0.051, "p": 0.0023},
            "fused_vs_clinical": {"difference": 0.222, "low": 0.17, "high": 0.27, "p": 1e-9},
        },
        "evidence": evidence_values(),
        "subgroups": [
            {"name": "density", "level": "d", "n": 60, "positives": 12, "auc": 0.81, "auc_low": 0.7, "auc_high": 0.9},
            {"name": "density", "level": "a", "n": 12, "positives": 0, "auc": None, "auc_low": None, "auc_high": None},
            {"name": "vendor", "level": "E", "suppressed": True},
        ],
    }  # fmt: skip
    site = {"n": 61.4, "positives": 12.2, "auc": 0.88, "auc_low": 0.7, "auc_high": 1.0, "brier": 0.1}
    curve = [{"round": n, "auc": {m: start + gain * (1 - math.exp(-n / 4)) for m, start, gain in GAINS}}
             for n in range(1, ROUNDS + 1)]  # fmt: skip
    return {
        "summary_version": 1, "status": "COMPLETE", "study": "quick", "protocol_sha256": protocol.sha256,
        "rounds_planned": ROUNDS, "rounds_completed": ROUNDS, "seconds": 214.0,
        "bytes": {"up": 40_000_000, "down": 41_000_000},
        "participation": {site: {"contributed": ROUNDS} for site in SITES},
        "metrics": {
            "held_out": held_out, "selection": [{"round": 0, "auc": {"image": 0.79}}, *curve],
            "sites": {"north": site, "west": site | {"auc": None, "auc_low": None, "auc_high": None}},
        },
        "privacy_mode": protocol.privacy.mode, "privacy": dict.fromkeys(SITES, spent) if protocol.private else {},
        "versions": {"release": "0.1.0", "torch": "2.13.0", "flwr": "1.41.0", "python": "3.11.7"},
        "model": {"round": 11, "rule": "best_selection_auc", "sha256": SHA}, "alarms": [],
    }  # fmt: skip


def write_journal(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(TABLES)
    for number in range(1, ROUNDS + 1):
        for site in SITES:
            _participate(connection, number, site)
    events = (
        ("attempt_failed", "warning", "quorum", None, 3, "1 of 4 sites contributed"),
        ("site_replied", "warning", "late", "west", 5, "no reply within 600 s <script>alert(1)</script>"),
        ("round_closed", "info", "", None, 6, "an ordinary line"),
    )
    for kind, severity, code, site, number, text in events:
        connection.execute(
            "INSERT INTO events (time, kind, severity, code, site, round, attempt, text, data) "
            "VALUES (1795366800.0, ?, ?, ?, ?, ?, 1, ?, '{}')",
            (kind, severity, code, site, number, text),
        )
    connection.execute("INSERT INTO reports VALUES (11, 'selection', 'evaluator', ?, ?, 0.1, 1, 1)",
                       (SHA, json.dumps({"n": 200, "positives": 40})))  # fmt: skip
    connection.commit()
    connection.close()


def _participate(connection: sqlite3.Connection, number: int, site: str) -> None:
    outcome, reason = "contributed", ""
    if (site, number) == ("west", 5):
        outcome = "late"
    elif (site, number) == ("east", 12):
        outcome, reason = "abstained", "the budget would be exceeded"
    if number == 3:  # a first attempt that failed: what counts is the last one
        connection.execute("INSERT INTO participation VALUES (3, 1, ?, 'failed', 'died', 1, NULL, 0, 9)", (site,))
    connection.execute(
        "INSERT INTO participation VALUES (?, ?, ?, ?, ?, 1, 1.5, 1000, 1000)",
        (number, 2 if number == 3 else 1, site, outcome, reason),
    )


def write_run_dir(run_dir: Path, *, private: bool = True, **changes: Any) -> Protocol:
    """A whole run directory; `changes` replace values of its summary."""
    protocol = Protocol.create(protocol_values(private=private))
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "protocol.json").write_text(protocol.to_json())
    (run_dir / "summary.json").write_text(json.dumps(summary_values(protocol) | changes))
    (run_dir / "launch.json").write_text(json.dumps({"cohort": {"kind": "synthetic"}}))
    if private:
        deltas = {site: {"0.0001": 6.02, "1e-06": 8.91} for site in SITES}
        (run_dir / "privacy-deltas.json").write_text(json.dumps(deltas))
    write_journal(run_dir / "journal.sqlite")
    return protocol
