"""Area averaging onto the canvas; called by channels.

Each canvas pixel is the mean over exactly the film area that it covers, pixels weighted by their overlap, so a factor
need not be an integer and no calcification falls between two samples. Sums run in a fixed order without BLAS: the same
film gives the same bits whatever the thread count or the processor's vector width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Axis:
    """Weights of one axis. index: int [n_out, k] source pixels; weight: float32 [n_out, k], rows sum to at most 1."""

    index: NDArray[np.intp]
    weight: NDArray[np.float32]


def area_axis(*, n_in: int, n_out: int, start: float, factor: float) -> Axis:
    """Canvas pixel i covers [start + i factor, start + (i + 1) factor) of the source's n_in pixels.

    What lies outside the source has weight zero. factor is in source pixels a canvas pixel; below 1 it enlarges.
    """
    lower = start + factor * np.arange(n_out, dtype=np.float64)
    upper = lower + factor
    first = np.floor(lower).astype(np.intp)
    index = first[:, None] + np.arange(int(np.ceil(factor)) + 1, dtype=np.intp)
    overlap = np.minimum(upper[:, None], index + 1.0) - np.maximum(lower[:, None], index)
    weight = np.where((index >= 0) & (index < n_in), np.maximum(overlap, 0.0) / factor, 0.0)
    return Axis(np.clip(index, 0, n_in - 1), weight.astype(np.float32))


def area_average(image_HW: NDArray[np.float32], rows: Axis, columns: Axis) -> NDArray[np.float32]:
    """float32 image [h, w] -> float32 canvas [H, W]; zero where the canvas is outside the image."""
    return _along_rows(np.ascontiguousarray(_along_rows(image_HW, rows).T), columns).T


def _along_rows(image: NDArray[np.float32], axis: Axis) -> NDArray[np.float32]:
    out = np.zeros((axis.index.shape[0], image.shape[1]), np.float32)
    for k in range(axis.index.shape[1]):
        out += image[axis.index[:, k]] * axis.weight[:, k, None]
    return out
