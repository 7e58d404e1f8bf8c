"""The identity key shared by all workers on one Redis, if there is no `redis_secret`.

It is random, and stored in Redis without an expiry. A worker that starts writes its own if there is none (SET NX), then
reads the stored one: all workers that start together use the same. While Redis is down a worker keeps its key, and
reads the shared one as soon as possible. If Redis has lost it, the first worker that notices stores its own, and
workers with another key switch to that: all agree again after at most `LOOK_EVERY` seconds.

A worker with a different key misses the others' entries, and they miss its entries; it never gets another client's
response, because two keys don't produce the same digest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from gateway.cache.background import end
from gateway.cache.redis.errors import UNANSWERED
from gateway.policy.identity_key import KEY_BYTES, IdentityKey

LOOK_EVERY = 2.0
KEY_SECONDS = 1.0


class KeyStore(Protocol):
    async def agree_on_key(self, own: bytes) -> bytes | None:
        """The value that all have, `own` if there was none; None where it can't be read."""


async def agreed_key(client: Any, name: str, own: bytes) -> bytes | None:
    """The key that Redis has under `name`, `own` if there was none; None if it does not respond."""
    try:
        async with asyncio.timeout(KEY_SECONDS):
            found: bytes = await client.getrange(name, 0, KEY_BYTES)
            if not found:
                await client.set(name, own, nx=True)
                found = await client.getrange(name, 0, KEY_BYTES)
            if len(found) != KEY_BYTES:  # whatever it is, no worker wrote it
                await client.delete(name)
    except UNANSWERED:
        return None
    return found


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
        await end(self._task)
