"""Leases in Redis: taken, renewed, and given back by their holder alone."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Sequence
from uuid import uuid4

import pytest

from gateway.cache.leases import LIFE, Leases, Standing
from gateway.cache.redis.leases import RedisLeases
from gateway.cache.redis.store import RedisStore
from gateway.cache.shared_store import NoShared
from gateway.server.embedded_redis import Embedded
from gateway.testing import TurnedClock
from tests.support.proxy import faulty_url


async def test_a_lease_whose_grant_comes_too_late_is_given_up_long_before_it_ends(valkey: Embedded) -> None:
    async with faulty_url(valkey.url) as proxy:
        prefix = f"{uuid4().hex}:"
        deaf = RedisStore(proxy.url("redis://x"), prefix=prefix, budget=0.05)
        hearing = RedisStore(valkey.url, prefix=prefix, budget=5.0)
        assert (await deaf.peek("l:key"))[0]
        proxy.down.delay = 0.1
        assert await deaf.take("l:key", b"token", 60.0) is None
        async with asyncio.timeout(30):  # half of its life
            while (await hearing.peek("l:key"))[1] is not None:
                await asyncio.sleep(0.01)
        await deaf.aclose()
        await hearing.aclose()


async def test_a_lease_that_is_ours_by_a_spoiled_reply_is_given_back_and_taken_anew(redis_store: RedisStore) -> None:
    leases = Leases(redis_store)
    taken = await leases.take("key", 60.0)
    misheard = type(taken)(taken.name, taken.token, Standing.BUSY)
    assert await leases.look(misheard) is None
    assert (await leases.take("key", 60.0)).standing is Standing.HELD
    leases.close()


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


async def test_a_lease_that_has_passed_to_another_is_not_given_back_by_the_first(redis_store: RedisStore) -> None:
    leases = Leases(redis_store)
    first = await leases.take("key", 60.0)
    await redis_store._client.delete(redis_store._prefix + first.name)
    second = await Leases(redis_store).take("key", 60.0)
    await leases.give_back(first)
    assert second.standing is Standing.HELD
    assert (await leases.take("key", 60.0)).standing is Standing.BUSY
