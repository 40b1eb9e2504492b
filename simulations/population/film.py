"""From anatomy and lesion to stored grey values: quanta, blur, presentation, quantisation; called by women.

Model: quanta I ~ Poisson(I0 exp(-m + 1.6)) behind attenuation m (Beer-Lambert), detector blur and electronic noise,
p = -ln(I / air), thickness equalisation, presentation curve, quantisation, inversion. Films come out as stored: chest
wall left for L, right for R.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from simulations.population.anatomy import MU_FAT, MU_GLAND, Body, Breast, Grid, Image, draw_breast
from simulations.population.lesions import Box, Finding, mirrored, project
from simulations.population.specs import Vendor

REFERENCE_LENGTHS = 1.6  # attenuation lengths behind which a vendor's quanta are counted
AIR_GAIN = 6.0  # quanta in air over those at the reference
ELECTRONIC_NOISE = 8.0  # standard deviation, quanta
FULL_SCALE, PEDESTAL = 0.92, 0.02  # share of the grey range that tissue uses, and its step above air

# Letters of the burned-in view label, five rows of three pixels
_GLYPHS = {
    "L": "100100100100111",
    "R": "110101110101101",
    "C": "111100100100111",
    "M": "101111111101101",
    "O": "111101101101111",
}


@dataclass(frozen=True)
class Film:
    """A film as stored. pixels: uint16 [H, W]; box: lesion in stored pixels or None; thickness_mm: of the breast."""

    pixels: NDArray[np.uint16]
    box: Box | None
    thickness_mm: float


def render(
    rng: np.random.Generator,
    grid: Grid,
    vendor: Vendor,
    body: Body,
    finding: Finding | None,
    *,
    view: str,
    conspicuity: float,
) -> Film:
    """Render one view, e.g. "R_MLO"; the finding shows where it is on this side."""
    side, position = view.split("_")
    breast = draw_breast(rng, grid, body, view=position)
    attenuation = breast.thickness_cm * (np.float32(MU_FAT) + np.float32(MU_GLAND - MU_FAT) * breast.gland)
    box: Box | None = None
    if finding is not None and finding.side == side:
        added, box = project(rng, grid, breast, finding, conspicuity=conspicuity)
        attenuation += added
    pixels = expose(rng, attenuation, breast, vendor)
    if side == "R":
        pixels = np.ascontiguousarray(pixels[:, ::-1])
        box = None if box is None else mirrored(box, grid.shape[1])
    if vendor.marker:
        _burn_in_label(pixels, side + position, grid.spacing_mm, (2**vendor.bits - 1) * 9 // 10)
    if vendor.monochrome1:
        pixels = np.uint16(2**vendor.bits - 1) - pixels
    return Film(pixels, box, 10.0 * body.thickness_cm)


def expose(rng: np.random.Generator, attenuation: Image, breast: Breast, vendor: Vendor) -> NDArray[np.uint16]:
    """Detect and process: stored values before inversion, air at 0."""
    blurred = gaussian_filter(attenuation, vendor.psf_px)
    quanta = np.exp(np.float32(np.log(vendor.photons) + REFERENCE_LENGTHS) - blurred)
    # Poisson and electronic noise together as one Gaussian: behind the thickest breast there are still a hundred quanta
    noise = rng.standard_normal(quanta.shape, dtype=np.float32)
    quanta += noise * np.sqrt(quanta + np.float32(ELECTRONIC_NOISE**2))
    np.maximum(quanta, 1.0, out=quanta)
    signal = np.float32(np.log(AIR_GAIN * vendor.photons)) - np.log(quanta)
    signal -= np.float32(vendor.equalisation * MU_FAT) * breast.thickness_cm
    tissue = signal[breast.inside]
    rank = int(0.998 * (tissue.size - 1))
    high = np.partition(tissue, rank)[rank] + np.float32(0.15)
    curve = np.clip(signal / high, 0, 1) ** np.float32(vendor.gamma)
    top = 2**vendor.bits - 1
    stored = np.rint(np.float32(top) * (np.float32(FULL_SCALE) * curve + np.float32(PEDESTAL))) * breast.inside
    return np.asarray(stored, dtype=np.uint16)


def _burn_in_label(pixels: NDArray[np.uint16], text: str, spacing_mm: float, value: int) -> None:
    """Write a view label into the upper corner away from the chest wall (L: right, R: left), where there is air."""
    label = _label(text, max(1, round(1.25 / spacing_mm)))
    height, width = label.shape
    column = 4 if text[0] == "R" else pixels.shape[1] - 4 - width
    corner = pixels[4 : 4 + height, column : column + width]
    if corner.shape == label.shape:
        corner[label] = value


@lru_cache(maxsize=32)
def _label(text: str, scale: int) -> NDArray[np.bool_]:
    """A view label such as LMLO as a bitmap."""
    letters = [np.array([bit == "1" for bit in _GLYPHS[letter]]).reshape(5, 3) for letter in text]
    gap = np.zeros((5, 1), bool)
    row = np.concatenate([part for letter in letters for part in (letter, gap)], axis=1)
    return np.repeat(np.repeat(row, scale, 0), scale, 1)
