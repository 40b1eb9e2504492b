"""A canvas map lies on the film where the canvas was taken from: both sides, upside down, shrunk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shared_model.imaging import PipelineConfig, Placement, film_to_channels, prepare_view, read_picture
from tests.films import breast_film, film_dataset, write_film

CONFIG = PipelineConfig(height=112, width=84, spacing_mm=1.75, percentiles=(0.0, 100.0), denoise="none",
                        max_pixels=1 << 24, max_bytes=1 << 26)  # fmt: skip
SPOT = (70, 30)  # row and column of a bright mass, from the chest wall at the left


def film_with_a_spot(view: str) -> tuple[np.ndarray, tuple[int, int]]:
    pixels = breast_film(view="L_CC", seed=3) // 2
    rows, columns = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    pixels[np.hypot(rows - SPOT[0], columns - SPOT[1]) < 5] = 4000
    if view[0] == "R":
        return np.ascontiguousarray(pixels[:, ::-1]), (SPOT[0], pixels.shape[1] - 1 - SPOT[1])
    return pixels, SPOT


@pytest.mark.parametrize("view", ["L_CC", "R_CC"])
@pytest.mark.parametrize("upside_down", [False, True])
@pytest.mark.parametrize("spacing_mm", [1.25, 2.5])
def test_what_is_bright_on_the_canvas_is_bright_on_the_film(view: str, upside_down: bool, spacing_mm: float) -> None:
    pixels, spot = film_with_a_spot(view)
    if upside_down:
        pixels, spot = np.ascontiguousarray(pixels[::-1]), (pixels.shape[0] - 1 - spot[0], spot[1])
    channels = film_to_channels(pixels, spacing_mm=(spacing_mm, spacing_mm), config=CONFIG, chest_left=view[0] == "L",
                                flip_rows=upside_down)  # fmt: skip
    back = channels.placement.to_film(channels.pixels_CHW[0])
    assert back.shape == pixels.shape
    top = np.argwhere(back > 0.98 * back.max()).mean(axis=0)
    assert np.hypot(*(top - spot)) < 3
    correlation = np.corrcoef(back.ravel(), pixels.ravel())[0, 1]
    assert correlation > 0.93


@pytest.mark.parametrize("view", ["L_CC", "R_CC"])
def test_a_box_of_the_film_is_where_its_content_is_on_the_canvas(view: str) -> None:
    pixels, (row, column) = film_with_a_spot(view)
    channels = film_to_channels(pixels, spacing_mm=(1.25, 1.25), config=CONFIG, chest_left=view[0] == "L")
    box = channels.placement.box_on_canvas((row - 5, column - 5, row + 6, column + 6))
    at = np.unravel_index(int(channels.pixels_CHW[0].argmax()), channels.pixels_CHW[0].shape)
    assert box[0] <= at[0] + 0.5 <= box[2] and box[1] <= at[1] + 0.5 <= box[3]
    assert (box[2] - box[0]) * channels.spacing_mm == pytest.approx(11 * 1.25)


def test_beyond_the_canvas_there_is_nothing_and_a_foreign_map_is_refused() -> None:
    placement = Placement(film=(20, 20), flip_rows=False, flip_columns=False, origin=(10.0, 0.0), factor=(1.0, 1.0),
                          canvas=(5, 5))  # fmt: skip
    back = placement.to_film(np.ones((5, 5), np.float32))
    assert back.sum() == 25 and back[10:15, 0:5].all()
    with pytest.raises(ValueError, match="canvas"):
        placement.to_film(np.ones((4, 5), np.float32))


def test_the_picture_is_the_view_and_what_the_film_shows(tmp_path: Path) -> None:
    pixels, _ = film_with_a_spot("R_CC")
    dataset = film_dataset(pixels, view="R_CC")
    write_film(tmp_path / "f.dcm", dataset)
    picture, view = read_picture(tmp_path / "f.dcm", CONFIG), prepare_view(tmp_path / "f.dcm", CONFIG)
    assert np.array_equal(picture.channels.pixels_CHW, view.pixels)
    assert picture.shown().shape == pixels.shape and picture.shown().dtype == np.uint8
