"""gateway: an app whose lifespan never ran, mounted or behind a server without lifespan; and one after its end."""

from __future__ import annotations

import asyncio
import gc
import socket
import time
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI

from gateway.app.gateway import Gateway
from gateway.cache.redis.store import RedisStore
from gateway.server.embedded_redis import Embedded
from gateway.testing import StubUpstream, TurnedClock, running
from tests.support.edge_lines import GET, Line, asked
from tests.support.gateways import gateway, json_answer, served

ITEMS = {"item": {"path": "/items/{id}", "upstream": "api", "ttl": "60s", "tags": ["item:{id}"]}}


@pytest.fixture
async def fleet(valkey: Embedded, clock: TurnedClock) -> AsyncIterator[Callable[[], tuple[Gateway, StubUpstream]]]:
    """Makes gateways on one Redis. Whose lifespan never ran, nothing else closes."""
    prefix = f"{uuid4().hex}:"
    made: list[Gateway] = []

    def member() -> tuple[Gateway, StubUpstream]:
        upstream = StubUpstream(json_answer())
        store = RedisStore(valkey.url, prefix=prefix, budget=1.0)
        made.append(gateway(upstream, ITEMS, store=store, clock=clock))
        return made[-1], upstream

    yield member
    for app in made:
        await app.stop()


def client_of(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x.test")


async def test_a_mounted_gateway_without_lifespan_answers_with_nothing_fetched_before_a_complete_purge(
    fleet: Callable[[], tuple[Gateway, StubUpstream]],
) -> None:
    mounted, upstream = fleet()
    other, _ = fleet()
    outer = FastAPI()
    outer.mount("/api", mounted)
    async with running(other), client_of(outer) as client:
        first = (await client.get("/api/items/1")).json()
        report = await other.purge(tags=["item:1"])
        second = (await client.get("/api/items/1")).json()
    assert report.complete
    assert (first["n"], second["n"]) == (1, 2)
    assert mounted.shared.statistics.reads == 0  # what lies in Redis could not be judged
    assert upstream.asked == 2


async def test_its_own_purge_is_added_and_never_complete(fleet: Callable[[], tuple[Gateway, StubUpstream]]) -> None:
    mounted, _ = fleet()
    other, _ = fleet()
    async with running(other) as client:
        before = (await client.get("/items/1")).json()
        report = await mounted.purge(tags=["item:1"])
        assert report.added
        assert not report.complete
        assert report.seconds < 1.0
        await other.purges.synchronise()  # type: ignore[attr-defined]
        assert (await client.get("/items/1")).json() != before


async def test_it_is_unready_and_logs_once_what_to_do(
    fleet: Callable[[], tuple[Gateway, StubUpstream]], caplog: pytest.LogCaptureFixture
) -> None:
    mounted, _ = fleet()
    outer = FastAPI()
    outer.mount("/api", mounted)
    async with client_of(outer) as client:
        for _ in range(3):
            ready = await client.get("/api/readyz")
    assert ready.status_code == 503
    assert ready.json() == {"status": "not started", "redis": "away", "redis_reason": "lifespan", "routes": 1}
    (record,) = [each for each in caplog.records if "lifespan" in each.message]
    assert "FastAPI(lifespan=gateway.lifespan)" in record.message


async def test_requests_at_once_are_all_answered(fleet: Callable[[], tuple[Gateway, StubUpstream]]) -> None:
    mounted, _ = fleet()
    async with client_of(mounted) as client:
        answers = await asyncio.gather(*(client.get("/items/1") for _ in range(50)))
    assert {answer.status_code for answer in answers} == {200}


async def test_the_lifespan_given_to_the_outer_app_makes_it_ready(
    fleet: Callable[[], tuple[Gateway, StubUpstream]], caplog: pytest.LogCaptureFixture
) -> None:
    mounted, upstream = fleet()
    other, _ = fleet()
    outer = FastAPI(lifespan=mounted.lifespan)
    outer.mount("/api", mounted)
    async with running(other), outer.router.lifespan_context(outer), client_of(outer) as client:
        assert (await client.get("/api/readyz")).json() == {"status": "ready", "redis": "available", "routes": 1}
        await client.get("/api/items/1")
        await client.get("/api/items/1")
        assert upstream.asked == 1
        report = await mounted.purge(tags=["item:1"])
        assert report.complete
        assert report.workers == 2
        await client.get("/api/items/1")
        assert upstream.asked == 2
    assert not [each for each in caplog.records if "lifespan" in each.message]


async def test_a_lifespan_that_begins_later_ends_the_degraded_state(
    fleet: Callable[[], tuple[Gateway, StubUpstream]],
) -> None:
    mounted, upstream = fleet()
    async with client_of(mounted) as client:
        await client.get("/items/1")
        async with mounted.lifespan():
            assert (await client.get("/readyz")).status_code == 200
            await client.get("/items/1")
            await client.get("/items/1")
            assert upstream.asked <= 2
            assert (await mounted.purge(tags=["item:1"])).complete


@pytest.mark.parametrize("protocol", ["gateway.edge:GatewayProtocol", "h11"])
async def test_a_server_without_lifespan_gets_nothing_from_memory_either(
    fleet: Callable[[], tuple[Gateway, StubUpstream]], protocol: str
) -> None:
    app, upstream = fleet()
    async with served(app, http=protocol, lifespan="off") as url, httpx.AsyncClient(base_url=url) as client:
        for _ in range(3):
            await client.get("/items/1")
        assert (await client.get("/readyz")).status_code == 503
    assert upstream.asked == 3


async def test_without_redis_memory_is_used_as_no_other_process_purges() -> None:
    upstream = StubUpstream(json_answer())
    app = gateway(upstream, ITEMS)
    async with client_of(app) as client:
        before = (await client.get("/items/1")).json()
        assert (await client.get("/items/1")).json() == before
        assert (await app.purge(tags=["item:1"])).complete
        assert (await client.get("/items/1")).json() != before
        assert (await client.get("/readyz")).status_code == 503


async def test_it_serves_at_once_while_redis_does_not_answer(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connections are made, and nothing ever comes
        upstream = StubUpstream(json_answer())
        store = RedisStore(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        app = gateway(upstream, ITEMS, store=store)
        began = time.monotonic()
        async with running(app) as client:
            assert time.monotonic() - began < 0.8  # it was 1.2 and more
            assert (await client.get("/items/1")).json() == (await client.get("/items/1")).json()
            assert not (await app.purge(tags=["item:1"])).complete


def test_an_app_is_freed_after_its_lifespan_once_another_is_made() -> None:
    """Its test may keep the stub upstream. FastAPI keeps endpoints, and what the edge has learned refers to the app
    past the garbage collector."""
    upstream = StubUpstream(json_answer())

    async def lived() -> weakref.ref[Gateway]:
        app = gateway(upstream, {"o": {"path": "/o/{id}", "upstream": "api", "ttl": "60s"}})
        async with running(app) as client:
            assert (await client.get("/o/1")).status_code == 200
            line = Line(app)
            for _ in range(2):
                assert (await asked(line, GET % b"")).startswith(b"HTTP/1.1 200 OK\r\n")
            line.hang_up()
        return weakref.ref(app)

    gone = asyncio.run(lived())
    gateway(StubUpstream(json_answer()))
    gc.collect()
    assert gone() is None
    assert upstream.requests
