"""The films of a case with their heat maps, each in the geometry of the film as stored; used by results and reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.inference.cases import Case
from client.inference.overlay import Rgb, overlay
from client.inference.scorer import Scorer
from shared_model.cohort.views import VIEWS
from shared_model.errors import CohortError
from shared_model.explanation import DEFAULT_METHOD, Method, Target, heat_maps
from shared_model.imaging import AdmissionPolicy, PipelineConfig, read_picture


@dataclass(frozen=True, kw_only=True)
class ExplainedFilm:
    """One film. shown: uint8 [rows, columns], tissue bright. heat: float32 of the same shape, at
    least 0, in logits a cell. top: the exam's greatest value. spacing_mm: of stored pixels (row, column)."""

    view: str
    shown: NDArray[np.uint8]
    heat: NDArray[np.float32]
    top: float
    spacing_mm: tuple[float, float]

    def overlaid(self) -> Rgb:
        """RGB of the stored size."""
        return overlay(self.shown, self.heat, top=self.top)


def explained_films(
    scorer: Scorer, case: Case, *, pipeline: PipelineConfig, policy: AdmissionPolicy,
    declared_spacing_mm: float | None, method: Method = DEFAULT_METHOD, target: Target = "fused",
) -> Mapping[str, ExplainedFilm]:  # fmt: skip
    """By view, in the order of VIEWS. Each film is read once more, because a cohort keeps no stored pixels.

    Raises:
        CohortError: a file is not the film any more that was scored.
        ImagingError: it cannot be read any more.
    """
    maps = heat_maps(scorer.model, case.batch(pipeline, scorer.contract.n_features).to(scorer.device), method=method,
                     target=target)[0]  # fmt: skip
    found = {}
    for view in (view for view in VIEWS if view in case.films):
        film = case.films[view]
        picture = read_picture(film.path, pipeline, declared_spacing_mm=declared_spacing_mm, policy=policy)
        pixels = picture.channels.pixels_CHW.astype(np.float16).astype(np.float32)
        if picture.film.view != view or not np.array_equal(pixels, film.view.pixels):
            raise CohortError(f"a film changed while it was being scored ({view})", remedy="predict again")
        found[view] = ExplainedFilm(
            view=view, shown=picture.shown(),
            heat=picture.channels.placement.to_film(maps[VIEWS.index(view)]), top=float(maps.max()),
            spacing_mm=picture.film.spacing_mm,
        )  # fmt: skip
    return found
