"""How many requests one generation of the app is answering, by whatever way they came."""

from __future__ import annotations

import asyncio


class Underway:
    """Counts requests from their beginning to the end of their answers; `none` waits until there are none."""

    __slots__ = ("_waiting", "count")

    def __init__(self) -> None:
        self.count = 0
        self._waiting: list[asyncio.Future[None]] = []

    def __repr__(self) -> str:
        return f"<Underway {self.count}>"

    def began(self) -> None:
        self.count += 1

    def ended(self) -> None:
        self.count -= 1
        if self._waiting and not self.count:
            for waiting in self._waiting:
                if not waiting.done():
                    waiting.set_result(None)
            self._waiting.clear()

    async def none(self) -> None:
        """Wait until no request is under way."""
        while self.count:
            self._waiting.append(waiting := asyncio.get_running_loop().create_future())
            await waiting
