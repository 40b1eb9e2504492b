"""Finds text and markers that lie over the breast, where no mask can take them away; called by channels.

Drawn letters have what tissue has not: edges of one or two pixels, as high as half the film's contrast, whose bright
(or dark) side is everywhere the *same* grey. A skin line or a calcification is as steep in places, but its greys are
spread. So the length of steep edge that one grey explains is measured, in millimetres. On 240 films of mini-MIAS, eight
of CBIS-DDSM and two others it is at most 16 mm; on the same films with four letters of 5 mm it is 28 to 82 mm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from shared_model.imaging.reasons import refuse

_STEEP = 0.4  # of the breast's own contrast, between pixels two apart
_LEAST_MM = 20.0  # of edge: two or three letters
_LEAST_PAIRS = 100  # and not below so many pixels: on a coarse film a skin line is as steep as a letter
_LETTER_MM = 2.5  # calcifications are below 1 mm, a lead pellet on the skin has 2 mm
_STROKE_MM = 4.0  # a letter that is thicker
_ONE_GREY = 0.75  # has at least this share of its pixels of one grey
_NEIGHBOURS, _PROMINENCE = 16, 5.0  # the grey of letters stands out among the greys beside it
_GREYS = 128  # steps of the breast's contrast that count as one grey, for lossy compression blurs letters
_RIM_MM = 4.0  # along the skin everything falls to the same air, so dark letters are looked for further inside


def refuse_text(pixels_HW: NDArray[np.uint16], mask_HW: NDArray[np.bool_], *, spacing_mm: float) -> None:
    """Refuse a film on which letters reach into the breast.

    Args:
        pixels_HW: canonical greys. mask_HW: the breast. spacing_mm: distance of pixels.

    Raises:
        ImagingError: text_in_breast.
    """
    length, least = max(text_length_mm(pixels_HW, mask_HW, spacing_mm=spacing_mm)), _least_mm(spacing_mm)
    if length >= least:
        raise refuse("text_in_breast", found=f"{length:.0f} mm of sharp edges of one grey",
                     expected=f"below {least:.0f} mm")  # fmt: skip


def _least_mm(spacing_mm: float) -> float:
    return max(_LEAST_MM, _LEAST_PAIRS * spacing_mm / 2)


def text_length_mm(
    pixels_HW: NDArray[np.uint16], mask_HW: NDArray[np.bool_], *, spacing_mm: float
) -> tuple[float, float]:
    """Millimetres of steep edge with one grey on its (bright, dark) side; 0 where no grey stands out."""
    rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
    if rows.size < 3 or columns.size < 3:
        return 0.0, 0.0
    box = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    greys, mask = pixels_HW[box], mask_HW[box]
    low, high = np.percentile(greys[::3, ::3][mask[::3, ::3]], (5.0, 95.0)) if mask[::3, ::3].any() else (0.0, 0.0)
    search = _Search(
        greys, mask, high=float(high), least=max(4, int(_STEEP * (high - low))),
        step=max(1, int((high - low) / _GREYS)), spacing_mm=spacing_mm,
    )  # fmt: skip
    return search.length_mm(mask, bright=True), search.length_mm(_shrunk(mask, rim=_RIM_MM / spacing_mm), bright=False)


@dataclass(frozen=True)
class _Search:
    """One film cut to its breast. high: its brightest grey but for 5 %; least: grey difference of a steep edge; step:
    greys that count as one."""

    greys: NDArray[np.uint16]
    mask: NDArray[np.bool_]
    high: float
    least: int
    step: int
    spacing_mm: float

    def length_mm(self, where: NDArray[np.bool_], *, bright: bool) -> float:
        """Edge within `where` that the commonest grey explains, as far as it draws something of a letter's size."""
        sides = self._sides(where, bright=bright)
        grey, count = _one_grey(sides, self.step)
        if count * self.spacing_mm / 2 >= _least_mm(self.spacing_mm):
            # Clipped calcifications have one grey too, but each is small; so have the speckles of a mass in which
            # hardly a photon was counted, but it is bright between them too. This is rarely looked at.
            drawn = (self.greys // np.uint16(self.step) == grey) & self.mask
            letters = self._large(drawn)
            if bright:
                letters &= ~self._speckled(drawn)
            count = _one_grey(self._sides(where, bright=bright, touching=letters), self.step)[1]
        return count * self.spacing_mm / 2  # a step of one pixel is seen by two pairs

    def _sides(
        self, where: NDArray[np.bool_], *, bright: bool, touching: NDArray[np.bool_] | None = None
    ) -> NDArray[np.uint16]:
        """Greys of the bright or dark side of all steep pairs of pixels two apart."""
        found: list[NDArray[np.uint16]] = []
        for here, there in (((slice(None, -2),), (slice(2, None),)),
                            ((slice(None), slice(None, -2)), (slice(None), slice(2, None)))):  # fmt: skip
            upper = np.maximum(self.greys[here], self.greys[there])
            lower = np.minimum(self.greys[here], self.greys[there])
            steep = (upper - lower >= self.least) & where[here] & where[there]
            if touching is not None:
                steep &= touching[here] | touching[there]
            found.append((upper if bright else lower)[steep])
        return np.concatenate(found)

    def _large(self, drawn: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Connected parts that are at least _LETTER_MM long."""
        labels, count = ndimage.label(drawn, np.ones((3, 3), bool))
        least = _LETTER_MM / self.spacing_mm
        keep = np.zeros(count + 1, bool)
        for number, box in enumerate(ndimage.find_objects(labels), start=1):
            keep[number] = max(part.stop - part.start for part in box) >= least
        return keep[labels]

    def _speckled(self, drawn: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Where all is brighter than the breast's own contrast for _STROKE_MM both ways, but not of one grey."""
        size = max(3, round(_STROKE_MM / self.spacing_mm))
        bright = ((self.greys > self.high) & self.mask).view(np.uint8)
        core = ndimage.minimum_filter(bright, size, mode="constant", cval=0)
        area = ndimage.maximum_filter(core, size + 2 + size % 2, mode="constant", cval=0)
        labels, count = ndimage.label(area)
        share = ndimage.mean(drawn, np.where(core, labels, 0), np.arange(1, count + 1))
        return np.concatenate(([False], share < _ONE_GREY))[labels]


def _one_grey(values: NDArray[np.uint16], step: int) -> tuple[int, int]:
    """The commonest grey and how many values have it; none where the greys beside it have as many."""
    all_counts = np.bincount(values // np.uint16(step))
    greys = np.flatnonzero(all_counts)  # those that occur: a film of 8 bits in 16 has gaps between them
    if greys.size == 0:
        return 0, 0
    counts = all_counts[greys]
    place = int(counts.argmax())
    around = counts[max(0, place - _NEIGHBOURS) : place + _NEIGHBOURS + 1]
    beside = (around.sum() - counts[place]) / max(1, around.size - 1)
    return int(greys[place]), int(counts[place]) if counts[place] >= _PROMINENCE * beside else 0


def _shrunk(mask: NDArray[np.bool_], *, rim: float) -> NDArray[np.bool_]:
    """The mask without its outermost `rim` pixels, also where the film ends: scanners leave black borders there."""
    size = 2 * round(rim) + 1
    shrunk = mask.view(np.uint8)
    for axis in (0, 1):
        shrunk = ndimage.minimum_filter1d(shrunk, size, axis=axis, mode="constant", cval=0)
    return shrunk.view(bool)
