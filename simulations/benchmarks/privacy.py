"""What a site's privacy guards cost, as a share of a private step: noise generator, ledger and egress gate; a section.

All at `small`, in wall seconds of one thread: ledger and gate wait for the disk, which CPU seconds would not see. The
generator works in every step; ledger and gate once a round, so they are divided by the steps of one. What is compared
with is one whole private step (:mod:`simulations.benchmarks.dp_engines`), generator included.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import torch

from client.privacy.egress import EgressGate
from client.privacy.egress_rules import Asked, Party
from client.privacy.ledger import Ledger, LedgerEntry
from client.privacy.randomness import SecureRandomness
from shared_model.fusion import arrays_of
from shared_model.messages import (
    Arrays,
    Frame,
    PrivacySpent,
    TrainReply,
    TrainRequest,
    encode,
    weights_sha256,
)
from shared_model.protocol import Protocol
from simulations.benchmarks.dp_engines import FEATURES, SIGMA, Case, make_model, make_step
from simulations.benchmarks.table import Row

CASE: Final = Case(size="small", height=224, width=224, of_plain=None, of_hooks=None, memory=None)
STEPS: Final = 8  # of a round, as configs/privacy/patient.yaml has them: the fewer, the dearer is what a round costs
PATIENTS: Final = 2000
MOST: Final = 5.0  # percent of a step, all three together
TURNS: Final = 5

_TERMS: dict[str, Any] = {
    "study": "bench", "release": "bench", "seed": 0,
    "contract": {"version": "1", "sha256": "0" * 64, "n_features": FEATURES},
    "pipeline": {"sha256": "1" * 64, "height": CASE.height, "width": CASE.width, "spacing_mm": 1.0},
    "model": {"size": CASE.size, "fusion": "gated"},
    "initial_weights": {"sha256": "2" * 64, "origin": "random", "recipe": "bench"},
    "loss": {"kind": "bce", "prevalence": 0.3, "pos_weight": 2.0, "focal_gamma": 2.0, "focal_alpha": 0.5,
             "auxiliary": 0.5},
    "training": {
        "engine": "loop", "optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.0, "sample_rate": 16 / PATIENTS,
        "steps_per_round": STEPS, "decay": "constant", "gradient_clip": 1.0, "proximal_mu": 0.0, "ema_decay": 0.0,
        "precision": "fp32", "oversampling": "none",
        "phases": [{"name": "all", "rounds": 100, "objective": "fusion", "learning_rate": 0.01, "encoder_rate": 1.0}],
        "augmentation": {"enabled": False, "rotation_degrees": 0.0, "shift": 0.0, "scale": 0.0, "vertical_flip": 0.0,
                         "elastic": 0.0, "intensity": 0.0, "view_dropout": 0.0, "modality_dropout": 0.0,
                         "feature_dropout": 0.0},
    },
    "privacy": {"mode": "patient", "clip": 1.0, "noise_multiplier": SIGMA, "epsilon": 1e6, "delta": 1e-5,
                "metrics": "none", "metrics_noise_multiplier": 5.0, "metrics_bins": 16},
    "federation": {"strategy": "fedavg", "server_learning_rate": 1.0, "server_beta_1": 0.9, "server_beta_2": 0.99,
                   "server_tau": 1e-3, "sites": [{"name": "north", "patients": PATIENTS, "weight": 1.0}],
                   "sites_per_round": 1, "quorum": 1, "deadline_s": 60.0, "attempts": 1},
    "evaluation": {"selection_rule": "last", "every": 1, "specificity": 0.85, "confidence": 0.95, "bootstrap": 0,
                   "collapse_auc": 0.5},
}  # fmt: skip


def measure(case: Case = CASE, *, turns: int = TURNS) -> list[Row]:
    """One row for each guard and one for all of them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="mammofed-bench-") as folder:
            return _rows(case, Path(folder), turns)
    finally:
        torch.set_num_threads(threads)


def _rows(case: Case, folder: Path, turns: int) -> list[Row]:
    weights = arrays_of(make_model(case))
    parameters = sum(array.size for array in weights.values())
    randomness = SecureRandomness()
    guards: dict[str, tuple[Callable[[], object], int]] = {
        "noise from AES-256-CTR": (lambda: randomness.normal(parameters, std=1.0), 1),
        "ledger, reserve and settle": (_ledger(folder / "ledger"), STEPS),
        "egress gate and its list": (_gate(folder / "gate", case, weights), STEPS),
    }
    step = _seconds(make_step(case, "private"), turns)
    shares = {name: 100 * _seconds(act, turns) / per / step for name, (act, per) in guards.items()}
    rows = [Row(name=f"{case.name}: {name}", value=share, unit="% of a step")
            for name, share in shares.items()]  # fmt: skip
    return [
        Row(name=f"{case.name}: one private step", value=1e3 * step, unit="ms"), *rows,
        Row(name=f"{case.name}: all three", value=sum(shares.values()), unit="% of a step", at_most=MOST),
    ]  # fmt: skip


def _seconds(act: Callable[[], object], turns: int) -> float:
    """Median wall seconds, after one turn that fills caches."""
    taken = []
    for turn in range(turns + 1):
        began = time.perf_counter()
        act()
        if turn:
            taken.append(time.perf_counter() - began)
    return median(taken)


def _ledger(folder: Path) -> Callable[[], object]:
    folder.mkdir()
    ledger, women = Ledger(folder / "ledger.json"), [f"{number:016x}" for number in range(PATIENTS)]
    rounds = iter(range(1, 10_000))

    def one_round() -> None:
        entry = LedgerEntry(group="train", study="bench", protocol_sha256="0" * 64, round=next(rounds), attempt=1,
                            noise_multiplier=SIGMA, sample_rate=16 / PATIENTS, steps=STEPS)  # fmt: skip
        ledger.settle(ledger.reserve(entry, budget=1e6, delta=1e-5, pseudonyms=women))

    return one_round


def _gate(folder: Path, case: Case, weights: Arrays) -> Callable[[], object]:
    folder.mkdir()
    terms = copy.deepcopy(_TERMS)
    terms["pipeline"] |= {"height": case.height, "width": case.width}
    terms["model"]["size"] = case.size
    protocol = Protocol.create(terms)
    gate = EgressGate(folder, party=Party(site="north", role="site", suppress_below=5), recipient="bench", paths=())
    spent = PrivacySpent(epsilon=1.0, budget=2.0, delta=1e-5, noise_multiplier=SIGMA, sample_rate=0.1, steps=STEPS)
    random, rounds = np.random.default_rng(0), iter(range(1, 10_000))
    moved = {name: np.asarray(array + random.normal(0, 1e-4, array.shape), dtype=np.float32)
             for name, array in weights.items()}  # fmt: skip
    sha256 = weights_sha256(weights)

    def one_round() -> None:
        number = next(rounds)
        same: dict[str, Any] = {"study": "bench", "round": number, "attempt": 1, "weights_sha256": sha256}
        reply = TrainReply(site="north", outcome="trained", seconds=1.0, privacy=spent, **same)
        request = TrainRequest(protocol_sha256=protocol.sha256, **same)
        asked = Asked(request=request, protocol=protocol, weights=weights, trained=frozenset(weights))
        gate.release(encode(Frame(reply, moved)), asked)

    return one_round
