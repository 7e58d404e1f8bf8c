"""Starts and tracks flights: for requests or in the background, collapsed across the fleet.

A flight fetches for all requests that wait for it. If other processes share the tier, a lease makes it one fetch for
all of them; a process without the lease waits for the response that the holder stores.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, assert_never

from msgspec import structs

from gateway.cache.background import Background
from gateway.cache.fetch import Durations, Fetcher
from gateway.cache.flight import Failed, Flight, Landed, Landing, NotShareable
from gateway.cache.leases import (
    DOUBTED,
    FAILED,
    STORED,
    STORED_LIFE,
    UNCACHEABLE,
    Claim,
    Lease,
    Leases,
    Pauses,
    Standing,
)
from gateway.cache.overload import Governor
from gateway.cache.request import CacheRequest, Origin
from gateway.cache.store import Found, TieredStore
from gateway.clock import Clock
from gateway.errors import UpstreamTimeout
from gateway.observability.trace_context import BEHIND
from gateway.policy import freshness
from gateway.policy.entry import Entry
from gateway.policy.freshness import Hit
from gateway.policy.rules import PLAIN

_HELD = Standing.HELD  # a member that is read from its class costs as much as a call
PATIENCE = 0.5
"""The share of its own timeout that a request waits for the fetch of another process."""


class Coalescer:
    """`newer` reads the shared tier. At most `max_refreshes` background tasks run at once."""

    def __init__(
        self,
        *,
        tiers: TieredStore,
        clock: Clock,
        fetching: Fetcher,
        leases: Leases,
        governor: Governor,
        background: Background,
        durations: Durations,
        newer: Callable[[CacheRequest, Found], Awaitable[Found]],
        max_refreshes: int,
    ) -> None:
        self.flights: dict[str, Flight] = {}
        self.launched = 0
        self.refreshes = 0
        self.alone = 0
        """Fetches under way for one client, which wait for the head."""
        self._tiers = tiers
        self._clock = clock
        self._fetching = fetching
        self._leases = leases
        self.governor = governor
        self._background = background
        self._durations = durations
        self._newer = newer
        self._max_refreshes = max_refreshes

    @property
    def under_way(self) -> int:
        """The number of fetches: shared ones, and those of one client."""
        return len(self.flights) + self.alone

    def close(self) -> None:
        self._leases.close()

    def outlived(self, ask: CacheRequest, flight: Flight) -> bool:
        """Whether a purge may have passed a flight: always possible if only its landing shows what it was joined
        from."""
        if ask.route.made and not self._tiers.untouched(flight.stamp):
            return True
        return self._tiers.outlived(flight.stamp, flight.began, ask.wanted)

    def is_shared(self, ask: CacheRequest) -> bool:
        """Whether the shared tier may have the response, and is available: else no other process can want it."""
        return not ask.route.made and self._tiers.shared.available

    def claim(self, key: str) -> Claim | None:
        """The lease for a fetch of `key` that may follow a read; None if such a fetch is under way."""
        return None if key in self.flights else self._leases.claim(key)

    def alone_in_fleet(self, alone: bool) -> None:
        """Whether no other process can want what this one fetches."""
        self._leases.needed = not alone

    def unclaim(self, key: str) -> None:
        """Give back the lease of `claim`: there is no fetch."""
        self._leases.unclaim(key)

    def _new_flight(self, key: str) -> Flight:
        self.launched += 1
        stamp = self._tiers.purges.epochs.stamp
        flight = self.flights[key] = Flight(key, stamp, self._clock.now(), self.launched)
        return flight

    def lead(self, key: str, ask: CacheRequest, stale: Entry | None) -> Coroutine[Any, Any, Landing]:
        """Fetch for all waiting requests, in the task of the first one if that `stays`; the result, for that one."""
        flight = self._new_flight(key)
        if ask.stays:
            return self._landed(flight, ask, ask.origin, stale, spawns=True)
        self._background.spawn(self._landed(flight, ask, ask.origin, stale))
        return flight.lead()

    async def _landed(
        self,
        flight: Flight,
        ask: CacheRequest,
        origin: Origin,
        stale: Entry | None,
        *,
        behind: bool = False,
        spawns: bool = False,
    ) -> Landing:
        """Fetch for all waiting requests, with a lease if possible; the result, which they have all received. What is
        left to do then, storing in the shared tier and giving the lease back, is done before the end, or, if it
        `spawns`, in the background.

        In the background (`behind`) it takes the lease, or does nothing.
        """
        landing: Landing | None = None
        try:
            if self.is_shared(ask):
                landing = await self._land_leased(flight, ask, origin, stale, behind=behind)
            else:
                landing = await self._fetching.land(ask, origin, stale, flight=flight, now=flight.began)
        except Exception as error:
            # The waiting requests get the error and raise it: a handler's error is theirs.
            landing = Failed(500, error=error)
        finally:
            self._forget(flight)
            if flight.waiting or flight.abandoned:  # else it has nobody to wake: as it is forgotten, nobody will come
                await flight.land(landing if landing is not None else _stopping(origin))
        is_kept = isinstance(landing, Landed) and landing.kept and self.is_shared(ask)  # the tier may be back by now
        if is_kept or flight.lease.standing is _HELD:
            if spawns:
                self._background.begin(partial(self._after, flight, landing))
            else:
                await self._after(flight, landing)
        return landing

    def _after(self, flight: Flight, landing: Landing) -> Awaitable[object]:
        """Store what landed in the shared tier, then give the lease back."""
        values = self._tiers.shared_values(landing.stored) if isinstance(landing, Landed) and landing.kept else []
        mark, life = self._mark(flight, landing)
        return self._leases.give_back(flight.lease, mark, life, after=values)

    def _forget(self, flight: Flight) -> None:
        if self.flights.get(flight.key) is flight:
            del self.flights[flight.key]

    def _mark(self, flight: Flight, landing: Landing) -> tuple[bytes | None, float]:
        """The mark that takes the place of a flight's lease, and its life in seconds."""
        match landing:
            case Landed(kept=True) if self._fetching.is_uncacheable(flight.key):
                return UNCACHEABLE, self._durations.hit_for_miss
            case Landed(kept=True):
                return STORED, STORED_LIFE
            case Landed():
                return None, 0.0
            case Failed(rest=rest):
                return FAILED, max(self._durations.retry_after, rest or 0.0)
            case NotShareable():
                return UNCACHEABLE, self._durations.hit_for_miss
            case _:
                assert_never(landing)

    # --- one fetch in the fleet ----------------------------------------------------------------------------

    async def _land_leased(
        self, flight: Flight, ask: CacheRequest, origin: Origin, stale: Entry | None, *, behind: bool
    ) -> Landing:
        """The result of the fleet's one fetch: ours if we get the lease, another's if we can wait for it. All of it,
        including the wait, is within the fetch's timeout."""
        lease = flight.lease = await self._leases.take(flight.key, origin.deadline)
        if behind and stale is not None and not lease.standing.lets_fetch:
            return Landed(stale, stale.status, kept=False)
        if lease.standing is Standing.HELD and not lease.stored and not _looked_long_ago(ask):
            return await self._fetching.land(ask, origin, stale, flight=flight)
        deadline = time.monotonic() + origin.deadline
        found: Entry | None = None
        if lease.standing is Standing.BUSY:
            found, lease = await self._await_other(flight, ask, origin, lease)
            flight.lease = lease
        if found is None and lease.standing is Standing.HELD and (lease.stored or _looked_long_ago(ask)):
            found = await self._fresh_in_shared(flight, ask)
        if found is not None:
            return Landed(found, found.status, kept=False)
        if lease.standing is Standing.UNCACHEABLE:
            self._fetching.mark_uncacheable(flight.key)
            flight.release()
        if lease.standing is Standing.FAILED and stale is not None and self._fetching.usable_on_error(ask, stale):
            self._fetching.rest(ask, own=True)
            return Failed(503, error=UpstreamTimeout(origin.name, "it failed a moment ago"))
        within = deadline - time.monotonic()
        return await self._fetching.land(ask, origin, stale, within=within, flight=flight)

    async def _fresh_in_shared(self, flight: Flight, ask: CacheRequest) -> Entry | None:
        """A response that another worker stored between our lookup and our lease, if it serves the flight."""
        found = await self._newer(ask, Found(None))
        decision = freshness.decide(found.stored, PLAIN, ask.route.rules, self._clock.now())
        if not isinstance(decision, Hit):
            return None
        asked_for_new = ask.facts.no_cache or ask.facts.max_age is not None or ask.facts.min_fresh
        return None if asked_for_new and decision.stored.started < flight.began else decision.stored

    async def _await_other(
        self, flight: Flight, ask: CacheRequest, origin: Origin, lease: Lease
    ) -> tuple[Entry | None, Lease]:
        """Poll, at growing intervals, until another worker's fetch is stored, its lease ends, or our own time runs out.

        If the lease ends without a stored response, its holder has died or failed: one of the waiting requests gets the
        next lease.
        """
        pauses = Pauses()
        began = time.monotonic()
        while time.monotonic() < began + self._patience(origin):
            await pauses.pause()
            found, standing = await asyncio.gather(self._fresh_in_shared(flight, ask), self._leases.look(lease))
            if found is not None:
                return found, lease
            if standing is None:
                lease = await self._leases.take(flight.key, origin.deadline)
                standing = lease.standing
            if standing is not Standing.BUSY:
                return None, structs.replace(lease, standing=standing)
        return None, lease

    def _patience(self, origin: Origin) -> float:
        """Seconds for which another's fetch is waited for."""
        patience = origin.deadline * PATIENCE
        return min(patience, DOUBTED) if self._leases.doubtful else patience

    # --- refreshing behind ---------------------------------------------------------------------------------

    def refresh_behind(self, ask: CacheRequest, stale: Entry) -> None:
        """Begin a refresh, unless one is under way, it failed just now, or too many are."""
        key = self._fetching.flight_key(ask)
        if key in self.flights or self._fetching.is_backing_off(ask) or len(self._background) >= self._max_refreshes:
            return
        if not self.governor.admits_refresh(self.under_way):
            return
        self.refreshes += 1
        flight = self._new_flight(key)
        flight.abandoned = True
        self._background.spawn(self._refresh(flight, ask, stale))

    async def _refresh(self, flight: Flight, ask: CacheRequest, stale: Entry) -> None:
        """Another worker may have refreshed it already, or be about to: then there is nothing to do."""
        BEHIND.set(True)
        found = Found(stale, "memory")
        if self.is_shared(ask):
            found = await self._newer(ask, found)
        decision = freshness.decide(found.stored, PLAIN, ask.route.rules, self._clock.now())
        if isinstance(decision, Hit):
            self._forget(flight)
            await flight.land(Landed(decision.stored, decision.stored.status, kept=False))
            return
        origin = ask.refresh() if ask.refresh is not None else ask.origin
        await self._landed(flight, ask, origin, stale, behind=True)


def _stopping(origin: Origin) -> Failed:
    """The result of a flight whose task is cancelled."""
    return Failed(503, error=UpstreamTimeout(origin.name, "the gateway is stopping"))


def _looked_long_ago(ask: CacheRequest) -> bool:
    """Whether the mark of a response stored since this request's lookup may have expired already."""
    return time.perf_counter() - ask.exchange.began > STORED_LIFE / 2
