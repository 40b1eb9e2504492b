"""What is not a usable film is refused with its reason code, and the message gives nobody away."""

from __future__ import annotations

import logging
import os
import re
import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from shared_model.errors import ConfigError, ImagingError
from shared_model.imaging import (
    REASONS,
    SECTIONS,
    AdmissionPolicy,
    FilmRefusedError,
    PipelineConfig,
    prepare_view,
    read_header,
)
from shared_model.imaging.admission import Film

NAME, NUMBER = "WINTERHALTER^BERTA", "PID-7718-QX"


def change(**values: object) -> Callable[[Dataset], None]:
    def apply(ds: Dataset) -> None:
        for name, value in values.items():
            if value is None:
                del ds[name]
            else:
                setattr(ds, name, value)

    return apply


def tomosynthesis(ds: Dataset) -> None:
    ds.NumberOfFrames = 4
    ds.PixelData = ds.PixelData * 4


def view_code(value: str, *, modifier: bool = False) -> Callable[[Dataset], None]:
    def apply(ds: Dataset) -> None:
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator = value, "SCT"
        code.ViewModifierCodeSequence = Sequence([Dataset()] if modifier else [])
        ds.ViewCodeSequence = Sequence([code])

    return apply


def modified(value: str) -> Callable[[Dataset], None]:
    def apply(ds: Dataset) -> None:
        modifier = Dataset()
        modifier.CodeValue, modifier.CodingSchemeDesignator = value, "SCT"
        ds.ViewCodeSequence[0].ViewModifierCodeSequence = Sequence([modifier])

    return apply


def picture(ds: Dataset) -> np.ndarray:
    return np.frombuffer(ds.PixelData, "<u2").reshape(ds.Rows, ds.Columns).copy()


def cut_off(ds: Dataset) -> None:
    """What a broken transfer leaves, filled up with zeros; without the noise of air it would end at a breast's edge."""
    pixels = picture(ds)
    pixels.reshape(-1)[70 * 128 + 45 :] = 0
    ds.PixelData = pixels.tobytes()


def posterised(ds: Dataset) -> None:
    ds.PixelData = (picture(ds) // 400 * 400).astype("<u2").tobytes()


def lettered(ds: Dataset) -> None:
    """An L and an H, 30 mm tall, across the breast."""
    pixels = picture(ds)
    for rows, columns in (((60, 84), (20, 24)), ((80, 84), (20, 34)), ((60, 84), (40, 44)), ((60, 84), (52, 56)),
                          ((70, 74), (40, 56))):  # fmt: skip
        pixels[slice(*rows), slice(*columns)] = 4095
    ds.PixelData = pixels.tobytes()


def constant(ds: Dataset) -> None:
    ds.PixelData = np.full((160, 128), 700, "<u2").tobytes()


def no_contrast(ds: Dataset) -> None:
    ds.PixelData = np.random.default_rng(0).integers(2000, 2200, (160, 128)).astype("<u2").tobytes()


def voi_table(count: int, entries: int) -> Callable[[Dataset], None]:
    def apply(ds: Dataset) -> None:
        item = Dataset()
        item.add_new(0x00283002, "US", [count, 0, 12])
        item.add_new(0x00283006, "OW", np.zeros(entries, "<u2").tobytes())
        ds.VOILUTSequence = Sequence([item])

    return apply


CASES: list[tuple[str, Callable[[Dataset], None]]] = [
    ("not_mammography", change(Modality="CR")),
    ("not_mammography", change(SOPClassUID="1.2.840.10008.5.1.4.1.1.2")),
    ("for_processing", change(PresentationIntentType="FOR PROCESSING")),
    ("for_processing", change(SOPClassUID="1.2.840.10008.5.1.4.1.1.1.2.1")),
    ("multi_frame", tomosynthesis),
    ("multi_frame", change(NumberOfFrames=0)),
    ("multi_frame", change(SOPClassUID="1.2.840.10008.5.1.4.1.1.13.1.3")),
    ("not_monochrome", change(PhotometricInterpretation="RGB", SamplesPerPixel=3)),
    ("not_monochrome", change(PhotometricInterpretation="PALETTE COLOR")),
    ("unsupported_bits", change(BitsAllocated=32)),
    ("unsupported_bits", change(BitsStored=17)),
    ("unsupported_bits", change(BitsStored=4, HighBit=3)),
    ("unsupported_bits", change(HighBit=16)),
    ("damaged_header", change(Rows=None)),
    ("too_large", change(Rows=65535, Columns=65535)),
    ("field_too_small", change(Rows=8)),
    ("field_too_small", change(ImagerPixelSpacing=[0.05, 0.05])),
    ("burned_in", change(BurnedInAnnotation="YES")),
    ("burned_in_unknown", change(BurnedInAnnotation=None)),
    ("burned_in_unknown", change(BurnedInAnnotation="PERHAPS")),
    ("secondary_capture", change(SOPClassUID="1.2.840.10008.5.1.4.1.1.7")),
    ("screen_save", change(ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"])),
    ("screen_save", change(SeriesDescription="Screenshot of workstation")),
    ("derived_image", change(ImageType=["DERIVED", "SECONDARY"])),
    ("synthetic_2d", change(ImageType=["DERIVED", "PRIMARY", "TOMOSYNTHESIS", "GENERATED_2D"])),
    ("synthetic_2d", change(SeriesDescription="L CC C-View")),
    ("implant", change(BreastImplantPresent="YES")),
    ("implant", modified("399209000")),
    ("not_full_view", modified("399055006")),
    ("not_full_view", modified("R-102D6")),
    ("not_full_view", change(PaddleDescription="SPOT 7.5 CM")),
    ("not_full_view", change(PartialView="YES")),
    ("not_full_view", change(EstimatedRadiographicMagnificationFactor="1.8")),
    ("laterality_conflict", change(ImageLaterality="R", PatientOrientation=["A", "FR"], ViewPosition="MLO",
                                   ViewCodeSequence=None)),
    ("laterality_conflict", change(PatientOrientation=["P", "HR"], ViewPosition="MLO", ViewCodeSequence=None)),
    ("unsupported_orientation", change(PatientOrientation=["ANNA", "RITA"])),
    ("truncated", cut_off),
    ("few_greys", posterised),
    ("text_in_breast", lettered),
    ("not_full_view", change(SeriesDescription="cropped images")),
    ("not_full_view", change(SeriesDescription="L CC Spot compression")),
    ("not_full_view", view_code("399162004", modifier=True)),
    ("no_laterality", change(ImageLaterality=None)),
    ("no_laterality", change(ImageLaterality="B")),
    ("laterality_conflict", change(Laterality="R")),
    ("no_view", change(ViewPosition=None, ViewCodeSequence=None)),
    ("other_view", change(ViewPosition="XCCL", ViewCodeSequence=None)),
    ("other_view", change(ViewPosition="ML", ViewCodeSequence=None)),
    ("view_conflict", change(ViewPosition="MLO")),
    ("view_conflict", view_code("399368009")),
    ("no_spacing", change(ImagerPixelSpacing=None)),
    ("implausible_spacing", change(ImagerPixelSpacing=[0.0, 0.0])),
    ("implausible_spacing", change(ImagerPixelSpacing=[1.0])),
    ("implausible_spacing", change(ImagerPixelSpacing=[4.0, 1.0])),
    ("implausible_spacing", change(EstimatedRadiographicMagnificationFactor=0)),
    ("unsupported_orientation", change(PatientOrientation=["L", "P"])),
    ("orientation_conflict", change(PatientOrientation=["P", "R"])),
    ("no_uid", change(StudyInstanceUID=None)),
    ("no_patient_id", change(PatientID="")),
    ("damaged_lut", change(RescaleSlope=0)),
    ("damaged_lut", change(RescaleSlope=-1)),
    ("damaged_lut", change(WindowCenter=100, WindowWidth=0)),
    ("damaged_lut", change(WindowCenter=100, WindowWidth=50, VOILUTFunction="GAMMA")),
    ("damaged_lut", voi_table(4096, 100)),
    ("flat_window", change(WindowCenter=90000, WindowWidth=2)),
    ("constant_pixels", constant),
    ("no_breast", no_contrast),
    ("inverted", change(PhotometricInterpretation="MONOCHROME1")),
]


@pytest.mark.parametrize(("reason", "edit"), CASES, ids=[f"{i}-{r}" for i, (r, _) in enumerate(CASES)])
def test_each_fault_has_its_reason_code(
    films: ModuleType, config: PipelineConfig, tmp_path: Path, reason: str, edit: Callable[[Dataset], None]
) -> None:
    ds = films.film_dataset(films.breast_film())
    ds.PatientID, ds.PatientName = NUMBER, NAME
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom does not like what is planted here
        edit(ds)
        path = films.write_film(tmp_path / f"{NAME}.dcm", ds)
    with pytest.raises(FilmRefusedError) as caught:
        prepare_view(path, config)
    assert caught.value.reason == reason
    shown = str(caught.value) + repr(caught.value)
    assert NAME not in shown and NUMBER not in shown and "WINTER" not in shown
    assert "to do:" in str(caught.value)
    assert caught.value.patient_id == ("" if reason == "no_patient_id" else NUMBER)


def test_every_reason_has_words_and_a_remedy() -> None:
    assert {reason for reason, _ in CASES} < set(REASONS)
    for code, (problem, remedy) in REASONS.items():
        assert code == code.lower() and problem and remedy
    assert SECTIONS.keys() == REASONS.keys()
    assert all(re.match(r"(PS3\.\d|$)", section) for section in SECTIONS.values())


def test_every_rule_has_a_test() -> None:
    """Reasons of the header and of the picture are in CASES; the others belong to files, decoders and workers."""
    elsewhere = {"unreadable", "not_dicom", "unsupported_syntax", "no_pixels", "no_orientation", "codestream_mismatch",
                 "undecodable", "decoder_crashed", "timed_out"}  # fmt: skip
    assert {reason for reason, _ in CASES} == set(REASONS) - elsewhere


ACCEPTED: list[tuple[dict[str, str], Callable[[Dataset], None]]] = [
    ({"burned_in": "look"}, change(BurnedInAnnotation="YES")),
    ({"burned_in": "look"}, change(BurnedInAnnotation=None)),
    ({"secondary_capture": "accept"},
     change(SOPClassUID="1.2.840.10008.5.1.4.1.1.7", ImageType=["DERIVED", "SECONDARY"])),
    ({"derived": "accept"}, change(ImageType=["DERIVED", "SECONDARY"])),
    ({"synthetic_2d": "accept"}, change(ImageType=["DERIVED", "PRIMARY", "TOMOSYNTHESIS", "GENERATED_2D"])),
]


@pytest.mark.parametrize(("words", "edit"), ACCEPTED, ids=[str(i) for i in range(len(ACCEPTED))])
def test_a_sites_policy_lets_in_what_it_says_and_nothing_changes_the_pixels(
    films: ModuleType, config: PipelineConfig, tmp_path: Path, words: dict[str, str], edit: Callable[[Dataset], None]
) -> None:
    ds = films.film_dataset(films.breast_film())
    plain = prepare_view(films.write_film(tmp_path / "a.dcm", ds), config)
    edit(ds)
    path = films.write_film(tmp_path / "b.dcm", ds)
    with pytest.raises(ImagingError):
        prepare_view(path, config)
    policy = AdmissionPolicy(**words)  # type: ignore[arg-type]
    view = prepare_view(path, config, policy=policy)
    assert view.pixels.tobytes() == plain.pixels.tobytes() and read_header(path, config, policy=policy).view == "L_CC"
    ds.SeriesDescription = "screen save"
    with pytest.raises(ImagingError) as caught:
        prepare_view(films.write_film(tmp_path / "c.dcm", ds), config, policy=AdmissionPolicy(
            burned_in="look", secondary_capture="accept", derived="accept", synthetic_2d="accept"))  # fmt: skip
    assert caught.value.reason == "screen_save"


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ConfigError, match="burned_in"):
        AdmissionPolicy(burned_in="accept")  # type: ignore[arg-type]


def test_side_and_view_are_taken_from_the_description_where_all_else_is_silent(
    films: ModuleType, config: PipelineConfig, tmp_path: Path
) -> None:
    silent = {"ImageLaterality": None, "ViewPosition": None, "ViewCodeSequence": None, "PatientOrientation": None}
    for text, expected in (("Left MLO", "L_MLO"), ("R CC", None), ("", None), ("L CC and L MLO", None)):
        copy = films.film_dataset(films.breast_film())
        change(**silent)(copy)
        copy.SeriesDescription = text
        path = films.write_film(tmp_path / "f.dcm", copy)
        if expected:
            assert prepare_view(path, config).view == expected
        elif text != "R CC":
            with pytest.raises(ImagingError) as caught:
                prepare_view(path, config)
            assert caught.value.reason == "no_laterality"
    ds = films.film_dataset(films.breast_film())
    change(SeriesDescription="R MLO")(ds)  # one series for several films: what the film itself says counts
    assert prepare_view(films.write_film(tmp_path / "f.dcm", ds), config).view == "L_CC"


def test_copies_are_told_by_their_pixels(films: ModuleType, config: PipelineConfig, tmp_path: Path) -> None:
    """Another UID, another transfer syntax and the other polarity: one exposure. Another grey: another one."""
    pixels = films.breast_film()
    syntaxes = ("explicit", "rle", "jpeg_ls", "jpeg_2000", "jpeg_lossless")
    paths = [films.write_film(tmp_path / s, films.film_dataset(pixels), syntax=s) for s in syntaxes]
    digests = {prepare_view(path, config).pixel_digest for path in paths}
    negative = films.film_dataset(np.uint16(4095) - pixels)
    negative.PhotometricInterpretation, negative.SOPInstanceUID = "MONOCHROME1", "2.25.99"
    digests.add(prepare_view(films.write_film(tmp_path / "f.dcm", negative), config).pixel_digest)
    assert len(digests) == 1 and len(next(iter(digests))) == 64
    pixels[0, 0] += 1
    other = films.write_film(tmp_path / "f.dcm", films.film_dataset(pixels))
    assert prepare_view(other, config).pixel_digest not in digests
    assert next(iter(digests)) not in repr(prepare_view(other, config))


def test_a_name_in_a_coded_field_is_not_repeated(films: ModuleType, config: PipelineConfig, tmp_path: Path) -> None:
    for field in ("Modality", "ViewPosition", "PhotometricInterpretation", "ImageLaterality", "WindowCenter"):
        ds = films.film_dataset(films.breast_film())
        path = films.write_film(tmp_path / "f.dcm", ds)
        if field in ds and field != "WindowCenter":
            old = str(ds[field].value).encode()
            old += b" " * (len(old) % 2)
            path.write_bytes(path.read_bytes().replace(old, b"BERTA"[: len(old)].ljust(len(old))))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                prepare_view(path, config)
            except ImagingError as error:
                assert "BERTA" not in str(error) and "BE" not in str(error)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not_dicom"),
        (b"<!DOCTYPE html><html><body>504 Gateway Timeout</body></html>" * 9, "not_dicom"),
        (b"\0" * 128 + b"DICM", "damaged_header"),
        (b"\0" * 128 + b"DICM" + b"\2\0\x10\0UI\xff\xff" + b"1.2.840.10008.1.2.1\0", "truncated"),
        (b"\0" * 128 + b"DICM" + b"\2\0\1\0OB\0\0\xff\xff\xff\xff", "damaged_header"),
    ],
    ids=["empty", "web page", "bare mark", "meta length", "meta long length"],
)
def test_other_bytes_are_refused(config: PipelineConfig, tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "f.dcm"
    path.write_bytes(content)
    for read in (prepare_view, read_header):
        with pytest.raises(ImagingError) as caught:
            read(path, config)
        assert caught.value.reason == reason


@pytest.mark.parametrize("syntax", ["jpeg_ls", "jpeg_lossless", "jpeg_2000"])
def test_a_codestream_cut_within_whole_fragments_is_refused(
    films: ModuleType, config: PipelineConfig, tmp_path: Path, syntax: str
) -> None:
    path = films.write_film(tmp_path / "f.dcm", films.film_dataset(films.breast_film()), syntax=syntax)
    whole = path.read_bytes()
    start = whole.index(b"\xfe\xff\x00\xe0", whole.index(b"\xe0\x7f\x10\x00") + 20)  # the second item: the frame
    (length,) = struct.unpack_from("<L", whole, start + 4)
    half = length // 2 // 2 * 2
    path.write_bytes(
        whole[: start + 4] + struct.pack("<L", half) + whole[start + 8 : start + 8 + half] + whole[start + 8 + length :]
    )
    with pytest.raises(ImagingError) as caught:
        prepare_view(path, config)
    assert (caught.value.reason, caught.value.found) == ("truncated", "no end mark in the compressed image")


@pytest.mark.parametrize("syntax", ["explicit", "rle", "jpeg_ls", "jpeg_lossless", "jpeg_2000"])
def test_a_file_cut_anywhere_is_refused(
    films: ModuleType, config: PipelineConfig, tmp_path: Path, syntax: str
) -> None:
    path = films.write_film(tmp_path / "f.dcm", films.film_dataset(films.breast_film()), syntax=syntax)
    whole = path.read_bytes()
    reasons = set()
    for part in np.linspace(0, len(whole) * 0.98, 40).astype(int):
        path.write_bytes(whole[:part])
        with pytest.raises(ImagingError) as caught:
            prepare_view(path, config)
        reasons.add(caught.value.reason)
    assert "truncated" in reasons
    assert reasons <= {"not_dicom", "truncated", "damaged_header", "undecodable", "no_uid", "no_patient_id",
                       "not_mammography", "not_monochrome", "burned_in_unknown"}  # fmt: skip


def test_flipped_bytes_never_escape_as_another_error(films: ModuleType, config: PipelineConfig, tmp_path: Path) -> None:
    """Any damage is either survived or refused with a code."""
    ds = films.film_dataset(films.breast_film(rows=64, columns=48), spacing_mm=2)
    path = films.write_film(tmp_path / "f.dcm", ds)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    small = replace(config, max_pixels=1 << 20)
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        for place in rng.integers(132, 1000, rng.integers(1, 5)):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            assert prepare_view(path, small).pixels.shape == (2, 112, 84)
        except ImagingError as error:
            assert error.reason in REASONS
            refused += 1
    assert 50 < refused < 400


def test_special_files_are_not_opened(config: PipelineConfig, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.dcm")
    for path in (tmp_path / "pipe.dcm", tmp_path, tmp_path / "absent.dcm"):
        with pytest.raises(ImagingError) as caught:
            prepare_view(path, config)
        assert caught.value.reason == "unreadable"


def test_a_deflated_bomb_is_refused_before_it_is_inflated(
    films: ModuleType, config: PipelineConfig, tmp_path: Path
) -> None:
    path = films.write_film(tmp_path / "f.dcm", films.film_dataset(films.breast_film()))
    meta = path.read_bytes()[:340]
    start = meta.index(b"1.2.840.10008.1.2.1\0") + 20
    syntax = b"1.2.840.10008.1.2.1.99"
    head = meta[: start - 28] + struct.pack("<HH2sH", 2, 0x10, b"UI", len(syntax)) + syntax
    packer = zlib.compressobj(9)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(250)) + packer.flush()
    path.write_bytes(head + bomb)
    tracemalloc.start()
    try:
        with pytest.raises(ImagingError) as caught:
            prepare_view(path, config)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert caught.value.reason == "unsupported_syntax"


@pytest.mark.parametrize("syntax", ["deflated", "big_endian"])
def test_other_syntaxes_of_native_pixels_are_refused(
    films: ModuleType, config: PipelineConfig, tmp_path: Path, syntax: str
) -> None:
    path = films.write_film(tmp_path / "f.dcm", films.film_dataset(films.breast_film()), syntax=syntax)
    for read in (prepare_view, read_header):
        with pytest.raises(ImagingError) as caught:
            read(path, config)
        assert caught.value.reason == "unsupported_syntax"


@pytest.mark.parametrize("uid", ["1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.108", "9.9.9", "../../etc/x", "BERTA"])
def test_an_unknown_syntax_is_refused_without_repeating_it(
    films: ModuleType, config: PipelineConfig, tmp_path: Path, uid: str
) -> None:
    path = films.write_film(tmp_path / "f.dcm", films.film_dataset(films.breast_film()))
    data = path.read_bytes()
    old = struct.pack("<HH2sH", 2, 0x10, b"UI", 20) + b"1.2.840.10008.1.2.1\0"
    value = uid.encode() + b"\0" * (len(uid) % 2)
    assert old in data
    path.write_bytes(data.replace(old, struct.pack("<HH2sH", 2, 0x10, b"UI", len(value)) + value))
    with pytest.raises(ImagingError) as caught:
        prepare_view(path, config)
    assert caught.value.reason == "unsupported_syntax" and uid not in str(caught.value)


def test_overlays_are_ignored_however_large_they_say_they_are(
    films: ModuleType, config: PipelineConfig, tmp_path: Path
) -> None:
    ds = films.film_dataset(films.breast_film())
    plain = prepare_view(films.write_film(tmp_path / "f.dcm", ds), config)
    for group in range(0x6000, 0x601F, 2):
        ds.add_new((group, 0x0010), "US", 65535)
        ds.add_new((group, 0x0011), "US", 65535)
        ds.add_new((group, 0x0050), "SS", [-32768, 32767])
        ds.add_new((group, 0x0100), "US", 16)
        ds.add_new((group, 0x0102), "US", 200)
        ds.add_new((group, 0x3000), "OW", b"\xff" * 10)
    path = films.write_film(tmp_path / "f.dcm", ds)
    assert prepare_view(path, config).pixels.tobytes() == plain.pixels.tobytes()


def test_path_tricks_in_uids_and_a_dicomdir_lead_nowhere(
    films: ModuleType, config: PipelineConfig, tmp_path: Path
) -> None:
    """UIDs are values and never names of files; a DICOMDIR is one more object that is no mammogram."""
    ds = films.film_dataset(films.breast_film())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds.SOPInstanceUID = ds.StudyInstanceUID = "../../../../tmp/x"
        film = films.write_film(tmp_path / "f.dcm", ds)
    assert prepare_view(film, config).sop_uid == "../../../../tmp/x"
    record = Dataset()
    record.DirectoryRecordType, record.ReferencedFileID = "IMAGE", ["..", "..", "etc", "passwd"]
    directory = Dataset()
    directory.SOPClassUID, directory.SOPInstanceUID = "1.2.840.10008.1.3.10", "2.25.1"
    directory.DirectoryRecordSequence = Sequence([record])
    path = films.write_film(tmp_path / "DICOMDIR", directory)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ImagingError) as caught:
        prepare_view(path, config)
    assert caught.value.reason == "not_mammography" and "passwd" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_reading_says_nothing_on_logs_or_warnings(
    films: ModuleType, config: PipelineConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ds = films.film_dataset(films.breast_film())
    path = films.write_film(tmp_path / "f.dcm", ds)
    damaged = path.read_bytes().replace(b"SYNTH-T-00001", b"SYNTH\xff\xfe\xfd00001").replace(b"054Y", b"x\xffyz")
    path.write_bytes(damaged.replace(b"2.25.77", b"BERTA.7"))
    with warnings.catch_warnings(), caplog.at_level(logging.DEBUG):
        warnings.simplefilter("error")
        assert prepare_view(path, config).age_years == 54.0  # from the birth date
    assert caplog.text == ""
    assert not logging.getLogger("pydicom").disabled


def test_what_the_header_says_about_the_woman(films: ModuleType, config: PipelineConfig, tmp_path: Path) -> None:
    def film(**values: object) -> Film:
        ds = films.film_dataset(films.breast_film())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom does not like some of these dates
            change(**values)(ds)
            return read_header(films.write_film(tmp_path / "f.dcm", ds), config)

    assert film().age_years == 54.0
    assert film(PatientAge="000Y").age_years is None
    assert film(PatientAge="650M").age_years == 54.0
    assert film(PatientAge="", PatientBirthDate="19700303").age_years == 53.0
    assert film(PatientAge="", PatientBirthDate="00000000").age_years is None
    assert film(PatientAge="", PatientBirthDate="").age_years is None
    assert film(Manufacturer="").vendor == "unknown"
    assert film(StudyDate="").study_date == ""
    assert film(StudyDate="20231301").study_date == ""
    magnified = film(ImagerPixelSpacing=[1.375, 1.375], EstimatedRadiographicMagnificationFactor="1.1")
    assert magnified.spacing_mm == pytest.approx((1.25, 1.25))
    assert magnified.spacing_source == "ImagerPixelSpacing"
    assert film(ViewPosition=None).view == "L_CC"  # from the code


def test_identities_are_not_in_the_representation_of_results(
    films: ModuleType, config: PipelineConfig, tmp_path: Path
) -> None:
    ds = films.film_dataset(films.breast_film())
    ds.PatientID, ds.PatientName = NUMBER, NAME
    path = films.write_film(tmp_path / "f.dcm", ds)
    for result in (prepare_view(path, config), read_header(path, config)):
        assert NUMBER not in repr(result) and NAME not in repr(result) and ds.SOPInstanceUID not in repr(result)


def test_a_declared_spacing_only_fills_a_gap(films: ModuleType, config: PipelineConfig, tmp_path: Path) -> None:
    ds = films.film_dataset(films.breast_film())
    stated = prepare_view(films.write_film(tmp_path / "a.dcm", ds), config, declared_spacing_mm=0.6)
    assert (stated.spacing_mm, stated.spacing_source) == (1.25, "ImagerPixelSpacing")
    del ds.ImagerPixelSpacing
    declared = prepare_view(films.write_film(tmp_path / "b.dcm", ds), config, declared_spacing_mm=1.25)
    assert (declared.spacing_mm, declared.spacing_source) == (1.25, "declared")
    assert declared.pixels.tobytes() == stated.pixels.tobytes()


@pytest.mark.parametrize(
    "wrong",
    [{"height": 0}, {"spacing_mm": float("nan")}, {"percentiles": (50, 50)}, {"denoise": "nlm"}, {"max_pixels": 0}],
)
def test_config_refuses_impossible_values(config: PipelineConfig, wrong: dict) -> None:
    with pytest.raises(ConfigError) as caught:
        replace(config, **wrong)
    assert next(iter(wrong)) in str(caught.value)
