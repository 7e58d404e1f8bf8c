"""Writes that wait for their turn: those too large for the connection of the reads, or behind such ones.

They are sent in order, one pipeline at a time, each bounded so that it fits into the timeout.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

MAX_BATCH = 128  # writes in a pipeline
MAX_BATCH_BYTES = 1024 * 1024
MAX_WAITING_BYTES = 64 * 1024 * 1024

Value = tuple[str, bytes, float]
"""A name, its value, and its lifetime in seconds."""


class Writes:
    """`send` stores values in one pipeline, and returns whether that was done; `spawn` starts background work."""

    def __init__(
        self, send: Callable[[Sequence[Value]], Awaitable[bool]], spawn: Callable[[Awaitable[None]], None]
    ) -> None:
        self._send = send
        self._spawn = spawn
        self._waiting: list[tuple[Value, asyncio.Future[bool]]] = []
        self._bytes = 0
        self._sending = False

    @property
    def idle(self) -> bool:
        """Whether no write waits or is under way."""
        return not self._waiting and not self._sending

    def has_room(self, size: int) -> bool:
        """Whether so many bytes more may wait."""
        return self._bytes + size <= MAX_WAITING_BYTES

    async def add(self, values: Sequence[Value], size: int) -> bool:
        """Store `values`, of `size` bytes in all, when it is their turn; whether that was done."""
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[bool]] = [loop.create_future() for _ in values]
        if self.idle:
            loop.call_soon(self._flush)
        self._waiting += zip(values, futures, strict=True)
        self._bytes += size
        return all([await future for future in futures])

    def drop(self) -> None:
        """Give up those that wait."""
        for _, future in self._waiting:
            if not future.done():
                future.set_result(False)
        self._waiting.clear()

    def _flush(self) -> None:
        if self._waiting and not self._sending:
            self._sending = True
            self._spawn(self._send_batch(self._next()))

    def _next(self) -> list[tuple[Value, asyncio.Future[bool]]]:
        size = number = 0
        for (_, value, _), _ in self._waiting[:MAX_BATCH]:
            size += len(value)
            if number and size > MAX_BATCH_BYTES:
                break
            number += 1
        batch, self._waiting = self._waiting[:number], self._waiting[number:]
        return batch

    async def _send_batch(self, batch: list[tuple[Value, asyncio.Future[bool]]]) -> None:
        done = False
        try:
            done = await self._send([value for value, _ in batch])
        finally:
            self._sending = False
            self._bytes -= sum(len(value) for (_, value, _), _ in batch)
            for _, future in batch:
                if not future.done():
                    future.set_result(done)
            self._flush()
