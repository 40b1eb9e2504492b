"""Runs all jobs of a comparison on this machine, as many at a time as there are cores; goes on where it was stopped.

Called by the launcher when a study asks for `baselines`, `arms` or `seeds`. This process imports no torch.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from client.trainer.server import THREAD_VARIABLES
from shared_model.errors import ConfigError, RoundError
from simulations.baselines.jobs import FEDERATED, Arm, Config, Job, expand
from simulations.baselines.scores import FILE
from simulations.composition import compose_config
from simulations.live import LiveView
from simulations.plan import phases

POLL_S = 0.5
_told: Queue[tuple[str, int, int]] | None = None  # of a worker process: how it reports rounds,
_stop: Event | None = None                        # and what asks it to stop


@dataclass(frozen=True, kw_only=True)
class Population:
    """One seed's prepared cohorts by party, `held_out` and `pooled` among them, and the folder of its jobs."""

    seed: int
    cohorts: Mapping[str, Path]
    folder: Path


class Named(Interface):
    """What is run: its name within the population is its folder's."""

    @property
    def name(self) -> str:
        """Its name."""


Tell = Callable[[str, int, int], None]  # (job name, rounds closed, rounds in all)
Work = Callable[[Any, Population, str, Tell, Any], str]  # (job, where, study, tell, stop) -> its name; in a worker


def jobs_of(config: Config, population: Population, overrides: Sequence[str]) -> list[Job]:
    """All jobs of one population, as the configuration asks for them."""
    sites = sorted(name for name in population.cohorts if name not in ("held_out", "pooled"))
    return expand(seed=population.seed, sites=sites, arms=_arms(config), overrides=overrides)


def check_arms(config: Config, overrides: Sequence[str]) -> None:
    """Compose every arm as its jobs will, before films are made for them. Called in a process of its own, because
    composing takes Hydra's global state.

    Raises:
        ConfigError: an arm's overrides name what there is not, or its phases cannot be.
    """
    for job in expand(seed=config["seed"], sites=["site"], arms=_arms(config), overrides=overrides):
        if job.baseline != FEDERATED:
            continue
        try:
            phases(compose_config([*job.overrides, f"name={config['name']}"]))
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(
                f"arms.{job.arm}: its overrides cannot be composed", found=str(error).splitlines()[0],
                expected="overrides as on the command line", remedy="correct the arm in the study's file",
            ) from None  # fmt: skip
        except ConfigError as error:
            raise ConfigError(f"arms.{job.arm}: {error.problem}", found=error.found, expected=error.expected,
                              remedy=error.remedy) from None  # fmt: skip


def _arms(config: Config) -> dict[str, Arm]:
    chosen = {name: value for name, value in (config["arms"] or {"study": {}}).items() if value is not None}
    return {name: Arm.of(value, config["baselines"]) for name, value in chosen.items()}


def train_job(job: Job, population: Population, name: str, tell: Tell, stop: Any) -> str:
    """The work of a comparison's job, in a worker process: imports torch."""
    from simulations.baselines.worker import Place, run_job

    return run_job(job, Place(cohorts=population.cohorts, folder=population.folder, name=name), tell, stop=stop)


def run_jobs(
    jobs: Sequence[Named], population: Population, *, name: str, workers: int, view: LiveView, stop: threading.Event,
    work: Work = train_job, in_order: bool = False,
) -> bool:  # fmt: skip
    """Run what is not there yet; returns whether all are done.

    Args:
        name: of the study.
        work: what a worker process does with a job; a function of a module, since it is named to the process.
        in_order: one at a time, and none after one that failed: each goes on from what the one before it left.
        workers: processes, one thread each.
        view: shows one bar a job.
        stop: once set, no further job is begun and those under way stop after their round; they go on another time.

    Raises:
        RoundError: at least one job failed; the others were finished first, and all that is done stays.
    """
    workers = 1 if in_order else workers
    missing = [job for job in jobs if not (population.folder / job.name / FILE).exists()]
    if not missing:
        return True
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"), OMP_WAIT_POLICY="passive")  # before the workers' torch
    context = multiprocessing.get_context("spawn")
    told: Queue[tuple[str, int, int]] = context.Queue()
    asked_to_stop = context.Event()
    failures: dict[str, str] = {}
    title = f"Seed {population.seed}: {len(jobs)} trainings"
    with (
        view.stage(title, len(jobs)) as advance,
        ProcessPoolExecutor(min(workers, len(missing)), context, _begin, (told, asked_to_stop)) as pool,
        _left_at_once(),
    ):
        pending: dict[Future[str], Named] = {}
        waiting = list(missing)
        done = len(jobs) - len(missing)
        advance(done, len(jobs))
        while pending or (waiting and not stop.is_set()):
            while waiting and len(pending) < workers and not stop.is_set():
                job = waiting.pop(0)
                pending[pool.submit(_run, work, job, population, name)] = job
            if stop.is_set():
                asked_to_stop.set()
            ended, _ = wait(pending, timeout=POLL_S, return_when=FIRST_COMPLETED)
            _show(told, view, population.seed)
            for future in ended:
                job = pending.pop(future)
                error = future.exception()
                if error is None:
                    done += 1
                    advance(done, len(jobs))
                elif not stop.is_set():
                    failures[job.name] = str(error)
                    if in_order:
                        waiting.clear()
                    view.note(f"seed {population.seed} {job.name} FAILED: {error}")
    if failures:
        raise RoundError(f"{len(failures)} of {len(jobs)} trainings of seed {population.seed} failed",
                         found=dict(list(failures.items())[:3]), remedy="resume the run")  # fmt: skip
    return done == len(jobs)


@contextmanager
def _left_at_once() -> Iterator[None]:
    """A second Ctrl-C does not wait for trainings: a job that is killed goes on from its last closed round."""
    try:
        yield
    except KeyboardInterrupt:
        for worker in multiprocessing.active_children():
            worker.kill()
        raise


def _begin(told: Queue[tuple[str, int, int]], stop: Event) -> None:
    """Initialiser of a worker process."""
    global _told, _stop
    _told, _stop = told, stop
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent asks for the stop itself
    from simulations.baselines.worker import prepare_process

    prepare_process()


def _leave_with_parent() -> None:
    """A launcher that was killed stops nobody: its worker trains beside who resumes, then waits for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # a worker is started by somebody
    parent.join()
    os._exit(1)  # at once, as by a kill: closed rounds are kept


def _run(work: Work, job: Named, population: Population, name: str) -> str:
    from simulations.baselines.worker import failure_of

    def tell(job_name: str, closed: int, rounds: int) -> None:
        if _told is not None:
            _told.put((job_name, closed, rounds))

    try:
        return work(job, population, name, tell, _stop or threading.Event())
    except Exception as error:  # an exception of torch or flwr may not survive the way to the parent
        raise RuntimeError(failure_of(error)) from None


def _show(told: Queue[tuple[str, int, int]], view: LiveView, seed: int) -> None:
    while True:
        try:
            name, closed, rounds = told.get_nowait()
        except queue.Empty:
            return
        view.job(f"seed {seed} {name}", closed, rounds)
