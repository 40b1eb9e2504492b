"""What watching costs: bytes and time of a refresh at 500 rounds of 50 sites, and the round loop beside readers."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

from server.monitor.reading import read
from server.monitor.web.wire import Sender, packed
from simulations.benchmarks.staged_run import StagedRun, staged_protocol
from simulations.benchmarks.table import Row

ROUNDS: Final = 500
SITES: Final = 50
READERS: Final = 4
REPEATS: Final = 7
ROUNDS_A_TURN: Final = 8
PACE_S: Final = 1.0  # between looks, as of the page
GREEDY_S: Final = 0.05  # no monitor looks so often; it takes whole cores from a small machine
SLOWER_AT_MOST: Final = 1.25  # of the journal alone, some 40 ms of a round; readers take turns on two cores
_READER: Final = """
import sys, time
from pathlib import Path
from server.monitor.reading import read
cursor = read(Path(sys.argv[1])).cursor
print("ready", flush=True)
while True:
    cursor = read(Path(sys.argv[1]), cursor).cursor
    time.sleep(float(sys.argv[2]))
"""


def measure() -> list[Row]:
    """All rows of the section."""
    with tempfile.TemporaryDirectory(prefix="mammofed-bench-") as folder:
        return [*_refreshes(Path(folder)), *_slower(Path(folder))]


def long_run(run_dir: Path, *, rounds: int = ROUNDS, sites: int = SITES, done: int) -> StagedRun:
    """A staged study of which `done` rounds are closed. Its disk is not waited for: that would take minutes."""
    names = [f"site-{number:02d}" for number in range(1, sites + 1)]
    run = StagedRun(run_dir, staged_protocol(sites=names, rounds=rounds), started=time.time() - 11.0 * done)
    with without_sync(run):
        run.begin()
        for number in range(1, done + 1):
            late = {names[number % sites]: ("late", "late: nothing by the deadline")} if number % 7 == 0 else None
            run.round(number, outcomes=late)
    return run


@contextlib.contextmanager
def without_sync(run: StagedRun) -> Iterator[None]:
    """Steps inside are not flushed to the disk one by one."""
    run.journal.rows("PRAGMA synchronous = OFF")
    try:
        yield
    finally:
        run.journal.rows("PRAGMA synchronous = FULL")


def _refreshes(folder: Path) -> list[Row]:
    """First view, a refresh after a round, and a look at nothing new."""
    size = f"{ROUNDS} rounds of {SITES} sites"
    with long_run(folder / "long", done=ROUNDS - REPEATS - 1) as run:
        began = time.perf_counter()
        view = read(run.run_dir)
        sender = Sender()
        first = len(packed(sender.message(view)))
        first_s = time.perf_counter() - began
        times, bytes_, idle = [], [], []
        for number in range(ROUNDS - REPEATS, ROUNDS):
            run.round(number)
            began = time.perf_counter()
            view = read(run.run_dir, view.cursor)
            message = sender.message(view)
            times.append(time.perf_counter() - began)
            bytes_.append(len(packed(message)))
            idle.append(_seconds(partial(read, run.run_dir, view.cursor)))
    return [
        Row(name=f"first view, {size}", value=1000 * first_s, unit="ms"),
        Row(name=f"first view, {size}", value=first / 1000, unit="kB"),
        Row(name=f"refresh after a whole round, {size}", value=1000 * median(times), unit="ms",
            ratio=median(times) / first_s, against="the first view"),
        Row(name=f"refresh after a whole round, {size}", value=median(bytes_) / 1000, unit="kB",
            ratio=median(bytes_) / first, against="the first view"),
        Row(name=f"a look at nothing new, {size}", value=1000 * median(idle), unit="ms"),
    ]  # fmt: skip


def _slower(folder: Path) -> list[Row]:
    """What a round's journal takes, whole and flushed, alone and beside readers; alternately."""
    times: dict[float, list[float]] = {pace: [] for pace in (0.0, PACE_S, GREEDY_S)}
    with long_run(folder / "busy", done=100) as run:
        number = 100
        for _ in range(REPEATS):
            for pace, found in times.items():
                with _readers(run.run_dir, READERS if pace else 0, pace):
                    for _ in range(ROUNDS_A_TURN):
                        number += 1
                        found.append(_seconds(partial(run.round, number)))
    alone = median(times[0.0])
    return [
        Row(name=f"journal of a round, {SITES} sites, {READERS} readers each {pace:g} s", unit="ms",
            value=1000 * median(times[pace]), ratio=median(times[pace]) / alone, against="nobody reads", at_most=most)
        for pace, most in ((PACE_S, SLOWER_AT_MOST), (GREEDY_S, None))
    ]  # fmt: skip


@contextlib.contextmanager
def _readers(run_dir: Path, count: int, pace_s: float) -> Iterator[None]:
    """Monitors in processes of their own."""
    processes = [
        subprocess.Popen([sys.executable, "-c", _READER, str(run_dir), str(pace_s)], stdout=subprocess.PIPE)
        for _ in range(count)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
