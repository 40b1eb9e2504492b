"""Runs one training of a design, from its women to its scores; called in the worker processes of `baselines.suite`.

A whole federated study: protocol, rounds, journal, ledgers. Trainers are a library in this process, as for jobs of a
comparison, and films are encoded once for all runs that a process works on. The evaluator is a party as in any study:
round, thresholds and temperature are chosen on its `selection` women, who are in no run's test.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from client.trainer.roster import write_roster
from server.rounds.checkpoint import read_arrays
from shared_model.cohort import Cohort
from shared_model.errors import CohortError
from shared_model.protocol import Protocol
from simulations.baselines.scores import FILE, HELD_OUT, write_scores
from simulations.baselines.suite import Population, Tell
from simulations.baselines.worker import CHEAPER, FEATURES, freeze, party_scores, train
from simulations.designs.jobs import DesignJob
from simulations.designs.roll import NamedRun, Roll
from simulations.engine.library import TrainerLibrary
from simulations.parties import EVALUATOR, install_sites
from simulations.plan import Config
from simulations.released import carry_ledger


def run_design_job(job: DesignJob, population: Population, tell: Tell, *, stop: Any) -> str:
    """Run or go on with one training; its folder then holds `scores.npz`. Returns the job's name.

    Args:
        tell: is told of every closed round.
        stop: an event of threads or processes: the round under way is the last.

    Raises:
        RoundError: the study did not become COMPLETE.
        CohortError: the cohorts are not those that the design was planned over.
    """
    home = population.folder / job.name
    if (home / FILE).exists():
        return job.name
    home.mkdir(parents=True, exist_ok=True)
    roll = Roll.read(population.folder)
    run = next(run for run in roll.runs if run.name == job.name)
    config = run_config(job.config, roll)
    protocol = freeze(config, home, patients={site: len(names) for site, names in run.train.items()},
                      sigmas=roll.price.sigmas)  # fmt: skip
    cohorts = {name: population.cohorts[name] for name in (*run.parties, HELD_OUT)}
    files = install_sites(config, home, protocol, cohorts, _rosters(run, home))
    if roll.private:
        _carry(job, run, population.folder)
    with TrainerLibrary(files, features=FEATURES.of) as library:
        train(job.name, library, protocol, home, read_arrays(home / "initial.safetensors"), tell, stop)
        _score(run, population.cohorts, library, protocol, home)
    return job.name


def run_config(config: Config, roll: Roll) -> Config:
    """The settings of one training of a design.

    The sites' own metrics are left out: a woman of a fold's test trains in the others, and a release about her in the
    group `metrics` would not be counted together with those in `train`. The design itself tests her. The budget of the
    ledgers is what was granted for all trainings.
    """
    privacy = {**config["privacy"], "metrics": "none"}
    if roll.price.granted is not None:
        privacy["epsilon"] = roll.price.granted
    return {**config, "privacy": privacy, "evaluation": {**config["evaluation"], **CHEAPER}}


def _rosters(run: NamedRun, home: Path) -> Mapping[str, Path]:
    """Who trains and who is tested at each site of the run, beside its settings."""
    found = {}
    for site in run.parties:
        path = (home / "sites" / site / "roster.json").resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_roster(path, {"train": list(run.train[site]), "test": list(run.test.get(site, ()))})
        found[site] = path
    return found


def _carry(job: DesignJob, run: NamedRun, folder: Path) -> None:
    """Each hospital's ledger goes on from the latest run before this one in which it took part."""
    for site in run.parties:
        for earlier in reversed(job.before):
            if (folder / earlier / "sites" / site).is_dir():
                carry_ledger(folder / earlier / "sites" / site, folder / job.name / "sites" / site)
                break


def _score(
    run: NamedRun, cohorts: Mapping[str, Path], library: TrainerLibrary, protocol: Protocol, home: Path
) -> None:
    """Score the run's test women, and the evaluator's own `test`, with the chosen model."""
    arrays = read_arrays(home / "model.safetensors")
    found = {HELD_OUT: party_scores(library.scores(EVALUATOR, protocol, arrays, "test"))}
    for site, names in sorted(run.test.items()):
        place = {name: row for row, name in enumerate(Cohort.open(cohorts[site]).pseudonyms)}
        if absent := [name for name in names if name not in place]:
            raise CohortError(f"the cohort of {site} is not the one that the design was planned over",
                              found=f"{len(absent)} of {len(names)} tested women are not in it",
                              remedy="start the design anew")  # fmt: skip
        rows = np.array([place[name] for name in names], dtype=np.int64)
        cache = FEATURES.of(cohorts[site].resolve())
        found[site] = party_scores(library.scores_on(EVALUATOR, protocol, arrays, cache, rows))
    write_scores(home / FILE, found)
