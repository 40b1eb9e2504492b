"""The journal's checksums: every changed row is found when the file is opened, and nothing else is."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from server.rounds.journal import Journal, Participation
from server.rounds.states import RoundStep, StudyStep
from shared_model.errors import MammoFedError, StorageError


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal with rows in all tables but one, all of it in the main file."""
    path = tmp_path_factory.mktemp("good") / "journal.sqlite"
    row = Participation(site="ash", outcome="contributed", reason="", asked=1, seconds=1.5, bytes_up=7, bytes_down=9)
    with Journal(path, lambda _: None) as journal:
        journal.begin_session({"numpy": "2"})
        with journal.study_step(StudyStep.START):
            journal.put("study", "unit")
        for number in (1, 2):
            with journal.round_step(number, 1, RoundStep.OPEN, weights_before="a" * 64):
                pass
            with journal.round_step(number, 1, RoundStep.COLLECT):
                journal.participation(number, 1, row)
                journal.participation(number, 1, row)  # again, as a resumed attempt does
                journal.metrics(number, "selection", "evaluator", {"auc_fused": 0.75 + number / 100, "auc_image": 0.5})
                journal.report(number, "selection", "evaluator", weights="b" * 64, document={"auc": {"fused": 0.75}},
                               seconds=1, bytes_up=1, bytes_down=2)  # fmt: skip
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    return path


def opened(path: Path) -> list[tuple[object, ...]]:
    with Journal(path, lambda _: None) as journal:
        return [*journal.rows("SELECT * FROM metrics ORDER BY 1, 2, 3, 4"), journal.get("study"),
                *journal.rows("SELECT * FROM rounds"), *journal.rows("SELECT * FROM participation")]  # fmt: skip


def test_a_journal_is_opened_again_and_written_again(good: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(good, tmp_path))
    with Journal(path, lambda _: None) as journal:
        journal.begin_session({})
        with journal.round_step(2, 1, RoundStep.AGGREGATE):
            journal.put("study", "another name")
    with Journal(path, lambda _: None) as journal:
        assert journal.get("study") == "another name" and journal.round_state(2, 1) == "aggregated"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("UPDATE metrics SET value = value + 1e-9 WHERE round = 2 AND name = 'auc_fused'",
         "'2/selection/evaluator/auc_fused' of metrics"),
        ("UPDATE metrics SET round = 3 WHERE round = 2", "of metrics"),
        ("DELETE FROM participation WHERE round = 1", "no row '1/1/ash' of participation"),
        ("INSERT INTO meta VALUES ('test_opened', 'null')", "'test_opened' of meta"),
        ("UPDATE rounds SET state = 'closed' WHERE round = 1", "'1/1' of rounds"),
        ("DELETE FROM seals WHERE name = 'steps'", "of steps"),
        ("UPDATE reports SET document = '{}'", "of reports"),
    ],
)  # fmt: skip
def test_a_changed_missing_or_added_row_is_named(good: Path, tmp_path: Path, change: str, words: str) -> None:
    path = Path(shutil.copy(good, tmp_path))
    with sqlite3.connect(path) as db:
        assert db.execute(change).rowcount > 0
    db.close()
    with pytest.raises(StorageError, match="was changed on the disk") as caught:
        opened(path)
    assert words in str(caught.value)


def test_no_flipped_bit_is_read_as_something_else(good: Path, tmp_path: Path) -> None:
    """Every 23rd byte, one bit each: the journal says the same as before, or says in words that it cannot."""
    data, path, expected, found = good.read_bytes(), tmp_path / "journal.sqlite", opened(good), 0
    for spot in range(0, len(data), 23):
        for leftover in tmp_path.iterdir():
            leftover.unlink()
        path.write_bytes(data[:spot] + bytes([data[spot] ^ 1 << spot % 8]) + data[spot + 1 :])
        try:
            assert opened(path) == expected, spot
        except MammoFedError as error:
            assert "journal" in str(error), spot
            found += 1
    assert found > 50


def test_a_journal_of_an_older_release_has_no_seals_and_is_read(good: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(good, tmp_path))
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE seals")
    db.close()
    with Journal(path, lambda _: None) as journal, journal.round_step(2, 1, RoundStep.AGGREGATE):
        pass
    assert opened(path)
