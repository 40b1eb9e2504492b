"""Decodes the one frame of an admitted film; called by view. Nothing is decoded whose size the header did not announce.

A codestream states its own size, apart from the header's Rows and Columns. It is read and compared *before* a decoder
sees it, because decoders allocate by it. Decoders: RLE in Python (bounded), gdcm (JPEG lossless), CharLS (JPEG-LS),
OpenJPEG (JPEG 2000).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.encaps import generate_fragments
from pydicom.uid import (
    JPEG2000,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from shared_model.errors import ImagingError
from shared_model.imaging.header import NATIVE, FilmFile
from shared_model.imaging.reasons import refuse

_RLE = str(RLELossless)
_SOF_MARKERS = frozenset({0xC3, 0xF7})  # start of frame: JPEG lossless (ITU T.81), JPEG-LS (ITU T.87)
_J2K_START = b"\xff\x4f\xff\x51"  # SOC and SIZ (ITU T.800 A.4.1, A.5.1)


def decode(film: FilmFile, *, rows: int, columns: int) -> NDArray[np.uint16]:
    """Pixels [rows, columns] as the raw 16-bit cells of the file (sign and unused bits not yet interpreted).

    Raises:
        ImagingError: truncated, codestream_mismatch, undecodable, unsupported_bits.
    """
    offset, length = film.pixel_element()
    wide = film.header.integer("BitsAllocated") == 16
    if film.transfer_syntax in NATIVE:
        count = rows * columns * (2 if wide else 1)
        if length is None or length < count or offset + count > len(film.data):
            present = max(0, len(film.data) - offset)
            raise refuse("truncated", found=f"{present} bytes of pixels", expected=f"{count} bytes")
        flat = np.frombuffer(film.data, "<u2" if wide else "u1", rows * columns, offset)
        return flat.reshape(rows, columns).astype(np.uint16, copy=False)
    if length is not None:
        raise refuse("undecodable", found="compressed pixels outside an encapsulated element")
    codestream = _codestream(film.data, offset)
    if film.transfer_syntax != _RLE and not codestream.endswith((b"\xff\xd9", b"\xff\xd9\0")):
        # OpenJPEG would show the part that is there, and CharLS reads on past the end (measured: 10 s for 1 KB).
        raise refuse("truncated", found="no end mark in the compressed image")
    try:
        return _DECODERS[film.transfer_syntax](codestream, rows, columns, wide)
    except ImagingError:
        raise
    except Exception as error:  # codecs raise their own and bare types; all of them mean the same to the site
        raise refuse("undecodable", found=type(error).__name__) from None


def check_whole(cells_HW: NDArray[np.uint16]) -> None:
    """Refuse a picture that stops in the middle of a row: what was cut off on the way has been filled up with one grey.

    A collimated film ends at a row's end, and air at the bottom of a film is as dark as what comes before it.

    Raises:
        ImagingError: truncated.
    """
    flat = cells_HW.reshape(-1)
    columns = cells_HW.shape[1]
    if flat[-1] != flat[-1 - columns // 4] or not (flat[-2 * columns :] == flat[-1]).all():
        return  # most films end here: their last rows are not of one grey
    rows = np.flatnonzero((cells_HW != flat[-1]).any(axis=1))
    last = int(rows[-1]) if rows.size else 0
    if not 1 <= last < cells_HW.shape[0] - max(2, cells_HW.shape[0] // 50):
        return
    cut = int(np.flatnonzero(cells_HW[last] != flat[-1])[-1]) + 1
    above, here = cells_HW[last - 1], cells_HW[last, :cut]
    # Up to the cut this row goes on as the one above, which itself goes on beyond it, across a good part of the film.
    if np.count_nonzero(here != flat[-1]) > columns // 4 < np.count_nonzero(above[cut:] != flat[-1]):
        raise refuse("truncated", found=f"one grey from row {last} on", expected=f"{cells_HW.shape[0]} rows")


def _codestream(data: bytes, offset: int) -> bytes:
    """The only frame: its fragments joined, without the basic offset table (PS3.5 A.4)."""
    stream = BytesIO(data)
    stream.seek(offset)
    try:
        fragments = list(generate_fragments(stream))
    except Exception as error:
        raise refuse("truncated", found=f"damaged fragments ({type(error).__name__})") from None
    if len(fragments) < 2:
        raise refuse("truncated", found="no pixel fragment")
    return b"".join(fragments[1:])


def _rle(code: bytes, rows: int, columns: int, wide: bool) -> NDArray[np.uint16]:
    """PackBits by byte plane, most significant first (PS3.5 Annex G)."""
    planes = 2 if wide else 1
    if len(code) < 64:
        raise refuse("truncated", found="no RLE header")
    count, *offsets = struct.unpack_from("<16L", code)
    if count != planes:
        raise refuse("codestream_mismatch", found=f"{count} RLE segments", expected=f"{planes}")
    ends = [*offsets[1:planes], len(code)]
    pixels = np.zeros(rows * columns, np.uint16)
    for start, end in zip(offsets[:planes], ends, strict=True):
        plane = np.frombuffer(_unpack_bits(code[start:end], rows * columns), np.uint8)
        pixels = (pixels << np.uint16(8)) | plane
    return pixels.reshape(rows, columns)


def _unpack_bits(code: bytes, size: int) -> bytes:
    """Exactly `size` bytes. pydicom's own decoder has no end: 128 bytes for every two of the file."""
    out = bytearray()
    position, end = 0, len(code)
    while position + 1 < end and len(out) < size:
        control = code[position]
        if control < 128:
            out += code[position + 1 : position + control + 2]
            position += control + 2
        elif control > 128:
            out += code[position + 1 : position + 2] * (257 - control)
            position += 2
        else:
            position += 1
    if len(out) < size:
        raise refuse("truncated", found=f"{len(out)} bytes in an RLE segment", expected=f"{size}")
    return bytes(out[:size])


def _check_frame(found: tuple[int, int, int, int], rows: int, columns: int, wide: bool) -> None:
    height, width, components, precision = found
    if (height, width, components) != (rows, columns, 1) or not 2 <= precision <= (16 if wide else 8):
        raise refuse("codestream_mismatch", found=f"{height} x {width} x {components}, {precision} bits",
                     expected=f"{rows} x {columns} x 1")  # fmt: skip


def _jpeg_frame(code: bytes) -> tuple[int, int, int, int]:
    """(height, width, components, precision) of the start-of-frame segment (ITU T.81 B.2.2)."""
    position = 2
    if code[:2] != b"\xff\xd8":
        raise refuse("undecodable", found="no JPEG start of image")
    while position + 4 <= len(code):
        mark, kind, length = struct.unpack_from(">BBH", code, position)
        if mark != 0xFF:
            break
        if kind == 0xFF:  # fill byte
            position += 1
            continue
        if kind in _SOF_MARKERS and position + 10 <= len(code):
            precision, height, width, components = struct.unpack_from(">BHHB", code, position + 4)
            return height, width, components, precision
        position += 2 + length
    raise refuse("undecodable", found="no lossless frame header")


def _jpeg_lossless(code: bytes, rows: int, columns: int, wide: bool) -> NDArray[np.uint16]:
    import gdcm  # loaded where needed: it is large, and many sites never see this syntax

    _check_frame(_jpeg_frame(code), rows, columns, wide)
    precision = _jpeg_frame(code)[3]
    allocated = 16 if wide else 8
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(code)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((columns, rows, 1))
    image.SetDataElement(element)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14))
    image.SetPixelFormat(gdcm.PixelFormat(1, allocated, precision, precision - 1, 0))
    buffer = image.GetBuffer().encode("utf-8", "surrogateescape")  # gdcm hands its char* over as str
    return _cells(buffer, rows, columns, allocated)


def _jpeg_ls(code: bytes, rows: int, columns: int, wide: bool) -> NDArray[np.uint16]:
    import jpeg_ls

    _check_frame(_jpeg_frame(code), rows, columns, wide)
    buffer, info = jpeg_ls.decode_pixel_data(code)
    return _cells(buffer, rows, columns, 8 if info["bits_per_sample"] <= 8 else 16)


def _jpeg_2000(code: bytes, rows: int, columns: int, wide: bool) -> NDArray[np.uint16]:
    from openjpeg.utils import decode_pixel_data

    # Older files wrap the codestream in a JP2 box, which PS3.5 A.4.4 forbids; the codestream is what counts.
    start = code.find(_J2K_START, 0, 4096)
    if start < 0 or len(code) < start + 43:
        raise refuse("undecodable", found="no JPEG 2000 codestream")
    width, height, left, top = struct.unpack_from(">4L", code, start + 8)
    components, depth = struct.unpack_from(">HB", code, start + 40)
    precision = (depth & 0x7F) + 1
    _check_frame((height - top, width - left, components, precision), rows, columns, wide)
    if code[start + 43 : start + 45] != b"\x01\x01":
        raise refuse("codestream_mismatch", found="subsampled component")
    buffer = decode_pixel_data(code[start:], version=2)
    cells = _cells(buffer, rows, columns, 8 if precision <= 8 else 16)
    if depth & 0x80 and precision <= 8:  # a signed byte becomes a signed 16-bit cell
        return cells.astype(np.uint8).view(np.int8).astype(np.int16).view(np.uint16)
    return cells


def _cells(buffer: Any, rows: int, columns: int, bits: int) -> NDArray[np.uint16]:
    cells = np.frombuffer(buffer, "<u2" if bits == 16 else "u1")
    if cells.size < rows * columns:
        raise refuse("truncated", found=f"{cells.size} decoded pixels", expected=f"{rows * columns}")
    return cells[: rows * columns].reshape(rows, columns).astype(np.uint16, copy=False)


_DECODERS: dict[str, Callable[[bytes, int, int, bool], NDArray[np.uint16]]] = {
    _RLE: _rle,
    str(JPEGLossless): _jpeg_lossless,
    str(JPEGLosslessSV1): _jpeg_lossless,
    str(JPEGLSLossless): _jpeg_ls,
    str(JPEGLSNearLossless): _jpeg_ls,
    str(JPEG2000Lossless): _jpeg_2000,
    str(JPEG2000): _jpeg_2000,
}
