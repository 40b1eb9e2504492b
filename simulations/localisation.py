"""`mammofed simulate localise RUN`: do a model's heat maps point to the lesions of synthetic women it never saw?

Only synthetic women have lesions that are known to the pixel, in `truth.csv` beside their films. The result,
`localisation.json` in the run directory, goes with the model: a site prints its figure beside each map.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import cast

import numpy as np
import torch

from shared_model.cohort.batch import PatientBatch
from shared_model.cohort.views import VIEWS
from shared_model.contract import Contract, load_contract
from shared_model.errors import ConfigError, ImagingError
from shared_model.explanation import METHODS, Localisation, Method, heat_maps, localise
from shared_model.explanation.localisation import LesionFilm
from shared_model.fusion import FusionModel
from shared_model.imaging import Box, PipelineConfig, read_picture
from shared_model.private_files import write_private
from shared_model.released import LOCALISATION, ReleasedModel
from simulations.composition import compose_config

CANCERS = ("mass_malignant", "calcification_malignant")
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One synthetic woman with a lesion. batch: B = 1. boxes: view -> lesion on the canvas."""

    name: str
    batch: PatientBatch
    boxes: dict[str, Box]


def default_pipeline(*, height: int, width: int, spacing_mm: float) -> PipelineConfig:
    """The pipeline of `configs/imaging` on another canvas."""
    values = {**compose_config([])["imaging"], "height": height, "width": width, "spacing_mm": spacing_mm}
    return PipelineConfig(**{**values, "percentiles": tuple(values["percentiles"])})


def subjects(source: Path, *, pipeline: PipelineConfig, contract: Contract, limit: int) -> Iterator[Subject]:
    """Up to `limit` women with a cancer that their films show, in the order of the truth file.

    source: a folder of the generator, with dicom/, clinical.csv and truth.csv.

    Raises:
        ConfigError: it is none.
    """
    truth: dict[str, Box] = {}
    owners: dict[str, None] = {}
    try:
        with (source / "truth.csv").open(newline="") as stream:
            for row in csv.DictReader(stream):
                if row["kind"] in CANCERS:
                    truth[row["sop_uid"]] = tuple(float(row[n]) for n in ("row0", "col0", "row1", "col1"))  # type: ignore[assignment]
                    owners[row["patient_id"]] = None
    except OSError as error:
        raise ConfigError(f"{source} has no known lesions: {error.strerror}", expected="truth.csv beside dicom/",
                          remedy="name a folder of synthetic women, as `mammofed simulate` caches them"
                          ) from None  # fmt: skip
    rows = _rows(source / "clinical.csv", contract)
    found = (_subject(source, owner, truth, rows.get(owner), pipeline, contract) for owner in owners)
    yield from islice((subject for subject in found if subject.boxes), limit)


def measure(
    model: FusionModel, women: Sequence[Subject], *, spacing_mm: float, methods: Sequence[Method] = METHODS,
    progress: Progress | None = None,
) -> list[Localisation]:  # fmt: skip
    """Judge each method on these women."""
    found = []
    for number, method in enumerate(methods):
        films: list[LesionFilm] = []
        for done, woman in enumerate(women):
            maps_VHW = heat_maps(model, woman.batch, method=method)[0]
            side = VIEWS[int(maps_VHW.max(axis=(1, 2)).argmax())][0]
            for view, box in woman.boxes.items():
                index = VIEWS.index(view)
                breast = woman.batch.pixels_BVCHW[0, index].amax(dim=0).numpy() > 0
                films.append(LesionFilm(woman=woman.name, map_HW=maps_VHW[index], breast_HW=breast, box=box,
                                        right_side=side == view[0]))  # fmt: skip
            if progress is not None:
                progress(number * len(women) + done + 1, len(methods) * len(women))
        found.append(localise(films, method=method, spacing_mm=spacing_mm))
    return found


def write_localisation(run_dir: Path, found: Sequence[Localisation], *, model_sha256: str, cohort: str) -> Path:
    """Write `localisation.json`. cohort: who was measured on, in words."""
    document = {"schema_version": 1, "model_sha256": model_sha256, "cohort": cohort,
                "methods": {one.method: one.as_dict() | {"cohort": cohort} for one in found}}  # fmt: skip
    path = run_dir / LOCALISATION
    write_private(path, (json.dumps(document, indent=2) + "\n").encode())
    return path


def _rows(path: Path, contract: Contract) -> dict[str, tuple[np.ndarray[tuple[int], np.dtype[np.float32]], bool]]:
    import pandas as pd

    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    encoded = contract.encode(frame[[f.name for f in contract.fields if f.name in frame]], source=path.name)
    return {str(name): (values, bool(known)) for name, values, known in
            zip(frame["patient_id"], encoded.values, encoded.present, strict=True)}  # fmt: skip


def _subject(
    source: Path, owner: str, truth: dict[str, Box],
    row: tuple[np.ndarray[tuple[int], np.dtype[np.float32]], bool] | None, pipeline: PipelineConfig,
    contract: Contract,
) -> Subject:  # fmt: skip
    pixels = torch.zeros(1, len(VIEWS), 2, pipeline.height, pipeline.width)
    mask = torch.zeros(1, len(VIEWS), dtype=torch.bool)
    boxes: dict[str, Box] = {}
    for path in sorted((source / "dicom" / owner.rsplit("-", 1)[1]).glob("*.dcm")):
        try:
            picture = read_picture(path, pipeline)
        except ImagingError:  # as an import would set it aside
            continue
        index = VIEWS.index(picture.film.view)
        pixels[0, index] = torch.from_numpy(picture.channels.pixels_CHW.astype(np.float16).astype(np.float32))
        mask[0, index] = True
        if picture.film.sop_uid in truth:
            boxes[picture.film.view] = picture.channels.placement.box_on_canvas(truth[picture.film.sop_uid])
    known = row is not None and row[1]
    clinical = torch.zeros(1, contract.n_features)
    if row is not None and known:
        clinical[0] = torch.from_numpy(row[0].copy())
    batch = PatientBatch(pixels, mask, clinical, torch.tensor([known]), torch.ones(1))
    return Subject(name=owner, batch=batch, boxes=boxes)


def localise_model(folder: Path, source: Path, *, women: int, methods: Sequence[str]) -> None:
    """The command: measure a released model, print a table, write `localisation.json` into its folder.

    Raises:
        ConfigError: an unknown method, or too few women with lesions that films show.
    """
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.table import Table

    from client.inference.scorer import Scorer

    if unknown := sorted(set(methods) - set(METHODS)):
        raise ConfigError("--method: no such method", found=unknown, expected=", ".join(METHODS))
    contract, released = load_contract(), ReleasedModel.read(folder)
    scorer = Scorer(released, contract)
    terms = released.protocol.pipeline
    pipeline = default_pipeline(height=terms.height, width=terms.width, spacing_mm=terms.spacing_mm)
    scorer.check_pipeline(pipeline)
    with Bar(console=Console(stderr=True)) as bar:
        task = bar.add_task("Read films", total=women)
        listed = []
        for one in subjects(source, pipeline=pipeline, contract=contract, limit=women):
            listed.append(one)
            bar.advance(task)
        if len(listed) < 2:
            raise ConfigError(f"{source} has too few women with a lesion", found=len(listed), expected="at least 2")
        task = bar.add_task("Explain", total=len(listed) * len(methods))
        found = measure(scorer.model, listed, spacing_mm=pipeline.spacing_mm, methods=cast(Sequence[Method], methods),
                        progress=lambda done, total: bar.update(task, completed=done))  # fmt: skip
    path = write_localisation(folder, found, model_sha256=released.release.model_sha256, cohort="synthetic women")
    table = Table(title=f"{len(listed)} synthetic women with a cancer that the model never saw", title_justify="left")
    for column in ("method", f"points within {found[0].tolerance_mm:.0f} mm", "chance", "energy in the box", "chance",
                   "right breast"):  # fmt: skip
        table.add_column(column)
    for how in found:
        table.add_row(how.method, str(how.pointing), f"{how.chance:.2f}", str(how.energy), f"{how.energy_chance:.2f}",
                      str(how.side))  # fmt: skip
    Console().print(table)
    Console().print(f"Written     {path}", highlight=False)
