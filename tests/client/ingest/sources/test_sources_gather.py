"""The gathering of studies against an archive in memory that grows, loses films, dies and lies on purpose."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.ingest.sources import Collected, Received
from client.ingest.sources.gather import Announced, gather
from client.ingest.sources.intake import Intake
from client.ingest.sources.objects import FOR_PRESENTATION
from client.ingest.sources.retry import Backoff, LostError
from shared_model.errors import SourceError, StorageError
from tests.films import write_film
from tests.pacs_films import HashingDeidentifier, film

uid = HashingDeidentifier().uid


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """SOPInstanceUID -> file, of six films of two women."""
    folder, found = tmp_path_factory.mktemp("files"), {}
    for woman, count in ((0, 4), (1, 2)):
        for view in ("L_CC", "R_CC", "L_MLO", "R_MLO")[:count]:
            ds = film(woman, view)
            found[str(ds.SOPInstanceUID)] = write_film(folder / "x.dcm", ds).read_bytes()
    return found


@dataclass
class Memory:
    """An archive: study -> films. `before_fetch` may change it or raise; `withheld` films are announced, not sent."""

    files: dict[str, bytes]
    intake: Intake
    name: str = "the archive"
    withheld: set[str] = field(default_factory=set)
    classes: dict[str, str] = field(default_factory=dict)
    before_fetch: Callable[[Memory, str], None] = lambda _self, _study: None
    before_films: Callable[[Memory, str], None] = lambda _self, _study: None
    asked: list[tuple[str, int, bool]] = field(default_factory=list)

    def studies(self) -> list[str]:
        return list(dict.fromkeys(uid.rsplit(".", 3)[0] for uid in self.files))

    def films(self, study_uid: str) -> list[Announced]:
        self.before_films(self, study_uid)
        return [Announced(uid.rsplit(".", 2)[0], uid, self.classes.get(uid, FOR_PRESENTATION))
                for uid in self.files if uid.startswith(study_uid + ".")]  # fmt: skip

    def fetch(self, study_uid: str, wanted: Sequence[Announced], *, whole_series: bool) -> None:
        self.asked.append((study_uid, len(wanted), whole_series))
        for one in wanted:
            self.before_fetch(self, study_uid)
            if one.film_uid not in self.withheld:
                self.intake.take_file(self.files[one.film_uid], film_uid=one.film_uid)


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now, self.slept = 0.0, []  # type: tuple[float, list[float]]

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@dataclass
class Bench:
    archive: Memory
    store: Received
    clock: Clock = field(default_factory=Clock)

    def gather(self, *, quiet: float = 5.0, retries: int = 2) -> Collected:
        backoff = Backoff(retries, sleep=self.clock.sleep)
        return gather(self.archive, self.store, self.archive.intake, HashingDeidentifier(), quiet_seconds=quiet,
                      backoff=backoff, clock=self.clock)  # fmt: skip


@pytest.fixture
def bench(store: Received, intake: Intake, files: dict[str, bytes]) -> Bench:
    return Bench(Memory(dict(files), intake), store)


def complete(store: Received) -> int:
    return sum(note.complete for _, note in store.notes())


def test_everything_comes_once_and_is_waited_for_once(bench: Bench) -> None:
    first = bench.gather()
    assert (first.studies, first.films, first.new, first.incomplete) == (2, 6, 6, 0)
    assert bench.clock.now == pytest.approx(5.0)  # one quiet period for all studies, not one for each
    assert complete(bench.store) == 2 and len(bench.archive.asked) == 2
    second = bench.gather()
    assert (second.new, second.present, second.incomplete) == (0, 6, 0)
    assert bench.clock.now == pytest.approx(5.0) and len(bench.archive.asked) == 2


def test_studies_are_confirmed_while_others_are_still_fetched(bench: Bench) -> None:
    """So that a large archive does not keep all its studies waiting for its end, and a kill finds most complete."""
    last = bench.archive.studies()[-1]
    seen: list[int] = []

    def take_time(archive: Memory, study: str) -> None:
        bench.clock.now += 6.0
        if study == last:
            seen.append(complete(bench.store))

    bench.archive.before_films = take_time
    assert bench.gather().incomplete == 0
    assert seen == [0, 1] and bench.clock.slept == []


def test_a_study_that_still_grows_is_waited_for(bench: Bench) -> None:
    late = {name: bench.archive.files.pop(name) for name in list(bench.archive.files)[1:3]}
    study = bench.archive.studies()[0]

    def grow(archive: Memory, asked: str) -> None:
        if asked == study and late and bench.clock.now >= 5.0:
            name, data = late.popitem()
            archive.files[name] = data

    bench.archive.before_films = grow
    got = bench.gather(retries=4)
    assert (got.films, got.new, got.incomplete) == (6, 6, 0) and not late
    assert complete(bench.store) == 2


def test_a_study_that_never_stops_growing_is_told_as_incomplete(bench: Bench, tmp_path: Path) -> None:
    count = 0

    def grow(archive: Memory, asked: str) -> None:
        nonlocal count
        if asked == archive.studies()[0]:
            count += 1
            ds = film(0, "L_CC", number=10 + count)
            archive.files[str(ds.SOPInstanceUID)] = write_film(tmp_path / "x.dcm", ds).read_bytes()

    bench.archive.before_films = grow
    got = bench.gather()
    assert (got.incomplete, got.failed) == (1, {})
    assert complete(bench.store) == 1


def test_a_film_that_is_announced_and_not_sent_is_told_and_asked_for_the_next_time(bench: Bench) -> None:
    bench.archive.withheld = {next(iter(bench.archive.files))}
    got = bench.gather()
    assert (got.new, got.failed, got.incomplete) == (5, {"not_delivered": 1}, 1)
    assert complete(bench.store) == 1 and len(bench.store.paths(complete_only=True)) == 2
    assert len(bench.clock.slept) <= 5
    bench.archive.withheld = set()
    again = bench.gather()
    assert (again.new, again.present, again.incomplete) == (1, 5, 0)
    assert complete(bench.store) == 2


def test_only_what_is_missing_is_asked_for_series_by_series_or_film_by_film(bench: Bench) -> None:
    bench.gather()
    victim = bench.store.paths()[0]
    victim.unlink()
    bench.archive.asked.clear()
    assert bench.gather().new == 1
    ((_, count, _),) = bench.archive.asked
    assert count == 1


def test_a_loss_in_the_middle_asks_for_the_rest_only(bench: Bench) -> None:
    calls = 0

    def lose(_archive: Memory, _study: str) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise LostError("gone")

    bench.archive.before_fetch = lose
    got = bench.gather()
    assert (got.new, got.incomplete) == (6, 0)
    assert [count for _, count, _ in bench.archive.asked] == [4, 2, 2]


def test_one_study_that_kills_the_archive_each_time_does_not_stop_the_others(bench: Bench) -> None:
    bad = bench.archive.studies()[0]

    def die(_archive: Memory, study: str) -> None:
        if study == bad:
            raise LostError("crashed")

    bench.archive.before_fetch = die
    got = bench.gather()
    assert (got.new, got.failed, got.incomplete) == (2, {"not_delivered": 4}, 1)


def test_an_archive_that_stays_away_is_an_error_after_longer_and_longer_pauses(bench: Bench) -> None:
    def gone(_archive: Memory, study: str) -> None:
        if study == bench.archive.studies()[1]:
            raise LostError("nobody answers")

    bench.archive.before_films = gone
    with pytest.raises(SourceError, match="nobody answers") as raised:
        bench.gather(retries=3)
    assert "3 repetitions" in str(raised.value) and "9.8.7.6" not in str(raised.value)
    assert [round(pause) for pause in bench.clock.slept] == pytest.approx([1, 2, 4], abs=1)
    assert bench.clock.slept == sorted(bench.clock.slept)
    assert len(bench.store.paths()) == 4  # what came is kept


def test_kinds_that_are_left_out_and_uids_that_cannot_be_are_counted(bench: Bench) -> None:
    names = list(bench.archive.files)
    bench.archive.classes = {names[0]: "1.2.840.10008.5.1.4.1.1.13.1.3", names[1]: ""}
    bench.archive.files["no uid.x.y.z"] = b""
    got = bench.gather()
    assert (got.studies, got.films, got.new, got.left_out, got.incomplete) == (3, 6, 5, {"tomosynthesis": 1}, 1)
    assert bench.archive.asked[0][1:] == (3, False)  # a series of which not all is wanted is not asked for as a whole


def test_what_is_refused_for_good_is_noted_and_leaves_the_study_whole(bench: Bench) -> None:
    name = next(iter(bench.archive.files))
    bench.archive.files[name] = b"<html>not found</html>" * 20
    got = bench.gather()
    assert (got.new, got.failed, got.incomplete) == (5, {"damaged": 1}, 0)
    count = len(bench.archive.asked)
    again = bench.gather()
    assert (again.present, again.failed, again.incomplete) == (5, {"damaged": 1}, 0)
    assert len(bench.archive.asked) == count
    assert bench.store.retry_refused() == 1
    assert bench.gather().failed == {"damaged": 1} and len(bench.archive.asked) > count


def test_a_full_disk_ends_it_and_the_next_goes_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    with monkeypatch.context() as patch:
        calls, fsync = [0], os.fsync

        def full(handle: int) -> None:
            calls[0] += 1
            if calls[0] > 12:
                raise OSError(28, "No space left on device")
            fsync(handle)

        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="No space left"):
            bench.gather()
    came = len(bench.store.paths())
    assert 0 < came < 6
    assert bench.gather().present == came and len(bench.store.paths()) == 6


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["ok", "lost", "die"]), max_size=14), st.sets(st.integers(0, 5), max_size=3))
def test_whatever_breaks_nothing_is_lost_or_twice(
    files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, events: list[str], hidden: set[int]
) -> None:
    """Connections break and imports die at any film; once all is well again, one more import has everything."""

    class Killed(BaseException):
        pass

    folder, script, names = tmp_path_factory.mktemp("any") / "s", list(events), list(files)

    def happen(_archive: Memory, _study: str) -> None:
        event = script.pop() if script else "ok"
        if event == "lost":
            raise LostError("gone")
        if event == "die":
            raise Killed

    for _ in range(3):
        with Received(folder) as store:
            archive = Memory(dict(files), Intake(store, HashingDeidentifier()), before_fetch=happen)
            archive.withheld = {names[i] for i in hidden}
            with contextlib.suppress(Killed, SourceError):
                Bench(archive, store).gather(retries=1)
    with Received(folder) as store:
        bench = Bench(Memory(dict(files), Intake(store, HashingDeidentifier())), store)
        got = bench.gather()
        assert (got.films, got.new + got.present, got.incomplete) == (6, 6, 0)
        assert len(store.paths(complete_only=True)) == 6
