"""Stored replies: the same bytes for a repetition, nothing for a variation, and slots that stay taken for ever."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from client.trainer.replies import ReplyStore, round_slot
from shared_model.errors import MessageError, PrivacyError, StorageError

A, B = "a" * 64, "b" * 64


def test_a_repetition_finds_the_same_bytes_in_another_process_too(tmp_path: Path) -> None:
    ReplyStore(tmp_path, keep=2).store("study", round_slot(1, 1), A, b"reply")
    assert ReplyStore(tmp_path, keep=2).find("study", round_slot(1, 1), A) == b"reply"
    assert ReplyStore(tmp_path, keep=2).find("study", round_slot(1, 2), A) is None
    assert ReplyStore(tmp_path, keep=2).find("other", round_slot(1, 1), A) is None


def test_the_same_round_with_other_weights_is_refused(tmp_path: Path) -> None:
    store = ReplyStore(tmp_path, keep=2)
    store.store("study", round_slot(1, 1), A, b"reply")
    with pytest.raises(PrivacyError, match="other weights"):
        store.find("study", round_slot(1, 1), B)


def test_old_rounds_are_pruned_and_their_slots_stay_taken(tmp_path: Path) -> None:
    store = ReplyStore(tmp_path, keep=2)
    store.store("study", "site", A, b"final")
    for number in (1, 2, 9, 10, 11):
        store.store("study", round_slot(number, 1), A, b"%d" % number)
    assert store.find("study", round_slot(11, 1), A) == b"11"
    assert store.find("study", round_slot(10, 1), A) == b"10"
    assert store.find("study", "site", A) == b"final"
    assert len(list((tmp_path / "study").glob("round-*.frame"))) == 2
    for identity, words in ((A, "no longer kept"), (B, "other weights")):
        with pytest.raises(PrivacyError, match=words):
            store.find("study", round_slot(1, 1), identity)


def test_a_slot_is_no_prefix_of_another(tmp_path: Path) -> None:
    store = ReplyStore(tmp_path, keep=2)
    store.store("study", "test-image-only", A, b"x")
    assert store.find("study", "test", B) is None


def test_every_changed_byte_of_a_stored_reply_is_found(tmp_path: Path) -> None:
    """The coordinator would average it: a float with a flipped bit is a float like any other."""
    store = ReplyStore(tmp_path, keep=2)
    store.store("study", round_slot(1, 1), A, b"some reply")
    path = tmp_path / "study" / f"{round_slot(1, 1)}.{A}.frame"
    good = path.read_bytes()
    changed = [good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :] for i in range(len(good))]
    for data in (*changed, *(good[:i] for i in range(len(good))), good + b"x", good[1:]):
        path.write_bytes(data)
        with pytest.raises(StorageError, match="damaged"):
            store.find("study", round_slot(1, 1), A)
    path.write_bytes(good)
    assert store.find("study", round_slot(1, 1), A) == b"some reply"


def test_a_stored_reply_under_another_name_is_found(tmp_path: Path) -> None:
    store = ReplyStore(tmp_path, keep=2)
    store.store("study", round_slot(1, 1), A, b"reply")
    first = tmp_path / "study" / f"{round_slot(1, 1)}.{A}.frame"
    first.rename(first.with_name(f"{round_slot(2, 1)}.{A}.frame"))
    with pytest.raises(StorageError, match="damaged"):
        store.find("study", round_slot(2, 1), A)


def test_a_half_written_reply_is_no_reply(tmp_path: Path) -> None:
    store = ReplyStore(tmp_path, keep=2)
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / f"{round_slot(1, 1)}.{A}.tmp").write_bytes(b"hal")
    assert store.find("study", round_slot(1, 1), A) is None


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ReplyStore(tmp_path, keep=2)

    def full(handle: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("client.trainer.replies.os.fsync", full)
        with pytest.raises(StorageError, match="No space left"):
            store.store("study", round_slot(1, 1), A, b"reply")
    assert list((tmp_path / "study").iterdir()) == []
    assert store.find("study", round_slot(1, 1), A) is None


def test_room_that_was_taken_is_used_and_what_is_too_much_goes(tmp_path: Path) -> None:
    store = ReplyStore(tmp_path, keep=2)
    store.make_room("study", round_slot(1, 1), A, 4096)
    assert store.find("study", round_slot(1, 1), A) is None
    store.store("study", round_slot(1, 1), A, b"reply")
    assert store.find("study", round_slot(1, 1), A) == b"reply"
    assert len(list((tmp_path / "study").iterdir())) == 1


def test_an_emptied_reply_is_damage_and_never_a_free_slot(tmp_path: Path) -> None:
    store = ReplyStore(tmp_path, keep=2)
    store.store("study", round_slot(1, 1), A, b"reply")
    (tmp_path / "study" / f"{round_slot(1, 1)}.{A}.frame").write_bytes(b"")
    with pytest.raises(StorageError, match="damaged"):
        store.find("study", round_slot(1, 1), A)


@pytest.mark.parametrize("study", ["../x", "a/b", "", "A"])
def test_no_name_becomes_a_path(tmp_path: Path, study: str) -> None:
    with pytest.raises(MessageError, match="cannot be"):
        ReplyStore(tmp_path, keep=2).find(study, round_slot(1, 1), A)
