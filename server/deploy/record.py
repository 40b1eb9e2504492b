"""What the daemon puts into the audit log: what happened at the doors, and how studies went. Bounded against floods."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from server.deploy.home import CoordinatorHome
from server.deploy.studies import StudyFolder, studies
from server.enrolment.door import GatewayEvent
from server.rounds.follow import EventReader
from shared_model.audit import AuditLog
from shared_model.errors import StorageError

DOOR, STUDY_EVENT = "door", "study_event"
FLUSH_S: Final = 10.0
ROUTINE_S: Final = 600.0  # between entries of who was admitted: of each site thousands a day, and no news
ROUTINE: Final = "admitted"
MAX_EVENTS: Final = 1000  # of one study at one time
MAX_KINDS: Final = 256  # of door events in one interval; more are counted as `other`
KINDS: Final = frozenset({
    "study_started", "study_resumed", "round_opened", "round_closed", "left_out", "attempt_failed", "model_chosen",
    "tested", "alarm", "finished",
})  # fmt: skip


class Doorkeeper:
    """Counts door events from any thread; the daemon writes the sums."""

    def __init__(self, log: AuditLog, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._log, self._clock, self._lock = log, clock, threading.Lock()
        self._counts: Counter[tuple[str, str, str]] = Counter()
        self._flushed = self._routine = clock()

    def note(self, event: GatewayEvent) -> None:
        """Take one event; never blocks on the disk."""
        key = (event.kind, event.reason[:80], event.site)
        with self._lock:
            if key not in self._counts and len(self._counts) >= MAX_KINDS:
                key = (event.kind, "other", "")
            self._counts[key] += 1

    def step(self) -> None:
        """Write what was counted, at most every `FLUSH_S` seconds, and who was admitted every `ROUTINE_S`.

        Raises:
            StorageError: the disk refuses.
        """
        now = self._clock()
        if now - self._flushed >= FLUSH_S:
            self._write(routine=now - self._routine >= ROUTINE_S)

    def flush(self) -> None:
        """Write all that was counted now.

        Raises:
            StorageError: the disk refuses.
        """
        self._write(routine=True)

    def _write(self, *, routine: bool) -> None:
        with self._lock:
            counts = [(key, count) for key, count in sorted(self._counts.items()) if routine or key[0] != ROUTINE]
            self._flushed = self._clock()
            if routine:
                self._routine = self._flushed
        for key, count in counts:
            kind, reason, site = key
            self._log.append(DOOR, event=kind, reason=reason, site=site, count=count)
            with self._lock:  # what came meanwhile stays for the next time
                self._counts[key] -= count
                if not self._counts[key]:
                    del self._counts[key]


class StudyRecord:
    """Copies what counts from the studies' journals into the audit log, each event once."""

    def __init__(self, home: CoordinatorHome, log: AuditLog) -> None:
        self._home, self._log = home, log
        self._last: dict[str, int] = {}
        self._reader = EventReader()
        for entry in log.entries():
            if entry.kind == STUDY_EVENT:
                self._last[str(entry.fields["study"])] = int(entry.fields["number"] or 0)

    def step(self) -> None:
        """Look at every study; one that is damaged is no reason to pass over the others.

        Raises:
            StorageError: a journal is damaged, or the disk refuses.
        """
        faults = list[StorageError]()
        for study in studies(self._home):
            try:
                self._copy(study)
            except StorageError as error:
                faults.append(error)
        if faults:
            raise faults[0]

    def _copy(self, study: StudyFolder) -> None:
        for number, event in self._reader.read(study.journal, after=self._last.get(study.name, 0), limit=MAX_EVENTS):
            if event.kind in KINDS:
                self._log.append(
                    STUDY_EVENT, study=study.name, number=number, event=event.kind, code=event.code,
                    round=event.round, attempt=event.attempt, site=event.site or "", text=event.text[:300],
                )  # fmt: skip
            self._last[study.name] = number  # only now: what could not be written is tried again
