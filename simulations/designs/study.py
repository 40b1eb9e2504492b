"""A design from its configuration to its report: plan, price, trainings, results. Called by the launcher.

    <run directory>/design/plan.json        who trains and who is tested, and what was declared
                          /<run>/           a study each: protocol, journal, checkpoints, ledgers, scores.npz
                   design.json, report.html what came of all

Without privacy as many trainings run at a time as there are cores; with privacy one after another, because each site's
ledger goes on from one to the next.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import numpy as np

from server.reporting.design_page import DESIGN_NAME, write_design_report
from server.reporting.facts import read_object
from shared_model.cohort import Cohort, split_indices
from simulations.baselines.scores import FILE, read_scores
from simulations.baselines.suite import Population, run_jobs
from simulations.baselines.trained import selection_of
from simulations.designs.jobs import jobs_of, work
from simulations.designs.price import price_in_child, price_of
from simulations.designs.results import Judged, results
from simulations.designs.roll import PLAN, Drawn, Roll, draw, name_runs
from simulations.designs.settings import TEMPORAL, kind_of
from simulations.designs.table import tell, told_beforehand
from simulations.designs.years import Years, read_years, simulated_years
from simulations.live import LiveView, stop_on_interrupt
from simulations.parties import HELD_OUT, split_of, write_small
from simulations.plan import Config

T = TypeVar("T")
EXIT_STOPPED = 130
DESIGN = "design"  # folder that marks a run directory of a design
Folders = Callable[[Config, LiveView], Mapping[str, Path]]


def run_design(config: Config, run_dir: Path, *, cohorts: Folders, sources: Folders) -> int:
    """Run all trainings of a design that are not done, then write and print what came of them.

    Args:
        config: resolved, and checked by `settings.check_design`.
        cohorts: prepares the cohorts of all parties. sources: each party's films and table, for the simulator's dates.

    Returns:
        the exit code: 0, or 130 when it was stopped.

    Raises:
        CohortError, ConfigError: the women do not allow the design.
        PrivacyError: the sites' budget would not cover all trainings; nothing was started.
        RoundError: a training failed.
    """
    folder, stop = run_dir / DESIGN, threading.Event()
    folder.mkdir(parents=True, exist_ok=True)
    with LiveView(run_dir) as view, stop_on_interrupt(stop, view):
        places = dict(cohorts(config, view))
        roll = Roll.read(folder) if (folder / PLAN).exists() else _plan(config, folder, places, sources, view)
        for line in told_beforehand(roll):
            view.note(line)
        population = Population(seed=config["seed"], cohorts=places, folder=folder)
        done = run_jobs(
            jobs_of(roll, config), population, name=config["name"], workers=config["workers"] or os.cpu_count() or 1,
            view=view, stop=stop, work=work, in_order=roll.private,
        )  # fmt: skip
        if not done:
            return EXIT_STOPPED
        with view.stage("Results: women tested, intervals, ledgers", None):
            document = results(config, roll, judged_of(roll, folder), selection=_selection(config, places[HELD_OUT]),
                               spent=_in_child(ledgers, folder, roll) if roll.private else {})  # fmt: skip
            write_small(run_dir / DESIGN_NAME, json.dumps(document, indent=1, allow_nan=False) + "\n")
            report = write_design_report(run_dir)
    tell(document, run_dir=run_dir, report=report)
    return 0


def _plan(config: Config, folder: Path, places: Mapping[str, Path], sources: Folders, view: LiveView) -> Roll:
    kind = kind_of(config)
    years: Years | None = None
    if kind == TEMPORAL:
        given = config["design"]["years"]
        years = read_years(Path(given)) if given else _simulated(config, sources, view)
    drawn: Drawn = draw(config, places, years=years)
    if config["privacy"]["mode"] == "none":
        price = price_of(config, drawn.runs)
    else:
        with view.stage("Epsilon of all trainings together (answers of the accountant)", None) as advance:
            price = price_in_child(config, drawn.runs, advance)
    roll = name_runs(kind, drawn, price)
    roll.write(folder)
    return roll


def _simulated(config: Config, sources: Folders, view: LiveView) -> Years:
    folders = {site: folder for site, folder in sources(config, view).items() if site != HELD_OUT}
    return simulated_years(folders, seed=int(config["seed"]))


def judged_of(roll: Roll, folder: Path) -> list[Judged]:
    """All finished runs, in the plan's order.

    Raises:
        StorageError: a run's files are absent or damaged.
    """
    found = []
    for run in roll.runs:
        home = folder / run.name
        summary = read_object(home / "summary.json")
        chosen = selection_of(home / "journal.sqlite", summary)
        model = summary.get("model") or {}
        found.append(Judged(
            run=run, scores=read_scores(home / FILE), threshold=(chosen.get("thresholds") or {}).get("fused"),
            temperature=float(chosen.get("temperature") or 1.0), chosen=model.get("round"), summary=summary,
        ))  # fmt: skip
    return found


def ledgers(folder: Path, roll: Roll) -> dict[str, float]:
    """By site: epsilon of its most exposed woman by its ledger, after the last run that it took part in."""
    from client.privacy.ledger import Ledger

    assert roll.price.delta is not None
    last = {site: run.name for run in roll.runs for site in run.parties}
    files = {site: folder / name / "sites" / site / "state" / "ledger.json" for site, name in sorted(last.items())}
    return {site: Ledger(path).spent("train", delta=roll.price.delta) for site, path in files.items()}


def _selection(config: Config, path: Path) -> tuple[int, int]:
    cohort = Cohort.open(path)
    rows = split_indices(cohort, **split_of(config, HELD_OUT))["selection"]
    return len(rows), int(np.asarray(cohort.labels)[rows].sum())


def _in_child(function: Callable[..., T], *values: object) -> T:
    """Work that needs Opacus, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as child:
        return child.submit(function, *values).result()
