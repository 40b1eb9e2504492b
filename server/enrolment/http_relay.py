"""HTTP/1.1 between a site and SuperLink, one request at a time and event by event (h11); called by the gateway.

Nothing is held but the chunk in hand: a slow reader slows the sender. Each request gets a fresh connection to SuperLink
(loopback, so it is cheap), so that nothing of one request can reach into the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

import h11

from server.enrolment.http_guard import Answer, passed_on

CHUNK = 1 << 16
_MAX_HEAD_BYTES = 16 << 10
_LINGER_BYTES = 1 << 20  # of what a refused sender had sent already


class Waits(Protocol):
    """The time limits that a relay needs, in seconds; `gateway.GatewayLimits` has them."""

    @property
    def idle_s(self) -> float: ...

    @property
    def stall_s(self) -> float: ...

    @property
    def answer_s(self) -> float: ...

    @property
    def linger_s(self) -> float: ...


class BrokenError(Exception):
    """One side has ended, stalled or talked nonsense; `side` tells which."""

    def __init__(self, side: Side) -> None:
        self.side = side
        super().__init__("connection broken")


@dataclass(eq=False)
class Side:
    """One end of the relay: an h11 state machine over a stream. role: h11.SERVER towards the site."""

    role: type[h11.SERVER] | type[h11.CLIENT]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    stall_s: float

    def __post_init__(self) -> None:
        self.http = h11.Connection(self.role, max_incomplete_event_size=_MAX_HEAD_BYTES)

    async def event(self, wait_s: float) -> Any:
        """The next event of the other end.

        Raises:
            BrokenError: not within `wait_s`, or not HTTP.
        """
        try:
            async with asyncio.timeout(wait_s):
                while (event := self.http.next_event()) is h11.NEED_DATA:
                    self.http.receive_data(await self.reader.read(CHUNK))
        except (OSError, TimeoutError, h11.RemoteProtocolError):
            raise BrokenError(self) from None
        return event

    async def send(self, event: Any) -> None:
        """Send an event, at the pace of the other end.

        Raises:
            BrokenError: the other end has gone, or took nothing for `stall_s`.
        """
        data = self.http.send(event)
        if not data:
            return
        try:
            self.writer.write(data)
            async with asyncio.timeout(self.stall_s):
                await self.writer.drain()
        except (OSError, TimeoutError):
            raise BrokenError(self) from None

    async def answer(self, answer: Answer, *, close: bool) -> None:
        """Give an answer of our own, as JSON."""
        body = json.dumps(answer.document).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if close:
            headers.append((b"connection", b"close"))
        await self.send(h11.Response(status_code=answer.status, headers=headers))
        await self.send(h11.Data(data=body))
        await self.send(h11.EndOfMessage())

    async def linger(self, wait_s: float) -> None:
        """Throw away, unparsed, what still comes: closing on unread bytes would take our last words back (RST)."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(wait_s):
                thrown = 0
                while thrown < _LINGER_BYTES and (data := await self.reader.read(CHUNK)):
                    thrown += len(data)


async def serve(
    client: Side, *, check: Callable[[h11.Request], Answer | None], connect: Callable[[], Awaitable[Side]], waits: Waits
) -> None:
    """Answer the requests of one connection until it ends.

    Args:
        check: None lets a request through to SuperLink; else the answer in its place. One that is no success ends the
            connection.

    Raises:
        BrokenError: the connection broke in the middle of something.
    """
    while True:
        request = await client.event(waits.idle_s)
        if not isinstance(request, h11.Request):
            return
        answer = check(request)
        if answer is None:
            answer = await _forward(client, request, connect, waits)
        elif answer.status == 200:
            while not isinstance(await client.event(waits.stall_s), h11.EndOfMessage):
                pass
            await client.answer(answer, close=False)
            answer = None
        if answer is not None:
            await client.answer(answer, close=True)
            await client.linger(waits.linger_s)
            return
        if client.http.our_state is not h11.DONE or client.http.their_state is not h11.DONE:
            return  # one of both has said that it will close
        client.http.start_next_cycle()


async def _forward(
    client: Side, request: h11.Request, connect: Callable[[], Awaitable[Side]], waits: Waits
) -> Answer | None:
    """Carry a request there and its answer back; an answer of our own where SuperLink gave none."""
    try:
        upstream = await connect()
    except (OSError, TimeoutError):
        return _NO_SUPERLINK
    try:
        await _carry(client, upstream, request, waits)
    except BrokenError as error:
        if error.side is upstream and client.http.our_state is h11.SEND_RESPONSE:
            return _NO_SUPERLINK
        raise
    finally:
        upstream.writer.transport.abort()  # its answer is complete, or nobody wants the rest
    return None


async def _carry(client: Side, upstream: Side, request: h11.Request, waits: Waits) -> None:
    own = [(b"host", b"localhost"), (b"connection", b"close")]
    await upstream.send(h11.Request(method=request.method, target=request.target, headers=own + passed_on(request)))
    while isinstance(event := await client.event(waits.stall_s), h11.Data):
        await upstream.send(event)
    await upstream.send(h11.EndOfMessage())
    while isinstance(response := await upstream.event(waits.answer_s), h11.InformationalResponse):
        pass
    if not isinstance(response, h11.Response):
        raise BrokenError(upstream)
    await client.send(
        h11.Response(status_code=response.status_code, headers=passed_on(response), reason=response.reason)
    )
    while isinstance(event := await upstream.event(waits.stall_s), h11.Data):
        await client.send(h11.Data(data=event.data))
    await client.send(h11.EndOfMessage())


_NO_SUPERLINK = Answer(502, {"words": "SuperLink does not answer; the coordinator has to start it, then this goes on"})
