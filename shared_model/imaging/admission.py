"""Decides from the header alone whether a film is one that the model may see, and which view it is; no file access.

Rules and their sources: PS3.3 C.8.11 (mammography modules), C.7.6.1.1.1 (Patient Orientation), PS3.16 CID 4014 (views).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from pydicom.dataset import Dataset

from shared_model.errors import ImagingError
from shared_model.imaging.header import Header
from shared_model.imaging.policy import AdmissionPolicy
from shared_model.imaging.reasons import known_term, refuse
from shared_model.imaging.vocabulary import (
    MODALITIES,
    MODIFIER_CODES,
    OTHER,
    OTHER_VIEWS,
    PHOTOMETRIC,
    SIDES,
    VIEW_CODES,
    age_years,
    calendar,
    description,
    maker,
    orientation,
    partial,
)

VIEWS: tuple[str, ...] = ("L_CC", "L_MLO", "R_CC", "R_MLO")
"""View order of a patient's bag; the same as in shared_model/cohort (a test compares them)."""

FOR_PRESENTATION = "1.2.840.10008.5.1.4.1.1.1.2"
FOR_PROCESSING = "1.2.840.10008.5.1.4.1.1.1.2.1"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # digitised film, such as CBIS-DDSM
TOMOSYNTHESIS = "1.2.840.10008.5.1.4.1.1.13.1.3"
_VIEW_MODIFIERS = 0x00540222
_CODE_VALUE = 0x00080100
_SPACING_RANGE_MM = (0.01, 5.0)  # the finest detectors have 0.05 mm; coarser than 5 mm shows no lesion
_LEAST_FIELD_MM = 50.0  # the smallest full-field detectors are 180 mm wide; a lesion cut-out is below 50 mm
_MAGNIFIED = 1.3  # a breast on the detector is enlarged by 1.0 to 1.1; magnification stands by 1.5 to 2
_SYNTHETIC_TYPES = frozenset({"GENERATED_2D", "TOMO_2D", "TOMOSYNTHESIS"})
_SCREEN_TYPES = frozenset({"SCREEN SAVE", "SCREENSAVE"})


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


def admit(
    header: Header, *, max_pixels: int, declared_spacing_mm: float | None, policy: AdmissionPolicy | None = None
) -> Film:
    """Apply every header rule.

    Args:
        max_pixels: greatest rows x columns.
        declared_spacing_mm: spacing that the site states for films whose header has none (a scanner's), or None.
        policy: the site's own rules; None: the careful ones.

    Raises:
        ImagingError: with the reason code of the first rule that the film breaks.
    """
    policy = policy or AdmissionPolicy()
    _check_kind(header)
    rows, columns = _check_format(header, max_pixels)
    _check_origin(header, policy)
    _check_burned_in(header, policy)
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
    study_date = calendar(header.text("StudyDate"))
    number = header.numbers("InstanceNumber")
    names = (patient_id, header.text("PatientName"))
    age = age_years(
        header.text("PatientAge"), birth_date=header.text("PatientBirthDate"), study_date=header.text("StudyDate")
    )
    return Film(
        patient_id=patient_id, study_uid=study_uid, sop_uid=sop_uid, view=f"{side}_{position}",
        study_date=study_date.isoformat().replace("-", "") if study_date else "",
        order=(header.text("AcquisitionTime"), number[0] if number else 0.0, sop_uid),
        vendor=maker(header.decoded("Manufacturer"), names=names) or "unknown", age_years=age,
        rows=rows, columns=columns, spacing_mm=spacing, spacing_source=source,
        chest_left=chest_left, flip_rows=flip_rows,
    )  # fmt: skip


def _check_kind(header: Header) -> None:
    modality, kind = header.text("Modality"), header.text("SOPClassUID")
    if modality != "MG":
        raise refuse("not_mammography", found=f"Modality {known_term(modality, MODALITIES)}", expected="Modality MG")
    frames = header.numbers("NumberOfFrames")
    if kind == TOMOSYNTHESIS or (frames and frames[0] != 1):
        count = f"{frames[0]:.0f} frames" if frames else "a tomosynthesis object"
        raise refuse("multi_frame", found=count, expected="one frame")
    if kind == FOR_PROCESSING or header.text("PresentationIntentType") == "FOR PROCESSING":
        raise refuse("for_processing", expected="For Presentation")
    if kind not in (FOR_PRESENTATION, SECONDARY_CAPTURE):
        raise refuse("not_mammography", found="another SOP class", expected="Digital Mammography For Presentation")


def _check_format(header: Header, max_pixels: int) -> tuple[int, int]:
    photometric = header.text("PhotometricInterpretation")
    if header.integer("SamplesPerPixel") != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise refuse("not_monochrome", found=known_term(photometric, PHOTOMETRIC), expected="MONOCHROME1 or 2")
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


def _check_origin(header: Header, policy: AdmissionPolicy) -> None:
    """Where the picture comes from: an exposure, a scanner, a screen, a computation."""
    kinds = {value.upper() for value in header.texts("ImageType")[:8]}
    words = description(header.text("SeriesDescription")).split()
    capture = header.text("SOPClassUID") == SECONDARY_CAPTURE
    if kinds & _SCREEN_TYPES or "SCREENSAVE" in words:
        raise refuse("screen_save", found="ImageType or SeriesDescription says so")
    if capture and policy.secondary_capture != "accept":
        raise refuse("secondary_capture", expected="a mammography object, or film_policy.secondary_capture: accept")
    if (kinds & _SYNTHETIC_TYPES or "SYNTH2D" in words) and policy.synthetic_2d != "accept":
        raise refuse("synthetic_2d", found="ImageType or SeriesDescription says so")
    # A secondary capture is SECONDARY by its class (PS3.3 C.8.6.1), so nothing more is learnt from its image type.
    if "SECONDARY" in kinds and not capture and policy.derived != "accept":
        raise refuse("derived_image", found="ImageType SECONDARY", expected="ImageType PRIMARY")


def _check_admissible(header: Header) -> None:
    if header.text("BreastImplantPresent") == "YES":
        raise refuse("implant")
    if any(partial(header.text(name)) for name in ("SeriesDescription", "PaddleDescription")):
        raise refuse("not_full_view", found="SeriesDescription or PaddleDescription says so")
    modifiers = _view_codes(header)[1]
    if "implant displaced" in modifiers:
        raise refuse("implant", found="the view modifier implant displaced")
    if modifiers:
        raise refuse("not_full_view", found="a view modifier: " + " and ".join(sorted(modifiers)),
                     expected="an empty ViewModifierCodeSequence")  # fmt: skip
    if header.text("PartialView") == "YES":
        raise refuse("not_full_view", found="PartialView YES")
    factor = header.numbers("EstimatedRadiographicMagnificationFactor")
    if factor and _MAGNIFIED <= factor[0] <= 3.0:
        raise refuse("not_full_view", found=f"magnified {factor[0]:g} times", expected=f"below {_MAGNIFIED:g} times")


def _check_burned_in(header: Header, policy: AdmissionPolicy) -> None:
    """BurnedInAnnotation (PS3.3 C.7.6.1): YES, and under the careful policy everything but NO, is refused."""
    value = header.text("BurnedInAnnotation")
    if policy.burned_in == "quarantine" and value != "NO":
        known = known_term(value, ("YES",))
        raise refuse("burned_in" if value == "YES" else "burned_in_unknown", found=f"BurnedInAnnotation {known}",
                     expected="BurnedInAnnotation NO, or film_policy.burned_in: look")  # fmt: skip


def laterality(header: Header) -> str:
    """`L` or `R`, from ImageLaterality or, in secondary captures, Laterality; a series' description where both are
    silent. All that speak have to agree."""
    found = {value for name in ("ImageLaterality", "Laterality") if (value := header.text(name)) in SIDES}
    if len(found) > 1:
        raise refuse("laterality_conflict", found="ImageLaterality and Laterality differ")
    if not found:
        found = {side for side, _ in _described(header)}
    if found - {"L", "R"} or len(found) != 1:
        raise refuse("no_laterality", found=" ".join(sorted(found)) or "nothing", expected="L or R")
    return found.pop()


def view_position(header: Header) -> str:
    """`CC` or `MLO`, from ViewPosition, ViewCodeSequence, or the PatientOrientation of digitised films (CBIS-DDSM); a
    series' description where all are silent, because some archives keep one for several views."""
    named = {header.text("ViewPosition")} | _view_codes(header)[0]
    named |= {value for value in header.texts("PatientOrientation") if value in ("CC", "MLO")}
    found = named & ({"CC", "MLO"} | OTHER_VIEWS) or {view for _, view in _described(header)}
    if len(found) > 1:
        raise refuse("view_conflict", found=" and ".join(sorted(found)))
    if not found:
        raise refuse("no_view", expected="CC or MLO in ViewPosition, ViewCodeSequence or PatientOrientation")
    view = found.pop()
    if view not in ("CC", "MLO"):
        raise refuse("other_view", found=view, expected="CC or MLO")
    return view


def _described(header: Header) -> set[tuple[str, str]]:
    """(side, view) that the series' description names, where it names one only."""
    words = [word for word in description(header.text("SeriesDescription")).split() if word in VIEWS]
    return {(word[0], word[2:]) for word in words} if len(words) == 1 else set()


def _view_codes(header: Header) -> tuple[set[str], set[str]]:
    """(views that ViewCodeSequence names, modifiers of its items)."""
    views, modifiers = set(), set()
    try:
        for item in header.items("ViewCodeSequence"):
            views.add(VIEW_CODES.get(code_value(item), ""))
            nested = item.get(_VIEW_MODIFIERS)
            for modifier in (nested.value or []) if nested is not None else []:
                modifiers.add(MODIFIER_CODES.get(code_value(modifier), "another one"))
    except ImagingError:
        raise
    except Exception as error:  # pydicom converts items when they are looked at, and fails on damage in many ways
        raise refuse("damaged_header", found=f"ViewCodeSequence: {type(error).__name__}") from None
    return views, modifiers


def code_value(item: Dataset) -> str:
    """Code Value of an item of a code sequence (PS3.3 8.1), "" where it has none."""
    code = item.get(_CODE_VALUE)
    return str(code.value).strip(" \0") if code is not None else ""


def _orientation(header: Header, side: str, position: str) -> tuple[bool | None, bool]:
    """Where the chest wall is (True: left), and whether the rows run upwards (PS3.3 C.7.6.1.1.1).

    A film hangs with the axilla (MLO) or the outer half (CC) at the top; rows that run the other way are turned.
    """
    values = orientation(header.texts("PatientOrientation"))
    if len(values) != 2 or not all(values):
        return None, False
    across, down = values
    if OTHER in values or across[0] not in "AP" or down[0] not in "HFLR":
        raise refuse("unsupported_orientation", expected="columns along anterior-posterior, rows across them")
    # Down an MLO film the rows run to the feet and to the midline, which is the patient's right for the left breast.
    across_midline = down[1:2]
    if position == "MLO" and across_midline in ("L", "R") and (down[0] == "F") == (across_midline == side):
        raise refuse("laterality_conflict", found="PatientOrientation is that of the other breast",
                     expected="ImageLaterality and PatientOrientation of one breast")  # fmt: skip
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
