"""One study as a rehearsal of its deployment; called by the launcher."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from client.trainer.config import SiteConfig
from server.deploy.studies import StudyFolder, Wish
from server.rounds.events import Event, Observer
from server.rounds.follow import Follower, is_complete
from server.rounds.loop import StudyOutcome
from server.rounds.states import StudyState
from shared_model.certificates import Role
from shared_model.errors import ConfigError, RoundError
from shared_model.protocol import Protocol
from simulations.engine.deployment.rehearsal import Party, Rehearsal

FOLDER = "deployment"
SLACK = 3.0  # a study may take so many times the deadlines of all its rounds before the rehearsal gives it up


def parties(site_files: Sequence[Path], protocol: Protocol) -> list[Party]:
    """Each party as its `site.json` describes it."""
    found = []
    for path in site_files:
        config = SiteConfig.read(path)
        role = Role.SITE if config.role == "site" else Role.EVALUATOR
        found.append(Party(
            name=config.site, role=role, cohort=config.cohort, salt=config.salt, device=config.device,
            test_fraction=config.fractions["test"], private_only=role is Role.SITE and protocol.private,
        ))  # fmt: skip
    return found


def run_deployment(
    engine: Mapping[str, Any], *, run_dir: Path, site_files: Sequence[Path], observe: Observer, stop: threading.Event,
    say: Callable[[str], None],
) -> StudyOutcome:  # fmt: skip
    """Enrol everybody, propose, approve, start, and wait for the end.

    Raises:
        TrainerError: a process did not do in time what it should. RoundError: the study ended without an end.
        KeyboardInterrupt: stopped before anything was begun.
    """
    protocol = Protocol.read(run_dir / "protocol.json")
    if is_complete(run_dir / "journal.sqlite"):
        return StudyOutcome(status="COMPLETE", rounds_completed=protocol.rounds, reason="")
    follower = Follower(run_dir / "journal.sqlite", observe)
    everybody = parties(site_files, protocol)
    with Rehearsal(run_dir / FOLDER, everybody, timeout_s=float(engine["start_timeout_s"]), say=say) as there:
        study = there.propose(run_dir)
        there.approve(study.name)
        if study.wanted().wish is not Wish.RUNNING:
            there.server("start" if study.wanted().wish is Wish.PROPOSED else "resume", study.name)
        asked = threading.Event()

        def look() -> None:
            follower.poll()
            if stop.is_set() and not asked.is_set():
                asked.set()
                with contextlib.suppress(ConfigError):  # it may just have come to its end
                    there.server("stop", study.name)

        longest = SLACK * protocol.rounds * protocol.federation.attempts * protocol.federation.deadline_s
        there.wait(study, look=look, timeout_s=longest + float(engine["start_timeout_s"]))
        follower.poll()
    if stop.is_set() and not study.journal.exists():
        raise KeyboardInterrupt  # nothing was begun, so there is nothing to report on
    return _outcome(study, follower.finished, stopped=stop.is_set())


def _outcome(study: StudyFolder, finished: Event | None, *, stopped: bool) -> StudyOutcome:
    state, wanted = study.state(), study.wanted()
    if state is StudyState.COMPLETE:
        return StudyOutcome(status="COMPLETE", rounds_completed=study.closed(), reason="")
    if state in (StudyState.INCOMPLETE, StudyState.STOPPED) or stopped:
        reason = finished.text if finished is not None else wanted.reason
        return StudyOutcome(status="INCOMPLETE" if state is StudyState.INCOMPLETE else "STOPPED",
                            rounds_completed=study.closed(), reason=reason)  # fmt: skip
    raise RoundError("the study ended before its end", found=wanted.reason,
                     remedy=f"read {study.path / FOLDER / 'logs'}, then resume it")  # fmt: skip
