"""Designs with real trainings on small cohorts: who is tested where, what thresholds come from, ledgers, resuming."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from client.privacy.accountant import Account
from client.privacy.ledger import Ledger
from client.trainer.config import SiteConfig
from client.trainer.roster import rows_by_part
from server.rounds.checkpoint import read_arrays
from shared_model.cohort import Cohort
from shared_model.evaluation.auc import auc_interval, roc_auc
from shared_model.evaluation.calibration import fit_temperature
from shared_model.evaluation.operating import operating_point, threshold_at_specificity
from shared_model.protocol import Protocol
from simulations import launch
from simulations.composition import compose_config
from simulations.designs.roll import Roll
from simulations.designs.study import DESIGN, judged_of
from simulations.engine.library import TrainerLibrary
from simulations.parties import EVALUATOR, HELD_OUT
from simulations.plan import pipeline_of
from tests.conftest import write_cohort

SMALL = [
    "study=smoke", "rounds=2", "training.steps_per_round=2", "name=unit", "imaging.height=32", "imaging.width=32",
    "model.height=32", "model.width=32", "cohort.test_fraction=0.4", "workers=1", "training=features",
]  # fmt: skip
SIZES = {"site_01": 45, "site_02": 40, HELD_OUT: 60}


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("cohorts")
    pipeline = pipeline_of(compose_config(SMALL)).sha256
    for seed, (name, patients) in enumerate(SIZES.items()):
        write_cohort(root / name, site=name, patients=patients, seed=seed, pipeline=pipeline)
    return {name: root / name for name in SIZES}


@pytest.fixture(scope="module")
def given(cohorts: dict[str, Path]) -> Any:
    """The launcher as it is, with these cohorts in place of films that it would make."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "cohorts_of", lambda *_: cohorts)
        yield cohorts


def started(run_dir: Path, *overrides: str) -> int:
    return launch.launch(OmegaConf.create(compose_config([*SMALL, *overrides])), run_dir, overrides=overrides)


CROSSED = ("privacy=none", "design=cross_validation", "design.folds=2")


@pytest.fixture(scope="module")
def crossed(given: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("crossed")
    assert started(run_dir, *CROSSED) == 0
    return run_dir


def trained_and_tested(run_dir: Path, run: str) -> tuple[set[str], set[str]]:
    """Pseudonyms as the sites' own trainers see them, not as the plan says."""
    found: Mapping[str, set[str]] = {"train": set(), "test": set()}
    for path in (run_dir / DESIGN / run / "sites").glob("*/site.json"):
        config = SiteConfig.read(path)
        if config.role == "site":
            cohort = Cohort.open(config.cohort)
            for part, rows in rows_by_part(config, cohort).items():
                found[part].update(cohort.pseudonyms[row] for row in rows)
    return found["train"], found["test"]


@pytest.mark.slow
def test_each_woman_is_tested_once_and_never_by_a_model_that_trained_on_her(crossed: Path) -> None:
    document, roll = json.loads((crossed / "design.json").read_text()), Roll.read(crossed / DESIGN)
    everyone = {name for site in ("site_01", "site_02") for run in roll.runs
                for name in (*run.train[site], *run.test[site])}  # fmt: skip
    tested: list[str] = []
    for run in roll.runs:
        trained, out = trained_and_tested(crossed, run.name)
        scored = {name for names in run.test.values() for name in names}
        assert not trained & scored and out == scored and trained | scored == everyone
        tested += scored
    assert len(tested) == len(set(tested)) == len(everyone) == document["women"]["tested"] == 85
    judged = judged_of(roll, crossed / DESIGN)
    areas = [roc_auc(one.labels(), one.logits()) for one in judged]
    assert [row["auc"] for row in document["runs"]] == areas
    assert document["folds"]["fused"]["mean"] == pytest.approx(np.mean(areas))
    assert {row["site"]: row["n"] for row in document["sites"]} == {"site_01": 45, "site_02": 40}
    page = (crossed / "report.html").read_text()
    assert "85 women" in page and "never trained on her" in page and "without differential privacy" in page


@pytest.mark.slow
def test_round_threshold_and_temperature_come_from_women_who_are_tested_nowhere(crossed: Path) -> None:
    roll = Roll.read(crossed / DESIGN)
    judged = judged_of(roll, crossed / DESIGN)[0]
    home = crossed / DESIGN / judged.run.name
    party = SiteConfig.read(home / "sites" / EVALUATOR / "site.json")
    women = set(Cohort.open(party.cohort).pseudonyms)
    at_sites = {name for run in roll.runs for part in (run.train, run.test) for who in part.values() for name in who}
    assert not women & at_sites
    files = sorted((home / "sites").glob("*/site.json"))
    with TrainerLibrary(files) as library:
        arrays, protocol = read_arrays(home / "model.safetensors"), Protocol.read(home / "protocol.json")
        selection = library.scores(EVALUATOR, protocol, arrays, "selection")
    wanted = protocol.evaluation.specificity
    assert judged.threshold == pytest.approx(
        threshold_at_specificity(selection.labels, selection.fused, specificity=wanted), abs=1e-6)
    row = json.loads((crossed / "design.json").read_text())["runs"][0]
    assert judged.threshold is not None
    point = operating_point(judged.labels(), judged.logits(), threshold=judged.threshold, confidence=0.95)
    assert (row["sensitivity"], row["specificity"]) == (point.sensitivity.value, point.specificity.value)
    assert row["temperature"] == judged.temperature != 1.0
    assert judged.temperature == pytest.approx(fit_temperature(selection.labels, selection.fused), rel=1e-4)


@pytest.mark.slow
def test_a_stopped_design_goes_on_to_the_same_end(crossed: Path, given: dict[str, Path], tmp_path: Path) -> None:
    def interrupt() -> None:
        while not (tmp_path / DESIGN / "fold_0" / "journal.sqlite").exists():
            time.sleep(0.01)  # until the first training has begun: Ctrl-C must find one that has not
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    assert started(tmp_path, *CROSSED) == launch.EXIT_STOPPED
    assert not (tmp_path / "design.json").exists() and not (tmp_path / DESIGN / "fold_1").exists()
    assert launch.resume(tmp_path) == 0
    assert json.loads((tmp_path / "design.json").read_text()) == json.loads((crossed / "design.json").read_text())


@pytest.mark.slow
def test_with_privacy_the_ledgers_go_on_and_hold_the_sum(given: dict[str, Path], tmp_path: Path) -> None:
    assert started(tmp_path, "design=leave_one_site_out") == 0
    document, roll = json.loads((tmp_path / "design.json").read_text()), Roll.read(tmp_path / DESIGN)
    assert [run.name for run in roll.runs] == ["all_sites", "without_site_01", "without_site_02"]
    assert all("site_01" not in (run.train if run.name == "without_site_01" else run.test) or run.name == "all_sites"
               for run in roll.runs if run.name != "without_site_02")  # fmt: skip
    for run in roll.runs:
        trained, _ = trained_and_tested(tmp_path, run.name)
        assert not trained & {name for names in run.test.values() for name in names}
    (sigma, rate, steps) = roll.price.mechanisms[0]
    expected = Account().add(noise_multiplier=sigma, sample_rate=rate, steps=2 * steps).epsilon(delta=1e-5)
    privacy = document["privacy"]
    assert privacy["releases"] == {"site_01": 2, "site_02": 2}
    for site, last in (("site_01", "without_site_02"), ("site_02", "without_site_01")):
        ledger = Ledger(tmp_path / DESIGN / last / "sites" / site / "state" / "ledger.json")
        assert len({record["protocol_sha256"] for record in ledger.records()}) == 2  # of both runs, in one chain
        assert privacy["spent"][site] == ledger.spent("train", delta=1e-5) == privacy["together"][site] == expected
        assert ledger.spent("metrics", delta=1e-5) == 0.0  # tested women are in no group that is counted apart
    assert expected <= privacy["granted"] == 8.0 and privacy["one"] < expected
    rows = {row["site"]: row for row in document["sites"]}
    judged = {one.run.name: one for one in judged_of(roll, tmp_path / DESIGN)}
    for site, row in rows.items():
        left, full = judged[f"without_{site}"], judged["all_sites"]
        assert row["n"] == SIZES[site]
        place = [left.run.test[site].index(name) for name in full.run.test[site]]
        labels, here = left.labels()[place], left.logits()[place]
        assert np.array_equal(labels, full.labels(site)) and row["shared"]["n"] == len(labels)
        assert row["shared"]["without"] == auc_interval(labels, here, confidence=0.95).value
        assert row["shared"]["with"] == roc_auc(labels, full.logits(site))
    assert "All releases add up: a woman trains in up to 2 of 3 trainings" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_the_later_women_are_tested_beside_earlier_ones_who_did_not_train(
    given: dict[str, Path], tmp_path: Path
) -> None:
    years = {name: 2018 + place % 4 for site in ("site_01", "site_02")
             for place, name in enumerate(Cohort.open(given[site]).pseudonyms) if place != 5}  # fmt: skip
    (tmp_path / "years.csv").write_text("pseudonym,year\n" + "".join(f"{n},{y}\n" for n, y in years.items()))
    run_dir = tmp_path / "run"
    assert started(run_dir, "privacy=none", "design=temporal", "design.until=2021",
                   f"design.years={tmp_path / 'years.csv'}") == 0  # fmt: skip
    trained, tested = trained_and_tested(run_dir, "until_2021")
    assert all(years[name] < 2021 for name in trained) and not trained & tested
    assert {name for name, year in years.items() if year >= 2021} <= tested and len(trained | tested) == len(years)
    periods = json.loads((run_dir / "design.json").read_text())["periods"]
    assert periods["unknown"] == {"site_01": 1, "site_02": 1}
    assert periods["later"]["n"] == sum(y >= 2021 for y in years.values())
    assert periods["earlier"]["n"] == len(tested) - periods["later"]["n"] > 0
    assert sum(row["n"] for row in periods["years"]) == len(tested)
    gap = periods["later"]["auc"] - periods["earlier"]["auc"]
    assert periods["difference"]["difference"] == pytest.approx(gap)
