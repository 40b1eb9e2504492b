"""Sums over a whole journal, kept from look to look: only rounds and events that came since are read again.

Rounds before the newest are closed and never written again (`server.rounds.loop` goes on from the last closed one), and
events are only added. So what was summed over them stays; a journal that was replaced by another is summed anew.
"""

from __future__ import annotations

import sqlite3
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from server.rounds.states import RoundState
from shared_model.story import ALIVE

Row = tuple[Any, ...]
HEARD_KINDS: Final = sorted({kind for kind, _ in ALIVE} | {"site_absent"})
MAX_JOURNALS: Final = 200
_LOCK = threading.Lock()


@dataclass
class _Sums:
    """identity: of the journal; event: up to which `heard` is; before: the round up to which the others are, exclusive.

    totals: (site, outcome, closed) -> rows, bytes up, bytes down. spent: site -> its last report. heard: (site, kind,
    code) -> time of the last, its text.
    """

    identity: Row
    event: int = 0
    before: int = 0
    totals: dict[tuple[str, str, int], tuple[int, int, int]] = field(default_factory=dict)
    spent: dict[str, Row] = field(default_factory=dict)
    heard: dict[tuple[str, str, str], tuple[float, str]] = field(default_factory=dict)


_KNOWN: dict[Path, _Sums] = {}


def summed(db: sqlite3.Connection, journal: Path, *, newest: int, event: int) -> dict[str, list[Row]]:
    """`totals`, `spent` and `heard` of `server.monitor.rows.Rows`.

    Args:
        db: inside a read transaction. newest: number of the newest round. event: number of the last event.
    """
    identity = tuple(db.execute("SELECT min(started), count(*) > 0 FROM sessions").fetchone())
    with _LOCK:
        known = _KNOWN.get(journal)
        if known is None or known.identity != identity or known.event > event or known.before > newest:
            if len(_KNOWN) >= MAX_JOURNALS:
                _KNOWN.clear()
            known = _KNOWN[journal] = _Sums(identity)
        _hear(db, known, event)
        _add(known, _totals(db, known.before, newest), _spent(db, known.before, newest))
        known.before = newest
        now = _Sums(identity, totals=dict(known.totals), spent=dict(known.spent), heard=known.heard)
        _add(now, _totals(db, newest, None), _spent(db, newest, None))
        return {
            "totals": [(*key, *value) for key, value in now.totals.items()], "spent": list(now.spent.values()),
            "heard": [(*key, *value) for key, value in now.heard.items()],
        }  # fmt: skip


def _hear(db: sqlite3.Connection, known: _Sums, event: int) -> None:
    kinds = ", ".join(f"'{kind}'" for kind in HEARD_KINDS)
    rows = db.execute(
        f"SELECT site, kind, code, max(time), text FROM events WHERE id > ? AND site IS NOT NULL AND kind IN ({kinds}) "  # noqa: S608
        "GROUP BY 1, 2, 3", (known.event,),
    )  # fmt: skip
    for site, kind, code, moment, text in rows:
        known.heard[site, kind, code] = (moment, text)
    known.event = event


def _totals(db: sqlite3.Connection, first: int, before: int | None) -> list[Row]:
    return db.execute(
        "SELECT site, outcome, state = ?, count(*), sum(bytes_up), sum(bytes_down) FROM participation "
        "JOIN rounds USING (round, attempt) WHERE round >= ? AND round < coalesce(?, round + 1) GROUP BY 1, 2, 3",
        (RoundState.CLOSED.value, first, before),
    ).fetchall()


def _spent(db: sqlite3.Connection, first: int, before: int | None) -> list[Row]:
    return db.execute(
        "SELECT site, max(round), epsilon, budget, delta, steps FROM privacy WHERE release = 'training' AND round >= ? "
        "AND round < coalesce(?, round + 1) GROUP BY site", (first, before),
    ).fetchall()  # fmt: skip


def _add(sums: _Sums, totals: list[Row], spent: list[Row]) -> None:
    for site, outcome, closed, *numbers in totals:
        found = sums.totals.get((site, outcome, closed), (0, 0, 0))
        sums.totals[site, outcome, closed] = (found[0] + numbers[0], found[1] + numbers[1], found[2] + numbers[2])
    sums.spent.update({row[0]: row for row in spent})
