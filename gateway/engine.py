"""The engine: the only place where policy, stores, flight and upstream meet.

`answer` is the way of a GET or HEAD: memory, then the shared tier, then one flight for all who want the same; `pass_by`
is the way of everything else. What to do is decided by `policy` as a value, and done here.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, assert_never

from msgspec import structs
from xxhash import xxh3_128_hexdigest

from . import answers, policy
from .answers import Answer
from .bulkhead import BEHIND
from .clock import Clock
from .epochs import EVERYTHING, key_name, route_name, tag_name
from .errors import Overloaded, UpstreamError, UpstreamTimeout
from .exchange import Exchange
from .flight import Alone, Failed, Flight, Landed, Landing, Marks
from .governor import Governor
from .headers import Headers, has, http_date, without
from .keys import Keying, Plan, variant_key
from .leases import FAILED, UNCACHEABLE, Lease, Leases, Pauses, Standing
from .memory import Memory
from .outcome import Outcome, Result
from .policy import Facts, Rules
from .prepared import Prepared
from .purges import PurgeLog, Report
from .ranges import Piece, combine, is_whole, rest_of, span_of
from .record import Life, Made, Stored
from .shared import SharedStore
from .tiers import Found, Selection, Tiers, selection
from .traffic import Traffic, key_hash
from .upstreams import Fetched, WholeBody

PATIENCE = 0.5
"""The share of its own deadline that a request waits for a fetch of another process."""
ATTEMPTS = 3
"""How often a request waits for somebody else's fetch before it makes its own."""


@dataclass(frozen=True, slots=True)
class Route:
    """A route as the engine sees it, made once when the configuration is read.

    `max_body` is in bytes. With `validate` (a route whose ttl is a duration) answers without an ETag get one.
    """

    name: str
    rules: Rules
    keying: Keying
    max_body: int = 2 * 1024 * 1024
    made: bool = False
    """Whether answers are made here, of others that are stored (an aggregate): they are kept in memory alone, where
    those lie too, and nobody is asked for them but the parts."""

    @property
    def follows_origin(self) -> bool:
        return self.rules.ttl is None and not self.made


class Origin(Protocol):
    """Where the answers of one request come from: an upstream's target, or a handler's call."""

    @property
    def name(self) -> str: ...

    @property
    def deadline(self) -> float:
        """Seconds for a whole answer."""

    async def fetch(self, method: str, headers: Headers) -> Fetched:
        """Raises UpstreamError."""


@dataclass(frozen=True)
class Ask:
    """One GET or HEAD. `past` asks for it by the cache, for this client alone; `refresh` makes the origin of a fetch
    behind it, where that is another."""

    route: Route
    plan: Plan
    facts: Facts
    headers: Headers
    exchange: Exchange
    origin: Origin
    past: Callable[[], Awaitable[Fetched]]
    refresh: Callable[[], Origin] | None = None
    tags: tuple[str, ...] = ()
    through: str | None = None
    """The route through which a part is asked for, whose purges it hears of as well."""

    @cached_property
    def wanted(self) -> Selection:
        return selection(self.plan, self.headers, self.route.name, self.tags, self.through)

    @property
    def method(self) -> str:
        return "HEAD" if self.facts.head else "GET"


class Engine:
    """Collaborators are handed in. Durations are seconds; `jitter` gives fractions in [0, 1)."""

    def __init__(
        self,
        *,
        memory: Memory,
        shared: SharedStore,
        clock: Clock,
        purges: PurgeLog | None = None,
        traffic: Traffic | None = None,
        retry_after: float = 1.0,
        uncacheable_for: float = 5.0,
        shared_budget: float = 0.05,
        shared_secret: bytes = b"",
        jitter: Callable[[], float] = random.random,
        max_refreshes: int = 1000,
        compression: Sequence[str] = (),
        governor: Governor | None = None,
    ) -> None:
        self.tiers = Tiers(memory, shared, clock, purges=purges, budget=shared_budget, secret=shared_secret)
        self.leases = Leases(shared)
        self.traffic = traffic if traffic is not None else Traffic(clock)
        self.clock = clock
        self.flights: dict[str, Flight] = {}
        self.collapsed = 0
        self.refreshes = 0
        self._launched = 0
        self.governor = governor if governor is not None else Governor()
        self._alone_under_way = 0
        self._retry_after = retry_after
        self._uncacheable_for = uncacheable_for
        self._jitter = jitter
        self._max_refreshes = max_refreshes
        self._uncacheable = Marks()
        self._resting = Marks()
        self._tasks: set[asyncio.Task[None]] = set()
        self.prepared = Prepared(memory, compression, self._spawn)

    def __repr__(self) -> str:
        return f"<Engine {self.tiers!r} flights={len(self.flights)} tasks={len(self._tasks)}>"

    def configure(self, *, retry_after: float, uncacheable_for: float) -> None:
        """Go by other durations (seconds) from now on."""
        self._retry_after = retry_after
        self._uncacheable_for = uncacheable_for

    @property
    def memory(self) -> Memory:
        return self.tiers.memory

    @property
    def shared(self) -> SharedStore:
        return self.tiers.shared

    # --- the way of a request ----------------------------------------------------------------------------

    def at_hand(self, ask: Ask) -> Answer | None:
        """The answer, where it lies in memory and nobody need be asked; None otherwise."""
        if ask.plan.bypass is not None:
            return None
        decision = policy.decide(self.tiers.at_hand(ask.wanted), ask.facts, ask.route.rules, self.clock.now())
        if isinstance(decision, policy.Hit):
            return self._hit(ask, decision.stored, "memory")
        return self._stale(ask, decision) if isinstance(decision, policy.Stale) else None

    def look(self, ask: Ask) -> policy.Hit | policy.Stale | None:
        """What lies in memory for a request, as `at_hand` would answer with it; a stale one is refreshed behind."""
        if ask.plan.bypass is not None:
            return None
        decision = policy.decide(self.tiers.at_hand(ask.wanted), ask.facts, ask.route.rules, self.clock.now())
        if isinstance(decision, policy.Stale) and decision.refresh:
            self.refresh_behind(ask, decision.stored)
        return decision if isinstance(decision, policy.Hit | policy.Stale) else None

    def stale_copy(self, ask: Ask) -> Stored | None:
        """What lies in memory and may stand in because the upstream failed."""
        stored = self.tiers.at_hand(ask.wanted)
        return stored if stored is not None and self._usable_on_error(ask, stored) else None

    def keep_made(self, ask: Ask, fetched: Fetched, made: Made, body: bytes) -> Answer:
        """The answer to a request from one that was made just now, of what lay in memory; it is kept."""
        now = self.clock.now()
        headers = (*without(fetched.headers, b"content-length", b"age"), (b"date", http_date(now)))
        stored = Stored(
            key=variant_key(ask.plan.base, made.vary, ask.headers),
            primary=ask.plan.primary,
            born=now,
            started=made.started or now,
            initial_age=made.age,
            status=fetched.status,
            headers=headers,
            body=body,
            life=Life(lifetime=made.lifetime),
            tags=ask.tags,
            stamp=made.stamp,
            vary=made.vary,
            route=ask.route.name,
            names=made.names,
        )
        self.tiers.keep(stored, ask.wanted)
        return self._from_stored(ask, stored, Result.HIT, tier="memory", detail="joined")

    async def answer(self, ask: Ask) -> Answer:
        """The answer to a GET or HEAD. Failures of the upstream are answers too, in Problem Details."""
        if ask.plan.bypass is not None:
            return await self.pass_by(ask.exchange, "bypass", ask.past, detail=ask.plan.bypass)
        found = Found(self.tiers.at_hand(ask.wanted), "memory")
        decision = policy.decide(found.stored, ask.facts, ask.route.rules, self.clock.now())
        if isinstance(decision, policy.Revalidate | policy.Miss | policy.Unsatisfiable):
            if found.stored is not None or not ask.exchange.looked:
                found = await self._newer(ask, found)
            decision = policy.decide(found.stored, ask.facts, ask.route.rules, self.clock.now())
        match decision:
            case policy.Hit():
                return self._hit(ask, decision.stored, found.tier)
            case policy.Stale():
                return self._stale(ask, decision)
            case policy.Bypass():
                return await self.pass_by(ask.exchange, "bypass", ask.past, detail=decision.reason)
            case policy.Unsatisfiable():
                return self._unsatisfiable(ask)
            case policy.Revalidate():
                return await self._ask_upstream(ask, decision.stored, decision.reason)
            case policy.Miss():
                reason = "vary-miss" if self.tiers.varies(ask.plan.primary) else "miss"
                return await self._ask_upstream(ask, None, reason)
            case _:
                assert_never(decision)

    async def pass_by(
        self,
        exchange: Exchange,
        why: str,
        send: Callable[[], Awaitable[Fetched]],
        *,
        detail: str | None = None,
        invalidates: Callable[[Fetched], Iterable[str]] | None = None,
        keep: Callable[[Fetched], Ask | None] | None = None,
    ) -> Answer:
        """The way past the cache: `send` asks the upstream, the answer is streamed.

        `invalidates` names the primary keys that a success makes void (RFC 9111 §4.4); `keep` gives the GET that the
        answer would answer as well, if it would.
        """
        began = time.perf_counter()
        try:
            with self._one_more("the upstream"):
                fetched = await send()
        except UpstreamError as error:
            return self._broken(exchange, error, forward=why)
        exchange.spend("upstream", time.perf_counter() - began)
        if invalidates is not None and 200 <= fetched.status < 400:
            await self.invalidate(invalidates(fetched))
        ask = keep(fetched) if keep is not None else None
        if ask is not None:
            fetched = await self._keep_representation(ask, fetched)
        exchange.outcome = Outcome(Result.BYPASS, forward=why, forward_status=fetched.status, detail=detail)
        return Answer(fetched.status, policy.passed_on(fetched.headers), fetched.body)

    def _hit(self, ask: Ask, stored: Stored, tier: str | None) -> Answer:
        return self._from_stored(ask, stored, Result.HIT, tier=tier)

    def _stale(self, ask: Ask, decision: policy.Stale) -> Answer:
        if decision.refresh:
            self.refresh_behind(ask, decision.stored)
        return self._from_stored(ask, decision.stored, Result.STALE, tier="memory")

    def _unsatisfiable(self, ask: Ask) -> Answer:
        ask.exchange.outcome = Outcome(Result.ERROR, forward="request", detail="only-if-cached")
        return answers.problem(ask.exchange, 504, "Nothing stored answers this request, and it asked for no more.")

    # --- asking the upstream -------------------------------------------------------------------------------

    async def _ask_upstream(self, ask: Ask, stale: Stored | None, reason: str) -> Answer:
        if stale is not None and self._is_resting(ask) and self._usable_on_error(ask, stale):
            return self._from_stored(ask, stale, Result.STALE_ERROR, detail="resting")
        if has(ask.headers, b"range") and self._may_send_range(ask):
            part = self._stored_part(ask)
            if part is not None:
                return part
            return await self._alone(ask, stale, "partial" if stale else reason, None, ranged=True)
        if ask.facts.head and ask.route.follows_origin:
            return await self._alone(ask, None, reason, None)
        arrived = self._launched
        for _ in range(ATTEMPTS):
            key = self._flight_key(ask)
            if self._uncacheable.active(key, self.clock.now()):
                break
            flight = self.flights.get(key)
            leading = flight is None or self._outlived(ask, flight)
            if flight is None or leading:
                if not self.governor.admits_miss(self.under_way):
                    return self._failed(ask, self._shed(ask.origin.name), stale, reason, collapsed=False)
                flight = self._launch(key, ask, stale)
            answer = await self._wait(ask, flight, stale, reason, arrived=arrived, leading=leading)
            if answer is not None:
                return answer
        return await self._alone(ask, stale, reason, None)

    def _outlived(self, ask: Ask, flight: Flight) -> bool:
        """Whether a purge may have passed a flight: any may, where only its landing tells what it was joined from."""
        if ask.route.made and not self.tiers.untouched(flight.stamp):
            return True
        return self.tiers.outlived(flight.stamp, flight.began, ask.wanted)

    async def _wait(
        self, ask: Ask, flight: Flight, stale: Stored | None, reason: str, *, arrived: int, leading: bool
    ) -> Answer | None:
        """The answer that a flight brings to this request; None where it is of no use to it.

        A flight that was under way when the request arrived may bring what was purged before that, under a tag which
        nobody knew before the response came.
        """
        began = time.perf_counter()
        landing = await flight.wait(leading=leading)
        ask.exchange.spend("upstream", time.perf_counter() - began)
        if leading:
            return self._landed(ask, landing, stale, reason, collapsed=False)
        if isinstance(landing, Alone):
            return None
        if isinstance(landing, Landed) and not self._serves(ask, landing.stored):
            return None
        if (
            isinstance(landing, Landed)
            and flight.number <= arrived
            and not self.tiers.valid(landing.stored, ask.wanted)
        ):
            return None
        self.collapsed += 1
        return self._landed(ask, landing, stale, reason, collapsed=True)

    async def _alone(
        self, ask: Ask, stale: Stored | None, forward: str, detail: str | None, *, ranged: bool = False
    ) -> Answer:
        """Ask for this request alone; the fetch ends with it. A response that may be stored is stored all the same."""
        began = time.perf_counter()
        try:
            with self._one_more(ask.origin.name):
                landing = await self._land(
                    ask, ask.origin, stale if not ranged else None, method=ask.method, ranged=ranged
                )
        except Overloaded as error:
            landing = Failed(error.status, error=error)
        ask.exchange.spend("upstream", time.perf_counter() - began)
        if isinstance(landing, Landed) and landing.kept and not ask.route.made:
            self._spawn(self.tiers.share(landing.stored))
        return self._landed(ask, landing, stale, forward, collapsed=False, detail=detail)

    def _landed(
        self,
        ask: Ask,
        landing: Landing,
        stale: Stored | None,
        forward: str,
        *,
        collapsed: bool,
        detail: str | None = None,
    ) -> Answer:
        match landing:
            case Landed(stored, status, kept):
                result = Result.REVALIDATED if status == 304 else Result.MISS
                return self._from_stored(
                    ask, stored, result, forward=forward, status=status, kept=kept, collapsed=collapsed
                )
            case Failed():
                return self._failed(ask, landing, stale, forward, collapsed=collapsed)
            case Alone(fetched, reason):
                return self._streamed(ask, fetched, forward, detail or reason)
            case _:
                assert_never(landing)

    def _failed(self, ask: Ask, failed: Failed, stale: Stored | None, forward: str, *, collapsed: bool) -> Answer:
        if stale is not None and self._usable_on_error(ask, stale):
            return self._from_stored(
                ask, stale, Result.STALE_ERROR, forward="stale", status=failed.status, collapsed=collapsed
            )
        if failed.error is not None:
            if not isinstance(failed.error, UpstreamError):
                raise failed.error
            return self._broken(ask.exchange, failed.error, forward=forward, collapsed=collapsed)
        ask.exchange.outcome = Outcome(Result.MISS, forward=forward, forward_status=failed.status, collapsed=collapsed)
        body = b"" if ask.facts.head else failed.body
        return Answer(failed.status, _with_length(policy.passed_on(failed.headers), len(failed.body)), body)

    def _streamed(self, ask: Ask, fetched: Fetched, forward: str, detail: str | None) -> Answer:
        ask.exchange.outcome = Outcome(Result.MISS, forward=forward, forward_status=fetched.status, detail=detail)
        headers = policy.passed_on(fetched.headers)
        if fetched.status == 200 and policy.not_modified(ask.headers, headers, self.clock.now()):
            self._spawn(fetched.body.aclose())
            return Answer(304, policy.fields_of_304(headers), b"")
        return Answer(fetched.status, headers, fetched.body)

    # --- overload ------------------------------------------------------------------------------------------

    @property
    def under_way(self) -> int:
        """How many fetches are: those that others may wait for, and those of one client."""
        return len(self.flights) + self._alone_under_way

    @contextmanager
    def _one_more(self, name: str) -> Iterator[None]:
        """A fetch for one client, while it waits for the head. Raises Overloaded."""
        if not self.governor.admits_miss(self.under_way):
            raise Overloaded(name, "too many fetches are under way", self._retry_after)
        self._alone_under_way += 1
        try:
            yield
        finally:
            self._alone_under_way -= 1

    def _shed(self, name: str) -> Failed:
        return Failed(503, error=Overloaded(name, "too many fetches are under way", self._retry_after))

    # --- flights -------------------------------------------------------------------------------------------

    def _launch(self, key: str, ask: Ask, stale: Stored | None) -> Flight:
        flight = self._new_flight(key)
        self._spawn(self._make(flight, ask, stale) if ask.route.made else self._fly(flight, ask, ask.origin, stale))
        return flight

    def _new_flight(self, key: str) -> Flight:
        self._launched += 1
        flight = self.flights[key] = Flight(key, self.tiers.stamp(), self.clock.now(), self._launched)
        return flight

    async def _fly(
        self, flight: Flight, ask: Ask, origin: Origin, stale: Stored | None, *, behind: bool = False
    ) -> None:
        """Fetch for all who wait, alone in the fleet as far as the lease goes: store, then give it back.

        `behind` a stale answer it takes the lease, or does nothing.
        """
        landing: Landing = Failed(503, error=UpstreamTimeout(origin.name, "the gateway is stopping"))
        lease: Lease | None = None
        try:
            lease = await self.leases.take(flight.key, origin.deadline)
            if behind and stale is not None and not lease.standing.lets_fetch:
                landing = Landed(stale, stale.status, kept=False)
            else:
                landing, lease = await self._land_alone(flight, ask, origin, stale, lease)
        except Exception as error:
            # Whoever asked is told, and raises it: an error of a handler is nobody's but theirs.
            landing = Failed(500, error=error)
        finally:
            self._forget(flight)
            await flight.land(landing)
        if isinstance(landing, Landed) and landing.kept:
            await self.tiers.share(landing.stored)
        if lease is not None:
            await self._give_back(lease, landing)

    async def _make(self, flight: Flight, ask: Ask, stale: Stored | None) -> None:
        """Make for all who wait what is made here: nobody in the fleet needs to be asked for leave."""
        landing: Landing = Failed(503, error=UpstreamTimeout(ask.origin.name, "the gateway is stopping"))
        try:
            landing = await self._land(ask, ask.origin, stale)
        except Exception as error:
            landing = Failed(500, error=error)
        finally:
            self._forget(flight)
            await flight.land(landing)

    def _forget(self, flight: Flight) -> None:
        if self.flights.get(flight.key) is flight:
            del self.flights[flight.key]

    async def _give_back(self, lease: Lease, landing: Landing) -> None:
        match landing:
            case Landed():
                await self.leases.give_back(lease)
            case Failed():
                await self.leases.give_back(lease, FAILED, self._retry_after)
            case Alone():
                await self.leases.give_back(lease, UNCACHEABLE, self._uncacheable_for)
            case _:
                assert_never(landing)

    async def _land_alone(
        self, flight: Flight, ask: Ask, origin: Origin, stale: Stored | None, lease: Lease
    ) -> tuple[Landing, Lease]:
        """What the one fetch of the fleet comes to: ours where the lease is, another's where we can wait for it.

        All of it, the waiting too, has the fetch's deadline.
        """
        deadline = time.monotonic() + origin.deadline
        found: Stored | None = None
        if lease.standing is Standing.BUSY:
            found, lease = await self._await_other(flight, ask, origin, lease)
        if found is None and lease.standing is Standing.HELD:
            found = await self._fresh_in_shared(flight, ask)
        if found is not None:
            return Landed(found, found.status, kept=False), lease
        if lease.standing is Standing.FAILED and stale is not None and self._usable_on_error(ask, stale):
            self._rest(ask)
            return Failed(503, error=UpstreamTimeout(origin.name, "it failed a moment ago")), lease
        return await self._land(ask, origin, stale, within=deadline - time.monotonic()), lease

    async def _fresh_in_shared(self, flight: Flight, ask: Ask) -> Stored | None:
        """What another stored between our look and our lease, if it answers the flight."""
        found = await self._newer(ask, Found(None))
        decision = policy.decide(found.stored, policy.PLAIN, ask.route.rules, self.clock.now())
        if not isinstance(decision, policy.Hit):
            return None
        asked_for_new = ask.facts.no_cache or ask.facts.max_age is not None or ask.facts.min_fresh
        return None if asked_for_new and decision.stored.started < flight.began else decision.stored

    async def _await_other(self, flight: Flight, ask: Ask, origin: Origin, lease: Lease) -> tuple[Stored | None, Lease]:
        """Look, with growing gaps, until another's fetch is stored, or its lease ends, or our own time grows short.

        Where the lease ends with nothing stored, its holder has died or failed: one of those who wait gets the next.
        """
        pauses = Pauses()
        until = time.monotonic() + origin.deadline * PATIENCE
        while time.monotonic() < until:
            await pauses.pause()
            found = await self._fresh_in_shared(flight, ask)
            if found is not None:
                return found, lease
            standing = await self.leases.look(lease)
            if standing is None:
                lease = await self.leases.take(flight.key, origin.deadline)
                standing = lease.standing
            if standing is not Standing.BUSY:
                return None, replace(lease, standing=standing)
        return None, lease

    async def _land(
        self,
        ask: Ask,
        origin: Origin,
        stale: Stored | None,
        *,
        method: str = "GET",
        ranged: bool = False,
        within: float | None = None,
    ) -> Landing:
        """Fetch, and decide what the response is: to be kept, a failure, or for its client alone.

        `within` (seconds) is what is left of its deadline.
        """
        left = origin.deadline if within is None else min(within, origin.deadline)
        try:
            return await self._fetch(ask, origin, stale, method=method, ranged=ranged, left=left)
        except TimeoutError:
            error: UpstreamError = UpstreamTimeout(origin.name, "no whole answer within its deadline")
        except UpstreamError as failure:
            error = failure
        self._rest(ask)
        return Failed(error.status, error=error)

    async def _fetch(
        self,
        ask: Ask,
        origin: Origin,
        stale: Stored | None,
        *,
        method: str,
        ranged: bool,
        left: float,
        complete: bool = True,
    ) -> Landing:
        if method == "HEAD" and not ask.route.follows_origin:
            method = "GET"
        stale = self.tiers.conditional(stale, ask.wanted)
        conditions = policy.validators(stale) if stale is not None else []
        ranges = [pair for pair in ask.headers if pair[0] in (b"range", b"if-range")] if ranged else []
        begun = None
        if method == "GET" and not ranged and stale is None and complete and ask.route.follows_origin:
            begun, ranges = self._to_complete(ask)
        sent, stamp = self.clock.now(), self.tiers.stamp()
        async with asyncio.timeout(left) as deadline:
            fetched = await origin.fetch(method, [*ask.plan.forward, *conditions, *ranges])
            received = policy.Received(fetched.status, fetched.headers, sent, self.clock.now(), stamp)
            try:
                if fetched.status == 304 and conditions and stale is not None:
                    await fetched.body.aclose()
                    if policy.confirms(stale, received):
                        return self._confirmed(ask, stale, received)
                    return await self._fetch(ask, origin, None, method=method, ranged=ranged, left=left)
                if begun is not None and fetched.status in (206, 416):
                    whole = await self._completed(ask, begun, fetched, received)
                    if whole is not None:
                        return whole
                    await fetched.body.aclose()
                    return await self._fetch(ask, origin, None, method=method, ranged=False, left=left, complete=False)
                if method == "HEAD":
                    deadline.reschedule(None)
                    await self._freshen_by_head(ask, received)
                    return Alone(fetched, "head")
                if ranged and (fetched.status != 200 or not ask.route.follows_origin):
                    return await self._partial(ask, fetched, received, deadline)
                return await self._judge(ask, fetched, received, stale, deadline)
            except BaseException:
                await fetched.body.aclose()
                raise

    async def _judge(
        self,
        ask: Ask,
        fetched: Fetched,
        received: policy.Received,
        stale: Stored | None,
        deadline: asyncio.Timeout,
    ) -> Landing:
        """A whole new response: to be kept, a failure to share, or for its client alone."""
        verdict = policy.admit(received, ask.facts, ask.route.rules)
        better = stale is not None and self._usable_on_error(ask, stale)
        if fetched.status >= 500 and (isinstance(verdict, policy.Refuse) or better):
            self._rest(ask)
            if better or not (isinstance(verdict, policy.Refuse) and verdict.personal):
                body = await fetched.body.whole(ask.route.max_body)
                if body is not None:
                    return Failed(fetched.status, fetched.headers, body)
            return self._unstorable(ask, fetched, "failure", deadline)
        if isinstance(verdict, policy.Refuse):
            return self._unstorable(ask, fetched, verdict.reason, deadline)
        if not fetched.ends_surely:
            return self._unstorable(ask, fetched, "end-in-doubt", deadline)
        if ask.route.made and fetched.made is None:
            return self._unstorable(ask, fetched, "parts", deadline)
        body = await fetched.body.whole(ask.route.max_body)
        if body is None:
            return self._unstorable(ask, fetched, "too-large", deadline)
        return self._admitted(ask, received, verdict, body, fetched.made)

    async def _partial(self, ask: Ask, fetched: Fetched, received: policy.Received, deadline: asyncio.Timeout) -> Alone:
        """The answer to a range request: for its client, and kept as the part it is (RFC 9111 §3.3)."""
        verdict = policy.admit(replace(received, status=200), ask.facts, ask.route.rules)
        if (
            fetched.status != 206
            or not ask.route.follows_origin
            or not isinstance(verdict, policy.Admit)
            or not fetched.ends_surely
            or span_of(received.headers) is None
        ):
            deadline.reschedule(None)
            return Alone(fetched, "range")
        body = await fetched.body.whole(ask.route.max_body)
        if body is None:
            deadline.reschedule(None)
            return Alone(fetched, "too-large")
        self._keep_part(ask, received, body)
        return Alone(Fetched(206, fetched.headers, WholeBody(body)), "range")

    def _keep_part(self, ask: Ask, received: policy.Received, body: bytes) -> None:
        """Store a part, joined with those stored already where they are of one representation (RFC 9111 §3.4)."""
        piece = Piece(received.headers, body)
        for known in self.tiers.parts(ask.wanted):
            joined = combine(Piece(known.headers, known.body), piece)
            if joined is not None and len(joined.body) <= ask.route.max_body:
                piece = joined
        if is_whole(piece.headers):
            landing = self._keep_whole(ask, received, piece)
            if isinstance(landing, Landed) and landing.kept:
                self._spawn(self.tiers.share(landing.stored))
            return
        verdict = policy.admit(replace(received, status=200, headers=piece.headers), ask.facts, ask.route.rules)
        if isinstance(verdict, policy.Admit):
            self.tiers.keep_part(self._stored(ask, received, verdict, piece.body))

    def _keep_whole(self, ask: Ask, received: policy.Received, piece: Piece) -> Landing:
        """Store a representation whose parts are all there: it is a 200 now (RFC 9111 §3.4)."""
        received = replace(received, status=200, headers=without(piece.headers, b"content-range"))
        verdict = policy.admit(received, ask.facts, ask.route.rules)
        if isinstance(verdict, policy.Refuse):
            return Alone(Fetched(200, received.headers, WholeBody(piece.body)), verdict.reason)
        return self._admitted(ask, received, verdict, piece.body)

    def _to_complete(self, ask: Ask) -> tuple[Stored | None, list[tuple[bytes, bytes]]]:
        """A stored part, and the fields that ask for the rest of its representation."""
        for part in self.tiers.parts(ask.wanted):
            fields = rest_of(part.headers)
            if fields:
                return part, fields
        return None, []

    async def _completed(self, ask: Ask, part: Stored, fetched: Fetched, received: policy.Received) -> Landing | None:
        """The whole that a stored part and the rest of it come to; None where they are not of one representation."""
        if fetched.status != 206 or not fetched.ends_surely:
            return None
        body = await fetched.body.whole(ask.route.max_body)
        if body is None:
            return None
        piece = combine(Piece(part.headers, part.body), Piece(received.headers, body))
        if piece is None or not is_whole(piece.headers):
            return None
        return self._keep_whole(ask, received, piece)

    def _stored_part(self, ask: Ask) -> Answer | None:
        """The answer to a range request from a stored part that is fresh and holds all of it."""
        now = self.clock.now()
        for stored in self.tiers.parts(ask.wanted):
            decision = policy.decide(stored, ask.facts, ask.route.rules, now)
            answer = answers.part_answer(ask.headers, stored, ask.route.rules, now)
            if answer is not None and isinstance(decision, policy.Hit):
                ask.exchange.outcome = Outcome(Result.HIT, ttl=int(decision.windows.fresh - now), tier="memory")
                return answer
        return None

    async def _freshen_by_head(self, ask: Ask, received: policy.Received) -> None:
        """What a HEAD's answer says of the stored GET: it is still the same, or it is void (RFC 9111 §4.3.5)."""
        stored = self.tiers.at_hand(ask.wanted)
        if stored is None or received.status != 200:
            return
        if policy.same_representation(stored, received):
            self._confirmed(ask, stored, received)
        else:
            await self.invalidate([ask.plan.primary])

    async def _keep_representation(self, ask: Ask, fetched: Fetched) -> Fetched:
        """Keep a POST's answer that is the representation of its target (RFC 9110 §9.3.3), if its life is stated."""
        now = math.nextafter(self.clock.now(), math.inf)  # later than the invalidation just made
        received = policy.Received(fetched.status, fetched.headers, now, now, self.tiers.stamp())
        verdict = policy.admit(received, ask.facts, ask.route.rules)
        if not isinstance(verdict, policy.Admit) or not verdict.life.lifetime or not fetched.ends_surely:
            return fetched
        body = await fetched.body.whole(ask.route.max_body)
        if body is None:
            return fetched
        await self.tiers.purged()  # the invalidation just made must lie before the stamp, or it voids this answer, too
        stored = self._stored(ask, replace(received, stamp=self.tiers.stamp()), verdict, body)
        if self.tiers.keep(stored, ask.wanted):
            self._spawn(self.tiers.share(stored))
        return Fetched(fetched.status, fetched.headers, WholeBody(body))

    def _unstorable(self, ask: Ask, fetched: Fetched, reason: str, deadline: asyncio.Timeout) -> Alone:
        """For its client alone, from now on at the body's own pace."""
        deadline.reschedule(None)
        self._uncacheable.put(self._flight_key(ask), self.clock.now() + self._uncacheable_for)
        return Alone(fetched, reason)

    def _admitted(
        self, ask: Ask, received: policy.Received, verdict: policy.Admit, body: bytes, made: Made | None = None
    ) -> Landed:
        stored = self._stored(ask, received, verdict, body)
        stored = stored if made is None else _taking_over(stored, made)
        before = self.tiers.at_hand(ask.wanted)
        if before is not None:
            self._compared(ask, before, received, changed=before.body != stored.body)
        return Landed(stored, received.status, self.tiers.keep(stored, ask.wanted))

    def _compared(self, ask: Ask, before: Stored, received: policy.Received, *, changed: bool) -> None:
        ask.exchange.changed = changed
        self.traffic.fetched(ask.route.name, received.sent - before.started, changed=changed)

    def _stored(self, ask: Ask, received: policy.Received, verdict: policy.Admit, body: bytes) -> Stored:
        headers = without(verdict.headers, b"content-length")
        if not ask.route.follows_origin and received.status == 200 and not has(headers, b"etag"):
            headers.append((b"etag", policy.OWN_TAG + xxh3_128_hexdigest(body).encode("ascii") + b'"'))
        if not has(headers, b"date"):
            headers.append((b"date", http_date(received.arrived)))
        return Stored(
            key=variant_key(ask.plan.base, verdict.vary, ask.headers),
            primary=ask.plan.primary,
            born=received.arrived,
            started=received.sent,
            initial_age=verdict.initial_age,
            status=received.status,
            headers=tuple(headers),
            body=body,
            life=verdict.life,
            jitter=self._jitter(),
            tags=tuple(dict.fromkeys((*ask.tags, *policy.tags_of(received.headers)))),
            stamp=received.stamp,
            vary=verdict.vary,
            route=ask.route.name,
        )

    def _confirmed(self, ask: Ask, stale: Stored, received: policy.Received) -> Landing:
        """A 304: the stored response is as good as new, with the fields that came (RFC 9111 §4.3.4)."""
        headers = policy.freshened(stale, received)
        if not has(received.headers, b"date"):
            headers = (*without(headers, b"date"), (b"date", http_date(received.arrived)))
        whole = replace(received, status=stale.status, headers=(*headers, *_age_of(received)))
        verdict = policy.admit(whole, ask.facts, ask.route.rules)
        if isinstance(verdict, policy.Refuse):
            self.tiers.drop(stale)
            return Landed(stale, 304, kept=False)
        stored = Stored(
            key=stale.key,
            primary=stale.primary,
            born=received.arrived,
            started=received.sent,
            initial_age=verdict.initial_age,
            status=stale.status,
            headers=tuple(verdict.headers),
            body=stale.body,
            life=verdict.life,
            jitter=self._jitter(),
            tags=tuple(dict.fromkeys((*ask.tags, *policy.tags_of(received.headers)))),
            stamp=received.stamp,
            vary=stale.vary,
            route=ask.route.name,
        )
        self._compared(ask, stale, received, changed=False)
        return Landed(stored, 304, self.tiers.keep(stored, ask.wanted))

    # --- refreshing behind ---------------------------------------------------------------------------------

    def refresh_behind(self, ask: Ask, stale: Stored) -> None:
        """Begin a refresh, unless one is under way, it failed just now, or too many are."""
        key = self._flight_key(ask)
        if key in self.flights or self._is_resting(ask) or len(self._tasks) >= self._max_refreshes:
            return
        if not self.governor.admits_refresh(self.under_way):
            return
        self.refreshes += 1
        flight = self._new_flight(key)
        flight.abandoned = True
        self._spawn(self._refresh(flight, ask, stale))

    async def _refresh(self, flight: Flight, ask: Ask, stale: Stored) -> None:
        """Another worker may have refreshed it already, or be about to: then there is nothing to do."""
        BEHIND.set(True)
        found = await self._newer(ask, Found(stale, "memory"))
        decision = policy.decide(found.stored, policy.PLAIN, ask.route.rules, self.clock.now())
        if isinstance(decision, policy.Hit):
            self._forget(flight)
            await flight.land(Landed(decision.stored, decision.stored.status, kept=False))
            return
        origin = ask.refresh() if ask.refresh is not None else ask.origin
        await self._fly(flight, ask, origin, stale, behind=True)

    # --- the stores ----------------------------------------------------------------------------------------

    async def _newer(self, ask: Ask, known: Found) -> Found:
        if ask.route.made or not self.shared.available:
            return known
        began = time.perf_counter()
        try:
            return await self.tiers.newer(ask.wanted, known)
        finally:
            ask.exchange.spend("cache", time.perf_counter() - began)

    async def purge(
        self,
        *,
        keys: Iterable[str] = (),
        tags: Iterable[str] = (),
        routes: Iterable[str] = (),
        everything: bool = False,
        soft: bool = False,
        by: str = "",
    ) -> Report:
        """Purge by primary keys, tags, routes or everything; soft ends freshness, hard ends all. Costs the same
        whatever it hits."""
        names = [*map(key_name, keys), *map(tag_name, tags), *map(route_name, routes)]
        if everything:
            names.append(EVERYTHING)
        return await self.tiers.purges.purge(names, soft=soft, by=by)

    async def invalidate(self, primaries: Iterable[str]) -> None:
        """Make all that is stored for these primary keys, or being fetched for them, void (RFC 9111 §4.4)."""
        await self.tiers.invalidate(dict.fromkeys(primaries))

    # --- answers -------------------------------------------------------------------------------------------

    def _from_stored(
        self,
        ask: Ask,
        stored: Stored,
        result: Result,
        *,
        tier: str | None = None,
        forward: str | None = None,
        status: int | None = None,
        kept: bool = False,
        collapsed: bool = False,
        detail: str | None = None,
    ) -> Answer:
        now = self.clock.now()
        rules = ask.route.rules
        ask.exchange.stored = stored
        ask.exchange.key = key_hash(ask.plan.base)
        self.traffic.seen(ask.route.name, ask.exchange.key)
        fresh_for = int(policy.windows(stored, rules).fresh - now)
        ask.exchange.outcome = Outcome(
            result,
            forward=forward,
            forward_status=status,
            ttl=fresh_for if forward is None else None,
            stored=kept,
            collapsed=collapsed,
            tier=tier,
            detail=detail,
        )
        coded = self.prepared.choose(ask.headers, stored, rules)
        return answers.stored_answer(ask.exchange, ask.headers, stored, rules, now, coded)

    def _broken(self, exchange: Exchange, error: UpstreamError, *, forward: str, collapsed: bool = False) -> Answer:
        exchange.outcome = Outcome(Result.ERROR, forward=forward, collapsed=collapsed, detail=error.kind)
        answer = answers.problem(exchange, error.status, f"{error.title} ({error.upstream}).", title=error.title)
        if error.status == 503:
            seconds = error.retry_after if error.retry_after is not None else self._retry_after
            answer.headers.append((b"retry-after", b"%d" % max(1, math.ceil(seconds))))
        return answer

    # --- small things --------------------------------------------------------------------------------------

    def _may_send_range(self, ask: Ask) -> bool:
        """On a route with a duration `Range` is not in the key: the whole is fetched and cut, if it can be kept."""
        return ask.route.follows_origin or self._uncacheable.active(self._flight_key(ask), self.clock.now())

    def _flight_key(self, ask: Ask) -> str:
        return self.tiers.flight_key(ask.wanted)

    def _serves(self, ask: Ask, stored: Stored) -> bool:
        """Whether a response fetched for another request may answer this one: same variant, and reusable."""
        if stored.key != variant_key(ask.plan.base, stored.vary, ask.headers):
            return False
        decision = policy.decide(stored, ask.facts, ask.route.rules, self.clock.now())
        if isinstance(decision, policy.Hit | policy.Stale):
            return True
        # Asked for validation: this was fetched while it waited.
        return isinstance(decision, policy.Revalidate) and ask.facts.no_cache and not stored.life.no_cache

    def _usable_on_error(self, ask: Ask, stale: Stored) -> bool:
        return policy.usable_on_error(stale, ask.facts, ask.route.rules, self.clock.now())

    def _rest(self, ask: Ask) -> None:
        self._resting.put(ask.plan.base, self.clock.now() + self._retry_after)

    def _is_resting(self, ask: Ask) -> bool:
        return self._resting.active(ask.plan.base, self.clock.now())

    def _spawn(self, work: Awaitable[None]) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a task of the cache engine failed", "exception": error, "task": task}
            )

    async def settle(self) -> None:
        """Wait until nothing is under way behind: refreshes, writes to the shared tier."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def aclose(self, *, grace: float = 5.0) -> None:
        """Let what is under way end within `grace` seconds, cancel the rest."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=grace)
        self.prepared.close()
        for task in set(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks))


def _with_length(headers: list[tuple[bytes, bytes]], length: int) -> list[tuple[bytes, bytes]]:
    return [*without(headers, b"content-length"), (b"content-length", b"%d" % length)]


def _taking_over(stored: Stored, made: Made) -> Stored:
    """A response that was made of others, with what it takes over from them."""
    return structs.replace(
        stored,
        started=made.started or stored.started,
        stamp=made.stamp,
        initial_age=made.age,
        life=Life(lifetime=made.lifetime),
        names=made.names,
    )


def _age_of(received: policy.Received) -> list[tuple[bytes, bytes]]:
    return [pair for pair in received.headers if pair[0] == b"age"]
