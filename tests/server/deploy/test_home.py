"""The coordinator's folder: made whole or finished later, private, with one audit log for daemon and commands."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from server.deploy import home as home_module
from server.deploy.home import CoordinatorFile, CoordinatorHome
from shared_model.audit import AuditLog
from shared_model.errors import AuditError, ConfigError, StorageError
from shared_model.private_files import write_private

SETTINGS = CoordinatorFile(name="hub", title="The hub", hosts=("fl.example.org", "10.0.0.1"))


class Killed(BaseException):
    """The command dies here."""


@pytest.fixture
def home(tmp_path: Path) -> CoordinatorHome:
    return CoordinatorHome.create(tmp_path / "hub", SETTINGS)


def kinds(log: AuditLog) -> list[str]:
    return [entry.kind for entry in log.entries()]


def test_a_home_is_its_owners_alone_and_opens_as_it_was_made(home: CoordinatorHome) -> None:
    for path in [home.folder, *home.folder.rglob("*")]:
        if not path.name.endswith((".sqlite-wal", ".sqlite-shm")):
            assert path.stat().st_mode & 0o077 == 0, path
    again = CoordinatorHome.open(home.folder)
    assert again == home and again.coordinator == home.coordinator
    with home.audit_log() as log:
        assert kinds(log)[-1] == "coordinator_made"


def test_a_home_is_never_made_over_another(home: CoordinatorHome) -> None:
    key = home.signing_key.public
    with pytest.raises(ConfigError, match=r"home already.*shut out every site") as caught:
        CoordinatorHome.create(home.folder, SETTINGS)
    assert caught.value.exit_code == 10 and home.signing_key.public == key


def test_one_that_was_killed_at_any_write_is_finished_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in itertools.count(1):
        folder, done = tmp_path / str(number), itertools.count(1)

        def replace(self: Path, target: Path, count: Callable[[], int] = done.__next__, last: int = number,
                    real: Callable[[Path, Path], Any] = Path.replace) -> Any:  # fmt: skip
            found = real(self, target)  # each file of ours comes to be by a rename
            if count() == last:
                raise Killed
            return found

        killed = True
        with monkeypatch.context() as patches:
            patches.setattr(Path, "replace", replace)
            with contextlib.suppress(Killed):
                CoordinatorHome.create(folder, SETTINGS)
                killed = False
        if not killed:
            break
        with contextlib.suppress(ConfigError):  # complete but for its first entry
            CoordinatorHome.create(folder, SETTINGS)
        home = CoordinatorHome.open(folder)
        assert home.authority().ca_pem and home.coordinator.name == "hub"
        home.registry().close()
    assert number > 4


def test_a_folder_without_a_coordinator_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mammofed server init"):
        CoordinatorHome.open(tmp_path)


@pytest.mark.parametrize(("change", "named"), [
    ({"name": "No Such Name"}, "name"), ({"hosts": []}, "hosts"), ({"port": 0}, "port"), ({"port": 70000}, "port"),
    ({"title": ""}, "title"), ({"extra": 1}, "extra"), ({"link_port": "x"}, "link_port"),
    ({"enrol_port": 8443}, "three different ones"), ({"link_port": 8444}, "three different ones"),
])  # fmt: skip
def test_settings_that_are_wrong_are_named(home: CoordinatorHome, change: dict[str, Any], named: str) -> None:
    values = SETTINGS.model_dump(mode="json") | change
    with pytest.raises(ValidationError):
        CoordinatorFile.model_validate(values)
    write_private(home.folder / "coordinator.json", json.dumps(values).encode())
    with pytest.raises(ConfigError, match="is damaged") as caught:
        CoordinatorHome.open(home.folder)
    assert named in str(caught.value)


def test_settings_that_others_can_read_or_that_are_no_json_are_refused(home: CoordinatorHome) -> None:
    path = home.folder / "coordinator.json"
    path.chmod(0o644)
    with pytest.raises(StorageError, match="open to other users"):
        CoordinatorHome.open(home.folder)
    write_private(path, b"{")
    with pytest.raises(ConfigError, match="is damaged"):
        CoordinatorHome.open(home.folder)


# --- the audit log ---


def test_what_commands_did_while_the_daemon_had_the_log_comes_in_their_order(home: CoordinatorHome) -> None:
    with home.audit_log() as log:
        for number in range(5):
            home.record("invited", number=number)
        assert "invited" not in kinds(log)
        home.drain(log)
        assert [e.fields["number"] for e in log.entries() if e.kind == "invited"] == [0, 1, 2, 3, 4]
    home.record("invited", number=5)
    with home.audit_log() as log:
        assert kinds(log)[-1] == "invited"
    assert list((home.folder / "audit-spool").iterdir()) == []


@pytest.mark.parametrize("text", [
    b"", b"{", b"[]", b"null", b'{"kind": "invited"}', b'{"kind": "log_opened", "fields": {}}',
    b'{"kind": "x", "fields": {"a": [1]}}', b'{"kind": "x", "fields": {"kind": "y"}}', b"\xff",
    b'{"kind": 7, "fields": {}}',
])  # fmt: skip
def test_a_spooled_entry_that_is_none_is_put_aside_on_record_and_stops_nothing(
    home: CoordinatorHome, text: bytes
) -> None:
    write_private(home.folder / "audit-spool" / "0.json", text)
    home.record("invited", site="north")
    with home.audit_log() as log:
        assert kinds(log)[-2:] == ["spool_refused", "invited"]
        home.drain(log)
        assert kinds(log).count("spool_refused") == 1, "once"
    assert [path.name for path in (home.folder / "audit-spool").iterdir()] == ["0.refused"]


def test_a_log_that_was_changed_takes_nothing_and_loses_nothing(home: CoordinatorHome) -> None:
    with home.audit_log() as log:
        home.record("invited", site="north")
        with (home.folder / "audit.jsonl").open("ab") as stream:
            stream.write(b"{}\n")
        with pytest.raises(AuditError, match="changed or replaced"):
            home.drain(log)
    assert len(list((home.folder / "audit-spool").glob("*.json"))) == 1, "it still waits"


def test_a_crash_between_log_and_spool_writes_twice_and_never_not_at_all(
    home: CoordinatorHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    with home.audit_log() as log:
        home.record("invited", site="north")
        with monkeypatch.context() as patches:
            def killed(path: Path) -> None:
                raise Killed

            patches.setattr(home_module, "remove_private", killed)
            with contextlib.suppress(Killed):
                home.drain(log)
        home.drain(log)
        assert kinds(log).count("invited") == 2
