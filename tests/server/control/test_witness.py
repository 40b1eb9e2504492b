"""Audit logs of sites, witnessed by the coordinator's: what is pinned, what is an alarm, and that the talk ends."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.control.witness import PAUSE_S, PINNED, SHORTENED, Witness
from shared_model.audit import AuditLog, verify
from shared_model.audit.entries import OPENED
from shared_model.certificates import Member
from shared_model.control import MAX_REQUEST_BYTES, BeatRequest, PartyAnswer, PartyLog
from shared_model.errors import StorageError
from shared_model.signing import SigningKey
from tests.controlled import Diary, beat
from tests.enrolled import Clock

NORTH, SOUTH = Member("north"), Member("south")
NODE = b"node key of north"


class Scene:
    """The coordinator's log and its witness."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.key = folder, SigningKey.generate()
        self.alarms: list[tuple[str, str]] = []
        self.clock = Clock(0.0)
        self.open()

    def open(self) -> None:
        self.audit = AuditLog(self.folder / "hub.jsonl", owner="hub", key=self.key)
        self.witness = Witness(self.audit, clock=self.clock,
                               alarm=lambda site, words: self.alarms.append((site, words)))  # fmt: skip

    def restart(self) -> None:
        self.audit.close()
        self.open()

    def say(self, *logs: PartyLog, member: Member = NORTH, node: bytes = NODE) -> tuple[PartyAnswer, list[str]]:
        self.clock.now += PAUSE_S
        answers, notices = self.witness.exchange(member, node, logs)
        return answers[-1], notices

    def kinds(self) -> list[str]:
        return [entry.kind for entry in self.audit.entries()]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.audit.close()


@pytest.fixture
def diary(tmp_path: Path) -> Diary:
    return Diary(tmp_path / "north", "north")


def test_the_first_sight_is_pinned_and_then_its_statements_are_recorded(scene: Scene, diary: Diary) -> None:
    answer, notices = scene.say(diary.said())
    assert (answer.since, notices, scene.kinds()) == (0, [], [OPENED, PINNED])
    diary.audit.append("round_trained", round=1)
    answer, _ = scene.say(diary.said(0))
    assert answer.since == diary.audit.sequence == 2
    answer, _ = scene.say(diary.said())
    assert scene.kinds() == [OPENED, PINNED, "head_recorded"], "nothing new, nothing recorded"
    checked = verify(scene.audit.path, key=scene.key.public)
    assert checked.entries == 3
    assert verify(diary.audit.path, witnesses=[scene.audit.path]).covered == 2


def test_the_coordinator_s_log_is_told_once_and_the_talk_comes_to_an_end(scene: Scene, diary: Diary) -> None:
    """Each records the other's head, which is an entry in its own log, which is news to nobody."""
    scene.audit.append("round_closed", round=1)
    since: int | None = None
    for _ in range(6):
        answer, notices = scene.say(diary.said(since, recorded=diary.audit.witnessed("hub")))
        since = answer.since if answer.since != diary.audit.sequence else None
        assert notices == []
        if answer.statement is not None:
            diary.audit.record(answer.statement, owner="hub", key=scene.key.public)
    lengths = scene.audit.sequence, diary.audit.sequence
    for _ in range(3):
        answer, _ = scene.say(diary.said(recorded=diary.audit.witnessed("hub")))
        assert answer.statement is None
    assert (scene.audit.sequence, diary.audit.sequence) == lengths
    assert diary.audit.witnessed("hub") >= scene.audit.news
    verify(diary.audit.path, witnesses=[scene.audit.path])
    verify(scene.audit.path, witnesses=[diary.audit.path])


def test_a_rewritten_log_is_recorded_and_an_alarm_once(scene: Scene, diary: Diary, tmp_path: Path) -> None:
    scene.say(diary.said())
    scene.say(diary.said(0))
    diary.audit.append("round_trained", round=1)
    scene.say(diary.said(1))
    diary.audit.close()
    diary.audit.path.unlink()
    again = Diary(tmp_path / "north", "north", key=diary.key)
    for number in range(3):
        again.audit.append("round_trained", round=number)
    _, notices = scene.say(again.said(2))
    assert len(scene.alarms) == 1 and scene.alarms[0][0] == "north" and "another audit log" in scene.alarms[0][1]
    assert "audit log of the trainer" in notices[0]
    _, notices = scene.say(again.said(2))
    assert notices and len(scene.alarms) == 1 and scene.kinds().count("head_refused") == 1
    scene.restart()
    _, notices = scene.say(again.said(2))
    assert notices and len(scene.alarms) == 2, "a new daemon sounds it, too"


def test_a_log_that_was_cut_is_an_alarm(scene: Scene, diary: Diary, tmp_path: Path) -> None:
    scene.say(diary.said())
    shutil.copy(diary.audit.path, tmp_path / "old")
    diary.audit.append("round_trained", round=1)
    scene.say(diary.said(0))
    diary.audit.close()
    shutil.copy(tmp_path / "old", diary.audit.path)
    diary.audit = AuditLog(diary.audit.path, owner="north", key=diary.key)
    _, notices = scene.say(diary.said(1))
    assert "shorter" in notices[0] and [site for site, _ in scene.alarms] == ["north"] and SHORTENED in scene.kinds()


def test_another_key_for_the_same_node_is_an_alarm(scene: Scene, diary: Diary, tmp_path: Path) -> None:
    scene.say(diary.said())
    forged = Diary(tmp_path / "forged", "north")
    _, notices = scene.say(forged.said())
    assert "another owner or key" in notices[0] and [site for site, _ in scene.alarms] == ["north"]
    assert scene.kinds() == [OPENED, PINNED]


def test_a_pin_outlives_the_process(scene: Scene, diary: Diary, tmp_path: Path) -> None:
    scene.say(diary.said())
    scene.say(diary.said(0))
    scene.restart()
    scene.say(diary.said())
    assert scene.kinds().count(PINNED) == 1
    _, notices = scene.say(Diary(tmp_path / "forged", "north").said())
    assert notices and scene.alarms


def test_a_site_that_a_human_enrolled_anew_begins_a_new_log(scene: Scene, diary: Diary, tmp_path: Path) -> None:
    scene.say(diary.said())
    for number in range(3):
        diary.audit.append("round_trained", round=number)
    scene.say(diary.said(0))
    fresh = Diary(tmp_path / "new-laptop", "north")
    answer, notices = scene.say(fresh.said(), node=b"another node key")
    assert (answer.since, notices, scene.alarms) == (0, [], [])
    answer, notices = scene.say(fresh.said(0), node=b"another node key")
    assert (answer.since, notices) == (1, []) and scene.kinds().count("log_admitted") == 1


def test_no_site_speaks_for_another_or_for_the_coordinator(scene: Scene, diary: Diary, tmp_path: Path) -> None:
    scene.say(diary.said())
    for owner in ("north", "hub"):
        thief = Diary(tmp_path / f"thief-{owner}", owner)
        _, notices = scene.say(thief.said(), member=SOUTH, node=b"node key of south")
        assert "name of another party" in notices[0]
    assert scene.alarms == [] and scene.kinds().count(PINNED) == 1


def test_no_site_takes_the_name_of_another_that_has_not_spoken_yet(scene: Scene, tmp_path: Path) -> None:
    """Whoever came first would keep the other's log out of the record for ever."""
    thief = Diary(tmp_path / "thief", "north")
    _, notices = scene.say(thief.said(), member=SOUTH, node=b"node key of south")
    assert "name of another party" in notices[0] and PINNED not in scene.kinds()
    answer, notices = scene.say(Diary(tmp_path / "north", "north").said())
    assert (answer.since, notices, scene.kinds()) == (0, [], [OPENED, PINNED])


def test_an_alarm_that_could_not_be_followed_is_sounded_again(
    scene: Scene, diary: Diary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon revokes the site; a registry that is busy at that moment must not let it off."""
    scene.say(diary.said())
    scene.say(diary.said(0))
    monkeypatch.setattr(scene.witness, "_alarm", _busy)
    forged = Diary(scene.folder / "forged", "north")
    with pytest.raises(StorageError):
        scene.say(forged.said())
    monkeypatch.undo()
    scene.say(forged.said())
    assert [site for site, _ in scene.alarms] == ["north"]


def _busy(site: str, words: str) -> None:
    raise StorageError("the registry is busy")


def test_courier_and_trainer_of_a_site_have_a_log_each(scene: Scene, tmp_path: Path) -> None:
    logs = [Diary(tmp_path / "north", "north-courier", party="courier"), Diary(tmp_path / "north", "north")]
    answers, notices = scene.witness.exchange(NORTH, NODE, [log.said() for log in logs])
    assert [answer.party for answer in answers] == ["courier", "trainer"] and notices == []
    answers, notices = scene.witness.exchange(NORTH, NODE, [log.said(0) for log in logs])
    assert [answer.since for answer in answers] == [1, 1] and notices == []


def test_a_statement_out_of_place_is_said_and_no_alarm(scene: Scene, diary: Diary) -> None:
    scene.say(diary.said())
    scene.say(diary.said(0))
    diary.audit.append("round_trained", round=1)
    _, notices = scene.say(diary.said(0))
    assert "does not begin where the record ends" in notices[0] and scene.alarms == []
    answer, notices = scene.say(diary.said(1))
    assert (answer.since, notices) == (2, [])


def test_no_site_fills_the_coordinator_s_disk(scene: Scene, diary: Diary) -> None:
    """What comes too often is not recorded and asked for again; nothing is lost by it."""
    scene.say(diary.said())
    scene.say(diary.said(0))
    for number in range(20):
        diary.audit.append("round_trained", round=number)
        (answer,), notices = scene.witness.exchange(NORTH, NODE, [diary.said(1)])
        assert (answer.since, notices) == (1, [])
    assert scene.kinds().count("head_recorded") == 1
    answer, _ = scene.say(diary.said(1))
    assert answer.since == diary.audit.sequence and scene.kinds().count("head_recorded") == 2


def test_a_signature_of_another_key_is_said_and_nothing_recorded(scene: Scene, diary: Diary, tmp_path: Path) -> None:
    scene.say(diary.said())
    forged = Diary(tmp_path / "forged", "north").said(0)
    _, notices = scene.say(diary.said().model_copy(update={"statement": forged.statement}))
    assert "signature" in notices[0] and scene.kinds() == [OPENED, PINNED]


def test_a_coordinator_restored_from_an_old_backup_says_so_to_the_site(scene: Scene, diary: Diary) -> None:
    answer, notices = scene.say(diary.said(recorded=999))
    assert answer.statement is None and "shorter than what another party recorded" in notices[0]


def test_a_point_of_small_order_is_no_key(scene: Scene, diary: Diary) -> None:
    _, notices = scene.say(diary.said().model_copy(update={"key": "00" * 32}))
    assert "small order" in notices[0] and scene.kinds() == [OPENED]


def test_our_own_disk_is_not_the_site_s_fault(scene: Scene, diary: Diary, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise StorageError("no room")

    monkeypatch.setattr(scene.audit._file, "append", full)
    with pytest.raises(StorageError):
        scene.say(diary.said())
    assert scene.alarms == []


def test_a_beat_with_the_longest_statements_is_within_bounds(diary: Diary, tmp_path: Path) -> None:
    """Statements are cut at 4096 entries, so that a log of any length gets through, in several beats."""
    other = Diary(tmp_path / "north", "north-courier", party="courier")
    diary.audit._contents *= 5000
    diary.audit._hashes *= 5000
    long = diary.audit.statement(0)
    assert len(long.contents) == 4096
    logs = [one.said().model_copy(update={"statement": long}) for one in (diary, other)]
    data = beat(lambda: 1.0, *logs).encode()
    assert 500_000 < len(data) <= MAX_REQUEST_BYTES and BeatRequest.decode(data).logs[1].statement == long
