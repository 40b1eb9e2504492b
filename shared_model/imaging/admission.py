"""Decides from the header alone whether a film is one that the model may see, and which view it is; no file access.

Rules and their sources: PS3.3 C.8.11 (mammography modules), C.7.6.1.1.1 (Patient Orientation), PS3.16 CID 4014 (views).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from datetime import date

from shared_model.errors import ImagingError
from shared_model.imaging.header import Header
from shared_model.imaging.reasons import known_term, refuse

VIEWS: tuple[str, ...] = ("L_CC", "L_MLO", "R_CC", "R_MLO")
"""View order of a patient's bag; the same as in shared_model/cohort (a test compares them)."""

_FOR_PRESENTATION = "1.2.840.10008.5.1.4.1.1.1.2"
_FOR_PROCESSING = "1.2.840.10008.5.1.4.1.1.1.2.1"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # digitised film, such as CBIS-DDSM
_TOMOSYNTHESIS = "1.2.840.10008.5.1.4.1.1.13.1.3"
_MODALITIES = frozenset({
    "MG", "CR", "DX", "RG", "US", "MR", "CT", "PT", "NM", "OT", "SR", "PR", "SC", "XA", "XC", "DOC", "KO",
    "SEG", "REG", "SM",
})  # fmt: skip
_PHOTOMETRIC = frozenset({
    "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420", "PALETTE COLOR",
})  # fmt: skip
_OTHER_VIEWS = frozenset({
    "ML", "LM", "LMO", "SIO", "XCC", "XCCL", "XCCM", "FB", "CV", "AT", "RL", "RM", "RS", "AX", "SPECIMEN",
    "TAN",
})  # fmt: skip
# SNOMED CT, and the SNOMED-RT codes that older machines write (PS3.16 CID 4014).
_VIEW_CODES = {
    "399162004": "CC", "R-10242": "CC", "399368009": "MLO", "R-10226": "MLO",
    "399260004": "ML", "R-10224": "ML", "399352003": "LM", "R-10228": "LM", "399099002": "LMO", "R-10230": "LMO",
    "399188001": "SIO", "R-102D0": "SIO", "399196006": "FB", "R-10244": "FB", "399265009": "XCC", "R-1024A": "XCC",
    "399192008": "XCCL", "R-1024B": "XCCL", "399101009": "XCCM", "R-102CB": "XCCM",
}  # fmt: skip
_PARTIAL = re.compile(r"crop|\broi\b|mask|spot|magnif|specimen|stereo|biops|galacto|ductogr", re.IGNORECASE)
_VIEW_MODIFIERS = 0x00540222
_CODE_VALUE = 0x00080100
_SPACING_RANGE_MM = (0.01, 5.0)  # the finest detectors have 0.05 mm; coarser than 5 mm shows no lesion
_LEAST_FIELD_MM = 50.0  # the smallest full-field detectors are 180 mm wide; a lesion cut-out is below 50 mm


@dataclass(frozen=True)
class Film:
    """What an admitted film's header says, in plain values.

    spacing_mm: (row, column) distance of pixel centres in the breast, millimetres; spacing_source names the element.
    flip_rows: True turns the film upside down; chest_left: True, False, or None where the header does not say.
    study_date: YYYYMMDD or ""; order: sorts repeated films of one view, the latest last; age_years: completed years.
    """

    patient_id: str = field(repr=False)
    study_uid: str = field(repr=False)
    sop_uid: str = field(repr=False)
    view: str
    study_date: str = field(repr=False)
    order: tuple[str, float, str] = field(repr=False)
    vendor: str
    age_years: float | None
    rows: int
    columns: int
    spacing_mm: tuple[float, float]
    spacing_source: str
    chest_left: bool | None
    flip_rows: bool


def admit(header: Header, *, max_pixels: int, declared_spacing_mm: float | None) -> Film:
    """Apply every header rule.

    Args:
        max_pixels: greatest rows x columns.
        declared_spacing_mm: spacing that the site states for films whose header has none (a scanner's), or None.

    Raises:
        ImagingError: with the reason code of the first rule that the film breaks.
    """
    _check_kind(header)
    rows, columns = _check_format(header, max_pixels)
    _check_admissible(header)
    side, position = laterality(header), view_position(header)
    chest_left, flip_rows = _orientation(header, side, position)
    spacing, source = _spacing(header, declared_spacing_mm)
    if min(rows * spacing[0], columns * spacing[1]) < _LEAST_FIELD_MM:
        raise refuse("field_too_small", found=f"{rows * spacing[0]:.0f} x {columns * spacing[1]:.0f} mm",
                     expected=f"at least {_LEAST_FIELD_MM:.0f} mm each way")  # fmt: skip
    study_uid, sop_uid = header.text("StudyInstanceUID"), header.text("SOPInstanceUID")
    if not (study_uid and sop_uid):
        raise refuse("no_uid")
    patient_id = header.decoded("PatientID")
    if not patient_id:
        raise refuse("no_patient_id")
    study_date = _date(header.text("StudyDate"))
    number = header.numbers("InstanceNumber")
    return Film(
        patient_id=patient_id, study_uid=study_uid, sop_uid=sop_uid, view=f"{side}_{position}",
        study_date=study_date.strftime("%Y%m%d") if study_date else "",
        order=(header.text("AcquisitionTime"), number[0] if number else 0.0, sop_uid),
        vendor=header.decoded("Manufacturer")[:64] or "unknown", age_years=_age(header, study_date),
        rows=rows, columns=columns, spacing_mm=spacing, spacing_source=source,
        chest_left=chest_left, flip_rows=flip_rows,
    )  # fmt: skip


def _check_kind(header: Header) -> None:
    modality, kind = header.text("Modality"), header.text("SOPClassUID")
    if modality != "MG":
        raise refuse("not_mammography", found=f"Modality {known_term(modality, _MODALITIES)}", expected="Modality MG")
    frames = header.numbers("NumberOfFrames")
    if kind == _TOMOSYNTHESIS or (frames and frames[0] != 1):
        count = f"{frames[0]:.0f} frames" if frames else "a tomosynthesis object"
        raise refuse("multi_frame", found=count, expected="one frame")
    if kind == _FOR_PROCESSING or header.text("PresentationIntentType") == "FOR PROCESSING":
        raise refuse("for_processing", expected="For Presentation")
    if kind not in (_FOR_PRESENTATION, _SECONDARY_CAPTURE):
        raise refuse("not_mammography", found="another SOP class", expected="Digital Mammography For Presentation")


def _check_format(header: Header, max_pixels: int) -> tuple[int, int]:
    photometric = header.text("PhotometricInterpretation")
    if header.integer("SamplesPerPixel") != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise refuse("not_monochrome", found=known_term(photometric, _PHOTOMETRIC), expected="MONOCHROME1 or 2")
    allocated, stored = header.integer("BitsAllocated"), header.integer("BitsStored")
    high, sign = header.integer("HighBit", stored - 1), header.integer("PixelRepresentation", 0)
    if allocated not in (8, 16) or not 8 <= stored <= allocated or not stored - 1 <= high < allocated or sign > 1:
        raise refuse("unsupported_bits", found=f"{stored} of {allocated} bits", expected="8..16 of 8 or 16")
    rows, columns = header.integer("Rows"), header.integer("Columns")
    if rows < 16 or columns < 16:
        raise refuse("field_too_small", found=f"{rows} x {columns} pixels")
    if rows * columns > max_pixels:
        raise refuse("too_large", found=f"{rows} x {columns} pixels", expected=f"at most {max_pixels} pixels")
    return rows, columns


def _check_admissible(header: Header) -> None:
    if header.text("BurnedInAnnotation") == "YES":
        raise refuse("burned_in")
    if header.text("BreastImplantPresent") == "YES":
        raise refuse("implant")
    if _PARTIAL.search(header.text("SeriesDescription")):
        raise refuse("not_full_view", found="SeriesDescription says so")
    if _view_codes(header)[1]:
        raise refuse("not_full_view", found="a view modifier", expected="an empty ViewModifierCodeSequence")


def laterality(header: Header) -> str:
    """`L` or `R`, from ImageLaterality or, in secondary captures, Laterality."""
    found = {value for name in ("ImageLaterality", "Laterality") if (value := header.text(name)) in ("L", "R", "B")}
    if len(found) > 1:
        raise refuse("laterality_conflict", found="ImageLaterality and Laterality differ")
    if found - {"L", "R"} or not found:
        raise refuse("no_laterality", found=" ".join(sorted(found)) or "nothing", expected="L or R")
    return found.pop()


def view_position(header: Header) -> str:
    """`CC` or `MLO`, from ViewPosition, ViewCodeSequence, or the PatientOrientation of digitised films (CBIS-DDSM)."""
    named = {header.text("ViewPosition")} | _view_codes(header)[0]
    named |= {value for value in header.texts("PatientOrientation") if value in ("CC", "MLO")}
    found = named & ({"CC", "MLO"} | _OTHER_VIEWS)
    if len(found) > 1:
        raise refuse("view_conflict", found=" and ".join(sorted(found)))
    if not found:
        raise refuse("no_view", expected="CC or MLO in ViewPosition, ViewCodeSequence or PatientOrientation")
    view = found.pop()
    if view not in ("CC", "MLO"):
        raise refuse("other_view", found=view, expected="CC or MLO")
    return view


def _view_codes(header: Header) -> tuple[set[str], bool]:
    """(views that ViewCodeSequence names, whether any of its items has a modifier)."""
    views, modified = set(), False
    try:
        for item in header.items("ViewCodeSequence"):
            code, modifiers = item.get(_CODE_VALUE), item.get(_VIEW_MODIFIERS)
            views.add(_VIEW_CODES.get(str(code.value), "") if code is not None else "")
            modified |= modifiers is not None and len(modifiers.value or []) > 0
    except ImagingError:
        raise
    except Exception as error:  # pydicom converts items when they are looked at, and fails on damage in many ways
        raise refuse("damaged_header", found=f"ViewCodeSequence: {type(error).__name__}") from None
    return views, modified


def _orientation(header: Header, side: str, position: str) -> tuple[bool | None, bool]:
    """Where the chest wall is (True: left), and whether the rows run upwards (PS3.3 C.7.6.1.1.1).

    A film hangs with the axilla (MLO) or the outer half (CC) at the top; rows that run the other way are turned.
    """
    values = header.texts("PatientOrientation")
    if len(values) != 2 or not all(values):
        return None, False
    across, down = values
    if across[0] not in "AP" or down[0] not in "HFLR":
        raise refuse("unsupported_orientation", expected="columns along anterior-posterior, rows across them")
    # CC: down is towards the midline, which is the patient's right for the left breast.
    wrong_way = "H" if position == "MLO" else side
    return across[0] == "A", down[0] == wrong_way


def _spacing(header: Header, declared_mm: float | None) -> tuple[tuple[float, float], str]:
    """Spacing in the breast. ImagerPixelSpacing is measured at the detector, so magnification divides it (C.8.11.3)."""
    for name in ("ImagerPixelSpacing", "PixelSpacing", "NominalScannedPixelSpacing"):
        values = header.numbers(name)
        if not values:
            continue
        factor = 1.0
        if name == "ImagerPixelSpacing":
            factor = (header.numbers("EstimatedRadiographicMagnificationFactor") or [1.0])[0]
        if len(values) != 2 or not math.isfinite(factor) or not 1.0 <= factor <= 3.0:
            raise refuse("implausible_spacing", found=f"{len(values)} values, magnification {factor:g}")
        return _plausible(values[0] / factor, values[1] / factor), name
    if declared_mm is None:
        raise refuse("no_spacing", expected="ImagerPixelSpacing in millimetres")
    return _plausible(declared_mm, declared_mm), "declared"


def _plausible(row_mm: float, column_mm: float) -> tuple[float, float]:
    low, high = _SPACING_RANGE_MM
    # Each end on its own, so that a NaN is refused too.
    if not (low <= row_mm <= high and low <= column_mm <= high and 0.5 <= row_mm / column_mm <= 2.0):
        raise refuse("implausible_spacing", found=f"{row_mm:g} x {column_mm:g} mm", expected=f"{low:g}..{high:g} mm")
    return row_mm, column_mm


def _date(text: str) -> date | None:
    if not re.fullmatch(r"\d{8}", text):
        return None
    try:
        return date(int(text[:4]), int(text[4:6]), int(text[6:]))
    except ValueError:  # 00000000 is what anonymisers leave
        return None


def _age(header: Header, study: date | None) -> float | None:
    """Age at the study, years; None where absent or no grown woman's (anonymisers write 000Y)."""
    text = header.text("PatientAge")
    years: float | None = float(text[:3]) if re.fullmatch(r"\d{3}Y", text) else None
    if years is None and study is not None and (born := _date(header.text("PatientBirthDate"))) is not None:
        years = float(study.year - born.year - ((study.month, study.day) < (born.month, born.day)))
    return years if years is not None and 18.0 <= years <= 120.0 else None
