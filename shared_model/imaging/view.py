"""One DICOM file -> one prepared view; called by the worker processes of pool, and directly for single films."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared_model.errors import ImagingError
from shared_model.imaging.admission import Film, admit
from shared_model.imaging.channels import Channels, film_to_channels
from shared_model.imaging.codecs import check_whole, decode
from shared_model.imaging.config import PipelineConfig
from shared_model.imaging.greys import Greys, canonical
from shared_model.imaging.header import FilmFile, quiet_pydicom, read_film
from shared_model.imaging.policy import AdmissionPolicy
from shared_model.imaging.reasons import FilmRefusedError, refuse


@dataclass(frozen=True)
class View:
    """One film as the model takes it.

    pixels: float32 [2, H, W] in [0, 1]; channel 0 percentile-normalised, 1 equalised, both zero outside the breast.
    view: one of VIEWS. spacing_mm: native distance of pixel rows in the breast. age_years: completed years or None.
    canvas_spacing_mm: edge of a canvas pixel; coarser than configured (shrunk) where the breast would not fit.
    factor: native pixels a canvas pixel, along rows; below 1 the film was enlarged, which adds no detail.
    pixel_digest: hex SHA-256 of the decoded picture in canonical greys and its size. Equal for the same exposure under
        another UID, transfer syntax or polarity, so copies are found by it; the importer keeps it to itself.
    """

    pixels: NDArray[np.float32] = field(repr=False)
    view: str
    patient_id: str = field(repr=False)
    study_uid: str = field(repr=False)
    sop_uid: str = field(repr=False)
    study_date: str = field(repr=False)
    vendor: str
    spacing_mm: float
    spacing_source: str
    age_years: float | None
    canvas_spacing_mm: float
    factor: float
    shrunk: bool
    pixel_digest: str = field(repr=False)


def read_header(
    path: Path,
    config: PipelineConfig,
    *,
    declared_spacing_mm: float | None = None,
    policy: AdmissionPolicy | None = None,
) -> Film:
    """Admission by header alone, without decoding; what ingest sorts exams by.

    Raises:
        ImagingError: the reason why the film cannot be used.
    """
    with quiet_pydicom():
        file = read_film(path, max_bytes=config.max_bytes, header_only=True)
        with _named(file):
            return _admitted(file, config, declared_spacing_mm, policy)


def prepare_view(
    path: Path,
    config: PipelineConfig,
    *,
    declared_spacing_mm: float | None = None,
    policy: AdmissionPolicy | None = None,
) -> View:
    """Read, check, decode and normalise one film.

    Args:
        path: DICOM Part 10 file of any name.
        declared_spacing_mm: the scanner's pixel spacing, stated by the site for films whose header has none.
        policy: the site's own rules for films; None: the careful ones.

    Raises:
        ImagingError: with a stable `reason` (see REASONS); its text names no file and no person.
    """
    picture = read_picture(path, config, declared_spacing_mm=declared_spacing_mm, policy=policy)
    film, channels = picture.film, picture.channels
    return View(
        pixels=channels.pixels_CHW, view=film.view, patient_id=film.patient_id, study_uid=film.study_uid,
        sop_uid=film.sop_uid, study_date=film.study_date, vendor=film.vendor, spacing_mm=film.spacing_mm[0],
        spacing_source=film.spacing_source, age_years=film.age_years, canvas_spacing_mm=channels.spacing_mm,
        factor=channels.factor[0], shrunk=channels.spacing_mm > config.spacing_mm,
        pixel_digest=_digest(picture.greys.pixels_HW),
    )  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """One film as stored, beside what became of it. film: its header. greys: of the stored picture. channels: on the
    canvas, with the placement of one on the other."""

    film: Film
    greys: Greys
    channels: Channels

    def shown(self) -> NDArray[np.uint8]:
        """uint8 [rows, columns]: what the film's own VOI shows, tissue bright, as stored (not hung)."""
        table = np.rint(np.clip(self.greys.brightness, 0.0, 1.0) * 255.0).astype(np.uint8)
        shown: NDArray[np.uint8] = table[self.greys.pixels_HW]
        return shown


def read_picture(
    path: Path,
    config: PipelineConfig,
    *,
    declared_spacing_mm: float | None = None,
    policy: AdmissionPolicy | None = None,
) -> Picture:
    """As :func:`prepare_view`, with the picture itself: for maps that are shown in the film's own geometry."""
    with quiet_pydicom():
        file = read_film(path, max_bytes=config.max_bytes)
        with _named(file):
            film = _admitted(file, config, declared_spacing_mm, policy)
            cells = decode(file, rows=film.rows, columns=film.columns)
            check_whole(cells)
            greys = canonical(cells, file.header)
            channels = film_to_channels(
                greys.pixels_HW, spacing_mm=film.spacing_mm, config=config, brightness=greys.brightness,
                chest_left=film.chest_left, flip_rows=film.flip_rows, padding=greys.padding,
            )  # fmt: skip
    return Picture(film, greys, channels)


def _digest(pixels_HW: NDArray[np.uint16]) -> str:
    digest = hashlib.sha256(f"{pixels_HW.shape[0]} {pixels_HW.shape[1]}\0".encode())
    digest.update(np.ascontiguousarray(pixels_HW, "<u2").data)
    return digest.hexdigest()


def _admitted(
    file: FilmFile, config: PipelineConfig, declared_spacing_mm: float | None, policy: AdmissionPolicy | None
) -> Film:
    return admit(
        file.header, max_pixels=config.max_pixels, declared_spacing_mm=declared_spacing_mm, policy=policy
    )  # fmt: skip


@contextmanager
def _named(file: FilmFile) -> Iterator[None]:
    """Lets a refusal know whose film it was, for the site's pseudonym."""
    try:
        yield
    except ImagingError as error:
        raise FilmRefusedError(error, patient_id=_owner(file)) from None
    except MemoryError:
        raise FilmRefusedError(refuse("too_large", found="memory ran out"), patient_id=_owner(file)) from None


def _owner(file: FilmFile) -> str:
    try:
        return file.header.decoded("PatientID")
    except ImagingError:
        return ""
