"""`mammofed simulate plan`: composes the configuration as a run would, counts, measures, reckons, prints."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from server.rounds.checkpoint import read_arrays
from shared_model.contract import Contract, load_contract
from shared_model.imaging import PipelineConfig
from shared_model.protocol import Protocol
from simulations.cohorts import cohort_folder
from simulations.composition import compose_study
from simulations.designs.settings import trainings
from simulations.forecast import child, miniature, reckon
from simulations.forecast.measured import Measured, read
from simulations.forecast.show import Forecast, Stage, draw
from simulations.forecast.sizes import Party, count, population_of, training_patients
from simulations.launch import check, one_child
from simulations.parties import HELD_OUT
from simulations.plan import Config, build_protocol
from simulations.population.recipe import recipe_sha256
from simulations.population.specs import Population


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where and what a run would work on. processes: trainers; lanes: of them, those that host hospitals."""

    config: Config
    contract: Contract
    pipeline: PipelineConfig
    population: Population
    parties: Mapping[str, Party]
    cache: Path
    workers: int

    @property
    def patients(self) -> dict[str, int]:
        """Training women by hospital."""
        return training_patients(self.parties)

    @property
    def films(self) -> int:
        """Films of all women."""
        return sum(party.films for party in self.parties.values())

    @property
    def processes(self) -> int:
        """Trainer processes, as `simulations.engine.pool` starts them: one a core, at most one a party."""
        wanted = self.config["engine"].get("processes") or len(os.sched_getaffinity(0))
        return int(min(wanted, len(self.parties)))

    @property
    def lanes(self) -> int:
        """Processes that train at the same time."""
        return min(self.processes, len(self.patients))


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that was measured. child_s: seconds of the child until sigma and weights were there, its start included."""

    protocol: Protocol
    prepared: miniature.Prepared
    calibration: child.Calibration
    child_s: float
    spending: child.Spending
    ran: miniature.Ran
    measured: Measured
    weights_bytes: int


def plan(overrides: Sequence[str], *, json_path: Path | None, console: Console | None = None) -> Forecast:
    """Print what the study of these Hydra overrides will take, and write it as JSON where asked for.

    Raises:
        ConfigError: what a run would refuse, or women that cannot be counted beforehand.
        RoundError: the study cannot be run even in miniature.
    """
    console = console or Console()
    config = compose_study(overrides)
    check(config)
    with console.status("Measuring this machine: a few women generated, prepared, trained on and judged ..."):
        forecast = forecast_of(config)
    console.print(draw(forecast))
    if (count_of := trainings(config)) > 1:
        console.print(f"All of this is one training; design={config['design']['kind']} makes {count_of}, on films that "
                      "are prepared once.")  # fmt: skip
    if json_path is not None:
        json_path.write_text(json.dumps(asdict(forecast), indent=2) + "\n", encoding="utf-8")
    return forecast


def forecast_of(config: Config) -> Forecast:
    """Count, measure and reckon; everything that it writes is removed again."""
    began = time.perf_counter()
    imaging, population = config["imaging"], population_of(config)
    place = Place(
        config=config, contract=load_contract(), population=population, parties=count(config, population),
        pipeline=PipelineConfig(**{**imaging, "percentiles": tuple(imaging["percentiles"])}),
        cache=Path(config["cache"] or Path.home() / ".cache" / "mammofed").expanduser(),
        workers=config["workers"] or os.cpu_count() or 1,
    )  # fmt: skip
    found = measure(place)
    protocol, patients = found.protocol, place.patients
    films_made, cohorts_ready = in_cache(place)
    traffic = reckon.traffic(protocol, found.measured, released=len(patients))
    rounds = reckon.round_seconds(protocol, found.measured, patients, processes=place.lanes,
                                  epsilon_s=found.spending.seconds)  # fmt: skip
    return Forecast(
        study=protocol.study, sites=len(patients), sites_per_round=protocol.federation.sites_per_round,
        women=sum(party.women for party in place.parties.values()), films=place.films,
        exact=all(party.exact for party in place.parties.values()), train=patients,
        selection=place.parties[HELD_OUT].parts["selection"], test=place.parties[HELD_OUT].parts["test"],
        rounds=protocol.rounds, steps_per_round=protocol.training.steps_per_round,
        phases=tuple((phase.name, phase.rounds) for phase in protocol.training.phases), privacy=protocol.privacy.mode,
        sigma=min(found.calibration.sigmas), delta=protocol.privacy.delta, budget=protocol.privacy.epsilon,
        epsilon=found.spending.curve, other_deltas=found.spending.other_deltas,
        metrics_epsilon=found.spending.metrics, parameters=found.weights_bytes // 4, weights_bytes=found.weights_bytes,
        traffic=traffic, longest_round_s=max(rounds), deadline_s=protocol.federation.deadline_s,
        stages=stages(place, found, training=sum(rounds), films_made=films_made, cohorts_ready=cohorts_ready),
        memory=reckon.memory(protocol, found.measured, patients, processes=place.processes, films=place.films,
                             weights=found.weights_bytes, preparing=0 if cohorts_ready else found.prepared.peak_bytes),
        disk=reckon.disk(protocol, found.measured, films=place.films, film_bytes=found.prepared.film_bytes,
                         sites=len(patients), up=traffic.site_round_up),
        measured_s=time.perf_counter() - began,
    )  # fmt: skip


def measure(place: Place) -> Findings:
    """Run the study in miniature beside the cache, on the disk that a run would use."""
    config, contract, pipeline = place.config, place.contract, place.pipeline
    place.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".plan-", dir=place.cache) as name:
        folder = Path(name).resolve()
        prepared, cohorts = miniature.prepare(
            config, place.population, contract, pipeline, folder, workers=place.workers
        )
        initial = folder / "initial.safetensors"
        with one_child() as worker:
            began = time.perf_counter()
            calibration = worker.submit(child.calibrate, config, contract.n_features, initial).result()
            child_s = time.perf_counter() - began
            protocol = build_protocol(
                config, patients=place.patients, sigmas=calibration.sigmas, initial_weights=calibration.initial_weights,
                contract={"version": contract.version, "sha256": contract.sha256, "n_features": contract.n_features},
                pipeline=pipeline.terms(),
            )  # fmt: skip
            spending = worker.submit(
                child.spend, protocol, reckon.marks(protocol), list(config["report_deltas"])
            ).result()
        ran = miniature.run(config, protocol, cohorts, folder, initial, patient_s=calibration.patient_s)
        return Findings(
            protocol=protocol, prepared=prepared, calibration=calibration, child_s=child_s, spending=spending, ran=ran,
            measured=read(ran), weights_bytes=sum(array.nbytes for array in read_arrays(initial).values()),
        )  # fmt: skip


def in_cache(place: Place) -> tuple[bool, bool]:
    """Whether a run would find its films made, and its cohorts prepared."""
    recipe = recipe_sha256(place.population)[:16]
    folder = cohort_folder(place.cache, recipe, place.pipeline, place.contract)
    made = (place.cache / "populations" / recipe / "recipe.json").exists()
    return made, made and all((folder / name / "cohort.json").exists() for name in place.parties)


def stages(
    place: Place, found: Findings, *, training: float, films_made: bool, cohorts_ready: bool
) -> tuple[Stage, ...]:
    """Seconds of each stage of a run, in order."""
    prepared, protocol, spending = found.prepared, found.protocol, found.spending
    generation = 0.0 if films_made else prepared.generate_start_s + place.films * prepared.generate_film_s
    preparation = prepared.prepare_start_s + len(place.parties) * prepared.prepare_site_s
    preparation = 0.0 if cohorts_ready else preparation + place.films * prepared.prepare_film_s
    judging, ending = reckon.judging_seconds(protocol, found.measured, place.parties, processes=place.lanes)
    ending += found.ran.report_s
    if spending.other_deltas:  # a child of its own, as for the calibration
        ending += found.child_s - found.calibration.seconds + (1 + len(spending.other_deltas)) * spending.seconds
    return (
        Stage("Generate films", generation, "in the cache already" if films_made else ""),
        Stage("Prepare cohorts", preparation, "in the cache already" if cohorts_ready else ""),
        Stage("Noise and initial weights", max(0.0, found.child_s - generation - preparation), "while films are made"),
        Stage("Start trainers", found.ran.start_s, f"{place.processes} processes"),
        Stage("Train", training, f"{protocol.rounds} rounds"),
        Stage("Evaluate after rounds", judging, "on `selection`"),
        Stage("Final tests and report", ending, "on `test`, and at the sites"),
    )
