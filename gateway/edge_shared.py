"""The edge's way to the shared tier.

What lies not in memory, for a request line that is known, is looked for before the app sees the request, which waits
meanwhile (a Look). What is found is answered as a hit in memory is; else the app answers, and need not look again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from .headers import Headers
from .keys import Plan
from .record import Stored
from .tiers import Found, Selection

if TYPE_CHECKING:
    from .engine import Engine
    from .heads import Request
    from .hits import Edge
    from .remembered import Block, Spot


@dataclass(frozen=True, slots=True)
class Brought:
    """A stored response that lay not in memory when it was wanted; `seconds` is what looking for it took."""

    stored: Stored
    tier: str
    seconds: float


class Waiting(Protocol):
    """A connection whose request waits for the shared tier."""

    tasks: set[asyncio.Task[None]]
    transport: asyncio.Transport

    def looked(self, look: Look) -> None:
        """What was looked for is there now, or is known to be nowhere: `look.brought`."""


class Look:
    """A request that waits for what the shared tier has. `brought` is None until it is there, and where nothing is."""

    __slots__ = ("block", "brought", "edge", "request", "request_id", "spot", "task")

    def __init__(self, edge: Edge, spot: Spot, block: Block, request_id: bytes, request: Request) -> None:
        self.edge = edge
        self.spot = spot
        self.block = block
        self.request_id = request_id
        self.request = request
        self.brought: Brought | None = None
        self.task: asyncio.Task[None] | None = None

    def begin(self, waiting: Waiting, loop: asyncio.AbstractEventLoop) -> None:
        self.task = loop.create_task(self._run(waiting))
        waiting.tasks.add(self.task)
        self.task.add_done_callback(waiting.tasks.discard)

    def cancel(self) -> None:
        """Nobody waits any more."""
        if self.task is not None:
            self.task.cancel()

    def make_last(self) -> bool:
        """Whether the connection can still be told to end with the answer: nothing of it was sent yet."""
        return True

    async def _run(self, waiting: Waiting) -> None:
        try:
            self.brought = await self.edge.elsewhere.look(self.spot, self.block, self.request.fields)
        except BaseException:
            waiting.transport.close()
            raise
        waiting.looked(self)


class Elsewhere:
    """What an edge asks of the shared tier. `in_memory` finds what a request selects in memory."""

    def __init__(self, engine: Engine, in_memory: Callable[[Spot, Block], Stored | None]) -> None:
        self._tiers = engine.tiers
        self._shared = engine.shared
        self._in_memory = in_memory

    def may_have(self, spot: Spot, block: Block) -> bool:
        """Whether the shared tier may hold what memory does not: then it is asked here, before the app is."""
        if spot.known.route.made or block.bases.get(spot.known) is None or not self._shared.available:
            return False
        return self._in_memory(spot, block) is None

    async def look(self, spot: Spot, block: Block, headers: Headers) -> Brought | None:
        """What the shared tier has for a request with these headers, if it says so in time; taken into memory, as the
        app's own look takes it."""
        began = time.perf_counter()
        wanted = Selection(Plan(spot.primary, spot.primary + (block.bases[spot.known] or ""), ()), headers, spot.names)
        found = await self._tiers.newer(wanted, Found(None))
        if found.stored is None:
            return None
        return Brought(found.stored, found.tier or "redis", time.perf_counter() - began)
