"""What both of the coordinator's doors have in common: listening, TLS handshakes with strangers, and bounds on both.

`gateway` is the door of members, `enrol_door` the one for whoever has no certificate yet.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import h11

from server.enrolment.http_relay import CHUNK, BrokenError
from shared_model.errors import ConfigError

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
    control_per_site: int = 4
    """Of them to the control service: one, and those that a cut line left half open."""
    connections: int = 512
    handshakes: int = 64
    """At one time, all strangers together."""


@dataclass(frozen=True, kw_only=True)
class GatewayEvent:
    """Something to put on record. kind: admitted, refused, denied, dropped, failed; site: "" when not known."""

    kind: str
    reason: str
    site: str = ""


class Door(ABC):
    """A TLS listener; an async context manager that listens while it is open.

    Args:
        report: is told each event; never what was sent.
    """

    def __init__(
        self, *, context: ssl.SSLContext, host: str, port: int, limits: GatewayLimits,
        report: Callable[[GatewayEvent], None],
    ) -> None:  # fmt: skip
        self._context, self._address, self._limits, self._report = context, (host, port), limits, report
        self._tasks: set[asyncio.Task[None]] = set()
        self._handshakes = 0
        self._listeners: list[socket.socket] = []

    @abstractmethod
    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, after its handshake."""

    @abstractmethod
    def _full(self) -> bool:
        """Whether nobody more is let in."""

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

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:
                if error.errno in _NO_ROOM:
                    await asyncio.sleep(self._limits.watch_s)  # the next one waits in the kernel's queue
                continue
            if self._handshakes >= self._limits.handshakes or self._full():
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
            await self._talk(reader, writer)
        except (OSError, BrokenError, h11.LocalProtocolError):
            transport.abort()
        finally:
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(2 * self._limits.linger_s):
                    await writer.wait_closed()
            transport.abort()

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
