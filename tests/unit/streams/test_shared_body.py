"""What one client of a shared stream gets, and when it is cut."""

from __future__ import annotations

import asyncio

import pytest

from gateway.streams.shared_body import LAG
from gateway.streams.shared_stream import SharedStreams
from tests.support.streams import Reader, Upstream, client


@pytest.mark.parametrize("written", [True, False])
async def test_a_client_that_does_not_read_is_cut_at_the_limit_and_costs_the_others_nothing(
    streams: SharedStreams, written: bool
) -> None:
    upstream = Upstream()
    reader = Reader(await client(streams, upstream))
    stuck = await client(streams, upstream)
    unread = Reader(stuck, reads=False) if written else None
    for number in range(100):
        upstream.feeds[0].pieces.put_nowait(b"id: %d\ndata: %b\n\n" % (number, b"x" * 1000))
    await reader.until(b"id: 99\ndata: " + b"x" * 1000 + b"\n\n")
    assert reader.ids == list(range(100))
    assert streams.counts.cut == {"lagged": 1}
    assert streams.clients == 1
    kept = unread.text if unread is not None else b"".join(stuck._waiting)
    assert LAG - 2000 < len(kept) <= LAG + 100
    assert kept.endswith(b"\n\nretry: 3000\n\n")
    await streams.aclose()


async def test_an_event_as_large_as_the_ring_passes(streams: SharedStreams) -> None:
    upstream = Upstream()
    body = await client(streams, upstream)
    reader, chunks = Reader(await client(streams, upstream)), body.chunks()
    assert (await anext(chunks)).startswith(b"retry: ")
    upstream.feeds[0].pieces.put_nowait(b"id: 1\ndata: " + b"x" * (LAG - 13) + b"\n\n")
    assert len(await reader.until(b"x\n\n")) > LAG
    async with asyncio.timeout(20):
        while not (await anext(chunks)).endswith(b"x\n\n"):
            pass
    await chunks.aclose()  # type: ignore[attr-defined]
    await streams.aclose()
