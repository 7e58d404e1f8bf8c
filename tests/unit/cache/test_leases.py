"""One fetch a key in the fleet: what becomes of it when its holder dies, is slow, or Redis is."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Sequence
from uuid import uuid4

import httpx
import pytest

from gateway.app.gateway import Gateway
from gateway.cache.leases import LIFE, STORED, STORED_LIFE, Lease, Leases, Standing
from gateway.cache.redis.leases import RedisLeases
from gateway.cache.redis.store import RedisStore
from gateway.cache.shared_store import NoShared
from gateway.server.embedded_redis import Embedded
from gateway.testing import StubUpstream, TurnedClock
from tests.support.gateways import gateway, json_answer
from tests.support.proxy import faulty_url

ROUTES = {"item": {"path": "/items/{id}", "upstream": "api", "ttl": "10s", "stale_while_revalidate": "10m"}}


@pytest.fixture
async def fleet(valkey: Embedded, clock: TurnedClock) -> AsyncIterator[tuple[list[Gateway], StubUpstream]]:
    prefix, upstream = f"{uuid4().hex}:", StubUpstream(json_answer())
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
    fleet: tuple[list[Gateway], StubUpstream],
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
    fleet: tuple[list[Gateway], StubUpstream], clock: TurnedClock
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


async def test_a_lease_whose_grant_comes_too_late_is_given_up_long_before_it_ends(valkey: Embedded) -> None:
    async with faulty_url(valkey.url) as proxy:
        prefix = f"{uuid4().hex}:"
        deaf = RedisStore(proxy.url("redis://x"), prefix=prefix, budget=0.05)
        hearing = RedisStore(valkey.url, prefix=prefix, budget=5.0)
        assert (await deaf.peek("l:key"))[0]
        proxy.down.delay = 0.1
        assert await deaf.take("l:key", b"token", 60.0) is None
        while (await hearing.peek("l:key"))[1] is not None:
            await asyncio.sleep(0.01)
        await deaf.aclose()
        await hearing.aclose()


async def test_a_lease_is_ours_where_the_reply_that_said_so_was_spoiled(redis_store: RedisStore) -> None:
    leases = Leases(redis_store)
    taken = await leases.take("key", 60.0)
    misheard = type(taken)(taken.name, taken.token, Standing.BUSY)
    assert await leases.look(misheard) is Standing.HELD
    leases.close()


async def test_a_lease_is_renewed_while_it_is_held_and_ends_soon_after_its_holder_died(redis_store: RedisStore) -> None:
    holder, other = Leases(redis_store), Leases(redis_store)
    held = await holder.take("key", 60.0)
    loop = asyncio.get_running_loop()
    until = loop.time() + 2 * LIFE
    while loop.time() < until:
        assert await other.look(held) is Standing.HELD
        await asyncio.sleep(0.02)
    holder.close()  # as one that is killed renews no more
    while await other.look(held) is not None:
        await asyncio.sleep(0.02)
    assert (await other.take("key", 60.0)).standing is Standing.HELD
    other.close()


async def test_a_renewal_cut_off_before_it_began_leaves_no_command_that_nobody_awaits(
    redis_store: RedisStore, recwarn: pytest.WarningsRecorder
) -> None:
    renewal = asyncio.ensure_future(redis_store.renew([("one", b"token")], LIFE))
    await asyncio.sleep(0)
    renewal.cancel()
    await asyncio.wait([renewal])
    del renewal
    gc.collect()
    assert [str(each.message) for each in recwarn] == []


class Renewals(NoShared):
    """A shared tier that gives every lease, and notes what is renewed."""

    available = True

    def __init__(self) -> None:
        self.renewed: asyncio.Queue[list[str]] = asyncio.Queue()

    async def take(self, name: str, token: bytes, life: float) -> bytes | None:
        return token

    async def renew(self, held: Sequence[tuple[str, bytes]], life: float) -> None:
        self.renewed.put_nowait([name for name, _ in held])


async def test_a_lease_is_not_renewed_once_given_back_nor_past_the_deadline_of_its_fetch(clock: TurnedClock) -> None:
    store = Renewals()
    leases = Leases(store, clock.now)
    first, second = await leases.take("first", 5.0), await leases.take("second", 60.0)
    clock.turn(1)
    assert await store.renewed.get() == [first.name, second.name]
    clock.turn(6)
    assert await store.renewed.get() == [second.name]
    await leases.give_back(second)
    assert repr(leases) == "<Leases held=0>"


async def test_in_a_cluster_each_lease_is_renewed_in_a_command_of_its_own(redis_store: RedisStore) -> None:
    clustered = RedisLeases(redis_store._client, redis_store._prefix, redis_store._run, redis_store._spawn)
    names = [f"l:{number}" for number in range(10)]
    for name in names:
        await redis_store.take(name, name.encode(), 60.0)
    held = [(name, name.encode()) for name in names]
    for size in (1, 3):
        await clustered.renew([*held, ("l:none", b"x")], 1000.0, together=size)
        lives = [await redis_store._client.pttl(redis_store._prefix + name) for name in names]
        assert min(lives) > 900_000
        await clustered.renew(held, 60.0)


async def test_who_takes_a_lease_is_told_that_the_last_holder_stored_what_it_fetched(redis_store: RedisStore) -> None:
    first, second = Leases(redis_store), Leases(redis_store)
    held = await first.take("key", 60.0)
    assert (held.standing, held.stored) == (Standing.HELD, False)
    await first.give_back(held, STORED, STORED_LIFE)
    assert await second.look(held) is None
    taken = await second.take("key", 60.0)
    assert (taken.standing, taken.stored) == (Standing.HELD, True)
    assert (await first.take("key", 60.0)).standing is Standing.BUSY
    await second.give_back(taken)
    assert not (await first.take("key", 60.0)).stored
    first.close()
    second.close()


async def test_what_another_stored_between_the_look_and_the_lease_is_not_fetched_again(
    fleet: tuple[list[Gateway], StubUpstream], monkeypatch: pytest.MonkeyPatch
) -> None:
    apps, upstream = fleet
    looked, go_on = asyncio.Event(), asyncio.Event()
    take = apps[1].engine._flying._leases.take

    async def late(key: str, deadline: float) -> Lease:
        looked.set()
        await go_on.wait()
        return await take(key, deadline)

    monkeypatch.setattr(apps[1].engine._flying._leases, "take", late)
    second = asyncio.ensure_future(ask(apps[1]))
    await looked.wait()
    await ask(apps[0])
    await apps[0].engine.settle()
    go_on.set()
    assert (await second).json() == {"n": 1}
    assert upstream.asked == 1


async def test_a_miss_is_one_look_and_one_lease(fleet: tuple[list[Gateway], StubUpstream]) -> None:
    apps, _ = fleet
    store = apps[0].shared
    assert isinstance(store, RedisStore)
    await store._client.ping()
    before = store.statistics.reads
    await ask(apps[0])
    assert store.statistics.reads - before == 2  # the index, and the response


async def test_while_redis_fails_now_and_then_a_lease_that_nobody_knows_to_hold_holds_nobody_up(
    fleet: tuple[list[Gateway], StubUpstream],
) -> None:
    apps, _ = fleet
    store = apps[0].shared
    assert isinstance(store, RedisStore)
    await ask(apps[0])
    (name,) = await leases_of(apps[0])
    await store.write([("e:", b"x", 1.0)])
    await apps[0].purge(everything=True)
    loop = asyncio.get_running_loop()
    await store._client.set(name, b"nobody's", px=60_000)
    store._failed_at = time.perf_counter()
    began = loop.time()
    assert (await ask(apps[0])).json() == {"n": 2}
    assert loop.time() - began < 5.0  # half of its upstream's 20 s otherwise


async def test_a_lease_that_has_passed_to_another_is_not_given_back_by_the_first(redis_store: RedisStore) -> None:
    leases = Leases(redis_store)
    first = await leases.take("key", 60.0)
    await redis_store._client.delete(redis_store._prefix + first.name)
    second = await Leases(redis_store).take("key", 60.0)
    await leases.give_back(first)
    assert second.standing is Standing.HELD
    assert (await leases.take("key", 60.0)).standing is Standing.BUSY
