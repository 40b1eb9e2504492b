"""The site's end of the line, alone and together with the coordinator's; over real sockets."""

# ruff: noqa: SIM117  (the tunnel stands inside the world that it is tested in)

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from client.deploy.identity import SiteIdentity
from client.deploy.proxy import Proxy
from client.deploy.tunnel import Tunnel, TunnelLimits, TunnelStatus
from server.enrolment.gateway import GatewayLimits, Upstream
from shared_model.certificates import Role, der
from shared_model.errors import CertificateError, ConfigError, TunnelError
from simulations.ports import held_ports
from tests.enrolled import DAY, Clock, Coordinator, in_a_loop, post, response, rest, superlink, until

NOWHERE = Upstream(port=9)
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]


@pytest.fixture
def coordinator(tmp_path: Path) -> Coordinator:
    return Coordinator(tmp_path)


def at(identity: SiteIdentity, port: int, **options: Any) -> Tunnel:
    """A tunnel of this site to a port of this machine."""
    settings = identity.settings.model_copy(update={"port": port})
    there = SiteIdentity(identity.folder, settings, clock=options.pop("identity_clock", identity._clock))
    options.setdefault("limits", TunnelLimits(linger_s=0.5))
    return Tunnel(there, **options)


async def dial(tunnel: Tunnel, identity: SiteIdentity) -> Streams:
    """As SuperNode does: TLS that trusts `local-ca.pem`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(cadata=(identity.folder / "local-ca.pem").read_text())
    return await asyncio.open_connection("127.0.0.1", tunnel.port, ssl=context)


@asynccontextmanager
async def serving(talk: Talk, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    server = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@asynccontextmanager
async def proxy() -> AsyncIterator[tuple[int, list[bytes]]]:
    """A proxy as hospitals have it: its port, and the heads that it was sent."""
    heads: list[bytes] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        writer.close()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        host, _, port = heads[-1].split()[1].decode().rpartition(":")
        there = await asyncio.open_connection(host, int(port))
        await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))

    async with serving(talk) as port:
        yield port, heads


async def fails(tunnel: Tunnel, *, reason: str) -> str:
    """`hello` fails for this reason; its words."""
    with pytest.raises((CertificateError, TunnelError)) as raised:
        await tunnel.hello()
    assert raised.value.reason == reason == tunnel.status.reason
    assert tunnel.status.words == str(raised.value) and "to do" in tunnel.status.words
    return tunnel.status.words


# --- all is well ---


@in_a_loop
async def test_supernode_s_requests_go_all_the_way_and_back(coordinator: Coordinator, tmp_path: Path) -> None:
    north = coordinator.enrol("north")
    changes: list[TunnelStatus] = []
    async with superlink(tmp_path) as link, coordinator.gateway(link.upstream) as door:
        async with at(north, door.port, report=changes.append) as tunnel:
            tunnel._heard -= 1000.0
            assert tunnel.silence_s >= 1000.0
            reader, writer = await dial(tunnel, north)
            await until(lambda: tunnel.silence_s < 1000.0)  # who connects says something
            for size in (0, 1, 3_000_000):
                tunnel._heard -= 1000.0
                body = bytes(size)
                link.answer = lambda request, body: body[::-1]
                writer.write(post(north, body=body))
                assert await response(reader) == (200, body)
                assert tunnel.silence_s < 1000.0
            writer.close()
            await until(lambda: not door.connected())
    assert [(change.reason, change.words) for change in changes] == [("", "connected")]


@in_a_loop
async def test_hello_tells_who_the_coordinator_takes_us_for(coordinator: Coordinator, tmp_path: Path) -> None:
    referee = coordinator.enrol("referee", Role.EVALUATOR)
    async with coordinator.gateway(NOWHERE) as door, at(referee, door.port) as tunnel:
        told = await tunnel.hello()
        assert (told["site"], told["role"]) == ("referee", "evaluator")
        assert tunnel.status.words == "connected"


@in_a_loop
async def test_a_renewed_certificate_is_used_without_a_restart(coordinator: Coordinator, tmp_path: Path) -> None:
    north = coordinator.enrol("north")
    old = north.certificate()
    assert old is not None
    async with superlink(tmp_path) as link, coordinator.gateway(link.upstream) as door, at(north, door.port) as tunnel:
        first = await tunnel.hello()
        later = Clock(coordinator.clock() + 8 * DAY)
        aged = SiteIdentity.open(north.folder, clock=later)
        coordinator.authority._clock = later  # only the certificate's end is looked at
        assert coordinator.exchange(aged, peer=der(old))
        coordinator.authority._clock = coordinator.clock
        with pytest.raises(CertificateError):
            await tunnel.hello()  # it is from the future here: so the new one is in use
        assert tunnel.status.reason == "not_yet_valid" and first["site"] == "north"


@in_a_loop
async def test_a_unix_socket_is_for_its_owner_alone(coordinator: Coordinator, tmp_path: Path) -> None:
    north = coordinator.enrol("north")
    path = tmp_path / "t.sock"
    async with superlink(tmp_path) as link, coordinator.gateway(link.upstream) as door:
        async with at(north, door.port, listen=path, tls=False):
            assert path.stat().st_mode & 0o777 == 0o600
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(post(north))
            assert (await response(reader))[0] == 200
            writer.close()
        assert not path.exists()
        path.write_text("something else")
        with pytest.raises(ConfigError, match="something else"):
            async with at(north, door.port, listen=path, tls=False):
                pass


@in_a_loop
async def test_after_supernode_has_closed_its_half_the_answer_still_comes(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    north, go_on = coordinator.enrol("north"), asyncio.Event()
    async with superlink(tmp_path) as link, coordinator.gateway(link.upstream) as door:
        async with at(north, door.port, tls=False, limits=TunnelLimits(linger_s=20)) as tunnel:
            reader, writer = await asyncio.open_connection("127.0.0.1", tunnel.port)
            link.pause = go_on.wait
            writer.write(post(north, Connection="close"))
            writer.write_eof()
            await until(lambda: link.connections == 1)
            go_on.set()
            assert (await response(reader))[0] == 200
            assert await rest(reader) == b"", "and then the connection ends"
            writer.close()


@in_a_loop
async def test_a_silent_half_closed_connection_does_not_stay(coordinator: Coordinator, tmp_path: Path) -> None:
    north = coordinator.enrol("north")
    async with superlink(tmp_path) as link, coordinator.gateway(link.upstream) as door:
        async with at(north, door.port, tls=False, limits=TunnelLimits(linger_s=0.1)) as tunnel:
            reader, writer = await asyncio.open_connection("127.0.0.1", tunnel.port)
            writer.write_eof()
            assert await rest(reader) == b""
            await until(lambda: not door.connected())
            writer.close()


# --- told in words ---


@in_a_loop
async def test_a_revoked_site_reads_so_and_supernode_sees_a_closed_connection(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    north = coordinator.enrol("north")
    changes: list[TunnelStatus] = []
    async with superlink(tmp_path) as link, coordinator.gateway(link.upstream) as door:
        async with at(north, door.port, report=changes.append) as tunnel:
            reader, writer = await dial(tunnel, north)
            writer.write(post(north))
            assert (await response(reader))[0] == 200
            coordinator.enrolment.revoke("north")
            assert await rest(reader) == b""
            writer.close()
            reader, writer = await dial(tunnel, north)
            writer.write(post(north))
            assert await rest(reader) == b"", "a closed connection is tried again; a 403 would end SuperNode"
            writer.close()
            await until(lambda: tunnel.status.reason == "revoked")
            assert "call the coordinator" in tunnel.status.words
            await fails(tunnel, reason="revoked")
    assert changes[-1].reason == "revoked" and len(link.requests) == 1


@pytest.mark.parametrize(("days", "reason"), [(31, "expired"), (-1, "not_yet_valid")])
@in_a_loop
async def test_a_certificate_out_of_its_time_is_said_before_anything_is_sent(
    coordinator: Coordinator, tmp_path: Path, days: int, reason: str
) -> None:
    north = coordinator.enrol("north")
    connections = []
    clock = Clock(coordinator.clock() + days * DAY)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(1)

    async with serving(talk) as port, at(north, port, identity_clock=clock) as tunnel:
        await fails(tunnel, reason=reason)
        reader, writer = await dial(tunnel, north)
        assert await rest(reader) == b""
        writer.close()
    assert connections == []


@in_a_loop
async def test_a_site_that_is_not_confirmed_yet_reads_so(coordinator: Coordinator) -> None:
    north = coordinator.begin("north")
    async with at(north, 9) as tunnel:
        assert "phone" in await fails(tunnel, reason="unconfirmed")


@in_a_loop
async def test_a_site_whose_clock_is_wrong_is_sent_to_look_at_it(tmp_path: Path) -> None:
    past = Coordinator(tmp_path, Clock(Clock().now - 40 * DAY))
    north = past.enrol("north")
    async with past.gateway(NOWHERE) as door, at(north, door.port) as tunnel:
        assert "clock" in await fails(tunnel, reason="closed")
        assert past.reasons("refused") == ["expired"]


@pytest.mark.parametrize("reason", ["expired", "not_yet_valid", "foreign", "no_tls"])
@in_a_loop
async def test_alerts_of_another_front_are_put_into_words(tmp_path: Path, reason: str) -> None:
    """A front that sends TLS alerts, as nginx does: a blocking server of the standard library stands for it."""
    there = Coordinator(tmp_path, Clock(Clock().now + {"expired": -40, "not_yet_valid": 2}.get(reason, 0) * DAY))
    north = there.enrol("north")
    trusted = Coordinator(tmp_path / "other").authority if reason == "foreign" else there.authority
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(there.authority.server_credentials(["localhost"]))
    if reason == "no_tls":
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=trusted.ca_pem)

    def front() -> None:
        connection, _ = listener.accept()
        with context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False) as tls:
            try:
                tls.do_handshake()
            except OSError:
                with contextlib.suppress(OSError):
                    tls.shutdown(socket.SHUT_WR)
                    while socket.socket.recv(tls, 4096):  # closing on unread bytes would take the alert back
                        pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving_one = asyncio.create_task(asyncio.to_thread(front))
        async with at(north, listener.getsockname()[1]) as tunnel:
            if reason == "not_yet_valid":  # the CA itself, and the server's certificate, are not valid yet either
                await fails(tunnel, reason="not_the_coordinator")
            else:
                await fails(tunnel, reason=reason)
        await serving_one


@in_a_loop
async def test_a_site_of_another_coordinator_reads_so(coordinator: Coordinator, tmp_path: Path) -> None:
    stranger = Coordinator(tmp_path / "other").enrol("north")
    (stranger.folder / "ca.pem").write_text(coordinator.authority.ca_pem)
    async with coordinator.gateway(NOWHERE) as door, at(stranger, door.port) as tunnel:
        await fails(tunnel, reason="closed")
        reader, writer = await dial(tunnel, stranger)
        writer.write(post(stranger))
        assert await rest(reader) == b""
        writer.close()
        assert set(coordinator.reasons("refused")) == {"foreign"}


@in_a_loop
async def test_who_is_not_our_coordinator_gets_nothing(coordinator: Coordinator, tmp_path: Path) -> None:
    """Another authority of the same name, another host's certificate, another site's: none of them."""
    north, south = coordinator.enrol("north"), coordinator.enrol("south")
    other = Coordinator(tmp_path / "other")
    ours = coordinator.authority
    contexts = []
    for credentials in (other.authority.server_credentials(["localhost"]), ours.server_credentials(["example.org"]),
                        south.folder / "tls.pem"):  # fmt: skip
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(credentials)
        contexts.append(context)
    got: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.append(await rest(reader))

    for context in contexts:
        async with serving(talk, context) as port, at(north, port) as tunnel:
            await fails(tunnel, reason="not_the_coordinator")
    assert not any(got)


@in_a_loop
async def test_no_way_there_is_said(coordinator: Coordinator) -> None:
    north = coordinator.enrol("north")
    began, ended = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        began.set()
        await rest(reader)
        ended.set()

    async with serving(silent) as port:
        async with at(north, port, limits=TunnelLimits(connect_s=0.2)) as tunnel:
            while not began.is_set():  # on a busy machine the time may be over before anybody was connected
                assert "firewall" in await fails(tunnel, reason="no_answer")
        await ended.wait()
    async with at(north, NOWHERE.port) as tunnel:
        await fails(tunnel, reason="no_connection")

    async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n<html>")
        writer.close()

    async with serving(web) as port, at(north, port) as tunnel:
        await fails(tunnel, reason="no_tls")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(coordinator.authority.server_credentials(["localhost"]))
    async with serving(web, context) as port, at(north, port) as tunnel:
        await fails(tunnel, reason="no_answer")


@in_a_loop
async def test_all_is_well_again_after_an_outage(coordinator: Coordinator, tmp_path: Path) -> None:
    north = coordinator.enrol("north")
    changes: list[str] = []
    with held_ports(1) as (port,):
        async with superlink(tmp_path) as link:
            async with at(north, port, report=lambda status: changes.append(status.reason)) as tunnel:
                for _ in range(2):
                    reader, writer = await dial(tunnel, north)
                    assert await rest(reader) == b""
                    writer.close()
                async with coordinator.gateway(link.upstream, port=port):
                    await tunnel.hello()
    assert changes == ["no_connection", ""], "said once, not at every try"


# --- through the hospital's proxy ---


@in_a_loop
async def test_it_goes_through_the_proxy(coordinator: Coordinator, tmp_path: Path) -> None:
    north = coordinator.enrol("north")
    async with superlink(tmp_path) as link, coordinator.gateway(link.upstream) as door, proxy() as (port, heads):
        through = Proxy.parse(f"http://us%40er:pa%3Ass@127.0.0.1:{port}")
        async with at(north, door.port, proxy=through) as tunnel:
            reader, writer = await dial(tunnel, north)
            writer.write(post(north, body=bytes(500_000)))
            assert (await response(reader))[0] == 200
            writer.close()
    (head,) = heads
    assert head.startswith(f"CONNECT localhost:{door_port(head)} HTTP/1.1".encode())
    assert b"Basic dXNAZXI6cGE6c3M=" in head  # us@er:pa:ss
    assert b"flwr" not in head


def door_port(head: bytes) -> int:
    return int(head.split()[1].rpartition(b":")[2])


@pytest.mark.parametrize(
    ("answer", "reason", "words"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: NTLM\r\n\r\n", "proxy_login", "NTLM"),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "proxy_refused", "allow CONNECT to localhost"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "proxy_broken", "check the proxy"),
        (b"HTTP/1.1 200 OK\r\n\r\nsurprise", "proxy_broken", "check the proxy"),
        (b"", "proxy_broken", "check the proxy"),
        (b"HTTP/1.1 200 " + b"x" * 100_000, "proxy_broken", "check the proxy"),
    ],
    ids=range(6),
)
@in_a_loop
async def test_what_a_proxy_says_instead_is_told(
    coordinator: Coordinator, answer: bytes, reason: str, words: str
) -> None:
    north = coordinator.enrol("north")

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with serving(talk) as port:
        through = Proxy(host="127.0.0.1", port=port, credentials="user:secret")
        async with at(north, 4433, proxy=through) as tunnel:
            told = await fails(tunnel, reason=reason)
            assert words in told and "secret" not in told


@in_a_loop
async def test_a_proxy_that_opens_tls_is_not_the_coordinator(coordinator: Coordinator, tmp_path: Path) -> None:
    north = coordinator.enrol("north")
    box = Coordinator(tmp_path / "box")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(box.authority.server_credentials(["localhost"]))
    got: list[bytes] = []

    async def opened(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.append(await rest(reader))

    async with serving(opened, context) as inspected, proxy() as (port, _):
        async with at(north, inspected, proxy=Proxy(host="127.0.0.1", port=port)) as tunnel:
            assert "exception" in await fails(tunnel, reason="not_the_coordinator")
    assert got in ([], [b""])


@pytest.mark.parametrize("url", ["", "proxy:3128", "https://proxy:3128", "http://proxy", "http://:3128", "socks5://p:1",
                                 "http://proxy:99999", "http://proxy:3128/path", "http://pro xy:3128"])  # fmt: skip
def test_not_every_address_is_a_proxy(url: str) -> None:
    with pytest.raises(ConfigError, match="not an address of a proxy"):
        Proxy.parse(url)


def test_a_password_of_a_proxy_is_not_repeated() -> None:
    assert "secret" not in repr(Proxy.parse("http://user:secret@proxy:3128"))
    with pytest.raises(ConfigError) as raised:
        Proxy.parse("https://user:secret@proxy:3128")
    assert "secret" not in str(raised.value)


# --- cut, slow, too many ---


@in_a_loop
async def test_a_line_cut_in_the_middle_is_cut_at_both_ends(coordinator: Coordinator, tmp_path: Path) -> None:
    north = coordinator.enrol("north")
    cut: list[asyncio.StreamWriter] = []

    async with superlink(tmp_path) as link, coordinator.gateway(link.upstream) as door:

        async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while data := await reader.read(1 << 16):
                    writer.write(data)
            except OSError:
                pass

        async def line(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there = await asyncio.open_connection("127.0.0.1", door.port)
            cut.extend((writer, there[1]))
            await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))

        async with serving(line) as port, at(north, port) as tunnel:
            reader, writer = await dial(tunnel, north)
            writer.write(post(north, body=b"x" * 1000)[:-1])
            await until(lambda: link.received == 999)
            for end in cut:
                end.transport.abort()
            assert await rest(reader) == b""
            await until(lambda: not door.connected())
            assert link.requests == []
            writer.close()
            reader, writer = await dial(tunnel, north)
            writer.write(post(north))
            assert (await response(reader))[0] == 200, "the next connection is whole again"
            writer.close()


@in_a_loop
async def test_a_slow_reader_slows_the_sender(coordinator: Coordinator, tmp_path: Path) -> None:
    north = coordinator.enrol("north")
    size = 80 << 20  # more than all buffers of the kernel on the way
    async with superlink(tmp_path) as link, coordinator.gateway(link.upstream) as door, at(north, door.port) as tunnel:
        link.answer = lambda request, body: bytes(size)
        reader, writer = await dial(tunnel, north)
        writer.write(post(north))
        head = await reader.readuntil(b"\r\n\r\n")
        for _ in range(30):
            await asyncio.sleep(0.01)
            assert link.answered == 0, "somebody on the way has swallowed it all"
        got = 0
        while got < size:
            got += len(await reader.read(1 << 20))
        assert b"200" in head and got == size and link.answered == 1
        writer.close()


@in_a_loop
async def test_silence_ends_a_connection(coordinator: Coordinator, tmp_path: Path) -> None:
    north = coordinator.enrol("north")
    limits = TunnelLimits(idle_s=0.1, linger_s=0.1)
    async with superlink(tmp_path) as link, coordinator.gateway(link.upstream) as door:
        async with at(north, door.port, limits=limits) as tunnel:
            reader, writer = await dial(tunnel, north)
            assert await rest(reader) == b""
            await until(lambda: not door.connected())
            writer.close()


@in_a_loop
async def test_connections_are_bounded(coordinator: Coordinator, tmp_path: Path) -> None:
    north = coordinator.enrol("north")
    async with superlink(tmp_path) as link, coordinator.gateway(link.upstream) as door:
        async with at(north, door.port, limits=TunnelLimits(connections=2, linger_s=0.1)) as tunnel:
            kept = [await dial(tunnel, north) for _ in range(2)]
            await until(lambda: door.connected() == {"north": 2})
            reader, writer = await dial(tunnel, north)
            assert await rest(reader) == b""
            assert door.connected() == {"north": 2}
            for end in (writer, *(end for _, end in kept)):
                end.close()


@in_a_loop
async def test_too_many_at_the_gateway_is_told(coordinator: Coordinator, tmp_path: Path) -> None:
    north = coordinator.enrol("north")
    limits = GatewayLimits(watch_s=0.02, linger_s=0.5, connections_per_site=1)
    async with superlink(tmp_path) as link, coordinator.gateway(link.upstream, limits=limits) as door:
        async with at(north, door.port) as tunnel:
            _, writer = await dial(tunnel, north)
            await until(lambda: door.connected() == {"north": 1})
            assert "second tunnel" in await fails(tunnel, reason="busy")
            writer.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::"])
def test_it_serves_this_machine_alone(coordinator: Coordinator, host: str) -> None:
    with pytest.raises(ConfigError, match="this machine"):
        Tunnel(coordinator.enrol("north"), host=host)


@in_a_loop
async def test_supernode_must_trust_this_site_s_own_loopback_certificate(coordinator: Coordinator) -> None:
    north, south = coordinator.enrol("north"), coordinator.enrol("south")
    async with at(north, 9) as tunnel:
        with pytest.raises(ssl.SSLCertVerificationError):
            await dial(tunnel, south)
