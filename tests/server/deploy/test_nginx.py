"""nginx in the gateway's place: a real one, and what it lets through. CI installs it (.ci/run)."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509

from client.deploy.identity import SiteIdentity
from client.deploy.line import measure
from client.deploy.tunnel import Tunnel
from server.deploy.home import CoordinatorFile, CoordinatorHome
from server.deploy.nginx import REFRESH_S, NginxFront, crl, lists
from server.enrolment.authority import Authority
from server.enrolment.http_guard import FLEET_ROUTES, MAX_TRANSFER_BYTES
from shared_model.certificates import CONTROL_ALPN, der
from shared_model.errors import CertificateError, ConfigError, TunnelError
from shared_model.private_files import write_private
from simulations.ports import held_ports
from tests.enrolled import DAY, Clock, Coordinator, SuperLink, in_a_loop, post, rest, superlink, until
from tests.server.enrolment.test_gateway import forged

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed (nginx-light, libnginx-mod-stream)")
PULL = "/v1/fleet/pull-messages"


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A Unix socket's path is short, and pytest's are not."""
    with tempfile.TemporaryDirectory(prefix="mf-") as folder:
        yield Path(folder)


@dataclass
class Front:
    """nginx before a SuperLink that is none, and the gateway behind it for what nginx does not read."""

    coordinator: Coordinator
    home: CoordinatorHome
    nginx: NginxFront
    link: SuperLink
    port: int
    process: asyncio.subprocess.Process

    def refresh(self) -> None:
        assert self.nginx.step(self.coordinator.registry)

    async def ask(self, identity: SiteIdentity, request: bytes, *, context: ssl.SSLContext | None = None) -> bytes:
        """All that a connection gets to see for a request."""
        reader, writer = await self.dial(context or identity.context())
        writer.write(request)
        data = await rest(reader)
        writer.transport.abort()
        return data

    async def dial(self, context: ssl.SSLContext) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=context, server_hostname="localhost")

    async def reloaded(self) -> None:
        """Refresh, and wait until the workers with the old lists have gone."""
        old = await self.workers()
        self.refresh()
        while old & await self.workers():
            await asyncio.sleep(0.05)

    async def workers(self) -> set[str]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return set(children.split())


@asynccontextmanager
async def fronted(folder: Path, *, clock: Clock | None = None) -> AsyncIterator[Front]:
    coordinator = Coordinator(folder / "hub", clock)
    async with superlink(folder) as link:
        with held_ports(4) as (port, enrol_port, inner, inner_enrol):
            settings = CoordinatorFile(name="hub", title="Hub", hosts=("localhost", "127.0.0.1"), listen="127.0.0.1",
                                       port=inner, enrol_port=inner_enrol, link_port=link.port)  # fmt: skip
            home = CoordinatorHome.create(folder / "hub", settings)
            pem = (folder / "superlink.pem").read_bytes()
            write_private(home.link / "link.pem", pem[pem.index(b"-----BEGIN CERTIFICATE") :])
            front = NginxFront(home, clock=coordinator.clock)
            path = front.write(listen="127.0.0.1", port=port, enrol_port=enrol_port)
            process = await asyncio.create_subprocess_exec(str(NGINX), "-c", str(path), "-g", "daemon off;")
            try:
                while not (front.folder / "nginx.pid").exists() or not _listens(port):
                    assert process.returncode is None, (front.folder / "error.log").read_text()
                    await asyncio.sleep(0.02)
                yield Front(coordinator, home, front, link, port, process)
            finally:
                if process.returncode is None:
                    process.terminate()
                await process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def reason(data: bytes) -> str:
    assert data.startswith(b"HTTP/1.1 403"), data[:200]
    return data.lower().partition(b"mammofed-reason: ")[2].partition(b"\r")[0].decode()


# --- real nginx ---


@needs_nginx
@in_a_loop
async def test_a_member_passes_on_every_fleet_route_and_on_no_other(short_path: Path) -> None:
    async with fronted(short_path) as there:
        north = there.coordinator.enrol("north", port=there.port)
        await there.reloaded()
        for route in sorted(FLEET_ROUTES):
            assert b"answer to " + route in await there.ask(north, post(north, route.decode(), Connection="close"))
        assert len(there.link.requests) == len(FLEET_ROUTES)
        sent, _ = there.link.requests[0]
        assert [v for n, v in sent.headers if n == b"flwr-public-key"] == [
            line.partition(b": ")[2] for line in post(north).split(b"\r\n") if line.startswith(b"flwr-public-key")
        ]  # fmt: skip
        for wrong in ("/v1/control/start-run", "/v1/runtime/pull-task", "/", "/health", f"{PULL}/", f"/{PULL}",
                      "/v1/fleet/%70ull-messages", f"{PULL}?x=1", "/v1/fleet/../control/start-run", f"{PULL}#x",
                      "/v1//fleet/pull-messages", "/filler", "/nginx.conf", "/v1/fleet/"):  # fmt: skip
            status = (await there.ask(north, post(north, wrong, Connection="close"))).split(b" ")[1]
            assert status in (b"400", b"403", b"405", b"404"), wrong
        assert len(there.link.requests) == len(FLEET_ROUTES)


@needs_nginx
@in_a_loop
async def test_who_is_not_admitted_reaches_nothing(short_path: Path) -> None:
    async with fronted(short_path) as there:
        north = there.coordinator.enrol("north", port=there.port)
        other = Authority.create(short_path / "other", name="Test consortium")
        (short_path / "f").mkdir()
        foreign = forged(there.coordinator, short_path / "f", authority=other, record=False)
        expired = forged(there.coordinator, short_path / "f", begins_days=-31, record=False)
        unknown = forged(there.coordinator, short_path / "f", record=False)
        request = post(north, Connection="close")
        assert reason(await there.ask(north, request)) == "unknown"  # nginx has not been told yet
        await there.reloaded()
        assert reason(await there.ask(north, request, context=north.enrolling_context())) == "foreign"
        assert reason(await there.ask(north, request, context=foreign)) == "foreign"
        assert reason(await there.ask(north, request, context=expired)) == "expired"
        assert there.link.requests == []
        assert b"answer to" in await there.ask(north, request, context=unknown)  # signed by our CA for a member: the
        # registry, which nginx does not ask, would refuse it; only whoever has the CA's key can make such a one


@needs_nginx
@in_a_loop
async def test_tls_is_1_3_and_nothing_older(short_path: Path) -> None:
    async with fronted(short_path) as there:
        north = there.coordinator.enrol("north", port=there.port)
        await there.reloaded()
        old = north.context()
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises((ssl.SSLError, OSError)):
            await there.dial(old)
        _, writer = await there.dial(north.context())
        assert writer.get_extra_info("ssl_object").version() == "TLSv1.3"
        writer.transport.abort()


@needs_nginx
@in_a_loop
async def test_another_site_s_node_key_is_refused(short_path: Path) -> None:
    async with fronted(short_path) as there:
        north, south = (there.coordinator.enrol(name, port=there.port) for name in ("north", "south"))
        await there.reloaded()
        for request in (post(south, Connection="close"), post(north, Connection="close", flwr_public_key=None)):
            assert (await there.ask(north, request)).startswith(b"HTTP/1.1 403")
        assert there.link.requests == []


@needs_nginx
@in_a_loop
async def test_a_revoked_site_s_live_connection_ends_and_the_others_come_back(short_path: Path) -> None:
    async with fronted(short_path) as there:
        north, south = (there.coordinator.enrol(name, port=there.port) for name in ("north", "south"))
        await there.reloaded()
        reader, writer = await there.dial(north.context())
        writer.write(post(north))
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        there.coordinator.enrolment.revoke("north")
        await there.reloaded()
        assert not (await rest(reader)).count(b"HTTP/1.1")  # the rest of the first answer, and the end
        writer.transport.abort()
        assert reason(await there.ask(north, post(north, Connection="close"))) == "revoked"
        assert b"answer to" in await there.ask(south, post(south, Connection="close"))
        with pytest.raises(CertificateError) as refused:
            await Tunnel(SiteIdentity(north.folder, north.settings, clock=there.coordinator.clock)).hello()
        assert refused.value.reason == "revoked"


@needs_nginx
@in_a_loop
async def test_a_superseded_certificate_is_refused_after_two_renewals(short_path: Path) -> None:
    clock = Clock()
    async with fronted(short_path, clock=clock) as there:
        north = there.coordinator.enrol("north", port=there.port)
        first = north.context()
        for _ in range(2):
            clock.now += 1.0
            north._clock = lambda: clock.now + 10 * DAY
            certificate = north.certificate()
            assert certificate is not None
            there.coordinator.exchange(north, peer=der(certificate))
        north._clock = clock
        await there.reloaded()
        request = post(north, Connection="close")
        assert b"answer to" in await there.ask(north, request)
        assert reason(await there.ask(north, request, context=first)) == "revoked"


@needs_nginx
@in_a_loop
async def test_doctor_measures_through_it(short_path: Path) -> None:
    async with fronted(short_path) as there:
        north = there.coordinator.enrol("north", port=there.port)
        await there.reloaded()
        line = await measure(Tunnel(north))
        assert (line.hello["site"], line.hello["role"]) == ("north", "site")
        assert line.ahead_s is not None and abs(line.ahead_s) < 5
        assert line.up is not None and line.down is not None
        head = f"POST /mammofed/transfer HTTP/1.1\r\nHost: x\r\nContent-Length: {MAX_TRANSFER_BYTES + 1}\r\n\r\n"
        assert (await there.ask(north, head.encode())).startswith(b"HTTP/1.1 413")


@needs_nginx
@in_a_loop
async def test_the_control_service_s_bytes_go_through_to_the_gateway_unread(short_path: Path) -> None:
    async with fronted(short_path) as there:
        north = there.coordinator.enrol("north", port=there.port)
        door = there.coordinator.gateway(there.link.upstream, port=there.home.settings.port)
        async with door:
            _, writer = await there.dial(north.context(alpn=CONTROL_ALPN))
            assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == CONTROL_ALPN
            await until(lambda: any(event.site == "north" for event in there.coordinator.events))
            writer.transport.abort()
        log = (there.nginx.folder / "access.log").read_text()
        assert "north" not in log


@needs_nginx
@in_a_loop
async def test_a_crl_that_ran_out_shuts_everybody_out(short_path: Path) -> None:
    clock = Clock(time.time() - 8 * DAY)
    async with fronted(short_path, clock=clock) as there:
        north = there.coordinator.enrol("north", port=there.port)
        await there.reloaded()
        assert reason(await there.ask(north, post(north, Connection="close"))) == "unavailable"
        clock.now += 8 * DAY
        await there.reloaded()  # a day has passed, so the daemon's step makes a new one by itself
        assert b"answer to" in await there.ask(north, post(north, Connection="close"))


@needs_nginx
@in_a_loop
async def test_large_messages_pass_and_too_large_ones_do_not(short_path: Path) -> None:
    async with fronted(short_path) as there:
        north = there.coordinator.enrol("north", port=there.port)
        await there.reloaded()
        assert b"answer to" in await there.ask(north, post(north, body=bytes(32 << 20), Connection="close"))
        assert there.link.received == 32 << 20
        request = post(north, Content_Length=str((160 << 20) + 1), Connection="close")
        assert (await there.ask(north, request)).startswith(b"HTTP/1.1 413")


# --- without it ---


def test_lists_name_confirmed_members_alone_and_the_crl_the_others(tmp_path: Path) -> None:
    hub = Coordinator(tmp_path)
    hub.enrol("north")
    west = hub.enrol("west")
    hub.exchange(hub.begin("south"))
    hub.enrolment.revoke("west")
    text = lists(hub.registry.members())
    assert text.count('"CN=north"') == 3 and "west" not in text and "south" not in text
    revoked = x509.load_pem_x509_crl(crl(hub.authority, hub.registry.issued()))
    certificate = west.certificate()
    assert certificate is not None
    assert [entry.serial_number for entry in revoked] == [certificate.serial_number]
    key = hub.authority.certificate.public_key()
    assert revoked.is_signature_valid(key)  # type: ignore[arg-type]
    assert revoked.next_update_utc is not None and revoked.extensions.get_extension_for_class(x509.CRLNumber)


def test_the_lists_are_written_anew_when_the_membership_changes_and_each_day(tmp_path: Path) -> None:
    hub = Coordinator(tmp_path / "hub")
    home = CoordinatorHome.create(tmp_path / "hub", CoordinatorFile(name="hub", title="Hub", hosts=("localhost",),
                                                                    listen="127.0.0.1", port=18443))  # fmt: skip
    front = NginxFront(home, clock=hub.clock)
    assert not front.step(hub.registry)  # nobody has asked for nginx here
    front.write(listen="0.0.0.0", port=8443, enrol_port=8444)
    assert front.step(hub.registry) and not front.step(hub.registry)
    hub.enrol("north")
    assert front.step(hub.registry) and not front.step(hub.registry)
    hub.clock.now += REFRESH_S + 1  # type: ignore[attr-defined]
    assert front.step(hub.registry)
    for name in ("nginx.conf", "crl.pem", "lists.conf", "server.pem"):
        assert (front.folder / name).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("settings", "options", "words"),
    [({"listen": "0.0.0.0"}, {}, "gateway itself"), ({}, {"listen": "hub.example"}, "IP address"),
     ({}, {"listen": "127.0.0.1", "port": 18443}, "one port")],
)  # fmt: skip
def test_what_cannot_work_is_refused(
    tmp_path: Path, settings: dict[str, str], options: dict[str, object], words: str
) -> None:
    values = {"name": "hub", "title": "Hub", "hosts": ("localhost",), "listen": "127.0.0.1", "port": 18443}
    home = CoordinatorHome.create(tmp_path / "hub", CoordinatorFile.model_validate(values | settings))
    with pytest.raises(ConfigError, match=words):
        NginxFront(home).write(**{"listen": "0.0.0.0", "port": 8443, "enrol_port": 8444} | options)  # type: ignore[arg-type]
    assert not (home.folder / "nginx" / "nginx.conf").exists()


def test_a_path_that_could_end_a_line_of_the_configuration_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "hub; include x"
    home = CoordinatorHome.create(folder, CoordinatorFile(name="hub", title="Hub", hosts=("localhost",),
                                                          listen="127.0.0.1"))  # fmt: skip
    with pytest.raises(ConfigError, match="path"):
        NginxFront(home).write(listen="0.0.0.0", port=9443, enrol_port=9444)


@needs_nginx
def test_the_command_writes_what_nginx_accepts(short_path: Path) -> None:
    from server.deploy.nginx_cli import nginx as command

    home = CoordinatorHome.create(short_path / "hub", CoordinatorFile(
        name="hub", title="Hub", hosts=("localhost",), listen="127.0.0.1", port=18443, enrol_port=18444))  # fmt: skip
    ended = CliRunner().invoke(command, [str(home.folder)])
    assert ended.exit_code == 0, ended.output
    shutil.copy(home.folder / "ca/ca.pem", home.link / "link.pem")
    done = subprocess.run([str(NGINX), "-t", "-c", str(home.folder / "nginx/nginx.conf")], capture_output=True,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()


def test_a_tunnel_still_refuses_what_is_no_gateway(tmp_path: Path) -> None:
    async def check() -> None:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 403 Forbidden\r\nMammoFed-Reason: no such reason\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            writer.close()

        hub = Coordinator(tmp_path)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(hub.authority.server_credentials(["localhost"]))
        async with await asyncio.start_server(talk, "127.0.0.1", 0, ssl=context) as server:
            north = hub.enrol("north", port=server.sockets[0].getsockname()[1])
            with pytest.raises(TunnelError, match="does not answer as a gateway"):
                await Tunnel(north).hello()

    asyncio.run(check())
