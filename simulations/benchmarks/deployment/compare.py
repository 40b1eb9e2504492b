"""Plain Flower against ours, with next to nothing to train: what every round pays before anybody learns anything.

Three sites train a tiny model privately on a few women of random numbers. Plain Flower starts a process for every
message, which imports torch and Opacus, and sends each site two messages a round, train and evaluate. Ours starts one
as well, which imports neither, hands the message to a trainer that runs on, and sends each site one message a round:
what is evaluated is the evaluator's, another party, which gets one of its own.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from simulations.benchmarks.deployment.contest import Cost, deployed, plain_flower, weights_bytes
from simulations.benchmarks.rounds import SIDE, install, write_protocol
from simulations.benchmarks.table import Row
from simulations.composition import compose_config

SITES, PATIENTS, ROUNDS = 3, 40, 4
FLOOR = 4.0  # what issue 5 promises
OVERRIDES = (
    "name=bench-deployment", "privacy=patient", "privacy.noise_multiplier=1.0", "privacy.epsilon=50.0",
    "weights=random", f"rounds={ROUNDS}", f"sites={SITES}", "model=tiny", f"model.height={SIDE}",
    f"model.width={SIDE}", "training.steps_per_round=1", "training.sample_rate=0.25", "evaluation.bootstrap=0",
    "evaluation.every=1", "augmentation=none", f"strategy.quorum={SITES}", "strategy.deadline_s=300",
    "training.phases=[{name: all, share: 1.0, epsilon_share: 1.0, objective: fusion, scope: all, learning_rate: 0.01, "
    "encoder_rate: 1.0}]",
)  # fmt: skip


def measure() -> list[Row]:
    """Seconds, CPU-seconds and bytes a round of both, in one run.

    Raises:
        RoundError: one of them did not finish all rounds with all sites.
    """
    with tempfile.TemporaryDirectory(prefix="mammofed-deployment-") as folder:
        root = Path(folder)
        run_dir = root / "study"
        run_dir.mkdir()
        protocol = write_protocol(compose_config(OVERRIDES), run_dir, sites=SITES, patients=PATIENTS)
        install(protocol, run_dir, patients=PATIENTS)
        sites = [site.name for site in protocol.federation.sites]
        theirs = plain_flower(run_dir, root / "plain", sites=sites)
        ours = deployed(run_dir, root / "ours", sites=sites)
        return rows_of(theirs, ours, weights=weights_bytes(run_dir))


def rows_of(theirs: Cost, ours: Cost, *, weights: int) -> list[Row]:
    """The table; a ratio is plain Flower's figure divided by ours, or bytes against those of the weights alone."""
    assert theirs.train_cpu_s is not None
    against = "ours"
    once = SITES * weights
    return [
        Row(name="CPU of a round: ours", value=ours.cpu_s, unit="CPU s"),
        Row(name="CPU of a round: plain Flower, train and evaluate", value=theirs.cpu_s, unit="CPU s",
            ratio=theirs.cpu_s / ours.cpu_s, against=against, at_least=FLOOR),
        Row(name="CPU of its training alone", value=theirs.train_cpu_s, unit="CPU s",
            ratio=theirs.train_cpu_s / ours.cpu_s, against=against),
        Row(name="CPU of a message to a site: plain Flower", value=theirs.cpu_s / theirs.messages, unit="CPU s"),
        Row(name="wall clock of a round: ours", value=ours.seconds, unit="s"),
        Row(name="wall clock of a round: plain Flower", value=theirs.seconds, unit="s",
            ratio=theirs.seconds / ours.seconds, against=against, at_least=1.0),
        *(Row(name=f"bytes {way} a round: {who}", value=value / 1e3, unit="kB", ratio=value / once,
              against=f"{SITES} times the weights")
          for who, cost in (("ours", ours), ("plain Flower", theirs))
          for way, value in (("from the sites", cost.bytes_up), ("to the sites", cost.bytes_down))),
    ]  # fmt: skip
