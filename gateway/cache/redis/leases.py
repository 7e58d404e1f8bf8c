"""Leases in Redis: a name, the token of its holder, and an expiry.

A lease whose grant arrived too late, or that could not be released in time, is released in the background: otherwise it
would delay all other requests until it expires, unused.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from gateway.cache.leases import STORED
from gateway.cache.redis.connection import Command, is_cluster, milliseconds
from gateway.cache.redis.errors import UNANSWERED, is_unanswered

_PAUSE = 0.02
"""Seconds between two attempts to give up a lease."""


_GIVING_UP = 0.6  # seconds: an unrenewed lease has expired by then


MOST_RENEWED = 200
"""Leases in one script, for which everybody else at Redis waits."""


_AT_ONCE = 4  # connections taken


# KEYS: lease, entries. ARGV: token, milliseconds, the first bytes of each entry that do not matter (empty for none).
_TAKE = f"""
for position = 2, #KEYS do
  local known = ARGV[position + 1]
  local found = redis.call('GETRANGE', KEYS[position], 0, math.max(#known - 1, 0))
  if found ~= '' and found ~= known then return '' end
end
local found = redis.call('GETRANGE', KEYS[1], 0, 63)
if found ~= '' and found ~= '{STORED.decode()}' then return found end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return found == '' and ARGV[1] or found
"""


# KEYS: leases. ARGV: milliseconds, the leases' tokens.
_RENEW = """
for position, name in ipairs(KEYS) do
  if redis.call('GET', name) == ARGV[position + 1] then redis.call('PEXPIRE', name, ARGV[1]) end
end
return #KEYS
"""


# KEYS: lease. ARGV: token, mark (empty for none), milliseconds.
_GIVE_BACK = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '' then return redis.call('DEL', KEYS[1]) end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
"""


class RedisLeases:
    """`run` executes a command and returns its reply within the budget, or None; `spawn` starts background work."""

    def __init__(
        self,
        client: Any,
        prefix: str,
        run: Callable[[Command], Awaitable[Any]],
        spawn: Callable[[Any], None],
    ) -> None:
        self._client = client
        self._prefix = prefix
        self._run = run
        self._spawn = spawn
        self._giving_up = asyncio.Semaphore(_AT_ONCE)

    async def take(self, name: str, token: bytes, life: float) -> bytes | None:
        reply = await self._run(self.taking(name, token, life))
        if isinstance(reply, bytes) and reply:
            return reply
        self.give_up(name, token)
        return None

    def taking(
        self, name: str, token: bytes, life: float, entries: Sequence[str] = (), known: Sequence[bytes] = ()
    ) -> Command:
        """The command that takes a lease, unless one of the `entries` (whole keys) has a value other than the `known`
        one."""
        lease = self._prefix + name
        return ("EVAL", _TAKE, 1 + len(entries), lease, *entries, token, milliseconds(life), *known)

    def give_up(self, name: str, token: bytes, mark: bytes | None = None, life: float = 0.0) -> None:
        """Release a lease in the background that may have been granted, or that was not released in time."""
        self._spawn(self._give_up(name, token, mark, life))

    async def renew(self, held: Sequence[tuple[str, bytes]], life: float, *, together: int = MOST_RENEWED) -> None:
        """So many `together` in one command; in a cluster, where they lie in many slots, each in its own."""
        size = 1 if is_cluster(self._client) else together
        commands = [self._renewal(held[at : at + size], life) for at in range(0, len(held), size)]
        for at in range(0, len(commands), _AT_ONCE):
            await asyncio.gather(*map(self._run, commands[at : at + _AT_ONCE]))

    def _renewal(self, held: Sequence[tuple[str, bytes]], life: float) -> Command:
        names, tokens = [self._prefix + name for name, _ in held], [token for _, token in held]
        return ("EVAL", _RENEW, len(names), *names, milliseconds(life), *tokens)

    def ending(self, name: str, token: bytes, mark: bytes | None, life: float) -> Command:
        """The command that ends a lease."""
        return ("EVAL", _GIVE_BACK, 1, self._prefix + name, token, mark or b"", milliseconds(life))

    async def _give_up(self, name: str, token: bytes, mark: bytes | None, life: float) -> None:
        until = time.monotonic() + _GIVING_UP
        while time.monotonic() < until:
            try:
                async with self._giving_up, asyncio.timeout(_GIVING_UP):
                    await self._client.execute_command(*self.ending(name, token, mark, life))
            except UNANSWERED as error:
                is_unanswered(error)
                await asyncio.sleep(_PAUSE)
            else:
                return
