"""Small DICOM mammograms for tests, written by pydicom (not by the simulator, so that both check each other)."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence

ORIENTATION = {"L_CC": ["A", "R"], "L_MLO": ["A", "FR"], "R_CC": ["P", "L"], "R_MLO": ["P", "FL"]}
SYNTAX = {
    "implicit": "1.2.840.10008.1.2", "explicit": "1.2.840.10008.1.2.1", "rle": "1.2.840.10008.1.2.5",
    "jpeg_lossless": "1.2.840.10008.1.2.4.70", "jpeg_lossless_14": "1.2.840.10008.1.2.4.57",
    "jpeg_ls": "1.2.840.10008.1.2.4.80", "jpeg_ls_near": "1.2.840.10008.1.2.4.81",
    "jpeg_2000": "1.2.840.10008.1.2.4.90", "jpeg_2000_lossy": "1.2.840.10008.1.2.4.91",
    "deflated": "1.2.840.10008.1.2.1.99", "big_endian": "1.2.840.10008.1.2.2",
}  # fmt: skip


def breast_film(
    *, rows: int = 160, columns: int = 128, bits: int = 12, seed: int = 0, view: str = "L_CC"
) -> NDArray[np.uint16]:
    """A half-disc of structured tissue at the chest wall in canonical greys; air is 0..3, tissue 20..95 %."""
    rng = np.random.default_rng(seed)
    row, column = np.mgrid[0:rows, 0:columns]
    distance = np.hypot((row - rows * 0.47) / (rows * 0.40), column / (columns * 0.75))
    fine = rng.normal(size=(rows, columns))
    for axis in (0, 1):
        fine = (fine + np.roll(fine, 1, axis) + np.roll(fine, -1, axis)) / 3
    tissue = 0.35 + 0.45 * (1 - distance) + 0.12 * np.sin(row / rows * 21) * np.cos(column / columns * 13) + 0.12 * fine
    top = (1 << bits) - 1
    film = np.where(distance < 1, np.clip(tissue, 0.2, 0.95) * top, rng.integers(0, 4, (rows, columns)))
    film = np.rint(film).astype(np.uint16)
    return film if view[0] == "L" else np.ascontiguousarray(film[:, ::-1])


def film_dataset(pixels: NDArray[Any], *, view: str = "L_CC", bits: int = 12, spacing_mm: float = 1.25) -> Dataset:
    """A For Presentation mammogram with native pixels (uint16, uint8 where bits is 8)."""
    side, position = view.split("_")
    ds = Dataset()
    ds.ImageType = ["ORIGINAL", "PRIMARY"]
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.2"
    digest = hashlib.sha256(pixels.tobytes() + view.encode()).digest()[:8]
    ds.SOPInstanceUID = f"2.25.{int.from_bytes(digest, 'big')}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "2.25.77", "2.25.78"
    ds.StudyDate, ds.StudyTime, ds.AcquisitionTime = "20240302", "101010", "101010"
    ds.Modality, ds.PresentationIntentType, ds.Manufacturer = "MG", "FOR PRESENTATION", "ACME"
    ds.PatientID, ds.PatientName, ds.PatientBirthDate, ds.PatientAge = "SYNTH-T-00001", "SYNTH^T", "19700101", "054Y"
    ds.ViewPosition, ds.ImageLaterality, ds.PatientOrientation = position, side, ORIENTATION[view]
    ds.ImagerPixelSpacing = [spacing_mm, spacing_mm]
    ds.InstanceNumber = 1
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = pixels.shape
    ds.BitsAllocated = 8 if bits == 8 else 16
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = bits, bits - 1, 0
    ds.RescaleIntercept, ds.RescaleSlope = 0, 1
    ds.BurnedInAnnotation, ds.BreastImplantPresent = "NO", "NO"
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator = {"CC": "399162004", "MLO": "399368009"}[position], "SCT"
    code.ViewModifierCodeSequence = Sequence([])
    ds.ViewCodeSequence = Sequence([code])
    ds.PixelData = pixels.astype("u1" if bits == 8 else "<u2").tobytes()
    ds["PixelData"].VR = "OB" if bits == 8 else "OW"
    return ds


def write_film(path: Path, ds: Dataset, *, syntax: str = "explicit") -> Path:
    """Write with the pixels encoded in one of SYNTAX."""
    if syntax.startswith("jpeg_lossless"):
        return _transcode(write_film(path, ds), syntax)
    ds = Dataset(ds)
    if syntax not in ("implicit", "explicit", "deflated", "big_endian"):
        kind = np.dtype("<u2" if ds.BitsAllocated == 16 else "u1")
        frame = encode(np.frombuffer(ds.PixelData, kind).reshape(ds.Rows, ds.Columns), syntax, bits=ds.BitsStored)
        ds.PixelData = encapsulate([frame])
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = SYNTAX[syntax]
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def encode(pixels: NDArray[Any], syntax: str, *, bits: int) -> bytes:
    """One frame in a compressed transfer syntax."""
    if syntax == "rle":
        return _rle(pixels)
    if syntax in ("jpeg_ls", "jpeg_ls_near"):
        import jpeg_ls

        return bytes(jpeg_ls.encode_array(pixels, lossy_error=3 if syntax == "jpeg_ls_near" else 0))
    import openjpeg.utils

    lossy = {"compression_ratios": [4]} if syntax == "jpeg_2000_lossy" else {}
    return bytes(openjpeg.utils.encode_array(pixels, bits_stored=bits, photometric_interpretation=2, **lossy))


def _transcode(path: Path, syntax: str) -> Path:
    """JPEG lossless, which only gdcm encodes, in place."""
    import gdcm

    kinds = {"jpeg_lossless": gdcm.TransferSyntax.JPEGLosslessProcess14_1,
             "jpeg_lossless_14": gdcm.TransferSyntax.JPEGLosslessProcess14}  # fmt: skip
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(kinds[syntax]))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return path


def _rle(pixels: NDArray[Any]) -> bytes:
    """PackBits by byte plane, with runs wherever three bytes are equal (PS3.5 Annex G)."""
    wide = pixels.dtype.itemsize == 2
    planes = [_pack_bits(p.astype(np.uint8).tobytes()) for p in ([pixels >> 8, pixels & 255] if wide else [pixels])]
    offsets = [64 + sum(len(p) for p in planes[:i]) for i in range(len(planes))]
    return struct.pack("<16L", len(planes), *offsets, *[0] * (15 - len(planes))) + b"".join(planes)


def _pack_bits(data: bytes) -> bytes:
    out, i = bytearray(), 0
    while i < len(data):
        run = 1
        while run < 128 and i + run < len(data) and data[i + run] == data[i]:
            run += 1
        if run >= 3:
            out += bytes((257 - run, data[i]))
            i += run
            continue
        j = i
        while j < len(data) and j - i < 128 and data[j : j + 3] != data[j : j + 1] * 3:
            j += 1
        out += bytes((j - i - 1,)) + data[i:j]
        i = j
    return bytes(out) + b"\0" * (len(out) % 2)
