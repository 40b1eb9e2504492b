"""The elements that leave a film's original data set, and what happens to each; read by deidentifier.

The list is closed: an element that is not here is not copied, whatever it is. So private elements, overlays, curves,
comments, physicians, institutions and devices need no rule of their own. `profile` is the action that the Basic
Application Level Confidentiality Profile asks for (PS3.15 2024b, table E.1-1; "" where the table does not list the
element), and a test holds every row against that table: what it lists must be treated, by the option named in `why`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from shared_model.imaging.header import TAGS
from shared_model.imaging.vocabulary import (
    IMAGE_TYPES,
    INTENTS,
    MODALITIES,
    OTHER_VIEWS,
    PHOTOMETRIC,
    SIDES,
    VOI_FUNCTIONS,
    YES_NO,
)

Treatment = Literal[
    "coded", "image_type", "orientation", "number", "integer", "sop_class", "uid", "date", "time", "age", "pseudonym",
    "empty", "description", "maker", "view_code", "table",
]  # fmt: skip
"""coded: a term of the vocabulary, else OTHER. number: decimal text. integer: 16 bits. uid: keyed. date, time: shifted
by the patient's amount. empty: zero length. description: words of ours. view_code, table: sequences of those."""

CHANGED: frozenset[Treatment] = frozenset({"uid", "date", "time", "age", "pseudonym", "empty", "description"})
"""Treatments after which nothing of the original value is left that the Basic Profile protects."""


@dataclass(frozen=True)
class Element:
    """One row. vr: value representation that is written (PS3.6). vocabulary: for `coded`."""

    name: str
    tag: int
    vr: str
    treatment: Treatment
    profile: str
    why: str
    vocabulary: Collection[str] = ()


def _row(
    name: str, vr: str, treatment: Treatment, why: str, *, profile: str = "", vocabulary: Collection[str] = ()
) -> Element:
    return Element(name, TAGS[name], vr, treatment, profile, why, vocabulary)


def _integers(*names: str) -> tuple[Element, ...]:
    return tuple(_row(name, "US", "integer", "how pixels are stored") for name in names)


def _numbers(vr: str, why: str, *names: str) -> tuple[Element, ...]:
    return tuple(_row(name, vr, "number", why) for name in names)


ALLOWED: tuple[Element, ...] = (
    _row("ImageType", "CS", "image_type", "screen saves and computed images", vocabulary=IMAGE_TYPES),
    _row("SOPClassUID", "UI", "sop_class", "kind of object; a UID of the standard or another one"),
    _row("SOPInstanceUID", "UI", "uid", "which film", profile="U"),
    _row("StudyDate", "DA", "date", "113107 Retain Longitudinal, Modified Dates", profile="Z"),
    _row("AcquisitionTime", "TM", "time", "113107; orders repeated films", profile="X/Z"),
    _row("Modality", "CS", "coded", "only mammograms", vocabulary=MODALITIES),
    _row("PresentationIntentType", "CS", "coded", "only For Presentation", vocabulary=INTENTS),
    _row("Manufacturer", "LO", "maker", "subgroup of a report; never with a word of her name"),
    _row("SeriesDescription", "LO", "description", "113105 Clean Descriptors; spot views, side and view", profile="X"),
    _row("PatientName", "PN", "empty", "type 2", profile="Z"),
    _row("PatientID", "LO", "pseudonym", "keyed", profile="Z/D"),
    _row("PatientBirthDate", "DA", "empty", "type 2; her age is taken first", profile="Z"),
    _row("PatientAge", "AS", "age", "113108 Retain Patient Characteristics; at most 89 years", profile="X"),
    _row("PaddleDescription", "LO", "description", "113105 Clean Descriptors; spot paddles"),
    *_numbers("DS", "size of a pixel in the breast", "ImagerPixelSpacing",
              "EstimatedRadiographicMagnificationFactor", "NominalScannedPixelSpacing"),
    _row("ViewPosition", "CS", "coded", "which view", vocabulary=OTHER_VIEWS | {"CC", "MLO"}),
    _row("StudyInstanceUID", "UI", "uid", "which exam", profile="U"),
    _row("InstanceNumber", "IS", "number", "orders repeated films"),
    _row("PatientOrientation", "CS", "orientation", "how the film hangs"),
    _row("Laterality", "CS", "coded", "which breast", vocabulary=SIDES),
    _row("ImageLaterality", "CS", "coded", "which breast", vocabulary=SIDES),
    *_integers("SamplesPerPixel"),
    _row("PhotometricInterpretation", "CS", "coded", "how pixels are stored", vocabulary=PHOTOMETRIC),
    *_numbers("IS", "tomosynthesis is refused by it", "NumberOfFrames"),
    *_integers("Rows", "Columns"),
    *_numbers("DS", "size of a pixel in the breast", "PixelSpacing"),
    *_integers("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue",
               "PixelPaddingRangeLimit"),
    _row("BurnedInAnnotation", "CS", "coded", "the site's policy decides", vocabulary=YES_NO),
    *_numbers("DS", "how pixels are shown", "WindowCenter", "WindowWidth", "RescaleIntercept", "RescaleSlope"),
    _row("VOILUTFunction", "CS", "coded", "how pixels are shown", vocabulary=VOI_FUNCTIONS),
    _row("BreastImplantPresent", "CS", "coded", "implants are left out", vocabulary=YES_NO),
    _row("PartialView", "CS", "coded", "partial views are left out", vocabulary=YES_NO),
    _row("ModalityLUTSequence", "SQ", "table", "how pixels are shown; numbers without explanation"),
    _row("VOILUTSequence", "SQ", "table", "how pixels are shown; numbers without explanation"),
    _row("ViewCodeSequence", "SQ", "view_code", "which view; codes of CID 4014 and 4015"),
    # What the pipeline does not read, but an object needs (type 1 or 2 in its modules), so that any tool can open it.
    Element("SeriesInstanceUID", 0x0020000E, "UI", "uid", "U", "which series"),
    Element("StudyTime", 0x00080030, "TM", "empty", "Z", "type 2"),
    Element("AccessionNumber", 0x00080050, "SH", "empty", "Z", "type 2"),
    Element("ReferringPhysicianName", 0x00080090, "PN", "empty", "Z", "type 2"),
    Element("PatientSex", 0x00100040, "CS", "empty", "Z", "type 2"),
    Element("StudyID", 0x00200010, "SH", "empty", "Z", "type 2"),
)  # fmt: skip

PIXEL_DATA = 0x7FE00010
METHOD = "MammoFed allow-list on the Basic Profile of PS3.15 2024b"
METHOD_CODES: tuple[tuple[str, str], ...] = (
    ("113100", "Basic Application Confidentiality Profile"),
    ("113105", "Clean Descriptors Option"),
    ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    ("113108", "Retain Patient Characteristics Option"),
)
"""PS3.16 CID 7050. Not claimed: 113101 Clean Pixel Data, which the breast mask does later, on the way to the cohort."""
