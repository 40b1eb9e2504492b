"""The journal: a step is there with all that belongs to it or not at all, and readers never disturb it."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest

from server.rounds.events import Event
from server.rounds.journal import Journal, Participation
from server.rounds.states import RoundState, RoundStep, StudyState, StudyStep
from shared_model.errors import RoundError, StorageError

SHA = "ab" * 32


def open_journal(folder: Path, events: list[Event] | None = None) -> Journal:
    return Journal(folder / "journal.sqlite", lambda _: None if events is None else events.append)  # type: ignore[arg-type, return-value]


def note(text: str) -> Event:
    return Event(time=time.time(), kind="alarm", severity="warning", code="test", text=text, data={"epsilon": 1.5})


def participation(site: str, outcome: str = "contributed") -> Participation:
    return Participation(site=site, outcome=outcome, reason="", asked=1, seconds=0.5, bytes_up=10, bytes_down=20)


def test_one_entry_a_step_and_the_table_is_kept(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        journal.begin_session({})
        with journal.study_step(StudyStep.START):
            pass
        with journal.round_step(1, 1, RoundStep.OPEN, weights_before=SHA):
            pass
        with journal.round_step(1, 1, RoundStep.COLLECT):
            journal.participation(1, 1, participation("ash"))
        with pytest.raises(RoundError, match="collected cannot close"), journal.round_step(1, 1, RoundStep.CLOSE):
            pass
        steps = journal.rows("SELECT round, attempt, step, state FROM steps ORDER BY id")
    assert steps == [(0, 0, "start", "rounds"), (1, 1, "open", "opened"), (1, 1, "collect", "collected")]


def test_what_raises_inside_a_step_leaves_nothing_and_is_not_told(tmp_path: Path) -> None:
    told: list[Event] = []
    with Journal(tmp_path / "journal.sqlite", told.append) as journal:
        with journal.round_step(1, 1, RoundStep.OPEN, weights_before=SHA):
            journal.event(note("first"))
        with pytest.raises(ZeroDivisionError), journal.round_step(1, 1, RoundStep.COLLECT):
            journal.participation(1, 1, participation("ash"))
            journal.metrics(1, "selection", "evaluator", {"auc_fused": 0.9})
            journal.event(note("second"))
            raise ZeroDivisionError
        with journal.round_step(1, 1, RoundStep.COLLECT):
            journal.event(note("third"))
    with Journal(tmp_path / "journal.sqlite", told.append) as journal:
        assert journal.round_state(1, 1) is RoundState.COLLECTED
        assert journal.rows("SELECT count(*) FROM participation") == [(0,)]
        assert journal.rows("SELECT count(*) FROM metrics") == [(0,)]
        assert journal.rows("SELECT text FROM events") == [("first",), ("third",)]
    assert [event.text for event in told] == ["first", "third"]


def test_observer_hears_of_an_event_only_when_it_is_on_the_disk(tmp_path: Path) -> None:
    path, seen = tmp_path / "journal.sqlite", list[int]()

    def observer(event: Event) -> None:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
            seen.append(db.execute("SELECT count(*) FROM events").fetchone()[0])

    with Journal(path, observer) as journal, journal.entry():
        journal.event(note("one"))
        journal.event(note("two"))
    assert seen == [2, 2]


def test_reopened_journal_knows_where_it_was(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        with journal.study_step(StudyStep.START):
            journal.put("chosen", {"round": 3})
        for step in (RoundStep.COLLECT, RoundStep.AGGREGATE, RoundStep.EVALUATE, RoundStep.SAVE, RoundStep.CLOSE):
            if step is RoundStep.COLLECT:
                with journal.round_step(1, 1, RoundStep.OPEN, weights_before=SHA):
                    pass
            columns = {"weights_after": "cd" * 32} if step is RoundStep.SAVE else {}
            with journal.round_step(1, 1, step, **columns):
                pass
        with journal.round_step(2, 1, RoundStep.OPEN, weights_before="cd" * 32):
            pass
    with open_journal(tmp_path) as journal:
        assert journal.study_state() is StudyState.ROUNDS and journal.get("chosen") == {"round": 3}
        assert journal.last_closed() == 1 and journal.round_state(7, 1) is RoundState.NEW
        first, second = journal.last_attempt(1), journal.last_attempt(2)
        assert first is not None and first.weights_after == "cd" * 32 and first.state is RoundState.CLOSED
        assert second is not None and second.state is RoundState.OPENED and second.weights_after is None
        assert journal.last_attempt(3) is None


def test_writes_reach_the_disk_before_going_on(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        assert journal.rows("PRAGMA journal_mode") == [("wal",)]
        assert journal.rows("PRAGMA synchronous") == [(2,)]  # FULL


def test_a_reader_in_the_middle_of_a_step_sees_the_last_whole_one(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        with journal.entry():
            journal.event(note("whole"))
        with journal.entry():
            journal.event(note("half"))
            with sqlite3.connect(f"file:{journal.path}?mode=ro", uri=True) as db:
                assert db.execute("SELECT text FROM events").fetchall() == [("whole",)]


@pytest.mark.parametrize("content", [b"", b"not a database, by no means" * 100])
def test_damaged_or_foreign_file_is_refused_in_words(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "journal.sqlite"
    path.write_bytes(content)
    if content:
        with pytest.raises(StorageError, match=r"cannot use the journal|is damaged"):
            open_journal(tmp_path)
    else:  # an empty file is an empty database: a crash right after its creation
        with open_journal(tmp_path) as journal:
            assert journal.study_state() is StudyState.NEW


def test_journal_of_another_version_is_refused(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal, journal.entry():
        journal.put("journal_version", 2)
    with pytest.raises(StorageError, match="another version"):
        open_journal(tmp_path)


def test_rows_outside_the_declared_types_are_refused(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal, pytest.raises(StorageError, match="journal"), journal.entry():
        journal.participation(1, 1, participation("ash").__class__(
            site="ash", outcome="late", reason="", asked="one", seconds=None, bytes_up=0, bytes_down=0,  # type: ignore[arg-type]
        ))  # fmt: skip


def test_seconds_of_a_session_are_kept_up_to_date(tmp_path: Path) -> None:
    now = [100.0]
    with Journal(tmp_path / "journal.sqlite", lambda _: None, clock=lambda: now[0]) as journal:
        journal.begin_session({"python": "3"})
        now[0] = 107.5
        with journal.entry():
            journal.event(note("x"))
        assert journal.rows("SELECT started, seconds FROM sessions") == [(100.0, 7.5)]
