"""A deadline for what another machine answers, fair to it where this process was the one that stood still.

`asyncio.timeout` goes by the clock alone: after a pause of the loop (a neighbour had the processor, a collection went
on) its timer runs before the answer is read that has been in the socket for long. Where that happens thrice, a healthy
Redis is left alone, and upstreams are given half of their places for it. Here a timer that comes late lets the loop
read once more before it ends the wait.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

LATE = 0.005
"""Seconds by which a timer comes late where the loop stood still."""
MORE = 0.01
"""Seconds that are given then, once."""


class Deadline:
    """An async context manager; raises TimeoutError where what it holds takes longer than `seconds`."""

    __slots__ = ("_due", "_handle", "_loop", "_seconds", "_timeout")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def __aenter__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout = asyncio.timeout(None)
        await self._timeout.__aenter__()
        self._due = self._loop.time() + self._seconds
        self._handle = self._loop.call_at(self._due, self._comes)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.cancel()
        await self._timeout.__aexit__(kind, error, trace)

    def _comes(self) -> None:
        now = self._loop.time()
        if now - self._due > LATE:
            self._handle = self._loop.call_at(now + MORE, self._ends)
        else:
            self._ends()

    def _ends(self) -> None:
        self._timeout.reschedule(self._loop.time())
