"""Burned-in text: beside the breast it goes with the air, over the breast it is caught, and clean films are not."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from shared_model.errors import ImagingError
from shared_model.imaging import PipelineConfig, film_to_channels
from shared_model.imaging.breast import find_breast
from shared_model.imaging.text import refuse_text, text_length_mm

SPACING = 0.35
MIAS = Path(__file__).resolve().parents[4] / "shared" / "data" / "mias" / "images"
WORDS = ("RCC", "LMLO 0417", "DOE JANE 1947", "ID 4711-99", "ST MARY 12:31")


def drawn(
    film: np.ndarray, word: str, *, at: tuple[int, int], height_mm: float, grey: int, boxed: bool, spacing_mm: float
) -> tuple[np.ndarray, np.ndarray]:
    """A film with a word on it, and where the word (or its box) is."""
    canvas = Image.new("L", film.shape[::-1])
    font = ImageFont.load_default(size=max(8, round(height_mm / spacing_mm)))
    ImageDraw.Draw(canvas).text(at[::-1], word, fill=255, font=font)
    letters = np.asarray(canvas) > 127
    marked, place = film.copy(), letters
    if boxed and letters.any():
        rows, columns = np.flatnonzero(letters.any(axis=1)), np.flatnonzero(letters.any(axis=0))
        place = np.zeros_like(letters)
        place[max(0, rows[0] - 5) : rows[-1] + 6, max(0, columns[0] - 5) : columns[-1] + 6] = True
        marked[place], grey = grey, int(film.min())
    marked[letters] = grey
    return marked, place


def plant(
    film: np.ndarray, breast: np.ndarray, rng: np.random.Generator, *, spacing_mm: float
) -> tuple[np.ndarray, np.ndarray]:
    """A word at a random place outside of the breast, often close to it: at most 1, 4 or 60 mm from the skin."""
    step = max(1, round(0.5 / spacing_mm))
    away = ndimage.distance_transform_edt(~breast[::step, ::step]) * step * spacing_mm
    reach = float(rng.choice([1.0, 4.0, 60.0]))
    while True:
        place = (int(rng.integers(0, film.shape[0] - 10)), int(rng.integers(0, film.shape[1] - 10)))
        marked, text = drawn(
            film, str(rng.choice(WORDS)), at=place, height_mm=float(rng.choice([3, 5, 8, 12])),
            grey=int(film.max() * rng.choice([1.0, 0.8, 0.6])), boxed=bool(rng.random() < 0.3), spacing_mm=spacing_mm,
        )  # fmt: skip
        if text.sum() > 30 and not (text & breast).any() and away[text[::step, ::step]].min(initial=99.0) <= reach:
            return marked, text
        reach += 0.2  # on some films there is no room


def survivors(films: list[np.ndarray], count: int, *, spacing_mm: float) -> tuple[int, int]:
    """(burn-ins of which more than a square millimetre reaches the model uncaught, of which anything does)."""
    rng = np.random.default_rng(7)
    legible = any_left = 0
    for number in range(count):
        film = films[number % len(films)]
        clean = find_breast(film, spacing_mm=spacing_mm, padding=None, chest_left=None).mask_HW
        marked, text = plant(film, clean, rng, spacing_mm=spacing_mm)
        try:
            mask = find_breast(marked, spacing_mm=spacing_mm, padding=None, chest_left=None).mask_HW
            refuse_text(marked, mask, spacing_mm=spacing_mm)
        except ImagingError:
            continue
        left = np.count_nonzero(mask & text) * spacing_mm**2
        legible += left > 1.0
        any_left += left > 0.0
        assert (mask & clean).sum() / (mask | clean).sum() > 0.95 or left > 0  # and the breast is still the breast
    return legible, any_left


def test_fifty_burn_ins_beside_the_breast_are_removed_or_caught(films: ModuleType) -> None:
    shown = [films.breast_film(rows=640, columns=512, seed=seed, view="LR"[seed % 2] + "_CC") for seed in range(5)]
    legible, any_left = survivors(shown, 50, spacing_mm=SPACING)
    assert legible <= 2 and any_left <= 5  # at least 95 % are gone; of the others a fleck is left at the skin


@pytest.mark.skipif(not MIAS.is_dir(), reason=f"the films of mini-MIAS are not at {MIAS}")
def test_on_scanned_films_too_and_clean_ones_raise_no_alarm() -> None:
    shown, alarms, seen = [], 0, 0
    for path in sorted(MIAS.glob("*.png")):
        film = np.asarray(Image.open(path)).astype(np.uint16)
        try:
            mask = find_breast(film, spacing_mm=0.4, padding=None, chest_left=None).mask_HW
        except ImagingError:
            continue  # whose chest wall cannot be told without its header
        alarms += max(text_length_mm(film, mask, spacing_mm=0.4)) >= 20.0
        seen += 1
        shown.append(film)
    assert seen > 200 and alarms <= 0.02 * seen
    assert survivors(shown[::8], 25, spacing_mm=0.4)[0] <= 1


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_clean_films_of_any_depth_raise_no_alarm(films: ModuleType, bits: int) -> None:
    for seed in range(12):
        film = films.breast_film(rows=320, columns=256, bits=bits, seed=seed)
        mask = find_breast(film, spacing_mm=0.7, padding=None, chest_left=None).mask_HW
        assert max(text_length_mm(film, mask, spacing_mm=0.7)) < 15.0


@pytest.mark.parametrize("grey", [4095, 0])
@pytest.mark.parametrize("word", WORDS)
def test_words_over_the_breast_are_caught(films: ModuleType, config: PipelineConfig, word: str, grey: int) -> None:
    film = films.breast_film(rows=640, columns=512, seed=3)
    marked, _ = drawn(film, word, at=(280, 40), height_mm=8, grey=grey, boxed=False, spacing_mm=SPACING)
    with pytest.raises(ImagingError) as caught:
        film_to_channels(marked, spacing_mm=(SPACING, SPACING), config=config)
    assert caught.value.reason == "text_in_breast" and word not in str(caught.value)


def test_a_lead_pellet_and_calcifications_are_no_text(films: ModuleType) -> None:
    film = films.breast_film(rows=1280, columns=1024, seed=4)
    mask = find_breast(film, spacing_mm=0.18, padding=None, chest_left=None).mask_HW
    rows, columns = np.mgrid[: film.shape[0], : film.shape[1]]
    film[np.hypot(rows - 600, columns - 300) < 6] = 4095  # 2 mm
    for row, column in np.random.default_rng(0).integers(400, 500, (12, 2)):
        film[row : row + 2, column : column + 2] = 4095
    assert max(text_length_mm(film, mask, spacing_mm=0.18)) < 20.0


def test_a_dense_mass_in_which_hardly_a_photon_was_counted_is_no_text(films: ModuleType) -> None:
    """Its speckles reach the whitest grey; beside it letters are letters."""
    film = films.breast_film(rows=320, columns=256, bits=12, seed=5)
    mask = find_breast(film, spacing_mm=0.7, padding=None, chest_left=None).mask_HW
    rng, (rows, columns) = np.random.default_rng(5), np.mgrid[: film.shape[0], : film.shape[1]]
    core = mask & (np.hypot(rows - 160, columns - 60) < 16)  # 22 mm
    film = (film * (1800 / film.max())).astype(np.uint16)
    film[core] = np.where(rng.random(core.sum()) < 0.4, 4095, rng.integers(2000, 3500, core.sum()))
    assert max(text_length_mm(film, mask, spacing_mm=0.7)) < 5.0
    marked, _ = drawn(film, "DOE 1947", at=(110, 20), height_mm=8, grey=4095, boxed=False, spacing_mm=0.7)
    assert max(text_length_mm(marked, mask, spacing_mm=0.7)) > 40.0


def test_an_empty_mask_has_no_text() -> None:
    assert text_length_mm(np.zeros((50, 50), np.uint16), np.zeros((50, 50), bool), spacing_mm=1.0) == (0.0, 0.0)
