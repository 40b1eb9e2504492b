"""A view as the page gets it: short keys for what there is much of, and of the rest only what has changed.

    {"head": {...}, "sites": [...], "rounds": [...], "events": [...], "whole": bool, "cursor": "12.7"}

head: fields of `StudyView`. sites: the fields of each that changed, with its name. rounds: one string a round with a
letter a site, in the order of `names`; a round's numbers (seconds, bytes, epsilon) are fetched when somebody looks at
that round.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from server.monitor.view import Auc, Cell, EventView, Outcome, RoundView, SiteView, StudyView

LETTERS: Final[Mapping[Outcome, str]] = {
    "contributed": "C", "asked": "?", "waiting": " ", "late": "L", "rejected": "R", "refused": "X",
    "out_of_budget": "B", "abstained": "P", "absent": "A", "failed": "F", "not_sampled": "-",
}  # fmt: skip
MAX_EVENTS: Final = 300  # newest, with a whole view; older ones come page by page
PARTS: Final = ("sites", "rounds", "events", "now", "whole", "cursor")
CLOCK_STEP_S: Final = 10.0  # of the expected end: it moves a little with every look


class Sender:
    """What one reader has been sent; makes the next message out of the next view. Not safe between threads."""

    def __init__(self) -> None:
        self._head: dict[str, Any] = {}
        self._sites: dict[str, dict[str, Any]] = {}

    def message(self, view: StudyView) -> dict[str, Any] | None:
        """What the reader does not know yet, None when that is nothing."""
        head = head_of(view)
        new = {key: value for key, value in head.items() if key not in self._head or self._head[key] != value}
        now = {site.name: site_line(site) for site in view.sites}
        sites = [_changed(self._sites.get(name), line) for name, line in now.items() if self._sites.get(name) != line]
        first = not self._head
        self._head, self._sites = head, now
        if not (new or sites or view.rounds or view.events or first):
            return None
        names = [site.name for site in view.sites]
        events = view.events[-MAX_EVENTS:] if view.whole else view.events
        return _finite({
            "head": new, "sites": sites, "names": names if new.keys() & {"protocol_sha256"} or first else None,
            "rounds": [round_line(one, names) for one in view.rounds], "events": [event_line(e) for e in events],
            "whole": view.whole, "cursor": view.cursor, "now": view.now,
        })  # fmt: skip


def site_line(site: SiteView) -> dict[str, Any]:
    """One site; what it gives is the same for all and stands in the head."""
    line = asdict(site)
    del line["gives"]
    return line


def _changed(old: Mapping[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """The fields that differ, and the name."""
    return new if old is None else {k: v for k, v in new.items() if k == "name" or old[k] != v}


def head_of(view: StudyView) -> dict[str, Any]:
    """Everything but sites, rounds and events."""
    head = {name: getattr(view, name) for name in StudyView.__dataclass_fields__ if name not in PARTS}
    head["ends"] = None if view.ends is None else CLOCK_STEP_S * round(view.ends / CLOCK_STEP_S)
    head["best"] = asdict(view.best) if view.best else None
    head["test"] = {name: auc_line(auc) for name, auc in view.test.items()}
    head["member"] = asdict(view.member) if view.member else None
    head["gives"] = view.sites[0].gives if view.sites else ""
    head["evaluators"] = [asdict(party) for party in view.evaluators]
    head["alarms"] = [asdict(alarm) for alarm in view.alarms]
    return head


def round_line(view: RoundView, names: list[str]) -> dict[str, Any]:
    """One round as the heat strip and the curves need it. o: a letter a site; x: site -> (code, reason) of trouble."""
    cells = {cell.site: cell for cell in view.cells}
    return {
        "n": view.number, "a": view.attempt, "st": view.state, "ph": view.phase, "t": view.opened,
        "s": None if view.seconds is None else round(view.seconds, 2), "c": view.contributed,
        "o": "".join(LETTERS[cells[name].outcome] if name in cells else " " for name in names),
        "x": {cell.site: [cell.code, cell.reason] for cell in view.cells if cell.reason},
        "auc": {model: auc_line(auc) for model, auc in view.auc.items()},
    }  # fmt: skip


def round_whole(view: RoundView) -> dict[str, Any]:
    """One round taken apart."""
    return _finite({
        **round_line(view, []), "before": view.weights_before, "after": view.weights_after,
        "steps": [[step.attempt, step.name, step.time] for step in view.steps],
        "cells": [cell_line(cell) for cell in view.cells],
    })  # fmt: skip


def cell_line(cell: Cell) -> dict[str, Any]:
    """One site in one round."""
    return asdict(cell)


def auc_line(auc: Auc) -> list[float | None]:
    """Value, low, high, as they are shown: who rounds again what was rounded says 0.739 where another says 0.738."""
    return [None if value is None else round(value, 3) for value in (auc.value, auc.low, auc.high)]


def event_line(event: EventView) -> dict[str, Any]:
    """One event, without the fields that are empty."""
    found = asdict(event)
    return {key: value for key, value in found.items() if value not in ("", None, {}, 0) or key == "id"}


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: finite(value) for key, value in values.items()}


def packed(message: Mapping[str, Any] | None) -> bytes:
    """A message as it travels."""
    return json.dumps(message, allow_nan=False, separators=(",", ":")).encode()


def finite(value: Any) -> Any:
    """The same with null for numbers that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return value
