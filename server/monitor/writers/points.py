"""What an event is to a tool that draws curves: numbers with a name and a round.

Nothing is computed that the journal does not hold, and nothing is made up: a round without AUC has no point.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from server.rounds.events import Event
from shared_model.phases import PHASES

OF_SITES = ("epsilon", "seconds", "bytes_up", "bytes_down", "loss", "metrics_epsilon",
            *(f"{phase}_s" for phase in PHASES), "round_trip_s")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Point:
    """One number. name: `auc/fused`, `site/north/epsilon`, `round/contributed`; step: the round; time: since 1970."""

    name: str
    value: float
    step: int
    time: float


def points(event: Event) -> Iterator[Point]:
    """The finite numbers of one event."""
    if event.kind == "evaluated":
        names = {f"auc_{model}": f"auc/{model}" for model in ("fused", "image", "clinical")}
    elif event.kind == "tested":
        names = {f"auc_{model}": f"test/auc/{model}" for model in ("fused", "image", "clinical")}
    elif event.kind in ("site_replied", "site_evaluated") and event.site:
        names = {name: f"site/{event.site}/{name}" for name in OF_SITES}
    elif event.kind == "round_closed":
        names = {"contributed": "round/contributed"}
    else:
        return
    for key, name in names.items():
        value = event.data.get(key)
        if isinstance(value, int | float) and math.isfinite(value):
            yield Point(name=name, value=float(value), step=event.round, time=event.time)
