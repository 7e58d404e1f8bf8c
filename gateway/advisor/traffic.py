"""Live traffic for the advisor: collected by each worker, replayed by one of them for the whole fleet.

The cost per request is a lookup and a count; each second a worker delivers the accesses of its sampled keys. With
Redis, all workers deliver to one list, and the holder of the leader's lease replays it and publishes the advice; if a
leader dies, the next one starts afresh. Without Redis each process advises for itself.
"""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter
from typing import Protocol

import msgspec

from gateway.advisor.advice import Advice, Changes, advise
from gateway.advisor.ttl_ladder import Recorder, Replay, Sighting
from gateway.clock import Clock

EVERY = 1.0
"""Seconds between two deliveries."""
DELIVER_EVERY = 5.0
"""Seconds between two computations of the advice for the metrics, if nothing else requires one."""
LEADS_FOR_MS = 5000
KEPT_BATCHES = 2000
REPORT_LIVES_MS = 60_000
ANSWER_SECONDS = 1.0
CHANGES_WINDOW = 86_400.0


class RouteBatch(msgspec.Struct, array_like=True, gc=False):
    """One route's traffic of one worker since its last delivery."""

    threshold: float
    requests: int
    sightings: list[Sighting]
    changes: Changes


Batch = dict[str, RouteBatch]


class Traffic:
    """This worker's observations. `seen` is called for each response that came or could have come from the cache,
    `fetched` if a fetch could be compared with the stored response."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.recorders: defaultdict[str, Recorder] = defaultdict(Recorder)
        """By route."""
        self._changes: dict[str, Changes] = {}

    def now(self) -> float:
        return self._clock.now()

    def seen(self, route: str, key: int) -> None:
        self.recorders[route].seen(key, self._clock.now())

    def fetched(self, route: str, gap: float, *, changed: bool) -> None:
        """A fetch, `gap` seconds after the one before it for the same key."""
        self._changes.setdefault(route, Changes()).add(gap, changed=changed)

    def take(self) -> Batch:
        """The observations since the last call."""
        batch = {}
        for route, recorder in self.recorders.items():
            requests, sightings = recorder.take()
            changes = self._changes.pop(route, None) or Changes()
            if requests or changes:
                batch[route] = RouteBatch(recorder.threshold, requests, sightings, changes)
        return batch


@dataclass
class _Watched:
    """One route: its replay, and its changes of this window and the one before."""

    replay: Replay
    since: float
    changes: Changes = field(default_factory=Changes)
    before: Changes = field(default_factory=Changes)

    def turn(self, now: float) -> None:
        if now - self.since >= CHANGES_WINDOW:
            self.since, self.before, self.changes = now, self.changes, Changes()

    def all_changes(self) -> Changes:
        changes = Changes()
        changes.merge(self.before)
        changes.merge(self.changes)
        return changes


class Advisor:
    """Replays the deliveries of all workers. `now` is in seconds on the gateway's clock."""

    def __init__(self) -> None:
        self._routes: dict[str, _Watched] = {}

    def add(self, batches: Iterable[Batch], now: float) -> None:
        gathered: dict[str, list[RouteBatch]] = {}
        for batch in batches:
            for route, each in batch.items():
                gathered.setdefault(route, []).append(each)
        for route, each_worker in gathered.items():
            self._add(route, each_worker, now)
        for watched in self._routes.values():
            watched.replay.reach(now)

    def _add(self, route: str, batches: list[RouteBatch], now: float) -> None:
        sightings = sorted(chain.from_iterable(each.sightings for each in batches), key=itemgetter(1))
        watched = self._routes.get(route)
        if watched is None:
            began = sightings[0].first if sightings else now
            watched = self._routes[route] = _Watched(Replay(began), now)
        watched.turn(now)
        watched.replay.lower(min(each.threshold for each in batches))
        watched.replay.count(sum(each.requests for each in batches))
        watched.replay.observe(sightings)
        for each in batches:
            watched.changes.merge(each.changes)

    def advice(self, today: Mapping[str, float | None]) -> list[Advice]:
        """The advice for each route; `today` has its TTL, None if it follows its upstream."""
        return [
            advise(route, today.get(route), watched.replay, watched.all_changes().rate())
            for route, watched in sorted(self._routes.items())
        ]


@dataclass(frozen=True)
class WorkerAdvice:
    """The advice that this worker worked out last, and when, on the gateway's clock."""

    at: float = -math.inf
    advice: tuple[Advice, ...] = ()


class AdviceExchange(Protocol):
    """Destination of deliveries and source of advice. Empty in a worker that doesn't advise."""

    told: WorkerAdvice

    async def deliver(self, batch: Batch, today: Mapping[str, float | None]) -> None: ...

    async def advice(self, today: Mapping[str, float | None]) -> list[Advice]: ...

    async def aclose(self) -> None: ...


class LocalAdvice:
    """One process for itself."""

    def __init__(self, clock: Clock) -> None:
        self.told = WorkerAdvice()
        self._clock = clock
        self._advisor = Advisor()

    async def deliver(self, batch: Batch, today: Mapping[str, float | None]) -> None:
        now = self._clock.now()
        self._advisor.add([batch], now)
        if now - self.told.at >= DELIVER_EVERY:
            self.told = WorkerAdvice(now, tuple(self._advisor.advice(today)))

    async def advice(self, today: Mapping[str, float | None]) -> list[Advice]:
        return self._advisor.advice(today)

    async def aclose(self) -> None:
        return None


class Watch:
    """Delivers a worker's observations each second until it is closed. `today` returns the routes' current TTLs."""

    def __init__(
        self, traffic: Traffic, exchange: AdviceExchange, today: Callable[[], Mapping[str, float | None]]
    ) -> None:
        self.traffic = traffic
        self.exchange = exchange
        self._today = today
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(EVERY)
            await self.turn()

    async def turn(self) -> None:
        """One delivery."""
        await self.exchange.deliver(self.traffic.take(), self._today())

    async def advice(self) -> list[Advice]:
        return await self.exchange.advice(self._today())

    def told(self) -> tuple[Advice, ...]:
        """The advice for the metrics: nothing but in the worker that advises, and nothing that is old."""
        told = self.exchange.told
        return told.advice if self.traffic.now() - told.at <= 3 * DELIVER_EVERY else ()

    async def aclose(self) -> None:
        while self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait((self._task,), timeout=0.05)
        await self.exchange.aclose()
