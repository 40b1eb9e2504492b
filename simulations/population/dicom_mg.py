"""Digital Mammography X-Ray Image objects, For Presentation (PS3.3 A.26), as files; called by women for each film.

Building a pydicom Dataset for each film would cost more than making the film. So the elements that all films of one
vendor and view share are encoded once by pydicom; the few that differ are encoded here and spliced in, in the order
of their tags. A test has pydicom read a file and write it again to the same bytes, and `dciodvfy` check it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.filebase import DicomIO
from pydicom.filewriter import write_data_element
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from simulations.population.codecs import ENCAPSULATED, TRANSFER_SYNTAXES, encode_pixels
from simulations.population.specs import Vendor

SOP_CLASS = "1.2.840.10008.5.1.4.1.1.1.2"
IMPLEMENTATION_UID = "2.25.226508293447331869331706046254402963017"
IMPLEMENTATION_NAME = b"MAMMOFED_SYNTH"
_VIEW_CODES = {
    "CC": ("399162004", "cranio-caudal", "0"),
    "MLO": ("399368009", "medio-lateral oblique", "45"),
}  # CID 4014
_ORIENTATION = {"L_CC": ["A", "R"], "L_MLO": ["A", "FR"], "R_CC": ["P", "L"], "R_MLO": ["P", "FL"]}
_LONG_VRS = {b"OW", b"OB"}

# What differs from film to film; everything else is in the template.
_VARYING: dict[int, tuple[str, bytes]] = {
    0x00080018: ("sop_uid", b"UI"),
    0x00080020: ("date", b"DA"),
    0x00080023: ("date", b"DA"),
    0x00080050: ("accession", b"SH"),
    0x00100010: ("patient_name", b"PN"),
    0x00100020: ("patient_id", b"LO"),
    0x00100030: ("birth_date", b"DA"),
    0x00101010: ("age", b"AS"),
    0x001811A0: ("thickness", b"DS"),
    0x0020000D: ("study_uid", b"UI"),
    0x0020000E: ("series_uid", b"UI"),
    0x00200013: ("instance", b"IS"),
}


@dataclass(frozen=True, kw_only=True)
class FilmTags:
    """What a file says about its woman and exam. Dates YYYYMMDD; age in years; thickness_mm of the breast."""

    sop_uid: str
    study_uid: str
    series_uid: str
    patient_id: str
    patient_name: str
    birth_date: str
    date: str
    age: int
    accession: str
    thickness_mm: float
    instance: int


def encode_film(pixels: NDArray[np.uint16], vendor: Vendor, view: str, tags: FilmTags) -> bytes:
    """The bytes of a DICOM file for one film, e.g. of view "R_MLO", pixels uint16 [H, W] as stored."""
    values = {
        "sop_uid": tags.sop_uid,
        "date": tags.date,
        "accession": tags.accession,
        "patient_name": tags.patient_name,
        "patient_id": tags.patient_id,
        "birth_date": tags.birth_date,
        "age": f"{tags.age:03d}Y",
        "thickness": f"{tags.thickness_mm:.1f}",
        "study_uid": tags.study_uid,
        "series_uid": tags.series_uid,
        "instance": str(tags.instance),
    }
    implicit = vendor.transfer_syntax == "implicit"
    parts = [_meta(tags.sop_uid, vendor)]
    for piece in _template(vendor, view, pixels.shape):
        if isinstance(piece, bytes):
            parts.append(piece)
        else:
            name, vr = _VARYING[piece]
            parts.append(_element(piece, vr, values[name].encode("ascii"), implicit=implicit))
    parts.append(_pixel_data(pixels, vendor))
    return b"".join(parts)


@lru_cache(maxsize=256)
def _template(vendor: Vendor, view: str, shape: tuple[int, int]) -> tuple[bytes | int, ...]:
    """Encoded elements in order of their tags, an integer tag where a film's own element goes."""
    dataset = _shared_elements(vendor, view, shape)
    implicit = vendor.transfer_syntax == "implicit"
    pieces: list[bytes | int] = []
    for tag in sorted([*dataset.keys(), *(Tag(t) for t in _VARYING)]):
        if int(tag) in _VARYING:
            pieces.append(int(tag))
            continue
        stream = BytesIO()
        buffer = DicomIO(stream)
        buffer.is_little_endian, buffer.is_implicit_VR = True, implicit
        write_data_element(buffer, dataset[tag])
        pieces.append(stream.getvalue())
    return tuple(pieces)


def _shared_elements(vendor: Vendor, view: str, shape: tuple[int, int]) -> Dataset:
    """What all films of a vendor and a view have in common, without pixels."""
    side, position = view.split("_")
    code, meaning, angle = _VIEW_CODES[position]
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.ImageType = ["ORIGINAL", "PRIMARY"]
    ds.SOPClassUID = SOP_CLASS
    ds.StudyTime, ds.ContentTime = "101010", "101011"
    ds.Modality, ds.PresentationIntentType = "MG", "FOR PRESENTATION"
    ds.Manufacturer, ds.ManufacturerModelName = vendor.manufacturer, vendor.model
    ds.ReferringPhysicianName = ""
    ds.SeriesDescription = f"{side} {position}"
    ds.AnatomicRegionSequence = Sequence([_code("76752008", "Breast")])
    ds.PatientSex = "F"
    ds.BodyPartExamined, ds.OrganExposed = "BREAST", "BREAST"
    ds.KVP, ds.CompressionForce, ds.OrganDose = "29", "110", "0.018"
    ds.AnodeTargetMaterial, ds.FilterMaterial = "TUNGSTEN", "RHODIUM"
    ds.DeviceSerialNumber, ds.SoftwareVersions, ds.DetectorID = "0001", "1.0", f"{vendor.name}1"
    ds.DetectorType = "DIRECT"
    ds.ImagerPixelSpacing = [f"{vendor.spacing_mm:.4f}"] * 2
    ds.PositionerType, ds.PositionerPrimaryAngle, ds.ViewPosition = "MAMMOGRAPHIC", angle, position
    ds.StudyID, ds.SeriesNumber, ds.AcquisitionNumber = "1", "1", "1"
    ds.PatientOrientation = _ORIENTATION[view]
    ds.ImageLaterality = side
    ds.SamplesPerPixel = 1
    ds.Rows, ds.Columns = shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, vendor.bits, vendor.bits - 1, 0
    ds.PhotometricInterpretation = "MONOCHROME1" if vendor.monochrome1 else "MONOCHROME2"
    ds.PixelIntensityRelationship, ds.PixelIntensityRelationshipSign = "LOG", -1 if vendor.monochrome1 else 1
    ds.PresentationLUTShape = "INVERSE" if vendor.monochrome1 else "IDENTITY"
    ds.BurnedInAnnotation, ds.LossyImageCompression = "NO", "00"
    ds.BreastImplantPresent, ds.PartialView = "NO", "NO"
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "0", "1", "US"
    ds.AcquisitionContextSequence = Sequence([])
    view_code = _code(code, meaning)
    view_code.ViewModifierCodeSequence = Sequence([])
    ds.ViewCodeSequence = Sequence([view_code])
    _state_display(ds, vendor)
    return ds


def _state_display(ds: Dataset, vendor: Vendor) -> None:
    """How the film wants to be shown: a window, linear or sigmoid, or a table."""
    levels = 2**vendor.bits
    if vendor.voi == "LUT":
        x = np.linspace(-4, 4, levels)
        table = np.rint(4095 / (1 + np.exp(-x))).astype("<u2")
        item = Dataset()
        item.add_new(0x00283002, "US", [levels if levels < 65536 else 0, 0, 12])
        item.LUTExplanation = "STANDARD"
        item.add_new(0x00283006, "OW", table.tobytes())
        ds.VOILUTSequence = Sequence([item])
        return
    ds.WindowCenter, ds.WindowWidth = [f"{levels // 2}"], [f"{levels}"]
    ds.WindowCenterWidthExplanation = ["NORMAL"]
    ds.VOILUTFunction = vendor.voi


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    return item


def _meta(sop_uid: str, vendor: Vendor) -> bytes:
    """Preamble and file meta information (PS3.10 7.1)."""
    group = b"".join(
        (
            _element(0x00020001, b"OB", b"\0\1"),
            _element(0x00020002, b"UI", SOP_CLASS.encode()),
            _element(0x00020003, b"UI", sop_uid.encode()),
            _element(0x00020010, b"UI", TRANSFER_SYNTAXES[vendor.transfer_syntax].encode()),
            _element(0x00020012, b"UI", IMPLEMENTATION_UID.encode()),
            _element(0x00020013, b"SH", IMPLEMENTATION_NAME),
        )
    )
    return b"\0" * 128 + b"DICM" + _element(0x00020000, b"UL", struct.pack("<I", len(group))) + group


def _pixel_data(pixels: NDArray[np.uint16], vendor: Vendor) -> bytes:
    value = encode_pixels(pixels, vendor.transfer_syntax)
    if vendor.transfer_syntax in ENCAPSULATED:
        return struct.pack("<HH2s2xI", 0x7FE0, 0x0010, b"OB", 0xFFFFFFFF) + value
    return _element(0x7FE00010, b"OW", value, implicit=vendor.transfer_syntax == "implicit")


def _element(tag: int, vr: bytes, value: bytes, *, implicit: bool = False) -> bytes:
    """One data element, little endian (PS3.5 7.1), padded to even length."""
    if len(value) % 2:
        value += b"\0" if vr in {b"UI", b"OB"} else b" "
    if implicit:
        return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(value)) + value
    if vr in _LONG_VRS:
        return struct.pack("<HH2s2xI", tag >> 16, tag & 0xFFFF, vr, len(value)) + value
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value
