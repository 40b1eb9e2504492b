"""Several tests at once: Holm's step-down adjustment (Holm 1979, Scand J Stat 6:65); used by reports. Needs no torch.

One endpoint is primary and is tested alone; all others of a report are adjusted together.
"""

from __future__ import annotations

from collections.abc import Mapping


def holm(p_values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Adjusted p by name, in the order given; what has no p (None) is no test and stays None.

    Raises:
        ValueError: a p is not in [0, 1].

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": None})
    {'a': 0.03, 'b': 0.06, 'c': 0.06, 'd': None}
    """
    known = sorted((p, name) for name, p in p_values.items() if p is not None)
    if any(not 0 <= p <= 1 for p, _ in known):
        raise ValueError(f"p values must be in [0, 1], found {dict(p_values)}")
    adjusted: dict[str, float] = {}
    greatest = 0.0
    for place, (p, name) in enumerate(known):
        greatest = max(greatest, min(1.0, (len(known) - place) * p))
        adjusted[name] = greatest
    return {name: adjusted.get(name) for name in p_values}
