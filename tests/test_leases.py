"""One fetch a key in the fleet: what becomes of it when its holder dies, is slow, or Redis is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import httpx
import pytest

from gateway.app import Gateway
from gateway.embedded import Embedded
from gateway.leases import Leases, Standing
from gateway.shared import RedisStore

from .conftest import TurnedClock, Upstream, gateway, json_answer

ROUTES = {"item": {"path": "/items/{id}", "upstream": "api", "ttl": "10s", "stale_while_revalidate": "10m"}}


@pytest.fixture
async def fleet(valkey: Embedded, clock: TurnedClock) -> AsyncIterator[tuple[list[Gateway], Upstream]]:
    prefix, upstream = f"{uuid4().hex}:", Upstream(json_answer())
    stores = [RedisStore(valkey.url, prefix=prefix, budget=5.0) for _ in range(3)]
    upstreams = {"api": {"url": "http://api.test", "timeout": "20s"}}
    apps = [gateway(upstream, ROUTES, clock=clock, store=store, upstreams=upstreams) for store in stores]
    for app in apps:
        await app.start()
    yield apps, upstream
    for app in apps:
        await app.stop()


def client_of(app: Gateway) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway.test")


async def ask(app: Gateway) -> httpx.Response:
    async with client_of(app) as client:
        return await client.get("/items/1")


async def leases_of(app: Gateway) -> list[bytes]:
    store = app.shared
    assert isinstance(store, RedisStore)
    found: list[bytes] = await store._client.keys(store._prefix + "l:*")
    return found


async def test_when_the_holder_dies_one_of_those_who_wait_gets_the_next_lease(
    fleet: tuple[list[Gateway], Upstream],
) -> None:
    apps, upstream = fleet
    upstream.gate.clear()
    dying = asyncio.ensure_future(ask(apps[0]))
    await upstream.came.acquire()
    others = [asyncio.ensure_future(ask(app)) for app in apps[1:]]
    store = apps[0].shared
    assert isinstance(store, RedisStore)
    while not all(app.engine.flights for app in apps):
        await asyncio.sleep(0)
    await store._client.delete(*await leases_of(apps[0]))  # its time is over
    await upstream.came.acquire()
    upstream.gate.set()
    assert {(await other).status_code for other in others} == {200}
    await dying
    assert upstream.asked == 2


async def test_a_refresh_behind_does_nothing_while_another_refreshes(
    fleet: tuple[list[Gateway], Upstream], clock: TurnedClock
) -> None:
    apps, upstream = fleet
    for app in apps:
        await ask(app)
        await app.engine.settle()
    assert upstream.asked == 1
    clock.turn(20)
    upstream.gate.clear()
    assert (await ask(apps[0])).json() == {"n": 1}
    await upstream.came.acquire()
    await upstream.came.acquire()
    for app in apps[1:]:
        assert (await ask(app)).json() == {"n": 1}
        await app.engine.settle()
    assert upstream.asked == 2
    upstream.gate.set()
    await apps[0].engine.settle()


async def test_a_lease_that_redis_gave_without_our_hearing_of_it_is_given_back(redis_store: RedisStore) -> None:
    leases = Leases(redis_store)
    lost = await leases.take("key", 60.0)
    assert lost.standing is Standing.HELD
    unheard = type(lost)(lost.name, lost.token, Standing.AWAY)
    await leases.give_back(unheard)
    assert (await leases.take("key", 60.0)).standing is Standing.HELD


async def test_a_lease_that_has_passed_to_another_is_not_given_back_by_the_first(redis_store: RedisStore) -> None:
    leases = Leases(redis_store)
    first = await leases.take("key", 60.0)
    await redis_store._client.delete(redis_store._prefix + first.name)
    second = await leases.take("key", 60.0)
    await leases.give_back(first)
    assert second.standing is Standing.HELD
    assert (await leases.take("key", 60.0)).standing is Standing.BUSY
