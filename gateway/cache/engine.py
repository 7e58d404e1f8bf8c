"""The engine: the only module where policy, stores, flights and upstreams meet.

`answer` handles GET and HEAD: memory, then the shared tier, then one flight for all concurrent requests. `pass_by`
handles everything else. `policy` returns a decision as a value; the engine executes it with its collaborators:
`coalescer` (collapsing), `fetch` (the fetch and its result), `entry_writer` (storing), `respond` (the client's
response), `background` (background tasks).
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from functools import partial
from typing import assert_never

from gateway.advisor.traffic import Traffic
from gateway.cache import respond
from gateway.cache.background import Background
from gateway.cache.coalescer import Coalescer
from gateway.cache.compression import Compressor
from gateway.cache.entry_writer import EntryWriter
from gateway.cache.fetch import Durations, Fetcher, identity_of
from gateway.cache.flight import Failed, Flight, Landed, Landing, NotShareable
from gateway.cache.leases import Claim, Leases
from gateway.cache.memory import Memory
from gateway.cache.overload import Governor
from gateway.cache.purge_log import PurgeCounts, PurgeLog, PurgeReport
from gateway.cache.request import CacheRequest
from gateway.cache.respond import Answer, Responder, passed
from gateway.cache.shared_store import SharedStore
from gateway.cache.store import Found, TieredStore
from gateway.clock import Clock
from gateway.context import Outcome, RequestContext, Result
from gateway.errors import Overloaded, UpstreamError
from gateway.policy import freshness
from gateway.policy.entry import DerivedFrom, Entry
from gateway.policy.epochs import EVERYTHING, full_key_name, full_route_name, full_tag_name
from gateway.policy.freshness import Bypass, Hit, Miss, Revalidate, Stale, Unsatisfiable
from gateway.policy.identity_key import UNKEYED, IdentityKey
from gateway.policy.vary import variant_key
from gateway.upstreams.response import Fetched

_TO_FETCH = (Revalidate, Miss, Unsatisfiable)
ATTEMPTS = 3
"""How often a request waits for another's fetch before it fetches itself."""


class Useless(Enum):
    """Why another request's fetch can't serve a request."""

    TO_ME = "to me"
    """It may be reused for no other request, or not for this one."""
    PURGED = "purged"


class Engine:
    """Collaborators are arguments. Durations are seconds; `jitter` returns fractions in [0, 1)."""

    def __init__(
        self,
        *,
        memory: Memory,
        shared: SharedStore,
        clock: Clock,
        purges: PurgeLog | None = None,
        traffic: Traffic | None = None,
        retry_after: float = 1.0,
        hit_for_miss: float = 5.0,
        shared_budget: float = 0.05,
        shared_secret: bytes = b"",
        jitter: Callable[[], float] = random.random,
        max_refreshes: int = 1000,
        compression: Sequence[str] = (),
        governor: Governor | None = None,
        identity_key: IdentityKey = UNKEYED,
    ) -> None:
        self.identity_key = identity_key
        self.tiers = TieredStore(memory, shared, clock, purges=purges, budget=shared_budget, secret=shared_secret)
        self.traffic = traffic if traffic is not None else Traffic(clock)
        self.clock = clock
        self.collapsed = 0
        self.purged = PurgeCounts()
        self.background = Background()
        self.following = Background()
        """Work of handlers that follows their responses; it doesn't count as refreshes."""
        self.prepared = Compressor(memory, compression, self.background.spawn)
        self._durations = Durations(retry_after, hit_for_miss)
        self._storing = EntryWriter(self.tiers, clock, self.traffic, self.background, jitter)
        self._fetching = Fetcher(self.tiers, clock, self._storing, self._durations)
        self._flying = Coalescer(
            tiers=self.tiers,
            clock=clock,
            fetching=self._fetching,
            leases=Leases(shared),
            governor=governor if governor is not None else Governor(),
            background=self.background,
            durations=self._durations,
            newer=self._newer,
            max_refreshes=max_refreshes,
        )
        self._answering = Responder(
            clock=clock,
            traffic=self.traffic,
            prepared=self.prepared,
            fetching=self._fetching,
            background=self.background,
            durations=self._durations,
        )
        self.flights = self._flying.flights
        self.refresh_behind = self._flying.refresh_behind

    def __repr__(self) -> str:
        return f"<Engine {self.tiers!r} flights={len(self.flights)} tasks={len(self.background)}>"

    def configure(self, *, retry_after: float, hit_for_miss: float) -> None:
        """Use other durations (seconds) from now on."""
        self._durations.retry_after = retry_after
        self._durations.hit_for_miss = hit_for_miss

    def alone(self, alone: bool) -> None:
        """Whether no other process uses the shared tier: then a fetch needs no lease."""
        self._flying.alone_in_fleet(alone)

    @property
    def memory(self) -> Memory:
        return self.tiers.memory

    @property
    def shared(self) -> SharedStore:
        return self.tiers.shared

    @property
    def governor(self) -> Governor:
        return self._flying.governor

    @property
    def refreshes(self) -> int:
        """How many background refreshes were started."""
        return self._flying.refreshes

    @property
    def under_way(self) -> int:
        """The number of fetches: shared ones, and those of one client."""
        return self._flying.under_way

    # --- the way of a request ----------------------------------------------------------------------------

    def at_hand(self, request: CacheRequest) -> Answer | None:
        """The response, if it is in memory and no fetch is needed; None otherwise."""
        if request.plan.bypass is not None:
            return None
        decision = freshness.decide(
            self.tiers.at_hand(request.wanted), request.facts, request.route.rules, self.clock.now()
        )
        if isinstance(decision, Hit):
            return self._hit(request, decision.stored, "memory")
        return self._stale(request, decision) if isinstance(decision, Stale) else None

    def look(self, request: CacheRequest) -> Hit | Stale | None:
        """The entry in memory for a request, as `at_hand` would serve it; a stale one is refreshed in the
        background."""
        if request.plan.bypass is not None:
            return None
        decision = freshness.decide(
            self.tiers.at_hand(request.wanted), request.facts, request.route.rules, self.clock.now()
        )
        if isinstance(decision, Stale) and decision.refresh:
            self.refresh_behind(request, decision.stored)
        return decision if isinstance(decision, Hit | Stale) else None

    def is_backing_off(self, base: str) -> bool:
        """Whether a fetch for this base key failed just now, so that a stale response is served meanwhile."""
        return self._fetching.is_key_backing_off(base)

    def stale_copy(self, request: CacheRequest) -> Entry | None:
        """The entry in memory that may be served because the upstream failed."""
        stored = self.tiers.at_hand(request.wanted)
        return stored if stored is not None and self._fetching.usable_on_error(request, stored) else None

    def keep_made(self, request: CacheRequest, fetched: Fetched, made: DerivedFrom, body: bytes) -> Answer:
        """Serve a request from a response just derived from memory, and keep that."""
        stored = self._storing.made(request, fetched, made, body)
        return self._answering.from_stored(request, stored, Result.HIT, tier="memory", detail="joined")

    async def answer(self, request: CacheRequest) -> Answer:
        """The answer to a GET or HEAD. Failures of the upstream are answers too, in Problem Details."""
        if request.plan.bypass is not None:
            return await self.pass_by(request.exchange, "bypass", request.past, detail=request.plan.bypass)
        stored: Entry | None = self.tiers.at_hand(request.wanted)
        tier: str | None = "memory"
        now = 0.0 if stored is None else self.clock.now()  # of no account where nothing is stored
        decision = freshness.decide(stored, request.facts, request.route.rules, now)
        if isinstance(decision, _TO_FETCH) and self._flying.is_shared(request):
            if stored is not None or not request.exchange.looked:
                found = await self._newer(request, Found(stored, tier), self._claim(request))
                stored, tier = found.stored, found.tier
            if stored is not None:
                decision = freshness.decide(stored, request.facts, request.route.rules, self.clock.now())
        match decision:
            case Miss():
                reason = "vary-miss" if self.tiers.has_others(request.wanted) else "miss"
                return await self._ask_upstream(request, None, reason)
            case Hit():
                return self._hit(request, decision.stored, tier)
            case Stale():
                return self._stale(request, decision)
            case Bypass():
                return await self.pass_by(request.exchange, "bypass", request.past, detail=decision.reason)
            case Unsatisfiable():
                return self._answering.unsatisfiable(request)
            case Revalidate():
                return await self._ask_upstream(request, decision.stored, decision.reason)
            case _:
                assert_never(decision)

    async def pass_by(
        self,
        exchange: RequestContext,
        why: str,
        send: Callable[[], Awaitable[Fetched]],
        *,
        detail: str | None = None,
        invalidates: Callable[[Fetched], Iterable[str]] | None = None,
        keep: Callable[[Fetched], CacheRequest | None] | None = None,
    ) -> Answer:
        """Bypass: `send` forwards the request to the upstream, and the response is streamed.

        `invalidates` names the primary keys that a success invalidates (RFC 9111 §4.4); `keep` returns the GET that the
        response would serve as well, if any.
        """
        if exchange.allowance is not None and (reached := await exchange.allowance.refusal(exchange)) is not None:
            return self._answering.broken(exchange, reached, forward=why)
        began = time.perf_counter()
        try:
            with self._one_more("the upstream"):
                fetched = await send()
        except UpstreamError as error:
            return self._answering.broken(exchange, error, forward=why)
        exchange.spent["upstream"] += time.perf_counter() - began
        if invalidates is not None and 200 <= fetched.status < 400:
            await self.invalidate(invalidates(fetched))
        request = keep(fetched) if keep is not None else None
        if request is not None:
            fetched = await self._storing.keep_representation(request, fetched)
        exchange.outcome = Outcome(Result.BYPASS, forward=why, forward_status=fetched.status, detail=detail)
        return passed(fetched)

    def _hit(self, request: CacheRequest, stored: Entry, tier: str | None) -> Answer:
        return self._answering.from_stored(request, stored, Result.HIT, tier=tier)

    def _stale(self, request: CacheRequest, decision: Stale) -> Answer:
        if decision.refresh:
            self.refresh_behind(request, decision.stored)
        return self._answering.from_stored(request, decision.stored, Result.STALE, tier="memory")

    # --- fetching -----------------------------------------------------------------------------------------

    async def _ask_upstream(self, request: CacheRequest, stale: Entry | None, reason: str) -> Answer:
        fetching, facts = self._fetching, request.facts
        if stale is not None and fetching.is_backing_off(request) and fetching.usable_on_error(request, stale):
            return self._answering.from_stored(request, stale, Result.STALE_ERROR, detail="resting")
        if facts.ranged and fetching.may_send_range(request):
            part = self._stored_part(request)
            if part is not None:
                return part
            return await self._alone(request, stale, "partial" if stale else reason, None, ranged=True)
        if facts.head and request.route.follows_origin:
            return await self._alone(request, None, reason, None)
        arrived, key = self._flying.launched, fetching.flight_key(request)
        limited = request.exchange.allowance is not None
        if limited and key not in self.flights:
            await self._over_limit(request)  # what it says counts below, where no flight has begun meanwhile
        for _ in range(ATTEMPTS):
            if fetching.is_uncacheable(key):
                break
            flight = self.flights.get(key)
            if flight is None or self._flying.outlived(request, flight):
                refused = self._refused(request) or (await self._over_limit(request) if limited else None)
                if refused is not None:
                    self._flying.unclaim(key)
                    return self._answering.failed(request, refused, stale, reason, collapsed=False)
                return await self._lead(key, request, stale, reason)
            if request.exchange.allowance is not None:
                request.exchange.allowance.give_back(request.exchange)
            answer = await self._wait(request, flight, stale, reason, arrived)
            if isinstance(answer, Answer):
                return answer
            before, key = key, fetching.flight_key(request, flight.vary)
            if answer is Useless.TO_ME and key == before:
                break  # the next fetch for this key would be as useless: no request waits twice for it
        return await self._alone(request, stale, reason, None, ranged=fetching.may_send_range(request))

    async def _lead(self, key: str, request: CacheRequest, stale: Entry | None, reason: str) -> Answer:
        """The response of this request's own flight. A request that `stays` continues to the landing even if its client
        disconnects (`RequestContext.leading`)."""
        began, exchange = time.perf_counter(), request.exchange
        exchange.leading = request.stays
        try:
            landing = await self._flying.lead(key, request, stale)
        finally:
            exchange.leading = False
        exchange.spent["upstream"] += time.perf_counter() - began
        if isinstance(landing, NotShareable) and self._fetching.is_asked_again(request, landing):
            return await self._part_alone(request, landing, stale, reason)
        return self._answering.landed(request, landing, stale, reason, collapsed=False)

    async def _wait(
        self, request: CacheRequest, flight: Flight, stale: Entry | None, reason: str, arrived: int
    ) -> Answer | Useless:
        """The result of another request's flight for this one, or why it can't be used.

        A flight that was running when the request arrived may return data purged before that, by a tag that was unknown
        before the response came.
        """
        began = time.perf_counter()
        landing = await flight.wait(partial(self._serves, request))
        request.exchange.spent["upstream"] += time.perf_counter() - began
        if landing is None or not self._is_for(request, landing, stale):
            return Useless.TO_ME
        if (
            isinstance(landing, Landed)
            and flight.number <= arrived
            and not self.tiers.valid(landing.stored, request.wanted)
        ):
            return Useless.PURGED
        self.collapsed += 1
        return self._answering.landed(request, landing, stale, reason, collapsed=True)

    async def _alone(
        self, request: CacheRequest, stale: Entry | None, forward: str, detail: str | None, *, ranged: bool = False
    ) -> Answer:
        """Fetch for this request only; it is not shared, but stored if possible."""
        began = time.perf_counter()
        if (refused := await self._over_limit(request)) is not None:
            self._flying.unclaim(self._fetching.flight_key(request))
            return self._answering.failed(request, refused, stale, forward, collapsed=False)
        try:
            with self._one_more(request.origin.name):
                landing = await self._fetching.land(
                    request, request.origin, stale if not ranged else None, method=request.method, ranged=ranged
                )
        except Overloaded as error:
            landing = Failed(error.status, error=error)
        request.exchange.spent["upstream"] += time.perf_counter() - began
        if isinstance(landing, NotShareable) and not ranged and self._fetching.is_asked_again(request, landing):
            return await self._part_alone(request, landing, stale, forward)
        if isinstance(landing, Landed) and landing.kept and not request.route.made:
            self.background.spawn(self.tiers.share(landing.stored))
        return self._answering.landed(request, landing, stale, forward, collapsed=False, detail=detail)

    async def _part_alone(
        self, request: CacheRequest, whole: NotShareable, stale: Entry | None, forward: str
    ) -> Answer:
        """The requested part of a `whole` that can't be stored."""
        await whole.fetched.body.aclose()
        return await self._alone(request, stale, forward, None, ranged=True)

    def _stored_part(self, request: CacheRequest) -> Answer | None:
        """The answer to a range request from a stored part that is fresh and holds all of it."""
        now = self.clock.now()
        for stored in self.tiers.parts(request.wanted):
            decision = freshness.decide(stored, request.facts, request.route.rules, now)
            answer = respond.part_answer(request.headers, stored, request.route.rules, now)
            if answer is not None and isinstance(decision, Hit):
                request.exchange.stored = stored
                request.exchange.outcome = Outcome(Result.HIT, ttl=int(decision.windows.fresh - now), tier="memory")
                return answer
        return None

    # --- overload ------------------------------------------------------------------------------------------

    @contextmanager
    def _one_more(self, name: str) -> Iterator[None]:
        """A fetch for one client, while it waits for the head. Raises Overloaded."""
        if not self.governor.admits_miss(self.under_way):
            raise Overloaded(name, "too many fetches in flight", self._durations.retry_after)
        self._flying.alone += 1
        try:
            yield
        finally:
            self._flying.alone -= 1

    def _refused(self, request: CacheRequest) -> Failed | None:
        """Why a fetch may not start now, known before a lease is taken; None if it may."""
        governor, under_way = self._flying.governor, self._flying.under_way
        if under_way >= governor.limit and not governor.admits_miss(under_way):
            return self._shed(request.origin.name)
        refusal = request.origin.refusal()
        return None if refusal is None else Failed(refusal.status, error=refusal)

    @staticmethod
    async def _over_limit(request: CacheRequest) -> Failed | None:
        """Why the request may not be sent to the upstream by the limits that count misses; None if it may."""
        allowance = request.exchange.allowance
        reached = None if allowance is None else await allowance.refusal(request.exchange)
        return None if reached is None else Failed(reached.status, error=reached)

    def _shed(self, name: str) -> Failed:
        return Failed(503, error=Overloaded(name, "too many fetches in flight", self._durations.retry_after))

    # --- the stores, and the end ---------------------------------------------------------------------------

    def _is_for(self, request: CacheRequest, landing: Landing, stale: Entry | None) -> bool:
        """Whether the result of another request's fetch may be used for this one: a personal failure only allows a
        stale response."""
        match landing:
            case Landed(stored):
                return self._serves(request, stored)
            case Failed(personal=personal, identity=identity):
                to_share = not personal and (identity is None or list(identity) == identity_of(request))
                return to_share or (stale is not None and self._fetching.usable_on_error(request, stale))
            case NotShareable():
                return False
            case _:
                assert_never(landing)

    def _serves(self, request: CacheRequest, stored: Entry) -> bool:
        """Whether a response fetched for another request may answer this one: same variant, and reusable."""
        if stored.key != variant_key(
            request.plan.base, stored.vary, request.headers, request.route.keying.identity_key
        ):
            return False
        decision = freshness.decide(stored, request.facts, request.route.rules, self.clock.now())
        if isinstance(decision, Hit | Stale):
            return True
        # Validation was requested: this was fetched while the request waited.
        return isinstance(decision, Revalidate) and request.facts.no_cache and not stored.life.no_cache

    def _claim(self, request: CacheRequest) -> Claim | None:
        """The lease for the fetch that follows if the shared tier has no response, unless that will need none."""
        if request.facts.head or request.facts.only_if_cached or self._fetching.may_send_range(request):
            return None
        key = self._fetching.flight_key(request)
        return None if self._fetching.is_uncacheable(key) else self._flying.claim(key)

    async def _newer(self, request: CacheRequest, known: Found, claim: Claim | None = None) -> Found:
        """The newer of the known response and that of the shared tier, which the request shares."""
        began = time.perf_counter()
        try:
            return await self.tiers.newer(request.wanted, known, claim)
        finally:
            request.exchange.spent["cache"] += time.perf_counter() - began

    async def purge(
        self,
        *,
        keys: Iterable[str] = (),
        tags: Iterable[str] = (),
        routes: Iterable[str] = (),
        everything: bool = False,
        soft: bool = False,
        by: str = "",
    ) -> PurgeReport:
        """Purge by primary keys, tags, routes or everything; soft ends freshness, hard ends all. Costs the same
        whatever it hits."""
        names = [*map(full_key_name, keys), *map(full_tag_name, tags), *map(full_route_name, routes)]
        if everything:
            names.append(EVERYTHING)
        report = await self.tiers.purges.purge(names, soft=soft, by=by)
        self.purged.count(report)
        return report

    async def invalidate(self, primaries: Iterable[str]) -> None:
        """Make all that is stored for these primary keys, or being fetched for them, void (RFC 9111 §4.4)."""
        await self.tiers.invalidate(dict.fromkeys(primaries))

    async def settle(self) -> None:
        """Wait until nothing is under way behind: refreshes, writes to the shared tier."""
        await self.background.settle()
        await self.following.settle()

    async def aclose(self, *, grace: float = 5.0) -> None:
        """Let flights and tasks finish within `grace` seconds, then cancel them."""
        await self.background.drain(grace)
        await self.following.drain(grace)
        self.prepared.close()
        await self.background.cancel()
        await self.following.cancel()
        self._flying.close()
