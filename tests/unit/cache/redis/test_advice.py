"""The workers' traffic in Redis: one worker gives the advice of all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import uuid4

import msgspec
import pytest

from gateway.advisor.advice import Changes
from gateway.advisor.traffic import LocalAdvice, Traffic
from gateway.cache.redis.advice import RedisAdvice
from gateway.cache.redis.connection import connect
from gateway.policy.keys import key_hash
from gateway.server.embedded_redis import Embedded
from gateway.testing import TurnedClock
from tests.support.traffic import rung


@pytest.fixture
async def exchanges(valkey: Embedded, clock: TurnedClock) -> AsyncIterator[list[RedisAdvice]]:
    prefix = f"{uuid4().hex}:"
    made = [RedisAdvice(connect(valkey.url, 2.0), clock, prefix=prefix) for _ in range(3)]
    yield made
    for exchange in made:
        await exchange.aclose()


async def test_workers_together_are_advised_on_as_one_and_each_can_tell(
    exchanges: list[RedisAdvice], clock: TurnedClock
) -> None:
    traffics = [Traffic(clock) for _ in exchanges]
    alone = Traffic(clock)
    local = LocalAdvice(clock)
    for step in range(300):
        for traffic in (traffics[step % 3], alone):
            traffic.seen("item", key_hash("a key"))
        if step % 10 == 0:
            traffics[step % 3].fetched("item", 10.0, changed=step % 20 == 0)
        clock.turn(0.5)
        if step % 2:
            for exchange, traffic in zip(exchanges, traffics, strict=True):
                await exchange.deliver(traffic.take(), {"item": 10.0})
            await local.deliver(alone.take(), {"item": 10.0})
    for exchange in exchanges:
        await exchange.deliver({}, {"item": 10.0})
    await exchanges[0].deliver({}, {"item": 10.0})
    assert sum(exchange.leads for exchange in exchanges) == 1
    assert [bool(exchange.told.advice) for exchange in exchanges] == [exchange.leads for exchange in exchanges]
    (expected,) = await local.advice({"item": 10.0})
    for exchange in exchanges:
        (advice,) = await exchange.advice({"item": 10.0})
        assert advice.requests == 300
        assert advice.changes.fetches == 30
        for ttl in (1.0, 10.0, 60.0):
            assert rung(advice, ttl).hit_ratio == pytest.approx(rung(expected, ttl).hit_ratio, abs=0.01)


async def test_another_takes_over_when_the_leader_is_gone(exchanges: list[RedisAdvice]) -> None:
    for exchange in exchanges:
        await exchange.deliver({}, {})
    leader = next(exchange for exchange in exchanges if exchange.leads)
    others = [exchange for exchange in exchanges if exchange is not leader]
    await others[0]._client.delete(leader._leader)  # as its time runs out
    await others[0].deliver({}, {})
    assert others[0].leads
    await leader.deliver({}, {})
    assert not leader.leads


async def test_a_delivery_that_cannot_be_read_is_passed_over(exchanges: list[RedisAdvice], clock: TurnedClock) -> None:
    exchange = exchanges[0]
    await exchange._client.rpush(exchange._list, b"nonsense", msgspec.msgpack.encode({"item": 5}))
    traffic = Traffic(clock)
    traffic.seen("item", 1)
    await exchange.deliver(traffic.take(), {"item": None})
    assert [each.requests for each in await exchange.advice({})] == [1]


async def test_without_redis_there_is_no_advice_and_no_error(clock: TurnedClock) -> None:
    exchange = RedisAdvice(connect("unix:///nonexistent/redis.sock", 0.1), clock)
    traffic = Traffic(clock)
    traffic.seen("item", 1)
    await exchange.deliver(traffic.take(), {})
    assert await exchange.advice({}) == []
    await exchange.aclose()


def test_changes_come_through_a_delivery_as_they_were() -> None:
    changes = Changes()
    changes.add(5.0, changed=True)
    changes.add(9.0, changed=False)
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(changes), type=Changes)
    assert again.rate() == changes.rate()
