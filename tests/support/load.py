"""A load of many keep-alive clients, each answer checked, its time and what the cache said of it kept."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from math import ceil

import aiohttp

CLIENTS = 100
PAUSE = 0.2
"""Mean seconds between an answer and a client's next request: about 450 requests a second in all, which leaves two
cores room, so that what is measured is the gateway and no queue of the test's own."""


@dataclass(frozen=True, slots=True)
class Sample:
    path: str
    began: float
    seconds: float
    status: int
    cache_status: str
    right: bool


class Load:
    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.broken: list[str] = []
        self._under_way: Counter[float] = Counter()
        self._news = asyncio.Condition()

    @property
    def failed(self) -> list[str]:
        wrong = [f"{s.path}: {s.status} {s.cache_status}" for s in self.samples if s.status != 200 or not s.right]
        return [*self.broken, *wrong]

    async def window(self, seconds: float) -> list[Sample]:
        """What began in the next `seconds`, whenever it ended."""
        began = time.monotonic()
        await asyncio.sleep(seconds)
        until = time.monotonic()
        await self._until(lambda: all(each >= until for each in self._under_way), 20)
        return self.between(began, until)

    async def answered(self, count: int) -> None:
        """Return once `count` more requests were answered."""
        target = len(self.samples) + count
        await self._until(lambda: len(self.samples) >= target, 20)

    async def _until(self, true: Callable[[], bool], timeout: float) -> None:
        """Wait until `true` holds, asked whenever a request has ended."""
        async with asyncio.timeout(timeout), self._news:
            await self._news.wait_for(true)

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[float]:
        """One request, under way from the given time on."""
        began = time.monotonic()
        self._under_way[began] += 1
        try:
            yield began
        finally:
            self._under_way[began] -= 1
            if not self._under_way[began]:
                del self._under_way[began]
            async with self._news:
                self._news.notify_all()

    def between(self, began: float, until: float) -> list[Sample]:
        return [sample for sample in self.samples if began <= sample.began < until]


@asynccontextmanager
async def load_of(url: str, choose: Callable[[], str], clients: int = CLIENTS) -> AsyncIterator[Load]:
    """`choose` gives the path of each request; an answer is right where it names that path."""
    load = Load()
    stop = asyncio.Event()
    async with AsyncExitStack() as stack:
        sessions = [
            await stack.enter_async_context(
                aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(limit=1, keepalive_timeout=60),
                    cookie_jar=aiohttp.DummyCookieJar(),
                    timeout=aiohttp.ClientTimeout(total=10),
                )
            )
            for _ in range(clients)
        ]
        async with asyncio.TaskGroup() as group:
            for session in sessions:
                group.create_task(_client(load, session, url, choose, stop))
            try:
                yield load
            finally:
                stop.set()


async def _client(
    load: Load, session: aiohttp.ClientSession, url: str, choose: Callable[[], str], stop: asyncio.Event
) -> None:
    while not stop.is_set():
        path = choose()
        async with load.asking() as began:
            try:
                async with session.get(url + path) as response:
                    body = await response.read()
                    seconds = time.monotonic() - began
                    right = f'"path": "{path}"'.encode() in body
                    said = response.headers.get("Cache-Status", "")
                    load.samples.append(Sample(path, began, seconds, response.status, said, right))
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                load.broken.append(f"{path}: {error!r}")
        pause = random.uniform(0, 2 * PAUSE)
        try:
            async with asyncio.timeout(pause):
                await stop.wait()
        except TimeoutError:
            continue


def p99(samples: Sequence[Sample]) -> float:
    """The 99th percentile of the seconds, the nearest rank."""
    assert len(samples) >= 100, "too few to speak of a 99th percentile"
    ranked = sorted(sample.seconds for sample in samples)
    return ranked[ceil(len(ranked) * 0.99) - 1]
