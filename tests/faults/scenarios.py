"""What goes wrong, each kind as a function that lets it happen to a real gateway and tells what was seen.

The tests hold what they see to the promise at a small size; `make torture` prints it at full length. A gateway here
is in this process, so that its pools and counters can be looked at; clients, upstreams and Redis are real sockets.
Reads go past ASGI as they do in production, or with `door=False` by the app.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from gateway.app.gateway import Gateway
from gateway.cache.redis.store import RedisStore
from gateway.edge.protocol import GatewayProtocol
from gateway.testing import TurnedClock
from gateway.upstreams.client import Upstream
from tests.support.gateways import gateway, served
from tests.support.proxy import FaultProxy, faulty_url
from tests.support.raw import Connection, RawUpstream, raw_upstream

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
PATIENCE = 10.0
"""Seconds for which hits from Redis are waited for."""
Script = Callable[[Connection], Any]


@contextlib.asynccontextmanager
async def started(*apps: Gateway, door: bool = True) -> AsyncIterator[list[httpx.AsyncClient]]:
    """A client for each of the gateways, which have started: by the door, as they are run, where reads of declared
    routes go past ASGI; or as ASGI apps, which all the other requests are answered by."""
    async with contextlib.AsyncExitStack() as stack:
        clients = []
        for app in apps:
            await app.start()
            stack.push_async_callback(app.stop)
            if door:
                url = await stack.enter_async_context(served(app, http=GatewayProtocol, lifespan="off"))
                # A client's pool that survives cancellation (docs/decisions/0002).
                transport: httpx.AsyncBaseTransport = AiohttpTransport(client=_session)
            else:
                url, transport = "http://gateway.test", httpx.ASGITransport(app, raise_app_exceptions=False)
            client = httpx.AsyncClient(transport=transport, base_url=url, timeout=150)
            clients.append(await stack.enter_async_context(client))
        yield clients


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
    )


def app_for(raw: RawUpstream | str, routes: dict[str, Any] | None = None, **settings: Any) -> Gateway:
    """A gateway whose upstream `api` is a real one."""
    url = raw if isinstance(raw, str) else raw.url
    given = {"timeout": "5s", **settings.pop("upstream", {})}
    return gateway(None, routes, upstreams={"api": {"url": url, **given}}, **settings)


def behind(url: str, prefix: str, budget: float = 0.05) -> RedisStore:
    return RedisStore(url, prefix=prefix, budget=budget)


def in_use(app: Gateway) -> int:
    """Connections to upstreams that someone holds."""
    upstreams: list[Upstream] = list(app.upstreams.values())
    return sum(each.places.taken + each.transport.connections_in_use for each in upstreams)  # type: ignore[attr-defined]


def answering(respond: Callable[[bytes], bytes | None], *, delay: Callable[[], float] = lambda: 0.0) -> Script:
    """An upstream that answers each request's head by a function; None closes."""

    async def script(connection: Connection) -> None:
        while head := await connection.request():
            await asyncio.sleep(delay())
            answer = respond(head)
            if answer is None:
                return
            await connection.send(answer)

    return script


def response(body: bytes, status: str = "200 OK", *fields: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def field_of(head: bytes, name: bytes) -> bytes:
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.lower() == name:
            return value.strip()
    return b""


def path_of(head: bytes) -> str:
    return head.split(b" ")[1].decode()


# --- identity ------------------------------------------------------------------------------------------------


@dataclass
class Users:
    asked: int = 0
    cancelled: int = 0
    answered: int = 0
    wrong: list[str] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)
    held: int = 0
    slowest: float = 0.0


async def many_users(redis_url: str, *, requests: int, users: int, at_once: int = 50, door: bool = True) -> Users:
    """Requests of many users for the one path, with credentials in the key, cancelled at random; Redis answers late,
    sliced, now and then not at all. Two gateways share it, with memories too small to keep much."""
    seen, chance = Users(), random.Random(7)
    late = random.Random(8)

    def respond(head: bytes) -> bytes:
        return response(field_of(head, b"authorization"))

    routes = {"me": {"path": "/me", "upstream": "api", "ttl": "60s", "authorization": "key"}}
    async with (
        raw_upstream(answering(respond, delay=lambda: late.uniform(0, 0.005))) as raw,
        faulty_url(redis_url) as proxy,
    ):
        proxy.down.delay, proxy.down.jitter, proxy.down.slices = 0.002, 0.03, 700
        prefix = f"{uuid4().hex}:"
        apps = [
            app_for(
                raw, routes, memory="48KiB", store=behind(proxy.url("redis://x"), prefix), upstream={"timeout": "9s"}
            )
            for _ in range(2)
        ]
        async with started(*apps, door=door) as clients:
            gate = asyncio.Semaphore(at_once)

            async def one() -> None:
                user = f"Bearer user-{chance.randrange(users)}"
                client = chance.choice(clients)
                async with gate:
                    seen.asked += 1
                    task = asyncio.ensure_future(client.get("/me", headers={"authorization": user}))
                    if chance.random() < 0.3:
                        await asyncio.wait((task,), timeout=chance.uniform(0, 0.03))
                        if task.cancel():
                            seen.cancelled += 1
                            await asyncio.wait((task,))
                            return
                    began = asyncio.get_running_loop().time()
                    answer = await task
                    seen.slowest = max(seen.slowest, asyncio.get_running_loop().time() - began)
                    seen.answered += 1
                    if answer.status_code != 200:
                        seen.failed.append(answer.status_code)
                    elif answer.text != user:
                        seen.wrong.append(f"{user} was given {answer.text}")

            await asyncio.gather(*(one() for _ in range(requests)))
            await asyncio.gather(*(app.engine.settle() for app in apps))
            seen.held = sum(map(in_use, apps))
    return seen


@dataclass
class Cancelled:
    cancelled: int = 0
    right_after: int = 0
    held: int = 0
    flights: int = 0
    others: Counter[str] = field(default_factory=Counter)
    """What else was answered, and how often."""


async def cancellations(redis_url: str, *, requests: int, door: bool = True) -> Cancelled:
    """Requests for one key each, cancelled at random moments, at a slow upstream and a late Redis; then a hundred.

    A moment is what has happened, not a time: while Redis is asked, or when up to half of a hundred were answered by
    the upstream. So enough is cancelled on a slow machine as well.
    """
    seen, chance = Cancelled(), random.Random(9)
    answered = asyncio.Semaphore(0)

    def respond(head: bytes) -> bytes:
        answered.release()
        return response(path_of(head).encode())

    async with (
        raw_upstream(answering(respond, delay=lambda: 0.02)) as raw,
        faulty_url(redis_url) as proxy,
    ):
        proxy.down.delay = 0.01
        routes = {"item": {"path": "/item/{id}", "upstream": "api", "ttl": "60s"}}
        store = behind(proxy.url("redis://x"), f"{uuid4().hex}:")
        # The last hundred must all be answered, on however slow a machine: no deadline is part of what is tested.
        app = app_for(raw, routes, store=store, upstream={"max_connections": 20, "max_queue": 1000, "timeout": "120s"})
        async with started(app, door=door) as (client,):
            for first in range(0, requests, 100):
                tasks = [asyncio.ensure_future(client.get(f"/item/{first + n}")) for n in range(100)]
                while not answered.locked():  # what was answered since the last hundred were cancelled
                    await answered.acquire()
                if chance.random() < 0.3:
                    await asyncio.sleep(chance.uniform(0, 0.01))  # Redis is asked
                else:
                    for _ in range(chance.randrange(1, 50)):
                        await answered.acquire()
                seen.cancelled += sum(task.cancel() for task in tasks)
                await asyncio.wait(tasks)
            await _ended(app)
            answers = await asyncio.gather(*(client.get(f"/item/after-{n}") for n in range(100)))
            seen.others = Counter(each.text[:200] for each in answers if each.status_code != 200)
            seen.right_after = sum(each.text == f"/item/after-{n}" for n, each in enumerate(answers))
            await _ended(app)
            seen.held, seen.flights = in_use(app), len(app.engine.flights)
    return seen


async def _ended(app: Gateway, *, seconds: float = 60.0) -> None:
    """Wait until the fetches that nobody waits for any more have ended, or for `seconds`."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while app.engine.flights:
                await asyncio.sleep(0.01)
            await app.engine.settle()


# --- one request a key, stale answers, repetitions -------------------------------------------------------------


async def stampede(redis_url: str, *, clients: int) -> tuple[int, int]:
    """How often the upstream was asked by so many at once at two gateways, for a key that is cold, then expired."""
    asked: Counter[str] = Counter()

    def respond(head: bytes) -> bytes:
        asked[path_of(head)] += 1
        return response(b"%d" % asked[path_of(head)])

    clock = TurnedClock()
    routes = {"item": {"path": "/item/{id}", "upstream": "api", "ttl": "10s"}}
    async with raw_upstream(answering(respond, delay=lambda: 0.1)) as raw:
        prefix = f"{uuid4().hex}:"
        apps = [
            app_for(raw, routes, clock=clock, store=behind(redis_url, prefix, 2.0), redis_budget="2s") for _ in "ab"
        ]
        async with started(*apps) as both:
            cold = await _ask_all(both, clients)
            await asyncio.gather(*(app.engine.settle() for app in apps))
            first = asked["/item/1"]
            clock.turn(60)
            expired = await _ask_all(both, clients)
            assert (cold, expired) == ({"1"}, {"2"})
    return first, asked["/item/1"] - first


async def _ask_all(clients: list[httpx.AsyncClient], count: int) -> set[str]:
    asking = [clients[n % len(clients)].get("/item/1") for n in range(count)]
    return {answer.text for answer in await asyncio.gather(*asking)}


FAILURES: dict[str, Script] = {
    "503": lambda connection: connection.send(response(b"no", "503 Service Unavailable")),
    "reset": lambda connection: connection.send(b""),
    "cut in the body": lambda connection: connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"),
    "timeout": lambda connection: connection.closed(),
}


async def stale_while_failing(failure: str, *, seconds: int) -> tuple[int, int]:
    """Of one request a second (of the turned clock) while the upstream fails: how many were answered from the cache,
    and how often the upstream was asked."""
    clock, failing = TurnedClock(), False
    asked = answered = 0

    async def script(connection: Connection) -> None:
        nonlocal asked
        while await connection.request():
            asked += 1
            if failing:
                await FAILURES[failure](connection)
                return
            await connection.send(OK)

    routes = {"item": {"path": "/item", "upstream": "api", "ttl": "5s", "stale_if_error": "1h"}}
    upstream = {"timeout": "50ms" if failure == "timeout" else "5s"}
    async with raw_upstream(script) as raw:
        app = app_for(raw, routes, clock=clock, retry_after="5s", upstream=upstream)
        async with started(app) as (client,):
            assert (await client.get("/item")).text == "ok"
            failing, asked = True, 0
            for _ in range(seconds):
                clock.turn(1)
                answer = await client.get("/item")
                answered += answer.status_code == 200 and answer.text == "ok"
    return answered, asked


async def retries(*, requests: int) -> tuple[int, int]:
    """How many requests the clients made, and how many the upstream saw, which fails every one."""
    asked = 0

    def respond(head: bytes) -> bytes:
        nonlocal asked
        asked += 1
        return response(b"no", "503 Service Unavailable")

    async with raw_upstream(answering(respond)) as raw:
        routes = {"item": {"path": "/item/{id}", "upstream": "api", "ttl": "5s"}}
        app = app_for(raw, routes, upstream={"breaker_failures": 0})
        async with started(app) as (client,):
            for first in range(0, requests, 20):
                await asyncio.gather(*(client.get(f"/item/{first + n}") for n in range(20)))
    return requests, asked


# --- Redis -----------------------------------------------------------------------------------------------------


@dataclass
class Redis:
    asked: int = 0
    failed: list[str] = field(default_factory=list)
    slowest: float = 0.0
    back_after: float = 0.0


async def redis_trouble(redis_url: str, trouble: Callable[[FaultProxy], Any], *, requests: int = 150) -> Redis:
    """Requests while Redis is in `trouble`, then without: whether any failed, the slowest, and how many seconds after
    its return another gateway is answered from it."""
    seen, loop = Redis(), asyncio.get_running_loop()
    routes = {"item": {"path": "/item/{id}", "upstream": "api", "ttl": "60s"}}
    async with (
        raw_upstream(answering(lambda head: response(path_of(head).encode()))) as raw,
        faulty_url(redis_url) as proxy,
    ):
        prefix = f"{uuid4().hex}:"
        apps = [app_for(raw, routes, store=behind(proxy.url("redis://x"), prefix)) for _ in range(2)]
        async with started(*apps) as clients:
            await clients[0].get("/item/warm")
            await apps[0].engine.settle()
            if asyncio.iscoroutine(result := trouble(proxy)):
                await result
            for number in range(requests):
                began = loop.time()
                answer = await clients[number % 2].get(f"/item/{number // 4}")
                seen.slowest = max(seen.slowest, loop.time() - began)
                seen.asked += 1
                if answer.status_code != 200 or answer.text != f"/item/{number // 4}":
                    seen.failed.append(f"{answer.status_code} {answer.text[:60]}")
            proxy.clear()
            await proxy.accept()
            began = loop.time()
            seen.back_after = await _hits_again(apps, clients, began)
    return seen


async def _hits_again(apps: list[Gateway], clients: list[httpx.AsyncClient], began: float) -> float:
    """Seconds until what one gateway fetched is a hit of the other."""
    loop = asyncio.get_running_loop()
    for number in itertools.count():
        if loop.time() - began > PATIENCE:
            break
        await clients[0].get(f"/item/back-{number}")
        await apps[0].engine.settle()
        answer = await clients[1].get(f"/item/back-{number}")
        if "fwd=" not in answer.headers["cache-status"]:
            return loop.time() - began
    return float("inf")


# --- malformed answers, forms of targets -------------------------------------------------------------------------


async def malformed(kinds: Iterable[bytes]) -> tuple[int, int, int]:
    """Of so many malformed answers: how many were a 502, how many were stored, how often the next request was right."""
    refused = stored = right = 0
    for data in kinds:
        answers = [data]

        async def script(connection: Connection, answers: list[bytes] = answers) -> None:
            head = await connection.request()
            await connection.send(answers.pop() if answers else response(path_of(head).encode()))

        async with raw_upstream(script) as raw:
            app = app_for(raw, {"item": {"path": "/item/{id}", "upstream": "api", "ttl": "60s"}})
            async with started(app) as (client,):
                refused += (await client.get("/item/1")).status_code == 502
                await app.engine.settle()
                stored += app.engine.memory.statistics.entries
                right += (await client.get("/item/1")).text == "/item/1"
    return refused, stored, right
