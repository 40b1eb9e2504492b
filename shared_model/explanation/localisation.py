"""Do heat maps point to lesions? Measured on films whose lesions are known; called by checks and printed with maps.

Pointing game (Zhang et al. 2018, arXiv 1608.00507): a film is a hit when the greatest value of its map is in the
lesion's box, widened by a tolerance. Energy in the box (Wang et al. 2020, arXiv 1910.01279): the share of the map's
sum there.
Intervals resample women, because two films of a lesion are not two lesions. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from shared_model.imaging.geometry import Box

TOLERANCE_MM = 5.0  # half a small mass; with the 15 pixels of the paper three points in ten would hit by chance
REPLICATES, SEED, CONFIDENCE = 2000, 20_261_126, 0.95


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share in [0, 1] with the 95 % bounds of a bootstrap over women."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f}-{self.high:.2f})"


@dataclass(frozen=True, kw_only=True)
class Localisation:
    """What a method's maps are worth on known lesions.

    women, films: with a lesion. pointing: share of films that hit, averaged within women first. chance: the share that
    a point thrown anywhere onto the breast would hit. inside: pointing without the tolerance. energy: share of a map's
    sum within the box, likewise. energy_chance: the box's share of the breast. side: share of women whose strongest map
    value over all her films is in the breast with the lesion. tolerance_mm: of pointing.
    """

    method: str
    women: int
    films: int
    tolerance_mm: float
    pointing: Share
    inside: Share
    chance: float
    energy: Share
    energy_chance: float
    side: Share

    def as_dict(self) -> dict[str, object]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class LesionFilm:
    """One film with a lesion. woman: whose. map_HW: at least 0. breast_HW: where there is tissue. box: on the canvas.
    right_side: whether the woman's strongest map value lies in the breast of this film, over all her films.
    lesion: its kind."""

    woman: str
    map_HW: NDArray[np.float32]
    breast_HW: NDArray[np.bool_]
    box: Box
    right_side: bool
    lesion: str = ""


def localise(films: Sequence[LesionFilm], *, method: str, spacing_mm: float,
             tolerance_mm: float = TOLERANCE_MM) -> Localisation:  # fmt: skip
    """Judge the maps of one method.

    Args:
        spacing_mm: edge of a canvas pixel.

    Raises:
        ValueError: no film.
    """
    if not films:
        raise ValueError("no film with a known lesion")
    reach = tolerance_mm / spacing_mm
    wide = [_inside(film.map_HW.shape, film.box, reach) for film in films]
    tight = [_inside(film.map_HW.shape, film.box, 0.0) for film in films]
    pairs = list(zip(films, wide, tight, strict=True))
    hits = [_hit(film, box) for film, box, _ in pairs]
    energy = [float(film.map_HW[box].sum() / film.map_HW.sum()) if film.map_HW.any() else 0.0 for film, _, box in pairs]
    women = [film.woman for film in films]
    return Localisation(
        method=method, women=len(set(women)), films=len(films), tolerance_mm=tolerance_mm,
        pointing=_share(women, hits), inside=_share(women, [_hit(film, box) for film, _, box in pairs]),
        energy=_share(women, energy),
        side=_share(women, [float(film.right_side) for film in films]),
        chance=float(np.mean([box[film.breast_HW].mean() for film, box, _ in pairs])),
        energy_chance=float(np.mean([box[film.breast_HW].mean() for film, _, box in pairs])),
    )  # fmt: skip


def _hit(film: LesionFilm, box: NDArray[np.bool_]) -> float:
    return float(film.map_HW.max() > 0 and box.flat[int(film.map_HW.argmax())])


def _inside(shape: tuple[int, ...], box: Box, reach: float) -> NDArray[np.bool_]:
    """Canvas pixels whose centres are in the box, widened by `reach` pixels; the nearest one of a box below a pixel."""
    axes = []
    for axis in (0, 1):
        centres = np.arange(shape[axis]) + 0.5
        inside = (centres >= box[axis] - reach) & (centres < box[axis + 2] + reach)
        if not inside.any():
            inside[int(np.clip((box[axis] + box[axis + 2]) / 2, 0, shape[axis] - 1))] = True
        axes.append(inside)
    return np.asarray(np.outer(axes[0], axes[1]))


def _share(women: Sequence[str], values: Sequence[float]) -> Share:
    """Mean over women of their films' mean, with percentile bounds of a bootstrap over women."""
    by_woman: dict[str, list[float]] = {}
    for woman, value in zip(women, values, strict=True):
        by_woman.setdefault(woman, []).append(value)
    means = np.array([np.mean(listed) for listed in by_woman.values()])
    rng = np.random.default_rng(SEED)
    drawn = means[rng.integers(len(means), size=(REPLICATES, len(means)))].mean(axis=1)
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Share(value=float(means.mean()), low=float(low), high=float(high))
