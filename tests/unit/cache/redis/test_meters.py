"""The script of the meters in Redis does what `settle` does."""

from __future__ import annotations

import random
from uuid import uuid4

import pytest
import redis.asyncio as redis

from gateway.cache.redis.meters import MeterAsk, RedisMeters
from gateway.cache.redis.store import RedisStore
from gateway.limits.meter import LEASE, Meter, settle
from gateway.server.embedded_redis import Embedded
from tests.support.limits import as_asked
from tests.support.scale import size


def asking(name: str = "user:x", **changes: object) -> MeterAsk:
    ask = MeterAsk(name, 1e9, 10, 0, 0, 0, 0, 0, 0, 0.0, False)
    return ask._replace(**changes)


async def turn(client: redis.Redis, key: str, seconds: float) -> None:
    """Let a meter become older, as if Redis's clock had been turned."""
    for name, value in (await client.hgetall(key)).items():
        if name == b"mark" and key.endswith("quota"):
            continue
        if name == b"mark":
            await client.hset(key, name, f"{float(value) - seconds * 1e6:.3f}")
        else:
            count, until = value.split()
            await client.hset(key, name, f"{int(count)} {int(until) - int(seconds * 1e6)}")


@pytest.mark.parametrize("seed", range(3))
async def test_the_script_says_what_the_arithmetic_says(valkey: Embedded, seed: int) -> None:
    rnd, prefix = random.Random(seed), f"{uuid4().hex}:"
    store, client = RedisStore(valkey.url, prefix=prefix, budget=5.0), redis.Redis.from_url(valkey.url)
    meters, known, now = store.meters(), {"rate": Meter(), "quota": Meter()}, 1_800_000_000.0
    for _ in range(size("limit_asks")):
        name = rnd.choice(("rate", "quota"))
        ask = asking(
            name,
            interval=1e8 if name == "rate" else 0.0,
            life=0 if name == "rate" else 60_000,
            burst=20,
            demand=rnd.randrange(4),
            want=rnd.randrange(8),
            held=rnd.randrange(4),
            back=rnd.randrange(3),
            debt=rnd.randrange(-1, 2),
            floor=float(rnd.randrange(10)),
            restore=rnd.random() < 0.1,
        )
        worker = rnd.choice("ab")
        expected = settle(known[name], as_asked(ask), worker, now)
        replies = await meters.settle(worker, LEASE, [ask])
        assert replies is not None
        assert replies[0][:2] == (expected.granted, expected.extra)
        assert replies[0].spent == pytest.approx(expected.spent, abs=0.02)
        assert replies[0].wait == pytest.approx(expected.wait, abs=2.0)
        if rnd.random() < 0.3:
            now += (passed := rnd.choice((1.0, 50.0, 400.0)))
            for each in known:
                await turn(client, f"{prefix}limit:{each}", passed)
    await store.aclose()
    await client.aclose()


async def test_many_meters_are_asked_in_one_round_trip(redis_store: RedisStore) -> None:
    meters, before = redis_store.meters(), redis_store.statistics.batches
    replies = await meters.settle("a", LEASE, [asking(f"user:{number}", demand=12) for number in range(100)])
    assert replies is not None
    assert {reply.granted for reply in replies} == {10}
    assert redis_store.statistics.batches <= before + 1


async def test_a_meter_expires_once_it_says_nothing(valkey: Embedded) -> None:
    prefix = f"{uuid4().hex}:"
    store, client = RedisStore(valkey.url, prefix=prefix, budget=5.0), redis.Redis.from_url(valkey.url)
    meters = store.meters()
    await meters.settle("a", LEASE, [asking("rate", interval=2e6, demand=3), asking("quota", interval=0.0, life=9000)])
    assert 6000 < await client.pttl(f"{prefix}limit:rate") <= 7000
    assert 8000 < await client.pttl(f"{prefix}limit:quota") <= 9000
    await store.aclose()
    await client.aclose()


async def test_workers_are_counted_and_a_lost_epoch_is_noticed(valkey: Embedded) -> None:
    prefix = f"{uuid4().hex}:"
    store, client = RedisStore(valkey.url, prefix=prefix, budget=5.0), redis.Redis.from_url(valkey.url)
    meters = store.meters()
    assert await meters.look("b", "first") == (1, 0, "first")
    assert await meters.look("a", "second") == (2, 0, "first")
    assert await meters.look("b", "third") == (2, 1, "first")
    await client.hset(f"{prefix}limit-workers", "a", 1)  # silent for long
    assert await meters.look("b", "third") == (1, 0, "first")
    await client.delete(f"{prefix}limit-workers")
    assert await meters.look("b", "fourth") == (1, 0, "fourth")
    await store.aclose()
    await client.aclose()


async def test_a_key_of_another_kind_is_no_answer(valkey: Embedded) -> None:
    prefix = f"{uuid4().hex}:"
    store, client = RedisStore(valkey.url, prefix=prefix, budget=5.0), redis.Redis.from_url(valkey.url)
    await client.set(f"{prefix}limit:user:x", "text")
    assert await store.meters().settle("a", LEASE, [asking(demand=1)]) is None
    await store.aclose()
    await client.aclose()


async def test_without_redis_there_is_no_answer() -> None:
    async def never(*command: object) -> object:
        raise AssertionError(command)

    meters = RedisMeters(never, "x:", lambda: False)
    assert await meters.settle("a", LEASE, [asking(demand=1)]) is None
    assert await meters.look("a", "first") is None
