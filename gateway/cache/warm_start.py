"""Warm start: a new worker loads the fleet's most requested responses from Redis into memory.

The worker that leads the advice writes a list of the most used keys to Redis periodically. A starting worker reads the
list and the responses stored under its keys, a few at a time with pauses, while it already serves requests: no burst at
Redis or in the worker, and no upstream request. The responses are validated and checked against purges like any others
from Redis.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable

import msgspec

from gateway.cache.background import end
from gateway.cache.store import TieredStore

NAME = "hottest:2"  # of a version before this, the list held keys with credentials in them
PUBLISH_EVERY = 10.0
LIST_LIVES = 7 * 86_400.0
MOST_LIST_BYTES = 1024 * 1024
BATCH = 32
PAUSE = 0.02
"""Seconds between two batches, on average: at most some 1,600 responses a second."""
MEMORY_SHARE = 2
"""The maximum share of the memory to fill: one part in so many."""

_encode = msgspec.msgpack.encode
_decoder = msgspec.msgpack.Decoder(list[str])


class Hottest:
    """Takes up to `number` responses into memory once, then publishes this worker's hottest keys while it `leads`."""

    def __init__(self, tiers: TieredStore, number: int, leads: Callable[[], bool]) -> None:
        self._tiers = tiers
        self._number = number
        self._leads = leads
        self._known: list[str] = []
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start in the background."""
        if self._number and self._task is None:
            self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        await self.take()
        while True:
            await asyncio.sleep(PUBLISH_EVERY)
            if self._leads():
                await self.publish()

    async def take(self) -> int:
        """Take what the list names into memory; how many responses that were."""
        (data,) = await self._tiers.shared.read([NAME])
        self._known = _read(data)[: self._number]
        room = self._tiers.memory.capacity // MEMORY_SHARE
        taken = 0
        for at in range(0, len(self._known), BATCH):
            if self._tiers.memory.statistics.bytes >= room:
                break
            taken += await self._tiers.take_from_shared(self._known[at : at + BATCH])
            await asyncio.sleep(PAUSE * random.uniform(0.5, 1.5))
        return taken

    async def publish(self) -> None:
        """Write the list: this worker's most used keys, and if they are few, those of the previous list."""
        own = self._tiers.memory.hottest(self._number)
        self._known = _bounded(dict.fromkeys((*own, *self._known)), self._number)
        if self._known:
            await self._tiers.shared.write([(NAME, _encode(self._known), LIST_LIVES)])

    async def aclose(self) -> None:
        await end(self._task)


def _read(data: bytes | None) -> list[str]:
    """The keys of a list; empty if there is no list, or one that this version can't read."""
    try:
        return _decoder.decode(data) if data is not None else []
    except msgspec.DecodeError:
        return []


def _bounded(keys: Iterable[str], number: int) -> list[str]:
    kept: list[str] = []
    room = MOST_LIST_BYTES
    for key in keys:
        room -= len(key)
        if len(kept) >= number or room < 0:
            break
        kept.append(key)
    return kept
