"""Runs one job of a comparison, from its configuration to its scores; called in the worker processes of `suite`.

The trainers are a library in this process: the same server loop, strategies, trainer code and bits as in a study with
processes, without starting a process for each party of each of two dozen trainings.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from client.trainer.server import THREAD_VARIABLES
from client.training.features import FeatureCache
from server.reporting import Signature, write_passport
from server.rounds.checkpoint import read_arrays
from server.rounds.events import Event
from server.rounds.loop import run_study
from server.rounds.signer import one_machine_signing
from server.rounds.summary import write_summary
from shared_model.cohort import Cohort, split_indices
from shared_model.contract import load_contract
from shared_model.errors import MammoFedError, RoundError
from shared_model.evaluation import Scores
from shared_model.passport import PASSPORT
from shared_model.protocol import Protocol
from shared_model.strategies import LEAST_SUM_SITES
from simulations.baselines.jobs import FEDERATED, ONCE, POOLED_SITE, Config, Job, with_objective
from simulations.baselines.logistic import logistic_scores
from simulations.baselines.scores import FILE, HELD_OUT, PartyScores, write_scores
from simulations.baselines.suite import Tell
from simulations.composition import compose_config
from simulations.engine import LocalGrid
from simulations.engine.library import TrainerLibrary
from simulations.maps_at_end import measure_maps
from simulations.parties import EVALUATOR, install_sites, split_of, write_small
from simulations.plan import build_protocol, noise_multipliers, pipeline_of, write_initial_weights

OBJECTIVES: Mapping[str, Any] = {"image_only": "image", "clinical_only": "clinical"}
CHEAPER = {"bootstrap": 0}  # baselines are compared by DeLong; only a study's own report has bootstrap intervals


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one population's cohorts are, and where its jobs are kept.

    cohorts: by party, `held_out` and, where it was made, `pooled` among them. folder: of the seed.
    """

    cohorts: Mapping[str, Path]
    folder: Path
    name: str


def prepare_process() -> None:
    """Settings of a worker process: one thread, since as many processes as cores run side by side."""
    for variable in THREAD_VARIABLES:
        os.environ[variable] = "1"
    torch.set_num_threads(1)


class Features:
    """Descriptors that jobs of one process share: all arms with the same initial weights score the same films."""

    def __init__(self) -> None:
        self._caches: dict[Path, FeatureCache] = {}

    def of(self, path: Path) -> FeatureCache:
        """The cache of one cohort."""
        if path not in self._caches:
            self._caches[path] = FeatureCache(Cohort.open(path), load_bytes=64 << 20)
        return self._caches[path]


FEATURES = Features()


def run_job(job: Job, place: Place, tell: Tell, *, stop: Any) -> str:
    """Run or go on with one job; its folder then holds `scores.npz`. Returns the job's name.

    Args:
        tell: is told of every closed round.
        stop: an event of threads or processes: the round under way is the last.

    Raises:
        RoundError: the study did not become COMPLETE.
    """
    home = place.folder / job.name
    if (home / FILE).exists():
        return job.name
    home.mkdir(parents=True, exist_ok=True)
    config = config_of(job, place)
    if job.baseline == "logistic":
        write_scores(home / FILE, logistic_scores(config, place.cohorts, place.cohorts[POOLED_SITE]))
        return job.name
    protocol = protocol_of(job, place, config, home)
    cohorts = {name: place.cohorts[name] for name in (*job.parties, HELD_OUT)}
    with TrainerLibrary(install_sites(config, home, protocol, cohorts), features=FEATURES.of) as library:
        arrays = read_arrays(home / "initial.safetensors")
        if job.baseline not in ONCE:
            train(job.name, library, protocol, home, arrays, tell, stop)
            arrays = read_arrays(home / "model.safetensors")
            if job.baseline == FEDERATED and not (home / PASSPORT).exists():  # maps first: the passport states them
                measure_maps(config, home, lambda line: None, lambda function, *arguments: function(*arguments))
                _vouch(job, config, home)
        _score(job, place, config, library, protocol, arrays, home / FILE)
    (home / "job.json").write_text(json.dumps({"overrides": job.overrides, "parties": job.parties}, indent=2) + "\n")
    return job.name


def config_of(job: Job, place: Place) -> Config:
    """The job's whole configuration."""
    config = compose_config([*job.overrides, f"name={place.name}"])
    if job.baseline in OBJECTIVES:
        config = with_objective(config, OBJECTIVES[job.baseline])
    if len(job.parties) < LEAST_SUM_SITES:  # a control of one trainer has nothing to sum
        config = {**config, "secure_sum": {"kind": "none"}}
    return {**config, "evaluation": {**config["evaluation"], **CHEAPER}}


def protocol_of(job: Job, place: Place, config: Config, home: Path) -> Protocol:
    """The job's protocol, frozen at the first start and read again afterwards."""
    if (home / "protocol.json").exists():
        return Protocol.read(home / "protocol.json")
    patients = {
        name: len(split_indices(Cohort.open(place.cohorts[name]), **split_of(config, name))["train"])
        for name in job.parties
    }
    return freeze(config, home, patients=patients, sigmas=noise_multipliers(config))


def freeze(config: Config, home: Path, *, patients: Mapping[str, int], sigmas: Sequence[float]) -> Protocol:
    """Make initial weights and protocol in `home`, or read the protocol that is there.

    Args:
        patients: training women by site. sigmas: noise multiplier of each phase.
    """
    path = home / "protocol.json"
    if path.exists():
        return Protocol.read(path)
    contract = load_contract()
    initial = write_initial_weights(config, n_features=contract.n_features, destination=home / "initial.safetensors")
    protocol = build_protocol(
        config, patients=patients, sigmas=sigmas, initial_weights=initial,
        contract={"version": contract.version, "sha256": contract.sha256, "n_features": contract.n_features},
        pipeline=pipeline_of(config).terms(),
    )  # fmt: skip
    path.write_text(protocol.to_json())
    return protocol


def train(
    name: str, library: TrainerLibrary, protocol: Protocol, home: Path, arrays: Any, tell: Tell, stop: Any
) -> None:
    """Run the study of a job to its end, or go on with it.

    Raises:
        RoundError: it did not become COMPLETE.
    """

    def observe(event: Event) -> None:
        if event.kind == "round_closed":
            tell(name, event.round, protocol.rounds)

    with closing(LocalGrid(library, app=library)) as grid:
        outcome = run_study(grid=grid, protocol=protocol, run_dir=home, initial=arrays, observer=observe, stop=stop,
                            **one_machine_signing(protocol, home))  # fmt: skip
    if outcome.status != "COMPLETE":
        raise RoundError(f"the training {name} of {protocol.study} is {outcome.status}", found=outcome.reason,
                         remedy="resume the run")  # fmt: skip


def _vouch(job: Job, config: Config, home: Path) -> None:
    """Summary and passport of an arm, as a study of its own has them: its model can then be released and gone on from.
    A control is no federation's model and has none."""
    write_small(home / "launch.json", json.dumps({**config, "overrides": job.overrides}, indent=2) + "\n")
    write_summary(home)
    write_passport(home, Signature.of_run())


def _score(
    job: Job, place: Place, config: Config, library: TrainerLibrary, protocol: Protocol, arrays: Any, path: Path
) -> None:
    """Score the held-out `test` women and each site's own with one model.

    A site that is in the job is scored as its own trainer would (with what it keeps to itself); the others, of a local
    or pooled job, by the evaluator's model alone, because the model came from elsewhere.
    """
    found = {HELD_OUT: party_scores(library.scores(EVALUATOR, protocol, arrays, "test"))}
    for name, cohort in place.cohorts.items():
        if name in (HELD_OUT, POOLED_SITE):
            continue
        rows = split_indices(Cohort.open(cohort), **split_of(config, name))["test"]
        if name in job.parties:
            found[name] = party_scores(library.scores(name, protocol, arrays, "test"))
        else:
            cache = FEATURES.of(cohort.resolve())
            found[name] = party_scores(library.scores_on(EVALUATOR, protocol, arrays, cache, np.asarray(rows)))
    write_scores(path, found)


def party_scores(scores: Scores) -> PartyScores:
    """As they are kept."""
    return PartyScores(labels=scores.labels, fused=scores.fused, image=scores.image, clinical=scores.clinical)


def failure_of(error: BaseException) -> str:
    """An error of a worker in words that can cross processes."""
    return str(error) if isinstance(error, MammoFedError) else f"{type(error).__name__}: {error}"
