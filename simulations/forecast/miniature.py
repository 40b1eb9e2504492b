"""Runs a study's own recipe in miniature, on this machine and now: what a forecast of seconds and bytes is made from.

The miniature takes the path of a run: films are generated and prepared, trainer processes started, rounds trained and
evaluated, and its journal read. Only the women are few: in each trainer process one hospital of `LARGE` training women
and two of `SMALL`, so that the cost of a woman and that of a request can be told apart, and two rounds of each phase,
so that what only a phase's first round has to do shows. Sampling rate 1 makes every step see all women of its site,
which privacy's coin tosses would hide.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.ingest import prepare_site
from server.reporting import write_report
from server.rounds.checkpoint import read_arrays
from server.rounds.events import Event
from server.rounds.loop import run_study
from server.rounds.signer import one_machine_signing
from server.rounds.summary import write_summary
from shared_model.cohort import Cohort, split_indices
from shared_model.contract import Contract
from shared_model.errors import RoundError
from shared_model.imaging import FilmPool, PipelineConfig
from shared_model.protocol import Protocol
from simulations.engine import LocalGrid, TrainerPool
from simulations.memory import MemoryWatch
from simulations.parties import HELD_OUT, install_sites, split_of
from simulations.plan import Config, importer_key
from simulations.population import generate
from simulations.population.specs import Population

LARGE, SMALL, JUDGED = 10, 3, 48  # women of a large and of a small hospital, and held out
PROCESSES = 8  # trainer processes at most: more would not tell more
ROUNDS = 2  # of each phase
BUDGET_S = 4.0  # of training in each process, all rounds together, as `child.patient_s` reckons it
STEPS = 8  # optimiser steps a round at most; more are reckoned in proportion


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """How films are made and read on this machine with all workers. start_s: until the workers work.

    film_s: seconds a film. site_s: seconds a hospital beyond its films. film_bytes: of a DICOM file.
    """

    generate_start_s: float
    generate_film_s: float
    film_bytes: float
    prepare_start_s: float
    prepare_film_s: float
    prepare_site_s: float
    peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class Ran:
    """The miniature as it ran. train: training women by site. lanes: sites by process.

    start_s: of the trainers. report_s: summary and report. trainer_bytes, launcher_bytes: greatest anonymous memory of
    a trainer process and of this one.
    """

    protocol: Protocol
    journal: Path
    train: Mapping[str, int]
    lanes: tuple[tuple[str, ...], ...]
    selection: int
    test: int
    start_s: float
    report_s: float
    trainer_bytes: int
    launcher_bytes: int
    checkpoint_bytes: int


def layout(config: Config, sites: int) -> tuple[int, list[str]]:
    """Trainer processes of the miniature, and the names of its hospitals, small ones first."""
    wanted = config["engine"].get("processes") or len(os.sched_getaffinity(0))
    processes = max(1, min(wanted, sites, PROCESSES))
    digits = max(2, len(str(sites)))
    return processes, [f"site_{i + 1:0{digits}d}" for i in range(3 * processes)]


def prepare(
    config: Config, population: Population, contract: Contract, pipeline: PipelineConfig, folder: Path, *, workers: int
) -> tuple[Prepared, dict[str, Path]]:
    """Generate and prepare the miniature's women; returns the seconds and each party's cohort."""
    few = _few(config, population)
    with MemoryWatch() as memory:
        marks: list[tuple[int, float]] = []
        began = time.perf_counter()
        sources = generate(few, folder / "populations", workers=workers,
                           progress=lambda done, _: marks.append((done, time.perf_counter() - began)))  # fmt: skip
        seconds = time.perf_counter() - began
        files = [path for source in sources.values() for path in (source / "dicom").rglob("*.dcm")]
        start_s, film_s = _from_marks(marks, seconds, films=len(files))
        cohorts, timed, first_s = {}, list[tuple[int, float]](), 0.0
        with FilmPool(pipeline, workers=workers) as pool:
            for name, source in sources.items():
                began = time.perf_counter()
                cohorts[name] = folder / "cohorts" / name
                report = prepare_site(
                    source=source, destination=cohorts[name], contract=contract, pipeline=pipeline, site=name,
                    key=importer_key(config["seed"], name), workers=workers, pool=pool,
                )  # fmt: skip
                timed.append((report.films, time.perf_counter() - began))
        first_s = timed.pop(0)[1]
    site_s, prepare_film_s = line(timed)
    prepared = Prepared(
        generate_start_s=start_s, generate_film_s=film_s, prepare_film_s=prepare_film_s, prepare_site_s=site_s,
        prepare_start_s=max(0.0, first_s - site_s), peak_bytes=memory.peak.own,
        film_bytes=sum(path.stat().st_size for path in files) / len(files),
    )  # fmt: skip
    return prepared, cohorts


def _few(config: Config, population: Population) -> Population:
    """A few women of each kind of hospital; the large hospitals come last, so that no cache is cold for them."""
    processes, names = layout(config, len(population.hospitals))
    train = 1.0 - float(config["cohort"]["test_fraction"])
    kinds = population.hospitals
    sizes = [SMALL] * (2 * processes) + [LARGE] * processes
    hospitals = tuple(
        dataclasses.replace(kinds[i % len(kinds)], name=name, patients=round(size / train) + 2)
        for i, (name, size) in enumerate(zip(names, sizes, strict=True))
    )  # fmt: skip
    return dataclasses.replace(
        population, hospitals=hospitals,
        held_out=dataclasses.replace(population.held_out, patients=JUDGED, prevalence=0.5),  # both labels in each part
    )  # fmt: skip


def _from_marks(marks: list[tuple[int, float]], seconds: float, *, films: int) -> tuple[float, float]:
    """Start and seconds a film, from (women done, seconds since the beginning) of each chunk of women."""
    women = marks[-1][0]
    first, last = marks[0], marks[-1]
    if last[0] == first[0]:
        return 0.0, seconds / films
    a_woman = (last[1] - first[1]) / (last[0] - first[0])
    return max(0.0, seconds - women * a_woman), a_woman * women / films


def line(points: list[tuple[int, float]]) -> tuple[float, float]:
    """Intercept and slope, both at least 0, through (amount, seconds) by least squares."""
    n = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / n, sum(y for _, y in points) / n
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0
    intercept = mean_y - slope * mean_x
    if slope <= 0 or intercept < 0:  # noise, or all of one size: all of it is the amount's
        return 0.0, mean_y / mean_x if mean_x else 0.0
    return intercept, slope


def run(config: Config, protocol: Protocol, cohorts: Mapping[str, Path], folder: Path, initial: Path, *,
        patient_s: float) -> Ran:  # fmt: skip
    """Install, start, train, evaluate; see the module.

    Raises:
        RoundError: the miniature did not complete.
    """
    names = sorted(name for name in cohorts if name != HELD_OUT)
    opened = {name: Cohort.open(path) for name, path in cohorts.items()}
    parts = {n: {k: len(v) for k, v in split_indices(c, **split_of(config, n)).items()} for n, c in opened.items()}
    train = {name: parts[name]["train"] for name in names}
    processes = len(names) // 3
    few = miniature_protocol(protocol, train, patient_s=patient_s)
    run_dir = folder / "run"
    files = install_sites(config, run_dir, few, dict(cohorts))
    pool = TrainerPool(files, log_dir=run_dir / "logs", processes=processes,
                       start_timeout_s=float(config["engine"].get("start_timeout_s", 120.0)))  # fmt: skip
    with MemoryWatch() as memory:
        began = time.perf_counter()
        with pool:
            start_s = time.perf_counter() - began
            outcome = run_study(grid=LocalGrid(pool), protocol=few, run_dir=run_dir, initial=read_arrays(initial),
                                observer=_ignore, stop=threading.Event(),
                                **one_machine_signing(few, run_dir))  # fmt: skip
            trainers = {t.process.pid for t in pool.trainers if t.process is not None}
    if outcome.status != "COMPLETE":
        raise RoundError("the study in miniature did not complete, so that nothing can be said of the large one",
                         found=outcome.reason, remedy="start the study itself, which says why")  # fmt: skip
    began = time.perf_counter()
    write_summary(run_dir)
    write_report(run_dir)
    return Ran(
        protocol=few, journal=run_dir / "journal.sqlite", train=train, lanes=tuple(t.sites for t in pool.trainers),
        selection=parts[HELD_OUT]["selection"], test=parts[HELD_OUT]["test"], start_s=start_s,
        report_s=time.perf_counter() - began, launcher_bytes=memory.own.get(os.getpid(), 0),
        trainer_bytes=max((memory.own.get(pid, 0) for pid in trainers), default=0),
        checkpoint_bytes=max(path.stat().st_size for path in (run_dir / "checkpoints").glob("*.safetensors")),
    )  # fmt: skip


def miniature_protocol(protocol: Protocol, train: Mapping[str, int], *, patient_s: float) -> Protocol:
    """`protocol` for the miniature's sites: two rounds of each phase, all women in each step, the rest as it is."""
    values: dict[str, Any] = protocol.model_dump(mode="json")
    training, federation = values["training"], values["federation"]
    for phase in training["phases"]:
        phase |= {"rounds": ROUNDS, "sample_rate": None, "steps_per_round": None}
    women = LARGE + 2 * SMALL
    affordable = BUDGET_S / max(1e-9, patient_s) / (ROUNDS * len(training["phases"]) * women)
    training["steps_per_round"] = max(1, min(STEPS, training["steps_per_round"], int(affordable)))
    training["sample_rate"] = 1.0
    total = sum(train.values())
    federation["sites"] = [{"name": name, "patients": n, "weight": n / total} for name, n in sorted(train.items())]
    federation |= {"sites_per_round": len(train), "quorum": len(train)}
    values["privacy"]["epsilon"] = 1e6 if protocol.private else 0.0  # nobody's data: the women are synthetic
    values["evaluation"]["every"] = 1
    return Protocol.create(values, source="the study in miniature")


def _ignore(event: Event) -> None:
    """Nobody watches the miniature."""
