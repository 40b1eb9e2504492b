"""Every RPC of the control service, enumerated from the servers themselves, and who gets nothing from any of them."""

# ruff: noqa: SIM117  (a line stands inside the world that it is tested in)

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from client.deploy.identity import SiteIdentity
from server.control.service import ControlLimits
from server.enrolment.authority import Authority
from server.enrolment.enrol_door import EnrolDoor, EnrolLimits
from server.enrolment.gateway import GatewayLimits
from server.enrolment.peers import STRANGER, ControlUpstream, Peer, Peers, port_of
from shared_model.certificates import CONTROL_ALPN, Role, der, enrolling_server_context
from shared_model.control import SERVICE, DocumentsRequest, LeaveRequest, Refusal, WatchRequest
from shared_model.errors import CertificateError, ConfigError, ControlError, MammoFedError
from tests.controlled import Hub, beat
from tests.enrolled import DAY, HANG_S, Clock

MEMBERS = {"Renew", "Documents", "Beat", "Leave", "Watch"}
STRANGERS = {"Enrol"}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    hub = Hub(tmp_path)
    hub.offer()
    with hub.open():
        yield hub


def rpcs(server: Any) -> dict[str, Any]:
    """Every method that a gRPC server answers, asked from the object that serves."""
    found = {}
    for handler in server._state.generic_handlers:
        found |= dict(handler._method_handlers)
    return found


def call(address: str, method: str, data: bytes = b"{}", *, streams: bool = False) -> Refusal | bytes:
    """One call without anything of ours on the way."""
    with grpc.insecure_channel(address, options=[("grpc.enable_retries", 0)]) as channel:
        try:
            if streams:
                return next(iter(channel.unary_stream(method)(data, timeout=HANG_S)))
            answer: bytes = channel.unary_unary(method)(data, timeout=HANG_S)
            return answer
        except grpc.RpcError as error:
            assert isinstance(error, grpc.Call)
            return Refusal.decode(error.details().encode())


def ask(line: Any, name: str, hub: Hub) -> Any:
    """A good request of each kind."""
    client = line.client
    if name == "Renew":
        return client.renew(b"{}")
    if name == "Documents":
        return client.documents(DocumentsRequest())
    if name == "Beat":
        return client.beat(beat(hub.home.clock))
    if name == "Leave":
        return client.leave(LeaveRequest())
    if name == "Watch":
        return next(iter(client.watch(WatchRequest())))
    return client.enrol(b"{}")


# --- every one of them ---


def test_these_are_all_the_calls_that_there_are(hub: Hub) -> None:
    assert set(rpcs(hub.server.server)) == {f"/{SERVICE}/{name}" for name in MEMBERS}
    assert set(rpcs(hub.server.stranger_server)) == {f"/{SERVICE}/{name}" for name in STRANGERS}


def test_a_process_of_this_machine_gets_nothing_from_any_call(hub: Hub) -> None:
    """The servers listen on the loopback; without a door that vouches for the source port, nobody is anybody."""
    there = hub.server
    for server, upstream in ((there.server, there.members), (there.stranger_server, there.strangers)):
        for method, handler in rpcs(server).items():
            refused = call(f"127.0.0.1:{upstream.port}", method, streams=handler.response_streaming)
            assert isinstance(refused, Refusal) and refused.reason == "unknown_peer", method


def test_the_doors_do_not_lead_to_each_other_s_calls(hub: Hub) -> None:
    there = hub.server
    for upstream, peer, names in ((there.members, STRANGER, MEMBERS), (there.strangers, Peer(b"x"), STRANGERS)):
        for name in names:
            with hub.peers.bound(peer) as bound, Relay(bound, upstream.port) as address:
                refused = call(address, f"/{SERVICE}/{name}", streams=name == "Watch")
                assert isinstance(refused, Refusal) and refused.reason == "wrong_door", name


@pytest.mark.parametrize("name", sorted(MEMBERS))
def test_a_revoked_member_gets_nothing_from_any_call(hub: Hub, name: str) -> None:
    """Also in the moment before the gateway has noticed: the service asks the registry itself."""
    north = hub.home.enrol("north")
    certificate = north.certificate()
    assert certificate is not None
    hub.home.enrolment.revoke("north")
    with hub.peers.bound(Peer(der(certificate))) as bound, Relay(bound, hub.server.members.port) as address:
        refused = call(address, f"/{SERVICE}/{name}", streams=name == "Watch")
    assert isinstance(refused, Refusal) and (refused.kind, refused.reason) == ("certificate", "revoked")


@pytest.mark.parametrize("name", sorted(MEMBERS | STRANGERS))
def test_garbage_is_refused_in_words_by_every_call(hub: Hub, name: str) -> None:
    certificate = hub.home.enrol("north").certificate()
    assert certificate is not None
    upstream = hub.server.members if name in MEMBERS else hub.server.strangers
    peer = Peer(der(certificate)) if name in MEMBERS else STRANGER
    for garbage in (b"", b"\xff" * 100, b"[]", b'{"unknown": 1}', b"{" * 50_000, b"null"):
        with hub.peers.bound(peer) as bound, Relay(bound, upstream.port) as address:
            refused = call(address, f"/{SERVICE}/{name}", garbage, streams=name == "Watch")
        assert isinstance(refused, Refusal) and (refused.reason == "not_a_document" or refused.kind == "enrolment")


@pytest.mark.parametrize("name", sorted(MEMBERS | STRANGERS))
def test_what_is_too_large_is_refused_by_every_call(hub: Hub, name: str) -> None:
    certificate = hub.home.enrol("north").certificate()
    assert certificate is not None
    upstream = hub.server.members if name in MEMBERS else hub.server.strangers
    with hub.peers.bound(Peer(der(certificate)) if name in MEMBERS else STRANGER) as bound:
        with Relay(bound, upstream.port) as address, grpc.insecure_channel(address) as channel:
            with pytest.raises(grpc.RpcError) as refused:
                method = f"/{SERVICE}/{name}"
                if name == "Watch":
                    next(iter(channel.unary_stream(method)(b"x" * (2 << 20), timeout=HANG_S)))
                else:
                    channel.unary_unary(method)(b"x" * (2 << 20), timeout=HANG_S)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]


class Relay:
    """A listener whose one connection goes on over a socket that is bound already; an address for gRPC."""

    def __init__(self, bound: socket.socket, port: int) -> None:
        self._bound, self._port = bound, port

    def __enter__(self) -> str:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._bound.setblocking(True)
        self._bound.connect(("127.0.0.1", self._port))
        threading.Thread(target=self._serve, daemon=True).start()
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __exit__(self, *error: object) -> None:
        for end in (self._listener, self._bound):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        with client, ThreadPoolExecutor(2) as pool:
            for one, other in ((client, self._bound), (self._bound, client)):
                pool.submit(_pump, one, other)


def _pump(one: socket.socket, other: socket.socket) -> None:
    try:
        while data := one.recv(1 << 16):
            other.sendall(data)
        other.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


# --- through the doors, with TLS ---


@contextmanager
def knock(port: int, context: ssl.SSLContext, *, source: str = "127.0.0.1") -> Iterator[ssl.SSLSocket]:
    """A TLS connection of our own to a door."""
    with socket.create_connection(("127.0.0.1", port), source_address=(source, 0)) as plain:
        with context.wrap_socket(plain, server_hostname="localhost") as spoken:
            spoken.settimeout(HANG_S)  # a connection that does not end fails the test
            yield spoken


def doors(hub: Hub, north: SiteIdentity) -> list[tuple[int, ssl.SSLContext]]:
    """Both doors, and what opens them."""
    return [(hub.gateway.port, north.context(alpn=CONTROL_ALPN)),
            (hub.door.port, north.enrolling_context(alpn=CONTROL_ALPN))]  # fmt: skip


def refused(hub: Hub, line: Any) -> list[str]:
    """Why each call of members fails over this line; "" for one that does not."""
    reasons = []
    with line:
        for name in sorted(MEMBERS):
            try:
                ask(line, name, hub)
                reasons.append("")
            except MammoFedError as error:
                reasons.append(str(getattr(error, "reason", error)))
    return reasons


def test_a_member_gets_an_answer_from_every_call(hub: Hub) -> None:
    hub.board.tell("quick", kind="study_started")
    with hub.line(hub.home.enrol("north")) as line:
        for name in sorted(MEMBERS - {"Renew"}):
            assert ask(line, name, hub) is not None


def test_without_a_certificate_no_call_is_answered(hub: Hub) -> None:
    line = hub.line(hub.home.enrol("north"), enrolling=True, enrol_port=hub.gateway.port)
    assert set(refused(hub, line)) <= {"closed", "no_tls", "foreign", "no_connection"}
    assert hub.home.reasons("admitted") == [] and "no_certificate" in hub.home.reasons("refused")


def test_another_coordinator_s_certificate_opens_no_call(hub: Hub, tmp_path: Path) -> None:
    other = Hub(tmp_path / "other")
    north = other.home.enrol("north")
    (north.folder / "ca.pem").write_bytes((hub.home.authority.folder / "ca.pem").read_bytes())
    again = type(north).open(north.folder)
    assert set(refused(hub, hub.line(again))) <= {"closed", "foreign", "no_connection"}
    assert hub.home.reasons("admitted") == [] and "foreign" in hub.home.reasons("refused")


def test_an_expired_certificate_opens_no_call(tmp_path: Path) -> None:
    clock = Clock()
    clock.now -= 31 * DAY
    hub = Hub(tmp_path, clock)
    north = hub.home.enrol("north")
    with hub.open():
        assert set(refused(hub, hub.line(north))) <= {"closed", "expired", "no_connection"}
        assert hub.home.reasons("admitted") == [] and "expired" in hub.home.reasons("refused")
        clock.now += 31 * DAY
        assert set(refused(hub, hub.line(north))) == {"expired"}, "its own clock tells it before it knocks"


def test_a_revoked_member_s_line_is_refused_and_told(hub: Hub) -> None:
    north = hub.home.enrol("north")
    hub.home.enrolment.revoke("north")
    assert set(refused(hub, hub.line(north))) == {"revoked"}


def test_a_role_without_a_place_here_is_refused_and_told(tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    referee = hub.home.enrol("referee", Role.EVALUATOR)
    with hub.open(roles=frozenset({Role.SITE})):
        assert set(refused(hub, hub.line(referee))) == {"wrong_role"}


def test_older_tls_is_spoken_at_neither_door(hub: Hub) -> None:
    north = hub.home.enrol("north")
    for port, context in doors(hub, north):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
        with socket.create_connection(("127.0.0.1", port)) as plain, pytest.raises(ssl.SSLError):
            context.wrap_socket(plain, server_hostname="localhost")


def test_both_doors_speak_tls_1_3_and_its_ciphers(hub: Hub) -> None:
    north = hub.home.enrol("north")
    for port, context in doors(hub, north):
        with knock(port, context) as spoken:
            assert (spoken.version(), spoken.selected_alpn_protocol()) == ("TLSv1.3", CONTROL_ALPN)
            cipher = spoken.cipher()
            assert cipher is not None and cipher[0] in {
                "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256", "TLS_AES_128_GCM_SHA256",
            }  # fmt: skip


def test_the_enrolment_door_talks_about_nothing_else(hub: Hub) -> None:
    """Flower's routes or none: the connection ends, whatever is sent."""
    north = hub.home.enrol("north")
    with knock(hub.door.port, north.enrolling_context()) as spoken:
        spoken.sendall(b"GET /mammofed/hello HTTP/1.1\r\nHost: x\r\n\r\n")
        assert no_more(spoken) == b""
    with hub.line(north, enrolling=True) as line:
        for name in sorted(MEMBERS):
            with pytest.raises(ControlError):
                ask(line, name, hub)


@pytest.mark.parametrize(
    "nonsense",
    [b"\x00" * 1000, b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 5000],
)  # fmt: skip
def test_nonsense_ends_a_connection_and_nothing_else(hub: Hub, nonsense: bytes) -> None:
    north = hub.home.enrol("north")
    for port, context in doors(hub, north):
        with knock(port, context) as spoken:
            spoken.sendall(nonsense)
            no_more(spoken)
    with hub.line(north) as line:
        assert line.client.beat(beat(hub.home.clock)).release


def no_more(spoken: socket.socket) -> bytes:
    """What still comes until the connection ends; it has to end."""
    data = b""
    try:
        while part := spoken.recv(1 << 16):
            data += part
    except (ConnectionError, ssl.SSLError):
        pass
    return data


# --- bounds ---


@pytest.mark.parametrize("bounds", [{"lifetime_s": 1.0}, {"bytes_up": 10_000}, {"idle_s": 1.0}])
def test_a_stranger_has_little_time_and_few_bytes(tmp_path: Path, bounds: dict[str, Any]) -> None:
    """In front of a service that takes everything and never ends a connection."""
    hub = Hub(tmp_path)
    north = hub.home.enrol("north")
    with hub.open(enrol_limits=EnrolLimits(**bounds)), socket.create_server(("127.0.0.1", 0)) as service:
        service.settimeout(HANG_S)
        hub.door._control = ControlUpstream(port=service.getsockname()[1], peers=hub.peers)
        with knock(hub.door.port, north.enrolling_context(alpn=CONTROL_ALPN)) as spoken:
            behind, _ = service.accept()
            with behind:
                behind.settimeout(HANG_S)
                if "bytes_up" in bounds:
                    with contextlib.suppress(OSError):  # it may be cut while this is sent
                        spoken.sendall(b"x" * 100_000)
                assert no_more(spoken) == b""
                assert len(no_more(behind)) <= 10_000


def test_strangers_are_few_at_a_time_and_members_do_not_wait_for_them(tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    north = hub.home.enrol("north")
    with hub.open(enrol_limits=EnrolLimits(connections=2)):
        held = []
        for _ in range(2):
            plain = socket.create_connection(("127.0.0.1", hub.door.port))
            context = north.enrolling_context(alpn=CONTROL_ALPN)
            held.append(context.wrap_socket(plain, server_hostname="localhost"))
            held[-1].settimeout(HANG_S)
            assert held[-1].recv(9), "gRPC's first frame: the connection is all the way through"
        third = socket.create_connection(("127.0.0.1", hub.door.port))
        third.settimeout(HANG_S)
        assert third.recv(1) == b""
        with hub.line(north) as line:
            assert line.client.beat(beat(hub.home.clock)).release
        for end in (*held, third):
            end.close()


def test_one_machine_does_not_keep_the_enrolment_door_shut_for_others(tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    context = hub.home.enrol("north").enrolling_context(alpn=CONTROL_ALPN)
    with hub.open(enrol_limits=EnrolLimits(per_address=1)):
        with knock(hub.door.port, context) as held:
            assert held.recv(9)
            with knock(hub.door.port, context) as second:
                assert no_more(second) == b""
            with knock(hub.door.port, context, source="127.0.0.2") as another:
                assert another.recv(9), "gRPC's first frame"
        assert hub.home.reasons("refused") == ["busy"]


def test_connections_of_one_site_to_the_service_are_few(tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    north, south = hub.home.enrol("north"), hub.home.enrol("south")
    with hub.open(limits=GatewayLimits(watch_s=0.02, linger_s=0.5, control_per_site=1)):
        with hub.line(north) as one, hub.line(north) as two, hub.line(south) as another:
            assert one.client.beat(beat(hub.home.clock)).release
            with pytest.raises(CertificateError) as told:
                two.client.beat(beat(hub.home.clock))
            assert told.value.reason == "busy"
            assert another.client.beat(beat(hub.home.clock)).release


def test_watches_of_one_site_are_few(tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    hub.offer()
    hub.board.tell("quick", kind="study_started")
    north, south = hub.home.enrol("north"), hub.home.enrol("south")
    with hub.open(control_limits=ControlLimits(watches_per_site=1, look_s=0.02)):
        with hub.line(north) as line, hub.line(south) as other:
            kept = line.client.watch(WatchRequest())
            assert next(kept).kind == "study_started"
            with pytest.raises(ControlError) as told:
                next(line.client.watch(WatchRequest()))
            assert told.value.reason == "busy"
            assert next(other.client.watch(WatchRequest())).kind == "study_started"
            kept.close()


def test_a_coordinator_without_a_free_worker_says_so_and_the_line_stays(tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    hub.offer()
    hub.board.tell("quick", kind="study_started")
    north = hub.home.enrol("north")
    with hub.open(threads=1), hub.line(north) as line:
        watch = line.client.watch(WatchRequest())
        assert next(watch).kind == "study_started"
        with pytest.raises(ControlError, match="busy") as told:
            line.client.beat(beat(hub.home.clock))
        assert told.value.reason == "busy"
        hub.board.tell("quick", kind="finished")
        assert next(watch).kind == "finished"
        watch.close()


# --- the map of source ports ---


def test_a_port_is_somebody_s_only_while_its_connection_lives() -> None:
    now = Clock(0.0)
    peers = Peers(clock=now)
    with peers.bound(Peer(b"north")) as bound:
        port = bound.getsockname()[1]
        assert peers.at(port) == Peer(b"north") and not peers.enter(port, Peer(b"south"))
    assert peers.at(port) is None
    assert not peers.enter(port, Peer(b"south")), "it rests, so that nothing late of north is taken for south's"
    now.now += 61
    assert peers.enter(port, Peer(b"south")) and peers.at(port) == Peer(b"south")


@pytest.mark.parametrize(
    ("name", "port"),
    [("ipv4:127.0.0.1:43210", 43210), ("ipv4:127.0.0.1%3A43210", 43210), ("ipv4:127.0.0.2:43210", None),
     ("ipv4:10.0.0.1:43210", None), ("ipv6:[::1]:43210", None), ("unix:", None), ("", None),
     ("ipv4:127.0.0.1:x", None)],
)  # fmt: skip
def test_only_our_loopback_has_ports_that_count(name: str, port: int | None) -> None:
    assert port_of(name) == port


def test_an_enrolment_door_below_tls_1_3_is_refused(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "ca", name="Test")
    context = enrolling_server_context(authority.server_credentials(["localhost"]), ca_pem=authority.ca_pem)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ConfigError, match=r"1\.3"):
        EnrolDoor(context=context, control=ControlUpstream(port=1, peers=Peers()), host="127.0.0.1")
