"""A whole small comparison with real trainings: it resumes, tells failures, and its first job is the study itself."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from client.trainer.config import SiteConfig
from server.release import write_release
from server.rounds.checkpoint import read_arrays
from server.rounds.loop import run_study
from shared_model.errors import RoundError
from shared_model.passport import PASSPORT, verify
from shared_model.protocol import Protocol
from shared_model.released import RELEASE, ReleasedModel
from simulations.baselines.jobs import FEDERATED
from simulations.baselines.scores import FILE, read_scores
from simulations.baselines.study import run_comparison
from simulations.baselines.suite import Population, Tell, jobs_of, run_jobs
from simulations.composition import compose_config
from simulations.engine import LocalGrid, TrainerPool
from simulations.live import LiveView
from simulations.parties import HELD_OUT
from simulations.plan import pipeline_of
from tests.conftest import write_cohort

SMALL = [
    "study=smoke", "privacy=none", "rounds=3", "training.steps_per_round=2", "name=unit", "imaging.height=32",
    "imaging.width=32", "model.height=32", "model.width=32", "cohort.test_fraction=0.4", "workers=2",
]  # fmt: skip


@dataclass
class Forever:
    """A job of that name."""

    name: str


def endless(job: Any, population: Population, name: str, tell: Tell, stop: Any) -> str:
    """A training that ends by itself never, not even when it is asked to stop."""
    tell(job.name, 1, 2)
    threading.Event().wait()
    return str(job.name)


def test_a_second_ctrl_c_leaves_at_once(tmp_path: Path) -> None:
    class Interrupted(LiveView):
        def job(self, *_: object) -> None:
            raise KeyboardInterrupt  # what the second one becomes (simulations.live)

    population = Population(seed=1, cohorts={}, folder=tmp_path)
    with Interrupted(tmp_path, console=Console(quiet=True)) as view, pytest.raises(KeyboardInterrupt):
        run_jobs([Forever("a"), Forever("b")], population, name="unit", workers=2, view=view,
                 stop=threading.Event(), work=endless)  # fmt: skip
    assert not multiprocessing.active_children()


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("cohorts")
    pipeline = pipeline_of(compose_config(SMALL)).sha256
    for seed, (name, patients) in enumerate((("site_01", 40), ("site_02", 40), (HELD_OUT, 70))):
        write_cohort(root / name, site=name, patients=patients, seed=seed, pipeline=pipeline)
    return {name: root / name for name in ("site_01", "site_02", HELD_OUT)}


@pytest.fixture(scope="module")
def compared(cohorts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Two arms with all baselines, 11 trainings in all."""
    run_dir = tmp_path_factory.mktemp("run")
    config = compose_config([*SMALL, "baselines=[pooled,local,image_only,clinical_only,logistic,public_only]"])
    config["arms"] = {"plain": {}, "short": {"overrides": ["rounds=2"]}}
    code = run_comparison(config, run_dir, overrides=SMALL, cohorts=lambda *_: cohorts)
    assert code == 0
    return run_dir, config


@pytest.mark.slow
def test_a_comparison_leaves_scores_documents_and_tables(compared: tuple[Path, dict[str, Any]]) -> None:
    run_dir, _ = compared
    document = json.loads((run_dir / "seed-1/comparison.json").read_text())
    assert set(document["arms"]) == {"plain", "short"} and len(document["jobs"]) == 2 * 6 + 2
    assert set(document["arms"]["plain"]["federated_minus_local"]) == {"site_01", "site_02"}
    initial = {row["initial"] for name, row in document["jobs"].items() if not name.endswith("logistic")}
    assert len(initial) == 1  # all trainings begin with the same weights
    assert "Held-out test AUC" in (run_dir / "comparison.md").read_text()
    protocols = [Protocol.read(path) for path in run_dir.glob("seed-1/plain/**/protocol.json")]
    assert len({(p.rounds, p.training.steps_per_round, p.training.sample_rate) for p in protocols}) == 1
    women = {len(read_scores(path)[HELD_OUT].labels) for path in run_dir.glob(f"seed-1/**/{FILE}")}
    assert len(women) == 1


@pytest.mark.slow
def test_every_arm_has_a_passport_and_can_be_released(compared: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    run_dir, _ = compared
    homes = {path.parent.relative_to(run_dir / "seed-1").as_posix() for path in run_dir.rglob(PASSPORT)}
    assert homes == {"plain/federated", "short/federated"}, "arms, and no control"
    for home in homes:
        found = verify(run_dir / "seed-1" / home)
        assert RELEASE in found.checked and found.signed.passport.data.kind == "synthetic"
        assert found.signed.passport.status == "COMPLETE"
    write_release(run_dir / "seed-1/short/federated", tmp_path / "model")
    assert ReleasedModel.read(tmp_path / "model").protocol.rounds == 2


@pytest.mark.slow
def test_the_federated_job_is_the_study_itself_to_the_bit(
    compared: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """In one process as a library or in trainer processes: the same protocol gives the same model."""
    run_dir, _ = compared
    home = run_dir / "seed-1/plain" / FEDERATED
    protocol = Protocol.read(home / "protocol.json")
    files = []
    for path in sorted((home / "sites").glob("*/site.json")):
        party = SiteConfig.read(path)
        (tmp_path / party.site).mkdir()
        files.append(tmp_path / f"{party.site}.json")
        files[-1].write_text(party.model_copy(update={"state": tmp_path / party.site}).to_json())
    with TrainerPool(files, log_dir=tmp_path / "logs", processes=2, start_timeout_s=300.0) as pool:
        outcome = run_study(
            grid=LocalGrid(pool), protocol=protocol, run_dir=tmp_path / "run", stop=threading.Event(),
            initial=read_arrays(home / "initial.safetensors"), observer=lambda _: None,
        )  # fmt: skip
    assert outcome.status == "COMPLETE"
    one, two = (read_arrays(folder / "model.safetensors") for folder in (home, tmp_path / "run"))
    assert all(np.array_equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_what_is_done_is_not_done_again_and_a_failure_is_told_by_name(
    compared: tuple[Path, dict[str, Any]], cohorts: dict[str, Path], tmp_path: Path
) -> None:
    run_dir, config = compared
    before = {path: path.stat().st_mtime_ns for path in run_dir.glob(f"seed-1/**/{FILE}")}
    assert run_comparison(config, run_dir, overrides=SMALL, cohorts=lambda *_: cohorts) == 0
    assert before == {path: path.stat().st_mtime_ns for path in run_dir.glob(f"seed-1/**/{FILE}")}
    broken = Population(seed=1, cohorts={**cohorts, "site_02": tmp_path / "gone"}, folder=tmp_path)
    jobs = list(jobs_of({**config, "arms": None, "baselines": []}, broken, SMALL))
    with LiveView(tmp_path, console=Console(file=(tmp_path / "out").open("w"))) as view, \
            pytest.raises(RoundError, match=r"1 of 1 trainings of seed 1 failed.*site_02|gone"):  # fmt: skip
        run_jobs(jobs, broken, name="unit", workers=1, view=view, stop=threading.Event())
    assert not list(tmp_path.glob(f"**/{FILE}"))


LAUNCHER = """
import os, signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from simulations.baselines.suite import _begin
context = get_context("spawn")
with ProcessPoolExecutor(1, context, _begin, (context.Queue(), context.Event())) as pool:
    print(pool.submit(os.getpid).result(), flush=True)
    signal.pause()
"""


def test_a_worker_ends_with_a_launcher_that_is_killed() -> None:
    """It holds the launcher's output open: that closes when the last of them is gone."""
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    worker = int(launcher.stdout.readline())
    launcher.kill()
    try:
        launcher.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.kill(worker, signal.SIGKILL)
        pytest.fail("the worker outlived its launcher")
