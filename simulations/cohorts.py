"""The hospitals of a study and their prepared cohorts, made or taken from the cache; called by all that needs women."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from client.ingest import prepare_site
from shared_model.contract import Contract, load_contract
from shared_model.imaging import DIGITISED_FILMS, FilmPool, PipelineConfig
from simulations.hospitals import STAGES, sources
from simulations.lesions import lesion_types
from simulations.live import LiveView
from simulations.parties import EVALUATOR, HELD_OUT
from simulations.plan import Config, importer_key, pipeline_of
from simulations.readers import synthetic_readings

COHORT_FORM = 4  # 2: the evaluator's `lesion_type` beside the tensors, 3: readings; 4: no dense mass is taken for text


def cohorts_of(config: Config, view: LiveView) -> dict[str, Path]:
    """The cohorts of one population of a comparison."""
    return make_cohorts(config, load_contract(), pipeline_of(config), view)


def sources_of(config: Config, view: LiveView) -> dict[str, Path]:
    """Each party's films and table, for what a design must know and no cohort holds."""
    return hospitals(config, pipeline_of(config), view)[1]


def make_cohorts(config: Config, contract: Contract, pipeline: PipelineConfig, view: LiveView) -> dict[str, Path]:
    """Make the hospitals and prepare each one's cohort, both from the cache where they are there already."""
    cache, folders = hospitals(config, pipeline, view)
    recipe = next(iter(folders.values())).parent.name
    folder = cohort_folder(cache, recipe, pipeline, contract)
    cohorts = {name: folder / name for name in folders}
    prepare_cohorts(config, {name: (source, cohorts[name]) for name, source in folders.items()}, contract, pipeline,
                    view)  # fmt: skip
    return cohorts


def hospitals(config: Config, pipeline: PipelineConfig, view: LiveView) -> tuple[Path, dict[str, Path]]:
    """The cache, and in it each hospital's films and table, the held-out ones last."""
    cache = Path(config["cache"] or Path.home() / ".cache" / "mammofed").expanduser()
    workers = config["workers"] or os.cpu_count() or 1
    with view.stage(STAGES[config["cohort"]["kind"]], None) as advance:
        return cache, sources(config, cache, pipeline=pipeline, workers=workers, progress=advance)


def prepare_cohorts(
    config: Config, places: Mapping[str, tuple[Path, Path]], contract: Contract, pipeline: PipelineConfig,
    view: LiveView,
) -> None:  # fmt: skip
    """Import each site's films and table. places: (source, cohort) by site; a cohort that is there stays."""
    declared = config["cohort"].get("declared_spacing_mm")
    # Public collections are scanned films, whose headers say little; synthetic ones say what a detector's do.
    policy = None if config["cohort"]["kind"] == "synthetic" else DIGITISED_FILMS
    workers = config["workers"] or os.cpu_count() or 1
    missing = {name: place for name, place in places.items() if not (place[1] / "cohort.json").exists()}
    if not missing:
        return
    stage = view.stage("Prepare cohorts (check, pseudonymise, decode once)", None)
    with stage as advance, FilmPool(
        pipeline, workers=workers, declared_spacing_mm=declared, policy=policy
    ) as films:  # one pool: it takes a second to start
        done = 0
        for name, (source, cohort) in missing.items():
            base = done

            def progress(count: int, total: int, base: int = base) -> None:
                advance(base + count, None)

            report = prepare_site(
                source=source, destination=cohort, contract=contract, pipeline=pipeline, site=name,
                key=importer_key(config["seed"], name), workers=workers, progress=progress, pool=films,
                declared_spacing_mm=declared, lesions=lesion_types(source) if name in (HELD_OUT, EVALUATOR) else None,
                readings=synthetic_readings(config, HELD_OUT) if name in (HELD_OUT, EVALUATOR) else None,
            )  # fmt: skip
            done += report.films


def cohort_folder(cache: Path, recipe: str, pipeline: PipelineConfig, contract: Contract) -> Path:
    """Where the prepared cohorts of a population lie. recipe: first 16 letters of its hash."""
    return cache / "cohorts" / f"{recipe}-{pipeline.sha256[:12]}-{contract.sha256[:12]}-{COHORT_FORM}"
