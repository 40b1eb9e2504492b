"""The store of received films: whole or not at all, once, for its owner alone, through crashes and full disks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from client.ingest.sources import Received, StudyNote
from client.ingest.sources.received import name_of
from shared_model.errors import ConfigError, StorageError


def test_a_film_is_stored_once_and_stays(store: Received) -> None:
    assert store.put("2.25.1", "2.25.11", b"film", patient="p1")
    assert not store.put("2.25.1", "2.25.11", b"another", patient="p1")
    assert store.holds("2.25.1", "2.25.11") and not store.holds("2.25.1", "2.25.12")
    (path,) = store.paths()
    assert path.read_bytes() == b"film"
    assert store.paths(complete_only=True) == []
    store.update_note("2.25.1", complete=True)
    assert store.paths(complete_only=True) == [path]


def test_no_value_of_a_film_stands_in_a_path(store: Received) -> None:
    store.put("../../../etc/x", "a/b\\c\0", b"film", patient="../p")
    (path,) = store.paths()
    assert path.parent.parent == store.films_folder
    assert set(path.parent.name + path.stem) <= set("0123456789abcdef")
    assert [p for p in store.folder.parent.iterdir() if p != store.folder] == []


def test_only_the_owner_can_read(store: Received) -> None:
    before = os.umask(0)
    try:
        store.put("2.25.1", "2.25.11", b"film", patient="p1")
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in [store.folder, *store.folder.rglob("*")]}
    assert modes == {0o700, 0o600}


def test_notes_survive_a_restart(tmp_path: Path) -> None:
    with Received(tmp_path / "s") as store:
        store.put("2.25.1", "2.25.11", b"film", patient="p1")
        store.update_note("2.25.1", announced="d", complete=True, refused={name_of("2.25.12"): "too_large"})
    with Received(tmp_path / "s") as store:
        expected = StudyNote(patient="p1", announced="d", complete=True, refused={name_of("2.25.12"): "too_large"})
        assert store.note("2.25.1") == expected
        assert list(store.notes()) == [(name_of("2.25.1"), expected)]
        assert store.retry_refused() == 1
        assert store.note("2.25.1") == StudyNote(patient="p1", announced="d")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"refused": 3}', '{"refused": {"a": "nonsense"}}', "[" * 10000]
)
def test_a_damaged_note_means_that_nothing_is_known(store: Received, text: str) -> None:
    store.put("2.25.1", "2.25.11", b"film", patient="p1")
    (store.folder / "studies" / f"{name_of('2.25.1')}.json").write_text(text)
    assert store.note("2.25.1") == StudyNote()


def test_partial_files_of_a_crash_are_thrown_away(tmp_path: Path) -> None:
    with Received(tmp_path / "s"):
        pass
    (tmp_path / "s" / "arriving" / "x.partial").write_bytes(b"half")
    with Received(tmp_path / "s") as store:
        assert list((tmp_path / "s" / "arriving").iterdir()) == [] and store.paths() == []


def test_one_import_at_a_time_and_the_lock_of_a_dead_one_is_free(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from client.ingest.sources import Received; " \
           "s = Received(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"  # fmt: skip
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "s")], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE)  # fmt: skip
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    with pytest.raises(StorageError, match="another process"):
        Received(tmp_path / "s")
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    Received(tmp_path / "s").close()


def test_a_full_disk_leaves_nothing_behind(store: Received, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="No space left"):
            store.put("2.25.1", "2.25.11", b"film", patient="p1")
    assert store.paths() == [] and list((store.folder / "arriving").iterdir()) == []
    assert store.put("2.25.1", "2.25.11", b"film", patient="p1")


def test_what_counts_as_stored_is_on_the_disk(store: Received, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is flushed before it gets its name, and the folder after."""
    log: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def flush(handle: int) -> None:
        log.append("folder" if Path(f"/proc/self/fd/{handle}").resolve().is_dir() else "file")
        fsync(handle)

    def rename(self: Path, target: Path) -> Path:
        log.append("rename")
        return replace(self, target)

    store.put("2.25.1", "2.25.10", b"film", patient="p1")
    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(Path, "replace", rename)
    store.put("2.25.1", "2.25.11", b"film", patient="p1")
    assert log == ["file", "rename", "folder"]


def test_many_threads_that_deliver_one_film_leave_one(store: Received) -> None:
    def deliver() -> None:
        for film in range(20):
            store.put("2.25.1", f"2.25.1{film}", bytes([film]) * 1000, patient="p1")

    threads = [threading.Thread(target=deliver) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(path.read_bytes() for path in store.paths()) == [bytes([film]) * 1000 for film in range(20)]
    assert store.note("2.25.1").patient == "p1"


def test_a_woman_is_removed_with_all_that_is_known_of_her(store: Received) -> None:
    for study, patient in (("2.25.1", "p1"), ("2.25.2", "p2"), ("2.25.3", "p1")):
        for film in range(2):
            store.put(study, f"{study}.{film}", b"film", patient=patient)
    assert store.remove_patient("p1") == 4
    assert [note.patient for _, note in store.notes()] == ["p2"] and len(store.paths()) == 2
    assert store.remove_patient("p1") == 0


def test_a_store_of_another_version_or_key_is_refused(tmp_path: Path) -> None:
    with Received(tmp_path / "s") as store:
        store.bind("2.25.77")
        store.bind("2.25.77")
        with pytest.raises(ConfigError, match="another key"):
            store.bind("2.25.78")
    with Received(tmp_path / "s") as store, pytest.raises(ConfigError):
        store.bind("2.25.78")
    assert "2.25.77" not in (tmp_path / "s" / "store.json").read_text()
    for text in ("{", json.dumps({"version": 9}), "[]"):
        (tmp_path / "s" / "store.json").write_text(text)
        with pytest.raises(StorageError, match="another version"):
            Received(tmp_path / "s")
    (tmp_path / "s" / "store.json").unlink()
    Received(tmp_path / "s").close()  # the lock was given back each time


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="could not be written"):
        Received(tmp_path / "file" / "store")
