"""The audit logs of courier, trainer and coordinator witness each other; what was cut or rewritten is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from client.deploy.audit_exchange import courier_log
from client.deploy.presence import Pace, Trainer
from shared_model.audit import Statement, verify
from shared_model.control import TrainerState
from shared_model.enrolment import courier_name
from shared_model.errors import (
    AuditError,
    EnrolmentError,
    MammoFedError,
    TrainerError,
)  # fmt: skip
from tests.controlled import NAME, Diary, Hub
from tests.enrolled import Clock
from tests.stepped import world, written


@pytest.fixture
def clock() -> Clock:
    return Clock()


class TrainerLog:
    """A trainer's side of the exchange, as `client.trainer.record` does it."""

    def __init__(self, folder: Path, hub: Hub) -> None:
        self.diary = Diary(folder, "north", party="trainer")
        self.hub, self.asked = hub, 0

    def __call__(self, since: int, statement: str | None) -> Any:
        self.asked += 1
        audit = self.diary.audit
        try:
            return self._answer(audit, since, statement)
        except AuditError as error:  # as `client.deploy.trainer_link` hands it on
            raise TrainerError(str(error)) from None

    def _answer(self, audit: Any, since: int, statement: str | None) -> Any:
        if statement is not None:
            audit.record(Statement.from_json(statement), owner=NAME, key=self.hub.key.public)

        class Answer:
            owner, key, log = audit.owner, audit.key.hex, audit.log
            recorded = audit.witnessed(NAME)

        answer = Answer()
        answer.statement = audit.statement(since).to_json()  # type: ignore[attr-defined]
        return answer


def test_all_three_logs_witness_each_other_and_the_talk_ends(tmp_path: Path, clock: Clock) -> None:
    there = world(tmp_path, clock)
    hub, north = there.hub, there.north
    north.presence.inbox.pin(hub.signer)
    record = TrainerLog(tmp_path / "trainer", hub)
    north.trainer = Trainer(state=lambda: TrainerState(up=True), audit=record)
    north.start()
    with hub.open():
        hub.audit.append("round_closed", round=1)
        record.diary.audit.append("round_trained", round=1)
        north.audit.append("message_carried")
        for _ in range(12):
            assert north.step(later=5).notices == ()
        lengths = [log.sequence for log in (hub.audit, north.audit, record.diary.audit)]
        assert sum(lengths) < 25, "a few lines a round, whatever the number of heartbeats"
        for _ in range(6):
            north.step(later=5)
        assert [log.sequence for log in (hub.audit, north.audit, record.diary.audit)] == lengths
        assert hub.audit.witnessed("north") == record.diary.audit.sequence
        assert hub.audit.witnessed(courier_name("north")) >= north.audit.news
        for log in (north.audit, record.diary.audit):
            assert log.witnessed(NAME) >= hub.audit.news
            assert verify(log.path, witnesses=[hub.audit.path]).covered >= log.news
        verify(hub.audit.path, witnesses=[north.audit.path, record.diary.audit.path])
        north.close()
    assert written(north).logs["trainer"].recorded > 0


def test_the_trainer_is_not_asked_with_every_beat(tmp_path: Path, clock: Clock) -> None:
    there = world(tmp_path, clock)
    record = TrainerLog(tmp_path / "trainer", there.hub)
    there.north.trainer = Trainer(state=lambda: TrainerState(up=True), audit=record)
    there.north.start(pace=Pace(audit_s=1000.0))
    with there.hub.open():
        for _ in range(10):
            there.north.step(later=5)
        there.north.close()
    assert record.asked <= 3


def test_a_trainer_that_is_down_or_breaks_costs_no_heartbeat(tmp_path: Path, clock: Clock) -> None:
    def gone(since: int, statement: str | None) -> Any:
        raise TrainerError("trainer of north cannot be reached")

    there = world(tmp_path, clock, trainer=Trainer(state=lambda: TrainerState(up=True), audit=gone))
    with there.hub.open():
        status = there.north.step()
        assert status.connected and "cannot be reached" in status.notices[0]
        there.north.close()


@pytest.mark.parametrize("party", ["courier", "trainer"])
def test_a_log_that_was_cut_at_the_site_reaches_the_coordinator_as_an_alarm(
    tmp_path: Path, clock: Clock, party: str
) -> None:
    there = world(tmp_path, clock)
    hub, north = there.hub, there.north
    record = TrainerLog(tmp_path / "trainer", hub)
    north.trainer = Trainer(state=lambda: TrainerState(up=True), audit=record)
    north.start()
    for log in (north.audit, record.diary.audit):
        for number in range(3):
            log.append("round_trained", round=number)
    with hub.open():
        for _ in range(5):
            north.step(later=Pace().audit_s)
        assert hub.alarms == []
        log = north.audit if party == "courier" else record.diary.audit
        log.close()
        lines = log.path.read_bytes().splitlines(keepends=True)
        log.path.write_bytes(b"".join(lines[:-2]))
        if party == "courier":
            north.audit = courier_log(north.folder, "north")
            north.presence.exchange.audit = north.audit
        else:
            record.diary = Diary(tmp_path / "trainer", "north", party="trainer", key=record.diary.key)
        for _ in range(3):
            north.step(later=Pace().audit_s)
        assert [site for site, _ in hub.alarms] == ["north"] and "shorter" in hub.alarms[0][1]
        north.close()


def test_a_rewritten_log_of_the_coordinator_is_said_at_the_site(tmp_path: Path, clock: Clock) -> None:
    there = world(tmp_path, clock)
    hub, north = there.hub, there.north
    north.presence.inbox.pin(hub.signer)
    with hub.open():
        hub.audit.append("round_closed", round=1)
        for _ in range(3):
            north.step(later=5)
    hub.audit.close()
    hub.audit.path.unlink()
    again = type(hub.audit)(hub.audit.path, owner=NAME, key=hub.key, clock=clock)
    for number in range(20):
        again.append("round_closed", round=number)
    hub.audit = again
    with hub.open(**hub.ports):
        for _ in range(3):
            status = north.step(later=60)
        assert any("audit log" in notice and NAME in notice for notice in status.notices)
        assert north.audit.refuses(NAME)
        north.close()


def test_names_of_courier_logs_fit_and_no_site_is_called_so(tmp_path: Path) -> None:
    assert courier_name("north") == "north-courier" and len(courier_name("x" * 63)) == 63
    with pytest.raises(EnrolmentError, match="not a name"):
        Hub(tmp_path).home.begin("north-courier")


def test_a_courier_s_log_is_opened_again_with_its_key(tmp_path: Path) -> None:
    first = courier_log(tmp_path, "north")
    first.close()
    assert courier_log(tmp_path, "north").key == first.key
    (tmp_path / "audit.jsonl").write_text("nonsense\n")
    with pytest.raises(MammoFedError):
        courier_log(tmp_path, "north")
    assert issubclass(AuditError, MammoFedError)
