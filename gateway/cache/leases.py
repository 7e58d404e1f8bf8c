"""Collapsing across processes: a lease per key in the shared tier, held during a fetch.

A lease lasts LIFE, and its holder renews it while the fetch is running. So a lease whose holder died, or whose grant
was lost, ends soon, however long the upstream may take. It is released by its token. If the response can't be shared, a
mark replaces the lease, so that waiting requests continue at once; if the response was stored, another mark tells the
next holder to read the tier again. Without the shared tier there is no lease, and each process collapses its own
requests; so does a process that has the tier to itself.

A request that reads the tier because it may have to fetch takes the lease in the same round trip (`Claim`), if the tier
has nothing to serve it with; its flight then finds the lease here. A lease that no flight takes is given back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from functools import partial
from itertools import count
from uuid import uuid4

import msgspec
from msgspec import structs

from gateway.cache.background import Background
from gateway.cache.shared_store import SharedStore
from gateway.policy.keys import shared_name

STORED = b"!stored"
"""The mark of a lease whose holder stored its response."""


LIFE = 0.6
"""Seconds that a lease lasts unless renewed, and so how long others wait for a dead holder. Tolerates an event loop
that is blocked for 0.4 s."""
RENEW_EVERY = 0.15
"""Seconds between two renewals; most fetches are over before the first one."""
MARGIN = 1.0
"""Seconds past the timeout of its fetch, for storing, after which a lease is not renewed any more."""
STORED_LIFE = 2.0
"""Seconds that the mark of a stored response lasts. If a request read the tier within the last half of it and gets a
lease without the mark, nothing was stored since."""
DOUBTED = 0.05
"""Seconds that are waited for another's fetch while the shared tier fails now and then: the lease may be one whose
grant was lost."""
UNUSED_LIFE = 0.05
"""Seconds after which a lease that was taken while the tier was read, and that no flight uses, is given back."""
FIRST_PAUSE = 0.002
LONGEST_PAUSE = 0.1
UNCACHEABLE = b"!uncacheable"
FAILED = b"!failed"


class Standing(Enum):
    """The state of a lease for a request that needs it."""

    HELD = "held"
    """It is ours: fetch, store, give it back."""
    BUSY = "busy"
    """Another holds it, and is fetching, or may: wait and look."""
    UNCACHEABLE = "uncacheable"
    """The response could not be shared: fetch."""
    FAILED = "failed"
    """The fetch failed a moment ago."""
    AWAY = "away"
    """There is no shared tier, it did not respond, or no other process uses it: fetch."""

    @property
    def lets_fetch(self) -> bool:
        """Whether a background refresh may continue."""
        return self in (Standing.HELD, Standing.AWAY)


class Lease(msgspec.Struct, frozen=True):
    """The right to fetch a key, if `standing` is HELD."""

    name: str
    token: bytes
    standing: Standing
    stored: bool = False
    """Whether another worker stored a response just now, so that it may be in the tier."""


NO_LEASE = Lease("", b"", Standing.AWAY)


Claim = Callable[[Sequence[str], Sequence[bytes]], Awaitable[list[bytes | None]]]
"""Reads the values of names, an index and then entries, and takes the lease of a key if the tier has none of these
entries, or only those that are known by their first bytes (empty: none is); the flight that needs it finds it."""


class Leases:
    """`needed` is False while no other process uses the shared tier."""

    def __init__(self, shared: SharedStore, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.needed = True
        self._shared = shared
        self._monotonic = monotonic
        self._held: dict[bytes, tuple[str, float, float]] = {}
        """The leases held here by their tokens: name, when it was last renewed, until when it may be."""
        self._renewing: asyncio.Task[None] | None = None
        self._unused: dict[str, tuple[Lease, float]] = {}
        """Leases taken while the tier was read, by key, and when; oldest first."""
        self._claimed: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._ending = Background()
        self._tokens = map((uuid4().hex.encode() + b"%d").__mod__, count())

    def __repr__(self) -> str:
        return f"<Leases held={len(self._held)}>"

    async def take(self, key: str, deadline: float) -> Lease:
        """Take the lease of `key` for a fetch with a timeout of so many seconds, or return its state."""
        if not self._takes:
            return NO_LEASE
        if (unused := self._unused.pop(key, None)) is not None:
            return self._hold(*unused, deadline)
        name, token = shared_name("l", key), next(self._tokens)
        asked = self._monotonic()
        reply = await self._shared.take(name, token, LIFE)
        if reply in (token, STORED):
            return self._hold(Lease(name, token, Standing.HELD, stored=reply == STORED), asked, deadline)
        return Lease(name, token, _standing(reply))

    def _hold(self, lease: Lease, asked: float, deadline: float) -> Lease:
        """A lease that was granted to a command sent at `asked`, renewed from now on. If the reply was read late, as
        this process was blocked, it may have ended, and be another's: it is given back, and busy for its flight, which
        waits, reads the tier again, and takes it anew."""
        if self._monotonic() - asked >= LIFE / 2:
            self._give_unused_back(lease)
            return structs.replace(lease, standing=Standing.BUSY)
        self._held[lease.token] = lease.name, asked, asked + deadline + MARGIN
        if self._renewing is None:
            self._renewing = asyncio.get_running_loop().create_task(self._renew_held())
        return lease

    @property
    def _takes(self) -> bool:
        """Whether a fetch takes a lease: the one place where that is decided."""
        return self.needed and self._shared.available

    def claim(self, key: str) -> Claim | None:
        """Take the lease of `key` with the next read, unless that is happening already."""
        if not self._takes or key in self._claimed or key in self._unused:
            return None
        return partial(self._read, key)

    async def _read(self, key: str, names: Sequence[str], known: Sequence[bytes]) -> list[bytes | None]:
        name, token, asked = shared_name("l", key), next(self._tokens), self._monotonic()
        self._claimed.add(key)
        try:
            values, reply = await self._shared.read_and_take(names, known, name, token, LIFE)
        except asyncio.CancelledError:  # it may be granted by now, or soon
            self._give_unused_back(Lease(name, token, Standing.HELD))
            raise
        finally:
            self._claimed.discard(key)
        if reply in (token, STORED):
            self._unused[key] = Lease(name, token, Standing.HELD, stored=reply == STORED), asked
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(UNUSED_LIFE, self._unclaim_all)
        return values

    def _unclaim_all(self) -> None:
        self._timer, now, loop = None, self._monotonic(), asyncio.get_running_loop()
        for key, (_, asked) in list(self._unused.items()):
            if now - asked < UNUSED_LIFE:
                self._timer = loop.call_later(UNUSED_LIFE, self._unclaim_all)
                return
            self.unclaim(key)

    def unclaim(self, key: str) -> None:
        """Give the lease of `key` back, in the background, if no flight has taken it."""
        if (unused := self._unused.pop(key, None)) is not None:
            self._give_unused_back(unused[0])

    def _give_unused_back(self, lease: Lease) -> None:
        """In the background, with the mark that it replaced: others may not have read since."""
        self._ending.spawn(self.give_back(lease, STORED if lease.stored else None, STORED_LIFE))

    async def look(self, lease: Lease) -> Standing | None:
        """The state of another's lease; None if it has ended, or was taken here by a read that came back later, and can
        be had. If it is ours, as the reply that granted it was spoiled, it is given back."""
        answered, value = await self._shared.peek(lease.name)
        if not answered:
            return Standing.AWAY
        if value == lease.token:
            await self._shared.give_back(lease.name, lease.token)
            return None
        mine = (unused.token for unused, _ in self._unused.values())
        return None if value in (None, STORED, *mine) else _standing(value)

    @property
    def doubtful(self) -> bool:
        """Whether a lease may exist without a holder."""
        return self._shared.doubtful

    def give_back(
        self,
        lease: Lease,
        mark: bytes | None = None,
        life: float = 0.0,
        *,
        after: Sequence[tuple[str, bytes, float]] = (),
    ) -> Awaitable[object]:
        """Store the values `after`, then release it, leaving a mark (for `life` seconds) if one is given."""
        if lease.standing is Standing.HELD:
            self._held.pop(lease.token, None)
            return self._shared.give_back(lease.name, lease.token, mark, life, after=after)
        return self._shared.write(after) if after else _nothing()

    def close(self) -> None:
        """Stop renewing: leases still held expire."""
        self._held.clear()
        self._unused.clear()
        if self._timer is not None:
            self._timer.cancel()
        if self._renewing is not None:
            self._renewing.cancel()

    async def _renew_held(self) -> None:
        """Until none is held."""
        try:
            while self._held:
                due = self._due(self._monotonic())
                if due:
                    await self._shared.renew(due, LIFE)
                await asyncio.sleep(RENEW_EVERY)
        finally:
            self._renewing = None

    def _due(self, now: float) -> list[tuple[str, bytes]]:
        due = []
        for token, (name, renewed, until) in list(self._held.items()):
            if now > until:
                del self._held[token]
            elif now - renewed >= RENEW_EVERY / 2:
                self._held[token] = name, now, until
                due.append((name, token))
        return due


async def _nothing() -> None:
    return None


def _standing(value: bytes | None) -> Standing:
    if value is None:
        return Standing.AWAY
    return {UNCACHEABLE: Standing.UNCACHEABLE, FAILED: Standing.FAILED}.get(value, Standing.BUSY)


class Pauses:
    """The growing intervals at which a lease is polled."""

    def __init__(self) -> None:
        self._next = FIRST_PAUSE

    async def pause(self) -> None:
        await asyncio.sleep(self._next)
        self._next = min(self._next * 1.6, LONGEST_PAUSE)
