"""Where a request's seconds go at a site, phase after phase; started by the service when the request has come."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

from shared_model.phases import PhaseSeconds, told

Phase = Literal["wait", "load", "train", "mask"]


class Stopwatch:
    """Laps of one request. clock: seconds that only grow."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._last = clock, clock()
        self._spent: dict[Phase, float] = dict.fromkeys(("wait", "load", "train", "mask"), 0.0)

    def lap(self, phase: Phase) -> None:
        """What has passed since the last lap belongs to `phase`."""
        now = self._clock()
        self._spent[phase] += now - self._last
        self._last = now

    def move(self, seconds: float, source: Phase, target: Phase) -> None:
        """Of what was counted as `source`, so much was `target`."""
        seconds = min(max(0.0, seconds), self._spent[source])
        self._spent[source] -= seconds
        self._spent[target] += seconds

    def told(self, *, coarse: bool) -> PhaseSeconds:
        """All laps, as finely as they may be told (`Protocol.coarse_times`)."""
        return PhaseSeconds(**{phase: told(seconds, coarse=coarse) for phase, seconds in self._spent.items()})
