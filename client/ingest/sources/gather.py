"""Brings what an archive announces into the store, study by study, whatever protocol the archive speaks.

One pass over all studies asks for the films of each that are missing. Studies that came incomplete, or that grew since,
are passed over again after a pause; a study is whole once the archive has announced the same films for `quiet_seconds`
and every one of them is in the store, or came and was refused for good. Killed at any moment, the next collection
goes on: what counts as here is what is on the disk.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from client.ingest.sources.collected import PERMANENT, Collected, Progress
from client.ingest.sources.intake import Deidentifies, Intake
from client.ingest.sources.objects import is_uid, why_left_out
from client.ingest.sources.received import Received, name_of
from client.ingest.sources.retry import Backoff, LostError
from shared_model.errors import SourceError


@dataclass(frozen=True)
class Announced:
    """A film that an archive says it has. UIDs as the archive has them; sop_class "" where it does not tell."""

    series_uid: str = field(repr=False)
    film_uid: str = field(repr=False)
    sop_class: str


class Archive(Protocol):
    """What gather needs of a protocol. Methods raise LostError for what may pass, SourceError for what will not."""

    name: str  # for messages: the kind and address of the archive

    def studies(self) -> Iterable[str]:
        """StudyInstanceUIDs of all studies that the settings ask for, each once or more often."""
        ...

    def films(self, study_uid: str) -> Sequence[Announced]:
        """The objects of modality MG in a study."""
        ...

    def fetch(self, study_uid: str, wanted: Sequence[Announced], *, whole_series: bool) -> None:
        """Have these films delivered to the intake. whole_series: they are all that their series have."""
        ...


@dataclass
class _Study:
    """A study that is not settled yet. before: films that were here before this collection (de-identified UIDs)."""

    uid: str = field(repr=False)
    hashed: str
    before: frozenset[str] | None = None
    digest: str = ""
    since: float = 0.0
    settled: bool = False
    counts: Collected = field(default_factory=Collected)
    brought: set[str] = field(default_factory=set)


def gather(
    archive: Archive,
    store: Received,
    intake: Intake,
    deidentify: Deidentifies,
    *,
    quiet_seconds: float,
    backoff: Backoff,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Collected:
    """Collect everything once.

    Raises:
        SourceError: the archive cannot be reached, or refuses; what came is in the store, and the next call goes on.
        StorageError: the store's disk refuses.
    """
    run = _Gathering(archive, store, intake, deidentify, quiet_seconds, backoff, clock)
    try:
        return run.all(progress or _silent)
    except LostError as error:
        raise SourceError(
            f"{archive.name} is lost, after {backoff.retries} repetitions", found=error.words,
            expected="an archive that answers",
            remedy="check the archive and the network, then import again: it goes on",
        ) from None  # fmt: skip


@dataclass
class _Gathering:
    archive: Archive
    store: Received
    intake: Intake
    deidentify: Deidentifies
    quiet_seconds: float
    backoff: Backoff
    clock: Callable[[], float]
    total: Collected = field(default_factory=Collected)

    def all(self, progress: Progress) -> Collected:
        uids = list(dict.fromkeys(self.backoff.run(lambda: list(self.archive.studies()))))
        progress(0, len(uids))
        resting: deque[_Study] = deque()  # whole, and not yet quiet for long enough
        later: list[_Study] = []
        for number, uid in enumerate(uids, start=1):
            if is_uid(uid):
                self._first_pass(_Study(uid, self.deidentify.uid(uid)), resting, later)
            else:
                self.total += Collected(studies=1, incomplete=1)  # it cannot be asked for
            progress(number, len(uids))
        self._again([*resting, *later])
        return self.total

    def _first_pass(self, study: _Study, resting: deque[_Study], later: list[_Study]) -> None:
        """Pass over a study, and once more over those whose quiet time has gone by: so few are ever waiting."""
        if not self._settled(study):
            (later if study.counts.incomplete else resting).append(study)
        while resting and self.clock() - resting[0].since >= self.quiet_seconds:
            oldest = resting.popleft()
            if not self._settled(oldest):
                later.append(oldest)

    def _settled(self, study: _Study) -> bool:
        self._pass_over(study)
        if study.settled:
            self.total += study.counts
        return study.settled

    def _again(self, waiting: list[_Study]) -> None:
        """Pass over again what is not settled. A connection that is lost has its own repetitions, in each pass."""
        for attempt in range(1, self.backoff.retries + 2):
            if any(study.counts.incomplete for study in waiting):
                self.backoff.pause(attempt)
            unsettled = []
            for study in waiting:
                rest = study.since + self.quiet_seconds - self.clock()
                if rest > 0 and not study.counts.incomplete:
                    self.backoff.sleep(rest)
                if not self._settled(study):
                    unsettled.append(study)
            waiting = unsettled
        for study in waiting:
            self.total += replace(study.counts, incomplete=1)  # what came may be all, and it may still be growing

    def _pass_over(self, study: _Study) -> None:
        """Ask what there is of a study, fetch what is missing, and note where it stands."""
        listed = self._announced(study)
        announced = {self.deidentify.uid(film.film_uid): film for film in listed if is_uid(film.film_uid)}
        wanted = {uid: film for uid, film in announced.items() if why_left_out(film.sop_class) is None}
        if study.before is None:
            study.before = frozenset(uid for uid in wanted if self.store.holds(study.hashed, uid))
        note = self.store.note(study.hashed)
        known = {uid: reason for uid in wanted if (reason := note.refused.get(name_of(uid)))}
        missing = {
            uid: film for uid, film in wanted.items() if uid not in known and not self.store.holds(study.hashed, uid)
        }
        failed = known | self._fetch(study, announced, missing)
        lasting = {name_of(uid): reason for uid, reason in failed.items() if reason in PERMANENT}
        whole = len(lasting) == len(failed)
        odd = len({film.film_uid for film in listed if not is_uid(film.film_uid)})  # they cannot be asked for
        self._count(study, announced, wanted, failed, whole=whole, odd=odd)
        digest = hashlib.sha256("\n".join(sorted(announced)).encode()).hexdigest()
        if digest != study.digest:
            study.digest, study.since = digest, self.clock()
        unchanged = note.complete and note.announced == digest and not missing
        study.settled = whole and (unchanged or self.clock() - study.since >= self.quiet_seconds)
        if not wanted and not note.announced:
            return  # nothing of this study is here, so there is nothing to know of it
        self.store.update_note(study.hashed, announced=digest, complete=study.settled, refused=lasting)

    def _announced(self, study: _Study) -> Sequence[Announced]:
        return self.backoff.run(lambda: self.archive.films(study.uid))

    def _fetch(
        self, study: _Study, announced: dict[str, Announced], missing: dict[str, Announced]
    ) -> dict[str, str]:
        """Have the missing films delivered; film -> reason of those that are not here afterwards."""
        if not missing:
            return {}
        refused: dict[str, str] = {}
        rest = dict(missing)

        def work() -> None:
            self.intake.ask(study.hashed, rest)
            try:
                self.archive.fetch(study.uid, list(rest.values()), whole_series=_whole(announced, rest))
            finally:
                stored, turned_away = self.intake.outcome()
                study.brought |= stored
                refused.update(turned_away)
                for uid in stored | turned_away.keys():
                    rest.pop(uid, None)
                if self.intake.broken is not None:
                    raise self.intake.broken

        try:
            self.backoff.run(work)
        except LostError:
            self._announced(study)  # still answers? then this one study is what it cannot deliver; else it is gone
        return {uid: refused.get(uid, "not_delivered") for uid in missing if uid not in study.brought}

    def _count(
        self, study: _Study, announced: dict[str, Announced], wanted: dict[str, Announced], failed: dict[str, str],
        *, whole: bool, odd: int,
    ) -> None:  # fmt: skip
        assert study.before is not None
        left_out = Counter(filter(None, (why_left_out(film.sop_class) for film in announced.values())))
        here, reasons = wanted.keys() - failed.keys(), Counter(failed.values())
        if odd:
            reasons["damaged"] += odd
        study.counts = Collected(
            studies=int(bool(announced) or odd > 0), films=len(announced) + odd, new=len(here - study.before),
            present=len(here & study.before), left_out=dict(left_out), failed=dict(reasons), incomplete=int(not whole),
        )  # fmt: skip


def _whole(announced: dict[str, Announced], missing: dict[str, Announced]) -> bool:
    """Whether every series of a missing film is missing as a whole: it can then be asked for by its own UID."""
    series = {film.series_uid for film in missing.values()}
    return all(uid in missing for uid, film in announced.items() if film.series_uid in series)


def _silent(done: int, total: int) -> None:
    """For callers that do not watch."""
