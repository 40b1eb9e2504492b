"""The coordinator's door: mutual TLS 1.3 in front of SuperLink's fleet routes and of the control service.

For each connection: TLS refuses who has no certificate of our CA, an expired one or a TLS server's; then the registry
refuses who is revoked, unconfirmed, superseded, unknown or of another role, before a byte of the application is read.
For each request: the registry is asked again, and `http_guard.judge` decides. A watch closes live connections as soon
as their certificate no longer admits, whoever revoked it. A door that cannot read its registry is shut. Both services
listen on the loopback; which of the two a connection is for is said in its TLS handshake (ALPN, RFC 7301).

A refused connection is told why in the reason phrase of one fixed answer, `HTTP/1.1 403 MammoFed-<reason>`, which the
site's tunnel turns into words.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from ipaddress import ip_address
from typing import Any, Self

import h11

from server.enrolment.door import Door, GatewayEvent, GatewayLimits
from server.enrolment.http_guard import Answer, judge, node_key_header, own_answer
from server.enrolment.http_relay import CHUNK, Side, serve
from server.enrolment.peers import ControlUpstream, Peer, carry
from server.enrolment.registry import Admitted, Registry
from shared_model.certificates import CONTROL_ALPN, REFUSALS, REFUSED, Role, load_certificate, member_of
from shared_model.errors import CertificateError, ConfigError, StorageError

__all__ = ["Gateway", "GatewayEvent", "GatewayLimits", "Upstream"]


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
    control: bool
    gone: bool = False


class Gateway(Door):
    """The door; an async context manager that listens while it is open.

    Args:
        context: `certificates.server_context` of the authority.
        registry: opened by the thread of the event loop; reads take microseconds (WAL: no waiting for writers).
        control: where connections go that speak the control service's protocol (ALPN); None: nowhere.
        roles: who may come in here.
        report: is told each event; never what was sent.
    """

    def __init__(
        self, *, context: ssl.SSLContext, registry: Registry, upstream: Upstream, host: str, port: int = 0,
        control: ControlUpstream | None = None, roles: frozenset[Role] = frozenset(Role),
        limits: GatewayLimits | None = None,
        clock: Callable[[], float] = time.time, report: Callable[[GatewayEvent], None] = lambda event: None,
    ) -> None:  # fmt: skip
        if context.verify_mode is not ssl.CERT_REQUIRED or context.minimum_version is not ssl.TLSVersion.TLSv1_3:
            raise ConfigError("the gateway's TLS must ask for certificates, and be 1.3")
        super().__init__(context=context, host=host, port=port, limits=limits or GatewayLimits(), report=report)
        self._registry, self._upstream, self._control = registry, upstream, control
        self._roles, self._clock = roles, clock
        self._live: set[_Live] = set()
        self._version: tuple[int, int] | None = None

    # --- life ---

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self._spawn(self._watch())
        return self

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

    def _full(self) -> bool:
        return len(self._live) >= self._limits.connections

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
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
        control = writer.get_extra_info("ssl_object").selected_alpn_protocol() == CONTROL_ALPN
        live = _Live(certificate, admitted, writer.transport, asyncio.current_task(), control)
        self._live.add(live)  # no await since `_admit`: whoever is revoked from now on is found by the watch
        self._report(GatewayEvent(kind="admitted", reason="control" if control else "", site=site))
        try:
            if control:
                await self._to_control(live, reader, writer)
            else:
                await self._to_superlink(live, reader, writer)
        finally:
            self._live.discard(live)

    async def _to_superlink(
        self, live: _Live, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        node_key = node_key_header(live.admitted.node)
        try:
            await serve(Side(h11.SERVER, reader, writer, self._limits.stall_s), connect=self._connect,
                        check=lambda request: self._check(live, request, node_key), waits=self._limits)  # fmt: skip
        except CertificateError as error:
            self._end(live, error.reason)

    async def _to_control(self, live: _Live, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """To the control service, which asks the registry itself at each call."""
        site = live.admitted.member.site
        if self._control is None or self._speaking(site) > self._limits.control_per_site:
            self._report(GatewayEvent(kind="refused", reason="busy" if self._control else "unavailable", site=site))
            await self._refuse(reader, writer, "busy" if self._control else "unavailable")
            return
        await carry(reader, writer, to=self._control, peer=Peer(live.certificate), idle_s=self._limits.idle_s,
                    stall_s=self._limits.stall_s)  # fmt: skip

    def _speaking(self, site: str) -> int:
        return sum(live.control and live.admitted.member.site == site for live in self._live)

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
