"""The process beside a study: it watches, feeds, and ends with whoever started it; what is wrong is said before."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from server.deploy.home import CoordinatorFile, CoordinatorHome
from server.deploy.watch import watch_service
from server.monitor.companion import accompany, command_of
from server.rounds.states import StudyStep
from shared_model.errors import ConfigError
from simulations.benchmarks.staged_run import StagedRun, staged_protocol
from simulations.companion import check_monitor, companion
from tests.server.monitor.views import NOW

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _this_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def staged(run_dir: Path) -> StagedRun:
    run = StagedRun(run_dir, staged_protocol(sites=["east", "west"], rounds=2), started=NOW)
    run.begin()
    run.round(1)
    return run


def test_it_looks_once_more_before_it_ends(tmp_path: Path) -> None:
    over = threading.Event()
    over.set()
    with staged(tmp_path / "run") as run:
        run.finish(StudyStep.STOP)
        accompany(tmp_path / "run", over)
    assert b'"finished"' in (tmp_path / "run" / "monitor" / "events.jsonl").read_bytes()


def test_beside_a_simulation_it_tells_a_command_and_ends_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way: settings, process, rules of a file, a command that is told."""
    monkeypatch.setattr("simulations.companion.END_S", 600.0)  # it ends at once here, and may still be importing
    told, rules = tmp_path / "told", tmp_path / "rules.yaml"
    (tmp_path / "tell.sh").write_text(f"#!/bin/sh\ncat >> {told}\necho >> {told}\n")
    (tmp_path / "tell.sh").chmod(0o755)
    rules.write_text(f"send: {{command: {{argv: [{tmp_path / 'tell.sh'}]}}}}\nrules: {{disk_low: {{enabled: false}}}}")
    said: list[str] = []
    settings = {"writers": ["jsonl"], "alarms": str(rules)}
    with staged(tmp_path / "run") as run, companion(settings, tmp_path / "run", said.append):
        run.finish(StudyStep.GIVE_UP, "no quorum")
    assert said == [], (tmp_path / "run" / "monitor" / "monitor.log").read_text()
    assert '"rule": "study_failed"' in told.read_text()
    assert (tmp_path / "run" / "monitor" / "events.jsonl").read_bytes().count(b"\n") > 5


def test_without_writers_and_alarms_nothing_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    with companion({"writers": [], "alarms": None}, tmp_path, print):
        pass
    assert not (tmp_path / "monitor").exists()


def test_what_it_cannot_do_is_refused_before_a_study_begins(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown choice"):
        check_monitor({"writers": ["wandb"]})
    (tmp_path / "rules.yaml").write_text("rules: {x: 1}")
    with pytest.raises(ConfigError, match=r"rules\.x"):
        check_monitor({"alarms": str(tmp_path / "rules.yaml")})
    with pytest.raises(ConfigError):
        accompany(tmp_path, threading.Event(), writers=["wandb"])


def test_a_companion_that_fails_is_said_and_costs_the_study_nothing(tmp_path: Path) -> None:
    done = subprocess.run(command_of(tmp_path, writers=["wandb"]), capture_output=True, text=True, check=False)
    assert done.returncode == ConfigError.exit_code and "unknown choice" in done.stderr


@pytest.mark.parametrize("kind", ["none", "web"])
def test_the_settings_of_a_simulation_name_writers_and_alarms(kind: str) -> None:
    group = OmegaConf.load(ROOT / "configs" / "monitor" / f"{kind}.yaml")
    assert (group.kind, group.writers, group.alarms) == (kind, [], None)


def test_the_daemon_s_watch_is_over_its_home_with_its_own_log_and_few_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = CoordinatorHome.create(tmp_path / "hub", CoordinatorFile(name="hub", title="Hub", hosts=("localhost",)))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example")
    monkeypatch.setenv("SECRET", "x")
    service = watch_service(home)
    assert str(tmp_path / "hub") in service.command and service.log == tmp_path / "hub" / "link" / "logs" / "watch.log"
    assert service.environment["MLFLOW_TRACKING_URI"] and "SECRET" not in service.environment
