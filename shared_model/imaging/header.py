"""Reads the header of one untrusted DICOM file into plain values before any pixel is decoded; called by view.

The file is read whole, bounded by `max_bytes`, and parsed in memory: no length field in it can then make anything be
allocated beyond what the file itself holds. The transfer syntax is looked at first, so a deflated data set (a zip bomb,
PS3.5 A.5) is refused before it is inflated.
"""

from __future__ import annotations

import logging
import math
import stat
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag
from pydicom.uid import (
    JPEG2000,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from shared_model.imaging.reasons import refuse
from shared_model.imaging.vocabulary import number

NATIVE = frozenset({str(ImplicitVRLittleEndian), str(ExplicitVRLittleEndian)})
SYNTAXES = NATIVE | {
    str(uid)
    for uid in (
        RLELossless, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEGLSNearLossless, JPEG2000Lossless, JPEG2000,
    )
}  # fmt: skip
_HEADER_BYTES = 1 << 20  # headers have some 10 KB; what lies behind a larger one is read too
_TRANSFER_SYNTAX = 0x00020010
_LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_PIXEL_DATA = 0x7FE00010

TAGS: dict[str, int] = {
    "ImageType": 0x00080008, "SOPClassUID": 0x00080016, "SOPInstanceUID": 0x00080018, "StudyDate": 0x00080020,
    "AcquisitionTime": 0x00080032, "Modality": 0x00080060, "PresentationIntentType": 0x00080068,
    "Manufacturer": 0x00080070, "SeriesDescription": 0x0008103E, "PatientName": 0x00100010, "PatientID": 0x00100020,
    "PatientBirthDate": 0x00100030, "PatientAge": 0x00101010, "ViewPosition": 0x00185101,
    "PaddleDescription": 0x001811A4, "ImagerPixelSpacing": 0x00181164,
    "EstimatedRadiographicMagnificationFactor": 0x00181114,
    "NominalScannedPixelSpacing": 0x00182010, "StudyInstanceUID": 0x0020000D, "InstanceNumber": 0x00200013,
    "PatientOrientation": 0x00200020, "Laterality": 0x00200060, "ImageLaterality": 0x00200062,
    "SamplesPerPixel": 0x00280002, "PhotometricInterpretation": 0x00280004, "NumberOfFrames": 0x00280008,
    "Rows": 0x00280010, "Columns": 0x00280011, "PixelSpacing": 0x00280030, "BitsAllocated": 0x00280100,
    "BitsStored": 0x00280101, "HighBit": 0x00280102, "PixelRepresentation": 0x00280103,
    "PixelPaddingValue": 0x00280120, "PixelPaddingRangeLimit": 0x00280121, "BurnedInAnnotation": 0x00280301,
    "WindowCenter": 0x00281050, "WindowWidth": 0x00281051, "RescaleIntercept": 0x00281052,
    "RescaleSlope": 0x00281053, "VOILUTFunction": 0x00281056, "BreastImplantPresent": 0x00281300,
    "PartialView": 0x00281350, "ModalityLUTSequence": 0x00283000, "VOILUTSequence": 0x00283010,
    "ViewCodeSequence": 0x00540220,
}  # fmt: skip
_TAG_LIST: list[BaseTag | int] = list(TAGS.values())


@dataclass(frozen=True)
class FilmFile:
    """One bounded, parsed file: its bytes, its header, and the offset of the first element from Pixel Data on."""

    data: bytes = field(repr=False)
    transfer_syntax: str
    header: Header
    stopped_at: int

    def pixel_element(self) -> tuple[int, int | None]:
        """Offset and length of the Pixel Data value (PS3.5 7.1); length None when encapsulated in fragments (A.4).

        Raises:
            ImagingError: truncated, no_pixels.
        """
        if self.stopped_at + 12 > len(self.data):
            raise refuse("truncated", found="the file ends before Pixel Data")
        group, element = struct.unpack_from("<HH", self.data, self.stopped_at)
        if (group << 16 | element) != _PIXEL_DATA:
            raise refuse("no_pixels", expected="Pixel Data (7FE0,0010)")
        implicit = self.transfer_syntax == str(ImplicitVRLittleEndian)
        at_length, at_value = (4, 8) if implicit else (8, 12)
        (length,) = struct.unpack_from("<L", self.data, self.stopped_at + at_length)
        return self.stopped_at + at_value, None if length == 0xFFFFFFFF else int(length)


class Header:
    """Plain values of the tags in TAGS. Raw bytes are converted here because pydicom's own route costs 20 us a tag."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        # Taken before anything is converted: pydicom replaces elements in place, some without being asked.
        self._values = {int(tag): dataset.get_item(tag).value for tag in dataset.keys()}  # noqa: SIM118

    def __contains__(self, name: str) -> bool:
        return TAGS[name] in self._values

    def _raw(self, name: str) -> bytes:
        value = self._values.get(TAGS[name])
        return value if isinstance(value, bytes) else b""

    def texts(self, name: str) -> list[str]:
        """All values of a text element, stripped of padding; [""] when absent."""
        return [part.strip(" \0") for part in self._raw(name)[:4096].decode("latin-1").split("\\")]

    def text(self, name: str) -> str:
        """First value of a text element, "" when absent."""
        return self.texts(name)[0]

    def numbers(self, name: str) -> list[float]:
        """All values of a DS or IS element; [] when absent. Raises `damaged_header` if they are no finite numbers."""
        values = [number(part) for part in self.texts(name) if part]
        if not all(map(math.isfinite, values)):
            raise refuse("damaged_header", found=f"{name} is not numeric")
        return values

    def integer(self, name: str, default: int | None = None) -> int:
        """Value of a US or SS element as an unsigned 16-bit number; `default` when absent."""
        raw = self._raw(name)
        if len(raw) >= 2:
            return int.from_bytes(raw[:2], "little")
        if default is None:
            raise refuse("damaged_header", found=f"no {name}")
        return default

    def items(self, name: str) -> list[Dataset]:
        """Items of a sequence; [] when absent."""
        value = self._converted(name)
        if value and not isinstance(value, Sequence):
            raise refuse("damaged_header", found=f"{name} is no sequence")
        return list(value or [])

    def decoded(self, name: str) -> str:
        """A text in the file's own character set (PatientID, Manufacturer)."""
        value = self._converted(name)
        return "" if value is None else str(value).strip(" \0")

    def _converted(self, name: str) -> Any:
        if name not in self:
            return None
        try:
            return self._dataset[TAGS[name]].value
        except Exception as error:  # pydicom raises almost any type here too; its text may repeat header values
            raise refuse("damaged_header", found=f"{name}: {type(error).__name__}") from None


class _Quiet:
    """What is switched off while at least one thread reads a header; the last one out switches it on again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers = 0
        self._restore = ExitStack()

    def enter(self) -> None:
        with self._lock:
            if self._readers == 0:
                self._restore.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
                logger = logging.getLogger("pydicom")
                self._restore.callback(setattr, logger, "disabled", logger.disabled)
                logger.disabled = True
            self._readers += 1

    def leave(self) -> None:
        with self._lock:
            self._readers -= 1
            if self._readers == 0:
                self._restore.close()


_QUIET = _Quiet()


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Keeps pydicom from warning or logging while a header is read: its messages repeat header values, so names.

    Several threads may be inside at once (a PACS sends over several associations): each alone would restore what
    another one has switched off.
    """
    _QUIET.enter()
    try:
        yield
    finally:
        _QUIET.leave()


def read_film(path: Path, *, max_bytes: int, header_only: bool = False) -> FilmFile:
    """Read and parse one file.

    header_only: leave the pixels on the disk where the header is of ordinary size.

    Raises:
        ImagingError: unreadable, too_large, not_dicom, unsupported_syntax, damaged_header or truncated.
    """
    size = _checked_size(path, max_bytes)
    first = min(size, _HEADER_BYTES) if header_only else size
    film = _parse(_read(path, first), whole=first == size)
    return film if film is not None else _certain(_parse(_read(path, size), whole=True))


def _certain(film: FilmFile | None) -> FilmFile:
    assert film is not None, "a whole file is parsed or refused"
    return film


def _parse(data: bytes, *, whole: bool) -> FilmFile | None:
    """The parsed file, or None where `data` is only its beginning and ends before the pixels."""
    syntax, start = _transfer_syntax(data)
    if syntax not in SYNTAXES:
        raise refuse("unsupported_syntax", found="another transfer syntax", expected="native, RLE, JPEG lossless, "
                     "JPEG-LS or JPEG 2000")  # fmt: skip
    stream = BytesIO(data)
    stream.seek(start)
    try:
        dataset = read_dataset(
            stream, syntax == str(ImplicitVRLittleEndian), True, stop_when=lambda tag, _vr, _n: tag >= 0x7FE00008,
            specific_tags=_TAG_LIST,
        )  # fmt: skip
        header = Header(dataset)
    except Exception as error:  # pydicom raises almost any type on damaged bytes; its text may repeat header values
        if not whole:
            return None
        raise refuse("damaged_header", found=type(error).__name__) from None
    film = FilmFile(data, syntax, header, stream.tell())
    return film if whole or film.stopped_at + 12 <= len(data) else None


def _checked_size(path: Path, max_bytes: int) -> int:
    try:
        status = path.stat()
    except OSError as error:
        raise refuse("unreadable", found=type(error).__name__) from None
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise refuse("unreadable", found="not a regular file")
    if status.st_size > max_bytes:
        raise refuse("too_large", found=f"{status.st_size} bytes", expected=f"at most {max_bytes} bytes")
    return status.st_size


def _read(path: Path, size: int) -> bytes:
    try:
        with path.open("rb", buffering=0) as stream:
            return stream.read(size) or b""
    except OSError as error:
        raise refuse("unreadable", found=type(error).__name__) from None


def _transfer_syntax(data: bytes) -> tuple[str, int]:
    """Transfer syntax and offset of the data set; the file meta group is Explicit VR Little Endian (PS3.10 7.1)."""
    if data[128:132] != b"DICM":
        raise refuse("not_dicom", found="no DICM mark at byte 128", expected="a DICOM Part 10 file")
    position, syntax = 132, ""
    while position + 8 <= len(data):
        group, element, vr, length = struct.unpack_from("<HH2sH", data, position)
        if group != 2:
            break
        position += 8
        if vr in _LONG_VRS:
            if position + 4 > len(data):
                break
            (length,) = struct.unpack_from("<L", data, position)
            position += 4
        if (group << 16 | element) == _TRANSFER_SYNTAX:
            syntax = data[position : position + min(length, 64)].decode("latin-1").strip(" \0")
        position += length
    if not syntax:
        raise refuse("damaged_header", found="no transfer syntax in the file meta group")
    if position > len(data):
        raise refuse("truncated", found="the file ends within its header")
    return syntax, position
