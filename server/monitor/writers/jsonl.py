"""Every event of a study as one JSON line in `monitor/events.jsonl` of its run directory."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from server.rounds.events import Event

TAIL_BYTES = 1 << 16  # a line is shorter: the words of one event are bounded


class JsonLines:
    """Appends to one file. What a line already holds is not written twice: the last one says where to go on."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "events.jsonl"

    def begin(self) -> int:
        """Number of the last event in the file; a torn last line is taken away."""
        try:
            with self._path.open("r+b") as stream:
                size = stream.seek(0, os.SEEK_END)
                stream.seek(max(0, size - TAIL_BYTES))
                tail = stream.read()
                whole = tail[: tail.rfind(b"\n") + 1]
                if len(whole) < len(tail):
                    stream.truncate(size - len(tail) + len(whole))
        except FileNotFoundError:
            return 0
        lines = whole.splitlines()
        try:
            return int(json.loads(lines[-1])["id"]) if lines else 0
        except (ValueError, KeyError, TypeError):
            return 0  # somebody else's line: all is told again, each with its number

    def write(self, events: Sequence[tuple[int, Event]]) -> None:
        """Append these events, in order."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as stream:
            stream.write(b"".join(line(number, event) for number, event in events))

    def close(self) -> None:
        """Nothing is kept open."""


def line(number: int, event: Event) -> bytes:
    """One event. JSON knows no NaN and no infinity: they become words."""
    data = {name: value if isinstance(value, str) or math.isfinite(value) else str(value)
            for name, value in event.data.items()}  # fmt: skip
    values: dict[str, Any] = {"id": number, **asdict(event), "data": data}
    return json.dumps(values, allow_nan=False).encode() + b"\n"
