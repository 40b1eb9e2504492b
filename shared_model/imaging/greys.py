"""Turns stored pixels into canonical greys and their brightness table; called by view after decoding.

A canonical grey is an unsigned integer 0..M with M = 2^BitsStored - 1 in which *more is brighter tissue*: signed pixels
are shifted, and MONOCHROME1 is mirrored (M - x) at once, on integers, so a film and its inverse give the same bits. The
modality and VOI transforms then are one table over 0..M, however many pixels the film has.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from shared_model.errors import ImagingError
from shared_model.imaging.header import Header
from shared_model.imaging.reasons import refuse

_DESCRIPTOR, _LUT_DATA = 0x00283002, 0x00283006


@dataclass(frozen=True)
class Greys:
    """A film in canonical greys.

    pixels_HW: uint16 in 0..M. brightness: float64 [M + 1] in [0, 1], what VOI shows for each grey.
    padding: (low, high) canonical greys that are no picture (PS3.3 C.7.5.1.1.2), or None.
    """

    pixels_HW: NDArray[np.uint16]
    brightness: NDArray[np.float64]
    padding: tuple[int, int] | None


def canonical(cells_HW: NDArray[np.uint16], header: Header) -> Greys:
    """Interpret raw cells [H, W] by the header.

    Raises:
        ImagingError: damaged_lut, damaged_header.
    """
    stored = header.integer("BitsStored")
    shift = header.integer("HighBit", stored - 1) - stored + 1
    signed = header.integer("PixelRepresentation", 0) == 1
    inverted = header.text("PhotometricInterpretation") == "MONOCHROME1"
    top = (1 << stored) - 1
    # Two's complement cells become 0..M by flipping the sign bit; overlay bits above BitsStored fall away.
    flip = (1 << (stored - 1) if signed else 0) ^ (top if inverted else 0)
    pixels = ((cells_HW >> np.uint16(shift) if shift else cells_HW) & np.uint16(top)) ^ np.uint16(flip)
    lowest = -(1 << (stored - 1)) if signed else 0
    brightness = _brightness(header, lowest=lowest, top=top, inverted=inverted)
    return Greys(pixels, brightness, _padding(header, top=top, flip=flip))


def _padding(header: Header, *, top: int, flip: int) -> tuple[int, int] | None:
    if "PixelPaddingValue" not in header:
        return None
    value = header.integer("PixelPaddingValue")
    limit = header.integer("PixelPaddingRangeLimit", value)
    ends = sorted(((value & top) ^ flip, (limit & top) ^ flip))
    return ends[0], ends[1]


def _brightness(header: Header, *, lowest: int, top: int, inverted: bool) -> NDArray[np.float64]:
    """What the film shows for each canonical grey, in [0, 1] (PS3.3 C.11.1, C.11.2).

    For MONOCHROME1 the shown value is one minus the VOI output of the stored value x. With x = K - y, where y is the
    canonical grey after rescale and K the sum of both ends, a mirrored window says the same exactly: centre K - c (for
    LINEAR K + 1 - c, because of its half-pixel offsets). So both polarities run through the same arithmetic.
    """
    try:
        if header.items("ModalityLUTSequence") or header.items("VOILUTSequence"):
            return _by_tables(header, lowest=lowest, top=top, inverted=inverted)
        slope, intercept = _rescale(header)
        centre, width, kind = _window(header)
    except ImagingError:
        raise
    except Exception as error:  # a damaged sequence or table fails in many ways inside pydicom
        raise refuse("damaged_lut", found=type(error).__name__) from None
    values = np.arange(top + 1, dtype=np.float64) * slope + (lowest * slope + intercept)
    if width is None:
        span = values[-1] - values[0]
        shown: NDArray[np.float64] = (values - values[0]) / span
        return shown
    if inverted:
        mirror = (2 * lowest + top) * slope + 2 * intercept
        centre = mirror - centre + (1.0 if kind == "LINEAR" else 0.0)
    return _apply_window(values, centre, width, kind)


def _apply_window(values: NDArray[np.float64], centre: float, width: float, kind: str) -> NDArray[np.float64]:
    """PS3.3 C.11.2.1.2 (LINEAR) and C.11.2.1.3 (LINEAR_EXACT, SIGMOID), output range [0, 1]."""
    if kind == "SIGMOID":
        return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - centre) / width, -700.0, 700.0)))
    if kind == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0.0, 1.0)
    if width == 1.0:
        return (values > centre - 0.5).astype(np.float64)
    return np.clip((values - (centre - 0.5)) / (width - 1.0) + 0.5, 0.0, 1.0)


def _rescale(header: Header) -> tuple[float, float]:
    slope, intercept = header.numbers("RescaleSlope") or [1.0], header.numbers("RescaleIntercept") or [0.0]
    if not (0.0 < slope[0] < 1e9) or not abs(intercept[0]) < 1e9:
        found = f"rescale slope {slope[0]:g}, intercept {intercept[0]:g}"
        raise refuse("damaged_lut", found=found, expected="slope > 0")
    return slope[0], intercept[0]


def _window(header: Header) -> tuple[float, float | None, str]:
    """First window (the maker's default; the others are a reader's choice), or width None when there is none."""
    centres, widths = header.numbers("WindowCenter"), header.numbers("WindowWidth")
    if not centres or not widths:
        return 0.0, None, "LINEAR"
    kind = header.text("VOILUTFunction") or "LINEAR"
    least = 1.0 if kind == "LINEAR" else 1e-9
    if kind not in ("LINEAR", "LINEAR_EXACT", "SIGMOID") or not least <= widths[0] < 1e9 or not abs(centres[0]) < 1e9:
        raise refuse("damaged_lut", found=f"window {centres[0]:g} / {widths[0]:g}", expected="a positive width")
    return centres[0], widths[0], kind


def _by_tables(header: Header, *, lowest: int, top: int, inverted: bool) -> NDArray[np.float64]:
    """Brightness where a modality or VOI table is in the header; the table stands before a window (C.11.2.1.1)."""
    values = np.arange(lowest, lowest + top + 1, dtype=np.float64)  # stored values
    modality, voi = header.items("ModalityLUTSequence"), header.items("VOILUTSequence")
    if modality:
        values = _look_up(modality[0], values, signed=lowest < 0)[0]
    else:
        slope, intercept = _rescale(header)
        values = values * slope + intercept
    if voi:
        table, peak = _look_up(voi[0], values, signed=bool(values.min() < 0))
        # Mirrored before the division, so that a film and its inverse give the same bits.
        return (peak - table[::-1]) / peak if inverted else table / peak
    centre, width, kind = _window(header)
    span = max(values.max() - values.min(), 1.0)
    shown = (values - values.min()) / span if width is None else _apply_window(values, centre, width, kind)
    return np.ascontiguousarray(1.0 - shown[::-1]) if inverted else shown


def _look_up(item: Dataset, values: NDArray[np.float64], *, signed: bool) -> tuple[NDArray[np.float64], float]:
    """Values mapped through a table (C.11.1.1) and the table's greatest possible entry."""
    count, first, bits = (int(number) for number in item[_DESCRIPTOR].value)
    count = count or 1 << 16
    if signed and first >= 1 << 15:
        first -= 1 << 16
    data = item[_LUT_DATA].value
    if isinstance(data, bytes):
        wide = len(data) >= 2 * count
        entries = np.frombuffer(BytesIO(data).getvalue(), "<u2" if wide else "u1")
    else:
        entries = np.asarray(data, dtype=np.float64)
    if not 8 <= bits <= 16 or entries.size < count or entries.max(initial=0) >= 1 << bits:
        raise refuse("damaged_lut", found=f"{entries.size} entries of {bits} bits", expected=f"{count} entries")
    index = np.clip(values - first, 0, count - 1).astype(np.int64)
    return entries[:count].astype(np.float64)[index], float((1 << bits) - 1)
