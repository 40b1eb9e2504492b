"""Reads a running study's events from its journal, while another process writes it; for the live view."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

from server.rounds.events import Event, Observer

QUERY = (
    "SELECT id, time, kind, severity, code, round, attempt, site, text, data FROM events WHERE id > ? ORDER BY id"
)


class Follower:
    """Hands each event that is new since it was made to an observer.

    Args:
        journal: `journal.sqlite`; it need not be there yet.
        observe: told of each new event, in order.
    """

    def __init__(self, journal: Path, observe: Observer) -> None:
        self._journal, self._observe, self._last = journal, lambda _: None, 0
        self.finished: Event | None = None
        self.poll()  # what is there already was shown when it happened
        self._observe, self.finished = observe, None

    def poll(self) -> None:
        """Hand on what is new; nothing while the journal is absent or has no tables yet."""
        try:
            with closing(sqlite3.connect(f"{self._journal.absolute().as_uri()}?mode=ro", uri=True)) as db:
                rows = db.execute(QUERY, (self._last,)).fetchall()
        except sqlite3.OperationalError:
            return  # not written yet; a journal that stays so is a study that never began
        for number, time, kind, severity, code, of_round, attempt, site, text, data in rows:
            event = Event(
                time=time, kind=kind, severity=severity, code=code, round=of_round or 0, attempt=attempt or 0,
                site=site, text=text, data=json.loads(data),
            )  # fmt: skip
            self._last = number
            if event.kind == "finished":
                self.finished = event
            self._observe(event)
