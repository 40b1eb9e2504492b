"""What every public data set is read into before it is dealt out to hospitals: women, their films, their rows.

The modules `cbis_ddsm`, `mini_mias` and `manifest` make a Collection each; `public` writes it as source folders. A
woman is one object here, with everything that is known of her, so nothing later can split by film.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from shared_model.imaging import PipelineConfig

Settings = Mapping[str, Any]  # `config["cohort"]` as plain values


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """A circle around a finding, in shares of the film's height (row, radius) and width (column), from its top left."""

    kind: str
    row: float
    column: float
    radius: float


@dataclass(frozen=True, kw_only=True)
class Film:
    """One image file of a woman.

    view: one of shared_model.imaging.VIEWS. dicom: a DICOM file, which is copied under her own id; otherwise PNG or
    PGM, which becomes one. width_mm: of the film as scanned, None where a DICOM header or `spacing_mm` says it.
    spacing_mm: distance of pixel centres, None as before. orientation: PatientOrientation where it is known.
    exam_date: YYYY-MM-DD or "".
    """

    path: Path
    view: str
    dicom: bool
    width_mm: float | None = None
    spacing_mm: float | None = None
    orientation: tuple[str, str] | None = None
    exam_date: str = ""
    lesions: tuple[Lesion, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Woman:
    """One patient. label: 0 or 1. rows: her clinical rows, contract field -> cell, with `exam_date` where there are
    several. site: where the data set says so, "" otherwise. held_out: True or False where the data set says so, None
    where her hash decides. lesion: kind of her cancer, one of `shared_model.lesion_types`, None where nobody says."""

    patient_id: str
    label: int
    films: tuple[Film, ...]
    rows: tuple[Mapping[str, str], ...] = field(default=({},))
    site: str = ""
    held_out: bool | None = None
    lesion: str | None = None


@dataclass(frozen=True, kw_only=True)
class Collection:
    """A data set as read. left_out: (what, why) of everything that is not among the women."""

    women: tuple[Woman, ...]
    left_out: tuple[tuple[str, str], ...] = ()


class Source(Protocol):
    """What a module of a data set offers."""

    def inputs(self, settings: Settings) -> dict[str, Path]:
        """Every file that decides the result, by a name that does not depend on where the data set lies."""

    def collect(self, settings: Settings, *, pipeline: PipelineConfig, workers: int) -> Collection:
        """Read the data set."""
