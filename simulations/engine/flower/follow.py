"""Reads a running study's events from its journal, while another process writes it; for the live view."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from server.rounds.events import Event, Observer
from server.rounds.states import StudyState
from shared_model.errors import StorageError

QUERY = (
    "SELECT id, time, kind, severity, code, round, attempt, site, text, data FROM events WHERE id > ? ORDER BY id"
)


def is_complete(journal: Path) -> bool:
    """Whether the study of a journal has come to its end with all its rounds; False where there is none."""
    rows = _rows(journal, "SELECT value FROM meta WHERE key = 'state'")
    return rows == [(json.dumps(StudyState.COMPLETE.value),)]


class Follower:
    """Hands each event that is new since it was made to an observer.

    Args:
        journal: `journal.sqlite`; it need not be there yet.
        observe: told of each new event, in order.
    """

    def __init__(self, journal: Path, observe: Observer) -> None:
        self._journal, self._last = journal, 0
        self._observe: Observer = lambda _: None
        self.finished: Event | None = None
        self.poll()  # what is there already was shown when it happened
        self._observe, self.finished = observe, None

    def poll(self) -> None:
        """Hand on what is new; nothing while the journal is absent or has no tables yet."""
        for row in _rows(self._journal, QUERY, self._last):
            number, time, kind, severity, code, of_round, attempt, site, text, data = row
            event = Event(
                time=time, kind=kind, severity=severity, code=code, round=of_round or 0, attempt=attempt or 0,
                site=site, text=text, data=json.loads(data),
            )  # fmt: skip
            self._last = number
            if event.kind == "finished":
                self.finished = event
            self._observe(event)


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
