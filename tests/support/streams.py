"""Shared event streams for tests: an upstream whose events the test puts, and clients that read or do not."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

from gateway.streams.shared_body import SharedBody
from gateway.streams.shared_stream import SharedStreams, may_be_shared
from gateway.upstreams.response import Fetched

HEAD = [(b"content-type", b"text/event-stream")]
OF = (object(), object())


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
