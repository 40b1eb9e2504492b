"""Pixel Data as it is stored of a received film: the picture's own cells and no others; called by deidentifier."""

from __future__ import annotations

import struct

import numpy as np
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from client.ingest.deidentify.values import integer, texts
from shared_model.imaging.admission import FOR_PRESENTATION, SECONDARY_CAPTURE
from shared_model.imaging.header import NATIVE, SYNTAXES, TAGS
from shared_model.imaging.vocabulary import number

_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"  # PS3.5 A.4, little endian
_J2K_START = b"\xff\x4f\xff\x51"  # SOC and SIZ (ITU T.800 A.4.1, A.5.1)
_HEADER_ENDS = frozenset({0xDA, 0xD9, 0x90, 0x93})  # SOS, EOI; SOT, SOD
_TELLING = ("Modality", "SOPClassUID", "PhotometricInterpretation", "NumberOfFrames")


def own_pixels(ds: Dataset, tag: int, *, syntax: str) -> DataElement | None:
    """The element to store, or None where there is none that can be read or its object is refused by the header anyway:
    a report in colour has names in its pixels, and a tomosynthesis has a gigabyte of them.

    Native cells lose what lies above BitsStored, where old machines kept overlays (PS3.5 8.1.1), and what follows the
    last row. Compressed pixels lose the text of their comments and application segments.
    """
    element = ds.get_item(tag)
    value = None if element is None else element.value
    if not isinstance(value, bytes) or (syntax and syntax not in SYNTAXES) or not _may_be_a_view(ds):
        return None
    if syntax in SYNTAXES - NATIVE or (not syntax and value[:4] == b"\xfe\xff\x00\xe0"):
        pixels = DataElement(tag, "OB", _without_comments(value))
        pixels.is_undefined_length = True
        return pixels
    wide = integer(ds, TAGS["BitsAllocated"]) == 16
    return DataElement(tag, "OW" if wide else "OB", _native(ds, value, wide=wide))


def _may_be_a_view(ds: Dataset) -> bool:
    """By what admission refuses in any case: modality, class, colour, frames."""
    said = {name: (texts(ds, TAGS[name]) or [""])[0] for name in _TELLING}
    return (
        said["Modality"] == "MG"
        and said["SOPClassUID"] in (FOR_PRESENTATION, SECONDARY_CAPTURE)
        and said["PhotometricInterpretation"] in ("MONOCHROME1", "MONOCHROME2")
        and integer(ds, TAGS["SamplesPerPixel"]) == 1
        and number(said["NumberOfFrames"] or "1") == 1.0
    )


def _without_comments(value: bytes) -> bytes:
    """The same fragments with the texts in the codestream's header blanked, byte for byte, so that nothing moves.

    An encapsulation that is damaged, whose film is refused later, is cut off where it breaks.
    """
    out, places, position = bytearray(value), list[tuple[int, int]](), 0
    while position + 8 <= len(out):
        mark, length = struct.unpack_from("<4sL", out, position)
        if mark != _ITEM or position + 8 + length > len(out):
            break
        places.append((position + 8, position + 8 + length))
        position += 8 + length
    if out[position : position + 4] != _END:
        del out[position:]
    joined = bytearray(b"".join(out[start:end] for start, end in places[1:]))
    _blank(joined)
    taken = 0
    for start, end in places[1:]:
        out[start:end] = joined[taken : taken + end - start]
        taken += end - start
    return bytes(out)


def _blank(code: bytearray) -> None:
    """Blank comments and application segments before the first scan or tile (ITU T.81 B.2.4.5 and 6, T.87, T.800
    A.9.2), and what a JP2 wrapper says before its codestream, which PS3.5 A.4.4 forbids and older files have."""
    jpeg2000 = code.find(_J2K_START, 0, 4096)
    if jpeg2000 < 0 and code[:2] != b"\xff\xd8":
        return  # RLE has no texts
    code[: max(jpeg2000, 0)] = bytes(max(jpeg2000, 0))
    position = max(jpeg2000, 0) + 2
    while position + 4 <= len(code) and code[position] == 0xFF:
        kind, length = code[position + 1], int.from_bytes(code[position + 2 : position + 4], "big")
        if kind in _HEADER_ENDS or length < 2:
            return
        end = min(position + 2 + length, len(code))
        if jpeg2000 >= 0 and kind == 0x64:  # COM, whose first two bytes say what it is written in
            code[position + 6 : end] = bytes(max(0, end - position - 6))
        elif jpeg2000 < 0 and (kind == 0xFE or 0xE0 <= kind <= 0xEF):
            code[position + 4 : end] = bytes(max(0, end - position - 4))
        position = end


def _native(ds: Dataset, value: bytes, *, wide: bool) -> bytes:
    rows, columns = integer(ds, TAGS["Rows"]), integer(ds, TAGS["Columns"])
    stored, high = integer(ds, TAGS["BitsStored"]), integer(ds, TAGS["HighBit"])
    if not rows or not columns or not stored or stored > 16:
        return b""  # refused by its header, whatever the pixels are
    high = stored - 1 if high is None else high
    value = value[: rows * columns * (2 if wide else 1)]
    if not wide or not stored - 1 <= high < 15:
        return value + b"\0" * (len(value) % 2)
    mask = ((1 << stored) - 1) << (high - stored + 1)
    cells = np.frombuffer(value[: len(value) // 2 * 2], "<u2") & np.uint16(mask)
    return cells.tobytes()
