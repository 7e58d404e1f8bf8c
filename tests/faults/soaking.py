"""The soak: two gateways of two workers each, as they are run, for as long as one likes, with a fault now and then.

Redis is a real Valkey behind a proxy, upstreams are raw sockets. Faults take turns; each lasts a fifth of the time
between two. Memory, descriptors, threads and the upstreams' connections are weighed once in a while, when all is well.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import statistics
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import aiohttp

from tests.faults import troubles
from tests.faults.scenarios import path_of, response
from tests.support.processes import GatewayProcess, Valkey
from tests.support.proxy import FaultProxy, faulty
from tests.support.raw import Connection, raw_upstream

KEYS = 500
CLIENTS = 40
PAUSE = 0.4
"""Mean seconds between an answer and a client's next request: about 100 a second in all."""
SETTLING = 5.0
"""Seconds after a fault that still count as part of it: a breaker's rest, and one failed answer's `retry_after`."""


@dataclass
class Soak:
    asked: Counter[str] = field(default_factory=Counter)
    """By what went on: `peace`, or the fault's name."""
    failed: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    weights: list[Weight] = field(default_factory=list)

    def share(self, *, peace: bool) -> float:
        """Answers that were right, of those asked for outside of faults, or of all."""
        asked = self.asked["peace"] if peace else self.asked.total()
        failed = self.failed["peace"] if peace else self.failed.total()
        return 1 - failed / max(1, asked)

    def grown(self, of: Callable[[Weight], int]) -> tuple[float, float]:
        """The medians of the second quarter and of the last one: the first one fills memories."""
        quarter = max(1, len(self.weights) // 4)
        second, last = self.weights[quarter : 2 * quarter] or self.weights, self.weights[-quarter:]
        return statistics.median(map(of, second)), statistics.median(map(of, last))


@dataclass(frozen=True, slots=True)
class Weight:
    """Of all workers together."""

    memory: int
    """Resident KiB."""
    descriptors: int
    threads: int
    connections: int
    """Those to the upstreams."""


class Upstream:
    """Answers with its path; `mood` says how badly."""

    def __init__(self) -> None:
        self.mood = "well"
        self.open = 0

    async def script(self, connection: Connection) -> None:
        self.open += 1
        try:
            while head := await connection.request():
                if not await self._answer(connection, head):
                    return
        finally:
            self.open -= 1

    async def _answer(self, connection: Connection, head: bytes) -> bool:
        body = path_of(head).encode()
        if self.mood == "hangs":
            await connection.closed()
            return False
        if self.mood == "resets":
            connection.writer.transport.abort()
            return False
        if self.mood == "cuts":
            await connection.send(response(body + b"more")[:-2])
            return False
        await asyncio.sleep(random.uniform(0, 0.01))
        await connection.send(response(body, "503 Service Unavailable" if self.mood == "fails" else "200 OK"))
        return True


class Grounds:
    """What the soak runs on, and what can be done to it."""

    def __init__(self, upstream: Upstream, proxy: FaultProxy, valkey: Valkey, gateways: list[GatewayProcess]) -> None:
        self.upstream = upstream
        self.proxy = proxy
        self.valkey = valkey
        self.gateways = gateways

    async def redis(self, trouble: Callable[[FaultProxy], Any]) -> None:
        if isinstance(result := trouble(self.proxy), Awaitable):
            await result

    async def ill(self, mood: str) -> None:
        self.upstream.mood = mood

    async def killed_valkey(self) -> None:
        await asyncio.to_thread(self.valkey.kill)

    async def killed_worker(self) -> None:
        os.kill(self.gateways[0].workers[0], signal.SIGKILL)

    async def signalled(self, number: signal.Signals) -> None:
        for gateway in self.gateways:
            gateway.signal(number)

    def faults(self) -> Iterator[tuple[str, Callable[[], Awaitable[None]]]]:
        """All faults in turn, each kind soon, for ever."""
        of_redis = cycle(troubles.TROUBLES)
        for mood in cycle(("fails", "hangs", "resets", "cuts")):
            trouble = next(of_redis)
            yield f"redis {trouble.__name__}", lambda trouble=trouble: self.redis(trouble)  # type: ignore[misc]
            yield f"upstream {mood}", lambda mood=mood: self.ill(mood)  # type: ignore[misc]
            yield "worker killed", self.killed_worker
            yield "valkey killed", self.killed_valkey
            yield "reloaded", lambda: self.signalled(signal.SIGHUP)
            yield "workers replaced", lambda: self.signalled(signal.SIGUSR2)

    async def heal(self) -> None:
        self.upstream.mood = "well"
        self.proxy.clear()
        await self.proxy.accept()
        if self.valkey.child.ended:
            await asyncio.to_thread(self.valkey.start)

    def weigh(self) -> Weight:
        workers = [Path(f"/proc/{pid}") for each in self.gateways for pid in each.workers]
        return Weight(
            sum(int((each / "statm").read_text().split()[1]) * 4 for each in workers),
            sum(len(list((each / "fd").iterdir())) for each in workers),
            sum(len(list((each / "task").iterdir())) for each in workers),
            self.upstream.open,
        )


@asynccontextmanager
async def grounds(directory: Path) -> AsyncIterator[Grounds]:
    upstream, valkey = Upstream(), Valkey(directory, unix=False)
    async with AsyncExitStack() as stack:
        stack.callback(valkey.end)
        await asyncio.to_thread(valkey.start)
        raw = await stack.enter_async_context(raw_upstream(upstream.script))
        proxy = await stack.enter_async_context(faulty("127.0.0.1", valkey.port))
        lasting = {"ttl": "2s", "stale_while_revalidate": "5s", "stale_if_error": "1h"}
        settings = {
            "redis_url": proxy.url(valkey.url),
            "workers": 2,
            "access_log": False,
            "memory": "1MiB",
            "upstreams": {"api": {"url": raw.url, "timeout": "2s"}},
            "routes": {"item": {"path": "/item/{id}", "upstream": "api", **lasting}},
        }
        gateways = []
        for name in ("one", "two"):
            gateway = await asyncio.to_thread(GatewayProcess, directory, settings, name=name)
            stack.push_async_callback(asyncio.to_thread, gateway.end)
            gateways.append(gateway)
        yield Grounds(upstream, proxy, valkey, gateways)


async def soak(directory: Path, *, seconds: float, every: float) -> Soak:
    """Load for so long, with a fault `every` so many seconds."""
    seen, now = Soak(), Doing()
    async with grounds(directory) as ground, asyncio.TaskGroup() as group:
        await first_requests([gateway.url for gateway in ground.gateways])
        clients = [group.create_task(client(ground.gateways[n % 2].url, seen, now)) for n in range(CLIENTS)]
        faults, ends = ground.faults(), asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < ends:
            await asyncio.sleep(every * 0.4)
            seen.weights.append(ground.weigh())
            await asyncio.sleep(every * 0.4)
            seen.weights.append(ground.weigh())
            now.what, fault = next(faults)
            await fault()
            await asyncio.sleep(every * 0.2)
            await ground.heal()
            await asyncio.sleep(SETTLING)
            now.what = "peace"
        for each in clients:
            each.cancel()
    return seen


async def first_requests(urls: list[str]) -> None:
    """Each key once, so that there is a stale copy of each."""
    async with aiohttp.ClientSession() as session:
        for number in range(KEYS):
            wrong = await asked(session, f"/item/{number}", urls[number % len(urls)])
            assert not wrong, wrong


@dataclass
class Doing:
    what: str = "peace"


async def client(url: str, seen: Soak, now: Doing) -> None:
    """One after the other, on a connection that is kept."""
    timeout = aiohttp.ClientTimeout(total=10)
    async with aiohttp.ClientSession(url, timeout=timeout, connector=aiohttp.TCPConnector(limit=1)) as session:
        while True:
            path, what = f"/item/{int(random.paretovariate(0.7)) % KEYS}", now.what
            kind = await asked(session, path)
            if what == "peace" != now.what:
                what = now.what  # a fault that came meanwhile
            seen.asked[what] += 1
            if kind:
                seen.failed[what] += 1
                seen.kinds[f"{what}: {kind}"] += 1
            await asyncio.sleep(random.expovariate(1 / PAUSE))


async def asked(session: aiohttp.ClientSession, path: str, url: str = "") -> str:
    """What was wrong with the answer; empty where nothing was."""
    try:
        async with session.get(url + path) as answer:
            body = await answer.text()
    except (aiohttp.ClientError, TimeoutError) as error:
        return type(error).__name__
    if answer.status != 200:
        return f"{answer.status} {answer.headers.get('cache-status', '')}"
    return "" if body == path else "another's body"
