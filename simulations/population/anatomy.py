"""The compressed breast without lesions: outline, thickness, power-law gland; called by film for each view.

All lengths in mm. Arrays are [H, W] float32, chest wall at column 0, superior (MLO) or lateral (CC) at row 0.
Formulas and constants: power-law texture with exponents 3.17 (CC) and 3.30 (MLO), oriented towards the nipple at 5
and 22.5 degrees (Chen et al. 2012; PMC3189972); glandular fractions after Yaffe et al. 2009; attenuation at 20 keV
after Johns & Yaffe 1987.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy.fft
from numpy.typing import NDArray

Image = NDArray[np.float32]

MU_FAT, MU_GLAND = 0.456, 0.802  # 1/cm at 20 keV
VOLUME_DENSITY = (
    (0.06, 0.02),
    (0.14, 0.04),
    (0.28, 0.06),
    (0.48, 0.08),
)  # mean, sd of the gland's share for BI-RADS a-d
EXPONENTS = {"CC": 3.17, "MLO": 3.30}
EXPONENT_SD = 0.23
ORIENTATION_DEG = {"CC": 5.0, "MLO": 22.5}
ANISOTROPY = 1.25
ROLL_OFF_MM = 22.0  # from the skin to where the paddle holds the breast flat
SKIN_MM = 1.5
PECTORAL_GLAND = 0.7  # muscle attenuates as gland does, but the paddle presses it thinner
STRAND_SHARE, STRAND_EXPONENT, STRAND_WIDTH = 0.3, 3.6, 0.06  # of connective strands: their gland, waviness, width


@dataclass(frozen=True)
class Grid:
    """Pixel centres of a film: y_mm [H, 1], x_mm [1, W]."""

    y_mm: Image
    x_mm: Image
    spacing_mm: float

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, columns."""
        return self.y_mm.shape[0], self.x_mm.shape[1]


@lru_cache(maxsize=16)
def film_grid(film_mm: tuple[float, float], spacing_mm: float) -> Grid:
    """The grid of a detector of `film_mm` (height, width) at a pixel pitch."""
    rows, columns = (max(2, round(length / spacing_mm)) for length in film_mm)
    y = (np.arange(rows, dtype=np.float32)[:, None] + 0.5) * np.float32(spacing_mm)
    x = (np.arange(columns, dtype=np.float32)[None, :] + 0.5) * np.float32(spacing_mm)
    return Grid(y, x, spacing_mm)


@dataclass(frozen=True, kw_only=True)
class Body:
    """What both breasts of a woman share.

    size: dimensionless, 0.35-0.95. thickness_cm: compressed. gland_share: of the breast, (0, 1). exponent_shift: of the
    texture's power law. softness: of the gland's edges, in standard deviations of the texture.
    """

    size: float
    thickness_cm: float
    gland_share: float
    exponent_shift: float
    softness: float


@dataclass(frozen=True)
class Breast:
    """One compressed breast.

    inside: bool [H, W]. thickness_cm, gland (share of it, [0, 1]): float32 [H, W]. centre_mm: its middle on the chest
    wall side. reach_mm: from there to the nipple. half_mm: half its height. droop: fall of its axis per mm of reach.
    """

    inside: NDArray[np.bool_]
    thickness_cm: Image
    gland: Image
    centre_mm: float
    reach_mm: float
    half_mm: float
    droop: float


def draw_body(rng: np.random.Generator, *, density: int, bmi: float) -> Body:
    """Draw a woman's anatomy given BI-RADS density (0-3 for a-d) and BMI (kg/m2)."""
    mean, sd = VOLUME_DENSITY[density]
    return Body(
        size=float(np.clip(rng.normal(0.62 + 0.012 * (bmi - 27), 0.08), 0.35, 0.95)),
        thickness_cm=float(np.clip(rng.normal(5.6 + 0.06 * (bmi - 27), 0.8), 3.2, 7.5)),
        gland_share=float(np.clip(rng.normal(mean, sd), 0.03, 0.75)),
        exponent_shift=float(np.clip(rng.normal(0, EXPONENT_SD), -0.5, 0.5)),
        softness=float(rng.uniform(0.5, 0.7)),
    )


def texture(rng: np.random.Generator, grid: Grid, *, exponent: float, angle_deg: float, anisotropy: float) -> Image:
    """Standardised Gaussian texture [H, W] with power spectrum 1 / f^exponent, stretched along `angle_deg`.

    Periodic at the film's edges; a breast rarely reaches two opposite ones.
    """
    log_f = _log_frequency(grid.shape, grid.spacing_mm, angle_deg, anisotropy)
    gain = np.exp(np.float32(-exponent / 2) * log_f)
    gain[0, 0] = 0.0
    white = rng.standard_normal(grid.shape, dtype=np.float32)
    n: Image = scipy.fft.irfft2(scipy.fft.rfft2(white) * gain, s=grid.shape)
    n /= n.std()
    return n


def draw_breast(rng: np.random.Generator, grid: Grid, body: Body, *, view: str) -> Breast:
    """Draw one view ("CC" or "MLO") of a breast of `body`."""
    height, width = float(grid.y_mm[-1, 0]), float(grid.x_mm[0, -1])
    oblique = view == "MLO"
    reach = min(width * body.size * (0.72 + 0.04 * rng.standard_normal()), 0.9 * width)
    half = min(
        height * 0.36 * (0.85 + 0.3 * body.size) * (1.1 if oblique else 1.0), (0.41 if oblique else 0.44) * height
    )
    centre = height * (0.5 + 0.02 * rng.standard_normal() + (0.03 if oblique else 0.0))
    droop = 0.12 if oblique else 0.0  # in the oblique view the breast hangs: its axis points down towards the nipple
    depth = _superellipse_depth(grid, centre, reach, half, droop)
    pectoral = None
    if oblique:
        muscle = _pectoral_depth(rng, grid, height, width)
        pectoral = muscle > 0
        depth = np.maximum(depth, muscle)
    inside = depth > 0
    roll = 1.0 - np.clip(depth / np.float32(ROLL_OFF_MM), 0, 1)
    thickness = np.float32(body.thickness_cm) * np.sqrt(1.0 - roll * roll)
    gland = _gland(rng, grid, body, view, inside, pectoral, (centre, reach, half, droop))
    gland = np.maximum(gland, 0.8 * np.exp(-((depth / np.float32(SKIN_MM)) ** 2)))  # skin attenuates as gland does
    return Breast(inside, thickness, gland, centre, reach, half, droop)


def _superellipse_depth(grid: Grid, centre: float, reach: float, half: float, droop: float) -> Image:
    """Distance inwards from a superellipse (power 2.2) to first order: (1 - s) / |grad s| of its gauge function s."""
    p = 2.2
    u = grid.x_mm / np.float32(reach)
    v = np.abs(grid.y_mm - np.float32(centre) - np.float32(droop) * grid.x_mm) / np.float32(half)
    up, vp = u ** np.float32(p), v ** np.float32(p)
    total = up + vp + np.float32(1e-6)
    s = total ** np.float32(1 / p)
    # d s / d x = (u / s)^(p - 1) / reach, and likewise for y; u^(p-1) = u^p / u
    gx = up / (u * np.float32(reach))
    gy = vp / ((v + np.float32(1e-6)) * np.float32(half))
    gradient = np.sqrt(gx * gx + gy * gy) * s / total + np.float32(1e-6)
    return np.asarray((1.0 - s) / gradient)


def _pectoral_depth(rng: np.random.Generator, grid: Grid, height: float, width: float) -> Image:
    """Distance inwards from the edge of the pectoral muscle, a triangle at the upper chest wall."""
    length = height * np.clip(0.42 + 0.06 * rng.standard_normal(), 0.25, 0.6)
    breadth = width * np.clip(0.30 + 0.05 * rng.standard_normal(), 0.15, 0.45)
    slope = float(np.hypot(1 / breadth, 1 / length))
    return np.asarray((1.0 - grid.x_mm / breadth - grid.y_mm / length) / slope, dtype=np.float32)


def _gland(
    rng: np.random.Generator,
    grid: Grid,
    body: Body,
    view: str,
    inside: NDArray[np.bool_],
    pectoral: NDArray[np.bool_] | None,
    shape: tuple[float, float, float, float],
) -> Image:
    """Share of gland: a soft threshold of texture plus a disc behind the nipple, passed by `gland_share` of pixels."""
    centre, reach, half, droop = shape
    n = texture(
        rng,
        grid,
        exponent=EXPONENTS[view] + body.exponent_shift,
        angle_deg=ORIENTATION_DEG[view],
        anisotropy=ANISOTROPY,
    )
    y = (grid.y_mm - np.float32(centre) - np.float32(droop) * grid.x_mm) / np.float32(0.75 * half)
    x = (grid.x_mm - np.float32(0.45 * reach)) / np.float32(0.55 * reach)
    n += np.float32(1.1) * np.exp(-(x * x + y * y))
    values = n[inside if pectoral is None else inside & ~pectoral]
    rank = min(int((1.0 - body.gland_share) * values.size), values.size - 1)
    threshold = np.partition(values, rank)[rank]
    gland: Image = 1.0 / (1.0 + np.exp((threshold - n) / np.float32(body.softness)))
    gland = np.maximum(gland, STRAND_SHARE * _strands(rng, grid, ORIENTATION_DEG[view]))
    if pectoral is not None:
        gland[pectoral] = PECTORAL_GLAND + 0.1 * gland[pectoral]
    return gland


def _strands(rng: np.random.Generator, grid: Grid, angle_deg: float) -> Image:
    """Thin wavy lines (Cooper's ligaments, vessels), 1 on the line: where a smooth field stretched towards the nipple
    crosses zero."""
    field = texture(rng, grid, exponent=STRAND_EXPONENT, angle_deg=angle_deg, anisotropy=3.0)
    return np.asarray(np.exp(-((field / np.float32(STRAND_WIDTH)) ** 2)))


@lru_cache(maxsize=64)
def _log_frequency(shape: tuple[int, int], spacing_mm: float, angle_deg: float, anisotropy: float) -> Image:
    """log of the elliptic frequency f_e, f_e^2 = u^2 e + v^2 / e with (u, v) the frequency turned by the angle."""
    fy = scipy.fft.fftfreq(shape[0], spacing_mm)[:, None]
    fx = scipy.fft.rfftfreq(shape[1], spacing_mm)[None, :]
    cosine, sine = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    u, v = cosine * fx + sine * fy, -sine * fx + cosine * fy
    squared = u * u * anisotropy + v * v / anisotropy
    squared[0, 0] = 1.0
    return np.asarray(0.5 * np.log(squared), dtype=np.float32)
