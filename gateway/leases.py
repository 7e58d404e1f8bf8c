"""One fetch a key in the fleet: a lease in the shared tier, held by whoever fetches.

The lease ends by its own time at the latest, so that one whose holder died holds nobody up for longer. It is given
back by its token. Where the response could not be shared it is replaced by a mark, so that those who wait go on at
once. Without the shared tier there is no lease, and each process collapses for itself.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import Enum
from uuid import uuid4

from .keys import digest
from .shared import SharedStore

MARGIN = 1.0
"""Seconds that a lease outlives the deadline of its fetch, for the storing."""
FIRST_PAUSE = 0.002
LONGEST_PAUSE = 0.1
UNCACHEABLE = b"!uncacheable"
FAILED = b"!failed"


class Standing(Enum):
    """How a lease stands for one who wants it."""

    HELD = "held"
    """It is ours: fetch, store, give it back."""
    BUSY = "busy"
    """Another holds it, and is fetching."""
    UNCACHEABLE = "uncacheable"
    """What was fetched could not be shared: fetch for yourself."""
    FAILED = "failed"
    """The fetch failed a moment ago."""
    AWAY = "away"
    """There is no shared tier, or it did not answer: fetch."""

    @property
    def lets_fetch(self) -> bool:
        """Whether a refresh behind may go on."""
        return self in (Standing.HELD, Standing.AWAY)


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to fetch a key, if `standing` is HELD."""

    name: str
    token: bytes
    standing: Standing


class Leases:
    def __init__(self, shared: SharedStore) -> None:
        self._shared = shared

    async def take(self, key: str, deadline: float) -> Lease:
        """Take the lease of `key` for a fetch with a deadline of so many seconds, or learn how it stands."""
        name, token = "l:" + digest(key), uuid4().hex.encode()
        if not self._shared.available:
            return Lease(name, token, Standing.AWAY)
        reply = await self._shared.take(name, token, deadline + MARGIN)
        return Lease(name, token, Standing.HELD if reply == token else _standing(reply))

    async def look(self, lease: Lease) -> Standing | None:
        """How another's lease stands now; None where it has ended."""
        answered, value = await self._shared.peek(lease.name)
        if not answered:
            return Standing.AWAY
        return None if value is None else _standing(value)

    async def give_back(self, lease: Lease, mark: bytes | None = None, life: float = 0.0) -> None:
        """End it, leaving a mark where one is given. One that Redis may have given without our hearing of it ends
        too: nobody should wait for it."""
        if lease.standing in (Standing.HELD, Standing.AWAY):
            await self._shared.give_back(lease.name, lease.token, mark, life)


def _standing(value: bytes | None) -> Standing:
    if value is None:
        return Standing.AWAY
    return {UNCACHEABLE: Standing.UNCACHEABLE, FAILED: Standing.FAILED}.get(value, Standing.BUSY)


class Pauses:
    """The growing gaps at which a lease is looked at."""

    def __init__(self) -> None:
        self._next = FIRST_PAUSE

    async def pause(self) -> None:
        await asyncio.sleep(self._next)
        self._next = min(self._next * 1.6, LONGEST_PAUSE)
