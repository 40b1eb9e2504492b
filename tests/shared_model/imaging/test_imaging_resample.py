"""Area averaging is exact for every factor."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_model.imaging.resample import area_average, area_axis


def brute_force(image: np.ndarray, n_out: int, start: int, factor: int, grain: int) -> np.ndarray:
    """Mean over grain-fold repeated pixels; start and factor in grains."""
    fine = np.repeat(image.astype(np.float64), grain)
    out = np.zeros(n_out)
    for i in range(n_out):
        cells = [fine[k] for k in range(start + i * factor, start + (i + 1) * factor) if 0 <= k < fine.size]
        out[i] = sum(cells) / factor
    return out


@settings(max_examples=150)
@given(
    n_in=st.integers(1, 20), n_out=st.integers(1, 12), start=st.integers(-40, 40), factor=st.integers(1, 60),
    grain=st.integers(1, 8), seed=st.integers(0, 99),
)  # fmt: skip
def test_equals_brute_force_for_any_rational_factor(
    n_in: int, n_out: int, start: int, factor: int, grain: int, seed: int
) -> None:
    image = np.random.default_rng(seed).random(n_in).astype(np.float32)
    axis = area_axis(n_in=n_in, n_out=n_out, start=start / grain, factor=factor / grain)
    expected = brute_force(image, n_out, start, factor, grain)
    one = area_axis(n_in=1, n_out=1, start=0.0, factor=1.0)
    assert np.allclose(area_average(image[:, None], axis, one)[:, 0], expected, atol=1e-5)
    assert np.allclose(area_average(image[None, :], one, axis)[0], expected, atol=1e-5)


@settings(max_examples=50)
@given(height=st.integers(1, 50), width=st.integers(1, 50), factor=st.floats(0.3, 20.0), seed=st.integers(0, 99))
def test_total_brightness_is_kept(height: int, width: int, factor: float, seed: int) -> None:
    image = np.random.default_rng(seed).random((height, width)).astype(np.float32)
    rows = area_axis(n_in=height, n_out=int(height / factor) + 2, start=-factor / 3, factor=factor)
    columns = area_axis(n_in=width, n_out=int(width / factor) + 2, start=-factor / 3, factor=factor)
    total = area_average(image, rows, columns).sum(dtype=np.float64) * factor**2
    assert total == pytest.approx(image.sum(dtype=np.float64), rel=1e-4)


def test_one_bright_pixel_is_never_lost() -> None:
    """Sampling every n-th pixel would drop most calcifications; averaging keeps each one's area exactly."""
    axis = area_axis(n_in=97, n_out=14, start=0.0, factor=7.3)
    for place in range(97):
        image = np.zeros((97, 97), np.float32)
        image[place, 96 - place] = 1.0
        assert area_average(image, axis, axis).sum() == pytest.approx(1 / 7.3**2, rel=1e-4)
