"""Work that nobody waits for: held, so that it is not lost, told of where it fails, drained at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable


class Background:
    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, work: Awaitable[None]) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a task of the cache engine failed", "exception": error, "task": task}
            )

    async def settle(self) -> None:
        """Wait until nothing is under way behind: refreshes, writes to the shared tier."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def outlast(self) -> None:
        """Wait until what is under way now has ended, whatever begins meanwhile."""
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    async def drain(self, grace: float) -> None:
        """Let what is under way end within `grace` seconds."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=grace)

    async def cancel(self) -> None:
        """Cancel what is still under way, and wait for that."""
        for task in set(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks))
