"""What one client gets of a shared stream, in the form of a response's body.

Decides what waits for a client, and that one which does not read is cut before that is more than `LAG` bytes. It must
not know where events come from (`shared_stream`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from gateway.streams.events import Event

if TYPE_CHECKING:
    from gateway.streams.shared_stream import SharedStream

LAG = 64 * 1024
"""Bytes that may wait for one client, or a single event."""
LAGGED = "lagged"


def chunk(text: bytes) -> bytes:
    """A piece of a body in chunked coding (RFC 9112 §7.1)."""
    return b"%x\r\n%b\r\n" % (len(text), text)


class SharedBody:
    """What one client gets of a shared stream; a `ResponseBody`.

    It is written in one of two ways: `written` hands each piece in chunked coding to a function at once, `chunks` gives
    the pieces one after the other. What comes before is kept, up to `LAG` bytes.
    """

    def __init__(self, stream: SharedStream, beginning: list[bytes]) -> None:
        self._stream = stream
        self._waiting = beginning
        self._size = sum(map(len, beginning))
        self._write: Callable[[bytes], object] | None = None
        self._unsent: Callable[[], int] = int
        self._news = asyncio.Event()
        self._over = False
        self.sent = 0
        """Bytes that were written by `written`."""
        self.lagged = False
        """Whether it was cut because its client does not read."""

    def push(self, text: bytes, chunked: bytes) -> None:
        """Hand on an event or a comment, in both forms."""
        write = self._write
        if write is not None:
            if (waiting := self._unsent()) and waiting + len(chunked) > LAG:
                self._stream.cut(self, LAGGED)
            else:
                write(chunked)
                self.sent += len(chunked)
            return
        if self._waiting and self._size + len(text) > LAG:
            self._stream.cut(self, LAGGED)
            return
        self._size += len(text)
        self._waiting.append(text)
        self._news.set()

    def end(self, last: bytes, *, lagged: bool) -> None:
        """Hand on the last piece."""
        if self._over:
            return
        self._over, self.lagged = True, lagged
        if self._write is not None:
            chunked = chunk(last)
            self._write(chunked)
            self.sent += len(chunked)
        else:
            self._waiting.append(last)
        self._news.set()

    async def written(self, write: Callable[[bytes], object], unsent: Callable[[], int]) -> None:
        """Have `write` called with each piece in chunked coding, the end of the body excepted, until that; `unsent` is
        how many bytes wait for the client."""
        if self._waiting:
            beginning, self._waiting = b"".join(map(chunk, self._waiting)), []
            write(beginning)
            self.sent += len(beginning)
        self._write, self._unsent = write, unsent
        while not self._over:
            self._news.clear()
            await self._news.wait()

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            while True:
                self._news.clear()
                pieces, self._waiting, self._size = self._waiting, [], 0
                if pieces:
                    yield b"".join(pieces)
                elif self._over:
                    return
                else:
                    await self._news.wait()
        finally:
            await self.aclose()

    async def whole(self, limit: int, live: object = None) -> bytes | None:
        """It has no end."""
        return None

    def move(self, stream: SharedStream, missed: list[Event]) -> None:
        """Become one of another stream's, which has sent these events already."""
        self._stream = stream
        for event in missed:
            self.push(event.text, chunk(event.text))

    async def aclose(self) -> None:
        self._stream.leave(self)
