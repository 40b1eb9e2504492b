"""`mammofed pretrain`: makes public weights of the image branch from procedural films, without any patient's data.

The lead command mounts `app`; the release ships what it made for `tiny` and `small` (`shared_model/weights`). torch is
imported when work begins, so that `--help` and the processes that draw films need none.
"""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared_model.errors import ConfigError
from shared_model.evaluation.auc import auc_interval
from shared_model.fusion.config import SIZES, Size
from shared_model.weights import FOLDER, WeightsInfo, write_weights

if TYPE_CHECKING:
    from shared_model.imaging import PipelineConfig
    from simulations.pretraining.training import Recipe

app = typer.Typer(add_completion=False)

Settings = dict[str, Any]
Progress = Callable[[str, int, int], None]
BATCH = 32  # patients at a time in validation; does not change a score


@dataclass(frozen=True)
class PretrainPlan:
    """What `configs/pretrain.yaml` says, checked. settings: all of it, for the card; pipeline: of the films."""

    settings: Settings
    recipe: Recipe
    pipeline: PipelineConfig

    @property
    def text(self) -> str:
        """One line for cards and protocols."""
        s = self.settings
        return f"procedural films of {s['patients']} patients, {s['epochs']} epochs, patient + film + cell losses"


def pretrain(
    *,
    size: Size,
    seed: int | None,
    patients: int | None,
    epochs: int | None,
    workers: int,
    out: Path,
    validation_patients: int | None = None,
    progress: Progress | None = None,
) -> WeightsInfo:
    """Train the image branch of a model size and write `<size>.safetensors` and its card to `out`.

    Args:
        size: of the model; films have the size's own pixels.
        seed, patients, epochs, validation_patients: instead of those of `configs/pretrain.yaml`; None keeps them.
        workers: processes that draw films; the weights do not depend on it.
        out: folder.
        progress: called with (what, done, of) for films and epochs.

    Returns:
        the card, with the AUC on public patients that were never trained on.

    Raises:
        ConfigError: an impossible number.
        StorageError: the weights cannot be written.
    """
    given = {"seed": seed, "patients": patients, "epochs": epochs, "validation_patients": validation_patients}
    plan = make_plan(size, {name: value for name, value in given.items() if value is not None})
    if workers < 1:
        raise ConfigError("pretrain: workers must be positive", found=workers)
    report = progress or _silent
    before = _cpu_seconds()
    arrays, labels, scores = _train_and_validate(size, plan, workers, report)
    auc = auc_interval(labels, scores, confidence=0.95)
    if auc.value is None or auc.low is None or auc.high is None:
        raise ConfigError("pretrain: too few validation patients for an AUC", found=len(labels),
                          remedy="raise validation_patients")  # fmt: skip
    card = {
        "recipe": plan.text, "seed": plan.settings["seed"], "settings": plan.settings, "versions": _versions(),
        "pipeline_sha256": plan.pipeline.sha256, "validation_patients": len(labels), "auc": round(auc.value, 4),
        "auc_low": round(auc.low, 4), "auc_high": round(auc.high, 4), "cpu_seconds": round(_cpu_seconds() - before, 1),
    }  # fmt: skip
    return write_weights(arrays, card, size=size, folder=out)


def make_plan(size: Size, given: Settings) -> PretrainPlan:
    """Compose the plan for a size from `configs/`; what is given replaces the configured value.

    Raises:
        ConfigError: an unknown size, a missing or unknown value, or an impossible number.
    """
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    from shared_model.imaging import PipelineConfig
    from shared_model.protocol import AugmentationTerms
    from simulations.pretraining.training import Recipe

    if size not in SIZES:
        raise ConfigError("pretrain: unknown model size", found=size, expected=list(SIZES))
    with initialize_config_module("configs", version_base="1.3"):
        imaging: Settings = OmegaConf.to_container(compose("config", [f"model={size}"]).imaging, resolve=True)  # type: ignore[assignment]
        settings: Settings = OmegaConf.to_container(compose("pretrain"), resolve=True)  # type: ignore[assignment]
    settings |= given
    for name in ("patients", "validation_patients", "epochs", "batch"):
        if settings[name] < 1:
            raise ConfigError(f"pretrain.{name} must be positive", found=settings[name], expected="at least 1")
    values = {k: v for k, v in settings.items() if k not in ("seed", "patients", "validation_patients", "augmentation")}
    recipe = Recipe(augmentation=AugmentationTerms(**settings["augmentation"]), **values)
    pipeline = PipelineConfig(**{**imaging, "percentiles": tuple(imaging["percentiles"])})
    return PretrainPlan(settings, recipe, pipeline)


def _train_and_validate(size: Size, plan: PretrainPlan, workers: int, report: Progress) -> tuple[Any, Any, Any]:
    """Image branch as arrays, labels and image logits of the validation patients."""
    import numpy as np
    import torch

    from shared_model.evaluation import evaluate_cohort
    from shared_model.fusion import FusionConfig, arrays_of, build_model
    from simulations.population.public import PREVALENCE
    from simulations.pretraining.films import public_cohort
    from simulations.pretraining.training import train_image_branch

    settings, pipeline, seed = plan.settings, plan.pipeline, plan.settings["seed"]
    count, held_out = settings["patients"], settings["validation_patients"]

    def films(done: int, of: int) -> None:
        report("films", done, of)

    cohort = public_cohort(patients=count, seed=seed, pipeline=pipeline, workers=workers, progress=films)
    unseen = public_cohort(patients=held_out, seed=seed, pipeline=pipeline, workers=workers, first=count)
    config = FusionConfig(size=size, fusion="late", n_clinical=1, height=pipeline.height, width=pipeline.width)
    model = build_model(config, seed=seed % (1 << 32), prevalence=PREVALENCE)
    train_image_branch(
        model, cohort, plan.recipe, seed=seed, progress=lambda epoch, _: report("epochs", epoch, plan.recipe.epochs)
    )
    scores = evaluate_cohort(model, unseen, np.arange(held_out), batch_size=BATCH, device=torch.device("cpu"))
    wanted = set(model.image_parameters())
    arrays = {name: array for name, array in arrays_of(model).items() if name in wanted}
    return arrays, scores.labels, scores.image


def _versions() -> dict[str, str]:
    packages = ("mammofed", "torch", "numpy", "scipy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _cpu_seconds() -> float:
    """Of this process and of its finished children."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in used)


def _silent(what: str, done: int, of: int) -> None:
    """No progress wanted."""


@app.command(name="pretrain")
def pretrain_command(
    size: Annotated[str, typer.Option(help="Model size: tiny, small, medium, full.")] = "tiny",
    seed: Annotated[int | None, typer.Option(min=0, help="Default: configs/pretrain.yaml.")] = None,
    patients: Annotated[int | None, typer.Option(min=1, help="Procedural patients to learn from.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over them.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that draw films.")] = os.cpu_count() or 1,
    threads: Annotated[int, typer.Option(min=1, help="Threads that train; 1 gives the same bits again.")] = 1,
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for weights and card.")] = FOLDER,
) -> None:
    """Pre-train the image branch on public procedural films (no patient data) and write weights with their card.

    Example:  mammofed pretrain --size tiny --out weights
    """
    from rich.console import Console
    from rich.progress import Progress as Bar

    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported: idle threads must not spin
    import torch

    torch.set_num_threads(threads)
    console = Console()
    with Bar(console=console) as bar:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=of)
            bar.update(tasks[what], completed=done)

        info = pretrain(
            size=size, seed=seed, patients=patients, epochs=epochs, workers=workers, out=out, progress=show  # type: ignore[arg-type]
        )  # fmt: skip
    console.print(f"{out / size}.safetensors  sha256 {info.sha256}")
    console.print(
        f"AUC on {info.validation_patients} held-out public patients {info.auc:.3f} "
        f"({info.auc_low:.3f}-{info.auc_high:.3f}); {info.cpu_seconds:.0f} CPU seconds"
    )
