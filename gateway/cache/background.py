"""Background tasks: held until they end, logged if they fail, drained at shutdown."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any


class Background:
    def __init__(self) -> None:
        self._tasks: set[asyncio.Future[Any]] = set()
        self._due = 0
        """Work that begins with the next turn of the event loop."""

    def __len__(self) -> int:
        return len(self._tasks) + self._due

    def spawn(self, work: Awaitable[object]) -> None:
        task = work if isinstance(work, asyncio.Future) else asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def begin(self, work: Callable[[], Awaitable[object]]) -> None:
        """Call `work` at the next turn of the event loop; what it returns is `spawn`ed. If that is a future, there is
        no task: a task takes ten times as long."""
        self._due += 1
        asyncio.get_running_loop().call_soon(self._begin, work)

    def _begin(self, work: Callable[[], Awaitable[object]]) -> None:
        self._due -= 1
        self.spawn(work())

    def _ended(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a background task of the cache engine failed", "exception": error, "task": task}
            )

    async def settle(self) -> None:
        """Wait until nothing is under way behind: refreshes, writes to the shared tier."""
        while self:
            await self.outlast()

    async def outlast(self) -> None:
        """Wait until the current tasks have ended, whatever starts meanwhile."""
        if self._due:
            await asyncio.sleep(0)
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    async def drain(self, grace: float) -> None:
        """Let running tasks, and those that they start, finish within `grace` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self.settle()

    async def cancel(self) -> None:
        """Cancel the remaining tasks, and wait for them."""
        if self._due:
            await asyncio.sleep(0)
        for task in set(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks))


async def end(task: asyncio.Task[None] | None) -> None:
    """Cancel a task, if there is one, and wait for it. Again and again: a cancellation that meets a reply just arriving
    can be lost (redis-py 8.1, Python 3.11)."""
    while task is not None and not task.done():
        task.cancel()
        await asyncio.wait((task,), timeout=0.05)
