"""Those who take their time: clients that send nothing or a byte a second, an upstream that hangs. What the others
notice of them is the 99th percentile of an open loop, before and meanwhile.

    python -m tests.faults.held slow URL COUNT SECONDS
    python -m tests.faults.held ask URL RATE SECONDS

are those who take their time, in a process of their own, so that the others' measure is not disturbed by them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

from tests.faults import outside
from tests.faults.overload import Connections, Sent, in_open_loop
from tests.faults.peers import Server
from tests.support.processes import LISTENING, ROOT, Child, GatewayProcess, clean_environment
from tests.support.raw import Connection, raw_upstream

RATE = 200.0


@dataclass
class Others:
    """What the others got: seconds, and what was no 200."""

    before: float = 0.0
    meanwhile: float = 0.0
    noise: float = 0.0
    """By how much the undisturbed percentile differs from itself: between its two halves."""
    failed: Counter[int] = field(default_factory=Counter)
    busy: tuple[float, float] = (0.0, 0.0)
    """The share of a processor that the worker took, before and meanwhile; no neighbour on the machine changes it."""

    def take(self, before: list[Sent], meanwhile: list[Sent]) -> None:
        half = len(before) // 2
        self.before, self.meanwhile = p99(before), p99(meanwhile)
        self.noise = abs(p99(before[:half]) - p99(before[half:]))
        self.failed = Counter(each.status for each in (*before, *meanwhile) if each.status != 200)

    def met(self, *, share: float = 0.0, seconds: float = 0.0) -> bool:
        """Whether none failed, and the percentile grew by no more than `share` of itself, `seconds`, and the noise."""
        return not self.failed and self.meanwhile <= self.before * (1 + share) + seconds + self.noise

    def told(self) -> str:
        before, noise, meanwhile = (f"{each * 1000:.1f}" for each in (self.before, self.noise, self.meanwhile))
        return (
            f"others' p99 {before} ms (noise {noise}), meanwhile {meanwhile} ms, failed {dict(self.failed)}; the "
            f"worker computes {self.busy[0]:.0%} of the time, meanwhile {self.busy[1]:.0%}"
        )


def p99(sent: list[Sent]) -> float:
    ranked = sorted(each.seconds for each in sent)
    return ranked[ceil(len(ranked) * 0.99) - 1]


def mixed(name: str) -> Callable[[int], str]:
    """Paths of hits and misses in turn."""
    return lambda number: f"/{name}/{number if number % 2 else 'hot'}"


@contextlib.asynccontextmanager
async def running(directory: Path, settings: dict[str, Any], name: str) -> AsyncIterator[GatewayProcess]:
    gateway = await asyncio.to_thread(GatewayProcess, directory, {"access_log": False, **settings}, name=name)
    try:
        yield gateway
    finally:
        await asyncio.to_thread(gateway.end)


@contextlib.asynccontextmanager
async def good_upstream(directory: Path) -> AsyncIterator[str]:
    origin = Child([sys.executable, "-m", "tests.support.origin"], output=directory / "origin.out", cwd=ROOT)
    try:
        yield (await asyncio.to_thread(origin.said, LISTENING))[1]
    finally:
        await asyncio.to_thread(origin.end)


async def slow_clients(directory: Path, *, count: int, seconds: float) -> tuple[int, float, Others]:
    """So many silent and as many dripping clients: how many were closed, after how long the last; and the others, from
    when all of those are connected on."""
    async with good_upstream(directory) as url:
        settings = {
            "upstreams": {"api": {"url": url}},
            "routes": {"rest": {"path": "/{path:path}", "upstream": "api", "ttl": "5m"}},
        }
        async with running(directory, settings, "slow") as gateway:
            (closed, last), others = await _beside(gateway, "slow", gateway.url, str(count), str(15), seconds=seconds)
    return closed, last, others


async def hanging_upstream(directory: Path, *, seconds: float) -> tuple[dict[str, int], Others]:
    """Two upstreams, each with its routes: what is answered of the one that hangs, asked 200 times a second, and the
    others, who ask the other one."""

    async def hangs(connection: Connection) -> None:
        await connection.request()
        await connection.closed()

    async with raw_upstream(hangs) as bad, good_upstream(directory) as url:
        settings = {
            # Without a breaker, which would hide what places alone do.
            "upstreams": {"bad": {"url": bad.url, "breaker_failures": 0}, "good": {"url": url}},
            "routes": {
                "bad": {"path": "/item/{id}", "upstream": "bad", "ttl": "5m"},
                "good": {"path": "/{path:path}", "upstream": "good", "ttl": "5m"},
            },
        }
        async with running(directory, settings, "bulkhead") as gateway:
            return await _beside(gateway, "ask", gateway.url, str(RATE), str(seconds), seconds=seconds)


async def _beside(gateway: GatewayProcess, *arguments: str, seconds: float) -> tuple[Any, Others]:
    """What those who take their time tell at their end, and what the others saw, before and meanwhile."""
    others = Others()
    with contextlib.closing(Connections(gateway.url)) as session:
        await in_open_loop(session, seconds=2, rate=RATE, path=mixed("first"))
        times = [gateway.processor_time()]
        before = await in_open_loop(session, seconds=seconds, rate=RATE, path=mixed("before"))
        times.append(gateway.processor_time())
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.faults.held", *arguments),
            cwd=ROOT,
            env=clean_environment(),
            stdout=asyncio.subprocess.PIPE,
        )
        assert child.stdout is not None
        assert await child.stdout.readline() == b"begun\n"
        times.append(gateway.processor_time())
        others.take(before, await in_open_loop(session, seconds=seconds, rate=RATE, path=mixed("meanwhile")))
        times.append(gateway.processor_time())
        others.busy = (times[1] - times[0]) / seconds, (times[3] - times[2]) / seconds
        told = json.loads(await child.stdout.read())
        await child.wait()
    return told, others


def _begun() -> None:
    print("begun", flush=True)


async def _take_time(kind: str, url: str, amount: float, seconds: float) -> Any:
    if kind == "slow":
        server = Server("gateway", url)
        return await outside.slow_clients(server, count=int(amount), patience=seconds, opened=_begun)
    with contextlib.closing(Connections(url)) as session:
        _begun()
        sent = await in_open_loop(session, seconds=seconds, rate=amount)
    return Counter(str(each.status) for each in sent)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_take_time(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4])))))
