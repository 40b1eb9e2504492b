"""The engine `flower` without Ray: its settings, the actors' turns, the follower, the guard. With Ray: end_to_end."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from client.app import content_of, frame_of
from server.rounds.events import Event
from server.rounds.follow import Follower, is_complete
from server.rounds.journal import Journal
from shared_model import guard as guard_module
from shared_model.errors import CohortError, ConfigError, RoundError, StorageError
from shared_model.messages import DescribeReply, DescribeRequest, ErrorReply, Frame, TrainReply
from simulations.engine.flower import FlowerSettings, run_on_ray
from simulations.engine.flower.place import run_directory
from simulations.engine.flower.run import _outcome
from simulations.engine.flower.superlink import RunStatus, SuperLink
from simulations.engine.local import _identify
from tests.conftest import SmallStudy as Study

ROOT = Path(__file__).resolve().parents[2]


def shipped(*overrides: str) -> dict[str, Any]:
    with initialize_config_module("configs", version_base="1.3"):
        tree = compose("config", overrides=["engine=flower", *overrides])
        engine = OmegaConf.to_container(tree["engine"], resolve=True)
    assert isinstance(engine, dict)
    return {str(key): value for key, value in engine.items()}


# settings


def test_shipped_settings_start_ray_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    text = FlowerSettings.of(shipped("engine.cpus=4")).federation(9)
    assert text.split() == [
        "num-supernodes=9", "client-resources-num-cpus=1", "client-resources-num-gpus=0.0",
        'init-args-logging-level="WARNING"', "init-args-num-cpus=4",
    ]  # fmt: skip


def test_a_cluster_is_not_told_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    settings = FlowerSettings.of(shipped("engine.num_gpus=0.25", "engine.device=cuda"))
    assert settings.ray_address == "10.0.0.1:6379"
    assert "client-resources-num-gpus=0.25" in settings.federation(3)
    assert "init-args-num" not in settings.federation(3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"device": "cuda:1"}, "engine.device"), ({"device": "cuda"}, "no share of a GPU"),
        ({"num_cpus": 0}, "engine.num_cpus"), ({"num_cpus": 1.5}, "whole number"), ({"num_cpus": True}, "whole number"),
        ({"num_cpus": 10_000}, "more than there are"), ({"num_gpus": float("nan")}, "engine.num_gpus"),
        ({"num_gpus": -1}, "engine.num_gpus"), ({"cpus": 0}, "engine.cpus"), ({"patience_s": "long"}, "patience_s"),
        ({"ray_address": "ray://head:10001"}, "engine.ray_address"), ({"ray_address": ""}, "engine.ray_address"),
        ({"ray_address": "head:6379", "cpus": 2}, "the cluster's own"), ({"more": 1}, "missing or unknown"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(change: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=words):
        FlowerSettings.of({**shipped(), **change})


# actors


def message(number: int, frame: Frame, kind: str = "train", ttl: float = 60.0) -> Message:
    _identify()
    return Message(content_of(frame), number + 1, kind, ttl=ttl)


def answered(reply: Message) -> Any:
    return frame_of(reply.content).message


@pytest.fixture
def actors(small_study: Callable[..., Study]) -> tuple[Study, Any, Any]:
    """Two actors before the same disks, as two of Ray's processes would be."""
    from simulations.engine.flower.actor import Actor

    study = small_study()
    return study, Actor(study.root), Actor(study.root)


def test_nodes_stand_for_sites_by_name_and_then_the_evaluator(actors: tuple[Study, Any, Any]) -> None:
    _, actor, _ = actors
    replies = [answered(actor.answer(message(n, Frame(DescribeRequest())), n)) for n in range(4)]
    assert all(isinstance(reply, DescribeReply) for reply in replies[:3])
    assert [reply.site for reply in replies[:3]] == ["site-01", "site-02", "evaluator"]
    assert isinstance(replies[3], ErrorReply)
    assert "more simulated nodes than parties" in replies[3].reason


def test_actors_take_turns_with_a_site_and_one_replays_what_the_other_answered(actors: tuple[Study, Any, Any]) -> None:
    study, one, other = actors
    request = Frame(study.train(), study.arrays)
    first = one.answer(message(0, request), 0)
    again = other.answer(message(0, request), 0)
    third = one.answer(message(0, Frame(study.train(2), study.arrays)), 0)
    assert isinstance(answered(first), TrainReply)
    assert frame_of(first.content).message == frame_of(again.content).message  # seconds too: it is the stored reply
    assert isinstance(answered(third), TrainReply)


def test_a_message_whose_time_is_over_while_another_is_computed_costs_nothing(
    small_study: Callable[..., Study]
) -> None:
    from simulations.engine.flower.actor import Actor

    study = small_study(private=True)
    state = study.config("site-01").state
    state.mkdir()
    with (state / ".turn").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        reply = Actor(study.root).answer(message(0, Frame(study.train(), study.arrays), ttl=0.1), 0)
    assert "outlived its time" in answered(reply).reason
    assert not (state / "ledger.json").exists()


def test_a_site_without_cohort_says_so_without_a_path(actors: tuple[Study, Any, Any]) -> None:
    study, actor, _ = actors
    shutil.rmtree(study.config("site-02").cohort)
    reply = answered(actor.answer(message(1, Frame(DescribeRequest())), 1))
    assert (reply.kind, reply.code) == ("error", CohortError.exit_code)
    assert str(study.root) not in reply.reason


def test_a_trainer_of_a_hospital_keeps_an_actor_out(actors: tuple[Study, Any, Any]) -> None:
    """The turn is the simulation's own courtesy; the lock of the state holds against everybody."""
    from client.trainer.service import TrainerService

    study, actor, _ = actors
    service = TrainerService(study.config("site-01"), compute=threading.Lock())
    reply = answered(actor.answer(message(0, Frame(DescribeRequest())), 0))
    service.close()
    assert "another trainer uses the state" in reply.reason
    assert isinstance(answered(actor.answer(message(0, Frame(DescribeRequest())), 0)), DescribeReply)


def test_driver_and_server_load_no_torch() -> None:
    code = "import sys, simulations.engine.flower.clientapp, simulations.engine.flower.standalone; "
    command = [sys.executable, "-c", code + "sys.exit('torch' in sys.modules)"]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0


# where things lie


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"run-dir": "/data/run"}, "/data/run"), ({"run-dir": "", "runs-dir": "/data"}, "/data/77"),
        ({}, f"{Path.home()}/.cache/mammofed/flower-runs/77"),
    ],
)  # fmt: skip
def test_server_and_clients_find_the_same_run_directory(config: dict[str, str], expected: str) -> None:
    assert str(run_directory(Context(77, 0, {}, RecordDict(), dict(config)))) == expected


def test_a_relative_run_directory_is_refused() -> None:
    with pytest.raises(ConfigError, match="relative path"):
        run_directory(Context(77, 0, {}, RecordDict(), {"run-dir": "runs/x"}))


def test_flower_finds_its_components_and_ships_no_code() -> None:
    """Flower looks for a plain assignment in the module's text (flwr.supercore.object_ref)."""
    app = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    for reference in app["components"].values():
        module, _, name = reference.partition(":")
        assert f"\n{name} = " in (ROOT / f"{module.replace('.', '/')}.py").read_text()
    assert app["fab-include"] == ["LICENSE"]
    assert {"run-dir", "runs-dir", "study", "overrides", "patience-seconds"} == set(app["config"])


def test_flower_has_a_home_of_its_own_and_tells_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("FLWR_HOME", "/home/somebody/.flwr")
    alone = SuperLink(tmp_path, log_dir=tmp_path, ray_address=None, start_timeout_s=1.0)._environment()
    assert alone["FLWR_HOME"] == str(tmp_path / "home")
    assert (alone["FLWR_TELEMETRY_ENABLED"], alone["FLWR_DISABLE_UPDATE_CHECK"]) == ("0", "1")
    assert (alone["RAY_USAGE_STATS_ENABLED"], alone["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"]) == ("0", "1")
    assert "RAY_ADDRESS" not in alone
    cluster = SuperLink(tmp_path, log_dir=tmp_path, ray_address="10.0.0.2:6379", start_timeout_s=1.0)._environment()
    assert cluster["RAY_ADDRESS"] == "10.0.0.2:6379"


# following a run, and its end


def note(journal: Journal, kind: Any, **values: Any) -> None:
    with journal.entry():
        journal.event(Event(time=1.0, kind=kind, **values))


def test_follower_hands_on_what_is_new(tmp_path: Path) -> None:
    path, seen = tmp_path / "journal.sqlite", []
    early = Follower(path, seen.append)
    early.poll()
    with Journal(path, lambda _: None) as journal:
        note(journal, "finished", text="of the session before", data={"status": "STOPPED", "rounds_completed": 1})
        follower = Follower(path, seen.append)
        follower.poll()
        assert (seen, follower.finished) == ([], None)
        note(journal, "site_replied", site="site-01", round=2, attempt=1, data={"loss": 0.5})
        follower.poll()
        follower.poll()
        assert [(e.kind, e.site, e.round, e.data) for e in seen] == [("site_replied", "site-01", 2, {"loss": 0.5})]
        early.poll()
        assert early.finished is not None
        assert early.finished.data["status"] == "STOPPED"
    assert not is_complete(path)


def test_a_damaged_journal_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "journal.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(StorageError, match="is damaged"):
        is_complete(tmp_path / "journal.sqlite")


def finished(status: str, text: str = "") -> Event:
    return Event(time=1.0, kind="finished", text=text, data={"status": status, "rounds_completed": 3})


@pytest.mark.parametrize("flower", ["finished:completed", "finished:failed", "running", "gone", "unknown"])
def test_the_study_says_how_it_ended_whatever_flower_says(flower: str, tmp_path: Path) -> None:
    status = RunStatus(status=flower, details="")
    found = [_outcome(finished(s, "why"), status, tmp_path).status for s in ("COMPLETE", "INCOMPLETE", "STOPPED")]
    assert found == ["COMPLETE", "INCOMPLETE", "STOPPED"]
    with pytest.raises(RoundError, match=f"ended before the study did.*{flower}.*resume"):
        _outcome(None, status, tmp_path)


def test_a_missing_cohort_is_told_before_anything_starts(small_study: Callable[..., Study]) -> None:
    study = small_study()
    shutil.rmtree(study.config("site-02").cohort)
    settings = FlowerSettings.of(shipped())
    with pytest.raises(CohortError):
        run_on_ray(settings, run_dir=study.root, site_files=list(study.files.values()), observe=lambda _: None,
                   stop=threading.Event())  # fmt: skip
    assert not (study.root / "flower").exists()


# the guard

FAMILY = """\
import subprocess, sys
child = subprocess.Popen([sys.executable, '-c', 'import time; print(1, flush=True); time.sleep(600)'],
                         start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
{then}
"""


def guarded(then: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", guard_module.__file__, sys.executable, "-c", FAMILY.format(then=then)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def gone(process: int, seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="adopting orphans is Linux's")
@pytest.mark.parametrize(("then", "code"), [("sys.exit(7)", 7), ("import os, signal; os.kill(os.getpid(), 9)", 137)])
def test_guard_gives_the_exit_code_and_leaves_nobody(then: str, code: int) -> None:
    guard = guarded(then)
    assert guard.stdout is not None
    orphan = int(guard.stdout.readline())
    assert guard.wait(60) == code
    assert gone(orphan)


@pytest.mark.skipif(sys.platform != "linux", reason="adopting orphans is Linux's")
@pytest.mark.parametrize("how", ["close", "terminate"])
def test_guard_ends_everybody_when_nobody_wants_it_any_more(how: str) -> None:
    guard = guarded("import time; time.sleep(600)")
    assert guard.stdout is not None
    assert guard.stdin is not None
    below = int(guard.stdout.readline())
    if how == "close":
        guard.stdin.close()  # as the kernel does when the process at the other end is killed
    else:
        guard.send_signal(signal.SIGTERM)
    assert guard.wait(60) == 128 + signal.SIGTERM
    assert gone(below)
