"""Runs one study on this machine: hospitals, cohorts, protocol, trainers, rounds, report; called by `simulations/cli`.

This process imports no torch: films are made by worker processes, the model is built in a child, trainers are processes
of their own, and the server loop aggregates in numpy.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
from omegaconf import DictConfig, OmegaConf

from client.ingest import prepare_site
from client.trainer.config import SiteConfig
from server.reporting import write_report
from server.rounds.checkpoint import read_arrays
from server.rounds.loop import run_study
from server.rounds.summary import write_summary
from shared_model.cohort import Cohort, split_indices
from shared_model.contract import Contract, load_contract
from shared_model.errors import ConfigError, QuorumError, StorageError
from shared_model.imaging import FilmPool, PipelineConfig
from shared_model.protocol import Protocol
from shared_model.weights import public_weights
from simulations.deltas import write_other_deltas
from simulations.engine import LocalGrid, TrainerPool
from simulations.hospitals import default_hospitals
from simulations.live import LiveView, stop_on_interrupt
from simulations.plan import Config, build_protocol, calibrate_and_initialise, importer_key, phases
from simulations.population import generate

EVALUATOR = "evaluator"  # name of the coordinator's own trainer
HELD_OUT = "held_out"    # name of the population that it holds
EXIT_STOPPED = 130       # as a shell reports Ctrl-C
DISK_REFUSES = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR}
SETTINGS = frozenset({
    "name", "seed", "sites", "patients", "held_out", "rounds", "cohort", "imaging", "engine", "cache", "workers",
    "report_deltas",
})  # read from launch.json when a study goes on


def launch(config: DictConfig, run_dir: Path) -> int:
    """Start a new study in `run_dir`; returns the exit code (0 only when the study is COMPLETE)."""
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    settings: Config = {str(k): v for k, v in values.items()}
    check(settings)
    with _in_words(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        with _lock(run_dir):
            if (run_dir / "protocol.json").exists():  # its protocol would be used, whatever these settings say
                raise ConfigError(
                    f"{run_dir} holds a study already", found="protocol.json", expected="a new run directory",
                    remedy=f"go on with `mammofed simulate resume {run_dir}`, or give another hydra.run.dir",
                )  # fmt: skip
            _write(run_dir / "launch.json", json.dumps(settings, indent=2) + "\n")
            return _run(settings, run_dir)


def resume(run_dir: Path) -> int:
    """Go on with a study that was stopped, from its last closed round."""
    path = run_dir / "launch.json"
    if not path.exists() or not (run_dir / "protocol.json").exists():
        raise ConfigError(f"{run_dir} is no run that can be resumed", expected="launch.json and protocol.json in it",
                          remedy="start it anew with `mammofed simulate`")  # fmt: skip
    with _in_words(run_dir), _lock(run_dir):
        return _run(_read_settings(path), run_dir)


def _read_settings(path: Path) -> Config:
    """The configuration that `launch` wrote: whole, or refused before anything is done with it."""
    try:
        settings = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        settings = None
    absent = SETTINGS - settings.keys() if isinstance(settings, dict) else SETTINGS
    if absent:
        raise StorageError(f"{path} is damaged", found=f"nothing under {', '.join(sorted(absent))}",
                           expected="the configuration as `mammofed simulate` wrote it",
                           remedy="restore it from the run's backup, or start the study anew")  # fmt: skip
    assert isinstance(settings, dict)
    return settings


def check(config: Config) -> None:
    """Refuse what cannot run, before anything is made.

    Raises:
        ConfigError, WeightsError: naming the setting.
    """
    if config["engine"]["kind"] != "local":
        raise ConfigError("engine: unknown choice", found=config["engine"]["kind"], expected="local")
    for key in ("sites", "patients", "held_out", "rounds"):
        if not isinstance(config[key], int) or config[key] < 1:
            raise ConfigError(f"{key}: must be a whole number of at least 1", found=config[key])
    if config["patients"] < 20 * config["sites"]:
        raise ConfigError("patients: too few for the sites", found=config["patients"],
                          expected=f"at least 20 a site, {20 * config['sites']}")  # fmt: skip
    phases(config)
    if config["weights"] == "public":
        public_weights(config["model"]["size"])  # not shipped for every size: better said now than after the films


def _run(config: Config, run_dir: Path) -> int:
    contract = load_contract()
    imaging = config["imaging"]
    pipeline = PipelineConfig(**{**imaging, "percentiles": tuple(imaging["percentiles"])})
    with LiveView(run_dir) as view:
        with one_child() as child:
            initial_file = run_dir / "initial.safetensors"
            pending: Future[tuple[float, dict[str, str]]] | None = None
            if not (run_dir / "protocol.json").exists():  # calibration and model need a core while films are made
                pending = child.submit(calibrate_and_initialise, config, contract.n_features, initial_file)
            cohorts = _cohorts(config, contract, pipeline, view)
            protocol = _protocol(config, run_dir, contract, pipeline, cohorts, pending)
        site_files = install_sites(config, run_dir, protocol, cohorts)
        stop = threading.Event()
        with stop_on_interrupt(stop, view), _trainers(config, run_dir, site_files, view) as grid:
            outcome = run_study(
                grid=grid, protocol=protocol, run_dir=run_dir, initial=read_arrays(initial_file),
                observer=view.observe, stop=stop,
            )  # fmt: skip
    summary = write_summary(run_dir)
    if outcome.status == "COMPLETE":
        write_other_deltas(run_dir, summary, config["report_deltas"])
    report = write_report(run_dir)
    view.final(summary, report)
    return {"COMPLETE": 0, "INCOMPLETE": QuorumError.exit_code, "STOPPED": EXIT_STOPPED}[outcome.status]


def _cohorts(config: Config, contract: Contract, pipeline: PipelineConfig, view: LiveView) -> dict[str, Path]:
    """Generate the hospitals and prepare each one's cohort, both from the cache where they are there already."""
    settings = config["cohort"]
    cache = Path(config["cache"] or Path.home() / ".cache" / "mammofed").expanduser()
    workers = config["workers"] or os.cpu_count() or 1
    population = default_hospitals(
        sites=config["sites"], patients=config["patients"], held_out=config["held_out"], seed=config["seed"],
        film_height=settings["film_height"], film_width=settings["film_width"],
        film_spacing_mm=settings["film_spacing_mm"], conspicuity=settings["conspicuity"],
    )  # fmt: skip
    with view.stage("Generate synthetic hospitals (DICOM films and tables)", None) as advance:
        sources = generate(population, cache / "populations", workers=workers, progress=advance)
    recipe = next(iter(sources.values())).parent.name
    folder = cohort_folder(cache, recipe, pipeline, contract)
    cohorts = {name: folder / name for name in sources}
    missing = {name: source for name, source in sources.items() if not (cohorts[name] / "cohort.json").exists()}
    if missing:
        stage = view.stage("Prepare cohorts (check, pseudonymise, decode once)", None)
        with stage as advance, FilmPool(pipeline, workers=workers) as films:  # one pool: it takes a second to start
            done = 0
            for name, source in missing.items():
                base = done

                def progress(count: int, total: int, base: int = base) -> None:
                    advance(base + count, None)

                report = prepare_site(
                    source=source, destination=cohorts[name], contract=contract, pipeline=pipeline, site=name,
                    key=importer_key(config["seed"], name), workers=workers, progress=progress, pool=films,
                )  # fmt: skip
                done += report.films
    return cohorts


def cohort_folder(cache: Path, recipe: str, pipeline: PipelineConfig, contract: Contract) -> Path:
    """Where the prepared cohorts of a population lie. recipe: first 16 letters of its hash."""
    return cache / "cohorts" / f"{recipe}-{pipeline.sha256[:12]}-{contract.sha256[:12]}"


def _protocol(
    config: Config,
    run_dir: Path,
    contract: Contract,
    pipeline: PipelineConfig,
    cohorts: dict[str, Path],
    pending: Future[tuple[float, dict[str, str]]] | None,
) -> Protocol:
    """The frozen protocol of the run directory: written once, read again on resume."""
    path = run_dir / "protocol.json"
    if pending is None:
        return Protocol.read(path)
    sigma, initial_weights = pending.result()
    patients = {
        name: len(split_indices(Cohort.open(folder), **split_terms(config, name))["train"])
        for name, folder in cohorts.items() if name != HELD_OUT
    }  # fmt: skip
    protocol = build_protocol(
        config, patients=patients, sigma=sigma, initial_weights=initial_weights,
        contract={"version": contract.version, "sha256": contract.sha256, "n_features": contract.n_features},
        pipeline=pipeline.terms(),
    )  # fmt: skip
    _write(path, protocol.to_json())
    return protocol


def split_terms(config: Config, name: str) -> dict[str, Any]:
    """Salt and fractions of a party's patient-wise split."""
    if name == HELD_OUT:
        share = float(config["cohort"]["selection_fraction"])
        fractions = {"selection": share, "test": 1.0 - share}
    else:
        share = float(config["cohort"]["test_fraction"])
        fractions = {"train": 1.0 - share, "test": share}
    return {"salt": f"{config['name']}-{config['seed']}", "fractions": fractions}


def install_sites(config: Config, run_dir: Path, protocol: Protocol, cohorts: dict[str, Path]) -> list[Path]:
    """Lay out each party's trainer as a hospital would have it: site.json, state, approved protocols. Sites by name,
    the evaluator last."""
    files = []
    for name in [*sorted(n for n in cohorts if n != HELD_OUT), HELD_OUT]:
        party = EVALUATOR if name == HELD_OUT else name
        home = run_dir / "sites" / party
        (home / "protocols").mkdir(parents=True, exist_ok=True)
        (home / "state").mkdir(exist_ok=True)
        _write(home / "protocols" / f"{protocol.sha256[:16]}.json", protocol.to_json())
        site = SiteConfig(
            site=party, role="evaluator" if name == HELD_OUT else "site", cohort=cohorts[name].resolve(),
            state=(home / "state").resolve(), protocols=(home / "protocols").resolve(),
            device=config["engine"]["device"], **split_terms(config, name),
        )  # fmt: skip
        path = home / "site.json"
        _write(path, site.to_json())
        files.append(path)
    return files


@contextlib.contextmanager
def _trainers(config: Config, run_dir: Path, site_files: list[Path], view: LiveView) -> Iterator[LocalGrid]:
    engine = config["engine"]
    with view.stage("Start trainers", len(site_files)) as advance:
        pool = TrainerPool(
            site_files, log_dir=run_dir / "logs", processes=engine["processes"],
            start_timeout_s=float(engine["start_timeout_s"]),
        )  # fmt: skip
        pool.start()
        advance(len(site_files), len(site_files))
    try:
        yield LocalGrid(pool, observer=view.deliver)
    finally:
        pool.stop()


@contextlib.contextmanager
def one_child() -> Iterator[ProcessPoolExecutor]:
    """A child process for the work that needs torch."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        yield executor


@contextlib.contextmanager
def _in_words(run_dir: Path) -> Iterator[None]:
    """What the machine or the person at it may do at any line, said in words: a disk that refuses, Ctrl-C."""
    resumable = "closed rounds are safe: `mammofed simulate resume` goes on"
    try:
        yield
    except KeyboardInterrupt:
        begun = (run_dir / "protocol.json").exists()
        click.echo(f"mammofed: interrupted; {resumable if begun else 'no round was begun: start it again'}", err=True)
        sys.exit(EXIT_STOPPED)
    except OSError as error:
        if error.errno not in DISK_REFUSES:
            raise
        raise StorageError(
            f"cannot use {error.filename or run_dir}: {error.strerror or error}",
            remedy=f"make room on the disk, or give rights to it; {resumable}",
        ) from error  # fmt: skip


@contextlib.contextmanager
def _lock(run_dir: Path) -> Iterator[None]:
    """One process at a time works on a run directory."""
    with (run_dir / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(f"{run_dir} is in use by another process", remedy="wait for it or stop it") from None
        yield


def _write(path: Path, text: str) -> None:
    """Write a small file atomically."""
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)
