"""What the control service answers: enrolment, protocols, heartbeats, clocks, events, goodbyes; over real doors."""

# ruff: noqa: SIM117  (a line stands inside the world that it is tested in)

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from client.app import MAX_SKEW_S
from server.control.roll import Present
from server.control.service import ControlLimits
from server.enrolment.gateway import GatewayLimits
from shared_model.certificates import Role, spki
from shared_model.control import (
    COURIER_BEHIND_S,
    BeatRequest,
    DocumentsRequest,
    LeaveRequest,
    Refusal,
    TrainerState,
    WatchRequest,
    plain,
)  # fmt: skip
from shared_model.enrolment import EnrolReply, decode
from shared_model.errors import (
    CertificateError,
    ConfigError,
    ControlError,
    EnrolmentError,
    MammoFedError,
    StorageError,
)  # fmt: skip
from shared_model.signed_protocol import SignedProtocol
from tests.controlled import RELEASE, Hub, beat
from tests.enrolled import DAY, HANG_S, Clock, words


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    hub = Hub(tmp_path)
    with hub.open():
        yield hub


def soon(true: Callable[[], bool]) -> None:
    """Wait for something that another thread brings about."""
    deadline = time.monotonic() + HANG_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# --- enrolment and renewal ---


def test_a_site_enrols_through_the_door_and_learns_whose_signatures_to_believe(hub: Hub) -> None:
    north = hub.home.begin("north")
    with hub.line(north, enrolling=True) as line:
        request = north.request() or b""
        assert decode(line.client.enrol(request), EnrolReply) == EnrolReply(status="pending")
        hub.home.enrolment.confirm("north", north.words(words))
        reply = decode(line.client.enrol(request), EnrolReply)
    assert (reply.status, reply.coordinator) == ("issued", hub.signer)
    assert north.accept(reply.encode())
    with hub.line(north) as line:
        assert line.client.beat(beat(hub.home.clock)).release == RELEASE


def test_who_has_no_invitation_is_told_so(hub: Hub, tmp_path: Path) -> None:
    other = Hub(tmp_path / "other").home.begin("north")
    with hub.line(hub.home.enrol("south"), enrolling=True) as line:
        with pytest.raises(EnrolmentError, match="not known"):
            line.client.enrol(other.request() or b"")


def test_a_certificate_is_renewed_over_the_line(tmp_path: Path) -> None:
    clock = Clock()
    clock.now -= 8 * DAY
    hub = Hub(tmp_path, clock)
    north = hub.home.enrol("north")
    clock.now += 8 * DAY
    with hub.open(), hub.line(north) as line:
        before = north.certificate()
        reply = line.client.renew(north.request() or b"")
        assert decode(reply, EnrolReply).coordinator == hub.signer
        assert north.accept(reply) and north.certificate() != before
        line.client.reset()
        assert line.client.beat(beat(clock)).release == RELEASE


def test_no_member_renews_with_an_invitation_or_enrols_with_a_renewal(hub: Hub) -> None:
    north, south = hub.home.enrol("north"), hub.home.begin("south")
    with hub.line(north) as line, hub.line(north, enrolling=True) as stranger:
        with pytest.raises(EnrolmentError, match="not a document"):
            line.client.renew(south.request() or b"")
        with pytest.raises(EnrolmentError, match="not a document"):
            stranger.client.enrol(b'{"kind":"renew","csr":"","proof":""}')


# --- protocols ---


def test_a_site_gets_the_protocols_that_name_it_and_no_others(hub: Hub) -> None:
    signed, second = hub.offer("quick"), hub.offer("second")
    north, stranger, referee = (hub.home.enrol(name, role) for name, role in
                                (("north", Role.SITE), ("lakes", Role.SITE), ("referee", Role.EVALUATOR)))  # fmt: skip
    with hub.line(north) as line:
        reply = line.client.documents(DocumentsRequest())
        assert reply.offered == (signed.sha256, second.sha256)
        for file, one in zip(reply.protocols, (signed, second), strict=True):
            assert SignedProtocol.from_json(file, coordinator=hub.signer, release=RELEASE) == one
        again = line.client.documents(DocumentsRequest(have=(signed.sha256,)))
        assert again.offered == reply.offered and again.protocols == (second.to_json().encode(),)
    with hub.line(stranger) as line:
        nothing = line.client.documents(DocumentsRequest())
        assert (nothing.offered, nothing.protocols, nothing.members) == ((), (), ())
    with hub.line(referee) as line:
        assert len(line.client.documents(DocumentsRequest()).protocols) == 2


def test_a_site_learns_the_node_keys_of_those_it_trains_with(hub: Hub) -> None:
    """So that `review` shows their six words; of who is not confirmed, or in no study of its own, nothing."""
    hub.offer()
    north, south = hub.home.enrol("north"), hub.home.enrol("south")
    referee = hub.home.enrol("referee", Role.EVALUATOR)
    hub.home.enrol("lakes")
    hub.home.exchange(hub.home.begin("east"))
    with hub.line(north) as line:
        members = line.client.documents(DocumentsRequest()).members
    assert {member.site: (member.role, member.node) for member in members} == {
        "south": (Role.SITE, south.node_spki), "referee": (Role.EVALUATOR, referee.node_spki),
    }  # fmt: skip
    assert words(members[0].node) in {words(spki(key)) for key in (south._node_key().public_key(),
                                                                   referee._node_key().public_key())}  # fmt: skip


def test_many_protocols_come_in_several_answers(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    signed = [hub.offer(f"study-{number}") for number in range(5)]
    monkeypatch.setattr("server.control.service.REPLY_BYTES", 2 * len(signed[0].to_json()) + 10)
    have: list[str] = []
    with hub.line(hub.home.enrol("north")) as line:
        for count in (2, 2, 1, 0):
            reply = line.client.documents(DocumentsRequest(have=tuple(have)))
            assert len(reply.protocols) == count
            have += [SignedProtocol.from_json(file, coordinator=hub.signer, release=RELEASE).sha256
                     for file in reply.protocols]  # fmt: skip
    assert have == [one.sha256 for one in signed]


# --- heartbeats ---


def test_a_heartbeat_is_seen_in_memory_and_in_the_file(hub: Hub, tmp_path: Path) -> None:
    approved = hub.offer().sha256
    with hub.line(hub.home.enrol("north")) as line:
        reply = line.client.beat(beat(hub.home.clock, approved=(approved, "ab" * 32, approved)))
    assert (reply.time, reply.release, reply.notices) == (hub.home.clock(), RELEASE, ())
    sign = hub.roll.present()["north"]
    assert (sign.time, sign.trainer.up, sign.trainer.device, sign.approved, sign.words) == (
        hub.home.clock(), True, "cpu", (approved,), "")  # fmt: skip
    soon((tmp_path / "present.json").exists)
    assert Present.read(tmp_path / "present.json").members["north"] == sign
    assert (tmp_path / "present.json").stat().st_mode & 0o777 == 0o600


def test_the_roll_writes_news_alone_and_tries_again_after_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(tmp_path)
    member = hub.home.enrol("north").member
    hub.roll.seen(member, beat(hub.home.clock), offered=())
    hub.roll.write()
    (tmp_path / "present.json").unlink()
    hub.roll.write()
    assert not (tmp_path / "present.json").exists(), "nothing has changed"
    hub.roll.seen(member, beat(hub.home.clock), offered=())

    def full(*_: object) -> None:
        raise StorageError("no room")

    with monkeypatch.context() as patch, pytest.raises(StorageError):
        patch.setattr("server.control.roll.write_private", full)
        hub.roll.write()
    hub.roll.write()
    assert Present.read(tmp_path / "present.json").members.keys() == {"north"}
    hub.roll.forget("north")
    hub.roll.write()
    assert Present.read(tmp_path / "present.json").members == {}


@pytest.mark.parametrize("off", [5.5, 3600.0, -301.0, -1e6])
def test_a_wrong_clock_is_refused_by_name_and_shown_to_the_coordinator(hub: Hub, off: float) -> None:
    with hub.line(hub.home.enrol("north")) as line:
        with pytest.raises(ControlError, match="clock is wrong") as told:
            line.client.beat(beat(lambda: hub.home.clock() + off))
        assert told.value.reason == "clock" and "NTP" in str(told.value) and "at most 5 s ahead" in str(told.value)
        assert f"{abs(off):.1f} s {'ahead of' if off > 0 else 'behind'} the coordinator's" in str(told.value)
        assert "clock is wrong" in hub.roll.present()["north"].words
        line.client.beat(beat(hub.home.clock))
        assert hub.roll.present()["north"].words == ""


@pytest.mark.parametrize("off", [4.9, 0.0, -4.9])
def test_a_clock_that_flower_takes_is_taken(hub: Hub, off: float) -> None:
    with hub.line(hub.home.enrol("north")) as line:
        assert line.client.beat(beat(lambda: hub.home.clock() + off)).notices == ()


@pytest.mark.parametrize("off", [-5.5, -299.0])
def test_a_clock_behind_which_the_courier_stops_is_a_notice(hub: Hub, off: float) -> None:
    assert COURIER_BEHIND_S == MAX_SKEW_S, "the shim imports nothing that it need not, so it has the number once more"
    with hub.line(hub.home.enrol("north")) as line:
        (notice,) = line.client.beat(beat(lambda: hub.home.clock() + off)).notices
    assert f"{-off:.0f} s behind" in notice and "NTP" in notice


def test_another_release_is_a_notice(hub: Hub) -> None:
    with hub.line(hub.home.enrol("north")) as line:
        (notice,) = line.client.beat(beat(hub.home.clock, release="0.0.9")).notices
    assert "0.0.9" in notice and RELEASE in notice


def test_times_and_texts_out_of_bounds_are_no_document() -> None:
    good = beat(lambda: 1.0).encode()
    for old, new in ((b'"time":1.0', b'"time":NaN'), (b'"time":1.0', b'"time":-1'), (b'"cpu"', b'"%s"' % (b"x" * 101)),
                     (b'"approved":[]', b'"approved":["x"]'), (b'"logs":[]', b'"logs":[1]'),
                     (b'"up":true', b'"up":"yes"')):  # fmt: skip
        assert old in good
        with pytest.raises(ControlError, match="not a BeatRequest"):
            BeatRequest.decode(good.replace(old, new))


# --- events ---


def test_a_watch_tells_what_was_and_what_comes_from_where_the_site_is(hub: Hub) -> None:
    hub.offer()
    for number in range(3):
        hub.board.tell("quick", kind="round_opened", round=number + 1)
    with hub.line(hub.home.enrol("north")) as line:
        watch = line.client.watch(WatchRequest(after={"quick": 1}))
        assert [next(watch).number for _ in range(2)] == [2, 3]
        hub.board.tell("quick", kind="finished", text="all rounds", data={"status": "COMPLETE"})
        last = next(watch)
        assert (last.number, last.kind, last.text, last.data) == (4, "finished", "all rounds", {"status": "COMPLETE"})
        watch.close()


def test_of_another_site_a_watch_tells_that_something_happened_and_nothing_more(hub: Hub) -> None:
    hub.offer()
    for site in ("south", "north", "referee"):
        hub.board.tell("quick", kind="site_replied", code="late", site=site, text="its words", data={"loss": 0.25})
    with hub.line(hub.home.enrol("north")) as line:
        watch = line.client.watch(WatchRequest())
        south, north, referee = (next(watch) for _ in range(3))
        watch.close()
    assert (south.site, south.code, south.text, south.data) == ("south", "late", "", {})
    for own in (north, referee):
        assert (own.text, own.data) == ("its words", {"loss": 0.25})


def test_numbers_that_json_does_not_have_and_long_texts_break_no_watch(hub: Hub) -> None:
    hub.offer()
    data = {"loss": float("nan"), "norm": float("inf"), "contributed": 3, "words": "x" * 5000}
    hub.board.tell("quick", kind="alarm", text="y" * 5000, code="z" * 500, site="w" * 500, data=data)
    with hub.line(hub.home.enrol("north")) as line:
        watch = line.client.watch(WatchRequest())
        event = next(watch)
        watch.close()
    assert event.data == {"loss": "nan", "norm": "inf", "contributed": 3.0, "words": "x" * 300}
    assert (len(event.text), len(event.code), len(event.site or "")) == (1000, 60, 63)


def test_a_watch_tells_nothing_of_studies_that_do_not_name_the_site(hub: Hub) -> None:
    hub.offer()
    hub.board.tell("quick", kind="study_started")
    with hub.line(hub.home.enrol("lakes")) as line:
        seen: list[object] = []

        def look() -> None:
            with contextlib.suppress(ControlError):
                seen.extend(line.client.watch(WatchRequest()))

        looking = threading.Thread(target=look)
        looking.start()
        soon(lambda: hub.service._watches["lakes"] == 1)
        line.client.reset()
        looking.join(HANG_S)
    assert seen == []


@pytest.mark.parametrize("by", ["gateway", "service"])
def test_a_watch_ends_when_its_site_is_revoked(tmp_path: Path, by: str) -> None:
    """By the gateway, which drops the connection; and by the service itself, should no gateway do it."""
    hub = Hub(tmp_path)
    hub.offer()
    hub.board.tell("quick", kind="study_started")
    north, south = hub.home.enrol("north"), hub.home.enrol("south")
    watch_s, look_s = (0.02, 3600.0) if by == "gateway" else (3600.0, 0.02)
    with hub.open(limits=GatewayLimits(watch_s=watch_s, linger_s=0.5), control_limits=ControlLimits(look_s=look_s)):
        with hub.line(north) as line, hub.line(south) as other:
            watch, going_on = line.client.watch(WatchRequest()), other.client.watch(WatchRequest())
            assert next(watch).number == next(going_on).number == 1
            hub.home.enrolment.revoke("north")
            with pytest.raises(MammoFedError) as ended:
                next(watch)
            if by == "service":
                assert isinstance(ended.value, CertificateError) and ended.value.reason == "revoked"
                hub.board.tell("quick", kind="finished")
                assert next(going_on).kind == "finished"
            else:
                assert hub.home.reasons("dropped") == ["revoked"]
                assert other.client.beat(beat(hub.home.clock)).release
            going_on.close()
        assert hub.service._watches["north"] == 0 or by == "gateway"


def test_a_connection_ends_with_its_certificate(tmp_path: Path) -> None:
    clock = Clock()
    hub = Hub(tmp_path, clock)
    hub.offer()
    hub.board.tell("quick", kind="study_started")
    north = hub.home.enrol("north")
    with hub.open(), hub.line(north) as line:
        watch = line.client.watch(WatchRequest())
        next(watch)
        clock.now += 31 * DAY
        with pytest.raises(MammoFedError):
            next(watch)
        soon(lambda: hub.home.reasons("dropped") == ["expired"])


def test_a_coordinator_that_ends_ends_its_watches(tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    hub.offer()
    hub.board.tell("quick", kind="study_started")
    north = hub.home.enrol("north")
    with hub.open():
        line = hub.line(north).__enter__()
        watch = line.client.watch(WatchRequest())
        next(watch)
        hub.service.stopping.set()
        assert list(watch) == [], "an end, not an error"
        line.__exit__(None, None, None)


# --- goodbye ---


def test_who_leaves_is_told_off_the_roll_and_to_the_daemon(hub: Hub) -> None:
    with hub.line(hub.home.enrol("north")) as line:
        line.client.beat(beat(hub.home.clock))
        line.client.leave(LeaveRequest(reason="the study\x1b[2J is over"))
        soon(lambda: bool(hub.gone))
    assert hub.gone == [("north", "the study?[2J is over")] and hub.roll.present() == {}


# --- what goes wrong ---


def test_a_disk_that_refuses_is_said_without_our_paths(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise StorageError("/srv/secret could not be written")

    with hub.line(hub.home.enrol("north")) as line:
        monkeypatch.setattr(hub.service._witness, "exchange", full)
        with pytest.raises(ControlError, match="disk refuses") as told:
            line.client.beat(beat(hub.home.clock))
    assert told.value.reason == "storage" and "secret" not in str(told.value)


def test_a_bug_of_ours_is_said_without_its_words(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("password=hunter2")

    with hub.line(hub.home.enrol("north")) as line:
        monkeypatch.setattr(hub.service._witness, "exchange", broken)
        with pytest.raises(ControlError, match="failed on this call") as told:
            line.client.beat(beat(hub.home.clock))
        assert "hunter2" not in str(told.value)
        monkeypatch.undo()
        assert line.client.beat(beat(hub.home.clock)).release, "and the next call is answered"


def test_after_an_outage_the_line_is_there_again(tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    north = hub.home.enrol("north")
    with hub.open():
        line = hub.line(north)
        port = hub.gateway.port
    with line:
        with pytest.raises(ControlError) as told:
            line.client.beat(beat(hub.home.clock))
        assert told.value.reason == "no_connection"
        with hub.open(port=port):
            assert line.client.beat(beat(hub.home.clock)).release
        with pytest.raises(ControlError):
            line.client.beat(beat(hub.home.clock))
        with hub.open(port=port):
            assert line.client.beat(beat(hub.home.clock)).release


@pytest.mark.parametrize(
    "error",
    [EnrolmentError("a", found=1, expected="b", remedy="c"), CertificateError("a", reason="revoked", remedy="c"),
     ControlError("a", reason="clock", found="x" * 2000), ConfigError("a")],
)  # fmt: skip
def test_a_refusal_comes_back_as_the_error_that_it_was(error: MammoFedError) -> None:
    again = Refusal.decode(Refusal.of(error).encode()).error()
    assert type(again) is (type(error) if not isinstance(error, ConfigError) else ControlError)
    assert (again.problem, getattr(again, "reason", "")) == (error.problem, getattr(error, "reason", ""))
    assert str(again.found or "") == str(error.found or "")[:400] and again.remedy == error.remedy


def test_words_of_another_party_do_not_draw_on_a_terminal() -> None:
    assert plain("a\x1b[31m\nb\u202e\tc") == "a?[31m b? c" and len(plain("x" * 1000)) == 400
    assert TrainerState.decode(b'{"up":true,"device":"cuda"}').device == "cuda"
