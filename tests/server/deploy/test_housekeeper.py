"""What the daemon does again and again goes on, whatever fails in it; and what failed is said."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.deploy.daemon import Housekeeper
from server.deploy.home import CoordinatorFile, CoordinatorHome
from server.deploy.link import Link
from server.deploy.record import DOOR, FLUSH_S, Doorkeeper
from server.enrolment.door import GatewayEvent
from shared_model.audit import AuditLog
from shared_model.errors import StorageError
from shared_model.private_files import is_held
from shared_model.supervisor import Supervisor
from tests.enrolled import Clock


@pytest.fixture
def home(tmp_path: Path) -> CoordinatorHome:
    settings = CoordinatorFile(name="hub", title="Hub", hosts=("localhost",), port=1, enrol_port=2, link_port=3)
    return CoordinatorHome.create(tmp_path / "hub", settings)


@pytest.fixture
def audit(home: CoordinatorHome) -> Iterator[AuditLog]:
    with home.audit_log() as log:
        yield log


def kinds(log: AuditLog) -> list[str]:
    return [entry.kind for entry in log.entries()]


def test_a_step_that_fails_in_an_unforeseen_way_is_said_once_and_ends_nothing(
    home: CoordinatorHome, audit: AuditLog, caplog: pytest.LogCaptureFixture
) -> None:
    keeper = Housekeeper(home, Link(home), Supervisor(), audit, Doorkeeper(audit))
    end, turns = threading.Event(), list[int]()

    def breaks() -> None:
        raise ZeroDivisionError("a defect of ours")

    def counts() -> None:
        turns.append(1)
        if len(turns) == 3:
            end.set()

    keeper._steps = (("defect", breaks), ("after it", counts))
    with caplog.at_level(logging.WARNING, "mammofed.server"):
        keeper.run(end)
    assert len(turns) == 3
    assert [record.message for record in caplog.records] == ["defect: ZeroDivisionError('a defect of ours')"]


def test_names_of_steps_are_their_own_so_that_what_is_said_once_is(home: CoordinatorHome, audit: AuditLog) -> None:
    names = [name for name, _ in Housekeeper(home, Link(home), Supervisor(), audit, Doorkeeper(audit))._steps]
    assert len(set(names)) == len(names)
    assert names.index("nginx") < names.index("nodes"), "a revocation does not wait for SuperLink"


def test_door_events_that_could_not_be_written_are_written_later(
    audit: AuditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(0.0)
    doorkeeper = Doorkeeper(audit, clock=clock)
    for reason in ("foreign", "foreign", "no_tls"):
        doorkeeper.note(GatewayEvent(kind="refused", reason=reason))
    append, calls = audit.append, list[str]()

    def once(kind: str, **fields: Any) -> Any:
        calls.append(kind)
        if len(calls) == 2:
            raise StorageError("the disk is full")
        return append(kind, **fields)

    monkeypatch.setattr(audit, "append", once)
    clock.now += FLUSH_S
    with pytest.raises(StorageError):
        doorkeeper.step()
    clock.now += FLUSH_S
    doorkeeper.step()
    counts = {str(e.fields["reason"]): e.fields["count"] for e in audit.entries() if e.kind == DOOR}
    assert counts == {"foreign": 2, "no_tls": 1}


def test_whether_the_daemon_runs_is_seen_without_reading_or_writing_its_log(home: CoordinatorHome) -> None:
    before = home.audit_file.read_bytes()
    assert not is_held(home.audit_file)
    with home.audit_log():
        assert is_held(home.audit_file)
    assert home.audit_file.read_bytes() == before
    assert not is_held(home.folder / "nothing")
