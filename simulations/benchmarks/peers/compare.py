"""Section `peers` of the bench: the same study by ours, stock Flower on Ray and NVIDIA FLARE's simulator, in turn.

Everybody starts from nothing but prepared cohorts and the same initial weights, and trains every weight for the same
rounds, steps, sampling rate, sigma and clip. Ours does more for its figures: it calibrates the noise, keeps ledgers and
a journal, evaluates at the end and writes the report. A ratio is the peer's figure divided by ours.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean, median

from shared_model.errors import RoundError
from simulations.benchmarks.peers.contest import CONTESTANTS, FLARE, FLARE_FAST, OURS, Result, contest, prepare
from simulations.benchmarks.peers.environment import FOLDER, peers_python
from simulations.benchmarks.peers.ours import Job
from simulations.benchmarks.table import Row

JOBS = tuple(Job(private=private, sites=4, patients=640, held_out=200, rounds=5) for private in (True, False))
SAME_AUC = 0.15  # further apart on some 200 women, they did not train the same thing
UNITS = {
    "CPU": "CPU s", "wall clock": "s", "peak memory": "MB", "CPU of a round": "CPU s", "wall clock of a round": "s",
    "CPU before the first training": "CPU s", "wall clock before the first training": "s",
}  # fmt: skip


def measure(
    folder: Path = FOLDER, *, jobs: Sequence[Job] = JOBS, contestants: Sequence[str] = CONTESTANTS
) -> list[Row]:
    """Rows for each job and quantity: ours first, then the peers with their ratio to ours.

    folder: keeps cohorts and the peers' environment from one call to the next.

    Raises:
        ConfigError: the peers' packages cannot be installed.
        RoundError: a contestant did not do all rounds with all sites, or not the same thing as the others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    peer = peers_python(folder) if {FLARE, FLARE_FAST} & set(contestants) else sys.executable
    rows = []
    with tempfile.TemporaryDirectory(prefix="mammofed-peers-") as root:
        prepare(jobs[0], Path(root) / "prepared", cache=folder / "cache")
        for job in jobs:
            place = Path(root) / job.name
            results = {name: contest(name, job, place, cache=folder / "cache", peer=peer) for name in contestants}
            check(job, results)
            rows += rows_of(job, results)
    return rows


def check(job: Job, results: Mapping[str, Result]) -> None:
    """See that all did the same study.

    Raises:
        RoundError: a round without all sites, or a model whose AUC is not near ours.
    """
    expected = dict.fromkeys(range(1, job.rounds + 1), job.sites)
    for name, result in results.items():
        if dict(result.replies) != expected or set(result.began) != set(expected):
            raise RoundError(f"{name} did not hear every site in every round", found=dict(result.replies),
                             expected=expected)  # fmt: skip
        if not abs(result.auc - results[OURS].auc) <= SAME_AUC:  # also where it is no number
            raise RoundError(f"{name} did not train what we trained", found=f"AUC {result.auc:.3f}",
                             expected=f"{results[OURS].auc:.3f}, {SAME_AUC} more or less")  # fmt: skip


def rows_of(job: Job, results: Mapping[str, Result]) -> list[Row]:
    """The table's rows of one job; where a peer's ratio is below 1, it is ahead of us."""
    rows = []
    every = {name: figures(result) for name, result in results.items()}
    for quantity, unit in UNITS.items():
        for name, its in every.items():
            label, value = f"{job.name}, {quantity}: {name}", its[quantity]
            ratio = None if name == OURS else value / every[OURS][quantity]
            bound = {} if ratio is None else {"against": "ours", "at_least": 1.0}
            rows.append(Row(name=label, value=value, unit=unit, ratio=ratio, **bound))  # type: ignore[arg-type]
    rows += [Row(name=f"{job.name}, AUC at the end: {name}", value=r.auc, unit="") for name, r in results.items()]
    return rows


def figures(result: Result) -> dict[str, float]:
    """The quantities of `UNITS`. A round lasts from its first training to the next one's; the first, in which cohorts
    and models are opened, is left out where there are others."""
    measured = result.measured
    starts = [result.began[number] for number in sorted(result.began)]
    later = starts[1:] if len(starts) > 2 else starts
    cpu = [measured.cpu_at(moment) for moment in later]
    return {
        "CPU": measured.cpu_s, "wall clock": measured.wall_s, "peak memory": measured.peak_mb,
        "CPU of a round": mean(after - before for before, after in pairwise(cpu)),
        "wall clock of a round": median(after - before for before, after in pairwise(later)),
        "CPU before the first training": measured.cpu_at(starts[0]),
        "wall clock before the first training": starts[0] - measured.began,
    }  # fmt: skip
