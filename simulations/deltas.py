"""Epsilon at further deltas, computed once a study has ended; called by the launcher, shown by report and terminal.

The accountant needs torch, which launcher and report do without: a child process works it out from the plain numbers of
`summary.json` and the result is kept beside it in `privacy-deltas.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from server.reporting.facts import DELTAS_NAME
from server.rounds.checkpoint import write_bytes
from shared_model.passport import PASSPORT, SignedPassport
from shared_model.protocol import Protocol

Deltas = dict[str, dict[str, float]]
TOLERANCE = 1e-6


def write_other_deltas(run_dir: Path, summary: Mapping[str, Any], deltas: Sequence[float]) -> None:
    """Write `privacy-deltas.json` for all sites that spent anything; nothing without privacy. One that the passport
    names stays as it was signed: a later release may reckon finer, and would make the passport void.

    Args:
        summary: the content of `summary.json`.
        deltas: each in (0, 1).
    """
    spent = {site: row for site, row in summary["privacy"].items() if row["steps"]}
    if not spent or not deltas or _signed(run_dir):
        return
    protocol = Protocol.read(run_dir / "protocol.json")
    rows = {site: {**row, "mechanisms": spent_in_order(protocol, row["steps"])} for site, row in spent.items()}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as child:
        found = child.submit(other_deltas, rows, list(deltas)).result()
    write_bytes(run_dir / DELTAS_NAME, (json.dumps(found, indent=2) + "\n").encode())


def _signed(run_dir: Path) -> bool:
    """Whether the passport of a run names the file, which lies there."""
    if not (run_dir / PASSPORT).exists() or not (run_dir / DELTAS_NAME).exists():
        return False
    return any(part.name == DELTAS_NAME for part in SignedPassport.read(run_dir / PASSPORT).passport.files)


def spent_in_order(protocol: Protocol, steps: int) -> list[tuple[float, float, int]]:
    """(sigma, q, steps) of a site that spent `steps` in the study's first rounds; empty where no number of rounds has
    as many, because it left one out between phases."""
    counted = 0
    for number in range(1, protocol.rounds + 1):
        counted += protocol.steps(number)
        if counted == steps:
            return list(protocol.mechanisms(number))
    return []


def other_deltas(rows: Mapping[str, Mapping[str, Any]], deltas: Sequence[float]) -> Deltas:
    """Epsilon by site and delta from each site's `mechanisms`, rows of (sigma, q, steps). Imports torch.

    A site whose stated epsilon these numbers do not give has spent on more than this study, which only its own ledger
    knows: it is left out rather than shown too small.
    """
    from client.privacy.accountant import Account

    found: Deltas = {}
    for site, row in sorted(rows.items()):
        account = Account.from_lists(row["mechanisms"])
        if abs(account.epsilon(delta=row["delta"]) - row["epsilon"]) <= TOLERANCE:
            found[site] = {f"{delta:g}": account.epsilon(delta=delta) for delta in deltas}
    return found
