"""The coordinator's durable record of a study: SQLite, one transaction a step, flushed to the disk before going on.

Written by the round loop alone; read by the summary, the report and monitors. A step either is in the journal with all
that belongs to it (state, participation, metrics, events) or never happened. What is said of women passes
`server.rounds.withheld` on its way in, so that no small count of a site is in the file.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from server.rounds import seals, withheld
from server.rounds.events import Event, Observer
from server.rounds.phases import Phases
from server.rounds.schema import JOURNAL_VERSION, PHASES, TABLES
from server.rounds.seals import check_seals, keep_seals
from server.rounds.states import (
    RoundState,
    RoundStep,
    StudyState,
    StudyStep,
    next_round_state,
    next_study_state,
)
from shared_model.errors import StorageError
from shared_model.messages import PrivacySpent

BUSY_MS = 10_000  # a reader that checkpoints the WAL may hold the file for a moment


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt of a round as the journal has it."""

    round: int
    attempt: int
    state: RoundState
    weights_before: str
    weights_after: str | None


@dataclass(frozen=True, kw_only=True)
class Participation:
    """What became of one site in one attempt. seconds: as the site says, None without a reply; bytes on the wire.

    phases: where the time went; None where no answer came.
    """

    site: str
    outcome: str
    reason: str
    asked: int
    seconds: float | None
    bytes_up: int
    bytes_down: int
    phases: Phases | None = None


class Journal:
    """A study's journal; a context manager. Rows are written inside :meth:`round_step` or :meth:`study_step` only.

    Args:
        path: of `journal.sqlite`; created when absent.
        observer: told of each event after the step that it belongs to is on the disk.
        clock: seconds since 1970.
    """

    def __init__(self, path: Path, observer: Observer, *, clock: Callable[[], float] = time.time) -> None:
        self.path, self._observer, self._clock = path, observer, clock
        self._session, self._began = 0, clock()
        self._pending: list[Event] = []
        with _in_words(path):
            self._db = sqlite3.connect(path, isolation_level=None, timeout=BUSY_MS / 1000)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            if not self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
                self._db.executescript(f"BEGIN IMMEDIATE; {TABLES} {PHASES} {seals.TABLE} COMMIT;")
                keep_seals(self._db)
                self._put("journal_version", JOURNAL_VERSION)
            else:
                check_seals(self._db, path)
                self._db.executescript(PHASES)
                keep_seals(self._db)
        if self.get("journal_version") != JOURNAL_VERSION:
            raise StorageError(
                f"{path} is of another version", found=self.get("journal_version"), expected=JOURNAL_VERSION,
                remedy="read it with the release that wrote it",
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    # --- steps ---

    def begin_session(self, versions: Mapping[str, str]) -> None:
        """Note that a process starts to work on the study."""
        self._began = self._clock()
        with _in_words(self.path):
            cursor = self._db.execute(
                "INSERT INTO sessions (started, seconds, versions) VALUES (?, 0, ?)",
                (self._began, json.dumps(dict(versions))),
            )
        self._session = cursor.lastrowid or 0

    @contextmanager
    def round_step(self, round_number: int, attempt: int, step: RoundStep, **columns: str) -> Iterator[None]:
        """One step of an attempt: rows written inside belong to it and are committed with the new state, or not at all.

        Args:
            columns: `weights_before` with OPEN, `weights_after` with SAVE.
        """
        state = next_round_state(self.round_state(round_number, attempt), step)
        with self._transaction():
            if step is RoundStep.OPEN:
                self._db.execute(
                    "INSERT INTO rounds VALUES (?, ?, ?, ?, 0, ?, NULL)",
                    (round_number, attempt, state, self._clock(), columns["weights_before"]),
                )
            else:
                self._db.execute(
                    "UPDATE rounds SET state = ?, seconds = ? - opened, weights_after = coalesce(?, weights_after) "
                    "WHERE round = ? AND attempt = ?",
                    (state, self._clock(), columns.get("weights_after"), round_number, attempt),
                )
            self._note(round_number, attempt, step, state)
            yield

    @contextmanager
    def study_step(self, step: StudyStep) -> Iterator[None]:
        """One step of the study, likewise."""
        state = next_study_state(self.study_state(), step)
        with self._transaction():
            self._put("state", state)
            self._note(0, 0, step, state)
            yield

    @contextmanager
    def entry(self) -> Iterator[None]:
        """Rows that move no state (an event between steps, a site's final metrics), committed together."""
        with self._transaction():
            yield

    # --- rows, inside a step ---

    def event(self, event: Event) -> None:
        """Add an event; the observer hears of it, as it was written, once it is on the disk."""
        data = {key: withheld.words(value) if isinstance(value, str) else value for key, value in event.data.items()}
        event = replace(event, text=withheld.words(event.text), data=withheld.numbers(data))
        self._db.execute(
            "INSERT INTO events (time, kind, severity, code, site, round, attempt, text, data) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (event.time, event.kind, event.severity, event.code, event.site, event.round or None, event.attempt or None,
             event.text, json.dumps(dict(event.data))),
        )  # fmt: skip
        self._pending.append(event)

    def put(self, key: str, value: object) -> None:
        """Set a value of `meta`."""
        self._put(key, value)

    def participation(self, round_number: int, attempt: int, row: Participation) -> None:
        """Add what became of one site (again, when a resumed attempt collects a second time)."""
        self._db.execute(
            "INSERT OR REPLACE INTO participation VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (round_number, attempt, row.site, row.outcome, withheld.words(row.reason), row.asked, row.seconds,
             row.bytes_up, row.bytes_down),
        )  # fmt: skip
        key, found = (round_number, attempt, row.site), row.phases or Phases()
        if row.phases is not None or self.rows("SELECT 1 FROM phases WHERE (round, attempt, site) = (?, ?, ?)", *key):
            self._db.execute(
                "INSERT OR REPLACE INTO phases VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*key, found.round_trip, found.wait, found.load, found.train, found.mask, found.send),
            )

    def metrics(self, round_number: int, scope: str, site: str, values: Mapping[str, float]) -> None:
        """Add numbers that somebody measured; those of a document come with :meth:`report`."""
        self._db.executemany(
            "INSERT OR REPLACE INTO metrics VALUES (?, ?, ?, ?, ?)",
            [(round_number, scope, site, name, float(value)) for name, value in withheld.numbers(values).items()],
        )

    def report(
        self, round_number: int, scope: str, site: str, *, weights: str, document: Mapping[str, Any], seconds: float,
        bytes_up: int, bytes_down: int, noised: bool = False,
    ) -> bool:  # fmt: skip
        """Add an evaluation document and its numbers, without what may not be kept.

        Args:
            noised: its counts have noise of differential privacy in them.

        Returns:
            Whether anything of the document could be kept.
        """
        kept = withheld.document(document, of_site=scope == "site", noised=noised)
        self._db.execute(
            "INSERT OR REPLACE INTO reports VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (round_number, scope, site, weights, json.dumps(kept), seconds, bytes_up, bytes_down),
        )
        self.metrics(round_number, scope, site, withheld.flat(kept))
        return kept != dict(withheld.SUPPRESSED)

    def privacy(self, round_number: int, site: str, release: str, spent: PrivacySpent) -> None:
        """Add the state of a site's accountant."""
        self._db.execute(
            "INSERT OR REPLACE INTO privacy VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (round_number, site, release, spent.unit, spent.adjacency, spent.accountant, spent.epsilon, spent.budget,
             spent.delta, spent.noise_multiplier, spent.sample_rate, spent.steps),
        )  # fmt: skip

    # --- reading ---

    def get(self, key: str) -> Any:
        """A value of `meta`, or None."""
        row = self.rows("SELECT value FROM meta WHERE key = ?", key)
        return json.loads(row[0][0]) if row else None

    def study_state(self) -> StudyState:
        """Where the study is."""
        return StudyState(self.get("state") or StudyState.NEW)

    def round_state(self, round_number: int, attempt: int) -> RoundState:
        """Where one attempt is."""
        rows = self.rows("SELECT state FROM rounds WHERE round = ? AND attempt = ?", round_number, attempt)
        return RoundState(rows[0][0]) if rows else RoundState.NEW

    def last_closed(self) -> int:
        """Number of the last closed round; 0 when there is none."""
        rows = self.rows("SELECT max(round) FROM rounds WHERE state = ?", RoundState.CLOSED)
        return int(rows[0][0] or 0)

    def last_attempt(self, round_number: int) -> Attempt | None:
        """The latest attempt of a round."""
        rows = self.rows(
            "SELECT round, attempt, state, weights_before, weights_after FROM rounds WHERE round = ? "
            "ORDER BY attempt DESC LIMIT 1", round_number,
        )  # fmt: skip
        if not rows:
            return None
        number, attempt, state, before, after = rows[0]
        return Attempt(round=number, attempt=attempt, state=RoundState(state), weights_before=before,
                       weights_after=after)  # fmt: skip

    def document(self, round_number: int, scope: str) -> dict[str, Any] | None:
        """The evaluator's document of one round and scope."""
        rows = self.rows("SELECT document FROM reports WHERE round = ? AND scope = ?", round_number, scope)
        return dict(json.loads(rows[0][0])) if rows else None

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """The rows of a SELECT."""
        with _in_words(self.path):
            return self._db.execute(query, values).fetchall()

    # --- inside ---

    def _put(self, key: str, value: object) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))

    def _note(self, round_number: int, attempt: int, step: str, state: str) -> None:
        self._db.execute(
            "INSERT INTO steps (time, session, round, attempt, step, state) VALUES (?, ?, ?, ?, ?, ?)",
            (self._clock(), self._session, round_number, attempt, str(step), str(state)),
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._pending = []
        with _in_words(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                seconds = (self._clock() - self._began, self._session)
                self._db.execute("UPDATE sessions SET seconds = ? WHERE id = ?", seconds)
                self._db.execute("COMMIT")
            except BaseException:  # whatever happened inside, half a step must not stay
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        events, self._pending = self._pending, []
        for event in events:
            self._observer(event)


@contextmanager
def _in_words(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if "decode" in str(error):  # text that is none: sqlite3 has no class of its own for it
            raise _damaged(path, error) from None
        raise StorageError(
            f"cannot use the journal {path}: {error}", remedy="make room on the disk or free the file, then resume"
        ) from None
    except (sqlite3.Error, UnicodeDecodeError) as error:  # malformed: room would not help
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> StorageError:
    return StorageError(f"the journal {path} is damaged: {error}", remedy="restore the run directory from its backup")
