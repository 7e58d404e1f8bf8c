"""A request's body on its way from a client to an upstream.

Its beginning is read before any place at the upstream is taken, so that a client that sends slowly holds none: of
nearly all requests to an API that is the whole body. nginx reads all of it first (`proxy_request_buffering`), onto a
disk; here a longer one is streamed, and has places of its own (`upstreams`).
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable

import httpx

AHEAD = 64 * 1024
"""Bytes that are here before a place is taken: what uvicorn holds of a body before it stops reading."""


class Upload(httpx.AsyncByteStream):
    """A body that is read once: first, up to `AHEAD` bytes, by `begin`; then all of it, by who sends it on."""

    def __init__(self, chunks: AsyncIterable[bytes]) -> None:
        self._chunks: AsyncIterator[bytes] = aiter(chunks)
        self._read: list[bytes] = []
        self._whole = False
        self._ended: Callable[[], None] | None = None

    async def begin(self) -> bool:
        """Read the beginning; whether that is the whole body. Raises what its source raises."""
        size = 0
        while size < AHEAD and not self._whole:
            piece = await anext(self._chunks, None)
            if piece is None:
                self._whole = True
            else:
                self._read.append(piece)
                size += len(piece)
        return self._whole

    def on_end(self, ended: Callable[[], None]) -> None:
        """Have `ended` called, once, when all was read or nobody will read on."""
        self._ended = ended

    def end(self) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while self._read:
                yield self._read.pop(0)
            if not self._whole:
                async for piece in self._chunks:
                    yield piece
        finally:
            self.end()

    async def aclose(self) -> None:
        self.end()
