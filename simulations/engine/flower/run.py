"""Runs a prepared study on Flower's simulation runtime and says what came of it; called by the launcher.

The round loop runs in the ServerApp, a process of Flower's; this one follows the journal that it writes. Whether a run
was a success is never taken from Flower alone, whose command exits with 0 when a run has failed.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from client.trainer.config import SiteConfig
from server.deploy.studies import STOP_FILE
from server.rounds.events import Event, Observer
from server.rounds.follow import Follower, is_complete
from server.rounds.loop import StudyOutcome
from shared_model.cohort import Cohort
from shared_model.errors import RoundError
from shared_model.protocol import Protocol
from simulations.engine.flower.settings import FlowerSettings
from simulations.engine.flower.superlink import RunStatus, SuperLink

POLL_S = 0.2
RUN_LOG = Path("logs", "flower-run.log")
RAY_TOO_SLOW = b"timed out during startup"  # Ray gives its own node 30 s, a fixed number, which a busy machine exceeds
STARTS = 4


def run_on_ray(
    settings: FlowerSettings, *, run_dir: Path, site_files: Sequence[Path], observe: Observer, stop: threading.Event
) -> StudyOutcome:
    """Run or resume the study of `run_dir`, whose protocol and sites are laid out already.

    Args:
        site_files: each party's `site.json` in `run_dir`; each is one simulated node.
        observe: told of every event once it is in the journal.
        stop: when set, the study stops after the round that is running.

    Raises:
        CohortError: a party's cohort is absent or damaged.
        ConfigError, TrainerError: Flower's runtime cannot be started.
        RoundError: it ended before the study did; what was closed is safe.
    """
    run_dir = run_dir.resolve()
    for path in site_files:  # at an actor it would be one more site that is absent
        Cohort.open(SiteConfig.read(path).cohort)
    if is_complete(run_dir / "journal.sqlite"):  # nothing to do, and Flower's runtime takes half a minute to start
        rounds = Protocol.read(run_dir / "protocol.json").rounds
        return StudyOutcome(status="COMPLETE", rounds_completed=rounds, reason="")
    (run_dir / STOP_FILE).unlink(missing_ok=True)
    follower = Follower(run_dir / "journal.sqlite", observe)
    for _ in range(STARTS):
        told = _size(run_dir / RUN_LOG)
        status = _run(settings, run_dir, len(site_files), follower, stop)
        if follower.finished is not None or RAY_TOO_SLOW not in _said(run_dir / RUN_LOG, told):
            break
    return _outcome(follower.finished, status, run_dir)


def _run(
    settings: FlowerSettings, run_dir: Path, parties: int, follower: Follower, stop: threading.Event
) -> RunStatus:  # fmt: skip
    with SuperLink(
        run_dir / "flower", log_dir=run_dir / "logs", ray_address=settings.ray_address,
        start_timeout_s=settings.start_timeout_s,
    ) as superlink:  # fmt: skip
        run = superlink.run(run_dir=run_dir, patience_s=settings.patience_s, federation=settings.federation(parties))
        _follow(run, superlink, follower, run_dir=run_dir, stop=stop, end_timeout_s=settings.end_timeout_s)
        status = superlink.status() if superlink.alive else RunStatus(status="gone", details="the SuperLink ended")
    follower.poll()
    return status


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
    if finished is None:
        raise RoundError(
            "Flower's run ended before the study did", found=f"{status.status}: {status.details}",
            remedy=f"read {run_dir / RUN_LOG}, then `mammofed simulate resume {run_dir}`",
        )  # fmt: skip
    return StudyOutcome(
        status=str(finished.data["status"]),  # type: ignore[arg-type]  # written by the loop from the same type
        rounds_completed=int(finished.data["rounds_completed"]), reason=finished.text,
    )  # fmt: skip


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _said(path: Path, since: int) -> bytes:
    """What the log says after its first `since` bytes; at most its last megabyte."""
    with path.open("rb") as stream:
        stream.seek(max(since, _size(path) - (1 << 20)))
        return stream.read(1 << 20)
