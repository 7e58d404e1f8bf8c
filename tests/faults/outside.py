"""What can be measured of any server from outside, the gateway's peers too: functions that tell what was seen."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable, Iterable

import aiohttp

from tests.faults.peers import Server
from tests.faults.scenarios import path_of, response
from tests.support.raw import Connection


class Origin:
    """An upstream that answers with its path, to be kept for a second; `mood` may be a raw answer, or `fails`."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.delay = 0.0
        self.failing = False
        self.raw: bytes | None = None

    async def script(self, connection: Connection) -> None:
        while head := await connection.request():
            if head.count(b" ") < 2:
                return  # a server took the rest of a body for a request
            path = path_of(head)
            self.asked[path] += 1
            await asyncio.sleep(self.delay)
            if self.raw is not None and path.startswith("/raw"):
                await connection.send(self.raw)
                return
            status = "503 Service Unavailable" if self.failing else "200 OK"
            await connection.send(response(path.encode(), status, "Cache-Control: max-age=1"))


async def status_of(session: aiohttp.ClientSession, url: str) -> int:
    """0 where the connection ended, or nothing came in time."""
    try:
        async with session.get(url) as answer:
            await answer.read()
            return answer.status
    except (aiohttp.ClientError, TimeoutError):
        return 0


def clients(limit: int = 0) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=limit), timeout=aiohttp.ClientTimeout(total=10), auto_decompress=False
    )


async def asked_by_a_crowd(server: Server, origin: Origin, *, count: int) -> tuple[int, int]:
    """How often the upstream is asked by so many at once, for a key that is cold, then expired."""
    origin.delay, path, seen = 0.1, f"/crowd/{server.name}", []
    async with clients() as session:
        for _ in range(2):
            before = origin.asked[path]
            await asyncio.gather(*(status_of(session, server.url + path) for _ in range(count)))
            await asyncio.sleep(1.5)  # what goes on behind ends, and what was stored expires
            seen.append(origin.asked[path] - before)
    origin.delay = 0.0
    return seen[0], seen[1]


async def answered_while_failing(server: Server, origin: Origin, *, count: int) -> tuple[int, int]:
    """Of so many requests, three a second, while the upstream fails: answered well, and asked of the upstream."""
    path = f"/failing/{server.name}"
    async with clients() as session:
        await status_of(session, server.url + path)
        await asyncio.sleep(1.5)
        origin.failing, before, well = True, origin.asked[path], 0
        for _ in range(count):
            well += await status_of(session, server.url + path) == 200
            await asyncio.sleep(1 / 3)
        origin.failing = False
    return well, origin.asked[path] - before


async def refused(server: Server, requests: Iterable[bytes]) -> tuple[int, int]:
    """How many of these ambiguous requests get no answer below 400, and on how many connections nothing more is
    answered after it."""
    gate = asyncio.Semaphore(10)

    async def one(data: bytes) -> tuple[bool, bool]:
        async with gate:
            reader, writer = await server.open()
            with contextlib.suppress(OSError):
                writer.write(data)
                await writer.drain()
            said, ended = b"", False
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(3):
                    said = await reader.readline()
                    await reader.read()
                    ended = True
            writer.close()
            well = said.startswith((b"HTTP/1.1 2", b"HTTP/1.0 2", b"HTTP/1.1 3")) or _bare(said)
            return not well, not well and ended

    seen = await asyncio.gather(*map(one, requests))
    return sum(refused for refused, _ in seen), sum(ended for _, ended in seen)


def _bare(said: bytes) -> bool:
    """Whether it was answered as HTTP/0.9 is: with the body alone."""
    return said.startswith(b"/")


async def malformed(server: Server, origin: Origin, answers: Iterable[bytes]) -> tuple[int, int]:
    """Of so many malformed answers of the upstream: how many end in 5xx or a cut, after how many the next is right."""
    failed = right = 0
    for number, data in enumerate(answers):
        origin.raw = data
        async with clients() as session:
            failed += await status_of(session, f"{server.url}/raw/{number}") in (0, 500, 502, 503, 504)
            origin.raw = None
            right += await status_of(session, f"{server.url}/raw/{number}") == 200
    return failed, right


async def slow_clients(
    server: Server, *, count: int, patience: float, opened: Callable[[], None] = lambda: None
) -> tuple[int, float]:
    """Of so many silent and as many dripping clients: how many are closed within `patience` seconds, and after how
    long the last of them was. `opened` is called when all are connected."""
    loop = asyncio.get_running_loop()
    ended: list[float] = []
    left = 2 * count

    async def one(drips: bool) -> None:
        nonlocal left
        reader, writer = await server.open()
        began = loop.time()
        left -= 1
        if not left:
            opened()
        if drips:
            writer.write(b"GET / HTTP/1.1\r\nHost: a.test\r\nX-A: ")
        dripping = asyncio.ensure_future(_drip(writer)) if drips else None
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(patience):
                await reader.read()
                ended.append(loop.time() - began)
        if dripping is not None:
            dripping.cancel()
        writer.close()

    await asyncio.gather(*(one(number % 2 == 1) for number in range(2 * count)))
    return len(ended), max(ended, default=0.0)


async def _drip(writer: asyncio.StreamWriter) -> None:
    """A byte a second, not all clients in step."""
    await asyncio.sleep(random.random())
    while not writer.is_closing():
        writer.write(b"a")
        await asyncio.sleep(1)


async def failed_while(server: Server, seconds: float, every: float, act: Callable[[], None]) -> tuple[int, int]:
    """Of 200 requests a second on kept connections, while `act` is called `every` so many seconds: made, failed."""
    statuses: list[int] = []
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with clients(limit=20) as session:
        tasks = []
        for number in range(int(seconds * 200)):
            await asyncio.sleep(max(0.0, began + number / 200 - loop.time()))
            tasks.append(asyncio.ensure_future(status_of(session, f"{server.url}/load/{number % 50}")))
            if number and number % int(every * 200) == 0:
                act()
        statuses = await asyncio.gather(*tasks)
    return len(statuses), sum(status != 200 for status in statuses)
