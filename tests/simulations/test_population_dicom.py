"""The DICOM files of synthetic women: valid MG objects, what pydicom reads, pixels without loss."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from simulations.hospitals.defaults import vendors
from simulations.population.codecs import TRANSFER_SYNTAXES, encode_pixels
from simulations.population.dicom_mg import FilmTags, encode_film
from simulations.population.seeds import uid
from simulations.population.specs import Syntax, Vendor

VENDORS = vendors(1.25)
VIEWS = ("L_CC", "L_MLO", "R_CC", "R_MLO")
SYNTAXES: tuple[Syntax, ...] = ("explicit", "implicit", "rle", "jpegls")
TAGS = FilmTags(
    sop_uid=uid("film"), study_uid=uid("study"), series_uid=uid("series"), patient_id="SYNTH-site_01-00007",
    patient_name="SYNTH^site_01-00007", birth_date="19650203", date="20210405", age=56, accession="0123456789",
    thickness_mm=54.3, instance=2,
)  # fmt: skip


def pixels_for(vendor: Vendor, seed: int = 0) -> NDArray[np.uint16]:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 2**vendor.bits, (45, 34), dtype=np.uint16)
    pixels[:, 20:] = 0
    pixels[7] = 3
    return pixels


def encoded(vendor: Vendor, view: str = "L_CC", seed: int = 0) -> bytes:
    return encode_film(pixels_for(vendor, seed), vendor, view, TAGS)


@pytest.mark.parametrize("vendor", VENDORS, ids=lambda v: v.name)
@pytest.mark.parametrize("view", VIEWS)
def test_pydicom_reads_it_and_writes_the_same_bytes(vendor: Vendor, view: str) -> None:
    data = encoded(vendor, view)
    ds = pydicom.dcmread(BytesIO(data))
    out = BytesIO()
    pydicom.dcmwrite(out, ds, enforce_file_format=False)
    assert out.getvalue() == data
    tags = [int(element.tag) for element in ds]
    assert tags == sorted(set(tags))
    assert ds.file_meta.TransferSyntaxUID == TRANSFER_SYNTAXES[vendor.transfer_syntax]
    assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID == TAGS.sop_uid


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_pixels_come_back_without_loss(syntax: Syntax, bits: int) -> None:
    vendor = replace(VENDORS[0], transfer_syntax=syntax, bits=bits)
    ds = pydicom.dcmread(BytesIO(encoded(vendor)))
    np.testing.assert_array_equal(ds.pixel_array, pixels_for(vendor))


@settings(max_examples=40)
@given(hnp.arrays(np.uint16, st.tuples(st.integers(1, 6), st.integers(1, 300)), elements=st.integers(0, 65535)))
def test_rle_of_any_pixels_is_decoded_by_pydicom(pixels: NDArray[np.uint16]) -> None:
    vendor = replace(VENDORS[0], transfer_syntax="rle", bits=16)
    ds = pydicom.dcmread(BytesIO(encode_film(pixels, vendor, "L_CC", TAGS)))
    np.testing.assert_array_equal(ds.pixel_array, pixels)


def test_air_compresses() -> None:
    pixels = np.zeros((160, 128), np.uint16)
    pixels[:, :60] = np.random.default_rng(0).integers(2000, 2600, (160, 60))
    raw, rle, jpegls = (len(encode_pixels(pixels, syntax)) for syntax in ("explicit", "rle", "jpegls"))
    assert jpegls < rle < 0.6 * raw


@pytest.mark.parametrize("vendor", VENDORS, ids=lambda v: v.name)
def test_header_says_what_the_film_is(vendor: Vendor) -> None:
    for view in VIEWS:
        ds = pydicom.dcmread(BytesIO(encoded(vendor, view)))
        assert f"{ds.ImageLaterality}_{ds.ViewPosition}" == view and "Laterality" not in ds
        assert ds.PatientOrientation[0] == ("A" if view[0] == "L" else "P")
        assert ds.PresentationIntentType == "FOR PRESENTATION" and ds.Modality == "MG"
        assert ds.BitsStored == vendor.bits and ds.HighBit == vendor.bits - 1 and ds.BitsAllocated == 16
        assert (ds.PhotometricInterpretation == "MONOCHROME1") is vendor.monochrome1
        assert ds.PresentationLUTShape == ("INVERSE" if vendor.monochrome1 else "IDENTITY")
        assert ("VOILUTSequence" in ds) is (vendor.voi == "LUT")
        assert float(ds.ImagerPixelSpacing[0]) == pytest.approx(vendor.spacing_mm, abs=1e-4)
        assert ds.PatientAge == "056Y" and ds.BodyPartThickness == pytest.approx(54.3)
        assert str(ds.PatientName).startswith("SYNTH^") and ds.PatientID == TAGS.patient_id


def test_nothing_in_the_header_tells_the_label() -> None:
    words = str(pydicom.dcmread(BytesIO(encoded(VENDORS[0])))).lower()
    assert not [w for w in ("cancer", "malignan", "lesion", "mass", "calcif", "density", "birads") if w in words]


@pytest.mark.parametrize("vendor", VENDORS, ids=lambda v: v.name)
def test_dciodvfy_finds_no_error(vendor: Vendor, tmp_path: Path) -> None:
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("dciodvfy is not installed; to check the files against the standard: apt-get install dicom3tools")
    for view in VIEWS:
        path = tmp_path / f"{view}.dcm"
        path.write_bytes(encoded(vendor, view))
        result = subprocess.run([program, str(path)], capture_output=True, text=True, timeout=30)
        report = result.stdout + result.stderr
        assert "MammographyImageForPresentation" in report
        assert [line for line in report.splitlines() if line.startswith("Error")] == []
