"""The stream of records in Redis: what is removed from it, and what a worker that stood still makes of that."""

from __future__ import annotations

from uuid import uuid4

import redis.asyncio as redis

from gateway.cache.redis.purge_log import RedisPurges
from gateway.cache.redis.record_stream import Beat, RecordStream
from gateway.identity.records import Codec, Record
from gateway.policy.epochs import ZERO, PurgeState, purge_of, tag_name
from gateway.server.embedded_redis import Embedded
from gateway.testing import TurnedClock
from tests.support.records import api_key


def stream_of(client: redis.Redis, **settings: float) -> RecordStream[Record]:
    codec = Codec(None)
    return RecordStream(client, f"{uuid4().hex}:", "credentials", codec.encode, codec.decode, **settings)


async def test_a_record_that_is_added_twice_keeps_its_place(valkey: Embedded) -> None:
    async with redis.Redis.from_url(valkey.url) as client:
        stream = stream_of(client)
        first = await stream.add([api_key("a"), api_key("b")])
        assert (await stream.add([api_key("b"), api_key("a")])).places == first.places[::-1]
        assert [record for _, record in await stream.read(ZERO)] == [api_key("a"), api_key("b")]


async def test_a_stream_is_young_for_a_moment_after_redis_lost_it(valkey: Embedded) -> None:
    async with redis.Redis.from_url(valkey.url) as client:
        stream = stream_of(client, young=60.0)
        assert (await stream.turn("worker", Beat("none", ZERO))).young
        await client.delete(stream._keys["young"])
        assert not (await stream.turn("worker", Beat("none", ZERO))).young
        await stream.stay_young()
        assert (await stream.turn("worker", Beat("none", ZERO))).young


async def test_an_entry_that_no_gateway_wrote_is_read_as_none(valkey: Embedded) -> None:
    async with redis.Redis.from_url(valkey.url) as client:
        stream = stream_of(client)
        await client.xadd(stream._keys["log"], {"x": "y"})
        await client.xadd(stream._keys["log"], {"r": b"\xff\x00"})
        assert [record.id[:8] for _, record in await stream.read(ZERO)] == ["unusable", "unusable"]


async def test_what_was_removed_after_a_worker_stood_still_counts_as_lost(valkey: Embedded, clock: TurnedClock) -> None:
    async with redis.Redis.from_url(valkey.url) as client:
        prefix = f"{uuid4().hex}:"
        one, two = (RedisPurges(client, clock, prefix=prefix) for _ in range(2))
        for number, followers in ((1, (one, two)), (2, (one,))):
            await one._stream.add([purge_of(f"p{number}", ["t:a"])])
            for follower in followers:
                await follower.synchronise()
        stamp = two.epochs.stamp
        await one.tidy(0.0)
        await two.synchronise()
        await one.synchronise()
        assert two.epochs.generation == one.epochs.generation
        assert [len(each.epochs.records) for each in (one, two)] == [1, 1]  # added again, later than it was
        assert two.epochs.judge(stamp, 0.0, [tag_name("a")])[0] is PurgeState.VOID


async def test_of_another_generation_nothing_is_removed(valkey: Embedded) -> None:
    async with redis.Redis.from_url(valkey.url) as client:
        stream = stream_of(client)
        added = await stream.add([api_key("a")])
        assert await stream.drop("another", added.places, 0.0) == 0
        await stream.trim_to("another", added.places[0])
        assert len(await stream.read(ZERO)) == 1
