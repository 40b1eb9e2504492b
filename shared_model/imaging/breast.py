"""Finds the breast in a film: mask, side of the chest wall, polarity check; called by channels.

Works on a thumbnail of at most 512 pixels: labels and scan marks are large, and the mask's edge needs no more than
half a millimetre. The largest connected component is the breast, so whatever stands apart from it goes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from shared_model.imaging.reasons import refuse

_THUMBNAIL = 512
_NOISE_SIGMAS = 6.0  # tissue is this many robust standard deviations above the air
_STEP_RANGE = (0.04, 0.10)  # within these shares of the film's grey range: less is scanner haze, more would cut fat off
_LEAST_SHARE, _GREATEST_SHARE = 0.02, 0.97
_FRAME_MM = 3.0  # half the thickness of what an opening removes: scan frames and label strips are 2 to 5 mm thick


@dataclass(frozen=True)
class Breast:
    """Where the breast is. mask_HW: bool, at native resolution. chest_left: True if the chest wall is on the left."""

    mask_HW: NDArray[np.bool_]
    chest_left: bool


def find_breast(
    pixels_HW: NDArray[np.uint16],
    *,
    spacing_mm: float,
    padding: tuple[int, int] | None,
    chest_left: bool | None,
) -> Breast:
    """Mask the breast in canonical greys (more is brighter tissue).

    Args:
        spacing_mm: native distance of pixels, millimetres.
        padding: greys that are no picture, or None.
        chest_left: what the header says about the chest wall, or None where it says nothing.

    Raises:
        ImagingError: constant_pixels, inverted, no_breast, orientation_conflict, no_orientation.
    """
    step = max(1, -(-max(pixels_HW.shape) // _THUMBNAIL))
    thumb = _thumbnail(pixels_HW, step)
    frame = max(1, round(_FRAME_MM / (spacing_mm * step)))
    tissue = thumb > _threshold(thumb, inset=2 * frame + 1)
    if padding is not None:
        tissue &= (thumb < padding[0]) | (thumb > padding[1])
    mask = _largest_component(tissue, radius=frame)
    share = float(mask.mean())
    if not _LEAST_SHARE <= share <= _GREATEST_SHARE:
        raise refuse("no_breast", found=f"{share:.0%} of the film", expected="2 % to 97 %")
    side = _chest_side(mask, chest_left)
    return Breast(_enlarge(mask, step, pixels_HW.shape), side)


def _thumbnail(pixels_HW: NDArray[np.uint16], step: int) -> NDArray[np.float32]:
    """Mean of up to nine places in each cell of step x step pixels; a full mean would cost more than the decoding."""
    if step == 1:
        return pixels_HW.astype(np.float32)
    height, width = (size // step * step for size in pixels_HW.shape)
    places = sorted({step // 6, step // 2, step - 1 - step // 6})
    total = np.zeros((height // step, width // step), np.float32)
    for row in places:
        for column in places:
            total += pixels_HW[row:height:step, column:width:step]
    total /= len(places) ** 2
    return total


def _threshold(thumb: NDArray[np.float32], *, inset: int) -> float:
    """Grey above which there is tissue, from the air around the breast.

    inset: thumbnail pixels from the rim to a second ring, inside of what a scanner's frame may cover. The darkest
    quarter of both rings is air: of the rim where there is no frame, of the inner ring where there is one.
    """
    flat = np.sort(thumb, axis=None)
    low, high = float(flat[flat.size // 200]), float(flat[-1 - flat.size // 200])
    if flat[0] == flat[-1]:
        raise refuse("constant_pixels", found="one grey")
    if low == high:
        raise refuse("no_breast", found="less than 1 % of the film differs")
    rim = _ring(thumb, 0)
    # In a negative the air is at the top of the range, on the rim and over a fifth of the film at the least.
    if min(float(np.median(rim)), float(flat[flat.size * 4 // 5])) > low + 0.9 * (high - low):
        raise refuse("inverted", found="bright air around the breast", expected="dark air")
    rings = np.sort(np.concatenate([rim, _ring(thumb, inset)]))
    air = rings[: rings.size // 4]
    middle = float(air[air.size // 2])
    spread = 1.4826 * float(np.median(np.abs(air - middle)))
    least, greatest = (share * (high - low) for share in _STEP_RANGE)
    return middle + min(max(_NOISE_SIGMAS * spread, least), greatest)


def _ring(thumb: NDArray[np.float32], inset: int) -> NDArray[np.float32]:
    """Two pixels wide, `inset` pixels inside the film."""
    depth = min(inset, min(thumb.shape) // 4)
    part = thumb[depth : thumb.shape[0] - depth, depth : thumb.shape[1] - depth]
    return np.concatenate([part[:2].ravel(), part[-2:].ravel(), part[2:-2, :2].ravel(), part[2:-2, -2:].ravel()])


def _largest_component(tissue: NDArray[np.bool_], *, radius: int) -> NDArray[np.bool_]:
    """Largest component after an opening, which cuts off scan frames and bridges to labels; its holes are filled.

    radius: thumbnail pixels. Beyond the film counts as air, so a bright strip along the film's rim goes too.
    """
    size = 2 * radius + 1
    core = tissue.view(np.uint8)
    for axis in (0, 1):
        core = ndimage.minimum_filter1d(core, size, axis=axis, mode="constant", cval=0)
    labels, count = ndimage.label(core)
    if count == 0:
        raise refuse("no_breast", found="no tissue")
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    grown = (labels == int(sizes.argmax())).view(np.uint8)
    for axis in (0, 1):  # one pixel more than was taken, within the tissue: gives thin skin folds and the nipple back
        grown = ndimage.maximum_filter1d(grown, size + 2, axis=axis, mode="constant", cval=0)
    breast = tissue & grown.view(bool)
    outside, count = ndimage.label(~breast)
    reaches_rim = np.zeros(count + 1, bool)
    for edge in (outside[0], outside[-1], outside[:, 0], outside[:, -1]):
        reaches_rim[edge] = True
    reaches_rim[0] = False
    return ~reaches_rim[outside]


def _chest_side(mask: NDArray[np.bool_], chest_left: bool | None) -> bool:
    """True if the chest wall is left: there the breast is tall, at the nipple it is narrow."""
    columns = np.flatnonzero(mask.any(axis=0))
    heights = mask[:, columns[0] : columns[-1] + 1].sum(axis=0)
    part = max(1, heights.size // 10)
    left, right = float(heights[:part].mean()), float(heights[-part:].mean())
    if chest_left is None:
        if max(left, right) < 1.2 * min(left, right):
            raise refuse("no_orientation", found=f"{left:.0f} against {right:.0f} rows of breast at both sides")
        return left > right
    here, there = (left, right) if chest_left else (right, left)
    if there > 2.0 * here:
        raise refuse("orientation_conflict", found="the breast is wider at the other side")
    return chest_left


def _enlarge(mask: NDArray[np.bool_], step: int, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    if step == 1:
        return mask
    rows = np.minimum(np.arange(shape[0]) // step, mask.shape[0] - 1)
    columns = np.minimum(np.arange(shape[1]) // step, mask.shape[1] - 1)
    enlarged: NDArray[np.bool_] = mask[rows[:, None], columns[None, :]]
    return enlarged
