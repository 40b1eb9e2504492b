"""Who is behind a loopback connection to the control service: doors write it, the service looks it up by source port.

A door binds the source port, enters it here, and only then connects, so the service never sees a port of a door that it
does not know; any other process of the machine has another port, and is nobody to the service.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from server.enrolment.http_relay import CHUNK

REST_S: Final = 60.0  # a port rests after use: nothing late of one connection is taken for another's
_TRIES = 64
LOOPBACK: Final = "127.0.0.1"


@dataclass(frozen=True)
class Peer:
    """Whom a door let through. certificate: DER, as TLS verified it; empty at the door for enrolment."""

    certificate: bytes = b""


STRANGER: Final = Peer()


class Peers:
    """Source port -> who; safe between threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._there: dict[int, Peer] = {}
        self._resting: dict[int, float] = {}

    def at(self, port: int) -> Peer | None:
        """Who speaks from `port`; None: no door of ours."""
        with self._lock:
            return self._there.get(port)

    def enter(self, port: int, peer: Peer) -> bool:
        """Note who is about to speak from `port`; False if the port has to rest."""
        with self._lock:
            now = self._clock()
            self._resting = {port: until for port, until in self._resting.items() if until > now}
            if port in self._resting or port in self._there:
                return False
            self._there[port] = peer
            return True

    def leave(self, port: int) -> None:
        """Forget a port whose connection is over."""
        with self._lock:
            if self._there.pop(port, None) is not None:
                self._resting[port] = self._clock() + REST_S

    @contextmanager
    def bound(self, peer: Peer) -> Iterator[socket.socket]:
        """A socket on the loopback that is not connected yet, and stands for `peer` until the block ends.

        Raises:
            OSError: no port is free.
        """
        for _ in range(_TRIES):
            connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            connection.setblocking(False)
            try:
                connection.bind((LOOPBACK, 0))
                port = int(connection.getsockname()[1])
            except OSError:
                connection.close()
                raise
            if self.enter(port, peer):
                break
            connection.close()
        else:
            raise OSError("no free port on the loopback")
        try:
            yield connection
        finally:
            self.leave(port)
            connection.close()


@dataclass(frozen=True, kw_only=True)
class ControlUpstream:
    """Where the control service listens on the loopback, and the record of who is behind which connection to it."""

    port: int
    peers: Peers


async def carry(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, to: ControlUpstream, peer: Peer, idle_s: float,
    stall_s: float, most: int | None = None,
) -> None:  # fmt: skip
    """Carry bytes between one connection of `peer` and the control service until either end is done.

    Args:
        idle_s: without a byte from the site; it sends keepalives (RFC 9113 6.7) more often.
        most: of bytes from the site; None: any number.

    Raises:
        OSError: the service does not listen, or an end broke. TimeoutError is one.
    """
    with to.peers.bound(peer) as connection:
        async with asyncio.timeout(stall_s):
            await asyncio.get_running_loop().sock_connect(connection, (LOOPBACK, to.port))
        inner, outer = await asyncio.open_connection(sock=connection, limit=CHUNK)
        up = asyncio.create_task(_pump(reader, outer, idle_s=idle_s, stall_s=stall_s, most=most))
        down = asyncio.create_task(_pump(inner, writer, idle_s=None, stall_s=stall_s, most=None))
        try:
            done, _ = await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (up, down):
                task.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
            outer.transport.abort()


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, idle_s: float | None, stall_s: float,
    most: int | None,
) -> None:  # fmt: skip
    carried = 0
    while True:
        async with asyncio.timeout(idle_s):
            data = await reader.read(CHUNK)
        carried += len(data)
        if not data or (most is not None and carried > most):
            return
        writer.write(data)
        async with asyncio.timeout(stall_s):
            await writer.drain()


def port_of(peer: str) -> int | None:
    """The source port in gRPC's name of a peer (`ipv4:127.0.0.1:43210`); None for anything but our loopback."""
    kind, _, address = peer.replace("%3A", ":").partition(":")
    host, _, port = address.rpartition(":")
    if (kind, host) != ("ipv4", LOOPBACK):
        return None
    with contextlib.suppress(ValueError):
        return int(port)
    return None
