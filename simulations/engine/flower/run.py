"""Runs a prepared study on Flower's simulation runtime and says what came of it; called by the launcher.

The round loop runs in the ServerApp, a process of Flower's; this one follows the journal that it writes. Whether a run
was a success is never taken from Flower alone, whose command exits with 0 when a run has failed.
"""

from __future__ import annotations

import subprocess
import threading
import time
from pathlib import Path

from server.app import STOP_FILE
from server.rounds.events import Event, Observer
from server.rounds.loop import StudyOutcome
from shared_model.errors import RoundError
from simulations.engine.flower.follow import Follower
from simulations.engine.flower.settings import FlowerSettings
from simulations.engine.flower.superlink import RunStatus, SuperLink

POLL_S = 0.2


def run_on_ray(
    settings: FlowerSettings, *, run_dir: Path, parties: int, observe: Observer, stop: threading.Event
) -> StudyOutcome:
    """Run or resume the study of `run_dir`, whose protocol and sites are laid out already.

    Args:
        parties: sites and evaluator; each is one simulated node.
        observe: told of every event once it is in the journal.
        stop: when set, the study stops after the round that is running.

    Raises:
        ConfigError, TrainerError: Flower's runtime cannot be started.
        RoundError: it ended before the study did; what was closed is safe.
    """
    run_dir = run_dir.resolve()
    (run_dir / STOP_FILE).unlink(missing_ok=True)
    follower = Follower(run_dir / "journal.sqlite", observe)
    with SuperLink(
        run_dir / "flower", log_dir=run_dir / "logs", ray_address=settings.ray_address,
        start_timeout_s=settings.start_timeout_s,
    ) as superlink:  # fmt: skip
        run = superlink.run(run_dir=run_dir, patience_s=settings.patience_s, federation=settings.federation(parties))
        _follow(run, superlink, follower, run_dir=run_dir, stop=stop, end_timeout_s=settings.end_timeout_s)
        status = superlink.status() if superlink.alive else RunStatus(status="gone", details="the SuperLink ended")
    follower.poll()
    return _outcome(follower.finished, status, run_dir)


def _follow(
    run: subprocess.Popen[bytes], superlink: SuperLink, follower: Follower, *, run_dir: Path, stop: threading.Event,
    end_timeout_s: float,
) -> None:  # fmt: skip
    """Until Flower's run has ended, or it is known that it will not end by itself."""
    asked, deadline = False, float("inf")
    while run.poll() is None and superlink.alive and time.monotonic() < deadline:
        follower.poll()
        if stop.is_set() and not asked:
            (run_dir / STOP_FILE).touch()
            asked = True
        if follower.finished is not None and deadline == float("inf"):
            deadline = time.monotonic() + end_timeout_s
        time.sleep(POLL_S)


def _outcome(finished: Event | None, status: RunStatus, run_dir: Path) -> StudyOutcome:
    """The study's own end, where it came to one; else an error with what Flower says."""
    if finished is None and status.status == "finished:completed":
        # Nothing to do: a study that was complete before this run adds nothing to its journal.
        return StudyOutcome(status="COMPLETE", rounds_completed=0, reason="")
    if finished is None:
        raise RoundError(
            "Flower's run ended before the study did", found=f"{status.status}: {status.details}",
            remedy=f"read {run_dir / 'logs' / 'flower-run.log'}, then `mammofed simulate resume {run_dir}`",
        )  # fmt: skip
    return StudyOutcome(
        status=str(finished.data["status"]),  # type: ignore[arg-type]  # written by the loop from the same type
        rounds_completed=int(finished.data["rounds_completed"]), reason=finished.text,
    )  # fmt: skip
