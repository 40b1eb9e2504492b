"""Where the pixels of a canvas are in the film that they were averaged from; made by channels, used by explanations.

A heat map is computed on the canvas and has to be shown, and judged, where the film shows the breast. Coordinates are
continuous: pixel i covers [i, i + 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Box = tuple[float, float, float, float]
"""Row and column of the upper left corner, row and column of the lower right one, half-open."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How a stored film and its canvas lie on each other.

    film: rows and columns as stored. flip_rows, flip_columns: whether the hung film is the stored one upside down or
    mirrored. origin: row and column of the *hung* film at the canvas's corner, native pixels. factor: native pixels a
    canvas pixel along rows and columns. canvas: H and W.
    """

    film: tuple[int, int]
    flip_rows: bool
    flip_columns: bool
    origin: tuple[float, float]
    factor: tuple[float, float]
    canvas: tuple[int, int]

    def to_film(self, map_HW: NDArray[np.float32]) -> NDArray[np.float32]:
        """A canvas map [H, W] in the film's own geometry [rows, columns], bilinear; 0 where the canvas does not reach.

        Raises:
            ValueError: the map is not the canvas's.
        """
        if map_HW.shape != self.canvas:
            raise ValueError(f"the map is {map_HW.shape}, the canvas {self.canvas}")
        axes = [self._samples(axis) for axis in (0, 1)]
        half = _between_rows(np.asarray(map_HW, np.float32), *axes[0])
        hung = _between_rows(np.ascontiguousarray(half.T), *axes[1]).T
        return np.ascontiguousarray(hung[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1])

    def box_on_canvas(self, box: Box) -> Box:
        """A box of stored pixels as a box of canvas pixels; it may reach beyond the canvas."""
        ends = []
        for axis, flipped in ((0, self.flip_rows), (1, self.flip_columns)):
            low, high = float(box[axis]), float(box[axis + 2])
            if flipped:
                low, high = self.film[axis] - high, self.film[axis] - low
            ends.append(((low - self.origin[axis]) / self.factor[axis], (high - self.origin[axis]) / self.factor[axis]))
        return ends[0][0], ends[1][0], ends[0][1], ends[1][1]

    def _samples(self, axis: int) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
        """Canvas coordinate of the centre of each hung pixel, counted between centres, and which are on the canvas."""
        at = (np.arange(self.film[axis], dtype=np.float64) + 0.5 - self.origin[axis]) / self.factor[axis]
        return at - 0.5, (at >= 0.0) & (at < self.canvas[axis])


def _between_rows(
    image: NDArray[np.float32], at: NDArray[np.floating], inside: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Rows of `image` at fractional positions, linear between centres, the edge's own value beyond the last centre."""
    clipped = np.clip(at, 0.0, image.shape[0] - 1.0)
    lower = np.minimum(clipped.astype(np.intp), max(image.shape[0] - 2, 0))
    share = (clipped - lower).astype(np.float32)[:, None]
    upper = np.minimum(lower + 1, image.shape[0] - 1)
    out: NDArray[np.float32] = (image[lower] * (1 - share) + image[upper] * share) * inside[:, None]
    return out
