"""What a round costs with next to nothing to train: messages, sockets, journal, checkpoint; bench section.

The whole path runs, from the round loop over Flower's grid and the courier's shim to trainer processes; each of four
sites takes one step on a single woman's 32 x 32 films. Evaluation happens after the last round only, which is left out.
"""

from __future__ import annotations

import sqlite3
import tempfile
import threading
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from client.trainer.config import SiteConfig
from server.rounds.events import Event
from server.rounds.loop import run_study
from shared_model.cohort import CohortWriter
from shared_model.cohort.views import VIEWS
from shared_model.contract import load_contract
from shared_model.errors import RoundError
from shared_model.protocol import Protocol
from simulations.benchmarks.table import Row
from simulations.composition import compose_config
from simulations.engine import LocalGrid, TrainerPool
from simulations.plan import build_protocol, calibrate_and_initialise

SITES, PATIENTS, ROUNDS, SIDE = 4, 40, 9, 32
PIPELINE = "0" * 64
OVERRIDES = (
    "privacy=none", "weights=random", f"rounds={ROUNDS}", f"sites={SITES}", "model=tiny", f"model.height={SIDE}",
    f"model.width={SIDE}", "training.steps_per_round=1", "training.sample_rate=0.025", "evaluation.every=1000",
    "evaluation.bootstrap=0", "augmentation=none",
)  # fmt: skip


def measure() -> list[Row]:
    """Seconds a round (median), its share outside training, and bytes a round and site.

    Raises:
        RoundError: the study did not complete.
    """
    with tempfile.TemporaryDirectory(prefix="mammofed-bench-") as folder:
        root = Path(folder)
        config = compose_config(OVERRIDES)
        protocol = write_protocol(config, root, sites=SITES, patients=PATIENTS)
        files = install(protocol, root, patients=PATIENTS)
        pool = TrainerPool(files, log_dir=root / "logs", processes=None, start_timeout_s=120.0)
        with pool:
            outcome = run_study(
                grid=LocalGrid(pool), protocol=protocol, run_dir=root, initial=load_file(root / "initial.safetensors"),
                observer=_ignore, stop=threading.Event(),
            )  # fmt: skip
        if outcome.status != "COMPLETE":
            raise RoundError("the study of the bench did not complete", found=outcome.reason)
        return _rows(root / "journal.sqlite", weights=(root / "initial.safetensors").stat().st_size)


def _rows(journal: Path, *, weights: int) -> list[Row]:
    # The first round loads cohort and model, the last one evaluates.
    query = (
        "SELECT rounds.seconds, max(participation.seconds), sum(bytes_up), sum(bytes_down), count(*) FROM rounds "
        "JOIN participation USING (round, attempt) WHERE round > 1 AND round < ? GROUP BY round"
    )
    connection = sqlite3.connect(f"{journal.as_uri()}?mode=ro", uri=True)
    try:
        rounds = connection.execute(query, (ROUNDS,)).fetchall()
    finally:
        connection.close()
    whole, busiest = median(row[0] for row in rounds), median(row[1] for row in rounds)
    up, down = median(row[2] / row[4] for row in rounds), median(row[3] / row[4] for row in rounds)
    against = f"the weights alone, {weights / 1e3:,.0f} kB"
    return [
        Row(name=f"round of {SITES} sites", value=1e3 * whole, unit="ms"),
        Row(name="longest training in it, one step", value=1e3 * busiest, unit="ms", ratio=busiest / whole,
            against="a round"),
        Row(name="bytes from a site a round", value=up / 1e3, unit="kB", ratio=up / weights, against=against,
            at_most=1.1),
        Row(name="bytes to a site a round", value=down / 1e3, unit="kB", ratio=down / weights, against=against,
            at_most=1.1),
    ]  # fmt: skip


def write_protocol(config: dict[str, Any], root: Path, *, sites: int, patients: int) -> Protocol:
    """Initial weights and the protocol of `sites` equal hospitals, in `root`."""
    contract = load_contract()
    sigmas, initial = calibrate_and_initialise(config, contract.n_features, root / "initial.safetensors")
    protocol = build_protocol(
        config, patients=dict.fromkeys((f"site-{i:03d}" for i in range(1, sites + 1)), patients), sigmas=sigmas,
        initial_weights=initial,
        contract={"version": contract.version, "sha256": contract.sha256, "n_features": contract.n_features},
        pipeline={"sha256": PIPELINE, "height": SIDE, "width": SIDE, "spacing_mm": 4.0},
    )  # fmt: skip
    (root / "protocol.json").write_text(protocol.to_json(), encoding="utf-8")
    return protocol


def install(protocol: Protocol, root: Path, *, patients: int) -> list[Path]:
    """Cohorts of random numbers, each of `patients` women, and a `site.json` for each party."""
    files = []
    for seed, name in enumerate([*(site.name for site in protocol.federation.sites), "evaluator"]):
        home = root / "sites" / name
        (home / "protocols").mkdir(parents=True)
        (home / "protocols" / "approved.json").write_text(protocol.to_json(), encoding="utf-8")
        write_cohort(home / "cohort", protocol, site=name, seed=seed, patients=patients)
        held_out = name == "evaluator"
        site = SiteConfig(
            coordinator=None, private_only=False,  # all parties live on this machine
            site=name, role="evaluator" if held_out else "site", cohort=home / "cohort", state=home / "state",
            protocols=home / "protocols", device="cpu", salt="bench",
            fractions={"selection": 0.5, "test": 0.5} if held_out else {"train": 0.8, "test": 0.2},
        )  # fmt: skip
        files.append(home / "site.json")
        files[-1].write_text(site.to_json(), encoding="utf-8")
    return files


def write_cohort(path: Path, protocol: Protocol, *, site: str, seed: int, patients: int) -> None:
    """A prepared cohort of women made of random numbers, half of them with cancer."""
    rng = np.random.default_rng(seed)
    contract = protocol.contract
    with CohortWriter(
        path, site=site, contract_sha256=contract.sha256, pipeline_sha256=PIPELINE, height=SIDE, width=SIDE,
        n_features=contract.n_features,
    ) as writer:  # fmt: skip
        for number in range(patients):
            views = {view: rng.random((2, SIDE, SIDE), dtype=np.float32) for view in VIEWS}
            table = rng.standard_normal(contract.n_features, dtype=np.float32)
            writer.add(f"{seed:04x}{number:012x}", views, table, number % 2, {})


def _ignore(event: Event) -> None:
    """Nobody watches a bench."""
