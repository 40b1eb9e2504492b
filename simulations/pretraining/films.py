"""Public procedural films as a cohort in memory, drawn and put through the imaging steps; used by pre-training.

Needs no torch until a batch is asked for, so that the worker processes stay small. Letters: N patients, V = 4 views,
H W pixels of the canvas.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shared_model.cohort.views import VIEWS
from shared_model.imaging import PipelineConfig, film_to_channels
from simulations.population.public import draw_public_patient

if TYPE_CHECKING:
    from torch import Tensor

    from shared_model.cohort.batch import PatientBatch

CHUNK = 16  # patients a task: a third of a second of work
MARK_RADIUS_MM = 10.0  # of the disc that stands for an outlined lesion

Progress = Callable[[int, int], None]
Part = tuple[NDArray[np.float16], NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True)
class PublicCohort:
    """N procedural patients with all four views and no table.

    pixels: float16 [N, V, 2, H, W]. labels: float32 [N]. marks: float32 [N, V, 3], row, column and radius in canvas
    pixels of the disc around the sign; NaN where the film shows none.
    """

    pixels: NDArray[np.float16]
    labels: NDArray[np.float32]
    marks: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Sequence[int] | NDArray[np.integer]) -> PatientBatch:
        """The patients at these positions; their one clinical feature is masked out."""
        import torch

        from shared_model.cohort.batch import PatientBatch

        rows = np.asarray(indices)
        count = len(rows)
        return PatientBatch(
            pixels_BVCHW=torch.from_numpy(self.pixels[rows].astype(np.float32)),
            view_mask_BV=torch.ones(count, len(VIEWS), dtype=torch.bool),
            clinical_BF=torch.zeros(count, 1),
            clinical_mask_B=torch.zeros(count, dtype=torch.bool),
            labels_B=torch.from_numpy(self.labels[rows]),
        )

    def outlines(self, indices: Sequence[int] | NDArray[np.integer]) -> Tensor:
        """Discs around the signs of these patients' films: float32 [B, V, 1, H, W] in {0, 1}."""
        import torch

        marks_BV3 = torch.from_numpy(self.marks[np.asarray(indices)])
        height, width = self.pixels.shape[-2:]
        y, x, radius = (part[..., None, None] for part in marks_BV3.unbind(-1))
        away = (torch.arange(height).view(-1, 1) - y) ** 2 + (torch.arange(width) - x) ** 2
        return (away <= radius**2).float().unsqueeze(2)  # a comparison with NaN is False: no disc


def public_cohort(
    *, patients: int, seed: int, pipeline: PipelineConfig, workers: int, first: int = 0,
    progress: Progress | None = None,
) -> PublicCohort:  # fmt: skip
    """Draw and prepare patients `first`..`first + patients - 1` of `seed`; the result does not depend on `workers`.

    progress: called with (patients prepared, patients in all).

    Raises:
        ImagingError: a film did not pass the imaging steps (a mistake in the generator).
    """
    last = first + patients
    chunks = [range(start, min(start + CHUNK, last)) for start in range(first, last, CHUNK)]
    whole = _empty(patients, pipeline)
    with _mapper(workers) as mapped:
        parts = mapped(prepare_patients, [seed] * len(chunks), chunks, [pipeline] * len(chunks))
        for chunk, part in zip(chunks, parts, strict=True):
            rows = slice(chunk.start - first, chunk.stop - first)
            whole[0][rows], whole[1][rows], whole[2][rows] = part
            if progress is not None:
                progress(chunk.stop - first, patients)
    return PublicCohort(*whole)


def prepare_patients(seed: int, indices: range, pipeline: PipelineConfig) -> Part:
    """A worker's task: pixels, labels and marks (see PublicCohort) of some patients."""
    pixels, labels, marks = part = _empty(len(indices), pipeline)
    for row, index in enumerate(indices):
        patient = draw_public_patient(seed, index)
        labels[row] = patient["label"]
        spacing = patient["spacing_mm"]
        for slot, view in enumerate(VIEWS):
            film = patient["views"][view]
            channels = film_to_channels(film, spacing_mm=(spacing, spacing), config=pipeline, chest_left=True)
            pixels[row, slot] = channels.pixels_CHW
            if view in patient["marks"]:
                y, x = patient["marks"][view]
                rows = np.flatnonzero((film > 0).any(axis=1))  # the canvas is centred on the breast's rows
                middle = (rows[0] + rows[-1] + 1) / 2 * spacing
                scale = channels.spacing_mm
                marks[row, slot] = pipeline.height / 2 + (y - middle) / scale, x / scale, MARK_RADIUS_MM / scale
    return part


def _empty(patients: int, pipeline: PipelineConfig) -> Part:
    films = np.zeros((patients, len(VIEWS), 2, pipeline.height, pipeline.width), np.float16)
    return films, np.zeros(patients, np.float32), np.full((patients, len(VIEWS), 3), np.nan, np.float32)


@contextmanager
def _mapper(workers: int) -> Iterator[Callable[..., Iterator[Part]]]:
    if workers == 1:
        yield map
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool.map
