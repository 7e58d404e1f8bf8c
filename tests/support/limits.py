"""A fleet of limiters on one simulated Redis, whose clock and connections the test controls."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import replace

from gateway.cache.redis.meters import SILENT, MeterAsk, MeterReply
from gateway.limits.bucket import Verdict
from gateway.limits.limiter import Limiter
from gateway.limits.meter import Ask, Meter, QuotaPolicy, settle
from gateway.policy.identity_key import UNKEYED
from gateway.testing import TurnedClock


def as_asked(ask: MeterAsk) -> Ask:
    """What the script is asked, as `settle` takes it."""
    calendar = "" if ask.interval else "day"
    policy = QuotaPolicy("", 1, ask.interval / 1e6, ask.burst, calendar)
    return Ask(policy, b"", ask.demand, ask.want, ask.held, ask.back, ask.debt, ask.floor, ask.restore)


class SimulatedRedis:
    """The meters of all workers; `away` while it does not answer anybody."""

    at_once = 100

    def __init__(self, clock: TurnedClock) -> None:
        self.clock = clock
        self.away = False
        self.skew = 0.0
        self.asked = 0
        self.lose()

    def lose(self) -> None:
        """Restart without data."""
        self.meters: dict[str, Meter] = defaultdict(Meter)
        self.workers: dict[str, float] = {}
        self.epoch = ""

    @property
    def available(self) -> bool:
        return not self.away

    async def settle(self, worker: str, lease: float, asks: Sequence[MeterAsk]) -> list[MeterReply] | None:
        self.asked += len(asks)
        await asyncio.sleep(0)
        if self.away:
            return None
        now = self.clock.now() + self.skew
        replies = [settle(self.meters[ask.name], as_asked(ask), worker, now) for ask in asks]
        await asyncio.sleep(0)
        return [MeterReply(each.granted, each.extra, each.spent, each.wait) for each in replies]

    async def look(self, worker: str, epoch: str) -> tuple[int, int, str] | None:
        if self.away:
            return None
        now = self.clock.now()
        self.epoch = self.epoch or epoch
        self.workers[worker] = now
        self.workers = {name: at for name, at in self.workers.items() if now - at <= SILENT}
        return len(self.workers), sorted(self.workers).index(worker), self.epoch


class Fleet:
    """`number` workers of one Redis."""

    def __init__(self, number: int = 4) -> None:
        self.clock = TurnedClock()
        self.redis = SimulatedRedis(self.clock)
        self.workers = [Limiter(self.clock, UNKEYED, self.redis, workers=number) for _ in range(number)]
        self.passed: deque[float] = deque()
        self._looked_at = float("-inf")

    async def turn(self, seconds: float) -> None:
        """Let time pass, and the workers do each second what they do."""
        self.clock.turn(seconds)
        if self.clock.now() - self._looked_at >= 1.0:
            self._looked_at = self.clock.now()
            await asyncio.gather(*(worker.look() for worker in self.workers))
            await self.settled()

    async def settled(self) -> None:
        for worker in self.workers:
            await asyncio.sleep(0)
            await worker._background.settle()

    async def request(self, policy: QuotaPolicy, worker: int, key: bytes = b"one") -> Verdict:
        verdict = await self.workers[worker % len(self.workers)].acquire(policy, key)
        if verdict.admitted:
            self.passed.append(self.clock.now())
        return verdict

    def most_in(self, window: float) -> int:
        """The most requests that passed within any `window` seconds."""
        passed, first, most = list(self.passed), 0, 0
        for last, at in enumerate(passed):
            while passed[first] < at - window:
                first += 1
            most = max(most, last - first + 1)
        return most


def per_second(count: int, burst: int, name: str = "user") -> QuotaPolicy:
    return QuotaPolicy(name, count, 1.0, burst)


def renamed(policy: QuotaPolicy, name: str) -> QuotaPolicy:
    return replace(policy, name=name)
