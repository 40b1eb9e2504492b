"""Lossless pixel encodings of DICOM that a synthetic film can be stored in; called by dicom_mg."""

from __future__ import annotations

import struct

import jpeg_ls
import numpy as np
from numpy.typing import NDArray

from simulations.population.specs import Syntax

TRANSFER_SYNTAXES: dict[Syntax, str] = {
    "explicit": "1.2.840.10008.1.2.1",
    "implicit": "1.2.840.10008.1.2",
    "rle": "1.2.840.10008.1.2.5",
    "jpegls": "1.2.840.10008.1.2.4.80",
}
ENCAPSULATED: frozenset[Syntax] = frozenset({"rle", "jpegls"})


def encode_pixels(pixels: NDArray[np.uint16], syntax: Syntax) -> bytes:
    """The value of Pixel Data (7FE0,0010): native little endian, or one encapsulated frame (PS3.5 A.4)."""
    if syntax not in ENCAPSULATED:
        return pixels.astype("<u2").tobytes()
    frame = _rle(pixels) if syntax == "rle" else bytes(jpeg_ls.encode_array(pixels))
    frame += b"\0" * (len(frame) % 2)
    return b"".join(
        (
            struct.pack("<HHI", 0xFFFE, 0xE000, 0),  # empty basic offset table
            struct.pack("<HHI", 0xFFFE, 0xE000, len(frame)),
            frame,
            struct.pack("<HHI", 0xFFFE, 0xE0DD, 0),
        )
    )


def _rle(pixels: NDArray[np.uint16]) -> bytes:
    """One RLE frame (PS3.5 annex G): most significant byte plane first, rows coded one by one."""
    planes = [_pack((pixels >> shift).astype(np.uint8)) for shift in (8, 0)]
    offsets = [64, 64 + len(planes[0])]
    return struct.pack("<16I", 2, *offsets, *[0] * 13) + b"".join(planes)


def _pack(plane: NDArray[np.uint8]) -> bytes:
    """PackBits of each row: the runs of equal bytes at both ends as replicates, what is between as literals.

    Films are air at one or both ends of a row; runs within tissue are too short to be worth the search.
    """
    parts: list[bytes] = []
    columns = plane.shape[1]
    changed = np.ones(plane.shape, bool)  # True at the last pixel of a run
    changed[:, :-1] = plane[:, 1:] != plane[:, :-1]
    head = changed.argmax(axis=1) + 1
    changed[:, -1] = False
    tail = np.where(head == columns, 0, changed[:, ::-1].argmax(axis=1))
    for row, first, last in zip(plane, head.tolist(), tail.tolist(), strict=True):
        data = row.tobytes()
        parts += _replicate(data[0], first)
        middle = data[first : columns - last]
        parts += [bytes((min(128, len(middle) - i) - 1,)) + middle[i : i + 128] for i in range(0, len(middle), 128)]
        if last:
            parts += _replicate(data[-1], last)
    packed = b"".join(parts)
    return packed + b"\0" * (len(packed) % 2)


def _replicate(value: int, count: int) -> list[bytes]:
    """A run of equal bytes, at most 128 a piece; a single one as a literal."""
    pieces = []
    while count:
        n = min(count, 128)
        pieces.append(bytes((0, value)) if n == 1 else bytes((257 - n, value)))
        count -= n
    return pieces
