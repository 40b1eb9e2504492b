"""The coordinator's door: TLS 1.3 with client certificates in front of SuperLink's fleet routes on the loopback.

For each connection: TLS refuses who has no certificate of our CA, an expired one or a TLS server's; then the registry
refuses who is revoked, unconfirmed, superseded, unknown or of another role, before a byte of the application is read.
For each request: the registry is asked again, and `http_guard.judge` decides. A watch closes live connections as soon
as their certificate no longer admits, whoever revoked it. A door that cannot read its registry is shut.

A refused connection is told why in the reason phrase of one fixed answer, `HTTP/1.1 403 MammoFed-<reason>`, which the
site's tunnel turns into words.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from importlib.metadata import version
from ipaddress import ip_address
from types import TracebackType
from typing import Any, Self

import h11

from server.enrolment.http_guard import Answer, judge, node_key_header, own_answer
from server.enrolment.http_relay import CHUNK, BrokenError, Side, serve
from server.enrolment.registry import Admitted, Registry
from shared_model.certificates import REFUSALS, REFUSED, Role, load_certificate, member_of
from shared_model.errors import CertificateError, ConfigError, StorageError

_NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


@dataclass(frozen=True, kw_only=True)
class GatewayLimits:
    """Bounds, so that no site and no stranger can take more than a share. Seconds, counts."""

    handshake_s: float = 10.0
    idle_s: float = 120.0
    """Between requests; SuperNode asks every 3 s and keeps a connection for 5 s."""
    stall_s: float = 60.0
    """Without one byte of progress inside a message, in either direction."""
    answer_s: float = 300.0
    """Until SuperLink begins to answer; 100 MB through its SQLite took up to 47 s a round."""
    linger_s: float = 2.0
    watch_s: float = 0.5
    """Between looks at the registry's version: a live connection outlives its revocation by so much at most."""
    connections_per_site: int = 32
    connections: int = 512
    handshakes: int = 64
    """At one time, all strangers together."""


@dataclass(frozen=True, kw_only=True)
class GatewayEvent:
    """Something to put on record. kind: admitted, refused, denied, dropped, failed; site: "" when not known."""

    kind: str
    reason: str
    site: str = ""


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """SuperLink's own address; must be on this machine's loopback.

    Args:
        context: TLS that trusts SuperLink's loopback certificate; Flower wants TLS where nodes are authenticated.

    Raises:
        ConfigError: not a loopback address.
    """

    port: int
    host: str = "127.0.0.1"
    context: ssl.SSLContext | None = None

    def __post_init__(self) -> None:
        try:
            inside = ip_address(self.host).is_loopback
        except ValueError:
            inside = False
        if not inside or not 1 <= self.port <= 65535:
            raise ConfigError("the gateway forwards to SuperLink on this machine alone", found=self.host,
                              expected="a loopback address such as 127.0.0.1")  # fmt: skip


@dataclass(eq=False)
class _Live:
    certificate: bytes
    admitted: Admitted
    transport: asyncio.WriteTransport
    task: asyncio.Task[Any] | None
    gone: bool = False


class Gateway:
    """The door; an async context manager that listens while it is open.

    Args:
        context: `certificates.server_context` of the authority.
        registry: opened by the thread of the event loop; reads take microseconds (WAL: no waiting for writers).
        roles: who may come in here.
        report: is told each event; never what was sent.
    """

    def __init__(
        self, *, context: ssl.SSLContext, registry: Registry, upstream: Upstream, host: str, port: int = 0,
        roles: frozenset[Role] = frozenset(Role), limits: GatewayLimits | None = None,
        clock: Callable[[], float] = time.time, report: Callable[[GatewayEvent], None] = lambda event: None,
    ) -> None:  # fmt: skip
        if context.verify_mode is not ssl.CERT_REQUIRED or context.minimum_version is not ssl.TLSVersion.TLSv1_3:
            raise ConfigError("the gateway's TLS must ask for certificates, and be 1.3")
        self._context, self._registry, self._upstream = context, registry, upstream
        self._address, self._roles, self._limits = (host, port), roles, limits or GatewayLimits()
        self._clock, self._report = clock, report
        self._live: set[_Live] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._handshakes = 0
        self._version: tuple[int, int] | None = None
        self._listeners: list[socket.socket] = []

    # --- life ---

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        host, port = self._address
        try:
            found = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            for family, kind, number, _, address in dict.fromkeys(found):
                self._listeners.append(_listen(family, kind, number, address))
        except OSError as error:
            self._close_listeners()
            raise ConfigError("the gateway cannot listen there", found=f"{host}:{port} ({error.strerror})",
                              expected="a free port on an address of this machine") from None  # fmt: skip
        for listener in self._listeners:
            self._spawn(self._accept(listener))
        self._spawn(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._close_listeners()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._listeners[0].getsockname()[1])

    def connected(self) -> Counter[str]:
        """How many live connections each site has."""
        return Counter(live.admitted.member.site for live in self._live)

    # --- revocation ---

    def drop(self, site: str) -> None:
        """End a site's live connections now; for `Enrolment(dropped=...)` in the event loop's thread."""
        for live in [live for live in self._live if live.admitted.member.site == site]:
            self._end(live, "revoked")

    def recheck(self) -> None:
        """End every live connection whose certificate no longer admits."""
        for live in list(self._live):
            try:
                self._admit(live.certificate)
            except CertificateError as error:
                self._end(live, error.reason)

    async def _watch(self) -> None:
        while True:
            try:
                version = self._registry.version()
                run_out = any(self._clock() >= live.admitted.not_after for live in self._live)
                if version != self._version or run_out:
                    self._version = version
                    self.recheck()
            except StorageError:
                self._version = None
                for live in list(self._live):
                    self._end(live, "unavailable")
            await asyncio.sleep(self._limits.watch_s)

    def _end(self, live: _Live, reason: str) -> None:
        if not live.gone:
            live.gone = True
            self._live.discard(live)
            live.transport.abort()
            if live.task is not None:
                live.task.cancel()
            self._report(GatewayEvent(kind="dropped", reason=reason, site=live.admitted.member.site))

    # --- connections ---

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:
                if error.errno in _NO_ROOM:
                    await asyncio.sleep(self._limits.watch_s)  # the next one waits in the kernel's queue
                continue
            if self._handshakes >= self._limits.handshakes or len(self._live) >= self._limits.connections:
                connection.close()
                self._report(GatewayEvent(kind="refused", reason="busy"))
                continue
            self._handshakes += 1
            self._spawn(self._connection(connection))

    async def _connection(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(CHUNK, loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        try:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol, connection, ssl=self._context, ssl_handshake_timeout=self._limits.handshake_s,
                ssl_shutdown_timeout=self._limits.linger_s,
            )  # fmt: skip
        except (OSError, asyncio.CancelledError) as error:
            connection.close()
            if isinstance(error, asyncio.CancelledError):
                raise
            self._report(GatewayEvent(kind="refused", reason=_tls_reason(error)))
            return
        finally:
            self._handshakes -= 1
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        try:
            await self._admitted(reader, writer)
        except (OSError, BrokenError, h11.LocalProtocolError):
            transport.abort()
        finally:
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(2 * self._limits.linger_s):
                    await writer.wait_closed()
            transport.abort()

    async def _admitted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True) or b""
        site = ""
        try:
            site = member_of(load_certificate(certificate)).site
            admitted = self._admit(certificate)
            if self.connected()[site] >= self._limits.connections_per_site:
                raise CertificateError("too many connections", reason="busy")
        except (CertificateError, StorageError) as error:
            reason = error.reason if isinstance(error, CertificateError) else "unavailable"
            self._report(GatewayEvent(kind="refused", reason=reason, site=site))
            await self._refuse(reader, writer, reason)
            return
        live = _Live(certificate, admitted, writer.transport, asyncio.current_task())
        self._live.add(live)  # no await since `_admit`: whoever is revoked from now on is found by the watch
        self._report(GatewayEvent(kind="admitted", reason="", site=site))
        node_key = node_key_header(admitted.node)
        try:
            await serve(Side(h11.SERVER, reader, writer, self._limits.stall_s), connect=self._connect,
                        check=lambda request: self._check(live, request, node_key), waits=self._limits)  # fmt: skip
        except CertificateError as error:
            self._end(live, error.reason)
        finally:
            self._live.discard(live)

    def _check(self, live: _Live, request: h11.Request, node_key: bytes) -> Answer | None:
        """The registry, once more, and then what the request asks for."""
        site = live.admitted.member.site
        try:
            self._admit(live.certificate)
        except StorageError:
            self._report(GatewayEvent(kind="refused", reason="unavailable", site=site))
            return Answer(503, {"words": REFUSALS["unavailable"]})
        answer = own_answer(request, self._hello(live.admitted)) or judge(request, node_key=node_key)
        if answer is not None and answer.status != 200:
            self._report(GatewayEvent(kind="denied", reason=str(answer.document["words"]), site=site))
        return answer

    def _hello(self, admitted: Admitted) -> dict[str, object]:
        member = admitted.member
        return {"site": member.site, "role": member.role, "not_after": admitted.not_after, "time": self._clock(),
                "release": version("mammofed")}  # fmt: skip

    async def _connect(self) -> Side:
        there = self._upstream
        async with asyncio.timeout(self._limits.handshake_s):
            reader, writer = await asyncio.open_connection(
                there.host, there.port, limit=CHUNK, ssl=there.context,
                server_hostname="localhost" if there.context else None,
            )  # fmt: skip
        return Side(h11.CLIENT, reader, writer, self._limits.stall_s)

    def _admit(self, certificate: bytes) -> Admitted:
        admitted = self._registry.admit(certificate)
        if admitted.member.role not in self._roles:
            raise CertificateError("another role's door", reason="wrong_role", remedy=REFUSALS["wrong_role"])
        return admitted

    async def _refuse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, reason: str) -> None:
        """Say why, without having read anything."""
        body = json.dumps({"reason": reason, "words": REFUSALS[reason]}).encode()
        head = (f"HTTP/1.1 403 {REFUSED}{reason}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
                "Connection: close\r\n\r\n")  # fmt: skip
        writer.write(head.encode("ascii") + body)
        await Side(h11.SERVER, reader, writer, self._limits.stall_s).linger(self._limits.linger_s)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()


def _listen(family: int, kind: int, number: int, address: Any) -> socket.socket:
    listener = socket.socket(family, kind, number)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(128)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def _tls_reason(error: OSError) -> str:
    """What TLS found wrong, as a stable word for the record."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return {9: "not_yet_valid", 10: "expired"}.get(error.verify_code, "foreign")  # X509_V_ERR_*, x509_vfy.h
    if isinstance(error, ssl.SSLError):
        return "no_certificate" if "PEER_DID_NOT_RETURN" in (error.reason or "") else "no_tls"
    return "no_tls"
