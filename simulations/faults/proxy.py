"""A TCP and Unix-socket proxy that spoils connections: cut, slow, late, half-open, doubled. For cases and for tests.

Faults are placed by bytes and by number of the connection, never by the clock, so that a test meets the same fault
whenever it runs. Only `latency_s` and `bytes_per_s` slow things down, and nothing depends on how exactly they do.

    async with Proxy("127.0.0.1:0", "127.0.0.1:8000", [Fault(cut_down_after=1000)]) as proxy:
        ... connect to proxy.address ...
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

CHUNK = 1 << 14
MBIT = 125_000  # bytes a second


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens to one connection. `up` is from the one who connected, `down` from the target.

    cut_up_after, cut_down_after: both sides are reset once so many bytes have passed that way; 0: before the first.
    half_open_after: from so many bytes down on, nothing passes either way any more, and nobody is told.
    latency_s: seconds each piece is held back, either way. bytes_per_s: bound of each way; 0: none.
    double: the bytes up are sent over a second connection to the target too, whose answers nobody sees.
    """

    cut_up_after: int | None = None
    cut_down_after: int | None = None
    half_open_after: int | None = None
    latency_s: float = 0.0
    bytes_per_s: float = 0.0
    double: bool = False


@dataclass
class Passed:
    """What a connection has carried. ended: `open`, `closed`, `cut` or `half-open`."""

    up: int = 0
    down: int = 0
    ended: str = "open"
    doubled: int = 0


@dataclass(eq=False)
class _Wire:
    """The two ends of one connection, and of its double where it has one."""

    fault: Fault
    passed: Passed
    near: asyncio.StreamWriter
    far: asyncio.StreamWriter
    double: asyncio.StreamWriter | None = None
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def cut(self) -> None:
        """Reset both sides: what is still under way is lost."""
        self.passed.ended = "cut"
        for end in (self.near, self.far, self.double):
            if end is not None:
                _reset(end)


class Proxy:
    """Carries connections from `listen` to `target`; an async context manager.

    Args:
        listen, target: `host:port` (port 0: any free one) or the absolute path of a Unix socket.
        faults: of the first connections in order; `then` is that of all others.
    """

    def __init__(self, listen: str, target: str, faults: Sequence[Fault] = (), *, then: Fault | None = None) -> None:
        self._listen, self._target = listen, target
        self._faults, self._then = list(faults), then or Fault()
        self.connections: list[Passed] = []
        self._wires: set[_Wire] = set()
        self._running: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        if self._listen.startswith("/"):
            self._server = await asyncio.start_unix_server(self._accept, self._listen)
        else:
            host, _, port = self._listen.rpartition(":")
            self._server = await asyncio.start_server(self._accept, host, int(port))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        if self._listen.startswith("/"):
            Path(self._listen).unlink(missing_ok=True)

    @property
    def address(self) -> str:
        """Where to connect: `host:port`, or the socket's path."""
        assert self._server is not None
        name = self._server.sockets[0].getsockname()
        return name if isinstance(name, str) else f"{name[0]}:{name[1]}"

    def cut_all(self) -> None:
        """Reset every connection that is open now, as a cable that is pulled out does in the end."""
        for wire in list(self._wires):
            wire.cut()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        number = len(self.connections)
        fault = self._faults[number] if number < len(self._faults) else self._then
        passed = Passed()
        self.connections.append(passed)
        try:
            await self._carry(fault, passed, reader, writer)
        except OSError:  # nobody at the target, or either side went away
            _reset(writer)

    async def _carry(
        self, fault: Fault, passed: Passed, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        far_reader, far = await self._connect()
        wire = _Wire(fault, passed, writer, far)
        double_reader: asyncio.StreamReader | None = None
        if fault.double:
            double_reader, wire.double = await self._connect()
        self._wires.add(wire)
        ways = [_up(wire, reader), _down(wire, far_reader)]
        if double_reader is not None:
            ways.append(_swallow(double_reader))
        wire.tasks = [asyncio.create_task(way) for way in ways]
        try:
            await asyncio.gather(*wire.tasks, return_exceptions=True)
            passed.ended = "closed" if passed.ended == "open" else passed.ended
        finally:
            for task in wire.tasks:
                task.cancel()
            self._wires.discard(wire)
            for end in (wire.near, wire.far, wire.double):
                if end is not None:
                    end.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._target.startswith("/"):
            return await asyncio.open_unix_connection(self._target)
        host, _, port = self._target.rpartition(":")
        return await asyncio.open_connection(host, int(port))


def _reset(end: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN, so that the peer sees a broken connection and no polite end (socket(7))."""
    name = end.get_extra_info("socket")
    if name is not None and not end.transport.is_closing():
        name.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.transport.abort()


async def _up(wire: _Wire, reader: asyncio.StreamReader) -> None:
    while True:
        if wire.fault.cut_up_after is not None and wire.passed.up >= wire.fault.cut_up_after:
            return wire.cut()
        data = await reader.read(_room(wire.fault.cut_up_after, wire.passed.up))
        if not data:
            return _end(wire, wire.far, wire.double)
        await _hold(wire.fault, len(data))
        if wire.passed.ended == "half-open":
            continue  # read and forgotten: the sender's kernel acknowledges, the target never sees it
        wire.passed.up += len(data)
        wire.far.write(data)
        await wire.far.drain()
        if wire.double is not None:
            wire.passed.doubled += len(data)
            wire.double.write(data)
            await wire.double.drain()


async def _down(wire: _Wire, reader: asyncio.StreamReader) -> None:
    while True:
        fault, passed = wire.fault, wire.passed
        if fault.cut_down_after is not None and passed.down >= fault.cut_down_after:
            return wire.cut()
        if fault.half_open_after is not None and passed.down >= fault.half_open_after:
            passed.ended = "half-open"
            return None  # the target's answers stay in its kernel; neither side hears of it
        bounds = [b for b in (fault.cut_down_after, fault.half_open_after) if b is not None]
        data = await reader.read(_room(min(bounds, default=None), passed.down))
        if not data:
            return _end(wire, wire.near)
        await _hold(fault, len(data))
        passed.down += len(data)
        wire.near.write(data)
        await wire.near.drain()


async def _swallow(reader: asyncio.StreamReader) -> None:
    """Whatever the target says to the double."""
    with contextlib.suppress(OSError):
        while await reader.read(CHUNK):
            pass


async def _hold(fault: Fault, count: int) -> None:
    seconds = fault.latency_s + (count / fault.bytes_per_s if fault.bytes_per_s else 0.0)
    if seconds:
        await asyncio.sleep(seconds)


def _room(bound: int | None, passed: int) -> int:
    """How much may be read at once, so that a fault comes after exactly its byte."""
    return CHUNK if bound is None else max(1, min(CHUNK, bound - passed))


def _end(wire: _Wire, *ends: asyncio.StreamWriter | None) -> None:
    """One side has nothing more to say: the other learns that, and may go on talking (half-close)."""
    if wire.passed.ended != "open":
        return
    for end in ends:
        if end is not None and end.can_write_eof() and not end.transport.is_closing():
            end.write_eof()
