"""Do a model's heat maps point to the lesions of women it never saw? Measured on synthetic women; used by `localise`.

Only synthetic women have lesions that are known to the pixel, in `truth.csv` beside their films.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shared_model.cohort.batch import PatientBatch
from shared_model.cohort.views import VIEWS
from shared_model.contract import Contract
from shared_model.errors import ImagingError
from shared_model.explanation import METHODS, Localisation, Method, heat_maps, localise
from shared_model.explanation.localisation import LesionFilm
from shared_model.explanation.randomisation import rank_correlation, with_random_encoder
from shared_model.fusion import FusionModel
from shared_model.imaging import Box, PipelineConfig, read_picture
from simulations.composition import compose_config
from simulations.lesions import CANCERS, Wanted, cancers

Progress = Callable[[int, int], None]
Features = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One synthetic woman with a cancer. batch: B = 1. boxes: view -> lesion on the canvas. lesion: its kind."""

    name: str
    batch: PatientBatch
    boxes: dict[str, Box]
    lesion: str


def default_pipeline(*, height: int, width: int, spacing_mm: float) -> PipelineConfig:
    """The pipeline of `configs/imaging` on another canvas."""
    values = {**compose_config([])["imaging"], "height": height, "width": width, "spacing_mm": spacing_mm}
    return PipelineConfig(**{**values, "percentiles": tuple(values["percentiles"])})


def subjects(
    source: Path, *, pipeline: PipelineConfig, contract: Contract, limit: int,
    wanted: Wanted = lambda patient_id: True,
) -> Iterator[Subject]:  # fmt: skip
    """Up to `limit` women with a cancer that their films show, in the order of the truth file.

    source: a folder of the generator, with dicom/, clinical.csv and truth.csv. wanted: which patient ids may be taken.

    Raises:
        ConfigError: it is none.
    """
    truth: dict[str, Box] = {}
    owners: dict[str, str] = {}
    for row in cancers(source):
        if wanted(row["patient_id"]):
            truth[row["sop_uid"]] = tuple(float(row[n]) for n in ("row0", "col0", "row1", "col1"))  # type: ignore[assignment]
            owners[row["patient_id"]] = CANCERS[row["kind"]]
    rows = _rows(source / "clinical.csv", contract)
    found = (_subject(source, owner, lesion, truth, rows.get(owner), pipeline, contract)
             for owner, lesion in owners.items())  # fmt: skip
    yield from islice((subject for subject in found if subject.boxes), limit)


def measure(
    model: FusionModel, women: Sequence[Subject], *, spacing_mm: float, methods: Sequence[Method] = METHODS,
    progress: Progress | None = None,
) -> list[Localisation]:  # fmt: skip
    """Judge each method on these women."""
    found = []
    for number, method in enumerate(methods):
        def step(done: int, base: int = number * len(women)) -> None:
            if progress is not None:
                progress(base + done, len(methods) * len(women))

        found.append(localise(films_of(model, women, method, step), method=method, spacing_mm=spacing_mm))
    return found


def films_of(
    model: FusionModel, women: Sequence[Subject], method: Method, step: Callable[[int], None] = lambda done: None
) -> list[LesionFilm]:
    """The maps of all films with a lesion. step: called with the number of women done."""
    films: list[LesionFilm] = []
    for done, woman in enumerate(women, start=1):
        maps_VHW = heat_maps(model, woman.batch, method=method)[0]
        side = VIEWS[int(maps_VHW.max(axis=(1, 2)).argmax())][0]
        for view, box in woman.boxes.items():
            index = VIEWS.index(view)
            breast = woman.batch.pixels_BVCHW[0, index].amax(dim=0).numpy() > 0
            films.append(LesionFilm(woman=woman.name, map_HW=maps_VHW[index], breast_HW=breast, box=box,
                                    right_side=side == view[0], lesion=woman.lesion))  # fmt: skip
        step(done)
    return films


def figures(
    model: FusionModel, initial: FusionModel | None, women: Sequence[Subject], method: Method, *, spacing_mm: float,
    cohort: str, step: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:  # fmt: skip
    """One entry of `localisation.json`: the model, by kind of lesion, beside what it began from and random weights.

    step: called with the number of explained women, up to twice or three times their number.
    """
    n = len(women)
    films = films_of(model, women, method, step)
    other = films_of(with_random_encoder(model), women, method, lambda done: step(n + done))
    began = films_of(initial, women, method, lambda done: step(2 * n + done)) if initial is not None else []

    def judged(some: Sequence[LesionFilm]) -> dict[str, Any]:
        return dict(localise(some, method=method, spacing_mm=spacing_mm).as_dict())

    kinds = sorted({film.lesion for film in films})
    return judged(films) | {
        "cohort": cohort, "lesions": {kind: judged([f for f in films if f.lesion == kind]) for kind in kinds},
        "initial": judged(began) if began else None,
        "randomised": {
            "pointing": judged(other)["pointing"],
            "rank_correlation": rank_correlation([f.map_HW for f in films], [f.map_HW for f in other],
                                                 [f.breast_HW for f in films]),
        },
    }  # fmt: skip


def _rows(path: Path, contract: Contract) -> dict[str, tuple[Features, bool]]:
    import pandas as pd

    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    encoded = contract.encode(frame[[f.name for f in contract.fields if f.name in frame]], source=path.name)
    return {str(name): (values, bool(known)) for name, values, known in
            zip(frame["patient_id"], encoded.values, encoded.present, strict=True)}  # fmt: skip


def _subject(
    source: Path, owner: str, lesion: str, truth: dict[str, Box], row: tuple[Features, bool] | None,
    pipeline: PipelineConfig, contract: Contract,
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
    return Subject(name=owner, batch=batch, boxes=boxes, lesion=lesion)
