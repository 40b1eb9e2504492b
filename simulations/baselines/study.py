"""A study with its controls, over one or more populations: every arm and baseline, then tables. For the launcher."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from server.reporting import write_evidence_report
from server.reporting.data_words import data_kind
from server.reporting.evidence_answer import headline
from server.reporting.evidence_page import EVIDENCE_NAME
from simulations.baselines.answers import Answers, markdown, tables
from simulations.baselines.comparison import compare
from simulations.baselines.evidence import evidence
from simulations.baselines.jobs import POOLED_SITE, Config
from simulations.baselines.pooled import pool_cohorts
from simulations.baselines.suite import Population, check_arms, jobs_of, run_jobs
from simulations.baselines.trained import read_population
from simulations.live import LiveView, stop_on_interrupt
from simulations.parties import HELD_OUT, write_small

EXIT_STOPPED = 130
Cohorts = Callable[[Config, LiveView], Mapping[str, Path]]
NEEDS_POOL = {"pooled", "logistic"}


def wanted(config: Config) -> bool:
    """Whether a configuration asks for a comparison and not for one study."""
    return bool(config["baselines"] or config["arms"] or config["seeds"])


def run_comparison(config: Config, run_dir: Path, *, overrides: Sequence[str], cohorts: Cohorts) -> int:
    """Run all jobs of all populations that are not done, then write and print what came of them.

    Args:
        config: resolved; `seeds`, `arms` and `baselines` say what is compared.
        overrides: what the person typed, which every job's configuration is composed from again.
        cohorts: prepares the cohorts of one seed's configuration, by party.

    Returns:
        the exit code: 0, or 130 when it was stopped.

    Raises:
        ConfigError: an arm cannot be.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as child:
        child.submit(check_arms, dict(config), list(overrides)).result()
    stop = threading.Event()
    documents, populations = [], []
    with LiveView(run_dir) as view, stop_on_interrupt(stop, view):
        for seed in config["seeds"] or [config["seed"]]:
            population = _population({**config, "seed": seed}, run_dir, cohorts, view)
            jobs = jobs_of(config, population, overrides)
            workers = config["workers"] or os.cpu_count() or 1
            if not run_jobs(jobs, population, name=config["name"], workers=workers, view=view, stop=stop):
                return EXIT_STOPPED
            document = compare(jobs, population.folder)
            write_small(population.folder / "comparison.json", json.dumps(document, indent=2) + "\n")
            documents.append(document)
            populations.append(read_population(jobs, population.folder))
        with view.stage("Evidence: intervals, hospitals, subgroups", None):
            found = evidence(config["name"], data_kind(config["cohort"]), populations,
                             specificity=config["evaluation"]["specificity"])  # fmt: skip
            write_small(run_dir / EVIDENCE_NAME, json.dumps(found, indent=1, allow_nan=False) + "\n")
            report = write_evidence_report(run_dir)
    _tell(tables(documents), headline(found), run_dir, report)
    return 0


def _population(config: Config, run_dir: Path, cohorts: Cohorts, view: LiveView) -> Population:
    found = dict(cohorts(config, view))
    if NEEDS_POOL & set(config["baselines"]):
        sites = sorted(name for name in found if name != HELD_OUT)
        with view.stage("Pool the sites' women, for the control without a federation", None):
            found[POOLED_SITE] = pool_cohorts([found[site] for site in sites], found[sites[0]].parent / POOLED_SITE)
    folder = run_dir / f"seed-{config['seed']}"
    folder.mkdir(parents=True, exist_ok=True)
    return Population(seed=config["seed"], cohorts=found, folder=folder)


def _tell(answers: Sequence[Answers], sentences: Sequence[str], run_dir: Path, report: Path) -> None:
    """Print the answer and the tables, and keep the tables as Markdown."""
    console = Console()
    for sentence in sentences:
        console.print(sentence, markup=False, highlight=False)
    for answer in answers:
        table = Table(title=answer.title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for position, head in enumerate(answer.heads):
            table.add_column(head, justify="right" if position else "left")
        for row in answer.rows:
            table.add_row(*row)
        console.print(table)
    path = run_dir / "comparison.md"
    write_small(path, "\n".join(markdown(answer) for answer in answers))
    console.print(f"All women, films and tables are simulated or public; nothing here says how well cancer is found.\n"
                  f"Report  {report}\nTables  {path}\nRuns    {run_dir}/seed-*/<arm>/<baseline>")  # fmt: skip
