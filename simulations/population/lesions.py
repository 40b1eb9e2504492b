"""What there is to find: spiculated and round masses, calcification clusters; drawn by women, projected by film.

Lengths in mm, attenuation in attenuation lengths. Shapes after de Sisternes et al. 2015 (Gaussian-sphere masses with
branching spicules), simplified to a projection. A lesion's contrast is that of carcinoma against fat (Johns & Yaffe
1987) times the study's conspicuity; at pixels of a millimetre the physical one cannot be learnt from a thousand
women.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.ndimage import gaussian_filter

from simulations.population.anatomy import Breast, Grid, Image

Kind = Literal["mass_malignant", "calcification_malignant", "mass_benign", "radial_scar", "calcification_benign"]
Box = tuple[int, int, int, int]

MU_CANCER_OVER_FAT = 0.844 - 0.456  # 1/cm at 20 keV
MU_CALCIUM = 10.0  # 1/cm, effective
CALCIUM_GAIN = 4.0  # a fleck of 0.4 mm fills a tenth of a coarse pixel; without a gain it would vanish in quantum noise
BENIGN_SHARES = (0.15, 0.19, 0.27)  # cumulative: round mass, radial scar, calcifications; nothing in the other 73 %
MASKING = (1.0, 0.92, 0.75, 0.58)  # contrast left in BI-RADS density a-d


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One lesion of one breast, as all its views see it.

    side: "L" or "R". contrast: dimensionless, about 0-1.2, before conspicuity. radius_mm, spiculation [0, 1],
    edge_mm (blur of the margin) of a mass; flecks, spread_mm (standard deviation), fleck_mm (diameter) of
    calcifications. along, across: place in the breast, [0, 1], from chest wall to nipple and from top to bottom.
    """

    kind: Kind
    side: str
    contrast: float
    radius_mm: float
    spiculation: float
    edge_mm: float
    flecks: int
    spread_mm: float
    fleck_mm: float
    along: float
    across: float


def draw_finding(
    rng: np.random.Generator, *, label: int, density: int, calcification_share: float
) -> Finding | None:
    """Draw what the films of a woman with this label and density (0-3) show; None where there is nothing to see."""
    side = "L" if rng.random() < 0.5 else "R"
    place = (float(rng.uniform(0.15, 0.85)), float(rng.uniform(0.15, 0.85)))
    if label:
        contrast = 1.2 * rng.beta(3.0, 1.2) * MASKING[density]
        if rng.random() < 1.0 - calcification_share:
            return _mass(
                rng,
                "mass_malignant",
                side,
                contrast,
                place,
                median=8.0,
                spiculation=float(rng.beta(2.5, 1.2)),
                edge=(0.8, 1.8),
            )
        return _cluster(
            "calcification_malignant",
            side,
            contrast,
            place,
            flecks=6 + int(rng.poisson(9)),
            spread=float(rng.uniform(3, 6)),
            fleck=float(rng.uniform(0.3, 0.6)),
        )
    which = int(np.searchsorted(BENIGN_SHARES, rng.random()))
    if which == 0:
        return _mass(
            rng, "mass_benign", side, 1.1 * rng.beta(2, 1.5), place, median=7.0, spiculation=0.0, edge=(0.4, 0.9)
        )
    if which == 1:
        return _mass(
            rng,
            "radial_scar",
            side,
            rng.beta(2, 2),
            place,
            median=6.5,
            spiculation=float(rng.uniform(0.3, 0.8)),
            edge=(0.8, 1.8),
        )
    if which == 2:
        return _cluster(
            "calcification_benign",
            side,
            rng.beta(2, 2),
            place,
            flecks=3 + int(rng.poisson(4)),
            spread=float(rng.uniform(5, 11)),
            fleck=float(rng.uniform(0.4, 0.7)),
        )
    return None


def project(
    rng: np.random.Generator, grid: Grid, breast: Breast, finding: Finding, *, conspicuity: float
) -> tuple[Image, Box]:
    """One view of a finding: attenuation to add [H, W] and its box (row0, col0, row1, col1; ends excluded).

    The place agrees between views within some 5 % of the breast, the visibility varies (a view may hide what another
    shows).
    """
    along = float(np.clip(finding.along + 0.03 * rng.standard_normal(), 0.05, 0.95)) * 0.8
    across = float(np.clip(finding.across + 0.05 * rng.standard_normal(), 0.05, 0.95))
    x = along * breast.reach_mm
    y = breast.centre_mm + breast.droop * x + (across - 0.5) * 1.3 * breast.half_mm * np.sqrt(max(1 - along**2, 0.05))
    gain = conspicuity * finding.contrast * float(np.clip(rng.normal(1, 0.2), 0.4, 1.6))
    if finding.flecks:
        added, box = _calcifications(rng, grid, finding, y, x, gain)
    else:
        added, box = _mass_chord(rng, grid, finding, y, x)
        added *= np.float32(gain * MU_CANCER_OVER_FAT / 10.0)
    added *= breast.inside
    return added, box


def _mass(
    rng: np.random.Generator,
    kind: Kind,
    side: str,
    contrast: float,
    place: tuple[float, float],
    *,
    median: float,
    spiculation: float,
    edge: tuple[float, float],
) -> Finding:
    radius = float(np.clip(rng.lognormal(np.log(median), 0.35), 3.5, 16.0))
    return Finding(
        kind=kind,
        side=side,
        contrast=float(contrast),
        radius_mm=radius,
        spiculation=spiculation,
        edge_mm=float(rng.uniform(*edge)),
        flecks=0,
        spread_mm=0.0,
        fleck_mm=0.0,
        across=place[0],
        along=place[1],
    )


def _cluster(
    kind: Kind, side: str, contrast: float, place: tuple[float, float], *, flecks: int, spread: float, fleck: float
) -> Finding:
    return Finding(
        kind=kind,
        side=side,
        contrast=float(contrast),
        radius_mm=0.0,
        spiculation=0.0,
        edge_mm=0.0,
        flecks=flecks,
        spread_mm=spread,
        fleck_mm=fleck,
        across=place[0],
        along=place[1],
    )


def _mass_chord(rng: np.random.Generator, grid: Grid, finding: Finding, y: float, x: float) -> tuple[Image, Box]:
    """Chord of the beam through a mass and its spicules, mm; zero outside a window around it."""
    r, px = finding.radius_mm, grid.spacing_mm
    rows, columns = _window(grid, y, x, 2.7 * r + 3 * finding.edge_mm)
    dy, dx = grid.y_mm[rows] - np.float32(y), grid.x_mm[:, columns] - np.float32(x)
    rho, theta = np.sqrt(dy * dy + dx * dx), np.arctan2(dy, dx)
    k = np.arange(2, 9)
    amplitude = (0.03 + 0.10 * finding.spiculation) * rng.standard_normal(k.size) / np.sqrt(k)
    phase = rng.uniform(0, 2 * np.pi, k.size)
    margin = np.ones_like(rho)
    for a, order, shift in zip(amplitude, k, phase, strict=True):
        margin += np.float32(a) * np.cos(np.float32(order) * theta + np.float32(shift))
    chord = 2.0 * np.sqrt(np.clip((np.float32(r) * margin) ** 2 - rho * rho, 0, None))
    chord = gaussian_filter(chord, finding.edge_mm / px)
    if finding.spiculation > 0:
        for _ in range(int(rng.integers(10, 20))):
            chord += np.float32(1.6 * finding.spiculation) * _spicule(rng, rho, theta, r)
    added = np.zeros(grid.shape, np.float32)
    added[rows, columns] = chord
    reach = r * (1.1 + 0.5 * finding.spiculation)
    return added, _box(grid, y - reach, x - reach, y + reach, x + reach)


def _spicule(rng: np.random.Generator, rho: Image, theta: Image, radius: float) -> Image:
    """A thin line outwards from a mass, tapering linearly to its end; peak 1."""
    angle, length, width = rng.uniform(0, 2 * np.pi), radius * rng.uniform(1.3, 2.6), rng.uniform(0.5, 1.1)
    turn = theta - np.float32(angle)
    across, ahead = rho * np.sin(turn), np.cos(turn) > 0
    start = 0.7 * radius
    taper = np.clip(1.0 - (rho - np.float32(start)) / np.float32(length - start), 0, 1)
    return np.asarray(np.exp(-((across / np.float32(width)) ** 2)) * taper * (ahead & (rho > 0.5 * radius)))


def _calcifications(
    rng: np.random.Generator, grid: Grid, finding: Finding, y: float, x: float, gain: float
) -> tuple[Image, Box]:
    """Attenuation of scattered flecks, each shared between the four pixels around it; malignant ones differ in size."""
    px = grid.spacing_mm
    ys, xs = (
        y + finding.spread_mm * rng.standard_normal(finding.flecks),
        x + finding.spread_mm * rng.standard_normal(finding.flecks),
    )
    varied = 0.35 if finding.kind == "calcification_malignant" else 0.1
    diameters = finding.fleck_mm * np.exp(varied * rng.standard_normal(finding.flecks))
    peak = gain * MU_CALCIUM * diameters / 10.0 * np.minimum(1.0, CALCIUM_GAIN * (diameters / px) ** 2)
    added = np.zeros(grid.shape, np.float32)
    rows, columns = ys / px - 0.5, xs / px - 0.5
    row0, column0 = np.floor(rows).astype(int), np.floor(columns).astype(int)
    fy, fx = rows - row0, columns - column0
    for i, j, weight in ((0, 0, (1 - fy) * (1 - fx)), (0, 1, (1 - fy) * fx), (1, 0, fy * (1 - fx)), (1, 1, fy * fx)):
        r, c = row0 + i, column0 + j
        ok = (r >= 0) & (r < grid.shape[0]) & (c >= 0) & (c < grid.shape[1])
        np.add.at(added, (r[ok], c[ok]), (peak * weight)[ok])
    return added, _box(grid, ys.min() - px, xs.min() - px, ys.max() + px, xs.max() + px)


def _window(grid: Grid, y: float, x: float, reach: float) -> tuple[slice, slice]:
    row0, column0, row1, column1 = _box(grid, y - reach, x - reach, y + reach, x + reach)
    return slice(row0, row1), slice(column0, column1)


def _box(grid: Grid, y0: float, x0: float, y1: float, x1: float) -> Box:
    """Box in pixels around a rectangle in mm, inside the film, at least one pixel."""
    rows, columns = grid.shape
    px = grid.spacing_mm
    row0, column0 = int(np.clip(y0 // px, 0, rows - 1)), int(np.clip(x0 // px, 0, columns - 1))
    row1, column1 = int(np.clip(np.ceil(y1 / px), row0 + 1, rows)), int(np.clip(np.ceil(x1 / px), column0 + 1, columns))
    return row0, column0, row1, column1


def mirrored(box: Box, columns: int) -> Box:
    """The box after the film is flipped left to right."""
    return box[0], columns - box[3], box[2], columns - box[1]
