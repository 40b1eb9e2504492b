"""Measures the line to the coordinator through its gateway: who we are to it, its time, round trip, bytes a second.

One connection, a few requests: `GET /mammofed/hello` three times, then a bounded transfer up and one down
(`/mammofed/transfer`), each for some two seconds at most. Called by doctor; nothing of a patient is sent, only zeros.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import h11

from client.deploy.tunnel import CHUNK, Tunnel

HELLOS = 3
FIRST_UP_BYTES, MOST_UP_BYTES = 64 << 10, 4 << 20  # the first one tells how large the second may be
TRANSFER_S = 2.0
ALL_S = 60.0
_MAX_HEAD_BYTES = 16 << 10


@dataclass(frozen=True, kw_only=True)
class Line:
    """The line as it was. hello: the gateway's words about us; rtt_s: shortest round trip of a request.

    ahead_s: this machine's clock less the coordinator's; None where the gateway does not tell its time.
    up, down: bytes a second; None where the gateway has no transfer.
    """

    hello: dict[str, Any]
    rtt_s: float
    ahead_s: float | None
    up: float | None
    down: float | None


async def measure(
    tunnel: Tunnel, *, clock: Callable[[], float] = time.time, stopwatch: Callable[[], float] = time.perf_counter
) -> Line:
    """Measure.

    Raises:
        CertificateError: the gateway refuses us, with the reason. TunnelError: it cannot be reached.
    """
    async with tunnel.connection() as (reader, writer), asyncio.timeout(ALL_S):
        talk = _Talk(tunnel, reader, writer, stopwatch)
        rounds = []
        for _ in range(HELLOS):
            asked = clock()
            seconds, body = await talk.request("GET", "/mammofed/hello")
            rounds.append((seconds, asked, body))
        rtt_s, asked, body = min(rounds)
        hello = json.loads(body or b"null")
        if not isinstance(hello, dict):
            raise ValueError("no gateway")
        there = hello.get("time")
        ahead_s = asked + rtt_s / 2 - float(there) if isinstance(there, int | float) else None
        up = await _up(talk, rtt_s)
        down = None if up is None else await talk.download("/mammofed/transfer", TRANSFER_S)
    return Line(hello=hello, rtt_s=rtt_s, ahead_s=ahead_s, up=up, down=down)


async def _up(talk: _Talk, rtt_s: float) -> float | None:
    """Bytes a second towards the coordinator; the answer to the last byte ends it, so buffers count as nothing."""
    rate, size = None, FIRST_UP_BYTES
    for _ in range(2):
        seconds, body = await talk.request("POST", "/mammofed/transfer", size)
        if body is None:
            return None
        rate = size / max(seconds - rtt_s, 1e-4)
        size = int(min(max(rate * TRANSFER_S, FIRST_UP_BYTES), MOST_UP_BYTES))
    return rate


class _Talk:
    """Requests on one connection, one after another (RFC 9112)."""

    def __init__(self, tunnel: Tunnel, reader: asyncio.StreamReader, writer: asyncio.StreamWriter,
                 stopwatch: Callable[[], float]) -> None:  # fmt: skip
        self._tunnel, self._reader, self._writer, self._stopwatch = tunnel, reader, writer, stopwatch
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD_BYTES)
        self._first = True

    async def request(self, method: str, target: str, size: int = 0) -> tuple[float, bytes | None]:
        """Seconds until the answer was here, and its body; None where the gateway does not serve this."""
        began = self._stopwatch()
        await self._send(method, target, size)
        body, response = bytearray(), None
        while not isinstance(event := await self._event(), h11.EndOfMessage):
            if isinstance(event, h11.Response):
                response = event
            elif isinstance(event, h11.Data):
                body += event.data
        seconds = self._stopwatch() - began
        if response is None or response.status_code != 200:
            return seconds, None
        self._http.start_next_cycle()
        return seconds, bytes(body)

    async def download(self, target: str, limit_s: float) -> float | None:
        """Bytes a second of a body, which is not read to its end where that takes longer than `limit_s`."""
        await self._send("GET", target, 0)
        came, began = 0, 0.0
        while not isinstance(event := await self._event(), h11.EndOfMessage):
            if isinstance(event, h11.Response):
                if event.status_code != 200:
                    return None
                began = self._stopwatch()
            elif isinstance(event, h11.Data):
                came += len(event.data)
                if self._stopwatch() - began > limit_s:
                    break
        return came / max(self._stopwatch() - began, 1e-4)

    async def _send(self, method: str, target: str, size: int) -> None:
        headers = [("Host", "gateway"), ("Content-Length", str(size))]
        self._writer.write(self._http.send(h11.Request(method=method, target=target, headers=headers)) or b"")
        for _ in range(0, size, CHUNK):
            part = bytes(min(size, CHUNK))
            self._writer.write(self._http.send(h11.Data(data=part)) or b"")
            size -= len(part)
            await self._writer.drain()
        self._writer.write(self._http.send(h11.EndOfMessage()) or b"")
        await self._writer.drain()

    async def _event(self) -> Any:
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                data = await self._reader.read(CHUNK)
                if self._first:
                    self._tunnel.look(data)
                    self._first = False
                self._http.receive_data(data)
        except h11.RemoteProtocolError:
            raise ValueError("no gateway") from None
        if isinstance(event, h11.ConnectionClosed):
            raise ValueError("no gateway")
        return event
