"""What a study came to, read from the run directory and the sites' own disks, and how two of them differ."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.privacy.ledger import Ledger
from simulations.faults.lab import ROUNDS, SITES, Install

# (group, round) -> entries; round 0 for `metrics`, since under privacy chance decides which round's model is chosen
Spent = Mapping[tuple[str, int], int]


@dataclass(frozen=True)
class Ending:
    """model, checkpoints: SHA-256 of the files. participation: outcome by round and site, of the attempt that closed
    the round. measured: all numbers that somebody measured. ledgers: entries of each site; epsilon: what the site's own
    ledger says, and told: the greatest that it told the coordinator (both empty without privacy)."""

    status: str
    model: str
    checkpoints: Mapping[str, str]
    participation: Mapping[int, Mapping[str, str]]
    measured: Mapping[str, float]
    ledgers: Mapping[str, Spent]
    epsilon: Mapping[str, float]
    told: Mapping[str, float]

    @classmethod
    def read(cls, copy: Install) -> Ending:
        """The end state of a study that has written its summary."""
        run_dir = copy.run_dir
        participation: dict[int, dict[str, str]] = {}
        closing = "SELECT round, site, outcome FROM participation JOIN rounds USING (round, attempt) "
        closing += "WHERE state = 'closed'"
        numbers = "SELECT round || '/' || scope || '/' || site || '/' || name, value FROM metrics"
        epsilons = "SELECT site, max(epsilon) FROM privacy WHERE release = 'training' GROUP BY site"
        for number, site, outcome in rows(run_dir, closing):
            participation.setdefault(number, {})[site] = outcome
        ledgers = {name: Ledger(copy.state(name) / "ledger.json") for name in SITES}
        delta, private = copy.protocol.privacy.delta, copy.protocol.private
        return cls(
            status=json.loads((run_dir / "summary.json").read_text())["status"],
            model=_sha256(run_dir / "model.safetensors"),
            checkpoints={path.name: _sha256(path) for path in sorted((run_dir / "checkpoints").iterdir())},
            participation=participation, measured=dict(rows(run_dir, numbers)),
            ledgers={name: Counter((e["group"], e["round"] if e["group"] == "train" else 0) for e in ledger.records())
                     for name, ledger in ledgers.items()},
            epsilon={name: ledger.spent("train", delta=delta) for name, ledger in ledgers.items()} if private else {},
            told=dict(rows(run_dir, epsilons)),
        )  # fmt: skip


def same_model(found: Ending, expected: Ending) -> list[str]:
    """Differences of two studies without privacy, in words: model, checkpoints, participation, numbers; to the bit."""
    faults = same_participation(found, expected)
    if found.model != expected.model:
        faults.append("model.safetensors differs from the undisturbed one")
    if found.checkpoints != expected.checkpoints:
        names = sorted(n for n in {*found.checkpoints, *expected.checkpoints}
                       if found.checkpoints.get(n) != expected.checkpoints.get(n))  # fmt: skip
        faults.append(f"checkpoints differ: {', '.join(names)}")
    if found.measured != expected.measured:
        names = sorted(n for n in {*found.measured, *expected.measured}
                       if found.measured.get(n) != expected.measured.get(n))  # fmt: skip
        faults.append(f"measured numbers differ: {', '.join(names[:4])}")
    return faults


def same_participation(found: Ending, expected: Ending) -> list[str]:
    """Differences in status and in who took part in which closed round."""
    faults = [] if found.status == expected.status else [f"status {found.status}, not {expected.status}"]
    for number in sorted({*found.participation, *expected.participation}):
        here, there = found.participation.get(number), expected.participation.get(number)
        if here != there:
            faults.append(f"participation of round {number}: {here}, not {there}")
    return faults


def never_less(found: Ending, expected: Ending, *, more: Mapping[str, int] | None = None) -> list[str]:
    """What is wrong with the ledgers of a private study: never less than was used, and no more than crashes explain.

    Args:
        more: entries of round 2 that the disturbance explains, by site.
    """
    faults = []
    for site in SITES:
        for key in {*expected.ledgers[site], *found.ledgers[site]}:
            here, there = found.ledgers[site].get(key, 0), expected.ledgers[site].get(key, 0)
            allowed = there + ((more or {}).get(site, 0) if key == ("train", 2) else 0)
            if not there <= here <= allowed:
                faults.append(f"{site} has {here} ledger entries for {key}, expected {there} to {allowed}")
        if found.epsilon[site] < expected.epsilon[site] or found.epsilon[site] < found.told[site]:
            faults.append(f"{site} under-counts: epsilon {found.epsilon[site]:.3f}, told {found.told[site]:.3f}, "
                          f"undisturbed {expected.epsilon[site]:.3f}")  # fmt: skip
    return faults


def judge_private(found: Ending, expected: Ending, *, more: Mapping[str, int] | None = None) -> list[str]:
    """Differences of two private studies, whose noise and so whose models differ: participation and ledgers."""
    return [*same_participation(found, expected), *never_less(found, expected, more=more)]


def as_planned(ending: Ending) -> list[str]:
    """Why an undisturbed study is no reference: every site must have contributed to every round."""
    wanted = {number: dict.fromkeys(SITES, "contributed") for number in range(1, ROUNDS + 1)}
    return [] if ending.status == "COMPLETE" and ending.participation == wanted else [
        f"the undisturbed study is {ending.status}, {ending.participation}"
    ]  # fmt: skip


def rows(run_dir: Path, query: str, *values: object) -> list[tuple[Any, ...]]:
    """The rows of a SELECT on the journal of a run directory, opened for reading."""
    path = run_dir / "journal.sqlite"
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
    try:
        return connection.execute(query, values).fetchall()
    finally:
        connection.close()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
