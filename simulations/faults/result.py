"""What became of one case; apart from `case`, so that the command can speak of results before torch is there."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Result:
    """end: the end state in words. faults: what is wrong with it; none when the case held."""

    name: str
    end: str
    faults: tuple[str, ...]
    seconds: float
