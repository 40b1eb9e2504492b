"""The door: who is refused before a byte is read, what passes, and what ends live connections; over real sockets."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID

from server.enrolment.authority import Authority
from server.enrolment.gateway import Gateway, GatewayLimits, Upstream
from shared_model.certificates import Member, Role, client_context, end_entity, key_pem, names, new_tls_key, pem, spki
from shared_model.errors import ConfigError
from shared_model.private_files import write_private
from tests.enrolled import (
    DAY,
    HANG_S,
    Clock,
    Coordinator,
    SuperLink,
    in_a_loop,
    post,
    reason_in,
    response,
    rest,
    superlink,
    until,
)  # fmt: skip

ROOT = Path(__file__).resolve().parents[3]
FAST = {"watch_s": 0.02, "linger_s": 0.5}
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
def coordinator(tmp_path: Path) -> Coordinator:
    return Coordinator(tmp_path)


async def dial(door: Gateway, context: ssl.SSLContext) -> Streams:
    return await asyncio.open_connection("127.0.0.1", door.port, ssl=context, server_hostname="localhost")


async def knock(door: Gateway, context: ssl.SSLContext, request: bytes) -> bytes:
    """All that a connection gets to see; "" or a TLS alert where it is refused below."""
    try:
        reader, writer = await dial(door, context)
    except (OSError, ssl.SSLError):
        return b""
    writer.write(request)
    data = await rest(reader)
    writer.transport.abort()
    return data


def forged(
    coordinator: Coordinator, folder: Path, *, authority: Authority | None = None, begins_days: float = 0,
    use: x509.ObjectIdentifier = ExtendedKeyUsageOID.CLIENT_AUTH, record: bool = True,
) -> ssl.SSLContext:  # fmt: skip
    """A certificate for `north`, signed outside the proper ways, and entered into the registry as if it were good."""
    ca = authority or coordinator.authority
    key, member = new_tls_key(), Member("north")
    subject, alternative = names(member)
    begins = datetime.now(UTC) + timedelta(days=begins_days)
    builder = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(ca.certificate.subject)
        .public_key(key.public_key()).serial_number(x509.random_serial_number()).not_valid_before(begins)
        .not_valid_after(begins + timedelta(days=30)).add_extension(alternative, critical=False)
    )  # fmt: skip
    ca_key = ca._key
    certificate = end_entity(builder, key.public_key(), ca_key.public_key(), use).sign(ca_key, hashes.SHA256())
    if record:
        coordinator.registry.certificate_for("north", spki(key.public_key()), lambda: certificate)
    write_private(folder / "forged.pem", key_pem(key) + pem(certificate))
    return client_context(folder / "forged.pem", ca_pem=coordinator.authority.ca_pem)


async def assert_shut(coordinator: Coordinator, link: SuperLink, door: Gateway, context: ssl.SSLContext, request: bytes,
                      reason: str) -> None:  # fmt: skip
    assert await knock(door, context, request) == b""
    await until(lambda: bool(coordinator.events))
    assert coordinator.reasons("refused") == [reason]
    assert (link.connections, coordinator.reasons("admitted")) == (0, [])


# --- refused by TLS ---


@in_a_loop
async def test_without_a_certificate_nobody_comes_in(coordinator: Coordinator, tmp_path: Path) -> None:
    north = coordinator.enrol("north")
    async with superlink(tmp_path) as link, coordinator.gateway(link.upstream) as door:
        await assert_shut(coordinator, link, door, north.enrolling_context(), post(north), "no_certificate")


@in_a_loop
async def test_a_certificate_of_another_authority_is_refused(coordinator: Coordinator, tmp_path: Path) -> None:
    north, other = coordinator.enrol("north"), Authority.create(tmp_path / "other", name="Test consortium")
    context = forged(coordinator, tmp_path, authority=other)
    async with superlink(tmp_path) as link, coordinator.gateway(link.upstream) as door:
        await assert_shut(coordinator, link, door, context, post(north), "foreign")


@pytest.mark.parametrize(("begins", "reason"), [(-31, "expired"), (1, "not_yet_valid")])
@in_a_loop
async def test_out_of_its_time_is_refused(
    coordinator: Coordinator, tmp_path: Path, begins: int, reason: str
) -> None:
    north = coordinator.enrol("north")
    context = forged(coordinator, tmp_path, begins_days=begins)
    async with superlink(tmp_path) as link, coordinator.gateway(link.upstream) as door:
        await assert_shut(coordinator, link, door, context, post(north), reason)


@in_a_loop
async def test_a_server_s_certificate_opens_no_door(coordinator: Coordinator, tmp_path: Path) -> None:
    north = coordinator.enrol("north")
    context = forged(coordinator, tmp_path, use=ExtendedKeyUsageOID.SERVER_AUTH)
    async with superlink(tmp_path) as link, coordinator.gateway(link.upstream) as door:
        await assert_shut(coordinator, link, door, context, post(north), "foreign")


@in_a_loop
async def test_older_tls_and_plain_text_are_refused(coordinator: Coordinator, tmp_path: Path) -> None:
    north = coordinator.enrol("north")
    context = north.context()
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with superlink(tmp_path) as link, coordinator.gateway(link.upstream) as door:
        await assert_shut(coordinator, link, door, context, post(north), "no_tls")
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(post(north))
        assert b"HTTP" not in await rest(reader)
        assert link.connections == 0


@in_a_loop
async def test_only_tls_1_3_and_its_ciphers_are_spoken(coordinator: Coordinator, tmp_path: Path) -> None:
    north = coordinator.enrol("north")
    async with superlink(tmp_path) as link, coordinator.gateway(link.upstream) as door:
        _, writer = await dial(door, north.context())
        spoken = writer.get_extra_info("ssl_object")
        assert spoken.version() == "TLSv1.3"
        assert spoken.cipher()[0] in {
            "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256", "TLS_AES_128_GCM_SHA256"
        }  # fmt: skip
        writer.transport.abort()


# --- refused by the registry ---


async def assert_told(coordinator: Coordinator, link: SuperLink, door: Gateway, context: ssl.SSLContext,
                      request: bytes, reason: str) -> None:  # fmt: skip
    """Refused before anything is read, and told why: a large body that nobody reads does not take the words back."""
    answer = await knock(door, context, request + b"x" * 100_000)
    assert answer.startswith(b"HTTP/1.1 403 MammoFed-" + reason.encode() + b"\r\n") and reason_in(answer) == reason
    assert reason in coordinator.reasons("refused")
    assert (link.connections, coordinator.reasons("admitted")) == (0, [])


@in_a_loop
async def test_a_revoked_site_is_refused_at_once(coordinator: Coordinator, tmp_path: Path) -> None:
    north = coordinator.enrol("north")
    async with superlink(tmp_path) as link, coordinator.gateway(link.upstream) as door:
        coordinator.enrolment.revoke("north")
        await assert_told(coordinator, link, door, north.context(), post(north), "revoked")


@in_a_loop
async def test_revoking_one_site_touches_no_other(coordinator: Coordinator, tmp_path: Path) -> None:
    coordinator.enrol("north")
    south = coordinator.enrol("south")
    async with superlink(tmp_path) as link, coordinator.gateway(link.upstream) as door:
        reader, writer = await dial(door, south.context())
        writer.write(post(south))
        assert (await response(reader))[0] == 200
        coordinator.enrolment.revoke("north")
        writer.write(post(south))
        assert (await response(reader))[0] == 200
        writer.transport.abort()


@in_a_loop
async def test_signed_by_us_but_not_on_record_is_refused(coordinator: Coordinator, tmp_path: Path) -> None:
    north = coordinator.enrol("north")
    context = forged(coordinator, tmp_path, record=False)
    async with superlink(tmp_path) as link, coordinator.gateway(link.upstream) as door:
        await assert_told(coordinator, link, door, context, post(north), "unknown")


@in_a_loop
async def test_another_role_s_door_stays_shut(coordinator: Coordinator, tmp_path: Path) -> None:
    referee = coordinator.enrol("referee", Role.EVALUATOR)
    roles = frozenset({Role.SITE})
    async with superlink(tmp_path) as link, coordinator.gateway(link.upstream, roles=roles) as door:
        await assert_told(coordinator, link, door, referee.context(), post(referee), "wrong_role")


@in_a_loop
async def test_a_door_without_its_registry_is_shut(coordinator: Coordinator, tmp_path: Path) -> None:
    north = coordinator.enrol("north")
    async with superlink(tmp_path) as link, coordinator.gateway(link.upstream) as door:
        coordinator.registry.close()
        await assert_told(coordinator, link, door, north.context(), post(north), "unavailable")


@in_a_loop
async def test_connections_of_a_site_are_counted_and_another_s_are_not(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    north, south = coordinator.enrol("north"), coordinator.enrol("south")
    limits = GatewayLimits(connections_per_site=2, **FAST)
    async with superlink(tmp_path) as link, coordinator.gateway(link.upstream, limits=limits) as door:
        kept = [await dial(door, north.context()) for _ in range(2)]
        await until(lambda: door.connected() == {"north": 2})
        assert reason_in(await knock(door, north.context(), post(north))) == "busy"
        reader, writer = await dial(door, south.context())
        writer.write(post(south))
        assert (await response(reader))[0] == 200
        kept[0][1].transport.abort()
        await until(lambda: door.connected()["north"] == 1)
        again, writing = await dial(door, north.context())
        writing.write(post(north))
        assert (await response(again))[0] == 200
        for end in (writer, writing, kept[1][1]):
            end.transport.abort()


@in_a_loop
async def test_strangers_who_do_not_shake_hands_are_few_and_bounded(coordinator: Coordinator, tmp_path: Path) -> None:
    """By count while none of them ends, and by time where all of them are let in."""
    north = coordinator.enrol("north")
    for limits, reasons in ((GatewayLimits(handshakes=2, handshake_s=HANG_S, **FAST), ["busy", "busy"]),
                            (GatewayLimits(handshakes=4, handshake_s=0.3, **FAST), ["no_tls"] * 4)):  # fmt: skip
        coordinator.events.clear()
        async with superlink(tmp_path) as link, coordinator.gateway(link.upstream, limits=limits) as door:
            silent = [await asyncio.open_connection("127.0.0.1", door.port) for _ in range(4)]
            shut = silent[-len(reasons) :]
            assert [await rest(reader) for reader, _ in shut] == [b""] * len(reasons)
            await until(lambda reasons=reasons: coordinator.reasons("refused") == reasons)
            for _, end in silent:
                end.transport.abort()
            await until(lambda door=door: door._handshakes == 0)
            hello, answer = b"GET /mammofed/hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b""
            while not answer:  # on a busy machine a member's own handshake may be over its time, too
                answer = await knock(door, north.context(), hello)
            assert answer.startswith(b"HTTP/1.1 200")


# --- live connections ---


@in_a_loop
async def test_a_live_connection_ends_when_another_process_revokes(coordinator: Coordinator, tmp_path: Path) -> None:
    north = coordinator.enrol("north")
    code = (
        "import sys, pathlib; from server.enrolment.registry import Registry\n"
        "Registry(pathlib.Path(sys.argv[1])).revoke('north', reason='test')"
    )
    async with superlink(tmp_path) as link, coordinator.gateway(link.upstream) as door:
        reader, writer = await dial(door, north.context())
        writer.write(post(north))
        assert (await response(reader))[0] == 200
        folder = str(coordinator.registry.path.parent)
        await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code, folder], cwd=ROOT, check=True)
        assert await rest(reader) == b""
        assert coordinator.reasons("dropped") == ["revoked"]
        writer.transport.abort()


@in_a_loop
async def test_a_live_connection_ends_by_the_callback_in_the_middle_of_a_message(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    """The watch sleeps for an hour here: the callback alone does it."""
    north = coordinator.enrol("north")
    limits = GatewayLimits(watch_s=3600, linger_s=0.5)
    async with superlink(tmp_path) as link, coordinator.gateway(link.upstream, limits=limits) as door:
        coordinator.enrolment._dropped = door.drop
        reader, writer = await dial(door, north.context())
        request = post(north, body=b"x" * 1000)
        writer.write(request[:-500])
        await until(lambda: link.connections == 1)
        coordinator.enrolment.revoke("north")
        assert await rest(reader) == b""
        assert link.requests == [] and coordinator.reasons("dropped") == ["revoked"]
        writer.transport.abort()


@in_a_loop
async def test_each_request_asks_the_registry_again(coordinator: Coordinator, tmp_path: Path) -> None:
    north = coordinator.enrol("north")
    limits = GatewayLimits(watch_s=3600, linger_s=0.5)
    async with superlink(tmp_path) as link, coordinator.gateway(link.upstream, limits=limits) as door:
        reader, writer = await dial(door, north.context())
        writer.write(post(north))
        assert (await response(reader))[0] == 200
        coordinator.enrolment.revoke("north")
        writer.write(post(north))
        assert await rest(reader) == b""
        assert len(link.requests) == 1
        writer.transport.abort()


@in_a_loop
async def test_a_live_connection_ends_with_its_certificate(tmp_path: Path) -> None:
    coordinator = Coordinator(tmp_path, clock := Clock())
    north = coordinator.enrol("north")
    async with superlink(tmp_path) as link, coordinator.gateway(link.upstream, clock=clock) as door:
        reader, writer = await dial(door, north.context())
        writer.write(post(north))
        assert (await response(reader))[0] == 200
        clock.now += 31 * DAY
        assert await rest(reader) == b""
        assert coordinator.reasons("dropped") == ["expired"]
        writer.transport.abort()


# --- what passes ---


@in_a_loop
async def test_requests_go_through_and_answers_come_back_on_one_connection(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    north = coordinator.enrol("north")
    async with superlink(tmp_path) as link, coordinator.gateway(link.upstream) as door:
        reader, writer = await dial(door, north.context())
        for number in range(3):
            body = bytes([number]) * 200_000
            writer.write(post(north, body=body, mammofed_site="south", X_Forwarded_For="1.1.1.1"))
            assert await response(reader) == (200, b"answer to /v1/fleet/pull-messages")
            request, received = link.requests[-1]
            assert received == body
            headers = dict(request.headers)
            assert headers[b"host"] == b"localhost" and headers[b"content-type"] == b"application/protobuf"
            assert not {b"mammofed-site", b"x-forwarded-for"} & headers.keys()
        assert door.connected() == {"north": 1}
        writer.transport.abort()


@pytest.mark.parametrize(
    "request_of",
    [
        lambda north: post(north, "/v1/control/start-run"), lambda north: post(north, "/v1/runtime/pull-task"),
        lambda north: post(north, "/health"), lambda north: post(north, "/v1/fleet/../control/start-run"),
        lambda north: post(north, "/v1/fleet/pull-messages/"), lambda north: post(north, "/v1/fleet/pull-messages?x=1"),
        lambda north: post(north, "/v1/fleet/%2e%2e/control/x"), lambda north: post(north, "//v1/fleet/get-run"),
        lambda north: post(north, "http://127.0.0.1/v1/control/start-run"), lambda north: post(north, "*"),
        lambda north: post(north).replace(b"POST", b"GET"), lambda north: post(north, flwr_public_key="AAAA"),
        lambda north: post(north, flwr_public_key=None), lambda north: post(north, Expect="100-continue"),
        lambda north: post(north, Upgrade="h2c"), lambda north: post(north, Content_Length=None),
        lambda north: post(north, Content_Length=str(10**12)),
        lambda north: post(north, Content_Length=None, Transfer_Encoding="chunked", body=b"0\r\n\r\n"),
    ],
)  # fmt: skip
@in_a_loop
async def test_nothing_else_passes(coordinator: Coordinator, tmp_path: Path, request_of: Any) -> None:
    north = coordinator.enrol("north")
    async with superlink(tmp_path) as link, coordinator.gateway(link.upstream) as door:
        answer = await knock(door, north.context(), request_of(north))
        assert answer.split()[1] in (b"400", b"403", b"405", b"411", b"413") and b'"words"' in answer
        assert link.connections == 0 and len(coordinator.reasons("denied")) == 1


@in_a_loop
async def test_another_site_s_node_key_does_not_pass(coordinator: Coordinator, tmp_path: Path) -> None:
    north, south = coordinator.enrol("north"), coordinator.enrol("south")
    async with superlink(tmp_path) as link, coordinator.gateway(link.upstream) as door:
        answer = await knock(door, north.context(), post(south))
        assert b"403" in answer and b"node key" in answer and link.connections == 0
        twice = post(north).replace(b"\r\n\r\n", b"\r\nflwr-public-key: AAAA\r\n\r\n", 1)
        assert b"403" in await knock(door, north.context(), twice) and link.connections == 0


@pytest.mark.parametrize(
    "nonsense",
    [b"\x00" * 100, b"POST / HTTP/9\r\n\r\n", b"x" * 100_000, b"GET\r\n\r\n",
     b"POST /v1/fleet/get-run HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"],
)  # fmt: skip
@in_a_loop
async def test_nonsense_ends_the_connection_and_nothing_else(
    coordinator: Coordinator, tmp_path: Path, nonsense: bytes
) -> None:
    north = coordinator.enrol("north")
    async with superlink(tmp_path) as link, coordinator.gateway(link.upstream) as door:
        assert await knock(door, north.context(), nonsense) == b""
        assert link.connections == 0
        reader, writer = await dial(door, north.context())
        writer.write(post(north))
        assert (await response(reader))[0] == 200
        writer.transport.abort()


@in_a_loop
async def test_a_request_hidden_in_another_s_body_stays_body(coordinator: Coordinator, tmp_path: Path) -> None:
    north = coordinator.enrol("north")
    hidden = post(north, "/v1/control/start-run")
    async with superlink(tmp_path) as link, coordinator.gateway(link.upstream) as door:
        reader, writer = await dial(door, north.context())
        writer.write(post(north, body=hidden))
        assert (await response(reader))[0] == 200
        assert [(request.target, body) for request, body in link.requests] == [(b"/v1/fleet/pull-messages", hidden)]
        writer.write(post(north) + hidden)  # pipelined behind one that passes
        assert (await response(reader))[0] == 200
        assert (await response(reader))[0] == 403
        assert len(link.requests) == 2
        writer.transport.abort()


@in_a_loop
async def test_hello_says_who_we_are_and_goes_no_further(coordinator: Coordinator, tmp_path: Path) -> None:
    north = coordinator.enrol("north")
    async with superlink(tmp_path) as link, coordinator.gateway(link.upstream) as door:
        reader, writer = await dial(door, north.context())
        for _ in range(2):
            writer.write(b"GET /mammofed/hello HTTP/1.1\r\nHost: x\r\n\r\n")
            status, body = await response(reader)
            assert status == 200 and json.loads(body)["site"] == "north" and json.loads(body)["role"] == "site"
        assert link.connections == 0
        writer.transport.abort()


@in_a_loop
async def test_without_superlink_the_answer_says_so(coordinator: Coordinator, tmp_path: Path) -> None:
    north = coordinator.enrol("north")
    async with superlink(tmp_path) as link:
        gone = link.upstream
    async with coordinator.gateway(gone) as door:
        answer = await knock(door, north.context(), post(north))
        assert answer.split()[1] == b"502" and b"SuperLink does not answer" in answer


@pytest.mark.parametrize("raw", [b"", b"nonsense\r\n\r\n"])
@in_a_loop
async def test_a_superlink_that_dies_before_its_answer_is_said(
    coordinator: Coordinator, tmp_path: Path, raw: bytes
) -> None:
    north = coordinator.enrol("north")
    async with superlink(tmp_path) as link, coordinator.gateway(link.upstream) as door:
        link.raw = raw
        assert (await knock(door, north.context(), post(north))).split()[1] == b"502"


@in_a_loop
async def test_an_answer_cut_in_the_middle_is_cut_for_the_site_too(coordinator: Coordinator, tmp_path: Path) -> None:
    """Half an answer must never look like a whole one."""
    north = coordinator.enrol("north")
    async with superlink(tmp_path) as link, coordinator.gateway(link.upstream) as door:
        link.raw = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 400
        reader, writer = await dial(door, north.context())
        writer.write(post(north))
        with pytest.raises((asyncio.IncompleteReadError, OSError)):
            await response(reader)
        writer.transport.abort()


@in_a_loop
async def test_a_request_cut_in_the_middle_never_reaches_superlink_whole(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    north = coordinator.enrol("north")
    async with superlink(tmp_path) as link, coordinator.gateway(link.upstream) as door:
        _, writer = await dial(door, north.context())
        writer.write(post(north, body=b"x" * 1000)[:-1])
        await until(lambda: link.received == 999)
        writer.transport.abort()
        await until(lambda: not door.connected())
        assert link.requests == []


@in_a_loop
async def test_a_slow_superlink_slows_the_sender_and_memory_stays_small(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    north, go_on = coordinator.enrol("north"), asyncio.Event()
    size = 80 << 20
    async with superlink(tmp_path) as link, coordinator.gateway(link.upstream) as door:
        link.pause = go_on.wait
        reader, writer = await dial(door, north.context())
        writer.transport.set_write_buffer_limits(high=1 << 16)
        sent = 0

        async def send() -> None:
            nonlocal sent
            writer.write(post(north, body=b"", Content_Length=str(size)))
            while sent < size:
                writer.write(b"x" * (1 << 16))
                sent += 1 << 16
                await writer.drain()

        sending = asyncio.create_task(send())
        stood, before = 0, -1
        while stood < 20:  # until the sender has stood still for a while
            stood, before = (stood + 1, sent) if sent == before else (0, sent)
            await asyncio.sleep(0.01)
        assert not sending.done() and sent < size, "what is on the way is the kernel's buffers and no more"
        go_on.set()
        await sending
        assert (await response(reader))[0] == 200 and link.received == size
        writer.transport.abort()


@in_a_loop
async def test_a_site_that_does_not_read_is_let_go(coordinator: Coordinator, tmp_path: Path) -> None:
    north = coordinator.enrol("north")
    limits = GatewayLimits(stall_s=2.0, **FAST)  # a busy machine may stand still for a moment before the request
    async with superlink(tmp_path) as link, coordinator.gateway(link.upstream, limits=limits) as door:
        link.answer = lambda request, body: b"x" * (64 << 20)
        _, writer = await dial(door, north.context())
        writer.transport.pause_reading()
        writer.write(post(north))
        await until(lambda: len(link.requests) == 1)
        await until(lambda: not door.connected())
        writer.transport.abort()


@in_a_loop
async def test_silence_ends_a_connection(coordinator: Coordinator, tmp_path: Path) -> None:
    north = coordinator.enrol("north")
    limits = GatewayLimits(idle_s=0.1, **FAST)
    async with superlink(tmp_path) as link, coordinator.gateway(link.upstream, limits=limits) as door:
        reader, writer = await dial(door, north.context())
        assert await rest(reader) == b""
        writer.transport.abort()


# --- settings ---


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "localhost", "example.org", "::"])
def test_it_forwards_to_the_loopback_alone(host: str) -> None:
    with pytest.raises(ConfigError, match="loopback"):
        Upstream(host=host, port=8000)


def test_a_context_that_asks_for_no_certificate_is_refused(coordinator: Coordinator) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with pytest.raises(ConfigError, match="certificates"):
        Gateway(context=context, registry=coordinator.registry, upstream=Upstream(port=1), host="127.0.0.1")


@in_a_loop
async def test_a_port_in_use_is_said(coordinator: Coordinator, tmp_path: Path) -> None:
    async with superlink(tmp_path) as link:
        door = coordinator.gateway(link.upstream, port=link.port)
        with pytest.raises(ConfigError, match="cannot listen"):
            async with door:
                pass


def test_the_fleet_s_routes_are_those_of_the_pinned_flower() -> None:
    """Every route of SuperLink is enumerated: what SuperNode calls passes, all others do not."""
    from flwr.superlink.routers.fleet.router import router

    from server.enrolment.http_guard import FLEET_ROUTES

    assert {route.path.encode() for route in router.routes} == FLEET_ROUTES  # type: ignore[attr-defined]
