"""Traffic made up by rule, what the engine really does with it on a turned clock, and what the advisor makes of it.

The tests of the advice and the table in docs/tuning.md are both made of this.
"""

from __future__ import annotations

import math
import random

from msgspec import structs
from xxhash import xxh3_64_intdigest

from gateway.advisor.advice import Changes
from gateway.advisor.ttl_ladder import Recorder, Replay
from gateway.cache.engine import Engine
from gateway.cache.memory import Memory
from gateway.cache.request import CacheRequest, Route
from gateway.cache.shared_store import NoShared
from gateway.context import RequestContext, Result
from gateway.http.headers import Headers
from gateway.policy.keys import Keying, plan
from gateway.policy.rules import PLAIN, CachePolicy
from gateway.upstreams.response import Fetched, WholeBody

Arrival = tuple[float, int]


def key_hash(number: int) -> int:
    return xxh3_64_intdigest(b"/items/%d" % number)


# --- traffic -----------------------------------------------------------------------------------------------


def poisson(seed: int, *, keys: int, rate: float, seconds: float) -> list[Arrival]:
    """Requests at random, the popularity of keys by Zipf's law."""
    lots = random.Random(seed)
    weights = [1 / (number + 1) ** 0.9 for number in range(keys)]
    at, arrivals = 0.0, []
    while (at := at + lots.expovariate(rate)) < seconds:
        arrivals.append((at, lots.choices(range(keys), weights)[0]))
    return arrivals


def bursty(seed: int, *, keys: int, rate: float, seconds: float) -> list[Arrival]:
    """Each key is asked for in bursts of some seconds, then not at all for long: far from Poisson."""
    lots = random.Random(seed)
    arrivals = []
    for key in range(keys):
        at = lots.expovariate(1 / 60)
        while at < seconds:
            end = at + lots.uniform(1, 20)
            while (at := at + lots.expovariate(rate * 8 / keys)) < min(end, seconds):
                arrivals.append((at, key))
            at = end + lots.paretovariate(1.5) * 40
    return sorted(arrivals)


# --- what really happens -----------------------------------------------------------------------------------


class Turned:
    """A clock that stands until it is turned."""

    def __init__(self) -> None:
        self.at = 1_800_000_000.0

    def now(self) -> float:
        return self.at

    def when(self, counted: float) -> float:
        return self.at


class Content:
    """An origin whose content has a version that changes at random (Poisson, for each key)."""

    name = "origin"
    deadline = 5.0

    def __init__(self, version: bytes) -> None:
        self.version = version

    def refusal(self) -> None:
        """None: it is never full."""

    async def fetch(self, method: str, headers: Headers) -> Fetched:
        return Fetched(200, ((b"content-length", b"%d" % len(self.version)),), WholeBody(self.version))


def versions(seed: int, key: int, rate: float, seconds: float) -> list[float]:
    """The instants at which a key's content changes."""
    lots = random.Random(seed * 1_000_003 + key)
    at, changes = 0.0, []
    while rate and (at := at + lots.expovariate(rate)) < seconds:
        changes.append(at)
    return changes


async def really_run(
    arrivals: list[Arrival], ttl: float, *, change_rate: float = 0.0, changes: Changes | None = None
) -> tuple[float, float, int]:
    """Send the arrivals through the gateway's engine on a turned clock: the hit ratio, the share of outdated answers,
    and the number of fetches."""
    clock = Turned()
    start, seconds = clock.at, arrivals[-1][0]
    engine = Engine(memory=Memory(1 << 30), shared=NoShared(), clock=clock, jitter=random.Random(5).random)
    route = Route("items", CachePolicy(ttl=ttl), Keying(vary=()))
    history: dict[int, list[float]] = {}
    fetched: dict[int, tuple[float, bytes]] = {}
    hits = outdated = 0
    for at, key in arrivals:
        clock.at = start + at
        if key not in history:
            history[key] = versions(1, key, change_rate, seconds)
        version = b"%d" % sum(change <= at for change in history[key])
        exchange = RequestContext("id", 0.0, "GET", "client", "http")
        origin = Content(version)
        planned = plan(route.keying, "u", f"/items/{key}", ())
        wanted = structs.replace(route.selection, plan=planned)
        asked = CacheRequest(route, planned, PLAIN, (), exchange, origin, _never, wanted)
        answer = await engine.answer(asked)
        hit = exchange.outcome.result is Result.HIT
        hits += hit
        outdated += answer.body != version
        if not hit:
            if changes is not None and key in fetched:
                last, before = fetched[key]
                changes.add(at - last, changed=before != version)
            fetched[key] = (at, version)
    await engine.aclose()
    return hits / len(arrivals), outdated / len(arrivals), len(arrivals) - hits


async def _never() -> Fetched:
    raise AssertionError("nothing here passes by the cache")


def replayed(arrivals: list[Arrival], *, workers: int = 1, every: float = 1.0) -> Replay:
    """The arrivals as `workers` record them between them, and the leader replays them each second."""
    recorders = [Recorder() for _ in range(workers)]
    replay = Replay(0.0, window=math.inf)
    turn = every

    def deliver() -> None:
        sightings = []
        for recorder in recorders:
            requests, seen = recorder.take()
            replay.count(requests)
            sightings += seen
        replay.observe(sorted(sightings, key=lambda each: each.first))

    for position, (at, key) in enumerate(arrivals):
        if at >= turn:
            deliver()
            turn = at + every
        recorders[position % workers].seen(key_hash(key), at)
    deliver()
    return replay
