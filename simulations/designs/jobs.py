"""The trainings of a design as jobs of `baselines.suite`; needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from simulations.baselines.suite import Population, Tell
from simulations.designs.roll import Roll
from simulations.plan import Config


@dataclass(frozen=True, kw_only=True)
class DesignJob:
    """One run of the plan. config: of the whole design, resolved. before: names of the runs before it, in order."""

    name: str
    config: Config
    before: tuple[str, ...]


def jobs_of(roll: Roll, config: Config) -> list[DesignJob]:
    """All runs in the plan's order."""
    names = [run.name for run in roll.runs]
    return [DesignJob(name=name, config=config, before=tuple(names[:place])) for place, name in enumerate(names)]


def work(job: DesignJob, population: Population, name: str, tell: Tell, stop: Any) -> str:
    """The work of one job in a worker process: imports torch."""
    from simulations.designs.worker import run_design_job

    return run_design_job(job, population, tell, stop=stop)
