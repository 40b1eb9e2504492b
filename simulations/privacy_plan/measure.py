"""Measures what noise costs in AUC, and writes the table that `mammofed privacy plan` reads.

    python -m simulations.privacy_plan.measure --output simulations/privacy_plan/measured.json

Synthetic hospitals, prepared as a study prepares them; each training is the study's own: `train_round` at each site,
the weighted average, round after round, under the shipped private recipe. Sites are cut to smaller ones by taking their
first women. Every private training is repeated with new noise, and set against the same training without noise on the
same women, so that a loss is paired; the AUC is that of the held-out women, none of whom trains.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from client.privacy.randomness import CPU, SecureRandomness
from client.training.features import FeatureCache
from client.training.local import LOAD_BYTES, randomness_for, train_round
from shared_model.cohort import Cohort
from shared_model.contract import load_contract
from shared_model.evaluation.auc import roc_auc
from shared_model.fusion import FusionConfig, FusionModel, arrays_of, build_model, load_arrays, load_public_weights
from shared_model.messages import weights_sha256
from shared_model.protocol import Protocol
from simulations.cohorts import cohort_folder, hospitals, prepare_cohorts
from simulations.composition import compose_config
from simulations.live import LiveView
from simulations.parties import HELD_OUT
from simulations.plan import Config, build_protocol, noise_multipliers, pipeline_of
from simulations.privacy_plan.noise import noise_index

POPULATION = ("sites=4", "patients=4800", "held_out=1500", "cohort.calcification_share=0.0")
SEEDS = (21, 22)
ROUNDS = 24
REPEATS = 2  # noises of each training
# (share of each site's women, epsilon): the noise index spans 0.06 to 4.6, and equal ones come of different studies.
RUNS = (
    (0.125, 8.0), (0.25, 3.0), (0.5, 4.0), (1.0, 1.0), (0.125, 2.0), (1.0, 8.0), (0.25, 1.0), (0.5, 1.0), (1.0, 0.5),
    (0.125, 0.5),
)  # fmt: skip
CHECKS = ((10, 0.25, 3.0),)  # (rounds, share, epsilon): that the index foretells other lengths too

Arrays = dict[str, NDArray[np.float32]]


class _NoNoise(SecureRandomness):
    """What the same training does without noise: clipped, sampled, not noised."""

    def normal(self, count: int, *, std: float, device: torch.device = CPU) -> torch.Tensor:
        return torch.zeros(count, device=device)


class Population:
    """Prepared cohorts of one seed, their films encoded once. workers: processes that make films."""

    def __init__(self, seed: int, *, workers: int, cache: str | None) -> None:
        self.config = compose_config([*POPULATION, f"seed={seed}", "privacy=patient", f"workers={workers}",
                                      *([f"cache={cache}"] if cache else [])])  # fmt: skip
        pipeline, contract = pipeline_of(self.config), load_contract()
        self.contract, self.pipeline = contract, pipeline
        with tempfile.TemporaryDirectory() as scratch, LiveView(Path(scratch)) as view:
            folder, found = hospitals(self.config, pipeline, view)
            places = {name: (source, cohort_folder(folder, source.parent.name, pipeline, contract) / name)
                      for name, source in found.items()}  # fmt: skip
            prepare_cohorts(self.config, places, contract, pipeline, view)
        self.cohorts = {name: Cohort.open(destination) for name, (_, destination) in places.items()}
        self.features = {name: FeatureCache(cohort, load_bytes=LOAD_BYTES) for name, cohort in self.cohorts.items()}
        shape = FusionConfig(size=self.config["model"]["size"], fusion=self.config["fusion"]["kind"],
                             n_clinical=contract.n_features, height=self.config["model"]["height"],
                             width=self.config["model"]["width"])  # fmt: skip
        self.model = build_model(shape, seed=seed, prevalence=float(self.config["loss"]["prevalence"]))
        load_public_weights(self.model, self.config["model"]["size"])
        self.initial: Arrays = arrays_of(self.model)

    @property
    def sites(self) -> dict[str, Cohort]:
        """Who trains."""
        return {name: cohort for name, cohort in self.cohorts.items() if name != HELD_OUT}

    def protocol(self, patients: Mapping[str, int], *, epsilon: float, rounds: int) -> Protocol:
        """The shipped private recipe for sites of these sizes."""
        privacy = {**self.config["privacy"], "epsilon": epsilon}
        config: Config = {**self.config, "rounds": rounds, "privacy": privacy}
        return build_protocol(
            config, patients=patients, sigmas=noise_multipliers(config),
            initial_weights={"sha256": weights_sha256(self.initial), "origin": "public", "recipe": "public weights"},
            contract={"version": self.contract.version, "sha256": self.contract.sha256,
                      "n_features": self.contract.n_features},
            pipeline=self.pipeline.terms(),
        )  # fmt: skip

    @property
    def auc_at_start(self) -> float:
        """Of the public weights, before anybody has trained."""
        load_arrays(self.model, self.initial)
        return held_out_auc(self.model, self.cohorts[HELD_OUT], self.features[HELD_OUT])

    def train(self, protocol: Protocol, chosen: Mapping[str, NDArray[np.int64]], *, noised: bool) -> float:
        """All rounds; AUC of the fused score on the held-out women after the last."""
        weights = dict(self.initial)
        total = sum(site.weight for site in protocol.federation.sites)
        for number in range(1, protocol.rounds + 1):
            sums: dict[str, NDArray[np.float64]] = {}
            for site in protocol.federation.sites:
                load_arrays(self.model, weights)
                train_round(
                    model=self.model, cohort=self.cohorts[site.name], indices=chosen[site.name], protocol=protocol,
                    site=site.name, round_number=number, device=torch.device("cpu"),
                    randomness=randomness_for(protocol, site=site.name, round_number=number) if noised else _NoNoise(),
                    features=self.features[site.name],
                )  # fmt: skip
                for name, array in arrays_of(self.model).items():
                    sums[name] = sums.get(name, 0.0) + (site.weight / total) * array.astype(np.float64)
            weights = {name: array.astype(np.float32) for name, array in sums.items()}
        load_arrays(self.model, weights)
        return held_out_auc(self.model, self.cohorts[HELD_OUT], self.features[HELD_OUT])


def held_out_auc(model: FusionModel, cohort: Cohort, features: FeatureCache) -> float:
    """Of the fused score."""
    every = np.arange(len(cohort))
    with torch.inference_mode():
        encoded = features.encoded(model, every, device=torch.device("cpu"))
        model.encoded = True
        scores = model(encoded.batch(every)).logit_B.double().numpy()
        model.encoded = False
    found = roc_auc(cohort.labels, scores)
    assert found is not None, "held-out women of one class only"
    return found


def rows_of(
    population: Population, seed: int, *, known: Sequence[Mapping[str, Any]], say: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Every training of one population that is not known yet, as rows of the table."""
    quiet = {(row["rounds"], row["patients"]): row["auc_without_noise"] for row in known if row["seed"] == seed}
    for rounds, share, epsilon in [*((ROUNDS, share, epsilon) for share, epsilon in RUNS), *CHECKS]:
        chosen = {name: np.arange(max(10, round(share * len(c)))) for name, c in population.sites.items()}
        patients = {name: len(rows) for name, rows in chosen.items()}
        total = sum(patients.values())
        asked = {"seed": seed, "rounds": rounds, "patients": total, "epsilon": epsilon}
        done = sum(all(row[key] == value for key, value in asked.items()) for row in known)
        if done >= REPEATS:
            continue
        protocol = population.protocol(patients, epsilon=epsilon, rounds=rounds)
        if (rounds, total) not in quiet:
            quiet[rounds, total] = round(population.train(protocol, chosen, noised=False), 5)
        for repeat in range(done, REPEATS):
            began = time.perf_counter()
            found = population.train(protocol, chosen, noised=True)
            row = {
                **asked, "sites": len(patients), "sigma": protocol.privacy.noise_multiplier, "repeat": repeat,
                "noise_index": round(noise_index(protocol), 6), "auc": round(found, 5),
                "auc_without_noise": quiet[rounds, total],
            }  # fmt: skip
            say(f"{row} {time.perf_counter() - began:.1f} s")
            yield row


def known(path: Path) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows and starting AUCs of a table that is there already: a measurement that was stopped goes on."""
    if not path.exists():
        return [], {}
    document = json.loads(path.read_bytes())
    return list(document["rows"]), dict(document["auc_at_start"])


def main(arguments: Sequence[str]) -> int:
    """Measure all populations and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--cache")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows, start = known(options.output)
    for seed in options.seeds:
        population = Population(seed, workers=options.workers, cache=options.cache)
        start[str(seed)] = round(population.auc_at_start, 5)
        for row in rows_of(population, seed, known=tuple(rows), say=lambda text: print(text, flush=True)):  # noqa: T201
            rows.append(row)
            document = {
                "command": "python -m simulations.privacy_plan.measure --output "
                "simulations/privacy_plan/measured.json",
                "made": datetime.datetime.now(datetime.UTC).date().isoformat(), "release": version("mammofed"),
                "women": "synthetic", "population": list(POPULATION), "recipe": "configs/privacy/patient.yaml",
                "held_out": len(population.cohorts[HELD_OUT]), "delta": population.config["privacy"]["delta"],
                "auc_at_start": start, "rows": rows,
            }  # fmt: skip
            options.output.write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
