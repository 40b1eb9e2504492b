"""A study of eight sites on Flower's simulation runtime with Ray: the numbers of the local engine, and true endings."""

from __future__ import annotations

import importlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from server.rounds.events import Event
from server.rounds.loop import run_study
from shared_model.guard import descendants
from shared_model.messages import weights_sha256
from simulations.engine import LocalGrid
from simulations.engine.flower import FlowerSettings, run_on_ray
from simulations.engine.flower.run import RAY_TOO_SLOW, RUN_LOG
from tests.conftest import SmallStudy as Study

pytestmark = pytest.mark.slow
SITES = 8
PHASES = [{"name": "all", "rounds": 2, "objective": "fusion", "learning_rate": 0.05, "encoder_rate": 1.0}]


def settings(actors: int) -> FlowerSettings:
    return FlowerSettings(device="cpu", num_cpus=1, num_gpus=0.0, cpus=actors, gpus=None, ray_address=None,
                          start_timeout_s=600.0, patience_s=600.0, end_timeout_s=30.0)  # fmt: skip


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory, study_maker: Callable[..., Study]) -> tuple[Study, Study]:
    """The same study twice, each with its own disks; every site must contribute to every round."""
    place = tmp_path_factory.mktemp("flower")
    sha256 = weights_sha256(study_maker(place / "weights", sites=1).arrays)  # they do not depend on the sites
    terms = {
        "sites": SITES, "patients": 12, "held_out": 40, "initial_weights__sha256": sha256, "training__phases": PHASES,
        "federation__quorum": SITES, "federation__attempts": 2, "federation__deadline_s": 600.0,
    }  # fmt: skip
    made = study_maker(place / "local", **terms), study_maker(place / "flower", **terms)
    for study in made:
        (study.root / "protocol.json").write_text(study.protocol.to_json())
        save_file(dict(study.arrays), study.root / "initial.safetensors")
    return made


@pytest.fixture(scope="module")
def local(studies: tuple[Study, Study]) -> Path:
    """The undisturbed study on the local grid."""
    from simulations.engine.library import TrainerLibrary

    study, _ = studies
    with TrainerLibrary(list(study.files.values())) as library:
        grid = LocalGrid(library, app=library)
        outcome = run_study(grid=grid, protocol=study.protocol, run_dir=study.root, initial=study.arrays,
                            observer=lambda _: None, stop=threading.Event())  # fmt: skip
        grid.close()
    assert outcome.status == "COMPLETE", outcome.reason
    return study.root


@pytest.fixture(scope="module")
def starts(studies: tuple[Study, Study]) -> Iterator[list[bool]]:
    """Of each start of Flower's runtime, whether Ray was too slow for itself, upon which there is one more."""
    made: list[bool] = []
    flower_run = importlib.import_module("simulations.engine.flower.run")
    real, log = flower_run._run, studies[1].root / RUN_LOG

    def slow() -> int:
        return log.read_bytes().count(RAY_TOO_SLOW) if log.exists() else 0

    def run(*given: Any) -> Any:
        before = slow()
        status = real(*given)
        made.append(slow() > before)
        return status

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flower_run, "_run", run)
        yield made


@pytest.fixture(scope="module")
def killed(studies: tuple[Study, Study], starts: list[bool]) -> tuple[Any, list[Event]]:
    """The same study on Ray; its one actor is killed when the first round opens."""
    _, study = studies
    events: list[Event] = []

    def observe(event: Event) -> None:
        events.append(event)
        if event.kind == "round_opened" and event.attempt == 1:
            for process in actors_of(os.getpid()):
                os.kill(process, signal.SIGKILL)

    outcome = run_on_ray(settings(1), run_dir=study.root, site_files=list(study.files.values()), observe=observe,
                         stop=threading.Event())  # fmt: skip
    return outcome, events


def actors_of(process: int) -> list[int]:
    """Ids of Ray's actors below a process."""
    found = []
    for below in descendants(process):
        try:
            command = Path(f"/proc/{below}/cmdline").read_bytes()
        except OSError:
            continue
        if command.startswith(b"ray::ClientAppActor"):
            found.append(below)
    return found


@pytest.fixture(scope="module")
def resumed(studies: tuple[Study, Study], killed: object) -> tuple[Any, Path]:
    """The killed study, gone on with on two actors."""
    _, study = studies
    outcome = run_on_ray(settings(2), run_dir=study.root, site_files=list(study.files.values()),
                         observe=lambda _: None, stop=threading.Event())  # fmt: skip
    return outcome, study.root


def test_a_killed_actor_makes_the_study_incomplete_and_says_so(killed: tuple[Any, list[Event]]) -> None:
    outcome, events = killed
    assert outcome.status == "INCOMPLETE"
    assert "no quorum after 2 attempts" in outcome.reason
    assert sum(e.kind == "site_present" for e in events) == SITES + 1
    assert any("actor" in e.text.lower() for e in events if e.kind == "site_replied")


def test_resumed_on_ray_it_gives_the_local_engine_s_bits(resumed: tuple[Any, Path], local: Path) -> None:
    outcome, root = resumed
    assert (outcome.status, outcome.rounds_completed) == ("COMPLETE", 2), outcome.reason
    found, expected = load_file(root / "model.safetensors"), load_file(local / "model.safetensors")
    assert max(float(abs(found[name] - expected[name]).max()) for name in expected) <= 1e-6
    assert (root / "model.safetensors").read_bytes() == (local / "model.safetensors").read_bytes()
    ours, theirs = (json.loads((place / "summary.json").read_text()) for place in (root, local))
    assert ours["metrics"] == theirs["metrics"]
    assert set(ours["participation"]) == {f"site-{n:02d}" for n in range(1, SITES + 1)}


def test_flower_said_completed_and_leaves_nothing_behind(resumed: tuple[Any, Path], starts: list[bool]) -> None:
    _, root = resumed
    log = (root / RUN_LOG).read_text()
    assert starts.count(False) == 2 and log.count("Successfully started run") == len(starts)
    assert actors_of(os.getpid()) == []
    assert not list((root / "flower" / "home" / "apps").rglob("*.py"))
    assert list((root / "flower" / "empty").iterdir()) == []


def test_a_complete_study_starts_no_runtime(
    resumed: tuple[Any, Path], studies: tuple[Study, Study], starts: list[bool]
) -> None:
    _, study = studies
    before = (study.root / RUN_LOG).read_bytes()
    again = run_on_ray(settings(1), run_dir=study.root, site_files=list(study.files.values()),
                       observe=lambda _: None, stop=threading.Event())  # fmt: skip
    assert again.status == "COMPLETE"
    assert starts.count(False) == 2 and (study.root / RUN_LOG).read_bytes() == before
