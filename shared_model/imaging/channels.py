"""One film in canonical greys -> two channels on the canvas; called by view, and by pre-training for its films.

Channel 0: brightness within the film's own percentiles of the breast; keeps density. Channel 1: equalised within the
breast (rank transform); the same for every monotone look-up table of a vendor, so no constant has to be shared between
sites to make their films alike. Both are zero outside the breast. Every step up to the averaging is a table over greys.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from shared_model.imaging.breast import Breast, find_breast
from shared_model.imaging.config import PipelineConfig
from shared_model.imaging.geometry import Placement
from shared_model.imaging.reasons import refuse
from shared_model.imaging.resample import Axis, area_average, area_axis
from shared_model.imaging.text import refuse_text

_LEAST_GREYS = 16  # an 8-bit scan has some 150 in the breast; with fewer than 16 a film was posterised on its way


@dataclass(frozen=True)
class Channels:
    """What became of one film.

    pixels_CHW: float32 [2, H, W] in [0, 1], chest wall at column 0, breast centred along the rows.
    spacing_mm: edge of a canvas pixel; the configured one, or coarser where the breast would not fit.
    factor: native pixels a canvas pixel (rows, columns); below 1 the film was enlarged, which adds no detail.
    placement: where each canvas pixel is in the film as stored.
    """

    pixels_CHW: NDArray[np.float32]
    spacing_mm: float
    factor: tuple[float, float]
    placement: Placement


def film_to_channels(
    pixels_HW: NDArray[np.uint16],
    *,
    spacing_mm: tuple[float, float],
    config: PipelineConfig,
    brightness: NDArray[np.float64] | None = None,
    chest_left: bool | None = None,
    flip_rows: bool = False,
    padding: tuple[int, int] | None = None,
    mask_HW: NDArray[np.bool_] | None = None,
) -> Channels:
    """Two channels of one film.

    Args:
        pixels_HW: uint16 [h, w] canonical greys: more is brighter tissue, air is dark.
        spacing_mm: (row, column) distance of pixel centres in the breast, millimetres.
        brightness: float64 [M + 1], what the film's VOI shows for each grey; None means the grey itself.
        chest_left: the header's word on the chest wall; None looks at the pixels.
        flip_rows: whether the film hangs upside down.
        padding: greys that are no picture.
        mask_HW: bool [h, w], the breast where it is already known; None finds it.

    Raises:
        ImagingError: constant_pixels, few_greys, inverted, no_breast, orientation_conflict, no_orientation,
            text_in_breast, flat_window.
    """
    if pixels_HW.dtype != np.uint16 or pixels_HW.ndim != 2:
        raise TypeError(f"film_to_channels: pixels are {pixels_HW.dtype} {pixels_HW.shape}, expected uint16 [h, w]")
    if mask_HW is None:
        breast = find_breast(pixels_HW, spacing_mm=max(spacing_mm), padding=padding, chest_left=chest_left)
        _check_greys(pixels_HW, breast.mask_HW)
        refuse_text(pixels_HW, breast.mask_HW, spacing_mm=max(spacing_mm))
    else:
        breast = Breast(mask_HW, True if chest_left is None else chest_left)
    greys, mask = _hang(pixels_HW, breast, flip_rows)
    greys, mask, corner = _crop(greys, mask)
    if config.denoise == "median":
        greys = ndimage.median_filter(greys, size=3, mode="nearest")
    rows, columns, spacing = _canvas(mask.shape, spacing_mm, config)
    tables = _tables(greys, mask, brightness, config.percentiles)
    pixels_CHW = _average(greys, mask, tables, rows, columns)
    factor = (spacing / spacing_mm[0], spacing / spacing_mm[1])
    placement = Placement(
        film=(pixels_HW.shape[0], pixels_HW.shape[1]), flip_rows=flip_rows, flip_columns=not breast.chest_left,
        origin=(corner[0] + _top(mask.shape[0], config.height, factor[0]), float(corner[1])), factor=factor,
        canvas=(config.height, config.width),
    )  # fmt: skip
    return Channels(pixels_CHW, spacing, factor, placement)


def _check_greys(pixels_HW: NDArray[np.uint16], mask_HW: NDArray[np.bool_]) -> None:
    """Greys of the breast, every third row: as many as there are, but for a few rare ones."""
    greys = np.count_nonzero(np.bincount(pixels_HW[::3][mask_HW[::3]], minlength=1))
    if 1 < greys < _LEAST_GREYS:
        raise refuse("few_greys", found=f"{greys} greys in the breast", expected=f"at least {_LEAST_GREYS}")


def _average(
    greys: NDArray[np.uint16],
    mask: NDArray[np.bool_],
    tables: tuple[NDArray[np.float32], NDArray[np.float32]],
    rows: Axis,
    columns: Axis,
) -> NDArray[np.float32]:
    """Both channels on the canvas. A rim pixel is the mean of the tissue in it, not a blend with the air beside it."""
    cover = area_average(mask.astype(np.float32), rows, columns)
    inside = cover >= 0.5
    out = np.zeros((2, *cover.shape), np.float32)
    for channel, table in enumerate(tables):
        mean = area_average(table[greys] * mask, rows, columns)[inside] / cover[inside]
        out[channel][inside] = np.minimum(mean, 1.0)
    out[1][inside] = _ranks(out[1][inside])
    return out


def _hang(
    pixels_HW: NDArray[np.uint16], breast: Breast, flip_rows: bool
) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
    view = (slice(None, None, -1 if flip_rows else 1), slice(None, None, 1 if breast.chest_left else -1))
    return pixels_HW[view], breast.mask_HW[view]


def _crop(
    pixels: NDArray[np.uint16], mask: NDArray[np.bool_]
) -> tuple[NDArray[np.uint16], NDArray[np.bool_], tuple[int, int]]:
    """The bounding box of the breast, and its upper left corner in the hung film."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        raise refuse("no_breast", found="an empty mask")
    box = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    return np.ascontiguousarray(pixels[box]), np.ascontiguousarray(mask[box]), (int(rows[0]), int(columns[0]))


def _top(height: int, canvas_height: int, by_row: float) -> float:
    """Row of the breast's box where the canvas begins, so that the breast is centred."""
    return height / 2.0 - canvas_height / 2.0 * by_row


def _canvas(
    shape: tuple[int, ...], spacing_mm: tuple[float, float], config: PipelineConfig
) -> tuple[Axis, Axis, float]:
    """Axes from the breast's box onto the canvas. A breast that is too large is shrunk as a whole: nothing is cut."""
    height_mm, width_mm = shape[0] * spacing_mm[0], shape[1] * spacing_mm[1]
    spacing = max(config.spacing_mm, height_mm / config.height, width_mm / config.width)
    by_row, by_column = spacing / spacing_mm[0], spacing / spacing_mm[1]
    top = _top(shape[0], config.height, by_row)
    rows = area_axis(n_in=shape[0], n_out=config.height, start=top, factor=by_row)
    return rows, area_axis(n_in=shape[1], n_out=config.width, start=0.0, factor=by_column), spacing


def _tables(
    greys: NDArray[np.uint16],
    mask: NDArray[np.bool_],
    brightness: NDArray[np.float64] | None,
    percentiles: tuple[float, float],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Both channels as float32 tables over greys, from the histogram of the breast."""
    counts = np.bincount(greys[mask], minlength=int(greys.max()) + 1)
    total = counts.sum()
    present = np.flatnonzero(counts)
    if present.size < 2:
        raise refuse("constant_pixels", found="one grey in the breast")
    shown = np.arange(counts.size, dtype=np.float64) if brightness is None else brightness[: counts.size]
    order = present[np.argsort(shown[present], kind="stable")]
    below = np.cumsum(counts[order])
    low, high = (float(shown[order[np.searchsorted(below, p / 100.0 * total)]]) for p in _within(percentiles))
    if not high > low:
        raise refuse("flat_window", found=f"percentiles {percentiles} show the same brightness")
    normalised = np.clip((shown - low) / (high - low), 0.0, 1.0)
    # Mid-rank of each grey: independent of how many greys the film has, and of any increasing remap of them.
    equalised = (np.cumsum(counts) - 0.5 * counts) / total
    return normalised.astype(np.float32), equalised.astype(np.float32)


def _within(percentiles: tuple[float, float]) -> tuple[float, float]:
    # Rounding may carry 100 % just past the last cumulative count.
    return percentiles[0], min(percentiles[1], 100.0 * (1.0 - 1e-12))


def _ranks(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mid-ranks in (0, 1). Averaging draws ranks towards the middle, by an amount that depends on the film's noise, so
    vendors would differ again; ranking once more on the canvas makes the histogram flat at every site."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))  # equal values share one rank
    counts = np.diff(starts, append=ordered.size)
    ranks = np.empty(values.size, np.float32)
    ranks[order] = np.repeat((starts + 0.5 * counts) / ordered.size, counts)
    return ranks
