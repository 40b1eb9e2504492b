"""Which trainings a comparison takes: every arm (the study under other settings) with every baseline. Needs no torch.

A job is one training, from its configuration to a chosen model. All jobs of one population share the women, their
splits, the initial weights of their arm, and the budget: the same number of rounds, optimiser steps and expected
patients a step as the arm's federated study.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from shared_model.errors import ConfigError

Config = dict[str, Any]
Score = Literal["fused", "image", "clinical"]

FEDERATED = "federated"
BASELINES: Mapping[str, str] = {
    "pooled": "one trainer that holds all sites' women",
    "local": "each site by itself",
    "image_only": "a federated model of the films alone",
    "clinical_only": "a federated model of the table alone",
    "logistic": "logistic regression on all sites' tables",
    "public_only": "the initial weights, without any hospital's data",
}
ONCE = ("logistic", "public_only")  # what no setting of an arm changes: in the first arm that has it
POOLED_SITE = "pooled"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training and where it is kept.

    seed: of the population. arm: name of the settings. baseline: a key of BASELINES, or `federated`. site: of a `local`
    job. parties: sites that train. score: which prediction it is judged by. overrides: Hydra's, the arm's last.
    """

    seed: int
    arm: str
    baseline: str
    parties: tuple[str, ...]
    score: Score
    overrides: tuple[str, ...]
    site: str | None = None

    @property
    def name(self) -> str:
        """Name within its seed, which is its folder's: `none/local/site_01`."""
        return "/".join(filter(None, (self.arm, self.baseline, self.site)))


@dataclass(frozen=True, kw_only=True)
class Arm:
    """The study under other settings. overrides: Hydra's, on top of what was typed. baselines: its controls."""

    overrides: tuple[str, ...]
    baselines: tuple[str, ...]

    @classmethod
    def of(cls, value: Mapping[str, Any], baselines: Sequence[str]) -> Arm:
        """From the configuration; an arm that names no baselines of its own has the study's."""
        own = value.get("baselines")
        return cls(overrides=tuple(value.get("overrides") or ()), baselines=tuple(baselines if own is None else own))


def expand(*, seed: int, sites: Sequence[str], arms: Mapping[str, Arm], overrides: Sequence[str]) -> list[Job]:
    """All jobs of one population, longest first, so that no worker ends with a long one alone.

    Args:
        sites: names, in order.
        arms: by name; the first is what the others are compared with.
        overrides: what was typed.

    Raises:
        ConfigError: an unknown baseline.
    """
    unknown = sorted({name for arm in arms.values() for name in arm.baselines} - set(BASELINES))
    if unknown:
        raise ConfigError("baselines: unknown", found=unknown, expected=list(BASELINES))
    jobs: list[Job] = []
    done: set[str] = set()
    for name, arm in arms.items():
        own = merged([*overrides, f"seed={seed}", *arm.overrides])
        for baseline in (FEDERATED, *arm.baselines):
            if baseline not in done:
                jobs += _of(seed, name, baseline, tuple(sites), own)
        done |= set(ONCE) & set(arm.baselines)
    return sorted(jobs, key=_cost, reverse=True)


def merged(overrides: Sequence[str]) -> tuple[str, ...]:
    """Hydra overrides with the last word for each key: Hydra refuses a group that is chosen twice."""
    last = {text.lstrip("+~").split("=", 1)[0]: text for text in overrides}
    return tuple(last.values())


def with_objective(config: Config, objective: Literal["image", "clinical"]) -> Config:
    """The same rounds, steps, rates and noise for one branch alone; the model is then chosen by that branch's AUC."""
    phases = [{**phase, "objective": objective} for phase in config["training"]["phases"]]
    return {
        **config,
        "training": {**config["training"], "phases": phases},
        "evaluation": {**config["evaluation"], "score": objective},
    }


def _of(seed: int, arm: str, baseline: str, sites: tuple[str, ...], overrides: tuple[str, ...]) -> list[Job]:
    scores: dict[str, Score] = {
        "image_only": "image", "clinical_only": "clinical", "logistic": "clinical", "public_only": "image",
    }  # fmt: skip
    score = scores.get(baseline, "fused")
    if baseline == "local":
        return [
            Job(seed=seed, arm=arm, baseline=baseline, parties=(site,), score=score, overrides=overrides, site=site)
            for site in sites
        ]
    parties = (POOLED_SITE,) if baseline in ("pooled", "logistic") else sites
    return [Job(seed=seed, arm=arm, baseline=baseline, parties=parties, score=score, overrides=overrides)]


def _cost(job: Job) -> float:
    """Rough work of a job relative to others; decides their order only."""
    share = 1.0 / 3 if job.site else 1.0
    return share * {"clinical_only": 0.2, "logistic": 0.01, "public_only": 0.05}.get(job.baseline, 1.0)
