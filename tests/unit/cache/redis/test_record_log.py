"""How records reach every worker: confirmation, Redis that is away or lost all, workers that fell silent."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import redis.asyncio as redis

from gateway.cache.redis.record_log import gone, own_name
from gateway.cache.redis.record_stream import Added, Beat
from gateway.clock import SystemClock
from gateway.identity.credential_log import RedisCredentials
from gateway.identity.records import Codec
from gateway.policy.epochs import ZERO
from gateway.server.embedded_redis import Embedded
from tests.support.records import api_key


@asynccontextmanager
async def logs(valkey: Embedded, number: int) -> AsyncIterator[list[RedisCredentials]]:
    """The logs of so many workers of one fleet, started."""
    prefix, clock = f"{uuid4().hex}:", SystemClock()
    clients = [redis.Redis.from_url(valkey.url) for _ in range(number)]
    found = [RedisCredentials(client, clock, Codec(None), prefix=prefix, young=0.001) for client in clients]
    await asyncio.gather(*(each.start() for each in found))
    try:
        yield found
    finally:
        for each in found:
            await each.aclose()


async def test_records_issued_together_are_confirmed_once_all_are_applied(valkey: Embedded) -> None:
    async with logs(valkey, 2) as (one, two):
        report = await one.publish(api_key("a"), api_key("b"), api_key("c"))
        assert (report.complete, report.confirmed, report.workers) == (True, 2, 2)
        assert len(two.records.keys) == 3
        places = [(1, 0), (3, 0), (2, 0)]  # one that was added before keeps its place
        beats = {"w": Beat("g", (2, 0)).encode()}
        added = Added("g", places, beats, young=False, silenced=False)
        assert one.report([api_key(name) for name in "acb"], added, 0.0).confirmed == 0


async def test_a_record_is_confirmed_by_every_worker(valkey: Embedded) -> None:
    async with logs(valkey, 3) as fleet:
        report = await fleet[0].publish(api_key("a"))
        assert (report.complete, report.confirmed, report.workers) == (True, 3, 3)
        assert all(each.records.keys == {api_key("a").key: api_key("a")} for each in fleet)


async def test_a_record_that_redis_lost_is_added_again_by_whoever_knows_it(valkey: Embedded) -> None:
    async with logs(valkey, 2) as (one, two):
        await one.publish(api_key("a"))
        await one._stream._client.delete(*one._stream._keys.values())
        async with asyncio.timeout(10):
            assert (await two.publish(api_key("b"))).complete
            while len(await one._stream.read(ZERO)) < 2:
                await asyncio.sleep(0.01)
        assert len(one.records.keys) == len(two.records.keys) == 2


async def test_while_a_worker_is_silent_nothing_is_complete_as_it_may_still_accept_what_was_revoked(
    valkey: Embedded,
) -> None:
    async with logs(valkey, 1) as (log,):
        await log._stream.turn("elsewhere.1.x", beat := Beat("g", ZERO))
        report = await log.publish(api_key("a"))
        assert (report.complete, report.confirmed, report.workers) == (False, 1, 2)
        await log._stream.bury("elsewhere.1.x", beat.encode())
        report = await log.publish(api_key("b"))
        assert (report.complete, report.settled, report.confirmed, report.workers) == (False, False, 1, 1)


async def test_a_worker_that_crashed_leaves_no_day_without_confirmations(valkey: Embedded) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "")
    await process.wait()
    async with logs(valkey, 2) as (one, two):
        crashed = f"{one.worker.partition('.')[0]}.{process.pid}.x"
        await one._stream.turn(crashed, Beat("g", ZERO, silent=0.0))
        for each in (two, one):  # both have seen it, and that it is silent
            each._fleet.note(
                each.records.generation, {crashed: Beat("g", ZERO, silent=0.0).encode()}, each._clock.now() - 60
            )
        await one.census()
        await two.census()
        assert crashed not in await one._stream.workers()
        report = await two.publish(api_key("a"))
        assert (report.complete, report.confirmed, report.workers) == (True, 2, 2)


def test_a_process_that_runs_is_not_gone_and_of_another_machine_nobody_knows() -> None:
    assert not gone(own_name())
    assert not gone("elsewhere.1.x")
    assert not gone("")
