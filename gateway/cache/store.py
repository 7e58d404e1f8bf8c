"""The two tiers as one store of responses: memory first, then the shared tier.

Selects stored responses, applies purges, and chooses the tier; the engine decides how to use a response.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cached_property, partial

import msgspec
from msgspec import structs

from gateway.cache.leases import Claim
from gateway.cache.memory import Memory
from gateway.cache.purge_log import LocalPurges, PurgeLog
from gateway.cache.shared_store import SharedStore
from gateway.clock import Clock
from gateway.http.headers import Headers
from gateway.policy.entry import Entry, beginning_of, decode_index, decode_stored, encode, may_be_index, may_be_shared
from gateway.policy.epochs import EVERYTHING, PurgeState, full_key_name, key_name, route_name, tag_name
from gateway.policy.identity_key import UNKEYED, IdentityKey
from gateway.policy.keys import Plan, shared_name
from gateway.policy.rules import MAX_LIFE
from gateway.policy.vary import Suffixes, VaryIndex, latest, likely_key, newest, selected_keys, with_vary

MOST_ENCODED = 64 * 1024
"""Bytes of the body of a stale response up to which its record is compared with that in the shared tier."""


class Selection(msgspec.Struct, frozen=True, dict=True):
    """What a request on `route` selects among the stored responses, and the names by which purges apply to it: those of
    `tags`, too, and of the route `through` which a part is requested. A body of more than `largest` bytes is not
    selected: its route would not have stored it."""

    plan: Plan
    headers: Headers
    route: str
    tags: tuple[str, ...] = ()
    through: str | None = None
    largest: float = math.inf
    identity_key: IdentityKey = UNKEYED

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Made when a purge has to be looked for: most entries were stored since the last one."""
        names = (EVERYTHING, key_name(self.plan.primary), route_name(self.route), *map(tag_name, self.tags))
        return names if self.through is None else (*names, route_name(self.through))

    @property
    def suffixes(self) -> Suffixes:
        return Suffixes(self.headers, identity_key=self.identity_key)


class Found(msgspec.Struct, frozen=True):
    """The stored response for a request, and its tier."""

    stored: Entry | None
    tier: str | None = None


class TieredStore:
    """Stored responses by primary key, base key and variant.

    `budget` (seconds) bounds the wait for the shared tier; `secret` signs what is written there, and unsigned records
    are rejected. Purges are applied to every result.
    """

    def __init__(
        self,
        memory: Memory,
        shared: SharedStore,
        clock: Clock,
        *,
        purges: PurgeLog | None = None,
        budget: float = 0.05,
        secret: bytes = b"",
    ) -> None:
        self.memory = memory
        self.shared = shared
        self.purges: PurgeLog = purges if purges is not None else LocalPurges(clock)
        self.secret = secret
        self.unreadable = 0
        self.unstorable = 0
        self.taken = 0
        self.has_parts = False
        """Whether any part (206) was ever stored: without one there is none to look for."""
        self._clock = clock
        self._budget = budget

    def __repr__(self) -> str:
        return f"<Tiers {self.memory!r} {self.shared!r} {self.purges!r} unreadable={self.unreadable}>"

    # --- reading -------------------------------------------------------------------------------------------

    def at_hand(self, wanted: Selection) -> Entry | None:
        """The newest response in memory that a request selects (RFC 9111 §4.1)."""
        plan = wanted.plan
        index = self.memory.index(plan.primary)
        if index is None:
            stored = self.memory.get(plan.base)
            return None if stored is None else self._judged(stored, wanted)
        suffixes = wanted.suffixes
        return newest(index, plan.base, suffixes, lambda key: self._judged(self.memory.get(key), wanted))

    def parts(self, wanted: Selection) -> list[Entry]:
        """The stored parts (206) in memory that a request selects."""
        if not self.has_parts:
            return []
        keys = _selected(self.memory.index(wanted.plan.primary), wanted)
        found = (self._judged(self.memory.get(_part_key(key)), wanted) for key in keys)
        return [stored for stored in found if stored is not None]

    def flight_key(self, wanted: Selection) -> str:
        """The key of the variant that a request will most likely get, by what the newest response varied on."""
        index = self.memory.index(wanted.plan.primary)
        return wanted.plan.base if index is None else likely_key(index, wanted.plan.base, wanted.suffixes)

    def has_others(self, wanted: Selection) -> bool:
        """Whether responses are stored but the request selects none of them; False if the selected one exists and was
        purged or has expired."""
        index = self.memory.index(wanted.plan.primary)
        return (
            index is not None
            and bool(latest(index))
            and all(self.memory.get(key) is None for key in _selected(index, wanted))
        )

    async def look(self, wanted: Selection) -> Found:
        """The response in the shared tier, if it responds in time; memory is not changed."""
        try:
            stored = self._judged(await self._in_shared(wanted), wanted)
        except TimeoutError:
            stored = None
        return Found(stored, "redis")

    async def newer(self, wanted: Selection, known: Found, claim: Claim | None = None) -> Found:
        """The newer of the known response and that of the shared tier, if it responds in time; stored in memory. If the
        shared tier has no other response than the known one, the lease of `claim` is taken in the same round trip."""
        try:
            stored = await self._in_shared(wanted, known.stored, claim)
        except TimeoutError:
            stored = None
        landed = self.at_hand(wanted)  # another request's fetch, meanwhile
        if landed is not None and (known.stored is None or landed.born > known.stored.born):
            known = Found(landed, "memory")
        if stored is None or (known.stored is not None and stored.born <= known.stored.born):
            return known
        self.memory.put(stored)
        return Found(self._judged(stored, wanted), "redis")

    async def _in_shared(
        self, wanted: Selection, known: Entry | None = None, claim: Claim | None = None
    ) -> Entry | None:
        plan = wanted.plan
        local = self.memory.index(plan.primary)
        keys = _selected(local, wanted)
        names = [index_name(plan.primary), *map(entry_name, keys)]
        until = time.monotonic() + self._budget
        if claim is None:
            data = await self._read(names, until)
        else:
            data = await claim(names, [b"" if known is None else self._beginning(known, key) for key in keys])
        if not any(data):
            return None
        index = self.read_index(data[0], plan.primary, local)
        found = [self._read_stored(item, key) for item, key in zip(data[1:], keys, strict=True)]
        more = [key for key in _selected(index, wanted) if key not in keys]
        if more:
            data = await self._read([entry_name(key) for key in more], until)
            found += [self._read_stored(item, key) for item, key in zip(data, more, strict=True)]
        usable = (stored for stored in found if stored is not None and self._judged(stored, wanted) is not None)
        return max(usable, key=lambda stored: stored.born, default=None)

    async def _read(self, names: list[str], until: float) -> list[bytes | None]:
        """The values of `names`; raises TimeoutError at `until` (seconds, monotonic)."""
        async with asyncio.timeout(until - time.monotonic()):
            return await self.shared.read(names)

    def _beginning(self, known: Entry, key: str) -> bytes:
        """How the record of the known response begins, if it is that of `key`; empty otherwise, and if it is large: it
        takes the encoding of the whole."""
        if known.key != key or len(known.body) > MOST_ENCODED:
            return b""
        return beginning_of(structs.replace(known, softened=None, distrusted=False), self.secret)

    async def take_from_shared(self, keys: Sequence[str]) -> int:
        """Take into memory what the shared tier has under these keys, with the indices that select among variants; how
        many responses that were. What memory has already, and what was purged, is left alone."""
        keys = [key for key in keys if self.memory.get(key) is None]
        data = await self.shared.read([entry_name(key) for key in keys])
        found = [self._read_stored(item, key) for item, key in zip(data, keys, strict=True)]
        fit = [stored for stored in found if stored is not None and not self._void(stored)]
        primaries = list(dict.fromkeys(stored.primary for stored in fit))
        indices = await self.shared.read([index_name(primary) for primary in primaries])
        for item, primary in zip(indices, primaries, strict=True):
            self.read_index(item, primary, self.memory.index(primary))
        taken = 0
        for stored in fit:
            if self.memory.get(stored.key) is None:  # not fetched meanwhile
                self.memory.put(stored)
                taken += 1
        self.taken += taken
        return taken

    def _void(self, stored: Entry) -> bool:
        """Whether a purge made it void by the names it has itself; its readers judge it by theirs."""
        names = (EVERYTHING, key_name(stored.primary), route_name(stored.route), *map(tag_name, stored.tags))
        state, _ = self.purges.epochs.judge(stored.stamp, stored.started, (*names, *stored.names))
        return state is PurgeState.VOID

    def read_index(self, data: bytes | None, primary: str, local: VaryIndex | None) -> VaryIndex | None:
        """The index read from the shared tier, stored in memory; `local`, the index in memory, if that is missing or
        invalid."""
        if data is None:
            return local
        shared = decode_index(data, primary, self.secret)
        if shared is None:
            self.unreadable += 1
            return local
        if shared != local:
            self.memory.put_index(shared)
        return shared

    def _read_stored(self, data: bytes | None, key: str) -> Entry | None:
        if data is None:
            return None
        stored = decode_stored(data, key, self.secret)
        if stored is None:
            self.unreadable += 1
        return stored

    # --- judging -------------------------------------------------------------------------------------------

    def _judged(self, stored: Entry | None, wanted: Selection) -> Entry | None:
        """A stored response after purges for this reader; None if one invalidated it."""
        if stored is None or len(stored.body) > wanted.largest:
            return None
        epochs = self.purges.epochs
        if stored.stamp != epochs.untouched_stamp and not epochs.untouched(stored.stamp):
            state, softened = epochs.judge(stored.stamp, stored.started, self._names(stored, wanted))
            if state is PurgeState.VOID:
                return None
            if state is PurgeState.SOFT:
                stored = structs.replace(stored, softened=softened)
        until = self.purges.trusted_until
        if until != math.inf and (now := self._clock.now()) > until:
            since = self.purges.distrusted_since(now)
            if since is not None and stored.started < since:
                stored = structs.replace(stored, distrusted=True)
        return stored

    @staticmethod
    def _names(stored: Entry, wanted: Selection) -> tuple[str, ...]:
        return (*wanted.names, *map(tag_name, stored.tags), *stored.names)

    def valid(self, stored: Entry, wanted: Selection) -> bool:
        """Whether no purge has passed a response, hard or soft."""
        epochs = self.purges.epochs
        names = self._names(stored, wanted)
        return (
            epochs.untouched(stored.stamp) or epochs.judge(stored.stamp, stored.started, names)[0] is PurgeState.VALID
        )

    def conditional(self, stored: Entry, wanted: Selection) -> Entry | None:
        """`stored`, if a 304 may validate it now; None if it was purged since the lookup."""
        return self._judged(stored, wanted)

    def stamp(self) -> str:
        """The stamp for a fetch that starts now."""
        return self.purges.epochs.stamp

    def outlived(self, stamp: str, started: float, wanted: Selection) -> bool:
        """Whether a purge has passed a fetch with this stamp: later requests may not be served by it."""
        epochs, since = self.purges.epochs, self.purges.distrusted_since(self._clock.now())
        if since is not None and started < since:
            return True
        return not epochs.untouched(stamp) and epochs.judge(stamp, started, wanted.names)[0] is not PurgeState.VALID

    def least_stamp(self, stamps: Iterable[str]) -> str:
        """The earliest of `stamps`; the current one if there is none."""
        return min(stamps, key=self.purges.epochs.position, default=self.stamp())

    def untouched(self, stamp: str) -> bool:
        """Whether nothing at all was purged since a fetch with this stamp."""
        return self.purges.epochs.untouched(stamp)

    # --- writing -------------------------------------------------------------------------------------------

    def keep(self, stored: Entry, wanted: Selection, size: int | None = None) -> bool:
        """Store in memory; False if it was purged during its fetch. `size` as in `Memory.put`."""
        if self._judged(stored, wanted) is None:
            return False
        index = self.memory.put(stored, size)
        if stored.vary or index is not None:
            updated = with_vary(index, stored.primary, stored.vary)
            if updated != index:
                self.memory.put_index(updated)
        return True

    def keep_part(self, stored: Entry) -> None:
        """Store a part (206) in memory, under its own key: it must never be served as the complete response."""
        self.has_parts = True
        self.memory.put(structs.replace(stored, key=_part_key(stored.key)))

    async def share(self, stored: Entry) -> None:
        """Write to the shared tier, with the index if the response varies."""
        values = self.shared_values(stored)
        if values:
            await self.shared.write(values)

    def shared_values(self, stored: Entry) -> list[tuple[str, bytes, float]]:
        """The shared tier's values for a response: names, values and lifetimes (seconds); empty if it would not be read
        back."""
        if not may_be_shared(stored):
            self.unstorable += 1
            return []
        values = [(entry_name(stored.key), encode(stored, self.secret), MAX_LIFE)]
        index = self.memory.index(stored.primary)
        if index is not None and stored.vary and may_be_index(index):
            values.append((index_name(stored.primary), encode(index, self.secret), MAX_LIFE))
        return values

    async def invalidate(self, primaries: Iterable[str], by: str = "unsafe request") -> None:
        """Invalidate all entries of these primary keys, in every variant (RFC 9111 §4.4): here at once, and in other
        workers as soon as they read the purge. `by` is the reason, for the purge record."""
        names = [full_key_name(primary) for primary in primaries]
        if names:
            await self.purges.purge(names, by=by, wait=False)

    async def purged(self) -> None:
        """Wait until the stream has the purges issued here, no longer than for a read."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._budget):
                while self.purges.epochs.pending:  # noqa: ASYNC110 (the pure ring has no event to wait for)
                    await asyncio.sleep(self._budget / 25)


def _selected(index: VaryIndex | None, wanted: Selection) -> list[str]:
    if index is None:
        return [wanted.plan.base]
    keys = selected_keys(index, wanted.plan.base, wanted.suffixes)
    assert keys is not None  # a selection has all of its request's fields
    return keys


index_name = partial(shared_name, "i")
"""The name of a primary key's index in the shared tier, below the prefix."""
entry_name = partial(shared_name, "e")
"""The name of a stored response in the shared tier, below the prefix."""


def _part_key(key: str) -> str:
    return key + "\npart"
