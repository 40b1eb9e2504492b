"""`mammofed simulate localise MODEL [SOURCE]`, and the same at the end of a study: writes `localisation.json`.

MODEL is a finished run, whose own held-out women (split `test`: they neither trained the model nor chose it) are
explained, or a released model with a folder of synthetic women. Needs torch: the launcher calls it in a child process.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from server.rounds.checkpoint import read_arrays
from shared_model.contract import load_contract
from shared_model.errors import CohortError, ConfigError, StorageError
from shared_model.explanation import METHODS, Method
from shared_model.fusion import FusionConfig, FusionModel, build_model, load_arrays
from shared_model.imaging import PipelineConfig
from shared_model.map_figures import LOCALISATION, MapFigures, write_map_figures
from shared_model.messages import Arrays, weights_sha256
from shared_model.protocol import Protocol
from simulations.lesions import Wanted, unseen_women
from simulations.localisation import Progress, Subject, figures, subjects
from simulations.plan import pipeline_of

INITIAL, WEIGHTS, PROTOCOL, LAUNCH = "initial.safetensors", "model.safetensors", "protocol.json", "launch.json"
COHORT = "synthetic women"
PASSES = 3  # over the women, a method: the model, random weights, the initial weights


@dataclass(frozen=True, kw_only=True)
class Run:
    """What `localise` needs of a model. wanted: which women it may take. initial: None where nobody kept it."""

    protocol: Protocol
    weights: Arrays
    initial: Arrays | None
    pipeline: PipelineConfig
    wanted: Wanted


def is_run(folder: Path) -> bool:
    """Whether a folder is the run directory of a simulated study."""
    return (folder / LAUNCH).exists() and (folder / WEIGHTS).exists()


def read_run(run_dir: Path, settings: Mapping[str, Any]) -> Run:
    """A finished study on this machine. settings: that it was launched with.

    Raises:
        StorageError, ProtocolError, CohortError: something in the run directory is absent or damaged.
    """
    initial = read_arrays(run_dir / INITIAL) if (run_dir / INITIAL).exists() else None
    return Run(protocol=Protocol.read(run_dir / PROTOCOL), weights=read_arrays(run_dir / WEIGHTS), initial=initial,
               pipeline=pipeline_of(dict(settings)),
               wanted=unseen_women(run_dir, seed=int(settings["seed"])))  # fmt: skip


def settings_of(run_dir: Path) -> dict[str, Any]:
    """The configuration that a simulated study was launched with.

    Raises:
        StorageError: damaged.
    """
    try:
        settings = json.loads((run_dir / LAUNCH).read_bytes())
        settings["seed"], settings["imaging"], settings["cohort"]["kind"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise StorageError(f"{run_dir / LAUNCH} is damaged", expected="what `mammofed simulate` wrote",
                           remedy="restore it from the run's backup") from None  # fmt: skip
    return dict(settings)


def localise_run(
    folder: Path, run: Run, source: Path, *, women: int, methods: Sequence[Method], least: int = 2,
    progress: Progress | None = None, name: str = LOCALISATION,
) -> MapFigures:  # fmt: skip
    """Measure a model and write `localisation.json` into `folder`; methods that were measured before are kept.

    Args:
        source: a folder of the generator. women: at most, with a lesion that their films show.
        least: with fewer the file says so and holds no figure. name: of the file.
        progress: called with (women explained, women to explain).
    """
    sha256 = weights_sha256(run.weights)
    listed = list(subjects(source, pipeline=run.pipeline, contract=load_contract(), limit=women, wanted=run.wanted))
    few = len(listed) < least
    document = MapFigures.model_validate({
        "model_sha256": sha256, "cohort": COHORT, "encoder": _encoder(run),
        "methods": {} if few else _kept(folder / name, sha256) | _measured(run, listed, methods, progress),
        "reason": f"{len(listed)} unseen women with a lesion that a film shows, fewer than {least}" if few else "",
    })  # fmt: skip
    write_map_figures(folder / name, document)
    return document


def _measured(
    run: Run, women: Sequence[Subject], methods: Sequence[Method], progress: Progress | None
) -> dict[str, Any]:
    model, initial = _model(run.protocol, run.weights), None
    if run.initial is not None and _moved(run):
        initial = _model(run.protocol, run.initial)
    found: dict[str, Any] = {}
    total = (PASSES if initial is not None else PASSES - 1) * len(women)
    for number, method in enumerate(methods):
        def step(done: int, base: int = number * total) -> None:
            if progress is not None:
                progress(base + done, total * len(methods))

        found[method] = figures(model, initial, women, method, spacing_mm=run.pipeline.spacing_mm, cohort=COHORT,
                                step=step)  # fmt: skip
    return found


def _kept(path: Path, sha256: str) -> dict[str, Any]:
    """Methods that were measured before, of the same model."""
    try:
        before = MapFigures.model_validate_json(path.read_bytes())
    except (OSError, ValueError):  # absent, or of an earlier release: it is written anew
        return {}
    return dict(before.model_dump()["methods"]) if before.model_sha256 == sha256 else {}


def _encoder(run: Run) -> dict[str, Any] | None:
    if run.initial is None:
        return None
    return {"moved": _moved(run), "private": run.protocol.private}


def _moved(run: Run) -> float:
    """L2 norm of the change of the view encoder, as a share of its own at the start."""
    assert run.initial is not None
    names = [name for name in run.initial if name.startswith("encoder.")]
    change = sum(float(np.square(run.weights[n].astype(np.float64) - run.initial[n]).sum()) for n in names)
    size = sum(float(np.square(run.initial[n].astype(np.float64)).sum()) for n in names)
    return float(np.sqrt(change / size)) if size else 0.0


def _model(protocol: Protocol, arrays: Arrays) -> FusionModel:
    model = build_model(FusionConfig.of(protocol), seed=0, prevalence=protocol.loss.prevalence)
    load_arrays(model, arrays)
    return model.eval()


def checked_methods(methods: Sequence[str]) -> tuple[Method, ...]:
    """Names from a command line.

    Raises:
        ConfigError: an unknown one.
    """
    if unknown := sorted(set(methods) - set(METHODS)):
        raise ConfigError("--method: no such method", found=unknown, expected=", ".join(METHODS))
    return tuple(method for method in METHODS if method in methods)


def check_source(run: Run, source: Path) -> None:
    """Refuse women whose films the model's pipeline does not fit.

    Raises:
        CohortError: they were to be prepared in another way than the model's.
    """
    wanted = run.protocol.pipeline.sha256
    if run.pipeline.sha256 != wanted:
        raise CohortError(f"films of {source} would be prepared in another way than the model's",
                          found=run.pipeline.sha256[:16], expected=wanted[:16],
                          remedy="measure it from its run directory")  # fmt: skip
