"""The study that a fleet plays: as many hospitals as asked for, rounds as small as they can be; used by `command`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from shared_model.certificates import Role
from shared_model.protocol import Protocol
from simulations.benchmarks.rounds import SIDE, install, write_protocol
from simulations.composition import compose_config
from simulations.engine.deployment.rehearsal import Party
from simulations.engine.deployment.run import parties

PATIENTS, ROUNDS, DEADLINE_S = 40, 10_000, 240
OVERRIDES = (
    "name=fleet", "privacy=none", "weights=random", f"rounds={ROUNDS}", "model=tiny", f"model.height={SIDE}",
    f"model.width={SIDE}", "training.steps_per_round=1", "training.sample_rate=0.1", "evaluation.bootstrap=0",
    "evaluation.every=5", "augmentation=none", f"strategy.deadline_s={DEADLINE_S}", "strategy.attempts=3",
    "training.phases=[{name: all, share: 1.0, epsilon_share: 1.0, objective: fusion, scope: all, learning_rate: 0.01, "
    "encoder_rate: 1.0}]",
)  # fmt: skip


def prepare(run_dir: Path, *, sites: int, trainers: int) -> tuple[Protocol, list[Party]]:
    """Protocol, weights and random cohorts in `run_dir`; parties of which the sites share `trainers` processes."""
    run_dir.mkdir(parents=True)
    protocol = write_protocol(compose_config((*OVERRIDES, f"sites={sites}")), run_dir, sites=sites, patients=PATIENTS)
    files = install(protocol, run_dir, patients=PATIENTS)
    return protocol, shared(parties(files, protocol), trainers=trainers)


def shared(everybody: list[Party], *, trainers: int) -> list[Party]:
    """Sites dealt to the trainers in turn; the evaluator, who must not see what sites have, keeps one of its own."""
    names = [f"trainers-{number}" for number in range(1, trainers + 1)]
    sites = [party for party in everybody if party.role is Role.SITE]
    others = [party for party in everybody if party.role is not Role.SITE]
    return [replace(party, trainer=names[number % trainers]) for number, party in enumerate(sites)] + others
