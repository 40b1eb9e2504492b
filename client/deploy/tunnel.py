"""The site's end of the line: a loopback listener whose connections go on to the coordinator over mutual TLS.

SuperNode has no client certificate, so it connects here, over TLS with the site's own loopback certificate (Flower
wants TLS where nodes are authenticated), and its bytes go on over TLS 1.3 with the site's certificate, through the
hospital's proxy where there is one. The newest certificate is read for each connection, so a renewal
needs no restart. What goes wrong is told in words by `Tunnel.status`; SuperNode itself only sees a closed connection
and tries again by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import ssl
import stat
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from client.deploy.identity import SiteIdentity
from client.deploy.proxy import Proxy
from client.deploy.proxy import connect as connect_through
from shared_model.certificates import ALPN, REFUSALS, REFUSED
from shared_model.errors import CertificateError, ConfigError, MammoFedError, TunnelError

CHUNK = 1 << 16
_REFUSED = f"HTTP/1.1 403 {REFUSED}".encode("ascii")
_NGINX_REASON = re.compile(rb"\r\nMammoFed-Reason: ([a-z_]+)\r\n", re.IGNORECASE)
"""nginx in the gateway's place cannot choose its reason phrase and says it in a header."""
_UNUSED = "not used yet"
_ALERTS = {
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "expired", "TLSV1_ALERT_CERTIFICATE_EXPIRED": "expired",
    "SSLV3_ALERT_BAD_CERTIFICATE": "not_yet_valid", "TLSV1_ALERT_UNKNOWN_CA": "foreign",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "foreign", "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "foreign",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "wrong_role", "SSLV3_ALERT_CERTIFICATE_REVOKED": "revoked",
}  # fmt: skip
"""OpenSSL's names of TLS alerts (RFC 8446 6.2) -> reason of REFUSALS."""


@dataclass(frozen=True, kw_only=True)
class TunnelLimits:
    """Bounds; seconds, counts."""

    connect_s: float = 20.0
    """For proxy, TCP and TLS together; a proxy that asks a virus scanner may take some."""
    idle_s: float = 330.0
    """Without a byte in either direction; longer than the gateway waits for SuperLink (300 s)."""
    linger_s: float = 10.0
    """For the rest of an answer after SuperNode has closed its half."""
    connections: int = 32


@dataclass(frozen=True, kw_only=True)
class TunnelStatus:
    """How the line is. reason: "" when it was well, else stable; words: for a human; since: seconds since 1970."""

    reason: str
    words: str
    since: float


class Tunnel:
    """The tunnel; an async context manager that listens while it is open.

    Args:
        listen: a port on the loopback (0: any free one), or a path of a Unix socket for its owner alone.
        tls: talk TLS to SuperNode, with the site's loopback certificate; needed where nodes are authenticated.
        alpn: what is spoken inside; the coordinator has to know it.
        enrolling: go to the door for enrolment, without a certificate of our own.
        report: is told each change of the status.
    """

    def __init__(
        self, identity: SiteIdentity, *, listen: int | Path = 0, host: str = "127.0.0.1", tls: bool = True,
        alpn: str = ALPN, enrolling: bool = False, proxy: Proxy | None = None, limits: TunnelLimits | None = None,
        clock: Callable[[], float] = time.time,
        report: Callable[[TunnelStatus], None] = lambda status: None,
    ) -> None:  # fmt: skip
        if not ip_address(host).is_loopback:
            raise ConfigError("the tunnel serves this machine alone", found=host, expected="127.0.0.1 or ::1")
        self._identity, self._listen, self._host, self._tls = identity, listen, host, tls
        self._alpn, self._enrolling = alpn, enrolling
        self._proxy, self._limits = proxy, limits or TunnelLimits()
        self._clock, self._report = clock, report
        self._status = TunnelStatus(reason="", words=_UNUSED, since=clock())
        self._tasks: set[asyncio.Task[Any]] = set()
        self._server: asyncio.Server | None = None
        self._heard = time.monotonic()

    # --- life ---

    async def __aenter__(self) -> Self:
        context = self._identity.local_context() if self._tls else None
        try:
            if isinstance(self._listen, Path):
                listener = _unix_listener(self._listen)
                self._server = await asyncio.start_unix_server(self._carry, sock=listener, ssl=context, limit=CHUNK)
            else:
                self._server = await asyncio.start_server(
                    self._carry, self._host, self._listen, ssl=context, limit=CHUNK
                )
        except OSError as error:
            raise ConfigError("the tunnel cannot listen there", found=f"{self._listen} ({error.strerror})",
                              expected="a free port or path") from None  # fmt: skip
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if isinstance(self._listen, Path):
            self._listen.unlink(missing_ok=True)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def status(self) -> TunnelStatus:
        """How the line is, by the last connection."""
        return self._status

    @property
    def silence_s(self) -> float:
        """Seconds since SuperNode has last connected or said anything, whatever became of it."""
        return time.monotonic() - self._heard

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection of our own to the gateway, as SuperNode's are; for `hello` and doctor. Cut at the end.

        Raises:
            CertificateError: it refuses us, with the reason. TunnelError: it cannot be reached, or what was made of
                its answers (ValueError, OSError) shows that it is no gateway.
        """
        try:
            reader, writer = await self._dial()
            try:
                yield reader, writer
            finally:
                writer.transport.abort()
        except (OSError, ValueError, MammoFedError) as error:
            raised = _in_words(error)
            self._note(raised)
            raise raised from None
        self._note(None)

    def look(self, data: bytes) -> None:
        """Check the first bytes of an answer on such a connection.

        Raises:
            CertificateError: they are a refusal, with the coordinator's reason. TunnelError: there are none.
        """
        self._look(data)
        if not data:
            raise _closed()

    async def hello(self) -> dict[str, Any]:
        """Ask the gateway who we are to it: `site`, `role`, `not_after`, `time`, `release`.

        Raises:
            CertificateError: it refuses us, with the reason. TunnelError: it cannot be reached.
        """
        async with self.connection() as (reader, writer), asyncio.timeout(self._limits.connect_s):
            writer.write(b"GET /mammofed/hello HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n")
            answer = await reader.read(CHUNK)
            while part := await reader.read(CHUNK):
                answer = (answer + part)[:CHUNK]
            self.look(answer)
            head, _, body = answer.partition(b"\r\n\r\n")
            document = json.loads(body) if head.startswith(b"HTTP/1.1 200") else None
            if not isinstance(document, dict):
                raise ValueError("no gateway")
        return document

    # --- one connection ---

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._heard = time.monotonic()
        task = asyncio.current_task()
        assert task is not None
        if len(self._tasks) >= self._limits.connections:
            writer.transport.abort()
            return
        self._tasks.add(task)
        remote: asyncio.StreamWriter | None = None
        try:
            there, remote = await self._dial()
            await self._both_ways(reader, writer, there, remote)
        except (OSError, MammoFedError) as error:
            self._note(_in_words(error))
        except asyncio.CancelledError:  # the tunnel is closed; asyncio's streams would log it as an error if it went on
            for end in (writer, remote):
                if end is not None:
                    end.transport.abort()
        finally:
            self._tasks.discard(task)
            for end in (writer, remote):
                if end is not None:
                    await self._close(end)

    async def _close(self, end: asyncio.StreamWriter) -> None:
        """What is written goes out; an end that takes nothing is cut."""
        end.close()
        # Cancelled as the tunnel closes: this is the task's last step, and asyncio's streams log a cancelled one.
        with contextlib.suppress(OSError, TimeoutError, asyncio.CancelledError):
            async with asyncio.timeout(self._limits.linger_s):
                await end.wait_closed()
        end.transport.abort()

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """One TLS 1.3 connection to the coordinator.

        Raises:
            CertificateError: our certificate is absent or out of its time: nothing was sent.
            TunnelError, OSError: no way there.
        """
        settings = self._identity.settings
        if self._enrolling:
            context, port = self._identity.enrolling_context(alpn=self._alpn), settings.enrolling
        else:
            context, port = self._identity.context(alpn=self._alpn), settings.port
        host = settings.host
        try:
            async with asyncio.timeout(self._limits.connect_s):
                if self._proxy is None:
                    reader, writer = await asyncio.open_connection(host, port, limit=CHUNK, ssl=context)
                else:
                    reader, writer = await asyncio.open_connection(self._proxy.host, self._proxy.port, limit=CHUNK)
                    try:
                        name = f"[{host}]" if ":" in host else host
                        await connect_through(self._proxy, reader, writer, to=f"{name}:{port}")
                        await writer.start_tls(context, server_hostname=host)
                    except BaseException:
                        writer.transport.abort()
                        raise
        except TimeoutError:
            raise TunnelError("the coordinator does not answer", reason="no_answer", found=f"{host}:{port}",
                              expected=f"an answer within {self._limits.connect_s:g} s",
                              remedy="check address, proxy and firewall (outgoing)") from None  # fmt: skip
        if self._alpn != ALPN and writer.get_extra_info("ssl_object").selected_alpn_protocol() != self._alpn:
            writer.transport.abort()
            raise TunnelError("the coordinator does not offer what this site asks for", reason="no_service",
                              expected=self._alpn, remedy="use the same release at both ends, and the coordinator's "
                              "own gateway")  # fmt: skip
        return reader, writer

    async def _both_ways(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, there: asyncio.StreamReader,
        remote: asyncio.StreamWriter,
    ) -> None:  # fmt: skip
        """Carry bytes until one end is done; no byte in either direction for too long ends it, too."""
        loop, carried = asyncio.get_running_loop(), {"up": 0, "down": 0}
        try:
            async with asyncio.timeout(self._limits.idle_s) as deadline:

                def went_up(data: bytes) -> None:
                    self._heard = time.monotonic()
                    carried["up"] += len(data)
                    deadline.reschedule(loop.time() + self._limits.idle_s)

                def came_down(data: bytes) -> None:
                    if not carried["down"]:
                        self._look(data)
                    carried["down"] += len(data)
                    deadline.reschedule(loop.time() + self._limits.idle_s)

                up = loop.create_task(_pump(reader, remote, went_up))
                down = loop.create_task(_pump(there, writer, came_down))
                try:
                    await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
                    if up.done() and up.exception() is None and not down.done():
                        # SuperNode has closed its half. TLS on our side cannot be closed by halves, so the coordinator
                        # is not told; what it still has to say is carried for a while.
                        await asyncio.wait((down,), timeout=self._limits.linger_s)
                    for done in (down, up):
                        if done.done():
                            done.result()
                    if down.done() and carried["up"] and not carried["down"]:
                        raise _closed()
                finally:
                    for task in (up, down):
                        task.cancel()
                    await asyncio.gather(up, down, return_exceptions=True)
        except TimeoutError:
            writer.transport.abort()
            remote.transport.abort()

    def _look(self, data: bytes) -> None:
        """The first bytes from the coordinator: a refusal, or all is well.

        Raises:
            CertificateError: refused, with the coordinator's reason.
        """
        if data.startswith(b"HTTP/1.1 403") and (said := _NGINX_REASON.search(data)):
            reason = said[1].decode("ascii")
            raise _refused(reason if reason in REFUSALS else "unknown")
        if data.startswith(_REFUSED):
            reason = data[len(_REFUSED):].partition(b"\r")[0].decode("ascii", "replace")  # fmt: skip
            raise _refused(reason if reason in REFUSALS else "unknown")
        if data:
            self._note(None)

    def _note(self, error: MammoFedError | None) -> None:
        reason = "" if error is None else str(getattr(error, "reason", "disk"))
        if reason != self._status.reason or self._status.words == _UNUSED:
            words = "connected" if error is None else str(error)
            self._status = TunnelStatus(reason=reason, words=words, since=self._clock())
            self._report(self._status)


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: Callable[[bytes], None]
) -> None:
    """What comes here goes there, at the pace of the slower; the end of it too."""
    while data := await reader.read(CHUNK):
        seen(data)
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


def _refused(reason: str) -> CertificateError:
    return CertificateError("the coordinator does not admit this site", reason=reason, found=reason,
                            remedy=REFUSALS[reason])  # fmt: skip


def _closed() -> TunnelError:
    """A gateway in Python cannot send TLS's alert (asyncio drops it); one of nginx can, see `_ALERTS`."""
    return TunnelError("the coordinator closed the connection without a word", reason="closed",
                       expected="a certificate that it accepts",
                       remedy="compare this machine's clock with the real time (NTP); if it is right, call the "
                       "coordinator: this certificate may be another coordinator's")  # fmt: skip


def _in_words(error: Exception) -> MammoFedError:
    """Any failure of a connection as one of ours; no address of the hospital in it."""
    if isinstance(error, MammoFedError):
        return error
    if isinstance(error, ssl.SSLCertVerificationError):
        return TunnelError("the other end is not the coordinator that invited this site",
                           reason="not_the_coordinator", found=error.verify_message,
                           expected="a certificate of the CA in the invitation",
                           remedy="check the address; a proxy that opens TLS has to make an exception")  # fmt: skip
    if isinstance(error, ssl.SSLError):
        reason = _ALERTS.get(error.reason or "")
        if reason is not None:
            return _refused(reason)
        return TunnelError("TLS failed", reason="no_tls", found=error.reason, expected="TLS 1.3",
                           remedy="check that nothing on the way opens TLS, and the port")  # fmt: skip
    if isinstance(error, socket.gaierror):
        return TunnelError("the coordinator's name is not known here", reason="no_name",
                           remedy="check the name and this machine's DNS, or use the hospital's proxy")  # fmt: skip
    if isinstance(error, ValueError):
        return TunnelError("the other end does not answer as a gateway", reason="no_answer",
                           remedy="check the address and port")  # fmt: skip
    return TunnelError("the connection broke or was refused", reason="no_connection",
                       found=getattr(error, "strerror", None),
                       remedy="check the network; SuperNode tries again by itself")  # fmt: skip


def _unix_listener(path: Path) -> socket.socket:
    """A socket for its owner alone: it is bound under a mask, so there is no moment in which others may connect."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError("something else lies where the tunnel's socket should", found=str(path))
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
    return listener
