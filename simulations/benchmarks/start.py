"""How long the default study takes to its first closed round, from an empty cache and again; a section of the bench."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from shared_model.errors import RoundError
from simulations.benchmarks.table import Row

OVERRIDES = ("study=quick", "rounds=2", "name=bench")  # preparation is that of the whole study
LIMIT_S = 600


def measure() -> list[Row]:
    """Seconds from the command to the first closed round, as a person waits for them.

    Raises:
        RoundError: the study did not complete.
    """
    with tempfile.TemporaryDirectory(prefix="mammofed-bench-") as folder:
        root = Path(folder)
        cold, up, down = _first_round(root, "cold")
        warm, _, _ = _first_round(root, "warm")
    return [
        Row(name="first round closed, empty cache", value=cold, unit="s"),
        Row(name="first round closed, women and cohorts cached", value=warm, unit="s", ratio=warm / cold,
            against="empty cache"),
        Row(name="bytes a round, all sites, from them", value=up / 1e6, unit="MB"),
        Row(name="bytes a round, all sites, to them", value=down / 1e6, unit="MB"),
    ]  # fmt: skip


def _first_round(root: Path, name: str) -> tuple[float, int, int]:
    """Run the command; seconds until round 1 was closed, and that round's bytes from and to all sites."""
    run_dir = root / name
    places = [f"cache={root / 'cache'}", f"hydra.run.dir={run_dir}"]
    command = [sys.executable, "-m", "mammofed", "simulate", *OVERRIDES, *places]
    began = time.time()
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    if done.returncode:
        raise RoundError("the study of the bench did not complete", found=f"exit code {done.returncode}",
                         remedy=(done.stderr or done.stdout)[-500:])  # fmt: skip
    connection = sqlite3.connect(f"{(run_dir / 'journal.sqlite').as_uri()}?mode=ro", uri=True)
    try:
        (closed,) = connection.execute("SELECT time FROM steps WHERE round = 1 AND step = 'close'").fetchone()
        query = "SELECT sum(bytes_up), sum(bytes_down) FROM participation WHERE round = 1"
        up, down = connection.execute(query).fetchone()
    finally:
        connection.close()
    return closed - began, up, down
