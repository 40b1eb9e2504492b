"""The proxy of the fault harness: each fault comes at its very byte, on its connection, and nothing else changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulations.faults.proxy import Fault, Proxy

SOON_S = 120.0  # an answer that must come; never waited for in vain
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Echo:
    """A target that sends back what it gets, half-closes when it is told the end, and remembers everything."""

    def __init__(self) -> None:
        self.heard: list[bytearray] = []
        self.ended = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine = bytearray()
        self.heard.append(mine)
        try:
            while data := await reader.read(1000):
                mine += data
                writer.write(data)
                await writer.drain()
            writer.write_eof()
        except OSError:
            pass
        finally:
            writer.close()
            self.ended.set()


@asynccontextmanager
async def through(*faults: Fault, then: Fault | None = None) -> AsyncIterator[tuple[Echo, Proxy]]:
    echo = Echo()
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    async with Proxy("127.0.0.1:0", f"{host}:{port}", faults, then=then) as proxy:
        yield echo, proxy
    server.close()


async def connect(proxy: Proxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = proxy.address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def exchange(proxy: Proxy, data: bytes) -> bytes:
    """Send, say that this was all, read to the end."""
    reader, writer = await connect(proxy)
    writer.write(data)
    writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), SOON_S)
    writer.close()
    return answer


async def broken(proxy: Proxy, data: bytes) -> bytes:
    """Send and read until the connection breaks: what had come by then."""
    reader, writer = await connect(proxy)
    writer.write(data)
    found = bytearray()
    with pytest.raises(OSError):
        while True:
            piece = await asyncio.wait_for(reader.read(100), SOON_S)
            if not piece:
                raise ConnectionResetError
            found += piece
    writer.transport.abort()
    return bytes(found)


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]


@settings(max_examples=15)
@given(st.binary(min_size=0, max_size=100_000))
def test_without_a_fault_every_byte_and_both_half_closes_pass(data: bytes) -> None:
    async def test() -> None:
        async with through() as (echo, proxy):
            assert await exchange(proxy, data) == data
            assert bytes(echo.heard[0]) == data
            assert (proxy.connections[0].up, proxy.connections[0].down) == (len(data), len(data))

    run(test)


@pytest.mark.parametrize("after", [0, 1, 999, 5000])
def test_a_cut_in_the_answer_comes_after_its_byte_and_only_on_its_connection(after: int) -> None:
    async def test() -> None:
        async with through(Fault(cut_down_after=after)) as (_, proxy):
            assert len(await broken(proxy, bytes(9000))) <= after
            assert proxy.connections[0].down == after and proxy.connections[0].ended == "cut"
            assert await exchange(proxy, b"again") == b"again"

    run(test)


@pytest.mark.parametrize("after", [0, 1, 999, 5000])
def test_a_cut_in_the_request_leaves_the_target_with_no_more_than_that(after: int) -> None:
    async def test() -> None:
        async with through(Fault(cut_up_after=after)) as (echo, proxy):
            await broken(proxy, bytes(9000))
            await asyncio.wait_for(echo.ended.wait(), SOON_S)
            assert len(echo.heard[0]) <= after == proxy.connections[0].up

    run(test)


def test_a_half_open_connection_says_nothing_and_swallows_everything() -> None:
    async def test() -> None:
        async with through(Fault(half_open_after=10)) as (echo, proxy):
            reader, writer = await connect(proxy)
            writer.write(bytes(10))
            assert await asyncio.wait_for(reader.readexactly(10), SOON_S) == bytes(10)
            before = len(echo.heard[0])
            writer.write(b"x" * 100)
            await writer.drain()
            assert await exchange(proxy, b"another connection lives") == b"another connection lives"
            assert not reader.at_eof() and len(echo.heard[0]) == before
            assert proxy.connections[0].ended == "half-open"
            writer.transport.abort()

    run(test)


def test_a_doubled_connection_reaches_the_target_twice_and_is_answered_once() -> None:
    async def test() -> None:
        async with through(Fault(double=True)) as (echo, proxy):
            assert await exchange(proxy, b"order") == b"order"
            async with asyncio.timeout(SOON_S):  # the second connection is nobody's to wait for
                while sum(map(len, echo.heard)) < 2 * len(b"order"):
                    await asyncio.sleep(0.001)
            assert sorted(map(bytes, echo.heard)) == [b"order", b"order"]
            assert proxy.connections[0].doubled == 5

    run(test)


def test_slow_and_late_connections_lose_nothing() -> None:
    async def test() -> None:
        data = bytes(range(256)) * 40
        async with through(Fault(latency_s=0.001), Fault(bytes_per_s=1e6)) as (_, proxy):
            assert await exchange(proxy, data) == data
            assert await exchange(proxy, data) == data

    run(test)


def test_all_open_connections_are_cut_at_once() -> None:
    async def test() -> None:
        async with through() as (_, proxy):
            pairs = [await connect(proxy) for _ in range(3)]
            for reader, writer in pairs:
                writer.write(b"hello")
                assert await asyncio.wait_for(reader.readexactly(5), SOON_S) == b"hello"
            proxy.cut_all()
            for reader, writer in pairs:
                with pytest.raises(OSError):
                    await asyncio.wait_for(reader.readexactly(1), SOON_S)
                writer.transport.abort()

    run(test)


def test_nobody_at_the_target_is_a_reset_and_not_a_silence() -> None:
    async def test() -> None:
        async with Proxy("127.0.0.1:0", "127.0.0.1:1") as proxy:
            reader, writer = await connect(proxy)
            with suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), SOON_S) == b""
            writer.transport.abort()

    run(test)


def test_unix_sockets_too(tmp_path: Path) -> None:
    async def test() -> None:
        echo = Echo()
        inner, outer = str(tmp_path / "inner"), str(tmp_path / "outer")
        server = await asyncio.start_unix_server(echo, inner)
        async with Proxy(outer, inner) as proxy:
            assert proxy.address == outer
            reader, writer = await asyncio.open_unix_connection(outer)
            writer.write(b"data")
            writer.write_eof()
            assert await asyncio.wait_for(reader.read(), SOON_S) == b"data"
            writer.close()
        assert not Path(outer).exists()
        server.close()

    run(test)
