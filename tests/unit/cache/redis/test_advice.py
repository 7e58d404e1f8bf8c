"""The workers' traffic in Redis: one worker gives the advice of all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import uuid4

import msgspec
import pytest

from gateway.advisor.advice import Changes
from gateway.advisor.traffic import LocalDesk, Traffic, key_hash
from gateway.cache.redis.advice import RedisDesk
from gateway.cache.redis.connection import connect
from gateway.server.embedded_redis import Embedded
from gateway.testing import TurnedClock
from tests.support.traffic import rung


@pytest.fixture
async def desks(valkey: Embedded, clock: TurnedClock) -> AsyncIterator[list[RedisDesk]]:
    prefix = f"{uuid4().hex}:"
    made = [RedisDesk(connect(valkey.url, 2.0), clock, prefix=prefix) for _ in range(3)]
    yield made
    for desk in made:
        await desk.aclose()


async def test_workers_together_are_advised_on_as_one_and_each_can_tell(
    desks: list[RedisDesk], clock: TurnedClock
) -> None:
    traffics = [Traffic(clock) for _ in desks]
    alone = Traffic(clock)
    local = LocalDesk(clock)
    for step in range(300):
        for traffic in (traffics[step % 3], alone):
            traffic.seen("item", key_hash("a key"))
        if step % 10 == 0:
            traffics[step % 3].fetched("item", 10.0, changed=step % 20 == 0)
        clock.turn(0.5)
        if step % 2:
            for desk, traffic in zip(desks, traffics, strict=True):
                await desk.deliver(traffic.take(), {"item": 10.0})
            await local.deliver(alone.take(), {"item": 10.0})
    for desk in desks:
        await desk.deliver({}, {"item": 10.0})
    await desks[0].deliver({}, {"item": 10.0})
    assert sum(desk.leads for desk in desks) == 1
    assert [bool(desk.told.advice) for desk in desks] == [desk.leads for desk in desks]
    (expected,) = await local.advice({"item": 10.0})
    for desk in desks:
        (advice,) = await desk.advice({"item": 10.0})
        assert advice.requests == 300
        assert advice.changes.fetches == 30
        for ttl in (1.0, 10.0, 60.0):
            assert rung(advice, ttl).hit_ratio == pytest.approx(rung(expected, ttl).hit_ratio, abs=0.01)


async def test_another_takes_over_when_the_leader_is_gone(desks: list[RedisDesk]) -> None:
    for desk in desks:
        await desk.deliver({}, {})
    leader = next(desk for desk in desks if desk.leads)
    others = [desk for desk in desks if desk is not leader]
    await others[0]._client.delete(leader._leader)  # as its time runs out
    await others[0].deliver({}, {})
    assert others[0].leads
    await leader.deliver({}, {})
    assert not leader.leads


async def test_a_delivery_that_cannot_be_read_is_passed_over(desks: list[RedisDesk], clock: TurnedClock) -> None:
    desk = desks[0]
    await desk._client.rpush(desk._list, b"nonsense", msgspec.msgpack.encode({"item": 5}))
    traffic = Traffic(clock)
    traffic.seen("item", 1)
    await desk.deliver(traffic.take(), {"item": None})
    assert [each.requests for each in await desk.advice({})] == [1]


async def test_without_redis_there_is_no_advice_and_no_error(clock: TurnedClock) -> None:
    desk = RedisDesk(connect("unix:///nonexistent/redis.sock", 0.1), clock)
    traffic = Traffic(clock)
    traffic.seen("item", 1)
    await desk.deliver(traffic.take(), {})
    assert await desk.advice({}) == []
    await desk.aclose()


def test_changes_come_through_a_delivery_as_they_were() -> None:
    changes = Changes()
    changes.add(5.0, changed=True)
    changes.add(9.0, changed=False)
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(changes), type=Changes)
    assert again.rate() == changes.rate()
