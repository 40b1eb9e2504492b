"""Finds text and markers that lie over the breast, where no mask can take them away; called by channels.

Drawn letters have what tissue has not: edges of one or two pixels, as high as half the film's contrast, whose bright
(or dark) side is everywhere the *same* grey. A skin line or a calcification is as steep in places, but its greys are
spread. So the length of steep edge that one grey explains is measured, in millimetres. On 240 films of mini-MIAS, eight
of CBIS-DDSM and two others it is at most 16 mm; on the same films with four letters of 5 mm it is 28 to 82 mm.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from shared_model.imaging.reasons import refuse

_STEEP = 0.4  # of the breast's own contrast, between pixels two apart
_LEAST_MM = 20.0  # of edge: three letters; a lead pellet on the skin has 6
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
    length = max(text_length_mm(pixels_HW, mask_HW, spacing_mm=spacing_mm))
    if length >= _LEAST_MM:
        raise refuse("text_in_breast", found=f"{length:.0f} mm of sharp edges of one grey",
                     expected=f"below {_LEAST_MM:.0f} mm")  # fmt: skip


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
    least = max(4, int(_STEEP * (high - low)))
    inner = _shrunk(mask, rim=_RIM_MM / spacing_mm)
    bright: list[NDArray[np.uint16]] = []
    dark: list[NDArray[np.uint16]] = []
    for here, there in (((slice(None, -2),), (slice(2, None),)),
                        ((slice(None), slice(None, -2)), (slice(None), slice(2, None)))):  # fmt: skip
        upper, lower = np.maximum(greys[here], greys[there]), np.minimum(greys[here], greys[there])
        steep = (upper - lower >= least) & mask[here] & mask[there]
        bright.append(upper[steep])
        dark.append(lower[steep & inner[here] & inner[there]])
    step = max(1, int((high - low) / _GREYS))
    # A step of one pixel is seen by two pairs, hence the half.
    return _one_grey(bright, step) * spacing_mm / 2, _one_grey(dark, step) * spacing_mm / 2


def _one_grey(values: list[NDArray[np.uint16]], step: int) -> int:
    """How many values the commonest grey has, 0 where the greys beside it have as many."""
    counts = np.bincount(np.concatenate(values) // np.uint16(step))
    if counts.size == 0:
        return 0
    grey = int(counts.argmax())
    around = counts[max(0, grey - _NEIGHBOURS) : grey + _NEIGHBOURS + 1]
    beside = (around.sum() - counts[grey]) / (2 * _NEIGHBOURS)
    return int(counts[grey]) if counts[grey] >= _PROMINENCE * beside else 0


def _shrunk(mask: NDArray[np.bool_], *, rim: float) -> NDArray[np.bool_]:
    """The mask without its outermost `rim` pixels, also where the film ends: scanners leave black borders there."""
    size = 2 * round(rim) + 1
    shrunk = mask.view(np.uint8)
    for axis in (0, 1):
        shrunk = ndimage.minimum_filter1d(shrunk, size, axis=axis, mode="constant", cval=0)
    return shrunk.view(bool)
