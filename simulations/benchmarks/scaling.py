"""Ten hospitals against a hundred with the same women in all: memory and time of a round; a section of the bench.

The whole path runs with privacy on: round loop, Flower's grid, shim, trainer processes, ledgers, journal. Films are
32 x 32 and each site takes one step a round, so that what is seen is the cost of a site and not of its training.
Each study has a process of its own, and memory is what its whole tree of processes holds (PSS, anonymous part).
"""

from __future__ import annotations

import sqlite3
import tempfile
import threading
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median

from safetensors.numpy import load_file

from server.rounds.events import Event
from server.rounds.loop import run_study
from shared_model.errors import RoundError
from simulations.benchmarks.rounds import OVERRIDES, install, write_protocol
from simulations.benchmarks.table import Row
from simulations.composition import compose_config
from simulations.engine import LocalGrid, TrainerPool
from simulations.memory import MemoryWatch

FEW, MANY, WOMEN, ROUNDS = 10, 100, 2000, 6


@dataclass(frozen=True, kw_only=True)
class Study:
    """One study as it ran. Bytes: anonymous memory of the tree, at the peak and after the second and the last round.

    round_s: median of a round without its evaluation. training_s: of that, the busiest process's share at most.
    start_s: from the loop's start to its first round: roll call, warm models, evaluation of the initial weights.
    """

    sites: int
    peak_bytes: int
    early_bytes: int
    late_bytes: int
    round_s: float
    training_s: float
    start_s: float


def measure() -> list[Row]:
    """Ratios of `MANY` sites to `FEW`.

    Raises:
        RoundError: a study did not complete.
    """
    few, many = (_apart(sites) for sites in (FEW, MANY))
    against = f"{FEW} sites, as many women"
    return [
        Row(name=f"memory of {MANY} sites", value=many.peak_bytes / 1e6, unit="MB", against=against,
            ratio=many.peak_bytes / few.peak_bytes if few.peak_bytes else None, at_most=1.3),
        Row(name=f"memory after round {ROUNDS}", value=many.late_bytes / 1e6, unit="MB", against="after round 2",
            ratio=many.late_bytes / many.early_bytes if many.early_bytes else None, at_most=1.1),
        Row(name=f"round of {MANY} sites, each site", value=1e3 * many.round_s / MANY, unit="ms", against=against,
            ratio=many.round_s / MANY / (few.round_s / FEW), at_most=1.2),
        Row(name="of it outside of the trainers", value=1e3 * (many.round_s - many.training_s) / MANY, unit="ms",
            ratio=1.0 - many.training_s / many.round_s, against="a round"),
        Row(name=f"roll call and first evaluation, {MANY} sites", value=many.start_s, unit="s", against=f"{FEW} sites",
            ratio=many.start_s / few.start_s),
    ]  # fmt: skip


def _apart(sites: int) -> Study:
    """In a process of its own: what an earlier study left in memory is not counted."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as child:
        return child.submit(run, sites).result()


def run(sites: int) -> Study:
    """One study of `sites` equal hospitals, with privacy."""
    with tempfile.TemporaryDirectory(prefix="mammofed-bench-") as folder:
        root = Path(folder)
        private = [o for o in OVERRIDES if not o.startswith(("privacy=", "rounds=", "sites=", "training."))]
        config = compose_config([*private, "privacy=patient", f"rounds={ROUNDS}", f"sites={sites}",
                                 "training.steps_per_round=1", "privacy.noise_multiplier=1.0",
                                 "privacy.epsilon=1000"])  # fmt: skip
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as torch_child:  # this process stays a launcher
            protocol = torch_child.submit(write_protocol, config, root, sites=sites, patients=WOMEN // sites).result()
        files = install(protocol, root, patients=WOMEN // sites)
        pool = TrainerPool(files, log_dir=root / "logs", processes=None, start_timeout_s=300.0)
        initial = load_file(root / "initial.safetensors")
        with MemoryWatch(every_s=1.0) as memory:

            def watch(event: Event) -> None:
                if event.kind == "round_closed":
                    memory.sample(f"round {event.round}")

            with pool:
                outcome = run_study(grid=LocalGrid(pool), protocol=protocol, run_dir=root, observer=watch,
                                    initial=initial, stop=threading.Event())  # fmt: skip
        if outcome.status != "COMPLETE":
            raise RoundError("the study of the bench did not complete", found=outcome.reason)
        return _study(sites, memory, root / "journal.sqlite", lanes=[t.sites for t in pool.trainers])


def _study(sites: int, memory: MemoryWatch, journal: Path, *, lanes: list[tuple[str, ...]]) -> Study:
    connection = sqlite3.connect(f"{journal.as_uri()}?mode=ro", uri=True)
    try:
        rounds = dict(connection.execute("SELECT round, seconds FROM rounds WHERE round > 1 AND round < ?", (ROUNDS,)))
        rows = connection.execute("SELECT round, site, seconds FROM participation").fetchall()
        (began,), (started,) = (
            connection.execute(query).fetchone()
            for query in ("SELECT min(opened) FROM rounds", "SELECT started FROM sessions")
        )
    finally:
        connection.close()
    taken = {(number, site): seconds for number, site, seconds in rows}
    busiest = [max(sum(taken.get((number, site), 0.0) for site in lane) for lane in lanes) for number in rounds]
    held = {label: pss.own for label, pss in memory.samples}
    return Study(
        sites=sites, peak_bytes=memory.peak.own, early_bytes=held["round 2"], late_bytes=held[f"round {ROUNDS}"],
        round_s=median(rounds.values()), training_s=median(busiest), start_s=began - started,
    )  # fmt: skip
