"""The small study that is disturbed: two hospitals and an evaluator of random films, three rounds; used by `scene`.

It is as small as a study can be that still has all parts: momentum at the server, so that a checkpoint is more than
weights; selection after every round, so that the choice of a model can go wrong; final metrics of each site.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.trainer.config import SiteConfig
from shared_model.protocol import Protocol
from simulations.benchmarks.rounds import SIDE, write_cohort, write_protocol
from simulations.composition import compose_config
from simulations.parties import EVALUATOR

SERVER = "server"
SITES = ("site-001", "site-002")
TRAINERS = (*SITES, EVALUATOR)
PATIENTS, ROUNDS = 40, 3
PHASES = ("{name: all, share: 1.0, epsilon_share: 1.0, objective: fusion, scope: all, learning_rate: 0.01, "
          "encoder_rate: 1.0}")  # fmt: skip
COMMON = (
    "weights=random", f"rounds={ROUNDS}", f"sites={len(SITES)}", "model=tiny", f"model.height={SIDE}",
    f"model.width={SIDE}", f"training.phases=[{PHASES}]", "training.steps_per_round=2", "training.sample_rate=0.25",
    "evaluation.bootstrap=0", "augmentation=none", "strategy=fedadam", "strategy.quorum=2", "strategy.attempts=3",
    "strategy.deadline_s=120.0",
)  # fmt: skip
# What is disturbed, by name. `private` has a budget for more rounds than it plans: a crash may only over-count.
FLAVOURS: dict[str, tuple[str, ...]] = {
    "plain": (*COMMON, "privacy=none"),
    "tolerant": (*COMMON, "privacy=none", "strategy.quorum=1"),
    "hasty": (*COMMON, "privacy=none", "strategy.quorum=1", "strategy.deadline_s=10.0"),
    "private": (*COMMON, "privacy=patient", "privacy.noise_multiplier=1.0", "privacy.epsilon=50.0"),
}


@dataclass(frozen=True)
class Install:
    """One copy of the study. run_dir: the coordinator's; files: each trainer's `site.json`."""

    protocol: Protocol
    run_dir: Path
    files: dict[str, Path]

    def state(self, party: str) -> Path:
        """The folder of a trainer's ledger and replies."""
        return self.files[party].parent / "state"


class Lab:
    """Makes the study once in each flavour, and cheap fresh copies of it. root: an empty folder."""

    def __init__(self, root: Path) -> None:
        self._root, self._protocols = root, dict[str, Protocol]()

    def install(self, flavour: str, folder: Path) -> Install:
        """A fresh copy in `folder`, nothing of it run; cohorts, which nobody writes, are shared."""
        protocol, made = self._protocol(flavour), self._root / "made" / flavour
        run_dir = folder / "run"
        run_dir.mkdir(parents=True)
        for name in ("protocol.json", "initial.safetensors"):
            shutil.copy(made / name, run_dir / name)
        files = {name: _install(folder / name, name, protocol, self._root / "cohorts" / name) for name in TRAINERS}
        return Install(protocol, run_dir, files)

    def _protocol(self, flavour: str) -> Protocol:
        if flavour not in self._protocols:
            config: dict[str, Any] = compose_config((*FLAVOURS[flavour], f"name=faults-{flavour}"))
            folder = self._root / "made" / flavour
            folder.mkdir(parents=True)
            protocol = write_protocol(config, folder, sites=len(SITES), patients=PATIENTS)
            for seed, name in enumerate(TRAINERS):
                if not (self._root / "cohorts" / name).exists():
                    write_cohort(self._root / "cohorts" / name, protocol, site=name, seed=seed, patients=PATIENTS)
            self._protocols[flavour] = protocol
        return self._protocols[flavour]


def _install(home: Path, name: str, protocol: Protocol, cohort: Path) -> Path:
    (home / "protocols").mkdir(parents=True)
    (home / "protocols" / "approved.json").write_text(protocol.to_json(), encoding="utf-8")
    held_out = name == EVALUATOR
    site = SiteConfig(
        coordinator=None, private_only=False,  # all parties live on this machine
        site=name, role="evaluator" if held_out else "site", cohort=cohort, state=home / "state",
        protocols=home / "protocols", device="cpu", salt="faults",
        fractions={"selection": 0.5, "test": 0.5} if held_out else {"train": 0.8, "test": 0.2},
    )  # fmt: skip
    path = home / "site.json"
    path.write_text(site.to_json(), encoding="utf-8")
    return path
