"""The body of a response on a connection of ours, while it is still coming."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from gateway.upstreams.httpx_api import httpx
from gateway.upstreams.request import Deadline, ReceivedHead

if TYPE_CHECKING:
    from gateway.upstreams.connection import PlainConnection

MOST_WAITING = 2**17
"""Bytes of a body that wait to be read, from which on no more are received."""
Answer = asyncio.Future[ReceivedHead]


class PlainBody(httpx.AsyncByteStream):
    """A response's body, as received: whole or an error.

    `patience` (seconds) is the longest time to wait for a piece. Its connection goes back to the pool when all has
    come, whether it was read or not.
    """

    __slots__ = ("_connection", "_error", "_pieces", "_waiter", "answers", "ended", "patience", "size")

    def __init__(self, connection: PlainConnection, answers: Answer, patience: float | None) -> None:
        self.answers: Answer | None = answers
        self.patience = patience
        self._connection = connection
        self._pieces: deque[bytes] = deque()
        self.size = 0
        self.ended = False
        self._error: httpx.TransportError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def ready(self) -> bytes | None:
        """What has come already; empty where the body has ended; None where one must wait, or it broke off."""
        pieces = self._pieces
        if not pieces:
            return b"" if self.ended else None
        piece = pieces.popleft() if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        if self.size > MOST_WAITING:
            self._connection.go_on(self)
        self.size = 0
        return piece

    async def piece(self) -> bytes:
        """The next of it, which is waited for; empty where it has ended. Raises httpx.TransportError."""
        while (piece := self.ready()) is None:
            if self._error is not None:
                raise self._error
            if not await self.comes(self.patience):
                raise httpx.ReadTimeout("timed out reading the body")
        return piece

    async def __aiter__(self) -> Any:
        while piece := await self.piece():
            yield piece

    def wait_longer(self) -> None:
        self.patience = None

    async def comes(self, seconds: float | None) -> bool:
        """Whether a piece, the end or an error comes within so many seconds. Nothing is lost where none does."""
        if self._pieces or self.ended or self._error is not None:
            return True
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            with nullcontext() if seconds is None else Deadline(seconds):
                await self._waiter
        except TimeoutError:
            return False
        finally:
            self._waiter = None
        return True

    async def aclose(self) -> None:
        if not self.ended:
            self._connection.close()

    def came(self, piece: bytes) -> bool:
        """Whether more may come; False where enough waits to be read."""
        self._pieces.append(piece)
        self.size += len(piece)
        self._wake()
        return self.size <= MOST_WAITING

    def end(self) -> None:
        self.ended = True
        self._wake()

    def fail(self, error: httpx.TransportError) -> None:
        self._error = self._error or error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
