"""What is not a usable film is refused with its reason code, and the message gives nobody away."""

from __future__ import annotations

import logging
import os
import struct
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
from shared_model.imaging import REASONS, FilmRefusedError, PipelineConfig, prepare_view, read_header
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
    ("implant", change(BreastImplantPresent="YES")),
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
                       "not_mammography", "not_monochrome"}  # fmt: skip


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
    path.write_bytes(head + zlib.compress(b"\0" * (1 << 24), 9))
    with pytest.raises(ImagingError) as caught:
        prepare_view(path, config)
    assert caught.value.reason == "unsupported_syntax"


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
    magnified = film(ImagerPixelSpacing=[2.0, 2.0], EstimatedRadiographicMagnificationFactor="1.6")
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
