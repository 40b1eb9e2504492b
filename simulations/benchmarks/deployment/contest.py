"""One contestant of the section: lays it out, runs it under the probe, reads what its rounds cost; used by `rows`."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean, median

import simulations.benchmarks.deployment.plain_app as plain_app
from server.rounds.checkpoint import read_arrays
from shared_model import __file__ as shared_file
from shared_model.errors import RoundError
from shared_model.protocol import Protocol
from simulations.benchmarks.deployment.federation import Node, Settings
from simulations.benchmarks.deployment.wire import between
from simulations.benchmarks.peers.flower import PYPROJECT
from simulations.benchmarks.peers.probe import Measurement

ROOT = Path(shared_file).resolve().parent.parent
LIMIT_S = 1200.0
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "PYTHONPATH": str(ROOT),
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of a round: wall clock (median) and CPU (mean) in seconds, bytes on the wire from and to all sites (mean).

    messages: to sites a round. train_cpu_s: of its training half alone; None where it has no halves.
    """

    seconds: float
    cpu_s: float
    bytes_up: float
    bytes_down: float
    messages: int
    train_cpu_s: float | None = None


def plain_flower(run_dir: Path, out: Path, *, sites: Sequence[str]) -> Cost:
    """The study of `run_dir` as a plain Flower app.

    Raises:
        RoundError: it did not finish, or not with all sites in all rounds.
    """
    app = out / "app"
    shutil.copytree(Path(plain_app.__file__).parent, app / "peer", ignore=shutil.ignore_patterns("__pycache__"))
    (app / "pyproject.toml").write_text(PYPROJECT.format(run_dir=f"'{run_dir}'", out=f"'{out}'"), encoding="utf-8")
    nodes = tuple(Node(name=site, config={"partition-id": index}) for index, site in enumerate(sites))
    Settings(out=str(out), app=str(app), nodes=nodes).write(out / "settings.json")
    measured, wire = _probe("simulations.benchmarks.deployment.federation", [str(out / "settings.json")], out)
    marks = [json.loads(line) for line in (out / "marks.jsonl").read_text(encoding="utf-8").splitlines()]
    halves = {what: {m["round"]: m for m in marks if m["what"] == what} for what in ("trained", "evaluated")}
    heard = {what: {number: m["replies"] for number, m in half.items()} for what, half in halves.items()}
    wanted = dict.fromkeys(range(1, Protocol.read(run_dir / "protocol.json").rounds + 1), len(sites))
    if heard != {"trained": wanted, "evaluated": wanted}:  # also when Flower lost the run on a busy machine
        words = (out / "logs" / "run.log").read_text(encoding="utf-8", errors="replace")[-300:]
        raise RoundError("plain Flower did not hear every site in every round", found=heard,
                         remedy=f"measure on a quieter machine; its last words: {words}")  # fmt: skip
    ends = [halves["evaluated"][number]["time"] for number in sorted(halves["evaluated"])]
    training = [(ends[number - 2], halves["trained"][number]["time"]) for number in range(2, len(ends) + 1)]
    cost = cost_of(measured, wire, ends, messages=2 * len(sites))
    train = mean(measured.cpu_at(end) - measured.cpu_at(begin) for begin, end in training)
    return Cost(**vars(cost) | {"train_cpu_s": train})


def deployed(run_dir: Path, out: Path, *, sites: Sequence[str]) -> Cost:
    """The same study as we deploy it: enrolled, through tunnel and gateway, signed and audited.

    Raises:
        RoundError: it did not finish, or not with all sites in all rounds.
    """
    out.mkdir(parents=True)
    measured, wire = _probe("simulations.benchmarks.deployment.rehearsed", [str(run_dir), str(out)], out)
    return cost_of(measured, wire, opened(run_dir, sites=len(sites)), messages=len(sites))


def opened(run_dir: Path, *, sites: int) -> list[float]:
    """When each round of our study was opened, seconds since 1970.

    Raises:
        RoundError: a round was closed without all sites, or none was.
    """
    connection = sqlite3.connect(f"{(run_dir / 'journal.sqlite').as_uri()}?mode=ro", uri=True)
    try:
        rows = connection.execute(
            "SELECT opened, count(*) FROM rounds JOIN participation USING (round, attempt) "
            "WHERE outcome = 'contributed' AND state = 'closed' GROUP BY rounds.round ORDER BY rounds.round"
        ).fetchall()
        attempts = connection.execute("SELECT count(*) FROM rounds").fetchone()[0]
    finally:
        connection.close()
    if not rows or attempts != len(rows) or any(count != sites for _, count in rows):
        raise RoundError("our study did not hear every site in every round", found=rows, expected=f"{sites} sites")
    return [float(moment) for moment, _ in rows]


def cost_of(
    measured: Measurement, wire: list[tuple[float, int, int]], boundaries: Sequence[float], *, messages: int
) -> Cost:
    """The cost of a round between its `boundaries` (seconds since 1970); the first round is left out."""
    later = list(pairwise(boundaries))[-max(1, len(boundaries) - 2) :]
    traffic = [between(wire, begin, end) for begin, end in later]
    return Cost(
        seconds=median(end - begin for begin, end in later),
        cpu_s=mean(measured.cpu_at(end) - measured.cpu_at(begin) for begin, end in later),
        bytes_up=mean(up for up, _ in traffic), bytes_down=mean(down for _, down in traffic), messages=messages,
    )  # fmt: skip


def weights_bytes(run_dir: Path) -> int:
    """Bytes of the model's tensors."""
    return sum(array.nbytes for array in read_arrays(run_dir / "initial.safetensors").values())


def _probe(module: str, arguments: Sequence[str], out: Path) -> tuple[Measurement, list[tuple[float, int, int]]]:
    """Run a module of this package, which writes `out/wire.json`, under the probe."""
    probe = [sys.executable, "-P", "-m", "simulations.benchmarks.peers.probe", str(out / "measured.json"), str(LIMIT_S)]
    environment = {**os.environ, **QUIET}
    with (out / "log.txt").open("wb") as log:
        subprocess.run([*probe, "--", sys.executable, "-P", "-m", module, *arguments], stdout=log, stderr=log, cwd=out,
                       env=environment, check=True)  # fmt: skip
    measured = Measurement(**json.loads((out / "measured.json").read_bytes()))
    if measured.exit_code != 0 or not (out / "wire.json").exists():
        words = (out / "log.txt").read_text(encoding="utf-8", errors="replace")[-500:]
        raise RoundError("a federation of the bench did not finish", found=f"exit code {measured.exit_code}: {words}",
                         remedy=f"read the logs in {out}")  # fmt: skip
    wire = json.loads((out / "wire.json").read_bytes())
    return measured, [(float(moment), int(up), int(down)) for moment, up, down in wire]
