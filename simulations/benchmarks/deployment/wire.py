"""A TCP relay that counts: what sites and coordinator really send each other, TLS and all; in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Self

CHUNK = 1 << 16
START_S = 30.0


@dataclass
class Traffic:
    """Bytes so far. up: from the sites; down: to them. timeline: (seconds since 1970, up, down), as sampled."""

    up: int = 0
    down: int = 0
    timeline: list[tuple[float, int, int]] = field(default_factory=list)

    def sample(self) -> None:
        """Remember how much it is now."""
        self.timeline.append((time.time(), self.up, self.down))


class Relay:
    """A context manager; each :meth:`to` opens one more door to a port of this machine."""

    def __init__(self) -> None:
        self.traffic = Traffic()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def to(self, port: int) -> int:
        """Listen on a free port of the loopback for `port`; returns it."""
        return int(self._call(self._listen(port)))

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(START_S)

    async def _listen(self, port: int) -> int:
        async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                there = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                writer.close()
                return
            await asyncio.gather(self._pump(reader, there[1], up=True), self._pump(there[0], writer, up=False))
            for end in (writer, there[1]):
                end.close()

        server = await asyncio.start_server(carry, "127.0.0.1", 0, limit=CHUNK)
        return int(server.sockets[0].getsockname()[1])

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool) -> None:
        try:
            while data := await reader.read(CHUNK):
                if up:
                    self.traffic.up += len(data)
                else:
                    self.traffic.down += len(data)
                writer.write(data)
                await writer.drain()
            writer.write_eof()
        except OSError:  # broken: the other direction ends with it
            writer.transport.abort()


def between(timeline: list[tuple[float, int, int]], begin: float, end: float) -> tuple[float, float]:
    """Bytes (up, down) from `begin` to `end`, seconds since 1970, straight between samples."""
    (up_1, down_1), (up_2, down_2) = _at(timeline, begin), _at(timeline, end)
    return up_2 - up_1, down_2 - down_1


def _at(timeline: list[tuple[float, int, int]], moment: float) -> tuple[float, float]:
    before = (timeline[0][0], 0, 0)
    for sample in timeline:
        if sample[0] >= moment:
            span = sample[0] - before[0]
            share = (moment - before[0]) / span if span > 0 else 1.0
            return (before[1] + share * (sample[1] - before[1]), before[2] + share * (sample[2] - before[2]))
        before = sample
    return float(before[1]), float(before[2])
