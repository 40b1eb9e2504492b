"""`mammofed simulate chain RUN_DIR`: a finished study through all that follows, as coordinator and hospital would.

Report, passport, ONNX, release; then a hospital that the model has not seen imports, scores and explains with a
site.yaml of its own; then what each hospital of the study gained. Every step is a command, called as a person would
type it, and printed before it runs. The hospital has the study's held-out women, who chose and tested the model, so
that its scores are no further evidence; or all women of a public collection, however few (two of CBIS-DDSM can be
scored and explained, and are no study). It is how real films are tried: `simulations/hospitals/README.md`.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import yaml

from client.cli import site
from client.ingest.example import write_example
from server.cli import report, server
from shared_model.errors import ConfigError
from shared_model.export.cli import export
from shared_model.passport.cli import passport
from simulations.composition import compose_config
from simulations.hospitals.public import SOURCES, write_source
from simulations.parties import HELD_OUT
from simulations.plan import pipeline_of

Config = dict[str, Any]
PAGES = 2  # women who are explained
GROUPS: dict[str, click.Command] = {
    "report": report, "passport": passport, "export": export, "server": server, "site": site,
}  # fmt: skip


def run_chain(
    run_dir: Path, out: Path, *, overrides: Sequence[str] = (), whole: bool = True, tell: Callable[[str], None]
) -> None:
    """Call every command; what it prints is its own.

    Args:
        run_dir: of a COMPLETE study that was simulated here. out: empty or new; all results go there.
        overrides: the hospital's films, as for a study (`cohort=cbis_ddsm cohort.source=DIR`); none: the held-out ones.
        whole: False: only release and hospital; report, passport, export and gains were had before.
        tell: is told each command before it runs.

    Raises:
        ConfigError: `out` is in use, or the run's films are gone. MammoFedError: a step failed, in its own words.
    """
    settings = _settings(run_dir)
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is in use", expected="an empty or new folder", remedy="name another one")
    out.mkdir(parents=True, exist_ok=True)
    cohort = compose_config(overrides)["cohort"] if overrides else settings["cohort"]
    source = _collected(cohort, out, settings) if overrides else _held_out(run_dir)
    write_site(out / "hospital", source, {**settings, "cohort": cohort})
    for words in _commands(run_dir, out, whole=whole):
        tell(f"mammofed {' '.join(words)}")
        GROUPS[words[0]].main(words[1:], prog_name=f"mammofed {words[0]}", standalone_mode=False)


def _commands(run_dir: Path, out: Path, *, whole: bool) -> Iterator[list[str]]:
    run, model, home = str(run_dir), str(out / "model"), str(out / "hospital" / "site.yaml")
    if whole:
        yield ["report", run]
        yield ["passport", "verify", run]
        yield ["export", run, "--onnx", str(out / "model.onnx")]
    yield ["server", "release", run, model]
    yield ["site", "import", home]
    yield ["site", "predict", home, "--model", model, "--out", str(out / "results"), "--fhir", "--dicom"]
    yield ["site", "explain", home, *_filmed(out / "results"), "--model", model, "--out", str(out / "pages")]
    if whole:
        yield ["site", "gain", run]


def _filmed(results: Path) -> list[str]:
    """The hospital's ids of the first women who have films."""
    with (results / "predictions.csv").open(newline="") as stream:
        return [row["patient_id"] for row in csv.DictReader(stream) if row["modalities"] != "table"][:PAGES]


def write_site(folder: Path, source: Path, settings: Config) -> Path:
    """A hospital's site.yaml for a source folder of this simulator; returns its path.

    Args:
        source: `dicom/` and `clinical.csv`. settings: of a launch; `imaging` and `cohort` are used.
    """
    path = write_example(folder)
    values = yaml.safe_load(path.read_text("utf-8"))
    values["imaging"] = settings["imaging"]
    values["films"] = [{"kind": "folder", "path": str((source / "dicom").resolve())}]
    values["clinical"] = [{"kind": "csv", "path": str((source / "clinical.csv").resolve())}]
    values["clinical_policy"]["undated"] = "accept"  # public collections have no dates
    if settings["cohort"]["kind"] != "synthetic":  # scanned films, whose headers say little
        values["film_policy"] |= {"burned_in": "look", "secondary_capture": "accept",
                                  "declared_spacing_mm": settings["cohort"].get("declared_spacing_mm")}  # fmt: skip
    path.write_text(yaml.safe_dump(values), "utf-8")
    return path


def _settings(run_dir: Path) -> Config:
    path = run_dir / "launch.json"
    if not path.is_file() or not (run_dir / "protocol.json").is_file():
        raise ConfigError(
            f"{run_dir} is no single study that was simulated here", expected="launch.json and protocol.json in it",
            remedy="run the study without `baselines`, `arms` and `seeds`, and give its run directory",
        )  # fmt: skip
    found: Config = json.loads(path.read_bytes())
    return found


def _collected(cohort: Config, out: Path, settings: Config) -> Path:
    """All women of a public collection as one hospital's source folder."""
    kind = str(cohort["kind"])
    if kind not in SOURCES:
        raise ConfigError("cohort: no collection of films", found=kind, expected=" | ".join(SOURCES))
    pipeline = pipeline_of(settings)
    women = SOURCES[kind].collect(cohort, pipeline=pipeline, workers=settings["workers"] or os.cpu_count() or 1).women
    for _ in write_source(out / "source", list(women), pipeline=pipeline):
        pass
    return out / "source"


def _held_out(run_dir: Path) -> Path:
    """The source folder of the evaluator's cohort, which the cache keeps beside it."""
    cohort = Path(json.loads((run_dir / "sites" / "evaluator" / "site.json").read_bytes())["cohort"])
    cache = cohort.parent.parent.parent
    for folder in sorted(path for kind in ("public", "populations") for path in (cache / kind).glob(f"*/{HELD_OUT}")):
        # a cohort's folder begins with the name of the folder that it was prepared from, see launch.cohort_folder
        if cohort.parent.name.startswith(f"{folder.parent.name}-") and os.access(folder / "clinical.csv", os.R_OK):
            return folder
    raise ConfigError("the films of the held-out women are no longer in the cache", found=str(cache),
                      remedy="run the study again with the same `cache`")  # fmt: skip
