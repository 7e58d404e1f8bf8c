"""Shared event streams: what each client gets, when the upstream's stream breaks off, and when clients do not read."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.errors import UpstreamUnreachable
from gateway.streams import shared_stream
from gateway.streams.shared_stream import PING, SHORTEST_RETRY, SharedStreams, may_be_shared
from gateway.upstreams.response import Fetched
from tests.support.streams import HEAD, OF, Feed, Reader, Upstream, client, fits

RETRY = re.compile(rb"retry: [0-9]+\n\n")


async def test_all_clients_of_a_key_have_one_stream_and_each_its_events(streams: SharedStreams) -> None:
    upstream = Upstream()
    readers = [Reader(body) for body in await asyncio.gather(*(client(streams, upstream) for _ in range(20)))]
    assert (len(streams), streams.clients, upstream.behind) == (1, 20, [None])
    upstream.feeds[0].put(1, 2)
    for reader in readers:
        assert (await reader.until(b"id: 2\ndata: x\n\n")).startswith(b"retry: 3000\n\n")
        assert reader.ids == [1, 2]
    await client(streams, other := Upstream(), key="other")
    assert (len(streams), other.behind) == (2, [None])
    await streams.aclose()
    await asyncio.wait_for(upstream.feeds[0].closed.wait(), 20)


async def test_a_client_that_was_away_gets_what_it_missed_and_no_more(streams: SharedStreams) -> None:
    upstream = Upstream()
    first = Reader(await client(streams, upstream))
    upstream.feeds[0].put(*range(1, 6))
    await first.until(b"id: 5\ndata: x\n\n")
    back = Reader(await client(streams, upstream, b"3"))
    upstream.feeds[0].put(6)
    await back.until(b"id: 6\ndata: x\n\n")
    assert back.ids == [4, 5, 6]
    assert upstream.behind == [None]
    await streams.aclose()


async def test_events_that_come_with_the_head_are_for_the_clients_that_wait_for_it(streams: SharedStreams) -> None:
    class Prompt(Upstream):
        async def __call__(self, behind: bytes | None) -> Fetched:
            fetched = await super().__call__(behind)
            self.feeds[-1].put(1, 2)
            return fetched

    upstream = Prompt()
    readers = [Reader(body) for body in await asyncio.gather(*(client(streams, upstream) for _ in range(3)))]
    late = Reader(await client(streams, upstream))
    upstream.feeds[0].put(3)
    for reader in (*readers, late):
        await reader.until(b"id: 3\ndata: x\n\n")
    assert ([reader.ids for reader in readers], late.ids) == ([[1, 2, 3]] * 3, [3])
    assert len(upstream.behind) == 1
    await streams.aclose()


async def test_no_client_s_last_event_id_decides_what_others_get(streams: SharedStreams) -> None:
    """It is not in the key: one that never existed starved all other clients of the key."""
    upstream = Upstream()
    hostile = Reader(await client(streams, upstream, b"9999"))
    reader = Reader(await client(streams, upstream))
    assert upstream.behind == [None, b"9999"]
    upstream.feeds[0].put(1)
    assert Reader(await client(streams, upstream, b"")).ids == []
    await reader.until(b"id: 1\ndata: x\n\n")
    assert (reader.ids, hostile.ids, len(streams)) == ([1], [], 2)
    await streams.aclose()


async def test_a_refusal_of_a_last_event_id_is_that_client_s_alone(streams: SharedStreams) -> None:
    upstream = Upstream((200, HEAD), (204, []), (204, []))
    for _ in range(2):
        assert isinstance(await streams.join("k", OF, b"9999", upstream, fits), Fetched)
    await client(streams, upstream)
    assert upstream.behind == [None, b"9999", b"9999"]
    await streams.aclose()


@pytest.mark.parametrize("ahead", [0, 1], ids=["the key's own stream", "the stream behind the id"])
async def test_clients_behind_an_id_move_to_the_stream_of_the_key_once_that_has_the_same_event(
    streams: SharedStreams, ahead: int
) -> None:
    upstream = Upstream()
    back = [Reader(await client(streams, upstream, b"3")) for _ in range(3)]
    reader = Reader(await client(streams, upstream))
    assert upstream.behind == [None, b"3"]
    main, behind = upstream.feeds
    for feed in (main, behind) if ahead == 0 else (behind, main):
        feed.put(*((4, 5, 6) if feed is behind else (5, 6, 7)))
        last = 7 if feed is main or ahead == 0 else 6
        await (reader if feed is main else back[0]).until(b"id: %d\ndata: x\n\n" % last)
    await asyncio.wait_for(behind.closed.wait(), 20)
    assert len(streams) == 1
    main.put(8)
    for each in back:
        await each.until(b"id: 8\ndata: x\n\n")
        assert each.ids == [4, 5, 6, 7, 8]
    assert (reader.ids, upstream.behind) == ([5, 6, 7, 8], [None, b"3"])
    await streams.aclose()


async def test_a_stream_behind_an_id_ends_with_its_clients(streams: SharedStreams) -> None:
    upstream = Upstream()
    body = await client(streams, upstream, b"3")
    await body.aclose()
    await asyncio.wait_for(upstream.feeds[1].closed.wait(), 20)
    assert list(streams._streams) == [("k", None)]
    await streams.aclose()


async def test_a_stream_of_the_key_that_begins_later_gets_the_clients_too(streams: SharedStreams) -> None:
    upstream = Upstream(UpstreamUnreachable("api", "gone"))
    back = Reader(await client(streams, upstream, b"3"))
    assert len(streams) == 1
    reader = Reader(await client(streams, upstream))
    for feed in upstream.feeds:
        feed.put(4)
    await reader.until(b"id: 4\ndata: x\n\n")
    await asyncio.wait_for(upstream.feeds[0].closed.wait(), 20)
    upstream.feeds[1].put(5)
    await back.until(b"id: 5\ndata: x\n\n")
    assert (back.ids, len(streams)) == ([4, 5], 1)
    await streams.aclose()


async def test_clients_that_come_back_within_many_events_get_each_once(streams: SharedStreams) -> None:
    upstream = Upstream()
    reader = Reader(await client(streams, upstream))
    upstream.feeds[0].pieces.put_nowait(b"".join(b"id: %d\ndata: %b\n\n" % (n, b"x" * 1000) for n in range(1, 101)))
    back: dict[int, Reader] = {}
    async with asyncio.timeout(20):
        while reader.ids[-1:] != [100]:
            if reader.ids and reader.ids[-1] not in back:
                at = reader.ids[-1]
                back[at] = Reader(await client(streams, upstream, b"%d" % at))
            await asyncio.sleep(0)
    assert len(back) > 3
    for at, each in back.items():
        await each.until(b"x\n\n") if at < 100 else None
        assert each.ids == list(range(at + 1, 101))
    assert upstream.behind == [None]
    await streams.aclose()


@pytest.mark.parametrize("end", [None, UpstreamUnreachable("api", "gone")])
async def test_nothing_is_lost_or_doubled_when_the_upstream_s_stream_breaks_off(
    streams: SharedStreams, end: Exception | None
) -> None:
    upstream = Upstream((200, HEAD), UpstreamUnreachable("api", "gone"), (503, HEAD), (200, HEAD))
    reader = Reader(await client(streams, upstream))
    upstream.feeds[0].put(1, 2)
    upstream.feeds[0].pieces.put_nowait(b"id: 3\ndata: cut o")
    upstream.feeds[0].pieces.put_nowait(end)
    for _ in range(4):
        await asyncio.wait_for(upstream.came.acquire(), 20)
    upstream.feeds[-1].put(2, 3, 4)  # what it sent already among them
    await reader.until(b"id: 4\ndata: x\n\n")
    assert reader.ids == [1, 2, 3, 4]
    assert upstream.behind == [None, b"2", b"2", b"2"]
    assert (streams.counts.opened, streams.counts.reopened) == (1, 1)
    await streams.aclose()


@pytest.mark.parametrize("answer", [(204, []), (200, [(b"content-type", b"text/html")]), (404, HEAD)])
async def test_clients_are_cut_when_the_upstream_gives_no_stream_any_more(streams: SharedStreams, answer: Any) -> None:
    upstream = Upstream((200, HEAD), answer)
    reader = Reader(await client(streams, upstream))
    upstream.feeds[0].pieces.put_nowait(None)
    await asyncio.wait_for(reader.task, 20)
    assert RETRY.sub(b"", reader.text) == b""
    assert (len(streams), streams.counts.cut["ended"]) == (0, 1)


async def test_many_events_at_once_cut_nobody_who_reads(streams: SharedStreams) -> None:
    upstream = Upstream()
    body = await client(streams, upstream)
    text, chunks = b"", body.chunks()
    upstream.feeds[0].pieces.put_nowait(b"".join(b"id: %d\ndata: %b\n\n" % (n, b"x" * 1000) for n in range(300)))
    async with asyncio.timeout(20):
        while b"id: 299\n" not in text:
            text += await anext(chunks)
    assert text.count(b"id: ") == 300
    await chunks.aclose()  # type: ignore[attr-defined]
    assert streams.clients == 0
    await streams.aclose()


@pytest.mark.parametrize("text", [b"data: " + b"x" * 70_000, b"data: " + b"x" * 2**20 + b"\n\n"])
async def test_an_event_larger_than_the_ring_ends_the_stream_behind_those_before_it(
    streams: SharedStreams, text: bytes
) -> None:
    upstream = Upstream()
    reader = Reader(await client(streams, upstream))
    upstream.feeds[0].pieces.put_nowait(b"id: 1\ndata: x\n\n" + text)
    await asyncio.wait_for(reader.task, 20)
    assert (reader.ids, streams.counts.cut) == ([1], {"failed": 1})


async def test_a_client_does_not_wait_for_a_stream_that_ended_as_it_began(streams: SharedStreams) -> None:
    class Huge(Feed):
        async def chunks(self) -> AsyncIterator[bytes]:
            yield b"data: " + b"x" * 2**20 + b"\n\n"

    async def request(behind: bytes | None) -> Fetched:
        return Fetched(200, HEAD, Huge())

    async with asyncio.timeout(20):
        joined = await streams.join("k", OF, None, request, fits)
        if isinstance(joined, tuple):
            await Reader(joined[0]).task
    assert (len(streams), streams.clients) == (0, 0)


async def test_an_upstream_that_ends_each_stream_at_once_is_not_asked_without_a_pause(streams: SharedStreams) -> None:
    upstream = Upstream()
    await client(streams, upstream)
    stream = streams._streams["k", None]
    upstream.feeds[0].pieces.put_nowait(b"retry: 0\n\n")
    upstream.feeds[0].pieces.put_nowait(None)
    await asyncio.wait_for(upstream.feeds[0].closed.wait(), 20)
    assert stream._retry == SHORTEST_RETRY
    await streams.aclose()


async def test_a_quiet_stream_has_comments(streams: SharedStreams, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_stream, "PING_EVERY", 0.001)
    reader = Reader(await client(streams, Upstream()))
    await reader.until(PING * 3)
    await streams.aclose()


@pytest.mark.parametrize(
    ("status", "headers", "keyed", "shared"),
    [
        (200, HEAD, False, True),
        (200, [(b"content-type", b"Text/Event-Stream; charset=utf-8"), (b"cache-control", b"no-store")], False, True),
        (200, [(b"content-type", b"application/json")], False, False),
        (200, [], False, False),
        (503, HEAD, False, False),
        (200, [*HEAD, (b"set-cookie", b"a=b")], True, False),
        (200, [*HEAD, (b"cache-control", b"private")], False, False),
        (200, [*HEAD, (b"cache-control", b"private")], True, True),
        (200, [*HEAD, (b"content-encoding", b"gzip")], False, False),
    ],
)
def test_only_an_event_stream_for_all_is_shared(status: int, headers: Any, keyed: bool, shared: bool) -> None:
    assert may_be_shared(Fetched(status, headers, Feed()), keyed=keyed) is shared


async def test_what_is_no_stream_is_one_client_s_and_the_others_ask_themselves(streams: SharedStreams) -> None:
    upstream = Upstream((200, [(b"content-type", b"text/html")]))
    found = await asyncio.gather(*(streams.join("k", OF, None, upstream, fits) for _ in range(5)))
    assert [isinstance(each, Fetched) for each in found] == [True, *[False] * 4]
    assert found[1:] == [None] * 4
    assert await streams.join("k", OF, None, upstream, fits) is None
    assert upstream.behind == [None]


async def test_a_failure_to_open_is_everybody_s_and_the_next_request_asks_again(streams: SharedStreams) -> None:
    upstream = Upstream(UpstreamUnreachable("api", "gone"))
    found = await asyncio.gather(
        *(streams.join("k", OF, None, upstream, fits) for _ in range(3)), return_exceptions=True
    )
    assert all(isinstance(each, UpstreamUnreachable) for each in found)
    await client(streams, upstream)
    assert len(upstream.behind) == 2
    await streams.aclose()


async def test_a_client_that_leaves_while_the_stream_opens_leaves_it_to_the_others(streams: SharedStreams) -> None:
    upstream = Upstream()
    leaving = asyncio.ensure_future(streams.join("k", OF, None, upstream, fits))
    staying = asyncio.ensure_future(streams.join("k", OF, None, upstream, fits))
    await asyncio.sleep(0)
    leaving.cancel()
    assert isinstance(await staying, tuple)
    assert streams.clients == 1
    await streams.aclose()


async def test_a_response_that_nobody_waits_for_is_closed(streams: SharedStreams) -> None:
    upstream = Upstream((200, []))
    leaving = asyncio.ensure_future(streams.join("k", OF, None, upstream, fits))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait_for(upstream.came.acquire(), 20)
    async with asyncio.timeout(20):
        await upstream.feeds[0].closed.wait()


async def test_a_stream_without_clients_ends_after_a_while(
    streams: SharedStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_stream, "LINGER", 0.001)
    upstream = Upstream()
    body = await client(streams, upstream)
    await body.aclose()
    await asyncio.wait_for(upstream.feeds[0].closed.wait(), 20)
    assert len(streams) == 0


async def test_clients_are_sent_away_one_after_the_other_with_different_delays() -> None:
    chances = iter([0.1 * number for number in range(10)] * 10)
    streams = SharedStreams(chance=lambda: next(chances))
    upstream = Upstream()
    readers = [Reader(await client(streams, upstream)) for _ in range(6)]
    loop, ends = asyncio.get_running_loop(), []
    for reader in readers:
        reader.task.add_done_callback(lambda task: ends.append(loop.time()))
    began = loop.time()
    await streams.drain(0.1)
    await asyncio.gather(*(reader.task for reader in readers))
    assert max(ends) - began > 0.05
    assert len(set(ends)) > 3
    assert len({RETRY.findall(reader.text)[-1] for reader in readers}) > 3
    assert (streams.counts.cut, len(streams)) == ({"drained": 6}, 0)


async def test_a_reload_sends_away_clients_of_what_has_changed_alone(
    streams: SharedStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_stream, "SPREAD", 0.001)
    upstream = Upstream()
    kept, changed = Reader(await client(streams, upstream)), Reader(await client(streams, upstream, key="changed"))
    streams._streams["changed", None].of = (object(), object())
    streams.retire(lambda of: of == OF)
    await asyncio.wait_for(changed.task, 20)
    assert not kept.task.done()
    assert (streams.counts.cut, streams.clients) == ({"drained": 1}, 1)
    await streams.aclose()
