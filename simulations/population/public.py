"""Public films for pre-training: procedural, of another world than the study's; called by `mammofed pretrain`.

No hospital, no woman and no file of a study has a part in them. They share with the study only what anybody knows of
a mammogram: bright structures with rays, and groups of specks, in a cloudy breast before dark air. What differs, so
that weights learnt here owe nothing to the study's generator (a test holds each line):

    texture     linear Gaussian field, isotropic, exponent 2.1-2.5
      (study)   thresholded, oriented, exponent 3.17 or 3.30 +- 0.23, never below 2.67
    lesions     unions of Gaussian lobes with wedge-shaped rays; specks along a duct
      (study)   chord of a Gaussian sphere with line spicules; specks in round clusters
    detector    additive correlated noise, a random curve each, 16 bits, pitch 1.4 mm
      (study)   Poisson quanta, curves of vendors A-E with 10-16 bits, pitch 1.0-1.375 mm
    outline     parabola-like, thick to the edge, a small soft muscle
      (study)   superellipse, rounded edge, pectoral muscle as a large triangle
    women       half have the sign, no clinical data, nothing hides it
      (study)   15-35 % by site, density hides lesions
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from shared_model.cohort.views import VIEWS
from shared_model.errors import ConfigError
from simulations.population.anatomy import Grid, Image, film_grid, texture
from simulations.population.seeds import generator, label_key

FILM_MM = (196.0, 154.0)
SPACING_MM = 1.4
PREVALENCE = 0.5
EXPONENTS = (2.1, 2.5)  # of the texture, uniform
SPECK_SHARE = 0.3  # of the positive women; the others have a lobed mass
BENIGN_SHARES = (0.2, 0.3)  # cumulative, of the negative women: smooth disc, a few loose specks
CHUNK = 16


class PublicPatient(TypedDict):
    """One procedural patient.

    views: uint16 [H, W] by view, all with the chest wall at column 0, air near 0, brighter is denser. label: 1 if one
    breast shows the sign. spacing_mm: pixel pitch. marks: where the films that show it do, (y, x) of its centre in mm
    from the film's corner, as public collections have their lesions outlined.
    """

    views: dict[str, NDArray[np.uint16]]
    label: int
    spacing_mm: float
    marks: dict[str, tuple[float, float]]


def public_films(*, patients: int, seed: int, workers: int) -> Iterator[PublicPatient]:
    """Yield `patients` procedural patients in order, the same for any number of workers, a bounded number ahead of use.

    Raises:
        ConfigError: workers < 1 or patients < 0.
    """
    if workers < 1 or patients < 0:
        raise ConfigError(
            "public films: impossible numbers",
            found=f"patients={patients} workers={workers}",
            expected="patients >= 0, workers >= 1",
        )
    chunks = (range(start, min(start + CHUNK, patients)) for start in range(0, patients, CHUNK))
    if workers == 1:
        for chunk in chunks:
            yield from _draw_patients(seed, chunk)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        ahead: deque[Future[list[PublicPatient]]] = deque(
            pool.submit(_draw_patients, seed, chunk) for chunk in islice(chunks, 4 * workers)
        )
        while ahead:
            done = ahead.popleft().result()
            ahead.extend(pool.submit(_draw_patients, seed, chunk) for chunk in islice(chunks, 1))
            yield from done


def draw_public_patient(seed: int, index: int) -> PublicPatient:
    """Draw patient `index`; depends on nothing but the seed and the index."""
    rng = generator(seed, label_key("public"), index)
    grid = film_grid(FILM_MM, SPACING_MM)
    label = int(rng.random() < PREVALENCE)
    sign, side = _draw_sign(rng, label), "LR"[int(rng.random() < 0.5)]
    exponent, curve = rng.uniform(*EXPONENTS), rng.uniform(0.6, 1.5)
    reach, half = rng.uniform(55, 120), rng.uniform(55, 85)
    strength, place = rng.uniform(0.5, 1.3), rng.uniform(0.2, 0.8, 2)
    cloud = rng.uniform(0.15, 0.45)
    views, marks = {}, {}
    for view in VIEWS:
        inside = _outline(rng, grid, reach, half)
        tissue = 1.0 + cloud * texture(rng, grid, exponent=exponent, angle_deg=0.0, anisotropy=1.0)
        if view.endswith("MLO"):
            tissue += _muscle(rng, grid)
        if view[0] == side and sign:
            y = FILM_MM[0] / 2 + (place[0] - 0.5 + 0.04 * rng.standard_normal()) * half
            x = 0.75 * reach * (place[1] + 0.03 * rng.standard_normal())
            tissue += strength * rng.uniform(0.6, 1.3) * _SIGNS[sign](rng, grid, float(y), float(x))
            if label:
                marks[view] = (float(y), float(x))
        views[view] = _develop(rng, tissue, inside, curve)
    return {"views": views, "label": label, "spacing_mm": SPACING_MM, "marks": marks}


def _draw_patients(seed: int, indices: range) -> list[PublicPatient]:
    """A worker's task."""
    return [draw_public_patient(seed, index) for index in indices]


def _draw_sign(rng: np.random.Generator, label: int) -> str:
    """What there is to see: "" for nothing."""
    chance = rng.random()
    if label:
        return "ducts" if chance < SPECK_SHARE else "lobes"
    return ("disc", "loose", "")[int(np.searchsorted(BENIGN_SHARES, chance))]


def _outline(rng: np.random.Generator, grid: Grid, reach: float, half: float) -> NDArray[np.bool_]:
    """A breast like a lying parabola of random bluntness."""
    centre = FILM_MM[0] * (0.5 + 0.03 * rng.standard_normal())
    across = np.abs(grid.y_mm - np.float32(centre)) / np.float32(half)
    edge = reach * (1 - np.clip(across, 0, 1) ** np.float32(rng.uniform(1.8, 3.0)))
    return np.asarray((grid.x_mm < edge) & (across < 1))


def _muscle(rng: np.random.Generator, grid: Grid) -> Image:
    """A brighter quarter of an ellipse in the upper chest wall corner."""
    height, width = rng.uniform(50, 90), rng.uniform(20, 45)
    radius: Image = np.sqrt((grid.y_mm / np.float32(height)) ** 2 + (grid.x_mm / np.float32(width)) ** 2)
    return np.asarray(rng.uniform(0.4, 0.9) * _fall((radius - np.float32(1)) / np.float32(0.03)), dtype=np.float32)


def _lobes(rng: np.random.Generator, grid: Grid, y: float, x: float) -> Image:
    """A few overlapping Gaussian lobes with wedge-shaped rays; peak about 1.5."""
    size = rng.uniform(3.0, 8.0)
    dy, dx = grid.y_mm - np.float32(y), grid.x_mm - np.float32(x)
    mass = np.zeros(grid.shape, np.float32)
    for _ in range(int(rng.integers(3, 7))):
        oy, ox = (np.float32(o) for o in rng.normal(0, 0.5 * size, 2))
        width = np.float32(size * rng.uniform(0.5, 0.9))
        mass = np.maximum(mass, np.exp(-((dy - oy) ** 2 + (dx - ox) ** 2) / (2 * width**2)))
    angle, distance = np.arctan2(dy, dx), np.sqrt(dy * dy + dx * dx)
    rays = np.zeros(grid.shape, np.float32)
    for turn in rng.uniform(-np.pi, np.pi, int(rng.integers(4, 12))):
        off = np.abs(np.angle(np.exp(1j * (angle - np.float32(turn))))).astype(np.float32)
        rays = np.maximum(rays, np.clip(1 - off / np.float32(0.14), 0, 1))
    falloff = np.exp(-distance / np.float32(size * rng.uniform(1.2, 2.0)))
    return np.asarray(1.2 * mass + rays * falloff, dtype=np.float32)


def _ducts(rng: np.random.Generator, grid: Grid, y: float, x: float) -> Image:
    """Specks along a line, as calcified ducts are."""
    count, direction = int(rng.integers(8, 20)), rng.uniform(-0.6, 0.6)
    along = rng.uniform(-10, 10, count)
    aside = rng.normal(0, 1.2, count)
    ys = y + np.sin(direction) * along + np.cos(direction) * aside
    xs = x + np.cos(direction) * along - np.sin(direction) * aside
    return _specks(rng, grid, ys, xs)


def _loose(rng: np.random.Generator, grid: Grid, y: float, x: float) -> Image:
    """A few specks far from each other."""
    count = int(rng.integers(2, 6))
    return _specks(rng, grid, y + rng.normal(0, 14, count), x + rng.normal(0, 14, count))


def _disc(rng: np.random.Generator, grid: Grid, y: float, x: float) -> Image:
    """A smooth round density."""
    distance = np.hypot(grid.y_mm - np.float32(y), grid.x_mm - np.float32(x))
    return np.asarray(0.8 * _fall((distance - np.float32(rng.uniform(4, 10))) / np.float32(0.8)), dtype=np.float32)


def _fall(x: Image) -> Image:
    """Logistic fall from 1 to 0."""
    return np.asarray(1 / (1 + np.exp(np.minimum(x, np.float32(80)))))  # exp(89) is no float32 any more


_SIGNS = {"lobes": _lobes, "ducts": _ducts, "loose": _loose, "disc": _disc}


def _specks(rng: np.random.Generator, grid: Grid, ys: NDArray[np.float64], xs: NDArray[np.float64]) -> Image:
    """Single bright pixels, blurred by the detector later."""
    rows = np.clip((ys / grid.spacing_mm).astype(int), 0, grid.shape[0] - 1)
    columns = np.clip((xs / grid.spacing_mm).astype(int), 0, grid.shape[1] - 1)
    out = np.zeros(grid.shape, np.float32)
    out[rows, columns] = rng.uniform(0.8, 2.5, rows.size)
    return out


def _develop(rng: np.random.Generator, tissue: Image, inside: NDArray[np.bool_], curve: float) -> NDArray[np.uint16]:
    """Correlated noise, a random curve, 16 bits; the breast at 8-95 % of the range, air at 0."""
    noise = gaussian_filter(rng.standard_normal(tissue.shape, dtype=np.float32), 0.6)
    signal = gaussian_filter(tissue, 0.5) + np.float32(rng.uniform(0.02, 0.06)) * noise
    values = signal[inside]
    ranks = [round(q * (values.size - 1)) for q in (0.005, 0.998)]
    low, high = np.partition(values, ranks)[ranks]
    grey = np.clip((signal - low) / (high - low), 0, 1) ** np.float32(curve)
    return np.asarray(np.rint(65535 * (0.08 + 0.87 * grey)) * inside, dtype=np.uint16)
