"""`mammofed simulate fleet`: deploys many sites on this machine, lets them work, and says whether anything grows."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from server.deploy.status import status_of
from server.deploy.studies import StudyFolder, Wish
from shared_model.errors import ConfigError, RoundError
from simulations.benchmarks.bench import THREADS, machine_facts
from simulations.engine.deployment.rehearsal import Rehearsal
from simulations.fleet.show import Report, Round, Setup, report_of, show
from simulations.fleet.watch import Watch, Watcher

MAX_SITES: Final = 64
SITES_A_TRAINER: Final = 12
START_S: Final = 1200.0  # two cores need some five CPU-seconds for each site until it is there
STOP_S: Final = 900.0
CONNECTED: Final = b"SuperNode ID:"  # what Flower's SuperNode logs then
OVER: Final = (Wish.ENDED, Wish.STOPPED)


def run_fleet(
    *, sites: int, minutes: float, trainers: int | None, idle_s: float, json_path: Path | None, keep: Path | None,
    console: Console | None = None,
) -> None:  # fmt: skip
    """Deploy `sites` sites and an evaluator, and let them work for `minutes` from the first round on.

    Args:
        trainers: processes that the sites share; None: one for every twelve.
        keep: folder for homes, logs and the study; None: a temporary one.

    Raises:
        ConfigError: sites or minutes out of bounds. TrainerError: a party did not come up.
        RoundError: the study ended before its time, or the coordinator grew.
    """
    if not 2 <= sites <= MAX_SITES or not minutes > 0:
        raise ConfigError("fleet: out of bounds", found=f"{sites} sites, {minutes:g} minutes",
                          expected=f"2 to {MAX_SITES} sites, and more than no time")  # fmt: skip
    os.environ.update(THREADS)
    from simulations.fleet.study import prepare  # it imports torch, which reads the environment

    console = console or Console()
    trainers = trainers or -(-sites // SITES_A_TRAINER)
    with _folder(keep) as folder:
        protocol, everybody = prepare(folder / "study", sites=sites, trainers=trainers)
        began = time.monotonic()
        say = _Says(console, began)
        with Rehearsal(folder / "deployment", everybody, timeout_s=START_S, say=say) as there:
            study = there.propose(folder / "study")
            there.approve(study.name)
            there.until(lambda: _all_here(there), "not every party is connected")
            setup = Setup(sites=sites, trainers=trainers, start_s=time.monotonic() - began, machine=machine_facts(),
                          quorum=protocol.federation.quorum)  # fmt: skip
            watch, watcher = Watch(), Watcher(there, study)
            say("everybody is here; nothing happens")
            _idle(watch, watcher, idle_s)
            say("study started")
            there.server("start", study.name)
            _work(there, study, watch, watcher, seconds=60 * minutes)
            ended_early = study.wanted().wish in OVER
            if not ended_early:
                say("study told to stop")
                there.server("stop", study.name)
                there.wait(study, timeout_s=STOP_S)
        report = report_of(setup, watch, rounds_of(study.journal))
        if json_path is not None:
            json_path.write_text(json.dumps(report.plain() | {"samples": watch.plain()}) + "\n", encoding="utf-8")
    show(report, console)
    _judge(report, early=study.wanted().reason if ended_early else "")


def rounds_of(journal: Path) -> list[Round]:
    """Closed rounds, as the journal has them."""
    with contextlib.closing(sqlite3.connect(f"{journal.as_uri()}?mode=ro", uri=True)) as connection:
        rows = connection.execute(
            "SELECT round, max(attempt), max(opened), sum(outcome = 'contributed'), count(*) FROM rounds "
            "JOIN participation USING (round, attempt) WHERE state = 'closed' GROUP BY round ORDER BY round"
        ).fetchall()
    return [Round(number=row[0], attempts=row[1], opened=row[2], contributed=row[3], asked=row[4]) for row in rows]


def _judge(report: Report, *, early: str) -> None:
    if early:
        raise RoundError("the study ended before its time", found=early, remedy="look with `--keep FOLDER`")
    grown = [role for role, trend in report.memory.items() if trend is not None and not trend.flat]
    if grown:
        raise RoundError("the coordinator grows", found=", ".join(grown), expected="flat memory",
                         remedy="run it for longer; what goes on growing is a leak")  # fmt: skip


def _idle(watch: Watch, watcher: Watcher, seconds: float) -> None:
    end = time.monotonic() + seconds
    watch.idle.append(watcher.look())
    while time.monotonic() < end:
        time.sleep(min(1.0, seconds))
        if watcher.due():
            watch.idle.append(watcher.look())


def _work(there: Rehearsal, study: StudyFolder, watch: Watch, watcher: Watcher, *, seconds: float) -> None:
    """Until `seconds` after the first round was opened."""
    limit, first = time.monotonic() + START_S, False

    def over() -> bool:
        nonlocal limit, first
        if watcher.due():
            watch.work.append(watcher.look())
        if not first and _begun(study.journal):
            first, limit = True, time.monotonic() + seconds
        return time.monotonic() >= limit or study.wanted().wish in OVER

    there.until(over, "the study did not begin", timeout_s=START_S + seconds + 60.0)
    watch.work.append(watcher.look())


def _begun(journal: Path) -> bool:
    if not journal.exists():
        return False
    with contextlib.closing(sqlite3.connect(f"{journal.as_uri()}?mode=ro", uri=True)) as connection:
        try:
            return bool(connection.execute("SELECT 1 FROM rounds").fetchone())
        except sqlite3.OperationalError:  # its tables are being made
            return False


def _all_here(there: Rehearsal) -> bool:
    """Whether SuperLink has taken each SuperNode, and the coordinator has heard each site with its trainer."""
    home = there.hub
    logs = [site.courier / "logs" / "supernode.log" for site in there.sites.values()]
    if not all(log.exists() and CONNECTED in log.read_bytes() for log in logs):
        return False
    here: list[dict[str, Any]] = [m for m in status_of(home)["members"] if m["here"] == "yes" and m["approved"]]
    return len(here) == len(there.sites) == len(home.nodes.read())


class _Says:
    def __init__(self, console: Console, began: float) -> None:
        self._console, self._began = console, began

    def __call__(self, words: str) -> None:
        self._console.print(f"{time.monotonic() - self._began:6.0f} s  {words}", style="dim", highlight=False)


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield Path(tempfile.mkdtemp(prefix="fleet-", dir=keep.resolve()))
        return
    with tempfile.TemporaryDirectory(prefix="mammofed-fleet-") as folder:
        yield Path(folder)
