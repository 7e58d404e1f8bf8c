"""fleet_key: all workers of a fleet agree on one secret for the digests in keys."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from uuid import uuid4

import pytest

from gateway.app.gateway import Gateway
from gateway.cache.redis.fleet_key import FleetKey
from gateway.cache.redis.store import IDENTITY_KEY, RedisStore
from gateway.policy.identity_key import KEY_BYTES, UNKEYED, IdentityKey, derived
from gateway.server.embedded_redis import Embedded
from gateway.testing import StubUpstream, running
from tests.support.gateways import gateway, json_answer, status_of
from tests.support.proxy import faulty_url

A, B, C = (letter * KEY_BYTES for letter in (b"a", b"b", b"c"))
MINE = {"mine": {"path": "/mine", "upstream": "api", "ttl": "60s", "authorization": "key"}}
BEARER = {"authorization": "Bearer 1"}


# --- agreeing ----------------------------------------------------------------------------------------------


class Worker:
    """What one worker knows of the fleet's key."""

    def __init__(self, store: RedisStore, secret: bytes) -> None:
        self.key = IdentityKey(secret)
        self.changes = 0
        self.fleet = FleetKey(store, self.key, self._changed)

    def _changed(self) -> None:
        self.changes += 1


async def test_workers_that_start_together_take_the_same_key(redis_store: RedisStore) -> None:
    workers = [Worker(redis_store, bytes([number]) * KEY_BYTES) for number in range(20)]
    await asyncio.gather(*(worker.fleet.look() for worker in workers))
    assert len({worker.key.secret for worker in workers}) == 1
    assert sum(worker.changes for worker in workers) == 19


async def test_who_comes_later_takes_the_fleets_key_and_it_never_expires(redis_store: RedisStore) -> None:
    first, second = Worker(redis_store, A), Worker(redis_store, B)
    await first.fleet.look()
    await second.fleet.look()
    await second.fleet.look()
    assert (first.key.secret, first.changes) == (A, 0)
    assert (second.key.secret, second.changes) == (A, 1)
    assert await redis_store._client.ttl(redis_store._prefix + IDENTITY_KEY) == -1


async def test_where_redis_lost_the_key_the_workers_put_theirs_back(redis_store: RedisStore) -> None:
    first, second, new = Worker(redis_store, A), Worker(redis_store, B), Worker(redis_store, C)
    await first.fleet.look()
    await second.fleet.look()
    await redis_store._client.delete(redis_store._prefix + IDENTITY_KEY)
    await second.fleet.look()
    await new.fleet.look()
    await first.fleet.look()
    assert {worker.key.secret for worker in (first, second, new)} == {A}


async def test_a_new_worker_that_comes_first_after_a_loss_is_followed_by_all(redis_store: RedisStore) -> None:
    first, second, new = Worker(redis_store, A), Worker(redis_store, B), Worker(redis_store, C)
    await first.fleet.look()
    await second.fleet.look()
    await redis_store._client.delete(redis_store._prefix + IDENTITY_KEY)
    for worker in (new, first, second):
        await worker.fleet.look()
    assert {worker.key.secret for worker in (first, second, new)} == {C}


@pytest.mark.parametrize("planted", [b"", b"short", b"x" * 1000])
async def test_what_is_no_key_is_replaced(redis_store: RedisStore, planted: bytes) -> None:
    await redis_store._client.set(redis_store._prefix + IDENTITY_KEY, planted)
    worker, other = Worker(redis_store, A), Worker(redis_store, B)
    for each in (worker, other, worker):
        await each.fleet.look()
    assert worker.key.secret == other.key.secret == B


# --- on a gateway ------------------------------------------------------------------------------------------


def workers(make: Callable[[], RedisStore], api: StubUpstream, number: int = 2, **settings: object) -> list[Gateway]:
    return [gateway(api, MINE, store=make(), **settings) for _ in range(number)]


async def settle(*apps: Gateway) -> None:
    for app in apps:
        await app.engine.settle()


async def test_two_workers_share_what_is_stored_for_an_identity(valkey: Embedded) -> None:
    prefix, api = f"{uuid4().hex}:", StubUpstream(json_answer())
    one, two = workers(lambda: RedisStore(valkey.url, prefix=prefix, budget=1.0), api)
    async with running(one) as first, running(two) as second:
        await first.get("/mine", headers=BEARER)
        await settle(one)
        shared = await second.get("/mine", headers=BEARER)
        other = await second.get("/mine", headers={"authorization": "Bearer 2"})
    assert status_of(shared).startswith("gateway; hit")
    assert api.asked == 2
    assert shared.text != other.text
    assert one.engine.identity_key.secret == two.engine.identity_key.secret


async def test_a_worker_that_started_without_redis_takes_the_fleets_key_when_it_comes(valkey: Embedded) -> None:
    prefix, api = f"{uuid4().hex}:", StubUpstream(json_answer())
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(faulty_url(valkey.url))
        proxy.down.blackhole = True
        (late,) = workers(lambda: RedisStore(proxy.url("redis://x"), prefix=prefix, budget=1.0), api, 1)
        (one,) = workers(lambda: RedisStore(valkey.url, prefix=prefix, budget=1.0), api, 1)
        first, second = await stack.enter_async_context(running(one)), await stack.enter_async_context(running(late))
        own, edge = late.engine.identity_key.secret, late.edge
        await second.get("/mine", headers=BEARER)
        assert own != one.engine.identity_key.secret
        proxy.down.clear()
        proxy.cut()
        while not late.shared.available:
            await asyncio.sleep(0.01)
        await late.worker_state._fleet_key.look()  # type: ignore[union-attr]
        assert late.engine.identity_key.secret == one.engine.identity_key.secret
        assert late.engine.memory.statistics.entries == 0
        assert late.edge is not edge
        await first.get("/mine", headers=BEARER)
        await settle(one)
        found = await second.get("/mine", headers=BEARER)
    assert status_of(found).startswith("gateway; hit")
    assert api.asked == 2


async def test_with_a_secret_in_the_configuration_no_key_lies_in_redis(valkey: Embedded) -> None:
    prefix, api = f"{uuid4().hex}:", StubUpstream(json_answer())
    secret = {"redis_secret": "0123456789abcdef"}
    one, two = workers(lambda: RedisStore(valkey.url, prefix=prefix, budget=1.0), api, **secret)
    async with running(one), running(two):
        assert await one.shared._client.exists(prefix + IDENTITY_KEY) == 0  # type: ignore[attr-defined]
        assert one.engine.identity_key.secret == two.engine.identity_key.secret == derived(b"0123456789abcdef")


async def test_no_worker_makes_digests_that_anybody_could_make() -> None:
    api = StubUpstream(json_answer())
    one, two = (gateway(api, MINE) for _ in range(2))
    assert one.engine.identity_key.secret != two.engine.identity_key.secret
    assert UNKEYED.secret not in (one.engine.identity_key.secret, two.engine.identity_key.secret)
    assert all(each.engine_route.keying.identity_key is one.engine.identity_key for each in one.declared)
