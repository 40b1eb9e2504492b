"""Closed vocabularies of header values, and how a free text is brought down to them.

Called by admission, which judges films by these words, and by client/ingest/deidentify, which keeps nothing else. Both
look at a value through the same functions, so a film is judged alike before and after de-identification. Every function
is idempotent: what it returns, it returns again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from datetime import date

OTHER = "OTHER"
"""Stands for a value outside its vocabulary: it is still seen to be there, and says nothing."""

MODALITIES = frozenset({
    "MG", "CR", "DX", "RG", "US", "MR", "CT", "PT", "NM", "OT", "SR", "PR", "SC", "XA", "XC", "DOC", "KO",
    "SEG", "REG", "SM",
})  # fmt: skip
PHOTOMETRIC = frozenset({
    "MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420",
    "PALETTE COLOR",
})  # fmt: skip
OTHER_VIEWS = frozenset({
    "ML", "LM", "LMO", "SIO", "ISO", "XCC", "XCCL", "XCCM", "FB", "CV", "AT", "RL", "RM", "RS", "AX", "SPECIMEN", "TAN",
})  # fmt: skip
SIDES = frozenset({"L", "R", "B"})
IMAGE_TYPES = frozenset({
    "", "ORIGINAL", "DERIVED", "PRIMARY", "SECONDARY", "SCREEN SAVE", "SCREENSAVE", "TOMOSYNTHESIS", "TOMO_PROJ",
    "TOMO", "GENERATED_2D", "TOMO_2D", "LOW_ENERGY", "HIGH_ENERGY", "SUBTRACTION", "RECOMBINED", "STEREO", "NONE",
    "MAGNIFIED",
})  # fmt: skip
YES_NO = frozenset({"YES", "NO"})
INTENTS = frozenset({"FOR PRESENTATION", "FOR PROCESSING"})
VOI_FUNCTIONS = frozenset({"LINEAR", "LINEAR_EXACT", "SIGMOID"})
# SNOMED CT, and the SNOMED-RT codes that older machines write (PS3.16 CID 4014).
VIEW_CODES = {
    "399162004": "CC", "R-10242": "CC", "399368009": "MLO", "R-10226": "MLO",
    "399260004": "ML", "R-10224": "ML", "399352003": "LM", "R-10228": "LM", "399099002": "LMO", "R-10230": "LMO",
    "399188001": "SIO", "R-102D0": "SIO", "399196006": "FB", "R-10244": "FB", "399265009": "XCC", "R-1024A": "XCC",
    "399192008": "XCCL", "R-1024B": "XCCL", "399101009": "XCCM", "R-102CB": "XCCM",
}  # fmt: skip
# View modifiers (PS3.16 CID 4015); a film with one that is not listed is no ordinary view either.
MODIFIER_CODES = {
    "399161006": "cleavage", "R-102D2": "cleavage", "399011000": "axillary tail", "R-102D1": "axillary tail",
    "399197002": "rolled", "R-102D3": "rolled", "399226006": "rolled", "R-102D4": "rolled", "414493004": "rolled",
    "R-102CA": "rolled", "415670009": "rolled", "R-102C9": "rolled",
    "399209000": "implant displaced", "R-102D5": "implant displaced",
    "399163009": "magnification", "R-102D6": "magnification",
    "399055006": "spot compression", "R-102D7": "spot compression",
    "399110001": "tangential", "R-102C2": "tangential",
}  # fmt: skip

_ORIENTATION = re.compile(r"[AP][AHFLRP]{0,3}|[HFLR][AHFLRP]{0,3}|CC|MLO")
_NUMBER = re.compile(r"[+-]?([0-9]{1,32}\.?[0-9]{0,32}|\.[0-9]{1,32})([eE][+-]?[0-9]{1,3})?")
_PARTIAL = re.compile(r"crop|\broi\b|mask|spot|magnif|specimen|stereo|biops|galacto|ductogr", re.IGNORECASE)
_SYNTHETIC = re.compile(r"c-?view|s-?view|v-preview|synthe(?:tic|si[sz]ed)|intelligent ?2d|insight ?2d|generated ?2d"
                        r"|synth2d", re.IGNORECASE)  # fmt: skip
_SCREEN = re.compile(r"screen ?(?:save|shot|capture)", re.IGNORECASE)
_SIDE_AND_VIEW = re.compile(
    r"(?<![a-z0-9])(?:(l|r|left|right)[ _-]{0,2}(cc|mlo)|(cc|mlo)[ _-]{0,2}(l|r|left|right))(?![a-z0-9])",
    re.IGNORECASE,
)
_MAKER = re.compile(r"[A-Za-z0-9][A-Za-z0-9 .,&()/_+-]{0,63}")
# Words of makers and of made-up women, which say nothing of a person whose name they happen to be.
_NOBODYS = frozenset({
    "agfa", "carestream", "corporation", "fischer", "fuji", "fujifilm", "giotto", "healthcare", "hologic", "ims",
    "kodak", "konica", "lorad", "medical", "metaltronica", "minolta", "philips", "planmed", "sectra", "siemens",
    "synth", "systems",
})  # fmt: skip
_WORD = re.compile(r"[A-Za-z0-9]{3,}")


def coded(value: str, vocabulary: Iterable[str]) -> str:
    """`value` where the vocabulary has it, "" where it is empty, else OTHER."""
    return value if not value or value in vocabulary else OTHER


def orientation(values: list[str]) -> list[str]:
    """Values of PatientOrientation (PS3.3 C.7.6.1.1.1), each a direction or (digitised films) a view, else OTHER."""
    return [value if not value or _ORIENTATION.fullmatch(value) else OTHER for value in values[:3]]


def number(text: str) -> float:
    """A DS or IS value; NaN where it is no decimal number (Python's float takes more: `1_0`, `infinity`)."""
    return float(text) if _NUMBER.fullmatch(text) else math.nan


def description(text: str) -> str:
    """What matters of a free description, in words of ours: parts of a breast, screen captures, side and view.

    PS3.15 E.3.5 (Clean Descriptors): what is not such a word may be a name and is not repeated.
    """
    words = {match.group().upper() for match in _PARTIAL.finditer(text)}
    words |= {"SYNTH2D"} if _SYNTHETIC.search(text) else set()
    words |= {"SCREENSAVE"} if _SCREEN.search(text) else set()
    for match in _SIDE_AND_VIEW.finditer(text):
        side, view = (match.group(1) or match.group(4)), (match.group(2) or match.group(3))
        words.add(f"{side[0]}_{view}".upper())
    return " ".join(sorted(words))


def partial(text: str) -> bool:
    """Whether a description speaks of less than a full view."""
    return _PARTIAL.search(text) is not None


def maker(text: str, *, names: Iterable[str]) -> str:
    """A Manufacturer of at most 64 signs, or "" where it is of another form or repeats a word of `names`.

    The element is free text: where a clerk or a converter has put the patient into it, it must not travel.
    """
    text = text.strip(" \0")[:64].rstrip()
    private = {word.casefold() for name in names for word in _WORD.findall(name)} - _NOBODYS
    spoken = {word.casefold() for word in _WORD.findall(text)}
    return text if _MAKER.fullmatch(text) and not private & spoken else ""


def calendar(text: str) -> date | None:
    """A DA value, YYYYMMDD; None where it is none (00000000 is what anonymisers leave)."""
    if not re.fullmatch(r"[0-9]{8}", text):
        return None
    try:
        return date(int(text[:4]), int(text[4:6]), int(text[6:]))
    except ValueError:
        return None


def age_years(age: str, *, birth_date: str, study_date: str) -> float | None:
    """Completed years at the study from PatientAge (AS, PS3.5 6.2: 054Y, or 650M), else from the dates.

    None where neither tells, or no grown woman's: anonymisers write 000Y. Three digits of weeks or days are a child's.
    """
    years: float | None = None
    if re.fullmatch(r"[0-9]{3}[YMWD]", age):
        years = float(int(age[:3]) // {"Y": 1, "M": 12, "W": 52, "D": 365}[age[3]])
    elif (born := calendar(birth_date)) is not None and (study := calendar(study_date)) is not None:
        years = float(study.year - born.year - ((study.month, study.day) < (born.month, born.day)))
    return years if years is not None and 18.0 <= years <= 120.0 else None
