"""The identity key that all workers on one Redis have in common, where no `redis_secret` stands for one.

It is random, and lies in Redis without an expiry. Who starts writes its own if there is none (SET NX), then takes what
stands there: of any number that start together all take the same. While Redis is away a worker uses the one it has, and
takes the fleet's when it can be read. Where Redis has lost it, whoever looks first puts its own back, and those that
have another one by then take that: all agree again after at most `LOOK_EVERY` seconds.

A worker with another key than the others misses what they stored, and stores what they miss; it can't be given what is
another client's, as no two keys make the same digest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from gateway.policy.identity_key import KEY_BYTES, IdentityKey

LOOK_EVERY = 2.0


class KeyStore(Protocol):
    async def agree_on_key(self, own: bytes) -> bytes | None:
        """The value that all have, `own` if there was none; None where it can't be read."""


class FleetKey:
    """Keeps `key` the fleet's; `changed` is called when it was replaced."""

    def __init__(self, store: KeyStore, key: IdentityKey, changed: Callable[[], None]) -> None:
        self._store = store
        self._key = key
        self._changed = changed
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.look()
        if self._task is None:
            self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY)
            await self.look()

    async def look(self) -> None:
        """Take the fleet's key, or give it ours."""
        found = await self._store.agree_on_key(self._key.secret)
        if found is not None and len(found) == KEY_BYTES and found != self._key.secret:
            self._key.secret = found
            self._changed()

    async def aclose(self) -> None:
        while self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait((self._task,), timeout=0.05)
