"""Twice what an upstream can bear, in an open loop: requests go out when they are due, whether those before them were
answered or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field

from tests.faults.scenarios import answering, field_of, response
from tests.support.raw import RawUpstream, raw_upstream


@dataclass
class Overload:
    capacity: float = 0.0
    peak: float = 0.0
    goodput: float = 0.0
    shed_p99: float = 0.0
    shed: int = 0
    hits: int = 0
    hits_served: int = 0
    other: Counter[str] = field(default_factory=Counter)
    recovered: float = 0.0


@dataclass
class Sent:
    at: float
    status: int
    seconds: float


async def overload(url: str, *, seconds: float, capacity: float = 250.0) -> Overload:
    """A gateway (at `url`) whose upstream bears `capacity` requests a second: what it does at that, then at twice that,
    in an open loop, then at half; all of them misses, beside twenty hits a second."""
    seen = Overload(capacity=capacity)
    with contextlib.closing(Connections(url)) as session:
        await _get(session, "/item/hot")
        seen.peak = _good(await in_open_loop(session, seconds=seconds / 2, rate=capacity)) / (seconds / 2)
        hits = asyncio.ensure_future(in_open_loop(session, seconds=seconds, rate=20, path=lambda _: "/item/hot"))
        sent = await in_open_loop(session, seconds=seconds, rate=2 * capacity)
        seen.goodput = _good(sent) / seconds
        refused = sorted(each.seconds for each in sent if each.status == 503)
        seen.shed, seen.shed_p99 = len(refused), refused[int(len(refused) * 0.99)] if refused else 0.0
        seen.other = Counter(str(each.status) for each in sent if each.status not in (200, 503))
        hot = await hits
        seen.hits, seen.hits_served = len(hot), _good(hot)
        after = await in_open_loop(session, seconds=5, rate=capacity / 2)
        began = after[0].at
        seen.recovered = max((each.at - began for each in after if each.status != 200), default=0.0)
    return seen


_numbers = itertools.count()


async def in_open_loop(
    session: Connections,
    *,
    seconds: float,
    rate: float,
    path: Callable[[int], str] = lambda _: f"/item/{next(_numbers)}",
) -> list[Sent]:
    """Requests at the times when they are due. `path` is given their numbers; if not set, each is for a new key."""
    loop = asyncio.get_running_loop()
    began, tasks = loop.time(), []
    for number in range(int(seconds * rate)):
        await asyncio.sleep(max(0.0, began + number / rate - loop.time()))
        tasks.append(asyncio.ensure_future(_get(session, path(number) if path else f"/item/{next(_numbers)}")))
    return list(await asyncio.gather(*tasks))


async def _get(session: Connections, path: str) -> Sent:
    loop = asyncio.get_running_loop()
    at = loop.time()
    try:
        async with asyncio.timeout(20):
            status = await session.get(path)
    except (OSError, asyncio.IncompleteReadError, TimeoutError):
        status = 0
    return Sent(at, status, loop.time() - at)


class Connections:
    """A client that costs little, so that what is measured is the gateway: kept connections, as many as it takes."""

    def __init__(self, url: str) -> None:
        self._host, _, port = url.removeprefix("http://").partition(":")
        self._port = int(port)
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def get(self, path: str) -> int:
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection(self._host, self._port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {self._host}\r\nAccept: */*\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(field_of(head, b"content-length")))
        self._idle.append((reader, writer))
        return int(head[9:12])

    def close(self) -> None:
        for _, writer in self._idle:
            writer.close()


def _good(sent: Iterable[Sent]) -> int:
    return sum(each.status == 200 for each in sent)


@contextlib.asynccontextmanager
async def bounded_upstream(*, at_once: int = 10, seconds: float = 0.04) -> AsyncIterator[RawUpstream]:
    """An upstream that answers each request after `seconds`; with `at_once` of them it bears 250 a second."""
    body = b"x" * 500
    async with raw_upstream(answering(lambda head: response(body), delay=lambda: seconds)) as raw:
        yield raw


OVERLOADED = {"max_connections": 10, "max_queue": 20, "timeout": "5s"}
"""How the gateway of `overload` speaks to `bounded_upstream`."""
