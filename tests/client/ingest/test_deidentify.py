"""De-identification: nothing of a woman survives it, and nothing that the pipeline needs is lost by it."""

from __future__ import annotations

import csv
import re
import threading
import uuid
import warnings
from dataclasses import replace
from datetime import date, timedelta
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom._dicom_dict import DicomDictionary
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import UID

from client.ingest.deidentify import Deidentifier
from client.ingest.deidentify.allow_list import ALLOWED, CHANGED, METHOD_CODES, PIXEL_DATA
from client.ingest.pseudonyms import Pseudonyms
from shared_model.errors import ConfigError, ImagingError
from shared_model.imaging import Film, PipelineConfig, prepare_view, read_header
from shared_model.imaging.header import TAGS
from shared_model.imaging.vocabulary import description

KEY = b"k" * 32
TABLE = Path(__file__).parent / "basic_profile_2024b.csv"
STATED = {"PatientAge", "PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence",
          "LongitudinalTemporalInformationModified", "PixelData"}  # fmt: skip


@pytest.fixture(scope="module")
def deidentifier() -> Deidentifier:
    return Deidentifier(KEY)


def clean(films: ModuleType, **changes: Any) -> Dataset:
    ds = films.film_dataset(films.breast_film(rows=80, columns=64), spacing_mm=2.5)
    for name, value in changes.items():
        setattr(ds, name, value)
    return ds


def written(ds: Dataset, syntax: str = "1.2.840.10008.1.2.1") -> bytes:
    """The bytes of a data set as a file."""
    if not hasattr(ds, "file_meta"):
        ds.file_meta = FileMetaDataset()
    ds.file_meta.setdefault("TransferSyntaxUID", UID(syntax))
    ds.file_meta.MediaStorageSOPClassUID = ds.get("SOPClassUID") or UID("2.25.0")
    ds.file_meta.MediaStorageSOPInstanceUID = ds.get("SOPInstanceUID") or UID("2.25.0")
    stream = BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def outcome(path: Path, config: PipelineConfig) -> Film | str:
    """The admitted film, or the reason why it was not."""
    try:
        return read_header(path, config, declared_spacing_mm=2.5)
    except ImagingError as error:
        return error.reason


# ---- keyed values


def test_pseudonyms_are_those_of_today(deidentifier: Deidentifier) -> None:
    assert deidentifier.pseudonym("PID-1") == Pseudonyms(KEY).of("PID-1")
    assert deidentifier.pseudonym("") == ""
    with pytest.raises(ConfigError):
        Deidentifier(b"short")
    assert "k" * 8 not in repr(deidentifier)


@given(text=st.text(min_size=1, max_size=64).filter(lambda text: text.strip(" \0") != ""))
def test_a_uid_becomes_a_valid_uid_that_only_the_key_can_make(text: str) -> None:
    made = Deidentifier(KEY).uid(text)
    assert made == Deidentifier(KEY).uid(text + "\0") and UID(made).is_valid and len(made) <= 64
    assert made.startswith("2.25.") and uuid.UUID(int=int(made[5:])).version == 8
    assert made != Deidentifier(b"j" * 32).uid(text)


def test_uids_do_not_collide_and_empty_stays_empty(deidentifier: Deidentifier) -> None:
    assert len({deidentifier.uid(f"1.2.3.{i}") for i in range(5000)}) == 5000
    assert deidentifier.uid("") == deidentifier.uid(" \0") == ""
    assert (
        deidentifier.uid("1.2.3") == "2.25.249302357789225373416957504223639953077"
    )  # for ever: received films are stored by it


@given(
    first=st.dates(date(1900, 1, 1), date(2100, 1, 1)), second=st.dates(date(1900, 1, 1), date(2100, 1, 1)),
    patient=st.text(min_size=1, max_size=20),
)  # fmt: skip
def test_dates_move_together_and_never_stay(first: date, second: date, patient: str) -> None:
    deidentifier = Deidentifier(KEY)
    pseudonym = deidentifier.pseudonym(patient)
    days = deidentifier.shift_days(pseudonym)
    assert -3652 <= days <= -1
    moved = [deidentifier.date(pseudonym, day.isoformat().replace("-", "")) for day in (first, second)]
    parsed = [date.fromisoformat(text) for text in moved]
    assert parsed[0] - first == parsed[1] - second == timedelta(days=days)


def test_shifts_are_spread_and_differ_between_women(deidentifier: Deidentifier) -> None:
    shifts = [deidentifier.shift_days(deidentifier.pseudonym(f"P{i}")) for i in range(2000)]
    assert len(set(shifts)) > 1400
    assert -1900 < np.mean(shifts) < -1750


@pytest.mark.parametrize("text", ["", "00000000", "20231301", "2023-01-01", "2023", "BERTA", "20230101-20240101"])
def test_what_is_no_date_does_not_stay(deidentifier: Deidentifier, text: str) -> None:
    assert deidentifier.date("0" * 16, text) == ""


def test_the_first_years_of_the_calendar_do_not_overflow(deidentifier: Deidentifier) -> None:
    assert deidentifier.date("0" * 16, "00010101") == ""


@given(hour=st.integers(2, 20), first=st.integers(0, 3599), later=st.integers(1, 3000), patient=st.integers(0, 500))
def test_times_keep_their_order_within_a_working_day(hour: int, first: int, later: int, patient: int) -> None:
    deidentifier = Deidentifier(KEY)
    times = [f"{hour + s // 3600:02d}{s // 60 % 60:02d}{s % 60:02d}" for s in (first, first + later)]
    moved = [deidentifier.time(f"{patient:016x}", time) for time in times]
    assert moved[0] < moved[1] and all(re.fullmatch(r"\d{6}\.\d{6}", time) for time in moved)
    seconds = [int(t[:2]) * 3600 + int(t[2:4]) * 60 + int(t[4:6]) for t in moved]
    assert seconds[1] - seconds[0] == later


def test_times_of_every_form_and_of_none(deidentifier: Deidentifier) -> None:
    whole = deidentifier.time("0" * 16, "101000")
    assert deidentifier.time("0" * 16, "1010") == whole == deidentifier.time("0" * 16, "101000.0")
    assert deidentifier.time("0" * 16, "101000.25")[6:] == ".250000"
    for text in ("", "25", "10:10:10", "BERTA", "1", "101000.1234567"):
        assert deidentifier.time("0" * 16, text) == ""


# ---- the allow-list and the standard's table


def test_every_row_is_treated_as_the_basic_profile_asks() -> None:
    """Nothing that PS3.15 2024b, table E.1-1, removes, empties, replaces or renumbers passes as it is."""
    with TABLE.open() as stream:
        profile = {int(row["tag"], 16): row["basic_profile"] for row in csv.DictReader(stream)}
    assert len(profile) > 400 and profile[TAGS["PatientID"]] == "Z/D" and profile[TAGS["StudyInstanceUID"]] == "U"
    for element in ALLOWED:
        assert element.profile == profile.get(element.tag, ""), element.name
        if element.profile:
            assert element.treatment in CHANGED, element.name
        if element.profile == "U":
            assert element.treatment == "uid"


def test_the_list_is_what_the_pipeline_reads_and_what_an_object_needs() -> None:
    assert len({element.tag for element in ALLOWED}) == len(ALLOWED)
    assert set(TAGS) <= {element.name for element in ALLOWED}
    for element in ALLOWED:
        assert element.why and DicomDictionary[element.tag][4] == element.name
        assert element.vr in DicomDictionary[element.tag][0].split(" or ")
        assert bool(element.vocabulary) == (element.treatment in ("coded", "image_type"))
        assert not Tag(element.tag).is_private


# ---- data sets

SECRET = "WINTERHALTER"
SECRET_DATE, SECRET_UID = "19470813", "9.8.7.6.5.4.3"


def planted() -> Dataset:
    """A film with something of her in every element of the data dictionary, in private ones, overlays and curves."""
    ds = Dataset()
    values: dict[str, object] = {
        "AE": SECRET, "AS": "077Y", "CS": SECRET, "DA": SECRET_DATE, "DT": SECRET_DATE + "101010", "LO": SECRET,
        "LT": SECRET, "PN": f"{SECRET}^BERTA", "SH": SECRET, "ST": SECRET, "TM": "031415", "UC": SECRET,
        "UI": SECRET_UID, "UR": SECRET, "UT": SECRET, "OB": SECRET.encode(), "OW": SECRET.encode(),
        "UN": SECRET.encode(), "OB or OW": SECRET.encode(), "DS": "27182.5", "IS": "314159",
    }  # fmt: skip
    for tag, (vr, *_) in DicomDictionary.items():
        if tag >> 16 in (0, 2) or tag == 0x00080005 or tag >> 16 >= 0xFFFC or vr not in values:
            continue
        ds.add_new(tag, vr.split(" ")[0], values[vr])
    for group in (0x6000, 0x6002, 0x5000):
        ds.add_new(Tag(group, 0x3000), "OW", SECRET.encode())
        ds.add_new(Tag(group, 0x0022), "LO", SECRET)
    for group in (0x0009, 0x0019, 0x7FE1):
        ds.add_new(Tag(group, 0x0010), "LO", SECRET)
        ds.add_new(Tag(group, 0x1001), "UT", SECRET)
    nested = Dataset()
    nested.PatientName, nested.ReferencedSOPInstanceUID = SECRET, SECRET_UID
    for name in ("SourceImageSequence", "RequestAttributesSequence", "ReferencedStudySequence"):
        setattr(ds, name, Sequence([nested]))
    return ds


def leaks(data: bytes) -> list[bytes]:
    """Planted texts that are in the bytes, in any of the encodings that DICOM has for them."""
    texts = [SECRET, "BERTA", SECRET_DATE, "1947-08-13", SECRET_UID, "031415", "27182", "314159"]
    return [text.encode(code) for text in texts for code in ("ascii", "utf-16-le") if text.encode(code) in data]


def test_nothing_planted_in_any_element_survives(films: ModuleType, deidentifier: Deidentifier) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = planted()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.1")
        ds.file_meta.SourceApplicationEntityTitle = SECRET
        ds.preamble = SECRET.encode().ljust(128, b"\0")
        numeric = {"ImagerPixelSpacing", "EstimatedRadiographicMagnificationFactor", "NominalScannedPixelSpacing",
                   "InstanceNumber", "NumberOfFrames", "PixelSpacing", "WindowCenter", "WindowWidth",
                   "RescaleIntercept", "RescaleSlope"}  # fmt: skip
        for name in numeric:  # these are numbers and stay numbers
            setattr(ds, name, "1")
        assert len(leaks(written(ds))) >= 7
        out = deidentifier.dataset(ds)
        data = written(out)
    assert leaks(data) == []
    names = {element.keyword for element in out}
    assert names <= {element.name for element in ALLOWED} | STATED
    assert not any(element.tag.is_private for element in out.iterall())
    assert out.PatientID == Pseudonyms(KEY).of(SECRET)
    assert out.StudyInstanceUID == deidentifier.uid(SECRET_UID) == out.file_meta.MediaStorageSOPInstanceUID


def test_every_coded_element_that_holds_a_name_is_emptied_of_it(films: ModuleType, deidentifier: Deidentifier) -> None:
    """A clerk, a converter or an attacker can write a name into any text element, coded ones included."""
    for element in ALLOWED:
        if element.vr in ("US", "SQ"):
            continue
        ds = clean(films)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ds.PatientName = f"{SECRET}^BERTA"
            ds.add_new(element.tag, "LO", f"{SECRET} BERTA")
            assert leaks(written(deidentifier.dataset(ds))) == [], element.name


def test_what_was_done_is_stated(films: ModuleType, deidentifier: Deidentifier) -> None:
    out = deidentifier.dataset(clean(films, PatientAge="093Y"))
    assert (out.PatientIdentityRemoved, out.LongitudinalTemporalInformationModified) == ("YES", "MODIFIED")
    assert [code.CodeValue for code in out.DeidentificationMethodCodeSequence] == [code for code, _ in METHOD_CODES]
    assert len(out.DeidentificationMethod) <= 64
    assert (out.PatientName, out.PatientBirthDate, out.PatientAge) == ("", "", "089Y")
    assert (out.Manufacturer, out.BurnedInAnnotation) == ("ACME", "NO")


def test_the_age_is_taken_before_the_birth_date_goes(films: ModuleType, deidentifier: Deidentifier) -> None:
    assert deidentifier.dataset(clean(films, PatientAge="", PatientBirthDate="19500303")).PatientAge == "073Y"
    assert deidentifier.dataset(clean(films, PatientAge="", PatientBirthDate="19200303")).PatientAge == "089Y"
    assert deidentifier.dataset(clean(films, PatientAge="650M")).PatientAge == "054Y"
    assert "PatientAge" not in deidentifier.dataset(clean(films, PatientAge="000Y"))
    assert "PatientAge" not in deidentifier.dataset(clean(films, PatientAge="", PatientBirthDate="00000000"))


def test_a_maker_that_repeats_her_name_goes_and_another_stays(films: ModuleType, deidentifier: Deidentifier) -> None:
    def vendor(manufacturer: str, **values: str) -> str:
        return str(deidentifier.dataset(clean(films, Manufacturer=manufacturer, **values)).Manufacturer)

    assert vendor("HOLOGIC, Inc.", PatientName="DOE^JANE") == "HOLOGIC, Inc."
    assert vendor("SIEMENS", PatientName="SIEMENS^JANE") == "SIEMENS"
    assert vendor("JANE DOE", PatientName="DOE^JANE") == ""
    assert vendor("unit 4711", PatientID="4711") == ""
    assert vendor("Müller-Röntgen") == ""
    assert vendor("x" * 80) == "x" * 64


def test_a_description_is_brought_down_to_words_of_ours() -> None:
    assert description("Jane Doe left CC spot compression") == "L_CC SPOT"
    assert description("ROUTINE MAMMOGRAM") == ""
    assert description("R-MLO C-View") == "R_MLO SYNTH2D"


@given(text=st.text(alphabet="lrcmLRCMO cropitsmak-_eftghv2d", max_size=40))
def test_a_description_stays_what_it_became(text: str) -> None:
    assert description(description(text)) == description(text)


# ---- the same film either way


HOSTILE: dict[str, list[object]] = {
    "Modality": ["", "BERTA", "CR"],
    "ViewPosition": ["", "BERTA", "XCCL", "MLO", "cc"],
    "ImageLaterality": ["", "R", "B", "X"],
    "Laterality": ["L", "R", "BERTA"],
    "PatientOrientation": ["", "CC", ["A"], ["A", ""], ["L", "P"], ["P", "L"], ["A", "FR"], ["BERTA", "ANNA"],
                           ["A", "R", "X"], ["A", "LINDA"]],
    "SeriesDescription": ["", "cropped", "L MLO", "R CC", "BERTA", "spot R CC L CC", "screen save", "S-View"],
    "PaddleDescription": ["", "18x24", "10CM SPOT"],
    "ImageType": [["ORIGINAL", "PRIMARY"], ["DERIVED", "SECONDARY"], ["BERTA"], ["DERIVED", "PRIMARY", "TOMO_2D"]],
    "ImagerPixelSpacing": ["", ["0.094090909090909", "0.094090909090909"], ["2.5", "x"], ["1e3", "1e3"], "2.5",
                           ["+2.50", "2.5E0"], ["1_0", "10"], ["nan", "nan"]],
    "EstimatedRadiographicMagnificationFactor": ["", "1.8", "0", "1.04"],
    "InstanceNumber": ["", "7", "3.5", "BERTA"],
    "NumberOfFrames": ["", "1", "4", "BERTA"],
    "StudyDate": ["", "00000000", "20240302", "BERTA", "19990229"],
    "AcquisitionTime": ["", "101010.5", "9", "BERTA"],
    "PatientID": ["", "4711", "  x  ", "M\u00fcller", "a\\b"],
    "PatientAge": ["", "000Y", "650M", "099Y", "12Y", "BERTA"],
    "PatientBirthDate": ["", "00000000", "19300101", "BERTA"],
    "Manufacturer": ["", "SYNTH", "GE", "\u5bcc\u58eb", "a" * 70],
    "BurnedInAnnotation": ["", "YES", "BERTA"],
    "BreastImplantPresent": ["", "YES", "BERTA"],
    "PartialView": ["", "YES"],
    "PresentationIntentType": ["", "FOR PROCESSING", "BERTA"],
    "SOPClassUID": ["", "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.1.2.1", SECRET_UID],
    "StudyInstanceUID": ["", SECRET_UID],
    "SOPInstanceUID": ["", SECRET_UID, "BERTA"],
    "PhotometricInterpretation": ["", "RGB", "MONOCHROME1", "BERTA"],
    "WindowCenter": ["", "2048", ["2653", "2713"], "BERTA"],
    "WindowWidth": ["", "0", "4096"],
    "VOILUTFunction": ["", "SIGMOID", "BERTA"],
    "RescaleSlope": ["", "1", "-1", "BERTA"],
}  # fmt: skip


def patched(films: ModuleType, values: dict[str, object]) -> Dataset:
    ds = clean(films)
    ds.SpecificCharacterSet = "ISO_IR 192"
    for name, value in values.items():
        if value is None:
            if name in ds:
                del ds[name]
            continue
        text = "\\".join(str(part) for part in value) if isinstance(value, list) else str(value)
        # As LO, so that pydicom writes anything into it; only its bytes are read.
        ds.add_new(TAGS[name], "LO", text.split("\\") if "\\" in text else text)
    return ds


@st.composite
def edits(draw: st.DrawFn) -> dict[str, object]:
    names = draw(st.lists(st.sampled_from(sorted(HOSTILE)), max_size=4, unique=True))
    return {name: draw(st.sampled_from([None, *HOSTILE[name]])) for name in names}


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=edits(), implicit=st.booleans())
def test_a_film_is_the_same_whether_its_header_or_its_file_is_deidentified(
    films: ModuleType, config: PipelineConfig, tmp_path: Path, deidentifier: Deidentifier, values: dict[str, object],
    implicit: bool,
) -> None:  # fmt: skip
    """admit(header of dataset(ds)) == film(admit(header of ds)), and a refused film is refused for the same reason."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path, stored = tmp_path / "a.dcm", tmp_path / "b.dcm"
        path.write_bytes(written(patched(films, values), "1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.1"))
        before = outcome(path, config)
        stored.write_bytes(written(deidentifier.dataset(dcmread(path))))
        after = outcome(stored, config)
    expected = deidentifier.film(before) if isinstance(before, Film) else before
    assert after == expected
    assert b"BERTA" not in stored.read_bytes()


@pytest.mark.parametrize("syntax", ["implicit", "explicit", "rle", "jpeg_lossless", "jpeg_ls", "jpeg_2000"])
def test_the_prepared_view_is_the_same_to_the_bit(
    films: ModuleType, config: PipelineConfig, tmp_path: Path, deidentifier: Deidentifier, syntax: str
) -> None:
    ds = clean(films, WindowCenter=1900, WindowWidth="3100.5", AcquisitionTime="093000", PatientAge="095Y")
    ds.VOILUTFunction = "SIGMOID"
    path = films.write_film(tmp_path / "a.dcm", ds, syntax=syntax)
    out = deidentifier.dataset(dcmread(path))
    assert out.file_meta.TransferSyntaxUID == films.SYNTAX[syntax]
    stored = tmp_path / "b.dcm"
    stored.write_bytes(written(out))
    here, there = prepare_view(path, config), prepare_view(stored, config)
    assert here.pixels.tobytes() == there.pixels.tobytes()
    pseudonym = deidentifier.pseudonym("SYNTH-T-00001")
    assert replace(there, pixels=here.pixels) == replace(
        here, patient_id=pseudonym, study_uid=deidentifier.uid(here.study_uid), age_years=89.0,
        sop_uid=deidentifier.uid(here.sop_uid), study_date=deidentifier.date(pseudonym, here.study_date),
    )  # fmt: skip


def lut(first: int, count: int, *, vr: str = "US", data_vr: str = "OW") -> Sequence:
    item = Dataset()
    item.add_new(0x00283002, vr, [count, first, 12])
    entries = np.rint(4095 / (1 + np.exp(-np.linspace(-4, 4, count)))).astype("<u2")
    item.add_new(0x00283006, data_vr, entries.tobytes() if data_vr == "OW" else entries.tolist())
    item.LUTExplanation = SECRET
    return Sequence([item])


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("kind", ["VOILUTSequence", "ModalityLUTSequence"])
@pytest.mark.parametrize("data_vr", ["OW", "US"])
def test_tables_keep_their_numbers_and_lose_their_words(
    films: ModuleType, config: PipelineConfig, tmp_path: Path, deidentifier: Deidentifier, implicit: bool, kind: str,
    data_vr: str,
) -> None:  # fmt: skip
    ds = clean(films)
    setattr(ds, kind, lut(0, 4096, data_vr=data_vr))
    path, stored = tmp_path / "a.dcm", tmp_path / "b.dcm"
    path.write_bytes(written(ds, "1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.1"))
    stored.write_bytes(written(deidentifier.dataset(dcmread(path))))
    assert SECRET.encode() in path.read_bytes() and SECRET.encode() not in stored.read_bytes()
    assert prepare_view(path, config).pixels.tobytes() == prepare_view(stored, config).pixels.tobytes()


def test_a_signed_film_with_padding_and_a_negative_table_is_the_same(
    films: ModuleType, config: PipelineConfig, tmp_path: Path, deidentifier: Deidentifier
) -> None:
    pixels = films.breast_film(rows=80, columns=64)
    ds = films.film_dataset((pixels.astype(np.int16) - 2048).view(np.uint16), spacing_mm=2.5)
    ds.PixelRepresentation = 1
    ds.add_new(TAGS["PixelPaddingValue"], "SS", -2048)
    ds.add_new(TAGS["PixelPaddingRangeLimit"], "SS", -2045)
    ds.VOILUTSequence = lut(-2048, 4096, vr="SS")
    path, stored = tmp_path / "a.dcm", tmp_path / "b.dcm"
    path.write_bytes(written(ds))
    stored.write_bytes(written(deidentifier.dataset(dcmread(path))))
    assert prepare_view(path, config).pixels.tobytes() == prepare_view(stored, config).pixels.tobytes()


def test_a_view_modifier_is_still_seen(films: ModuleType, config: PipelineConfig, deidentifier: Deidentifier) -> None:
    ds = clean(films)
    modifier = Dataset()
    modifier.CodeValue, modifier.CodeMeaning = SECRET, SECRET
    ds.ViewCodeSequence[0].ViewModifierCodeSequence = Sequence([modifier])
    ds.ViewCodeSequence[0].CodeMeaning = SECRET
    out = deidentifier.dataset(ds)
    assert len(out.ViewCodeSequence[0].ViewModifierCodeSequence) == 1 and SECRET not in str(out)
    modifier.CodeValue = "399209000"
    known = deidentifier.dataset(ds).ViewCodeSequence[0].ViewModifierCodeSequence[0]
    assert (known.CodeValue, known.CodeMeaning) == ("399209000", "implant displaced")


# ---- pixels


def test_overlays_in_unused_bits_and_trailing_bytes_are_not_stored(
    films: ModuleType, deidentifier: Deidentifier
) -> None:
    pixels = films.breast_film(rows=80, columns=64)
    ds = films.film_dataset(pixels | np.uint16(0x8000), spacing_mm=2.5)
    ds.PixelData = ds.PixelData + SECRET.encode()
    out = deidentifier.dataset(ds)
    assert out.PixelData == pixels.tobytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, {"NumberOfFrames": "4"}, {"Modality": "US"},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.2.1"}, {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.104.1"},
    ],
)  # fmt: skip
def test_pixels_of_what_no_model_is_shown_are_not_stored(
    films: ModuleType, deidentifier: Deidentifier, changes: dict[str, Any]
) -> None:
    """A report in colour has her name in its pixels."""
    assert PIXEL_DATA not in deidentifier.dataset(clean(films, **changes))
    assert PIXEL_DATA in deidentifier.dataset(clean(films))


def test_pixels_of_an_unknown_syntax_are_not_stored(films: ModuleType, deidentifier: Deidentifier) -> None:
    ds = clean(films)
    for syntax, kept in (("1.2.840.10008.1.2.2", False), ("1.2.840.10008.1.2.4.50", False), (SECRET_UID, False),
                         ("1.2.840.10008.1.2.1", True)):  # fmt: skip
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = UID(syntax)
        out = deidentifier.dataset(ds)
        assert (PIXEL_DATA in out) == kept
        assert out.file_meta.get("TransferSyntaxUID", "") == ("" if syntax == SECRET_UID else syntax)


# ---- how it is called


def test_raw_looked_at_and_made_in_memory_give_the_same(
    films: ModuleType, tmp_path: Path, deidentifier: Deidentifier
) -> None:
    made = clean(films, WindowCenter=["1900", "2000.50"], WindowWidth=["300", "400"], ImageType=["ORIGINAL", "PRIMARY"])
    raw = dcmread(films.write_film(tmp_path / "a.dcm", made))
    seen = dcmread(tmp_path / "a.dcm")
    str(seen)  # converts every element
    made.file_meta = seen.file_meta
    results = [written(deidentifier.dataset(ds)) for ds in (raw, seen, made)]
    assert results[0] == results[1] == results[2]
    assert str(raw.PatientName) == "SYNTH^T"  # the original is as it was


def test_damage_is_passed_on_without_a_word(
    films: ModuleType, config: PipelineConfig, tmp_path: Path, deidentifier: Deidentifier,
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Bytes flipped anywhere in a header: no exception, no message, and the same verdict."""
    path, stored = tmp_path / "a.dcm", tmp_path / "b.dcm"
    whole = written(clean(films, PatientName=SECRET, PatientID=SECRET))
    rng = np.random.default_rng(1)
    survived = 0
    for _ in range(200):
        damaged = bytearray(whole)
        for place in rng.integers(340, 1300, rng.integers(1, 4)):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        before = outcome(path, config)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                ds = dcmread(path)
            except Exception:
                continue
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            out = deidentifier.dataset(ds)
        stored.write_bytes(written(out))
        if isinstance(before, Film):
            assert outcome(stored, config) == deidentifier.film(before)
            survived += 1
        assert SECRET.encode() not in stored.read_bytes()
    assert survived > 50
    assert SECRET not in caplog.text + "".join(capfd.readouterr())


def test_threads_do_not_disturb_each_other(films: ModuleType, deidentifier: Deidentifier) -> None:
    """A storage server de-identifies in one thread for each association."""
    before = list(warnings.filters)
    found: list[bytes] = []

    def work() -> None:
        for _ in range(20):
            found.append(written(deidentifier.dataset(clean(films))))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80 and len(set(found)) == 1
    assert list(warnings.filters) == before


def test_it_can_be_done_twice(films: ModuleType, config: PipelineConfig, tmp_path: Path) -> None:
    """A site may get films that another one has de-identified; they are only films."""
    once = Deidentifier(b"other hospital" * 3).dataset(clean(films))
    twice = Deidentifier(KEY).dataset(once)
    path = tmp_path / "a.dcm"
    path.write_bytes(written(twice))
    film = read_header(path, config)
    assert film.patient_id == Pseudonyms(KEY).of(str(once.PatientID)) and film.view == "L_CC"


@pytest.mark.parametrize("syntax", ["jpeg_lossless", "jpeg_ls", "jpeg_2000"])
@pytest.mark.parametrize("pieces", [1, 3])
def test_comments_inside_a_compressed_picture_are_blanked_and_no_pixel_moves(
    films: ModuleType, config: PipelineConfig, deidentifier: Deidentifier, tmp_path: Path, syntax: str, pieces: int
) -> None:
    """Cameras write the patient into JPEG comments, where no header rule looks. The codestream may come in pieces."""
    secret = b"WINTERHALTER^BERTA 19500101"
    path = films.write_film(tmp_path / "plain.dcm", clean(films, PatientID="PID-77001"), syntax=syntax)
    plain = dcmread(path)
    (code,) = (frame.rstrip(b"\0") for frame in generate_frames(plain.PixelData, number_of_frames=1))
    if syntax == "jpeg_2000":
        size = 2 + 2 + int.from_bytes(code[4:6], "big")  # SOC and SIZ come first
        texts = b"\xff\x64" + (4 + len(secret)).to_bytes(2, "big") + b"\x00\x01" + secret
    else:
        size = 2
        texts = b"".join(mark + (2 + len(secret)).to_bytes(2, "big") + secret for mark in (b"\xff\xfe", b"\xff\xe1"))
    spoken = code[:size] + texts + code[size:]
    plain.PixelData = encapsulate([spoken + b"\0" * (len(spoken) % 2)], fragments_per_frame=pieces)
    plain["PixelData"].is_undefined_length = True
    out = deidentifier.dataset(plain)
    assert secret not in bytes(out.PixelData) and secret in plain.PixelData
    assert len(out.PixelData) == len(plain.PixelData)
    plain.save_as(tmp_path / "spoken.dcm", enforce_file_format=True)
    out.save_as(tmp_path / "clean.dcm", enforce_file_format=True)
    before, after = (prepare_view(tmp_path / name, config) for name in ("spoken.dcm", "clean.dcm"))
    assert np.array_equal(before.pixels, after.pixels) and before.pixel_digest == after.pixel_digest
