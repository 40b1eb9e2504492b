"""De-identifies films on their way in; used by every source of the importer, whatever way a film comes.

Everything that the importer compares, orders or writes down is in de-identified space, so that one film gives the same
cohort whether it is read in a folder or fetched from a PACS. For any data set `ds`:

    admit(header of dataset(ds)) == film(admit(header of ds))
"""

from __future__ import annotations

import math
import re
from dataclasses import replace

from pydicom.config import IGNORE
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID

from client.ingest.deidentify.allow_list import ALLOWED, METHOD, METHOD_CODES, PIXEL_DATA, Element
from client.ingest.deidentify.keyed import Keyed
from client.ingest.deidentify.pixels import own_pixels
from client.ingest.deidentify.sequences import tables, view_codes
from client.ingest.deidentify.values import Damaged, decoded, integer, texts
from client.ingest.pseudonyms import Pseudonyms
from shared_model.imaging.admission import Film
from shared_model.imaging.header import TAGS, quiet_pydicom
from shared_model.imaging.vocabulary import OTHER, age_years, coded, description, maker, number, orientation

OLDEST = 89  # HIPAA 45 CFR 164.514(b)(2)(i)(C): ages over 89 are one category
IMPLEMENTATION_UID = UID("2.25.200870302331637870393236106374436404573")  # of this de-identifier, made once by uuid4
NO_UID = "2.25.0"
_STANDARD = "1.2.840.10008."
_INTEGER = re.compile(r"[+-]?[0-9]{1,9}")


class Deidentifier:
    """Pseudonyms, UIDs, dates and data sets under one key.

    Args:
        key: secret bytes of this site, at least 16; the importer keeps them, nobody else sees them.

    >>> Deidentifier(b"k" * 32).uid("1.2.3")
    '2.25.249302357789225373416957504223639953077'
    """

    def __init__(self, key: bytes) -> None:
        self._pseudonyms = Pseudonyms(key)
        self._keyed = Keyed(key)

    def __repr__(self) -> str:
        return "Deidentifier(<key>)"

    def pseudonym(self, patient_id: str) -> str:
        """16 hex letters for a patient id; "" for an empty one.

        Raises:
            CohortError: two ids share a pseudonym (then another key has to be used).
        """
        return self._pseudonyms.of(patient_id)

    def uid(self, uid: str) -> str:
        """`2.25.<number>` for a UID, always the same one; "" for an empty one."""
        return self._keyed.uid(uid)

    def shift_days(self, pseudonym: str) -> int:
        """Days that are added to all dates of a patient: -3652..-1."""
        return self._keyed.shift_days(pseudonym)

    def date(self, pseudonym: str, date: str) -> str:
        """YYYYMMDD moved by the patient's days; "" where it is no date."""
        return self._keyed.date(pseudonym, date)

    def time(self, pseudonym: str, time: str) -> str:
        """TM value as HHMMSS.FFFFFF moved by the patient's seconds, within the day; "" where it is no time."""
        return self._keyed.time(pseudonym, time)

    def film(self, film: Film) -> Film:
        """What `dataset` makes of a film, for a header that was read and admitted in place."""
        pseudonym, sop_uid = self.pseudonym(film.patient_id), self.uid(film.sop_uid)
        time, instance, _ = film.order
        return replace(
            film, patient_id=pseudonym, study_uid=self.uid(film.study_uid), sop_uid=sop_uid,
            study_date=self.date(pseudonym, film.study_date), order=(self.time(pseudonym, time), instance, sop_uid),
            age_years=None if film.age_years is None else min(film.age_years, float(OLDEST)),
        )  # fmt: skip

    def dataset(self, ds: Dataset) -> Dataset:
        """A new data set of the elements of ALLOWED, each treated as it says there, and its own file meta group.

        Nothing of `ds` is changed. A value that is damaged stays recognisable as such and says nothing, so that the
        film is refused with the same reason later; no message here repeats a value. The transfer syntax is that of
        `ds.file_meta` (set it before, where it came apart from the data set). Pixels go along only of what a model
        could be shown: not of reports in colour, tomosyntheses and the like, which are refused whatever they show.

        Raises:
            CohortError: two ids share a pseudonym.
        """
        with quiet_pydicom():
            patient = decoded(ds, TAGS["PatientID"])
            pseudonym = self.pseudonym(patient)
            out = Dataset()
            for element in ALLOWED:
                if element.treatment == "empty" or element.tag in ds:
                    value = self._treated(ds, element, patient, pseudonym)
                    if value is not None:
                        out[element.tag] = value
            _state_age(out, ds)
            _state_method(out)
            out.file_meta = _file_meta(ds, out)
            pixels = own_pixels(ds, PIXEL_DATA, syntax=_syntax(ds))
            if pixels is not None:
                out[PIXEL_DATA] = pixels
            return out

    def _treated(self, ds: Dataset, element: Element, patient: str, pseudonym: str) -> DataElement | None:
        """The element as it is written, or None where nothing of it is."""
        tag, vr = element.tag, element.vr
        if element.treatment == "integer":
            value = integer(ds, tag)
            if value is None:
                return None
            # US or SS by PixelRepresentation (PS3.6); US keeps the same bits, and those are what is read.
            return DataElement(tag, "US", value)
        if element.treatment in ("view_code", "table"):
            try:
                return DataElement(tag, "SQ", (view_codes if element.treatment == "view_code" else tables)(ds, tag))
            except Damaged:
                return DataElement(tag, "LO", OTHER)
        parts = texts(ds, tag) or [""]
        match element.treatment:
            case "coded":
                shown = [coded(parts[0], element.vocabulary)]
            case "image_type":
                shown = [coded(part.upper(), element.vocabulary) for part in parts[:8]]
            case "orientation":
                shown = orientation(parts)
            case "number":
                return _numbers(tag, vr, [part for part in parts if part])
            case "sop_class":
                shown = [parts[0] if _standard(parts[0]) else self.uid(parts[0])]
            case "uid":
                shown = [self.uid(parts[0])]
            case "date":
                shown = [self.date(pseudonym, parts[0])]
            case "time":
                shown = [self.time(pseudonym, parts[0])]
            case "pseudonym":
                shown = [pseudonym]
            case "description":
                shown = [description(parts[0])]
            case "maker":
                shown = [maker(decoded(ds, tag), names=(patient, (texts(ds, TAGS["PatientName"]) or [""])[0]))]
            case _:
                return None if element.treatment == "age" else DataElement(tag, vr, "")
        return DataElement(tag, vr, shown if len(shown) > 1 else shown[0])


def _standard(uid: str) -> bool:
    return uid.startswith(_STANDARD) and len(uid) <= 64 and all(part.isdigit() for part in uid.split("."))


def _numbers(tag: int, vr: str, parts: list[str]) -> DataElement:
    """DS and IS as their own digits: a number that is written again may be another one."""
    if not all(math.isfinite(number(part)) for part in parts):
        return DataElement(tag, "LO", OTHER)
    if vr == "IS" and not all(_INTEGER.fullmatch(part) for part in parts):  # some machines write fractions there
        vr = "DS"
    return DataElement(tag, vr, "\\".join(parts), validation_mode=IGNORE)  # some write more than a DS's 16 signs


def _state_age(out: Dataset, ds: Dataset) -> None:
    """PatientAge, taken before the birth date goes."""
    age, birth, study = ((texts(ds, TAGS[name]) or [""])[0] for name in ("PatientAge", "PatientBirthDate", "StudyDate"))
    years = age_years(age, birth_date=birth, study_date=study)
    if years is not None:
        out.PatientAge = f"{min(int(years), OLDEST):03d}Y"


def _state_method(out: Dataset) -> None:
    """What was done, for whoever opens the object (PS3.15 E.1.1, PS3.3 C.12.1)."""
    out.PatientIdentityRemoved = "YES"
    out.DeidentificationMethod = METHOD
    out.LongitudinalTemporalInformationModified = "MODIFIED"
    codes = Sequence()
    for value, meaning in METHOD_CODES:
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
        codes.append(code)
    out.DeidentificationMethodCodeSequence = codes


def _file_meta(ds: Dataset, out: Dataset) -> FileMetaDataset:
    """A new file meta group (PS3.10 7.1); the old one names the machines that a film went through."""
    meta = FileMetaDataset()
    # An object without these is written too: it ends in quarantine for it, and is not lost on the way.
    meta.MediaStorageSOPClassUID = UID(str(out.get("SOPClassUID", "")) or NO_UID)
    meta.MediaStorageSOPInstanceUID = UID(str(out.get("SOPInstanceUID", "")) or NO_UID)
    meta.ImplementationClassUID = IMPLEMENTATION_UID
    if _standard(_syntax(ds)):
        meta.TransferSyntaxUID = UID(_syntax(ds))
    return meta


def _syntax(ds: Dataset) -> str:
    return str(getattr(getattr(ds, "file_meta", None), "TransferSyntaxUID", ""))
