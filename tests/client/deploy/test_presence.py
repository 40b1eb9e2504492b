"""A courier's conversation with the coordinator, step by step and over real doors: whatever happens, it goes on."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client.deploy.control import ControlClient
from client.deploy.identity import Stage
from client.deploy.inbox import Inbox
from client.deploy.presence import Pace, Trainer
from client.deploy.status import CourierStatus
from client.deploy.tunnel import TunnelStatus
from shared_model.certificates import Role, der
from shared_model.control import MemberKey, TrainerState, WatchRequest
from shared_model.errors import (
    ConfigError,
    ControlError,
    EnrolmentError,
    StorageError,
)  # fmt: skip
from shared_model.signed_protocol import Coordinator as Signer
from shared_model.signing import SigningKey
from tests.controlled import NAME, RELEASE, Hub
from tests.enrolled import DAY, HANG_S, Clock, words
from tests.stepped import Site, world, written

OLD = 40 * DAY


@pytest.fixture
def clock() -> Clock:
    return Clock()


# --- enrolment ---


def test_a_site_enrols_by_itself_once_a_human_has_compared_the_words(tmp_path: Path, clock: Clock) -> None:
    there = world(tmp_path, clock, enrolled=False)
    hub, north = there.hub, there.north
    with hub.open():
        for _ in range(3):
            assert "compare the six words" in north.step(later=5).words
        hub.home.enrolment.confirm("north", north.identity.words(words))
        assert north.step(later=5).words == "enrolled"
        status = north.step(later=5)
        north.close()
    assert (status.words, status.connected, status.stage, status.coordinator) == ("connected", True, "ready", NAME)
    assert Inbox(north.folder, site="north", release=RELEASE).coordinator == hub.signer
    assert written(north) == status and (north.folder / "status.json").stat().st_mode & 0o777 == 0o600
    assert hub.roll.present()["north"].release == RELEASE


def test_an_invitation_that_is_no_good_is_said_and_asked_about_again(tmp_path: Path, clock: Clock) -> None:
    there = world(tmp_path, clock, enrolled=False)
    there.hub.home.enrolment.revoke("north")
    with there.hub.open():
        assert "ask the coordinator for a new one" in there.north.step().words
        assert 0 < there.north.wait <= Pace().most_s
    there.north.close()


def test_another_signing_key_than_at_enrolment_is_refused_before_the_certificate(tmp_path: Path, clock: Clock) -> None:
    clock.now -= OLD
    there = world(tmp_path, clock)
    hub, north = there.hub, there.north
    north.presence.inbox.pin(hub.signer)
    clock.now += 8 * DAY  # a renewal is due
    before = north.identity.certificate()
    hub.home.enrolment._coordinator = Signer.of(NAME, SigningKey.generate().public)
    answer = hub.home.enrolment.answer(north.identity.request() or b"", peer=der(before))
    with pytest.raises(EnrolmentError, match="another signing key"):
        north.presence._accept(answer)
    assert north.identity.certificate() == before and north.presence.inbox.coordinator == hub.signer
    north.close()


# --- being there ---


def test_a_beat_every_few_seconds_over_one_connection(tmp_path: Path, clock: Clock) -> None:
    there = world(tmp_path, clock)
    with there.hub.open():
        for _ in range(5):
            assert there.north.step(later=5).words == "connected"
            assert there.north.wait == Pace().beat_s
            assert there.hub.roll.present()["north"].time == clock.now
        assert there.north.lines == 1 and len(there.hub.home.reasons("admitted")) == 1
        there.north.close()


def test_what_the_site_decided_and_what_its_trainer_has_is_told(tmp_path: Path, clock: Clock) -> None:
    decided: tuple[list[str], list[str]] = ([], [])
    trainer = Trainer(state=lambda: TrainerState(up=True, device="cuda:0"), decided=lambda: decided)
    there = world(tmp_path, clock, trainer=trainer)
    decided[0].append(there.hub.offer("one").sha256)
    decided[1].append(there.hub.offer("two").sha256)
    with there.hub.open():
        there.north.step()
        there.north.close()
    sign = there.hub.roll.present()["north"]
    assert (sign.trainer.device, sign.approved, sign.declined) == ("cuda:0", tuple(decided[0]), tuple(decided[1]))


def test_a_wrong_clock_is_in_the_status_by_name(tmp_path: Path) -> None:
    hub_clock, clock = Clock(), Clock()
    hub = Hub(tmp_path, hub_clock)
    north = Site(hub, hub.home.enrol("north"), clock=clock)
    with hub.open():
        clock.now = hub_clock.now + 6
        status = north.step()
        assert "clock is wrong" in status.words and "6.0 s ahead" in status.words and not status.connected
        clock.now = hub_clock.now + 2
        status = north.step()
        assert status.connected and status.clock_ahead == pytest.approx(2.0)
        north.close()


def test_an_outage_is_waited_out_and_the_waits_are_bounded(tmp_path: Path, clock: Clock) -> None:
    there = world(tmp_path, clock)
    hub, north = there.hub, there.north
    with hub.open():
        assert north.step().connected
    waits = []
    for _ in range(8):
        status = north.step(later=60)
        assert not status.connected and status.words
        waits.append(north.wait)
    assert all(0 < wait <= Pace().most_s for wait in waits) and waits[0] <= Pace().beat_s < max(waits)
    assert written(north).connected is False
    with hub.open(**hub.ports):
        assert north.step(later=60).connected and north.wait == Pace().beat_s
        north.close()


def test_a_revoked_site_says_so_and_goes_on_asking(tmp_path: Path, clock: Clock) -> None:
    there = world(tmp_path, clock)
    with there.hub.open():
        there.north.step()
        there.hub.home.enrolment.revoke("north")
        there.north.step(later=5)  # may see no more than that its connection was cut
        for _ in range(2):
            status = there.north.step(later=5)
            assert "revoked" in status.words and "call the coordinator" in status.words
        there.north.close()


# --- three weeks, thirty-one days ---


def test_after_three_weeks_offline_a_site_renews_by_itself(tmp_path: Path, clock: Clock) -> None:
    """The certificate is from three weeks ago by every clock, also OpenSSL's; nobody does anything."""
    clock.now -= 21 * DAY
    there = world(tmp_path, clock)
    old = there.north.identity.certificate()
    with there.hub.open():
        assert there.north.step().connected
    for _ in range(20):
        assert not there.north.step(later=DAY).connected
    clock.now = time.time()
    with there.hub.open(**there.hub.ports):
        status = there.north.step()
        assert status.connected and status.notices == ()
        assert there.north.identity.certificate() != old
        status = there.north.step(later=5)
        assert (status.stage, status.connected) == (Stage.READY.value, True) and status.days_left > 29
        there.north.close()


def test_after_thirty_one_days_a_site_is_told_what_to_do_and_lives(tmp_path: Path, clock: Clock) -> None:
    clock.now -= 31 * DAY
    there = world(tmp_path, clock)
    clock.now += 31 * DAY
    with there.hub.open():
        for _ in range(3):
            status = there.north.step(later=60)
            assert status.stage == Stage.EXPIRED.value and not status.connected
            assert "ask the coordinator for a new invitation" in status.words
            assert there.north.wait == Pace().most_s
        assert there.hub.home.reasons("admitted") == [] and there.north.lines == 0, "nothing is sent"
    there.north.close()


def test_a_renewal_that_fails_is_a_notice_and_is_tried_again(tmp_path: Path, clock: Clock) -> None:
    clock.now -= 9 * DAY
    there = world(tmp_path, clock)
    clock.now += 8 * DAY
    enrolment, hub = there.hub.home.enrolment, there.hub
    good = enrolment.answer

    def full(*_: object, **__: object) -> bytes:
        raise StorageError("no room")

    with hub.open():
        enrolment.answer = full  # type: ignore[method-assign]
        status = there.north.step()
        assert status.connected and "could not be renewed" in status.notices[0]
        assert there.north.step(later=5).notices == (), "not with every beat"
        enrolment.answer = good  # type: ignore[method-assign]
        assert there.north.step(later=Pace().renew_s).connected
        assert there.north.step(later=5).stage == "ready"
        there.north.close()


# --- protocols ---


def test_signed_protocols_come_into_the_inbox(tmp_path: Path, clock: Clock) -> None:
    there = world(tmp_path, clock)
    hub, north = there.hub, there.north
    north.presence.inbox.pin(hub.signer)
    signed = [hub.offer("one"), hub.offer("two")]
    south = hub.home.enrol("south")
    with hub.open():
        assert set(north.step().offered) == {one.sha256 for one in signed}
        assert sorted(path.name for path in (north.folder / "inbox").iterdir()) == sorted(
            f"{one.protocol.study}-{one.sha256[:16]}.json" for one in signed)  # fmt: skip
        assert north.presence.inbox.protocols() == signed
        assert north.presence.inbox.members() == (MemberKey(site="south", role=Role.SITE, node=south.node_spki),)
        third = hub.offer("three")
        assert len(north.step(later=5).offered) == 2, "not with every beat"
        assert third.sha256 in north.step(later=Pace().documents_s).offered
        assert len(north.presence.inbox.protocols()) == 3
        north.close()


@pytest.mark.parametrize("kind", ["another key", "another release", "not for us", "damaged"])
def test_what_is_not_signed_for_us_by_our_coordinator_is_not_kept(tmp_path: Path, clock: Clock, kind: str) -> None:
    there = world(tmp_path, clock)
    hub, north = there.hub, there.north
    north.presence.inbox.pin(hub.signer)
    if kind == "another key":
        hub.offer(key=SigningKey.generate())
    elif kind == "another release":
        hub.offer(release="9.9.9")
    else:
        hub.offer()
    (offer,) = hub.board.offers
    if kind == "damaged":
        object.__setattr__(offer, "file", offer.file.replace(b'"seed": 0', b'"seed": 1'))
    if kind == "not for us":
        north.presence.inbox.site = "lakes"
    with hub.open():
        status = north.step()
        assert status.connected and status.notices, "said, and all else goes on"
        assert list((north.folder / "inbox").iterdir()) == []
        assert north.step(later=Pace().documents_s).notices == (), "and it is not fetched again and again"
        north.close()


def test_a_site_that_does_not_know_its_coordinator_keeps_nothing(tmp_path: Path, clock: Clock) -> None:
    there = world(tmp_path, clock)
    there.hub.offer()
    with there.hub.open():
        assert "does not know the coordinator" in there.north.step().notices[0]
        there.north.close()
    assert not (there.north.folder / "inbox").exists()


def test_an_evaluator_gets_every_protocol(tmp_path: Path, clock: Clock) -> None:
    there = world(tmp_path, clock, role=Role.EVALUATOR)
    there.north.presence.inbox.pin(there.hub.signer)
    there.north.presence.inbox.site = ""
    there.hub.offer()
    with there.hub.open():
        there.north.step()
        there.north.close()
    assert len(there.north.presence.inbox.protocols()) == 1


def test_a_damaged_file_in_the_inbox_is_fetched_again(tmp_path: Path, clock: Clock) -> None:
    there = world(tmp_path, clock)
    there.north.presence.inbox.pin(there.hub.signer)
    there.hub.offer()
    with there.hub.open():
        there.north.step()
        (path,) = (there.north.folder / "inbox").iterdir()
        path.write_bytes(path.read_bytes()[:-10])
        assert there.north.presence.inbox.protocols() == []
        there.north.step(later=Pace().documents_s)
        assert len(there.north.presence.inbox.protocols()) == 1
        there.north.close()


def test_a_pin_that_is_damaged_is_said(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path, site="north", release=RELEASE)
    signer = Signer.of(NAME, SigningKey.generate().public)
    inbox.pin(None)
    assert inbox.coordinator is None
    inbox.pin(signer)
    inbox.pin(signer)
    (tmp_path / "coordinator.json").write_text("{}")
    with pytest.raises(ConfigError, match="damaged"):
        _ = inbox.coordinator
    (tmp_path / "members.json").write_text("nonsense")
    (tmp_path / "members.json").chmod(0o600)
    assert inbox.members() == ()


# --- threads ---


def test_it_runs_by_itself_follows_studies_and_ends_at_once(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    hub = Hub(tmp_path, time.time)
    identity = hub.home.enrol("north")
    north = Site(hub, identity, clock=time.time)  # type: ignore[arg-type]
    hub.offer()
    hub.board.tell("quick", kind="round_opened", round=1)
    north.start(pace=Pace(beat_s=0.05))
    with hub.open():
        with north.presence:
            _until(lambda: north.presence.status.studies.get("quick") is not None)
            hub.board.tell("quick", kind="finished", round=1, text="done\x1b[2J")
            _until(lambda: north.presence.status.studies["quick"].ended)
            study = north.presence.status.studies["quick"]
            assert (study.number, study.words) == (2, "finished done?[2J")
        assert not any(thread.is_alive() for thread in north.presence._threads)
    left = set(threading.enumerate()) - before
    assert not [thread for thread in left if thread.name in ("presence", "control-line")]
    north.audit.close()


def test_it_ends_at_once_also_when_nobody_answers(tmp_path: Path, clock: Clock) -> None:
    there = world(tmp_path, clock)
    with there.hub.open():
        pass
    with there.north.presence:
        _until(lambda: there.north.presence.status.words != "starting")
    assert not any(thread.is_alive() for thread in there.north.presence._threads)
    there.north.audit.close()


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANG_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- status.json ---


def test_a_status_is_absent_whole_or_said_to_be_damaged(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    assert CourierStatus.read(path) is None
    path.write_text(json.dumps({"site": "north"}))
    path.chmod(0o600)
    with pytest.raises(StorageError, match="damaged"):
        CourierStatus.read(path)
    status = CourierStatus(site="north", time=1000.0, stage="ready", words="connected")
    assert not status.is_stale(1100.0) and status.is_stale(1121.0) and status.is_stale(999.0)


def test_following_studies_goes_on_after_an_error_of_ours(tmp_path: Path, clock: Clock) -> None:
    """It would be deaf for ever, without a word: say, to a channel that another thread has closed."""
    there = world(tmp_path, clock)
    north = there.north
    north.start(pace=Pace(beat_s=0.01, most_s=0.01))
    calls: list[int] = []

    class Client:
        def watch(self, *_: Any, **__: Any) -> Any:
            calls.append(1)
            if len(calls) == 3:
                north.presence._over.set()
            raise ValueError("Cannot invoke RPC on closed channel!")

    north.presence._client = Client  # type: ignore[method-assign, assignment]
    north.presence._connected.set()
    north.presence._follow()
    assert len(calls) == 3
    north.close()


def test_a_closed_channel_is_an_error_of_the_line(tmp_path: Path) -> None:
    client = ControlClient(tmp_path / "socket", status=lambda: TunnelStatus(reason="", words="", since=0.0))
    client._open().close()
    with pytest.raises(ControlError, match="the line was closed"):
        next(client.watch(WatchRequest()))


def test_a_coordinator_cannot_fill_the_disk_with_signed_protocols(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.deploy.inbox.MAX_INBOX", 2)
    there = world(tmp_path, clock)
    north = there.north
    north.presence.inbox.pin(there.hub.signer)
    for number in range(4):
        there.hub.offer(f"study-{number}")
    with there.hub.open():
        status = north.step()
        assert len(list((north.folder / "inbox").glob("*.json"))) == 2
        assert any("no more are taken" in notice for notice in status.notices)
        north.close()
