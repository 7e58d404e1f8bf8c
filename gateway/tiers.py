"""The two tiers as one store of responses: memory first, then what all workers share.

What selects a stored response, whether it is void, and where it is kept stand here together; what to do with it is
the engine's affair.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from msgspec import structs

from . import policy
from .clock import Clock
from .headers import Headers
from .keys import Plan, digest, variant_key
from .memory import Memory
from .record import Stored, VaryIndex, decode_index, decode_stored, encode, with_vary
from .shared import SharedStore


@dataclass(frozen=True, slots=True)
class Found:
    """What is stored for a request, and in which tier it lay."""

    stored: Stored | None
    tier: str | None = None


class Tiers:
    """Stored responses by primary key, base key and variant.

    `budget` (seconds) bounds the waiting for the shared tier.
    """

    def __init__(self, memory: Memory, shared: SharedStore, clock: Clock, *, budget: float = 0.05) -> None:
        self.memory = memory
        self.shared = shared
        self.unreadable = 0
        self._clock = clock
        self._budget = budget

    def __repr__(self) -> str:
        return f"<Tiers {self.memory!r} {self.shared!r} unreadable={self.unreadable}>"

    # --- reading -------------------------------------------------------------------------------------------

    def at_hand(self, plan: Plan, headers: Headers) -> Stored | None:
        """The newest response in memory that a request selects (RFC 9111 §4.1)."""
        index = self.memory.index(plan.primary)
        if index is None:
            stored = self.memory.get(plan.base)
            return stored if stored is not None and stored.started > self.memory.floor else None
        since = max(index.since, self.memory.floor)
        keys = {variant_key(plan.base, names, headers) for names in (*index.names, ())}
        return newest(s for key in keys if (s := self.memory.get(key)) is not None and s.started > since)

    def parts(self, plan: Plan, headers: Headers) -> list[Stored]:
        """The stored parts (206) in memory that a request selects."""
        index = self.memory.index(plan.primary)
        since = self._since(index)
        keys = {variant_key(plan.base, names, headers) for names in (*(index.names if index is not None else ()), ())}
        found = (self.memory.get(_part_key(key)) for key in keys)
        return [stored for stored in found if stored is not None and stored.started > since]

    def flight_key(self, plan: Plan, headers: Headers) -> str:
        """The key of the variant that a request will most likely get, by what the newest response varied on."""
        index = self.memory.index(plan.primary)
        return variant_key(plan.base, index.names[0], headers) if index and index.names else plan.base

    def varies(self, primary: str) -> bool:
        index = self.memory.index(primary)
        return index is not None and bool(index.names) and bool(index.names[0])

    async def newer(self, plan: Plan, headers: Headers, known: Found) -> Found:
        """The newer of what is known and what the shared tier has, if it says so in time; taken into memory."""
        try:
            async with asyncio.timeout(self._budget):
                stored = await self._in_shared(plan, headers)
        except TimeoutError:
            return known
        if stored is None or (known.stored is not None and stored.born <= known.stored.born):
            return known
        self.memory.put(stored)
        return Found(stored, "redis")

    async def _in_shared(self, plan: Plan, headers: Headers) -> Stored | None:
        local = self.memory.index(plan.primary)
        sets = list(dict.fromkeys(((), *(local.names if local is not None else ()))))
        keys = [variant_key(plan.base, names, headers) for names in sets]
        data = await self.shared.read([index_name(plan.primary), *(entry_name(key) for key in keys)])
        index = self._read_index(data[0], plan.primary, local)
        found = [self._read_stored(item, key) for item, key in zip(data[1:], keys, strict=True)]
        more = [names for names in index.names if names not in sets] if index is not None else []
        if more:
            keys = [variant_key(plan.base, names, headers) for names in more]
            data = await self.shared.read([entry_name(key) for key in keys])
            found += [self._read_stored(item, key) for item, key in zip(data, keys, strict=True)]
        since = self._since(index)
        return newest(stored for stored in found if stored is not None and stored.started > since)

    def _read_index(self, data: bytes | None, primary: str, local: VaryIndex | None) -> VaryIndex | None:
        if data is None:
            return local
        shared = decode_index(data, primary)
        if shared is None:
            self.unreadable += 1
            return local
        if local is not None and local.since > shared.since:
            shared = VaryIndex(primary=primary, names=shared.names, since=local.since)
        if shared != local:
            self.memory.put_index(shared)
        return shared

    def _read_stored(self, data: bytes | None, key: str) -> Stored | None:
        if data is None:
            return None
        stored = decode_stored(data, key)
        if stored is None:
            self.unreadable += 1
        return stored

    def _since(self, index: VaryIndex | None) -> float:
        return max(index.since if index is not None else 0.0, self.memory.floor)

    # --- writing -------------------------------------------------------------------------------------------

    def keep(self, stored: Stored) -> bool:
        """Store in memory; False where what it answers was invalidated while it was fetched."""
        index = self.memory.index(stored.primary)
        if stored.started <= self._since(index):
            return False
        self.memory.put(stored)
        if stored.vary or index is not None:
            updated = with_vary(index, stored.primary, stored.vary)
            if updated != index:
                self.memory.put_index(updated)
        return True

    def keep_part(self, stored: Stored) -> None:
        """Store a part (206) in memory, under a key of its own: it must never answer for the whole."""
        self.memory.put(structs.replace(stored, key=_part_key(stored.key)))

    def drop(self, stored: Stored) -> None:
        self.memory.remove(stored.key)

    async def share(self, stored: Stored) -> None:
        """Write to the shared tier, with the index where the response varies."""
        values = [(entry_name(stored.key), encode(stored), policy.MAX_LIFE)]
        index = self.memory.index(stored.primary)
        if index is not None and stored.vary:
            values.append((index_name(stored.primary), encode(index), policy.MAX_LIFE))
        await self.shared.write(values)

    async def invalidate(self, primaries: Iterable[str]) -> None:
        """Make all that is stored for these primary keys void, in every variant (RFC 9111 §4.4)."""
        now = self._clock.now()
        values = []
        for primary in primaries:
            known = self.memory.index(primary)
            index = VaryIndex(primary=primary, names=known.names if known else (), since=now)
            self.memory.put_index(index)
            values.append((index_name(primary), encode(index), policy.MAX_LIFE))
        if values:
            try:
                async with asyncio.timeout(self._budget):
                    await self.shared.write(values)
            except TimeoutError:
                return


def newest(candidates: Iterable[Stored | None]) -> Stored | None:
    return max((stored for stored in candidates if stored is not None), key=lambda s: s.born, default=None)


def index_name(primary: str) -> str:
    """The name of a primary key's index in the shared tier, below the prefix."""
    return "i:" + digest(primary)


def entry_name(key: str) -> str:
    """The name of a stored response in the shared tier, below the prefix."""
    return "e:" + digest(key)


def _part_key(key: str) -> str:
    return key + "\npart"
