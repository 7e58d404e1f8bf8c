"""The fault proxy does what it says: a test that trusts it would otherwise show nothing."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from tests.support.proxy import FaultProxy, Faults, faulty, flipped

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def echoing() -> AsyncIterator[FaultProxy]:
    """A proxy before a server that sends back what it gets."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1000):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with faulty("127.0.0.1", server.sockets[0].getsockname()[1]) as proxy:
        yield proxy
    server.close()


@contextlib.asynccontextmanager
async def connected(proxy: FaultProxy) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def sent(streams: Streams, data: bytes) -> bytes:
    streams[1].write(data)
    return await streams[0].readexactly(len(data))


async def test_without_a_fault_everything_passes_and_ends_as_it_ended() -> None:
    async with echoing() as proxy, connected(proxy) as (reader, writer):
        assert await sent((reader, writer), b"x" * 300_000) == b"x" * 300_000
        writer.write_eof()
        assert await reader.read() == b""
        await proxy.until(lambda: proxy.open == 0)
        assert (proxy.accepted, proxy.passed_up, proxy.passed_down) == (1, 300_000, 300_000)


async def test_delay_and_bandwidth_take_their_time() -> None:
    async with echoing() as proxy, connected(proxy) as streams:
        proxy.down.delay = 0.05
        began = time.monotonic()
        await sent(streams, b"late")
        assert time.monotonic() - began >= 0.05
        proxy.clear()
        proxy.up.bandwidth = 10_000
        began = time.monotonic()
        await sent(streams, b"x" * 1000)
        assert time.monotonic() - began >= 0.09


async def test_slices_arrive_one_by_one() -> None:
    async with echoing() as proxy, connected(proxy) as (reader, writer):
        proxy.down.slices = 2
        proxy.down.between = 0.02
        writer.write(b"abcdef")
        assert await reader.read(100) == b"ab"
        assert await reader.readexactly(4) == b"cdef"


async def test_a_cut_is_a_reset_after_so_many_bytes() -> None:
    async with echoing() as proxy, connected(proxy) as (reader, writer):
        proxy.down.cut_after = 3
        writer.write(b"abcdef")
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(6)


async def test_all_connections_can_be_cut_at_once_and_new_ones_refused() -> None:
    async with echoing() as proxy, connected(proxy) as streams:
        await sent(streams, b"there")
        await proxy.refuse()
        with pytest.raises(ConnectionResetError):
            await streams[0].read()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(proxy.host, proxy.port)
        await proxy.accept()
        async with connected(proxy) as again:
            assert await sent(again, b"back") == b"back"


async def test_a_half_close_ends_one_direction_only() -> None:
    async with echoing() as proxy, connected(proxy) as (reader, writer):
        proxy.down.close_after = 3
        writer.write(b"abcdef")
        assert await reader.read() == b"abc"
        writer.write(b"more")
        await proxy.until(lambda: proxy.passed_up == 10)


async def test_truncated_bytes_and_those_in_a_black_hole_vanish_and_the_connection_stays() -> None:
    async with echoing() as proxy, connected(proxy) as (reader, writer):
        proxy.down.truncate_after = 2
        writer.write(b"abcdef")
        assert await reader.readexactly(2) == b"ab"
        await proxy.until(lambda: proxy.passed_up == 6)
        proxy.clear()
        proxy.up.blackhole = True
        writer.write(b"lost")
        await proxy.until(lambda: proxy.swallowed == 4)
        proxy.up.blackhole = False
        assert await sent((reader, writer), b"kept") == b"kept"


async def test_stalled_bytes_are_late_and_not_lost() -> None:
    async with echoing() as proxy, connected(proxy) as (reader, writer):
        proxy.stall()
        writer.write(b"wait")
        answer = asyncio.ensure_future(reader.readexactly(4))
        assert await asyncio.wait((answer,), timeout=0.05) == (set(), {answer})
        proxy.resume()
        assert await answer == b"wait"


async def test_bytes_can_be_spoiled_and_added() -> None:
    async with echoing() as proxy, connected(proxy) as (reader, writer):
        proxy.down.corrupt = flipped()
        spoiled = await sent((reader, writer), b"\0" * 10)
        assert sum(byte.bit_count() for byte in spoiled) == 1
        proxy.clear()
        proxy.down.extra = b"!"
        writer.write(b"hi")
        assert await reader.readexactly(3) == b"hi!"


async def test_clearing_leaves_no_fault() -> None:
    faults = Faults(delay=1, blackhole=True, cut_after=3, extra=b"x", corrupt=flipped())
    faults.clear()
    assert faults == Faults()
