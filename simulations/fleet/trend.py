"""Whether something grows: the slope of samples that jump, and what counts as flat. Arithmetic, used by `show`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import Final

MIB: Final = 1 << 20
TOLERANCE: Final = 0.05   # of the level at the beginning, over the whole time
SMALL: Final = 4 * MIB    # an allocator's arena and a garbage collection move that much by themselves
WINDOW_S: Final = 60.0    # a level is the median of so many seconds

Point = tuple[float, float]
"""(seconds since the first round was opened, value)"""


@dataclass(frozen=True, kw_only=True)
class Trend:
    """How a figure moved between two moments. first, last: levels; an_hour: slope; all in the figure's unit."""

    first: float
    last: float
    an_hour: float
    seconds: float

    @property
    def growth(self) -> float:
        """How much more it was at the end by the slope, which one late sample cannot move."""
        return self.an_hour * self.seconds / 3600

    @property
    def allowed(self) -> float:
        """The growth that still counts as flat."""
        return max(SMALL, TOLERANCE * self.first)

    @property
    def flat(self) -> bool:
        """Whether neither the slope nor the two levels show more growth than is allowed."""
        return max(self.growth, self.last - self.first) <= self.allowed


def trend(points: Sequence[Point], *, since: float) -> Trend | None:
    """The trend from `since` on; None with fewer than three samples there."""
    later = [point for point in points if point[0] >= since]
    if len(later) < 3:
        return None
    begin, end = later[0][0], later[-1][0]
    window = min(WINDOW_S, (end - begin) / 3)
    return Trend(
        first=median(value for moment, value in later if moment <= begin + window),
        last=median(value for moment, value in later if moment >= end - window),
        an_hour=3600 * slope(later), seconds=end - begin,
    )  # fmt: skip


def slope(points: Sequence[Point]) -> float:
    """Median of the slopes between any two samples (Theil 1950, Sen 1968), in value a second: a third of the samples
    may be anything."""
    found = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(_thinned(points), 2) if b[0] > a[0]]
    return median(found) if found else 0.0


def _thinned(points: Sequence[Point], most: int = 400) -> Sequence[Point]:
    step = -(-len(points) // most)
    return points[::step] if points else points
