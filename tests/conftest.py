"""Shared by the tests of trainer, engine and rounds: a small study laid out as hospitals have it, with real cohorts."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from client.trainer.config import SiteConfig
from shared_model.cohort import CohortWriter
from shared_model.contract import load_contract
from shared_model.messages import EvaluateRequest, TrainRequest, weights_sha256
from shared_model.protocol import Protocol
from tests import shares

# Hypothesis looks at the clock: on a busy machine an example, or what draws it, may take any time. Its examples are the
# same in each run, so that a change is judged by itself and not by another's luck; HYPOTHESIS_SEARCH=1 looks for new.
settings.register_profile("suite", deadline=None, derandomize=not os.environ.get("HYPOTHESIS_SEARCH"), database=None,
                          suppress_health_check=[HealthCheck.too_slow])  # fmt: skip
settings.load_profile("suite")

HEIGHT, WIDTH = 32, 32
PIPELINE = "1" * 64
VIEWS = ("L_CC", "L_MLO", "R_CC", "R_MLO")

BASE: dict[str, Any] = {
    "study": "unit", "release": "0.1.0", "seed": 7,
    "pipeline": {"sha256": PIPELINE, "height": HEIGHT, "width": WIDTH, "spacing_mm": 4.0},
    "model": {"size": "tiny", "fusion": "gated"},
    "initial_weights": {"sha256": "2" * 64, "origin": "random", "recipe": "test"},
    "loss": {"kind": "bce", "prevalence": 0.3, "pos_weight": 2.0, "focal_gamma": 2.0, "focal_alpha": 0.5,
             "auxiliary": 0.5},
    "training": {
        "optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.0, "sample_rate": 0.25, "steps_per_round": 2,
        "decay": "constant", "gradient_clip": 1.0, "proximal_mu": 0.0, "ema_decay": 0.0, "precision": "fp32",
        "oversampling": "none",
        "phases": [{"name": "all", "rounds": 6, "objective": "fusion", "learning_rate": 0.05, "encoder_rate": 1.0}],
        "augmentation": {"enabled": True, "rotation_degrees": 5.0, "shift": 0.02, "scale": 0.02, "vertical_flip": 0.5,
                         "elastic": 0.0, "intensity": 0.1, "view_dropout": 0.1, "modality_dropout": 0.1,
                         "feature_dropout": 0.1},
    },
    "privacy": {"clip": 1.0, "epsilon": 8.0, "delta": 1e-5, "metrics": "final", "metrics_noise_multiplier": 4.0,
                "metrics_bins": 16},
    "federation": {"strategy": "fedavg", "server_learning_rate": 1.0, "server_beta_1": 0.9, "server_beta_2": 0.99,
                   "server_tau": 1e-3, "quorum": 1, "deadline_s": 600.0, "attempts": 3},
    "evaluation": {"selection_rule": "best_selection_auc", "every": 1, "specificity": 0.85, "confidence": 0.95,
                   "bootstrap": 20, "collapse_auc": 0.5},
}  # fmt: skip


@dataclass(frozen=True)
class SmallStudy:
    """files: site.json of each party by name; `evaluator` among them."""

    root: Path
    protocol: Protocol
    arrays: Mapping[str, np.ndarray[Any, Any]]
    files: Mapping[str, Path]

    def config(self, party: str) -> SiteConfig:
        return SiteConfig.read(self.files[party])

    def train(self, round_number: int = 1, *, attempt: int = 1, arrays: Any = None, **changes: Any) -> TrainRequest:
        values = {
            "study": self.protocol.study, "protocol_sha256": self.protocol.sha256, "round": round_number,
            "attempt": attempt, "weights_sha256": weights_sha256(self.arrays if arrays is None else arrays),
        }  # fmt: skip
        return TrainRequest(**{**values, **changes})

    def evaluate(self, scope: str, *, round_number: int = 1, **changes: Any) -> EvaluateRequest:
        values = {
            "study": self.protocol.study, "protocol_sha256": self.protocol.sha256, "round": round_number,
            "weights_sha256": weights_sha256(self.arrays), "scope": scope,
        }  # fmt: skip
        return EvaluateRequest(**{**values, **changes})


def write_cohort(folder: Path, *, site: str, patients: int, seed: int, pipeline: str = PIPELINE) -> None:
    """Women made of random numbers, some without films, some without a table row; both labels."""
    contract = load_contract()
    random = np.random.default_rng(seed)
    with CohortWriter(
        folder, site=site, contract_sha256=contract.sha256, pipeline_sha256=pipeline, height=HEIGHT, width=WIDTH,
        n_features=contract.n_features,
    ) as writer:  # fmt: skip
        for number in range(patients):
            label = int(number % 3 == 0)
            views = {
                v: np.clip(random.random((2, HEIGHT, WIDTH)) * 0.5 + 0.3 * label, 0, 1).astype(np.float32)
                for v in VIEWS if number % 7 and random.random() < 0.9
            }  # fmt: skip
            table = number % 7 == 0 or not views or random.random() < 0.8
            clinical = random.normal(size=contract.n_features).astype(np.float32) * 0.5 + 0.5 * label
            attributes = {"vendor": f"V{number % 2}", "age_years": 40.0 + number % 35, "density": "abcd"[number % 4]}
            writer.add(f"{seed:04x}{number:012x}", views, clinical if table else None, label, attributes)


def make_study(
    root: Path, *, sites: int = 2, patients: int = 30, held_out: int = 60, private: bool = False,
    suppress_below: int = 5, **changes: Any
) -> SmallStudy:
    """Cohorts, protocol, initial weights and the parties' installations under `root`.

    suppress_below: of the parties' own policies: a site of few women says nothing of its own test women.
    changes: protocol values by dotted name with `__`, e.g. `training__steps_per_round=3`.
    """
    from shared_model.fusion import FusionConfig, arrays_of, build_model

    names = [f"site-{i:02d}" for i in range(1, sites + 1)]
    contract = load_contract()
    values = copy.deepcopy(BASE)
    values["contract"] = {"version": contract.version, "sha256": contract.sha256, "n_features": contract.n_features}
    values["training"]["engine"] = "loop" if private else "batch"
    values["privacy"] |= {"mode": "patient" if private else "none", "noise_multiplier": 1.0 if private else 0.0}
    values["federation"] |= {
        "sites": [{"name": name, "patients": patients, "weight": 1.0} for name in names], "sites_per_round": sites,
    }  # fmt: skip
    for dotted, value in changes.items():
        *path, last = dotted.split("__")
        place = values
        for part in path:
            place = place[part]
        place[last] = value
    protocol = Protocol.create(values)
    files = {}
    for seed, name in enumerate([*names, "evaluator"]):
        role = "evaluator" if name == "evaluator" else "site"
        home = root / "sites" / name
        (home / "protocols").mkdir(parents=True)
        write_cohort(home / "cohort", site=name, patients=held_out if role == "evaluator" else patients, seed=seed)
        (home / "protocols" / "approved.json").write_text(protocol.to_json())
        config = SiteConfig(
            coordinator=None, private_only=False,  # all parties live on this machine
            suppress_below=suppress_below,
            site=name, role=role, cohort=home / "cohort", state=home / "state", protocols=home / "protocols",  # type: ignore[arg-type]
            device="cpu", salt="unit",
            fractions={"selection": 0.5, "test": 0.5} if role == "evaluator" else {"train": 0.7, "test": 0.3},
        )  # fmt: skip
        files[name] = home / "site.json"
        files[name].write_text(config.to_json())
    model = build_model(FusionConfig.of(protocol), seed=protocol.seed, prevalence=0.3)
    return SmallStudy(root, protocol, arrays_of(model), files)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with whole studies first: two test processes share the rest while the last of them run.

    Kept by `--no-loadscope-reorder` (Makefile), without which xdist begins with the files of many tests.
    """
    long = {item.path for item in items if "end_to_end" in item.path.parts or item.get_closest_marker("slow")}
    items.sort(key=lambda item: ("end_to_end" not in item.path.parts, item.path not in long))


METER = shares.Meter()


def pytest_runtest_logstart() -> None:
    """What collecting took is no test's."""
    METER.lap()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    report = yield
    report.cpu_seconds = METER.lap()  # type: ignore[attr-defined]  # travels from a test process to the one that sums up
    return report  # type: ignore[return-value]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Seconds by part of the product, after a run of many tests."""
    told = [r for kind in ("", "passed", "failed", "error", "skipped") for r in terminalreporter.stats.get(kind, [])]
    laps = [(r.nodeid, r.cpu_seconds) for r in told if hasattr(r, "cpu_seconds")]
    if len({name for name, _ in laps}) >= shares.LEAST_TESTS:
        terminalreporter.section("seconds by part (tests/shares.py)")
        for line in shares.table(laps):
            terminalreporter.write_line(line)


@pytest.fixture
def small_study(tmp_path: Path) -> Callable[..., SmallStudy]:
    """Make a small study in this test's own folder."""
    return lambda root_name="study", **settings: make_study(tmp_path / root_name, **settings)


@pytest.fixture(scope="session")
def study_maker() -> Callable[..., SmallStudy]:
    """As :func:`small_study`, under a folder of the caller's choice: `study_maker(root, sites=4)`."""
    return make_study
