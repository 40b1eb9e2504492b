"""Searches a study's events: words anywhere in them, a severity, page by page from the newest."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any, Final

from server.monitor.view import EventView
from server.monitor.web.wire import event_line

PAGE: Final = 200
LEVELS: Final = {"warning": ("warning", "error"), "error": ("error",)}


def search(events: Sequence[EventView], *, text: str, severity: str, before: int) -> dict[str, Any]:
    """The newest events that fit, newest first.

    Args:
        text: words that must all be there, in any case. severity: at least this one; empty: any.
        before: only events with a smaller number; 0: from the newest on.
    """
    words, levels = text.casefold().split(), LEVELS.get(severity)
    fitting = (
        event for event in reversed(events)
        if (before == 0 or event.id < before) and (levels is None or event.severity in levels) and _holds(event, words)
    )  # fmt: skip
    found = list(islice(fitting, PAGE + 1))
    return {"events": [event_line(event) for event in found[:PAGE]], "more": len(found) > PAGE}


def _holds(event: EventView, words: Sequence[str]) -> bool:
    if not words:
        return True
    data = " ".join(f"{key} {value}" for key, value in event.data.items())
    place = f"round {event.round}" if event.round else "study"
    line = f"{place} {event.site or ''} {event.kind.replace('_', ' ')} {event.code} {event.text} {data}".casefold()
    return all(word in line for word in words)
