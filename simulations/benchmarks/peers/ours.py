"""Our contestant: `mammofed simulate` with `engine=local`, and the study that the peers then repeat."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulations.composition import compose_config


@dataclass(frozen=True, kw_only=True)
class Job:
    """How much everybody trains. patients: women of all sites together; some 80 % of them train."""

    private: bool
    sites: int
    patients: int
    held_out: int
    rounds: int

    @property
    def name(self) -> str:
        """As rows call it."""
        return "private" if self.private else "plain"


# What no peer does is left out of ours, as far as it can be: evaluation happens once, at the end, without bootstrap.
SAME_WORK = (
    "name=peers", "model=tiny", "fusion=gated", "weights=public", "strategy=fedavg", "engine=local",
    "augmentation=none", "training.ema_decay=0", "evaluation.every=1000", "evaluation.bootstrap=0",
    "privacy.metrics=none", "report_deltas=[]", "engine.start_timeout_s=600",
)  # fmt: skip
# For the whole model, image branch included, and noise that is calibrated for few rounds: the loss stays where it was.
LEARNING_RATES = {True: 0.02, False: 0.001}


def overrides(job: Job, *, cache: Path) -> list[str]:
    """Arguments of `mammofed simulate` for a job: one phase that trains every weight."""
    mode = f"privacy={'patient' if job.private else 'none'}"
    phase: dict[str, Any] = dict(compose_config([mode])["training"]["phases"][-1])
    phase |= {"name": "all", "share": 1.0, "objective": "fusion", "encoder_rate": 1.0}
    phase |= {"learning_rate": LEARNING_RATES[job.private]}
    phase |= {name: value for name, value in (("scope", "all"), ("epsilon_share", 1.0)) if name in phase}
    phase |= {"sample_rate": None, "steps_per_round": None}  # the training's own, which the peers read
    sizes = [f"sites={job.sites}", f"patients={job.patients}", f"held_out={job.held_out}", f"rounds={job.rounds}"]
    return [mode, *SAME_WORK, *sizes, f"cache={cache}", f"training.phases=[{_hydra(phase)}]"]


def command(arguments: list[str], run_dir: Path) -> list[str]:
    """The command line that starts our study in `run_dir`."""
    return [sys.executable, "-P", "-m", "mammofed", "simulate", *arguments, f"hydra.run.dir={run_dir}"]


def _hydra(value: dict[str, Any]) -> str:
    """A flat mapping in Hydra's grammar, which is JSON but for the quotes of keys."""
    return "{" + ",".join(f"{name}:{json.dumps(item)}" for name, item in value.items()) + "}"
