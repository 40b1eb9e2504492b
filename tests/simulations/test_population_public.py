"""Public films: another world than the study's, reproducible, related enough to learn from."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from numpy.typing import NDArray

from shared_model.errors import ConfigError
from shared_model.imaging import PipelineConfig, film_to_channels
from simulations.hospitals import default_hospitals
from simulations.population import anatomy, public
from simulations.population.oracle import cross_validated_auc, film_features, woman_features
from simulations.population.public import draw_public_patient, public_films
from simulations.population.women import draw_woman, render_view

STUDY = default_hospitals(
    sites=4, patients=200, held_out=60, seed=4, film_height=160, film_width=128, film_spacing_mm=1.25, conspicuity=5.0
)


def spectral_slope(film: NDArray[np.float64], spacing_mm: float) -> float:
    """Slope of the windowed power spectrum of a 48 mm square in the breast, 0.04-0.2 cycles a mm, log-log."""
    n = round(48 / spacing_mm)
    row = int(np.argmax(np.convolve((film > 0).sum(1), np.ones(n), "valid")))
    square = film[row : row + n, 2 : 2 + n]
    window = np.hanning(n)[:, None] * np.hanning(n)[None]
    power = np.abs(np.fft.fft2((square - square.mean()) * window)) ** 2
    f = np.hypot(np.fft.fftfreq(n, spacing_mm)[:, None], np.fft.fftfreq(n, spacing_mm)[None])
    band = (f > 0.04) & (f < 0.2)
    return float(np.polyfit(np.log(f[band]), np.log(power[band]), 1)[0])


def test_texture_differs_from_every_study_film() -> None:
    hospital = STUDY.hospitals[0]
    study = []
    for i in range(40):
        woman = draw_woman(STUDY, hospital, i)
        if woman.finding is None and "L_CC" in woman.views:
            study.append(spectral_slope(render_view(STUDY, hospital, i, woman, "L_CC").pixels.astype(float), 1.25))
    films = [p for p in public_films(patients=60, seed=0, workers=1) if p["label"] == 0]
    slopes = [spectral_slope(p["views"]["L_CC"].astype(float), p["spacing_mm"]) for p in films]
    assert np.mean(study) < np.mean(slopes) - 0.3  # the study's fall more steeply


def test_exponents_do_not_meet() -> None:
    assert max(public.EXPONENTS) < min(anatomy.EXPONENTS.values()) - 0.5  # draw_body clips the shift at 0.5


def test_prevalence_detector_and_pitch_are_of_no_hospital() -> None:
    assert all(spec.prevalence < public.PREVALENCE - 0.1 for spec in STUDY.all)
    assert public.SPACING_MM not in {vendor.spacing_mm for vendor in STUDY.held_out.vendors}
    labels = [draw_public_patient(0, i)["label"] for i in range(120)]
    assert 0.35 < np.mean(labels) < 0.65


def test_lesions_differ_in_shape() -> None:
    """Public lobes are not round: their outline departs from a circle far more than the study's masses do."""
    from simulations.population.lesions import draw_finding, project

    def roundness(image: NDArray[np.float32]) -> float:
        above = image > 0.5 * image.max()
        y, x = np.nonzero(above)
        moments = np.linalg.eigvalsh(np.cov(np.stack([y, x])) + 0.08 * np.eye(2))
        return float(moments[0] / moments[1])

    grid = anatomy.film_grid((96.0, 96.0), 0.5)
    lobes = [roundness(public._lobes(np.random.default_rng(s), grid, 48.0, 48.0)) for s in range(40)]
    body = anatomy.Body(size=0.95, thickness_cm=5, gland_share=0.1, exponent_shift=0, softness=0.6)
    masses = []
    wide = anatomy.film_grid((200.0, 160.0), 0.5)
    for seed in range(80):
        rng = np.random.default_rng(seed)
        finding = draw_finding(rng, label=1, density=1, calcification_share=0.32)
        assert finding is not None
        if finding.flecks == 0:
            breast = anatomy.draw_breast(rng, wide, body, view="CC")
            breast = replace(breast, inside=np.ones_like(breast.inside))
            masses.append(roundness(project(rng, wide, breast, replace(finding, along=0.5), conspicuity=1.0)[0]))
    assert np.mean(lobes) < np.mean(masses) - 0.1


def test_same_patients_from_any_number_of_workers() -> None:
    one = list(public_films(patients=40, seed=3, workers=1))
    two = list(public_films(patients=40, seed=3, workers=2))
    assert len(one) == len(two) == 40
    for a, b in zip(one, two, strict=True):
        assert a["label"] == b["label"] and a["marks"] == b["marks"]
        for view in a["views"]:
            np.testing.assert_array_equal(a["views"][view], b["views"][view])
    assert draw_public_patient(4, 0)["views"]["L_CC"].tobytes() != one[0]["views"]["L_CC"].tobytes()


def test_iterator_may_be_left_early() -> None:
    assert len(list(islice(public_films(patients=10_000, seed=0, workers=1), 3))) == 3
    with pytest.raises(ConfigError, match="workers >= 1"):
        next(public_films(patients=1, seed=0, workers=0))


def test_films_go_through_the_imaging_steps() -> None:
    config = PipelineConfig(
        height=112,
        width=84,
        spacing_mm=1.75,
        percentiles=(1.0, 99.0),
        denoise="none",
        max_pixels=1 << 20,
        max_bytes=1 << 22,
    )
    for patient in public_films(patients=6, seed=1, workers=1):
        for film in patient["views"].values():
            assert film.dtype == np.uint16
            spacing = (patient["spacing_mm"], patient["spacing_mm"])
            channels = film_to_channels(film, spacing_mm=spacing, config=config, chest_left=True)
            assert channels.pixels_CHW.shape == (2, 112, 84)
            assert 0.1 < (channels.pixels_CHW[1] > 0).mean() < 0.95


def test_marks_stand_where_the_sign_is() -> None:
    found = 0
    for i in range(40):
        patient = draw_public_patient(2, i)
        assert bool(patient["marks"]) == bool(patient["label"])
        for view, (y, x) in patient["marks"].items():
            film = patient["views"][view]
            row, column = int(y / patient["spacing_mm"]), int(x / patient["spacing_mm"])
            near = film[max(0, row - 6) : row + 7, max(0, column - 6) : column + 7]
            found += int(np.percentile(near, 90) > np.percentile(film[film > 0], 75))
    marked = sum(len(draw_public_patient(2, i)["marks"]) for i in range(40))
    assert found > 0.7 * marked


@pytest.mark.slow
def test_signs_can_be_found_but_not_always() -> None:
    patients = list(public_films(patients=160, seed=5, workers=1))
    features = np.stack([
        woman_features({
            v: film_features(f.astype(np.float32), spacing_mm=p["spacing_mm"]) for v, f in p["views"].items()
        }) for p in patients
    ])  # fmt: skip
    labels = np.array([p["label"] for p in patients], dtype=np.int64)
    assert 0.7 < cross_validated_auc(features, labels, seed=0) < 0.92
