"""The breast is found, and what is not breast goes."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_model.errors import ImagingError
from shared_model.imaging import PipelineConfig, film_to_channels
from shared_model.imaging.breast import find_breast

SPACING = (0.6, 0.6)


def film_and_truth(films: ModuleType, *, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    film = films.breast_film(rows=320, columns=256, seed=seed)
    return film, film > 400


def test_mask_agrees_with_the_breast_that_was_drawn(films: ModuleType) -> None:
    for step in (1, 4):  # as it is, and so large that a thumbnail is looked at
        film, truth = film_and_truth(films)
        film, truth = (np.repeat(np.repeat(a, step, 0), step, 1) for a in (film, truth))
        breast = find_breast(film, spacing_mm=0.6 / step, padding=None, chest_left=None)
        assert breast.chest_left
        assert (breast.mask_HW & truth).sum() / (breast.mask_HW | truth).sum() > 0.97


def test_labels_and_scan_frames_leave_no_trace(films: ModuleType, config: PipelineConfig) -> None:
    film, _ = film_and_truth(films)
    clean = film_to_channels(film, spacing_mm=SPACING, config=config)
    marked = film.copy()
    marked[20:40, 200:240] = 4095  # a label
    marked[300:312, 150:230:3] = 3900  # letters
    marked[:3, :] = marked[-3:, :] = 4000  # the frame of a scanner, 1.8 mm
    marked[:, -2:] = 4000
    with_marks = film_to_channels(marked, spacing_mm=SPACING, config=config)
    assert with_marks.pixels_CHW.tobytes() == clean.pixels_CHW.tobytes()


def test_a_dark_hole_in_the_breast_belongs_to_it(films: ModuleType) -> None:
    film, truth = film_and_truth(films)
    film[140:160, 60:80] = 0
    breast = find_breast(film, spacing_mm=0.6, padding=None, chest_left=True)
    assert breast.mask_HW[140:160, 60:80].all()
    assert (breast.mask_HW & truth).sum() / (breast.mask_HW | truth).sum() > 0.97


def test_padding_is_no_tissue(films: ModuleType) -> None:
    film, truth = film_and_truth(films)
    film[:, 230:] = 2000  # what a machine fills beside the film, bright
    breast = find_breast(film, spacing_mm=0.6, padding=(2000, 2000), chest_left=True)
    assert not breast.mask_HW[:, 230:].any()
    assert (breast.mask_HW & truth).sum() / (breast.mask_HW | truth).sum() > 0.95


@settings(max_examples=20)
@given(air=st.integers(0, 300), noise=st.integers(1, 60), seed=st.integers(0, 99))
def test_haze_and_noise_of_a_scanner_do_not_move_the_mask(films: ModuleType, air: int, noise: int, seed: int) -> None:
    film, truth = film_and_truth(films, seed=seed)
    hazy = film + air + np.abs(np.random.default_rng(seed).normal(0, noise, film.shape))
    breast = find_breast(hazy.astype(np.uint16), spacing_mm=0.6, padding=None, chest_left=True)
    assert (breast.mask_HW & truth).sum() / (breast.mask_HW | truth).sum() > 0.95


def test_side_of_the_chest_wall_is_seen_or_refused(films: ModuleType) -> None:
    film, _ = film_and_truth(films)
    assert find_breast(film, spacing_mm=0.6, padding=None, chest_left=None).chest_left is True
    assert find_breast(film[:, ::-1], spacing_mm=0.6, padding=None, chest_left=None).chest_left is False
    disc = np.zeros((200, 200), np.uint16)
    row, column = np.mgrid[0:200, 0:200]
    disc[np.hypot(row - 100, column - 100) < 60] = 3000
    with pytest.raises(ImagingError) as caught:
        find_breast(disc, spacing_mm=0.6, padding=None, chest_left=None)
    assert caught.value.reason == "no_orientation"
    with pytest.raises(ImagingError) as caught:
        find_breast(film[:, ::-1], spacing_mm=0.6, padding=None, chest_left=True)
    assert caught.value.reason == "orientation_conflict"


def test_a_breast_that_is_too_large_is_shrunk_whole_and_says_so(films: ModuleType, config: PipelineConfig) -> None:
    film, truth = film_and_truth(films)
    small = film_to_channels(film, spacing_mm=(0.6, 0.6), config=config)
    assert small.spacing_mm == config.spacing_mm and small.factor == pytest.approx((1.75 / 0.6, 1.75 / 0.6))
    large = film_to_channels(film, spacing_mm=(1.2, 1.2), config=config)
    assert large.spacing_mm > config.spacing_mm
    for channels, native in ((small, 0.6), (large, 1.2)):
        area = np.count_nonzero(channels.pixels_CHW[1]) * channels.spacing_mm**2
        assert area == pytest.approx(truth.sum() * native**2, rel=0.03)  # all of it, in square millimetres
    rows = np.flatnonzero(large.pixels_CHW[1].any(axis=1))
    assert rows[0] <= 1 and rows[-1] >= config.height - 2


def test_an_enlarged_film_says_so(films: ModuleType, config: PipelineConfig) -> None:
    channels = film_to_channels(films.breast_film(rows=80, columns=64), spacing_mm=(2.0, 2.0), config=config)
    assert channels.factor == pytest.approx((0.875, 0.875))


def test_wrong_arrays_are_a_programming_error(config: PipelineConfig) -> None:
    with pytest.raises(TypeError, match="uint16"):
        film_to_channels(np.zeros((64, 64), np.float32), spacing_mm=SPACING, config=config)  # type: ignore[arg-type]


def test_median_takes_an_impulse_away_and_is_off_by_default_for_a_reason(
    films: ModuleType, config: PipelineConfig
) -> None:
    from dataclasses import replace

    film, truth = film_and_truth(films)
    specks = film.copy()
    place = np.argwhere(truth)[1000::1500]
    specks[place[:, 0], place[:, 1]] = 4095
    fine = replace(config, spacing_mm=0.6, height=320, width=256)
    shown = {}
    for denoise in ("none", "median"):
        chosen = replace(fine, denoise=denoise)
        with_specks = film_to_channels(specks, spacing_mm=SPACING, config=chosen, mask_HW=truth).pixels_CHW
        without = film_to_channels(film, spacing_mm=SPACING, config=chosen, mask_HW=truth).pixels_CHW
        shown[denoise] = float(np.abs(with_specks - without).max())
    assert shown["none"] > 0.3 and shown["median"] < 0.15  # a calcification of one pixel is gone with it
