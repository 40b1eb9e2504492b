"""Numbers in words for people: seconds, bytes and a curve in one line; used by views, tables and monitors."""

from __future__ import annotations

import math
from collections.abc import Sequence

BLOCKS = "▁▂▃▄▅▆▇█"


def seconds_in_words(seconds: float) -> str:
    """Seconds >= 0 as `3.4 s`, `2 min 05 s` or `1 h 02 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def bytes_in_words(count: float) -> str:
    """A number of bytes >= 0 with decimal units (1 kB is 1,000 B), as `512 B`, `1.5 kB`, `3.2 MB`."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def sparkline(values: Sequence[float], *, low: float, high: float) -> str:
    """Values as block characters between `low` and `high` (clipped); a gap for NaN."""
    top = len(BLOCKS) - 1
    return "".join(
        " " if math.isnan(value) else BLOCKS[min(top, max(0, round((value - low) / (high - low) * top)))]
        for value in values
    )
