"""Shared event streams: what each client gets, when the upstream's stream breaks off, and when clients do not read."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.errors import UpstreamUnreachable
from gateway.streams import shared_stream
from gateway.streams.shared_stream import LAG, PING, SharedBody, SharedStreams, may_be_shared
from gateway.upstreams.response import Fetched

HEAD = [(b"content-type", b"text/event-stream")]
OF = (object(), object())
RETRY = re.compile(rb"retry: [0-9]+\n\n")


class Feed:
    """An upstream's body, whose pieces the test puts; an exception breaks it off, None ends it."""

    def __init__(self) -> None:
        self.pieces: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        self.closed = asyncio.Event()

    def put(self, *numbers: int) -> None:
        for number in numbers:
            self.pieces.put_nowait(b"id: %d\ndata: x\n\n" % number)

    async def chunks(self) -> AsyncIterator[bytes]:
        while (piece := await self.pieces.get()) is not None:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    async def whole(self, limit: int, live: object = None) -> bytes | None:
        return None

    async def aclose(self) -> None:
        self.closed.set()


class Upstream:
    """Answers requests for the stream, in turn, and keeps behind which event each began."""

    def __init__(self, *answers: Any) -> None:
        self.feeds: list[Feed] = []
        self.behind: list[bytes | None] = []
        self.answers = list(answers)
        self.came = asyncio.Semaphore(0)

    async def __call__(self, behind: bytes | None) -> Fetched:
        self.behind.append(behind)
        self.came.release()
        answer = self.answers.pop(0) if self.answers else (200, HEAD)
        if isinstance(answer, Exception):
            raise answer
        self.feeds.append(feed := Feed())
        return Fetched(answer[0], answer[1], feed)


def fits(fetched: Fetched) -> bool:
    return may_be_shared(fetched, keyed=False)


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> SharedStreams:
    monkeypatch.setattr(shared_stream, "RETRY", 0.001)
    return SharedStreams(chance=lambda: 0.5)


async def client(
    streams: SharedStreams, upstream: Upstream, last_id: bytes | None = None, key: str = "k"
) -> SharedBody:
    joined = await streams.join(key, OF, last_id, upstream, fits)
    assert isinstance(joined, tuple)
    return joined[0]


class Reader:
    """A client that takes what it is given, or leaves it."""

    def __init__(self, body: SharedBody, *, reads: bool = True) -> None:
        self.text = b""
        self.unread = 0
        self._reads = reads
        self._more = asyncio.Event()
        self.task = asyncio.ensure_future(body.written(self._take, lambda: self.unread))

    def _take(self, chunked: bytes) -> None:
        self.unread += 0 if self._reads else len(chunked)
        while chunked:
            size, _, rest = chunked.partition(b"\r\n")
            self.text += rest[: int(size, 16)]
            chunked = rest[int(size, 16) + 2 :]
        self._more.set()

    async def until(self, ending: bytes) -> bytes:
        async with asyncio.timeout(20):
            while not self.text.endswith(ending):
                self._more.clear()
                await self._more.wait()
        return self.text

    @property
    def ids(self) -> list[int]:
        return [int(number) for number in re.findall(rb"id: ([0-9]+)", self.text)]


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
    assert await streams.join("k", OF, b"unknown", upstream, fits) is None
    assert upstream.behind == [None]
    await streams.aclose()


@pytest.mark.parametrize("end", [None, UpstreamUnreachable("api", "gone")])
async def test_nothing_is_lost_or_doubled_when_the_upstream_s_stream_breaks_off(
    streams: SharedStreams, end: Exception | None
) -> None:
    upstream = Upstream((200, HEAD), UpstreamUnreachable("api", "gone"), (503, HEAD), (200, HEAD))
    reader = Reader(await client(streams, upstream, b"0"))
    upstream.feeds[0].put(1, 2)
    upstream.feeds[0].pieces.put_nowait(b"id: 3\ndata: cut o")
    upstream.feeds[0].pieces.put_nowait(end)
    for _ in range(4):
        await asyncio.wait_for(upstream.came.acquire(), 20)
    upstream.feeds[-1].put(2, 3, 4)  # what it sent already among them
    await reader.until(b"id: 4\ndata: x\n\n")
    assert reader.ids == [1, 2, 3, 4]
    assert upstream.behind == [b"0", b"2", b"2", b"2"]
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


async def test_an_event_larger_than_the_ring_ends_the_stream(streams: SharedStreams) -> None:
    upstream = Upstream()
    reader = Reader(await client(streams, upstream))
    upstream.feeds[0].pieces.put_nowait(b"data: " + b"x" * 70_000)
    await asyncio.wait_for(reader.task, 20)
    assert streams.counts.cut == {"failed": 1}


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
    streams._streams["changed"].of = (object(), object())
    streams.retire(lambda of: of == OF)
    await asyncio.wait_for(changed.task, 20)
    assert not kept.task.done()
    assert (streams.counts.cut, streams.clients) == ({"drained": 1}, 1)
    await streams.aclose()
