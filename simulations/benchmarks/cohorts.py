"""How long it takes to open a prepared cohort of 2,000 women and to gather a batch; a section of the bench."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from shared_model.cohort import Cohort, CohortWriter
from shared_model.cohort.views import VIEWS
from simulations.benchmarks.table import Row

PATIENTS, HEIGHT, WIDTH, N_FEATURES = 2000, 112, 84, 40
REPEATS, BATCH = 7, 32
NO_HASH = "0" * 64
FRESH = "import sys, time; from shared_model.cohort import Cohort; t = time.perf_counter(); Cohort.open(sys.argv[1])"
FRESH += "; print(time.perf_counter() - t)"


def measure() -> list[Row]:
    """Milliseconds, medians of several; what is compared with is reading all pixels of the same cohort once."""
    with tempfile.TemporaryDirectory(prefix="mammofed-bench-") as folder:
        path = Path(folder) / "cohort"
        write(path)
        size = sum(file.stat().st_size for file in path.iterdir())
        opening = median(_seconds(lambda: Cohort.open(path)) for _ in range(REPEATS))
        fresh = median(_in_a_fresh_process(path) for _ in range(3))
        cohort = Cohort.open(path)
        everything = _seconds(lambda: (path / "pixels.npy").read_bytes())
        rng = np.random.default_rng(0)
        cohort.batch([0])  # imports torch
        batch = median(_seconds(lambda: cohort.batch(rng.choice(PATIENTS, BATCH, False))) for _ in range(REPEATS))
    compared = f"reading its {size / 1e6:,.0f} MB once"
    return [
        Row(name=f"open {PATIENTS:,} women", value=1e3 * opening, unit="ms", ratio=opening / everything,
            against=compared, at_most=1.0),
        Row(name=f"open {PATIENTS:,} women in a new process", value=1e3 * fresh, unit="ms", ratio=fresh / everything,
            against=compared),
        Row(name=f"gather a batch of {BATCH} women", value=1e3 * batch, unit="ms"),
    ]  # fmt: skip


def write(path: Path) -> None:
    """A cohort of women with four views of random numbers; attributes as the importer writes them."""
    rng = np.random.default_rng(0)
    films = rng.random((16, 2, HEIGHT, WIDTH), dtype=np.float32)
    with CohortWriter(
        path, site="bench", contract_sha256=NO_HASH, pipeline_sha256=NO_HASH, height=HEIGHT, width=WIDTH,
        n_features=N_FEATURES,
    ) as writer:  # fmt: skip
        for number in range(PATIENTS):
            views = {view: films[(4 * number + v) % len(films)] for v, view in enumerate(VIEWS)}
            table = rng.standard_normal(N_FEATURES, dtype=np.float32)
            attributes: dict[str, str | float | None] = {"vendor": "ABCD"[number % 4], "age_years": 40.0 + number % 40}
            writer.add(f"{number:016x}", views, table, number % 2, attributes)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _in_a_fresh_process(path: Path) -> float:
    """Seconds for the opening alone, first thing a new interpreter does with a cohort."""
    done = subprocess.run([sys.executable, "-c", FRESH, str(path)], check=True, capture_output=True, text=True)
    return float(done.stdout)
