"""Pixel Data as it is stored of a received film: the picture's own cells and no others; called by deidentifier."""

from __future__ import annotations

import numpy as np
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from client.ingest.deidentify.values import integer, texts
from shared_model.imaging.admission import FOR_PRESENTATION, SECONDARY_CAPTURE
from shared_model.imaging.header import NATIVE, SYNTAXES, TAGS
from shared_model.imaging.vocabulary import number

_TELLING = ("Modality", "SOPClassUID", "PhotometricInterpretation", "NumberOfFrames")


def own_pixels(ds: Dataset, tag: int, *, syntax: str) -> DataElement | None:
    """The element to store, or None where there is none that can be read or its object is refused by the header anyway:
    a report in colour has names in its pixels, and a tomosynthesis has a gigabyte of them.

    Native cells lose what lies above BitsStored, where old machines kept overlays (PS3.5 8.1.1), and what follows the
    last row. Compressed pixels are taken as they are.
    """
    element = ds.get_item(tag)
    value = None if element is None else element.value
    if not isinstance(value, bytes) or (syntax and syntax not in SYNTAXES) or not _may_be_a_view(ds):
        return None
    if syntax in SYNTAXES - NATIVE or (not syntax and value[:4] == b"\xfe\xff\x00\xe0"):
        pixels = DataElement(tag, "OB", value)
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
