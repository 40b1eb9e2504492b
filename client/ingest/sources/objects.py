"""One DICOM object between network and disk: bytes -> data set, de-identified data set -> a file's bytes; no I/O.

Objects come from outside. The transfer syntax is looked at before anything else, so a deflated data set (a zip bomb,
PS3.5 A.5) is never inflated, and everything is parsed from memory, where no length field can make anything be
allocated beyond the bytes that came.
"""

from __future__ import annotations

import re
from io import BytesIO

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.filewriter import dcmwrite
from pydicom.multival import MultiValue
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless

from shared_model.imaging.header import SYNTAXES as READ_SYNTAXES

# What the sources accept, in the order in which they offer it. The archive shall send what it has: one by one.
SYNTAXES: tuple[str, ...] = tuple(
    sorted(READ_SYNTAXES, key=lambda uid: (uid != ExplicitVRLittleEndian, uid != JPEG2000Lossless, uid))
)
FOR_PRESENTATION = "1.2.840.10008.5.1.4.1.1.1.2"
SECONDARY_CAPTURES = (
    "1.2.840.10008.5.1.4.1.1.7",  # digitised film
    "1.2.840.10008.5.1.4.1.1.7.2", "1.2.840.10008.5.1.4.1.1.7.3",  # multi-frame grey scale: one frame may be a film
)  # fmt: skip
WANTED = (FOR_PRESENTATION, *SECONDARY_CAPTURES)
_LEFT_OUT = {
    "1.2.840.10008.5.1.4.1.1.1.2.1": "for_processing",
    "1.2.840.10008.5.1.4.1.1.13.1.3": "tomosynthesis",
    "1.2.840.10008.5.1.4.1.1.13.1.4": "tomosynthesis",  # breast projection, For Presentation
    "1.2.840.10008.5.1.4.1.1.13.1.5": "tomosynthesis",  # and For Processing
}
IMPLEMENTATION_UID = "2.25.226508293447331869331706046254402963018"
IMPLEMENTATION_NAME = "MAMMOFED"


_UID = re.compile(r"[0-9.]{1,64}")


def is_uid(uid: str) -> bool:
    """Whether a text can be a UID (PS3.5 9.1); others are not asked for, because they could mean more than one film."""
    return _UID.fullmatch(uid) is not None


class DamagedError(ValueError):
    """Bytes that are no such DICOM object. Carries no text of them."""


def why_left_out(sop_class: str) -> str | None:
    """The reason of LEFT_OUT for which an announced object is not asked for, or None; a class that is not told is."""
    if not sop_class or sop_class in WANTED:
        return None
    return _LEFT_OUT.get(sop_class, "not_mammography")


def read_meta(data: bytes) -> tuple[Dataset, int]:
    """File meta group of the beginning of a DICOM file, and the offset of its data set (PS3.10 7.1).

    Raises:
        DamagedError: no such file.
    """
    if data[128:132] != b"DICM":
        raise DamagedError
    stream = BytesIO(data)
    stream.seek(132)
    try:
        meta = read_dataset(stream, False, True, stop_when=lambda tag, _vr, _length: tag.group != 2)
    except Exception:  # pydicom raises almost any type on damaged bytes; its text may repeat header values
        raise DamagedError from None
    if not text(meta, "TransferSyntaxUID"):
        raise DamagedError
    return meta, stream.tell()


def split_file(data: bytes) -> tuple[str, bytes]:
    """(transfer syntax, encoded data set) of a DICOM file.

    Raises:
        DamagedError: no such file.
    """
    meta, start = read_meta(data)
    return text(meta, "TransferSyntaxUID"), data[start:]


def parse(encoded: bytes, syntax: str) -> Dataset:
    """The data set of `encoded`, which must be in one of SYNTAXES, with that syntax in its file meta group.

    Raises:
        DamagedError: it cannot be parsed.
    """
    assert syntax in SYNTAXES, "the caller refuses other transfer syntaxes before their bytes are looked at"
    try:
        dataset = read_dataset(BytesIO(encoded), syntax == ImplicitVRLittleEndian, True)
    except Exception:  # as above
        raise DamagedError from None
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    return dataset


def text(dataset: Dataset, keyword: str) -> str:
    """First value of an element as text, "" when absent or damaged."""
    try:
        value = dataset.get(keyword, "")
        first = value[0] if isinstance(value, MultiValue) and value else value
        return str(first or "").strip(" \0")
    except Exception:  # as above: conversion of a damaged element fails in many ways
        return ""


def to_file(dataset: Dataset, syntax: str) -> bytes:
    """The bytes of a DICOM file of a de-identified data set; its meta group names nobody, not even a station.

    Raises:
        DamagedError: it cannot be written.
    """
    meta = FileMetaDataset()
    stream = BytesIO()
    try:
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
        meta.TransferSyntaxUID, meta.ImplementationClassUID = UID(syntax), UID(IMPLEMENTATION_UID)
        meta.ImplementationVersionName = IMPLEMENTATION_NAME
        whole = Dataset(dataset)
        whole.file_meta = meta
        dcmwrite(stream, whole, enforce_file_format=True, implicit_vr=syntax == ImplicitVRLittleEndian,
                 little_endian=True)  # fmt: skip
    except Exception:  # as above
        raise DamagedError from None
    return stream.getvalue()
