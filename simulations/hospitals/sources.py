"""Where a study's women come from: the choice by `cohort`, behind one function; called by simulations/cohorts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shared_model.errors import ConfigError
from shared_model.imaging import PipelineConfig
from simulations.hospitals.public import SOURCES, public_sources
from simulations.hospitals.shifts import synthetic_hospitals
from simulations.population import generate

Progress = Callable[[int, int], None]
SYNTHETIC = "synthetic"
STAGES = {
    SYNTHETIC: "Generate synthetic hospitals (DICOM films and tables)",
    "cbis_ddsm": "Deal CBIS-DDSM out to hospitals (women, never films)",
    "mini_mias": "Deal mini-MIAS out to hospitals (DICOM films and tables)",
    "manifest": "Deal the manifest's patients out to hospitals (DICOM films and tables)",
}
_LEAST_SYNTHETIC = 20  # women a site


def check_cohort(config: Mapping[str, Any]) -> None:
    """Refuse what cannot run before anything is made.

    Raises:
        ConfigError: unknown kind, no source, or too few synthetic women.
    """
    settings = config["cohort"]
    if settings["kind"] not in STAGES:
        raise ConfigError("cohort: unknown kind", found=settings["kind"], expected=", ".join(STAGES))
    if settings["kind"] == SYNTHETIC:
        if config["patients"] < _LEAST_SYNTHETIC * config["sites"]:
            raise ConfigError("patients: too few for the sites", found=config["patients"],
                              expected=f"at least 20 a site, {_LEAST_SYNTHETIC * config['sites']}")  # fmt: skip
        synthetic_hospitals(config)  # refuses a shift that cannot be had
    elif not settings["source"]:
        raise ConfigError(f"cohort={settings['kind']}: nobody said where the data set lies", expected="a path",
                          remedy="add cohort.source=PATH; see simulations/hospitals/README.md")  # fmt: skip


def sources(
    config: Mapping[str, Any], cache: Path, *, pipeline: PipelineConfig, workers: int, progress: Progress
) -> dict[str, Path]:
    """Source folder of each party by name, the held-out one last, made or found in the cache.

    A folder is what a hospital has: `dicom/**` and `clinical.csv`. All lie in one folder that is named by a hash of
    everything that they were made from.

    Raises:
        ConfigError, CohortError, LeakageError: the women cannot be had, in words.
        StorageError: the disk refuses.
    """
    settings = config["cohort"]
    if settings["kind"] in SOURCES:
        return public_sources(config, cache / "public", pipeline=pipeline, workers=workers, progress=progress)
    population = synthetic_hospitals(config)
    return generate(population, cache / "populations", workers=workers, progress=progress)
