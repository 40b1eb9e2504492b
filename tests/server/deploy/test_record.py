"""What the daemon writes of doors and studies: sums, bounded, each event of a study once, whatever dies in between."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.deploy.board import StudyBoard
from server.deploy.home import CoordinatorFile, CoordinatorHome
from server.deploy.record import DOOR, FLUSH_S, KINDS, MAX_KINDS, ROUTINE_S, STUDY_EVENT, Doorkeeper, StudyRecord
from server.deploy.studies import StudyFolder, Wanted, Wish
from server.enrolment.door import GatewayEvent
from server.rounds.events import Event
from server.rounds.journal import Journal
from shared_model.audit import AuditLog
from shared_model.certificates import Member, Role
from shared_model.errors import StorageError
from shared_model.private_files import make_private_folder, write_private
from shared_model.protocol import Protocol
from shared_model.signed_protocol import SignedProtocol
from tests import fake_grid as fake
from tests.enrolled import Clock


@pytest.fixture
def home(tmp_path: Path) -> CoordinatorHome:
    settings = CoordinatorFile(name="hub", title="Hub", hosts=("localhost",), port=1, enrol_port=2, link_port=3)
    return CoordinatorHome.create(tmp_path / "hub", settings)


@pytest.fixture
def log(home: CoordinatorHome) -> Iterator[AuditLog]:
    with home.audit_log() as found:
        yield found


def doors(log: AuditLog) -> list[tuple[str, str, str, int]]:
    return [(str(f["event"]), str(f["reason"]), str(f["site"]), int(f["count"] or 0))
            for f in (entry.fields for entry in log.entries() if entry.kind == DOOR)]  # fmt: skip


# --- doors ---


def test_door_events_are_counted_and_written_now_and_then(log: AuditLog) -> None:
    clock = Clock(0.0)
    keeper = Doorkeeper(log, clock=clock)
    for _ in range(3):
        keeper.note(GatewayEvent(kind="admitted", reason="", site="north"))
    keeper.note(GatewayEvent(kind="refused", reason="expired", site="south"))
    keeper.step()
    assert doors(log) == []
    clock.now += ROUTINE_S
    keeper.step()
    assert doors(log) == [("admitted", "", "north", 3), ("refused", "expired", "south", 1)]
    clock.now += FLUSH_S
    keeper.step()
    assert len(doors(log)) == 2, "nothing has happened since"
    keeper.note(GatewayEvent(kind="admitted", reason="", site="north"))
    keeper.note(GatewayEvent(kind="dropped", reason="expired", site="north"))
    clock.now += FLUSH_S
    keeper.step()
    assert doors(log)[2:] == [("dropped", "expired", "north", 1)], "who was admitted is no news"
    clock.now += ROUTINE_S
    keeper.step()
    assert doors(log)[3:] == [("admitted", "", "north", 1)]
    keeper.note(GatewayEvent(kind="dropped", reason="revoked", site="north"))
    keeper.flush()  # when the daemon ends
    assert doors(log)[-1] == ("dropped", "revoked", "north", 1)


def test_a_flood_of_strangers_costs_a_bounded_number_of_entries_and_nobody_is_forgotten(log: AuditLog) -> None:
    keeper = Doorkeeper(log, clock=Clock(0.0))
    keeper.note(GatewayEvent(kind="admitted", reason="", site="north"))
    for number in range(20_000):
        kind = "refused" if number % 2 else "denied"
        keeper.note(GatewayEvent(kind=kind, reason=f"{number} " + "x" * 5000 + "\n\x1b[31m\ud800"))
    keeper.note(GatewayEvent(kind="admitted", reason="", site="north"))
    keeper.flush()
    found = doors(log)
    assert len(found) <= MAX_KINDS + 2 and max(len(reason) for _, reason, _, _ in found) <= 80
    assert sum(count for *_, count in found) == 20_002
    assert ("admitted", "", "north", 2) in found
    assert {kind for kind, reason, _, _ in found if reason == "other"} == {"refused", "denied"}


def test_events_of_many_threads_are_all_counted(log: AuditLog) -> None:
    keeper = Doorkeeper(log, clock=Clock(0.0))
    event = GatewayEvent(kind="admitted", reason="", site="north")
    threads = [threading.Thread(target=lambda: [keeper.note(event) for _ in range(500)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            keeper.flush()
        thread.join()
    keeper.flush()
    assert sum(count for *_, count in doors(log)) == 2000


# --- studies ---


def lay_out(home: CoordinatorHome, name: str) -> StudyFolder:
    """A proposed study, without asking who is enrolled."""
    protocol = Protocol.create(fake.make_protocol().model_dump(mode="json") | {"study": name})
    study = StudyFolder(home.study(name))
    make_private_folder(study.path)
    write_private(study.path / "protocol.json", protocol.to_json().encode())
    signed = SignedProtocol.sign(protocol, name=home.settings.name, key=home.signing_key)
    write_private(study.path / "signed.json", signed.to_json().encode())
    study.want(Wanted(wish=Wish.PROPOSED))
    return study


def happens(study: StudyFolder, *kinds: str) -> None:
    with Journal(study.journal, lambda _: None) as journal:
        for kind in kinds:
            with journal.entry():
                journal.event(Event(time=1.0, kind=kind, text="x" * 1000, site="ash", round=2))


def recorded(log: AuditLog) -> list[tuple[str, str]]:
    return [(str(e.fields["study"]), str(e.fields["event"])) for e in log.entries() if e.kind == STUDY_EVENT]


def test_each_event_that_counts_is_on_record_once_also_after_a_kill(home: CoordinatorHome, log: AuditLog) -> None:
    study = lay_out(home, "one")
    happens(study, "study_started", "site_present", "round_opened")
    record = StudyRecord(home, log)
    record.step()
    record.step()
    assert recorded(log) == [("one", "study_started"), ("one", "round_opened")]
    happens(study, "round_closed", "site_evaluated")
    StudyRecord(home, log).step()  # another process, which has the log alone
    StudyRecord(home, log).step()
    assert recorded(log)[2:] == [("one", "round_closed")]
    entry = next(e for e in log.entries() if e.kind == STUDY_EVENT)
    assert len(str(entry.fields["text"])) == 300 and entry.fields["site"] == "ash"


def test_an_event_that_could_not_be_written_is_written_later(
    home: CoordinatorHome, log: AuditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    happens(lay_out(home, "one"), "round_opened", "round_closed")
    record = StudyRecord(home, log)
    with monkeypatch.context() as patches:
        def full(*_: object, **__: object) -> None:
            raise StorageError("no room")

        patches.setattr(log, "append", full)
        with pytest.raises(StorageError, match="no room"):
            record.step()
    record.step()
    assert recorded(log) == [("one", "round_opened"), ("one", "round_closed")]


def test_a_damaged_journal_is_said_and_the_other_studies_are_on_record(home: CoordinatorHome, log: AuditLog) -> None:
    damaged, whole = lay_out(home, "a"), lay_out(home, "b")
    happens(whole, "round_closed")
    damaged.journal.write_bytes(b"no database, but long enough to be taken for one" * 100)
    with pytest.raises(StorageError, match="damaged"):
        StudyRecord(home, log).step()
    assert recorded(log) == [("b", "round_closed")]


def test_what_is_copied_are_kinds_that_there_are() -> None:
    from server.rounds import events

    source = Path(events.__file__).read_text()
    assert all(f'"{kind}"' in source for kind in KINDS), "a kind that nobody writes is a spelling mistake"


# --- what sites are shown ---


def test_a_hospital_is_shown_its_own_studies_and_an_evaluator_all(home: CoordinatorHome) -> None:
    lay_out(home, "one")
    board = StudyBoard(home)
    (proposal,) = board.proposals(Member("ash", Role.SITE))
    signed = SignedProtocol.from_json(proposal.file, coordinator=home.coordinator, release="0.1.0")
    assert (proposal.study, proposal.sha256) == ("one", signed.sha256)
    assert board.proposals(Member("elsewhere", Role.SITE)) == []
    assert len(board.proposals(Member("judge", Role.EVALUATOR))) == 1
    lay_out(home, "two")
    assert [p.study for p in board.proposals(Member("ash", Role.SITE))] == ["one", "two"], "found without a restart"


def test_a_damaged_study_hides_no_other_and_comes_back_when_it_is_restored(home: CoordinatorHome) -> None:
    damaged = lay_out(home, "a")
    lay_out(home, "b")
    whole = (damaged.path / "protocol.json").read_bytes()
    write_private(damaged.path / "protocol.json", b"{")
    board = StudyBoard(home)
    assert [p.study for p in board.proposals(Member("ash", Role.SITE))] == ["b"]
    write_private(damaged.path / "protocol.json", whole)
    assert [p.study for p in board.proposals(Member("ash", Role.SITE))] == ["a", "b"]


def test_events_are_read_from_where_the_site_has_them(home: CoordinatorHome) -> None:
    study = lay_out(home, "one")
    board = StudyBoard(home)
    assert list(board.events("one", 0)) == []
    happens(study, "round_opened", "round_closed")
    found = [(number, event.kind) for number, event in board.events("one", 0)]
    assert found == [(1, "round_opened"), (2, "round_closed")]
    assert [number for number, _ in board.events("one", 1)] == [2]
