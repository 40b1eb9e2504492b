"""Reads one grey PNG or PGM file into pixels, bounded by its header before anything is decoded; called by public.

PGM is parsed here (Netpbm's binary form, https://netpbm.sourceforge.net/doc/pgm.html). PNG (ISO/IEC 15948) is decoded
by Pillow after its IHDR chunk was read here, so an image that claims more pixels than allowed is refused, not inflated.
"""

from __future__ import annotations

import re
import stat
import struct
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared_model.errors import CohortError

_PGM_HEADER = re.compile(rb"P5(?:\s+(?:#[^\n]*\n\s*)*)(\d{1,9})(?:\s+(?:#[^\n]*\n\s*)*)(\d{1,9})"
                         rb"(?:\s+(?:#[^\n]*\n\s*)*)(\d{1,9})\s")  # fmt: skip
_PGM_HEADER_BYTES = 4096  # of comments and numbers; the originals have 15
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY = 0  # colour type of a PNG
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, zlib.error, struct.error, Image.DecompressionBombError)


@dataclass(frozen=True)
class GreyImage:
    """pixels_HW: uint8 or uint16. bits: that the greatest possible grey needs, 8..16."""

    pixels_HW: NDArray[np.uint8] | NDArray[np.uint16]
    bits: int


def is_grey_image(path: Path) -> bool:
    """Whether the name says PNG or PGM."""
    return path.suffix.lower() in (".png", ".pgm")


def read_grey(path: Path, *, max_pixels: int, max_bytes: int) -> GreyImage:
    """Read one image.

    Raises:
        CohortError: unreadable, too large, truncated, damaged, or no 8- or 16-bit grey PNG or binary PGM.
    """
    data = _bytes(path, max_bytes)
    if data.startswith(_PNG_SIGNATURE):
        return _png(path, data, max_pixels)
    if data.startswith(b"P5"):
        return _pgm(path, data, max_pixels)
    raise CohortError(f"{path} is neither PNG nor binary PGM", found=f"{len(data)} bytes of another kind",
                      expected="a PNG signature, or P5", remedy="convert it to a grey PNG of 8 or 16 bits")  # fmt: skip


def _bytes(path: Path, max_bytes: int) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise CohortError(f"{path} is no regular file", remedy="give the path of an image")
        with path.open("rb") as stream:
            data = stream.read(max_bytes + 1)
    except OSError as error:
        raise CohortError(f"{path} cannot be read: {error.strerror}", remedy="check the path and permissions") from None
    if len(data) > max_bytes:
        raise CohortError(f"{path} is too large", expected=f"at most {max_bytes} bytes (imaging.max_bytes)")
    return data


def _check_size(path: Path, height: int, width: int, max_pixels: int) -> None:
    if not (height and width) or height * width > max_pixels:
        raise CohortError(f"{path}: impossible size in its header", found=f"{width} x {height} pixels",
                          expected=f"1 to {max_pixels} pixels (imaging.max_pixels)",
                          remedy="check the file; raise imaging.max_pixels if the film is genuine")  # fmt: skip


def _pgm(path: Path, data: bytes, max_pixels: int) -> GreyImage:
    header = _PGM_HEADER.match(data[:_PGM_HEADER_BYTES])
    if header is None:
        raise CohortError(f"{path}: the PGM header cannot be read", expected="P5, width, height, greatest grey")
    width, height, greatest = (int(number) for number in header.groups())
    _check_size(path, height, width, max_pixels)
    if not 1 <= greatest <= 65535:
        raise CohortError(f"{path}: impossible greatest grey in the PGM header", found=greatest, expected="1 to 65535")
    cell = np.dtype("u1") if greatest < 256 else np.dtype(">u2")
    if len(data) - header.end() < height * width * cell.itemsize:
        raise CohortError(f"{path} ends before its pixels do", found=f"{len(data) - header.end()} bytes of pixels",
                          expected=f"{height * width * cell.itemsize}", remedy="copy or download it again")  # fmt: skip
    pixels = np.frombuffer(data, cell, count=height * width, offset=header.end()).reshape(height, width)
    if int(pixels.max()) > greatest:
        raise CohortError(f"{path}: a pixel is greater than the PGM header allows", expected=f"at most {greatest}")
    return _image(pixels, cell.itemsize, bits=max(8, greatest.bit_length()))


def _png(path: Path, data: bytes, max_pixels: int) -> GreyImage:
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise CohortError(f"{path}: the PNG header cannot be read", remedy="copy or download it again")
    width, height, bits, colour, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    _check_size(path, height, width, max_pixels)
    if colour != _GREY or bits not in (8, 16) or interlaced:
        raise CohortError(f"{path}: not a grey image of 8 or 16 bits",
                          found=f"colour type {colour}, {bits} bits, interlaced {interlaced}",
                          expected="colour type 0 with 8 or 16 bits, not interlaced",
                          remedy="export the original, not a screen capture")  # fmt: skip
    if not _is_whole(data, height * (1 + width * bits // 8)):
        raise CohortError(f"{path}: the PNG ends before its pixels do, or is damaged",
                          remedy="copy or download it again")  # fmt: skip
    try:
        with Image.open(BytesIO(data), formats=["PNG"]) as image:
            pixels = np.asarray(image)
    except _DAMAGED as error:
        raise CohortError(f"{path}: the PNG cannot be decoded ({type(error).__name__})",
                          remedy="copy or download it again") from None  # fmt: skip
    if pixels.shape != (height, width):
        raise CohortError(f"{path}: not one grey a pixel", found=pixels.shape, expected=(height, width))
    return _image(pixels, bits // 8, bits=bits)


def _is_whole(data: bytes, expected: int) -> bool:
    """Whether the IDAT chunks hold `expected` bytes of filtered rows; Pillow would fill the rest with air and say
    nothing. Never inflates more than one byte beyond them."""
    inflater, found, at = zlib.decompressobj(), 0, len(_PNG_SIGNATURE)
    while at + 12 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        if kind == b"IDAT":
            try:
                found += len(inflater.decompress(data[at + 8 : at + 8 + length], expected + 1 - found))
            except zlib.error:
                return False
            if found > expected:
                return False
        at += 12 + length
    return found == expected


def _image(pixels: NDArray[Any], cell_bytes: int, *, bits: int) -> GreyImage:
    return GreyImage(pixels.astype(np.uint8) if cell_bytes == 1 else pixels.astype(np.uint16), bits)
