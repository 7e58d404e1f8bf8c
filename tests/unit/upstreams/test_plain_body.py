"""Bodies that are still coming: waited for a piece at a time, and no more of them held than allowed."""

from __future__ import annotations

import asyncio

import httpx

from gateway.upstreams.connection import PlainConnection, Pool
from gateway.upstreams.plain_body import MOST_WAITING, PlainBody
from tests.support.raw import Connection, raw_upstream, speaking_to


async def test_a_wait_for_a_piece_that_ended_loses_nothing_and_an_error_needs_none() -> None:
    async def connect(origin: str, timeout: float | None) -> PlainConnection:
        raise AssertionError

    body = PlainBody(PlainConnection(Pool(connect, limit=1, keepalive=1.0), 1000), asyncio.Future(), None)
    assert not await body.comes(0.0)
    body.came(b"piece")
    assert await body.comes(0.0)
    assert (body.ready(), body.ready()) == (b"piece", None)
    body.fail(httpx.ReadError("cut"))
    assert await body.comes(60.0)


async def test_a_body_that_nobody_reads_is_received_no_further_than_its_bound() -> None:
    sent, size = asyncio.Event(), 64 * MOST_WAITING

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(64):
            await connection.send(b"x" * MOST_WAITING)
        sent.set()

    async with raw_upstream(script) as raw:
        upstream = speaking_to(raw)
        fetched = await upstream.fetch("GET", "/", [])
        stream = fetched.body._response.stream  # type: ignore[attr-defined]
        while stream.size <= MOST_WAITING:
            await asyncio.sleep(0)
        for _ in range(100):
            await asyncio.sleep(0)
        assert stream.size < 8 * MOST_WAITING
        assert not sent.is_set()
        body = await fetched.body.whole(2 * size)
        assert body is not None
        assert len(body) == size
        await upstream.aclose()
