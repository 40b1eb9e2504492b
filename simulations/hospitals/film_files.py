"""DICOM files for the films of public data sets, so that they enter a site as a hospital's films do; called by public.

A digitised film becomes a Secondary Capture object with Modality MG (PS3.3 A.8.1), which is what it is: the writer of
synthetic films states a detector, an exposure and a presentation that nobody knows here. A DICOM file is copied element
by element from a list: names, case names, private elements and dates of a collection do not travel along.
"""

from __future__ import annotations

from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from shared_model.errors import CohortError
from shared_model.imaging.header import TAGS, quiet_pydicom
from simulations.hospitals.grey_images import GreyImage
from simulations.population.dicom_mg import IMPLEMENTATION_UID

# What the importer reads of a header, less whatever identifies: that is set here.
_KEPT = frozenset(TAGS) - {
    "SOPInstanceUID", "StudyInstanceUID", "StudyDate", "AcquisitionTime", "PatientID", "PatientName",
    "PatientBirthDate",
}  # fmt: skip
_SPACINGS = ("ImagerPixelSpacing", "PixelSpacing", "NominalScannedPixelSpacing")
_PIXEL_DATA = 0x7FE00010


def identify(ds: Dataset, *, patient_id: str, sop_uid: str, study_uid: str, exam_date: str) -> None:
    """Set who and when, and nothing else that could tell them. exam_date: YYYY-MM-DD or ""."""
    ds.PatientID = ds.PatientName = patient_id
    ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID = sop_uid, study_uid, f"{study_uid}.1"[:64]
    ds.StudyDate = exam_date.replace("-", "")


def digitised_film(image: GreyImage, *, view: str, spacing_mm: float, orientation: tuple[str, str] | None) -> Dataset:
    """A scanned film as a data set without identity.

    Args:
        view: e.g. "L_MLO". spacing_mm: distance of pixel centres on the film, as scanned (0018,2010).
        orientation: PatientOrientation where it is known; without it the importer looks at the pixels.
    """
    side, position = view.split("_")
    ds = Dataset()
    ds.SOPClassUID = SecondaryCaptureImageStorage
    ds.Modality, ds.ConversionType = "MG", "DF"
    ds.SeriesDescription = "full mammogram"
    ds.ImageLaterality, ds.ViewPosition = side, position
    ds.NominalScannedPixelSpacing = [f"{spacing_mm:.6g}"] * 2
    if orientation is not None:
        ds.PatientOrientation = list(orientation)
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.Rows, ds.Columns = image.pixels_HW.shape
    ds.BitsAllocated = 8 * image.pixels_HW.dtype.itemsize
    ds.BitsStored, ds.HighBit = image.bits, image.bits - 1
    data = image.pixels_HW.astype(image.pixels_HW.dtype.newbyteorder("<"), copy=False).tobytes()
    ds.add_new(_PIXEL_DATA, "OB" if ds.BitsAllocated == 8 else "OW", data + b"\0" * (len(data) % 2))
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


def copied_film(path: Path, *, view: str, spacing_mm: float | None) -> Dataset:
    """What the importer needs of a DICOM file that it has admitted by its header, pixels as they are stored.

    Args:
        view: stated where the file says neither breast nor view. spacing_mm: likewise, where the file has none.

    Raises:
        CohortError: pydicom cannot read the file whole.
    """
    tags = [*(Tag(TAGS[name]) for name in sorted(_KEPT)), Tag(_PIXEL_DATA)]
    try:
        with quiet_pydicom():
            ds = dcmread(path, specific_tags=tags)
            syntax = ds.file_meta.TransferSyntaxUID
            _ = ds[_PIXEL_DATA]
    except Exception as error:  # pydicom raises almost any type on damaged bytes; its text may repeat header values
        raise CohortError(f"{path} cannot be read whole ({type(error).__name__})",
                          remedy="copy or download it again") from None  # fmt: skip
    for tag in set(ds.keys()) - set(tags):
        del ds[tag]
    side, position = view.split("_")
    if "ImageLaterality" not in ds and "Laterality" not in ds:
        ds.ImageLaterality = side
    if not _says_view(ds):
        ds.ViewPosition = position
    if spacing_mm is not None and not any(name in ds for name in _SPACINGS):
        ds.NominalScannedPixelSpacing = [f"{spacing_mm:.6g}"] * 2
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    return ds


def _says_view(ds: Dataset) -> bool:
    """Whether an element of the file names a view; digitised films do so in PatientOrientation."""
    orientation = ds.get("PatientOrientation") or ""
    words = [orientation] if isinstance(orientation, str) else list(orientation)
    return "ViewCodeSequence" in ds or bool({"CC", "MLO"} & {str(ds.get("ViewPosition")), *map(str, words)})


def write_film(ds: Dataset, path: Path) -> tuple[int, int]:
    """Write a Part 10 file; returns its (rows, columns)."""
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.ImplementationClassUID = UID(IMPLEMENTATION_UID)
    with quiet_pydicom():
        ds.save_as(path, enforce_file_format=True)
    return int(ds.Rows), int(ds.Columns)
