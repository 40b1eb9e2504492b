"""Runs one contestant of the comparison under the probe and reads what it did; called by `compare`."""

from __future__ import annotations

import json
import math
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from server.rounds.checkpoint import read_checkpoint
from shared_model import __file__ as shared_file
from shared_model.errors import RoundError
from shared_model.protocol import Protocol
from simulations.benchmarks.peers import flower, ours
from simulations.benchmarks.peers.ours import Job
from simulations.benchmarks.peers.probe import Measurement

ROOT = Path(shared_file).resolve().parent.parent
OURS, FLOWER, FLARE, FLARE_FAST = "MammoFed", "Flower", "FLARE", "FLARE polling 0.1 s"
CONTESTANTS = (OURS, FLOWER, FLARE, FLARE_FAST)
FAST_INTERVAL_S = "0.1"  # FLARE's clients ask for a task every 2 s unless they are told otherwise
LIMIT_S = 1800.0         # of one contestant: many times what it takes on two quiet cores


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a contestant did.

    began: when the first site began each round, seconds since 1970. replies: how many sites' replies went into each
    round's aggregate. auc: of the model after the last round, on all held-out women.
    """

    measured: Measurement
    began: Mapping[int, float]
    replies: Mapping[int, int]
    auc: float


def prepare(job: Job, out: Path, *, cache: Path) -> None:
    """Hospitals and cohorts into the cache, by one round that nobody measures."""
    out.mkdir(parents=True)
    command = ours.command(ours.overrides(replace(job, rounds=1), cache=cache), out / "run")
    _probe(command, out, "the preparation", _environment())


def contest(name: str, job: Job, root: Path, *, cache: Path, peer: str) -> Result:
    """Run a contestant of :data:`CONTESTANTS`; `root` is the same for all of a job, and ours comes first: the peers
    read the study from its run directory.

    peer: interpreter with NVIDIA FLARE.

    Raises:
        RoundError: it did not finish.
    """
    run_dir, out = root / "run", root / name.replace(" ", "-")
    out.mkdir(parents=True)
    if name == OURS:
        measured = _probe(ours.command(ours.overrides(job, cache=cache), run_dir), out, name, _environment())
        began, replies = _journal(run_dir / "journal.sqlite")
        return Result(measured=measured, began=began, replies=replies, auc=_auc(run_dir, _our_weights(run_dir)))
    if name == FLOWER:
        command = flower.command(sys.executable, run_dir=run_dir, out=out, sites=job.sites)
        environment = _environment() | flower.environment(sys.executable, out=out)
    else:
        interval = [FAST_INTERVAL_S] if name == FLARE_FAST else []
        command = [peer, "-P", "-m", "simulations.benchmarks.peers.nvflare_job", str(run_dir), str(out), *interval]
        environment = _environment()
    measured = _probe(command, out, name, environment)
    marks = [json.loads(line) for line in (out / "marks.jsonl").read_text(encoding="utf-8").splitlines()]
    replies = marked_replies(marks) if name == FLOWER else logged_replies(_words(out))
    return Result(measured=measured, began=first_trainings(marks), replies=replies,
                  auc=_auc(run_dir, _their_weights(out, marks)))  # fmt: skip


def _environment() -> dict[str, str]:
    """One thread a process and no spinning for everybody (`bench.THREADS`); our packages from this checkout."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def _probe(command: Sequence[str], out: Path, name: str, environment: Mapping[str, str]) -> Measurement:
    """Run a command in `out` under the probe; what it says goes to `log.txt` there."""
    result = out / "measured.json"
    probe = [sys.executable, "-P", "-m", "simulations.benchmarks.peers.probe", str(result), str(LIMIT_S), "--"]
    with (out / "log.txt").open("wb") as log:
        subprocess.run([*probe, *command], stdout=log, stderr=log, cwd=out, env=dict(environment), check=True)
    measured = Measurement(**json.loads(result.read_bytes()))
    if measured.exit_code != 0:
        code = measured.exit_code
        raise RoundError(
            f"{name} did not finish", found=f"no end in {LIMIT_S:g} s" if code is None else f"exit code {code}",
            remedy=f"its last words: {_words(out)[-500:]}",
        )  # fmt: skip
    return measured


def _words(out: Path) -> str:
    return (out / "log.txt").read_text(encoding="utf-8", errors="replace")


def _journal(path: Path) -> tuple[dict[int, float], dict[int, int]]:
    """When each of our rounds was opened, and how many sites contributed to it."""
    query = (
        "SELECT rounds.round, opened, count(*) FROM rounds JOIN participation USING (round, attempt) "
        "WHERE outcome = 'contributed' GROUP BY rounds.round"
    )
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
    try:
        found = connection.execute(query).fetchall()
    finally:
        connection.close()
    return {number: opened for number, opened, _ in found}, {number: count for number, _, count in found}


def first_trainings(marks: Iterable[Mapping[str, Any]]) -> dict[int, float]:
    """When the first site began each round, from the lines of `work.mark`."""
    began: dict[int, float] = {}
    for line in marks:
        if line["what"] == "began":
            began[line["round"]] = min(line["time"], began.get(line["round"], math.inf))
    return began


def marked_replies(marks: Iterable[Mapping[str, Any]]) -> dict[int, int]:
    """Replies in each round's aggregate, as Flower's server marked them."""
    return {line["round"]: int(line["replies"]) for line in marks if line["what"] == "aggregated"}


def logged_replies(log: str) -> dict[int, int]:
    """The same from the log of FLARE's server, which counts rounds from 0."""
    found: dict[int, int] = {}
    for started, aggregated in re.findall(r"\bRound (\d+) started|\bAggregated (\d+)/\d+ results", log):
        if started:
            found[int(started) + 1] = 0
        elif found:
            found[max(found)] = int(aggregated)
    return found


def _our_weights(run_dir: Path) -> Mapping[str, Any]:
    protocol = Protocol.read(run_dir / "protocol.json")
    return read_checkpoint(run_dir, protocol.rounds, protocol_sha256=protocol.sha256).weights


def _their_weights(out: Path, marks: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The mean of the last round's replies by number of patients, which is what the server makes of them."""
    from simulations.benchmarks.peers import work

    patients = {int(line["site"]): int(line["patients"]) for line in marks if line["what"] == "ended"}
    return work.averaged(out, patients)


def _auc(run_dir: Path, weights: Mapping[str, Any]) -> float:
    from simulations.benchmarks.peers import work  # imports torch

    return work.auc(run_dir, weights)
