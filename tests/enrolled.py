"""A coordinator with its authority and registry, sites that enrol with it, and a SuperLink that is none; for tests."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h11

from client.deploy.identity import SiteIdentity
from server.enrolment.authority import Authority
from server.enrolment.enrolment import Enrolment
from server.enrolment.gateway import Gateway, GatewayEvent, GatewayLimits, Upstream
from server.enrolment.http_guard import node_key_header
from server.enrolment.registry import Registry
from shared_model.certificates import Member, Role, loopback_credentials, loopback_server_context, server_context
from shared_model.private_files import write_private

DAY = 86400.0
HANG_S = 120.0  # a test that waits so long has failed, on a busy machine too; nothing here is timed


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self, now: float | None = None) -> None:
        self.now = time.time() if now is None else now

    def __call__(self) -> float:
        return self.now


def words(key: bytes) -> str:
    """Stands for the six words: all that counts is that other keys have other ones."""
    digest = hashlib.sha256(key).hexdigest()
    return " ".join(digest[i : i + 4] for i in range(0, 24, 4))


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a coroutine as a test, never for ever."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(HANG_S):
                await test(*args, **kwargs)

        asyncio.run(bounded())

    return run


async def until(true: Callable[[], bool]) -> None:
    """Wait for something that another task brings about."""
    while not true():
        await asyncio.sleep(0.005)


class Coordinator:
    """Authority, registry and enrolment in one folder."""

    def __init__(self, folder: Path, clock: Callable[[], float] | None = None) -> None:
        self.folder, self.clock = folder, clock or Clock()
        self.authority = Authority.create(folder / "ca", name="Test consortium", clock=self.clock)
        self.registry = Registry(folder / "registry", clock=self.clock)
        self.enrolment = Enrolment(self.authority, self.registry, fingerprint=words, clock=self.clock)
        self.events: list[GatewayEvent] = []

    def begin(self, site: str, role: Role = Role.SITE, *, port: int = 1, folder: Path | None = None) -> SiteIdentity:
        """A site that has its keys and an invitation."""
        invite = self.enrolment.invite(Member(site, role))
        return SiteIdentity.begin(folder or self.folder / "sites" / site, invite, host="localhost", port=port,
                                  clock=self.clock)  # fmt: skip

    def exchange(self, identity: SiteIdentity, *, peer: bytes | None = None) -> bool:
        """One request of a site and its answer."""
        request = identity.request()
        assert request is not None
        return identity.accept(self.enrolment.answer(request, peer=peer))

    def enrol(self, site: str, role: Role = Role.SITE, *, port: int = 1) -> SiteIdentity:
        """A site that is confirmed and has its certificate."""
        identity = self.begin(site, role, port=port)
        assert not self.exchange(identity)
        self.enrolment.confirm(site, identity.words(words))
        assert self.exchange(identity)
        return identity

    def gateway(self, upstream: Upstream, **options: Any) -> Gateway:
        """A gateway on a free port of the loopback."""
        context = server_context(self.authority.server_credentials(["localhost", "127.0.0.1"]),
                                 ca_pem=self.authority.ca_pem)  # fmt: skip
        options.setdefault("limits", GatewayLimits(watch_s=0.02, linger_s=0.5))
        return Gateway(context=context, registry=self.registry, upstream=upstream, host="127.0.0.1",
                       report=self.events.append, **options)  # fmt: skip

    def reasons(self, kind: str) -> list[str]:
        return [event.reason for event in self.events if event.kind == kind]


@dataclass
class SuperLink:
    """Answers requests as it is told and remembers them."""

    port: int
    context: ssl.SSLContext
    requests: list[tuple[h11.Request, bytes]] = field(default_factory=list)
    connections: int = 0
    received: int = 0
    answered: int = 0
    answer: Callable[[h11.Request, bytes], bytes] = lambda request, body: b"answer to " + request.target
    pause: Callable[[], Awaitable[None]] | None = None
    raw: bytes | None = None

    @property
    def upstream(self) -> Upstream:
        return Upstream(port=self.port, context=self.context)


@asynccontextmanager
async def superlink(folder: Path) -> AsyncIterator[SuperLink]:
    """A SuperLink with TLS on the loopback."""
    both, public = loopback_credentials(now=time.time())
    write_private(folder / "superlink.pem", both)
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trust.verify_flags |= ssl.VERIFY_X509_STRICT
    trust.load_verify_locations(cadata=public.decode())

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there.connections += 1
        http, request, body = h11.Connection(h11.SERVER), None, bytearray()
        try:
            while True:
                event = http.next_event()
                if event is h11.NEED_DATA:
                    if there.pause is not None and request is not None:
                        await there.pause()
                    http.receive_data(await reader.read(1 << 16))
                elif isinstance(event, h11.Request):
                    request = event
                elif isinstance(event, h11.Data):
                    body += event.data
                    there.received += len(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    assert request is not None
                    there.requests.append((request, bytes(body)))
                    if there.raw is not None:
                        writer.write(there.raw)
                        await writer.drain()
                        return
                    reply = there.answer(request, bytes(body))
                    headers = [("content-length", str(len(reply))), ("connection", "close")]
                    writer.write(http.send(h11.Response(status_code=200, headers=headers)) or b"")
                    for place in range(0, len(reply), 1 << 16):  # asyncio counts one great write as nothing over TLS
                        writer.write(http.send(h11.Data(data=reply[place : place + (1 << 16)])) or b"")
                        await writer.drain()
                    there.answered += 1
                    return
                else:
                    return
        except (OSError, h11.RemoteProtocolError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=loopback_server_context(folder / "superlink.pem"))
    there = SuperLink(server.sockets[0].getsockname()[1], trust)
    try:
        yield there
    finally:
        server.close()


def post(
    identity: SiteIdentity, route: str = "/v1/fleet/pull-messages", body: bytes = b"body", **changes: str | None
) -> bytes:  # fmt: skip
    """A request as SuperNode sends it; headers named in `changes` are replaced (None: left out)."""
    headers: dict[str, str | None] = {
        "Host": "gateway", "Content-Length": str(len(body)), "Content-Type": "application/protobuf",
        "flwr-public-key": node_key_header(identity.node_spki).decode(),
    }  # fmt: skip
    headers.update({name.replace("_", "-"): value for name, value in changes.items()})
    lines = [f"POST {route} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items() if value is not None)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def response(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """One response with a Content-Length: its status and body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
    return int(head.split()[1]), await reader.readexactly(length)


async def rest(reader: asyncio.StreamReader) -> bytes:
    """What still comes until the connection ends, however it ends."""
    data = b""
    try:
        while part := await reader.read(1 << 16):
            data += part
    except OSError:
        pass
    return data


def reason_in(data: bytes) -> str:
    """The reason in a gateway's refusal."""
    return str(json.loads(data.partition(b"\r\n\r\n")[2])["reason"])
