"""Reads a study's journal while another process writes it; for the live view, the coordinator's daemon and watchers."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
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
