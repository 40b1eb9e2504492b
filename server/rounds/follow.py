"""Reads a study's journal while another process writes it; for the live view, the coordinator's daemon and watchers."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from server.rounds.events import Event, Observer
from server.rounds.states import RoundState, StudyState
from shared_model.errors import StorageError

QUERY = (
    "SELECT id, time, kind, severity, code, round, attempt, site, text, data FROM events WHERE id > ? ORDER BY id "
    "LIMIT ?"
)

LOOK_AGAIN_S = 60.0  # a journal that was locked when it was read looks empty
SETTLED_NS = 2_000_000_000  # file systems keep times no finer than some milliseconds


def study_state(journal: Path) -> StudyState:
    """Where the study of a journal is; `NEW` where there is none."""
    rows = _rows(journal, "SELECT value FROM meta WHERE key = 'state'")
    return StudyState(json.loads(rows[0][0])) if rows else StudyState.NEW


def last_step(journal: Path) -> int:
    """Number of the last step of a journal, which only grows; 0 where there is none."""
    rows = _rows(journal, "SELECT max(rowid) FROM steps")
    return int(rows[0][0] or 0) if rows else 0


def last_closed(journal: Path) -> int:
    """Number of the last closed round of a journal; 0 where there is none."""
    rows = _rows(journal, "SELECT max(round) FROM rounds WHERE state = ?", RoundState.CLOSED.value)
    return int(rows[0][0] or 0) if rows else 0


def is_complete(journal: Path) -> bool:
    """Whether the study of a journal has come to its end with all its rounds; False where there is none."""
    return study_state(journal) is StudyState.COMPLETE


class Follower:
    """Hands each event that is new since it was made to an observer.

    Args:
        journal: `journal.sqlite`; it need not be there yet.
        observe: told of each new event, in order.
    """

    def __init__(self, journal: Path, observe: Observer) -> None:
        self._journal, self._observe = journal, observe
        # what is there already was shown when it happened
        self._last = max((number for number, _ in read_events(journal, after=0)), default=0)
        self.finished: Event | None = None

    def poll(self) -> None:
        """Hand on what is new; nothing while the journal is absent or has no tables yet."""
        for number, event in read_events(self._journal, after=self._last):
            self._last = number
            if event.kind == "finished":
                self.finished = event
            self._observe(event)


def read_events(journal: Path, *, after: int, limit: int = -1) -> Iterator[tuple[int, Event]]:
    """Events of a journal with their numbers, which only grow. limit: at most so many; -1: all."""
    for row in _rows(journal, QUERY, after, limit):
        number, time, kind, severity, code, of_round, attempt, site, text, data = row
        yield number, Event(
            time=time, kind=kind, severity=severity, code=code, round=of_round or 0, attempt=attempt or 0, site=site,
            text=text, data=json.loads(data),
        )  # fmt: skip


def contributions(journal: Path) -> dict[int, frozenset[str]]:
    """Who is in the model of each closed round, by round. Attempts that had no quorum are in no model."""
    query = (
        "SELECT p.round, p.site FROM participation p JOIN rounds r ON r.round = p.round AND r.attempt = p.attempt "
        "WHERE r.state = ? AND p.outcome = 'contributed' ORDER BY p.round, p.site"
    )
    found: dict[int, set[str]] = {}
    for number, site in _rows(journal, query, RoundState.CLOSED.value):
        found.setdefault(int(number), set()).add(str(site))
    return {number: frozenset(sites) for number, sites in found.items()}


def metric_rows(journal: Path, scope: str) -> list[tuple[int, str, str, float]]:
    """Round, site, name and value of everything measured in one scope, in the order of rounds."""
    query = "SELECT round, site, name, value FROM metrics WHERE scope = ? ORDER BY round, site, name"
    return [(int(number), str(site), str(name), float(value)) for number, site, name, value in
            _rows(journal, query, scope)]  # fmt: skip


class EventReader:
    """Reads new events of journals again and again, and opens those alone that were written to since; of any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._nothing: dict[Path, tuple[tuple[object, ...], int, float]] = {}  # what it looked like, above what, until

    def read(self, journal: Path, *, after: int, limit: int = -1) -> list[tuple[int, Event]]:
        """As :func:`read_events`."""
        stamp, known = _stamp(journal), self._nothing.get(journal)
        if known is not None and stamp == known[0] and after >= known[1] and self._clock() < known[2]:
            return []
        found = list(read_events(journal, after=after, limit=limit))
        if not found and stamp is not None:
            self._nothing[journal] = (stamp, after, self._clock() + LOOK_AGAIN_S)
        return found


def _stamp(journal: Path) -> tuple[object, ...] | None:
    """Changes when a journal was written to; None while that may just be happening, so that it has to be read."""
    found: list[object] = []
    for path in (journal, journal.with_name(f"{journal.name}-wal")):
        try:
            status = path.stat()
        except OSError:
            found.append(None)
            continue
        if abs(time.time_ns() - status.st_mtime_ns) < SETTLED_NS:
            return None
        found += [status.st_mtime_ns, status.st_size]
    return tuple(found)


def _rows(journal: Path, query: str, *values: object) -> list[tuple[Any, ...]]:
    """Rows of a journal that somebody else may be writing; none while it is absent or has no tables yet."""
    try:
        with closing(sqlite3.connect(f"{journal.absolute().as_uri()}?mode=ro", uri=True)) as db:
            return db.execute(query, values).fetchall()
    except sqlite3.OperationalError:
        return []
    except sqlite3.Error as error:
        raise StorageError(f"the journal {journal} is damaged: {error}",
                           remedy="restore the run directory from its backup") from None  # fmt: skip
