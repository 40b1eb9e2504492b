"""Runs one study on this machine: hospitals, cohorts, protocol, trainers, rounds, report; called by `simulations/cli`.

This process imports no torch: films are made by worker processes, the model is built in a child, trainers are processes
of their own, and the server loop aggregates in numpy.
"""

from __future__ import annotations

import contextlib
import errno
import json
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import click
from omegaconf import DictConfig, OmegaConf

from server.reporting import write_report
from server.rounds.checkpoint import read_arrays
from server.rounds.loop import StudyOutcome, run_study
from server.rounds.signer import one_machine_signing
from server.rounds.summary import write_summary
from shared_model.cohort import Cohort, split_indices
from shared_model.contract import Contract, load_contract
from shared_model.errors import ConfigError, QuorumError, StorageError
from shared_model.imaging import PipelineConfig
from shared_model.private_files import take_lock
from shared_model.protocol import Protocol
from simulations.baselines.study import run_comparison, wanted
from simulations.cohorts import cohorts_of, make_cohorts, sources_of
from simulations.companion import check_monitor, companion
from simulations.deltas import write_other_deltas
from simulations.designs.settings import check_design, is_design
from simulations.designs.study import DESIGN, run_design
from simulations.engine import LocalGrid, TrainerPool
from simulations.engine.deployment import run_deployment
from simulations.engine.flower import FlowerSettings, run_on_ray
from simulations.hospitals import check_cohort, check_held_out
from simulations.live import LiveView, stop_on_interrupt
from simulations.page import live_page
from simulations.parties import HELD_OUT, install_sites, split_of, write_small
from simulations.plan import (
    Config,
    build_protocol,
    calibrate_and_initialise,
    modalities,
    phases,
    pipeline_of,
)
from simulations.released import carry_ledgers, check_weights, continued, judge_run
from simulations.strategy import check_strategy
from simulations.vouching import measure_and_sign

COMPARISON = "comparison"  # folder that marks a run directory of many trainings
INITIAL = "initial.safetensors"  # in the run directory
EXIT_STOPPED = 130       # as a shell reports Ctrl-C
DISK_REFUSES = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR}
SETTINGS = frozenset({
    "name", "seed", "sites", "patients", "held_out", "rounds", "cohort", "imaging", "engine", "cache", "workers",
    "report_deltas", "seeds", "arms", "baselines", "overrides",
})  # read from launch.json when a study goes on


def launch(config: DictConfig, run_dir: Path, *, overrides: Sequence[str] = ()) -> int:
    """Start a new study in `run_dir`, or a comparison of studies; returns the exit code (0 only when all is COMPLETE).

    overrides: what the person typed; the trainings of a comparison are composed from it again.
    """
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    settings: Config = continued({**{str(k): v for k, v in values.items()}, "overrides": list(overrides)})
    check(settings)
    with _in_words(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        with _lock(run_dir):
            # What is there would be used, whatever these settings say.
            if _begun(run_dir):
                raise ConfigError(
                    f"{run_dir} holds a study already", expected="a new run directory",
                    remedy=f"go on with `mammofed simulate resume {run_dir}`, or give another hydra.run.dir",
                )  # fmt: skip
            write_small(run_dir / "launch.json", json.dumps(settings, indent=2) + "\n")
            return _run(settings, run_dir)


def resume(run_dir: Path) -> int:
    """Go on with a study that was stopped, from its last closed round."""
    path = run_dir / "launch.json"
    if not path.exists() or not _begun(run_dir):
        raise ConfigError(f"{run_dir} is no run that can be resumed", expected="launch.json and protocol.json in it",
                          remedy="start it anew with `mammofed simulate`")  # fmt: skip
    with _in_words(run_dir), _lock(run_dir):
        return _run(_read_settings(path), run_dir)


def _begun(run_dir: Path) -> bool:
    """Whether a study, a comparison or a design is in a run directory."""
    return any((run_dir / name).exists() for name in ("protocol.json", COMPARISON, DESIGN))


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
    if config["engine"]["kind"] not in ENGINES:
        raise ConfigError("engine: unknown choice", found=config["engine"]["kind"], expected=" | ".join(ENGINES))
    if config["engine"]["kind"] == "flower":
        FlowerSettings.of(config["engine"])
    for key in ("sites", "patients", "held_out", "rounds"):
        if not isinstance(config[key], int) or config[key] < 1:
            raise ConfigError(f"{key}: must be a whole number of at least 1", found=config[key])
    check_cohort(config)
    phases(config)
    check_strategy(config)
    check_monitor(config.get("monitor") or {})
    check_weights(config)
    check_design(config)
    check_modalities(modalities(config)[2:])


def check_modalities(others: Sequence[str]) -> None:
    """Refuse a modality beside film and table that no installed package brings; where one is named, torch is loaded."""
    if others:
        from shared_model.fusion.modalities import find

        for name in others:
            find(name)


def _run(config: Config, run_dir: Path) -> int:
    if is_design(config):
        return run_design(config, run_dir, cohorts=cohorts_of, sources=sources_of)
    if wanted(config):
        (run_dir / COMPARISON).mkdir(exist_ok=True)
        return run_comparison(config, run_dir, overrides=config["overrides"], cohorts=cohorts_of)
    with LiveView(run_dir) as view:
        site_files = prepare(config, run_dir, view)
        stop = threading.Event()
        monitor = config.get("monitor") or {}
        with (companion(monitor, run_dir, view.note), live_page(monitor, run_dir, view.note),
              stop_on_interrupt(stop, view)):  # fmt: skip
            outcome = ENGINES[config["engine"]["kind"]](config, run_dir, site_files, view, stop)
    summary = write_summary(run_dir)
    if outcome.status == "COMPLETE":
        write_other_deltas(run_dir, summary, config["report_deltas"])
        measure_and_sign(config, run_dir, view.note, _in_child)
        judge_run(config, run_dir, view.note)
    report = write_report(run_dir)
    view.final(summary, report)
    return {"COMPLETE": 0, "INCOMPLETE": QuorumError.exit_code, "STOPPED": EXIT_STOPPED}[outcome.status]


def prepare_alone(settings: Config, run_dir: Path, view: LiveView) -> None:
    """Make the run directory of a study that Flower itself has started (`flwr run .`); it is run there, not here."""
    settings = continued(settings)
    check(settings)
    if is_design(settings):
        raise ConfigError("design: `flwr run` starts one study", found=settings["design"]["kind"],
                          remedy="run the design by `mammofed simulate`")  # fmt: skip
    run_dir.mkdir(parents=True, exist_ok=True)
    write_small(run_dir / "launch.json", json.dumps(settings, indent=2) + "\n")
    view.note(f"Run directory  {run_dir}")
    prepare(settings, run_dir, view)


def prepare(config: Config, run_dir: Path, view: LiveView) -> list[Path]:
    """Make what a study needs, where it is not there yet: cohorts, protocol, initial weights, the parties' own disks.

    Returns:
        each party's `site.json`: sites by name, the evaluator last.
    """
    contract = load_contract()
    pipeline = pipeline_of(config)
    with one_child() as child:
        pending: Future[tuple[tuple[float, ...], dict[str, str]]] | None = None
        if not (run_dir / "protocol.json").exists():  # calibration and model need a core while films are made
            pending = child.submit(calibrate_and_initialise, config, contract.n_features, run_dir / INITIAL)
        cohorts = make_cohorts(config, contract, pipeline, view)
        protocol = _protocol(config, run_dir, contract, pipeline, cohorts, pending)
    files = install_sites(config, run_dir, protocol, cohorts)
    if carried := carry_ledgers(config, run_dir):
        view.note(f"Ledgers go on from the earlier study at {', '.join(carried)}")
    return files


def _on_trainer_processes(
    config: Config, run_dir: Path, site_files: list[Path], view: LiveView, stop: threading.Event
) -> StudyOutcome:
    """The engine `local`: the round loop in this process, trainers in processes of their own."""
    with _trainers(config, run_dir, site_files, view) as grid:
        protocol = Protocol.read(run_dir / "protocol.json")
        return run_study(
            grid=grid, protocol=protocol, run_dir=run_dir, initial=read_arrays(run_dir / INITIAL),
            observer=view.observe, stop=stop, **one_machine_signing(protocol, run_dir),
        )  # fmt: skip


def _on_flower(
    config: Config, run_dir: Path, site_files: list[Path], view: LiveView, stop: threading.Event
) -> StudyOutcome:
    """The engine `flower`: the round loop in Flower's ServerApp, trainers in Ray's actors."""
    view.note("Start Flower's simulation runtime (SuperLink, ServerApp, Ray); its own words are in logs/flower-*.log")
    return run_on_ray(FlowerSettings.of(config["engine"]), run_dir=run_dir, site_files=site_files,
                      observe=view.observe, stop=stop)  # fmt: skip


def _on_deployment(
    config: Config, run_dir: Path, site_files: list[Path], view: LiveView, stop: threading.Event
) -> StudyOutcome:
    """The engine `deployment`: a coordinator and sites as they are deployed, each in processes of its own."""
    return run_deployment(config["engine"], run_dir=run_dir, site_files=site_files, observe=view.observe, stop=stop,
                          say=view.note)  # fmt: skip


ENGINES = {"local": _on_trainer_processes, "flower": _on_flower, "deployment": _on_deployment}


def _protocol(
    config: Config,
    run_dir: Path,
    contract: Contract,
    pipeline: PipelineConfig,
    cohorts: dict[str, Path],
    pending: Future[tuple[tuple[float, ...], dict[str, str]]] | None,
) -> Protocol:
    """The frozen protocol of the run directory: written once, read again on resume."""
    path = run_dir / "protocol.json"
    if pending is None:
        return Protocol.read(path)
    sigmas, initial_weights = pending.result()
    check_held_out(Cohort.open(cohorts[HELD_OUT]), **split_of(config, HELD_OUT))
    patients = {
        name: len(split_indices(Cohort.open(folder), **split_of(config, name))["train"])
        for name, folder in cohorts.items() if name != HELD_OUT
    }  # fmt: skip
    protocol = build_protocol(
        config, patients=patients, sigmas=sigmas, initial_weights=initial_weights,
        contract={"version": contract.version, "sha256": contract.sha256, "n_features": contract.n_features},
        pipeline=pipeline.terms(),
    )  # fmt: skip
    write_small(path, protocol.to_json())
    return protocol


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


def _in_child(function: Callable[..., str], *arguments: object) -> str:
    with one_child() as child:
        return child.submit(function, *arguments).result()


@contextlib.contextmanager
def _in_words(run_dir: Path) -> Iterator[None]:
    """What the machine or the person at it may do at any line, said in words: a disk that refuses, Ctrl-C."""
    resumable = "closed rounds are safe: `mammofed simulate resume` goes on"
    try:
        yield
    except KeyboardInterrupt:
        begun = _begun(run_dir)
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
        if not take_lock(stream.fileno()):
            raise StorageError(f"{run_dir} is in use by another process", remedy="wait for it or stop it")
        yield
