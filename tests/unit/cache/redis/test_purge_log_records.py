"""The records of the purge stream: what they take in Redis, and what gateways of two versions read in them."""

from __future__ import annotations

from uuid import uuid4

import msgspec
import pytest
import redis.asyncio as redis

from gateway.cache.redis.purge_log import PurgeStream, Record, RedisPurges
from gateway.policy.epochs import EVERYTHING, Purge, PurgeState, bounded, full_key_name, key_name, purge_of
from gateway.server.embedded_redis import Embedded
from gateway.testing import TurnedClock

LONG = "api\n/" + "x" * 8000
MIDDLE = "api\n/products/" + "7" * 60


class OldPurge(msgspec.Struct):
    """As gateways read a record that knew no digests."""

    id: str
    names: tuple[str, ...]
    soft: bool = False
    by: str = ""


async def as_old_gateways_read_it(stream: PurgeStream, client: redis.Redis) -> list[OldPurge]:
    entries = await client.xrange(stream._keys["log"])
    return [msgspec.json.decode(fields[b"r"], type=OldPurge) for _, fields in entries]


def stream_of(client: redis.Redis) -> PurgeStream:
    return PurgeStream(client, f"{uuid4().hex}:")


async def read(stream: PurgeStream) -> list[Record]:
    return await stream.read((0, 0))


async def test_a_long_name_is_a_digest_in_redis_and_everything_to_older_gateways(valkey: Embedded) -> None:
    async with redis.Redis.from_url(valkey.url) as client:
        stream = stream_of(client)
        await stream.add([purge_of("p", [full_key_name(LONG), "t:a"], soft=True, by="me")])
        ((_, found),) = await read(stream)
        assert found == Purge("p", (key_name(LONG), "t:a"), soft=True, by="me")
        (old,) = await as_old_gateways_read_it(stream, client)
        assert (old.names, old.soft) == ((EVERYTHING,), True)
        ((_, fields),) = await client.xrange(stream._keys["log"])
        assert len(fields[b"r"]) < 200


@pytest.mark.parametrize("name", ["t:a", full_key_name("api\n/items/1")])
async def test_a_short_name_is_the_same_to_both(valkey: Embedded, name: str) -> None:
    async with redis.Redis.from_url(valkey.url) as client:
        stream = stream_of(client)
        await stream.add([purge_of("p", [name])])
        ((_, found),) = await read(stream)
        assert found.names == (name,)
        assert [old.names for old in await as_old_gateways_read_it(stream, client)] == [(name,)]


async def test_while_an_older_gateway_is_there_it_is_written_what_it_can_tell(
    valkey: Embedded, clock: TurnedClock
) -> None:
    async with redis.Redis.from_url(valkey.url) as client:
        purges = RedisPurges(client, clock, prefix=f"{uuid4().hex}:")
        await purges.synchronise()
        await client.hset(purges._stream._keys["workers"], "place.1.old", "~x 0-0 1 30.000")
        await purges.census()
        names = (full_key_name(MIDDLE), "t:a")
        for each in (names, [full_key_name(LONG)]):
            purges.issue(each)
        await purges.synchronise()
        old = await as_old_gateways_read_it(purges._stream, client)
        assert [each.names for each in old] == [names, (EVERYTHING,)]
        found = [purge.names for _, purge in await read(purges._stream)]
        assert found == [(key_name(MIDDLE), "t:a"), (key_name(LONG),)]


async def test_a_record_of_an_older_gateway_voids_what_its_long_name_names(
    valkey: Embedded, clock: TurnedClock
) -> None:
    async with redis.Redis.from_url(valkey.url) as client:
        purges = RedisPurges(client, clock, prefix=f"{uuid4().hex}:")
        await purges.synchronise()
        stamp = purges.epochs.stamp
        record = msgspec.json.encode(OldPurge("p" * 32, (full_key_name(LONG),)))
        await client.xadd(purges._stream._keys["log"], {"i": "p" * 32, "r": record})
        await purges.synchronise()
        assert purges.epochs.judge(stamp, 0.0, [key_name(LONG)])[0] is PurgeState.VOID
        assert purges.epochs.judge(stamp, 0.0, [key_name(LONG + "x")])[0] is PurgeState.VALID
        ((_, known),) = purges.epochs.records.values()
        assert known.names == (bounded(full_key_name(LONG)),)


async def test_ten_thousand_purges_of_a_target_become_one_record_in_redis(valkey: Embedded, clock: TurnedClock) -> None:
    async with redis.Redis.from_url(valkey.url) as client:
        purges = RedisPurges(client, clock, prefix=f"{uuid4().hex}:")
        await purges.synchronise()
        for start in range(0, 10_000, 200):
            some = [purge_of(f"p{start + number}", [full_key_name(LONG)]) for number in range(200)]
            await purges._stream.add(some)
        await purges.synchronise()
        keys = purges._stream._keys
        await purges.tidy()
        assert await client.xlen(keys["log"]) == 10_000  # one that lags may not have applied what came after
        await purges.tidy(0.0)
        assert (await client.xlen(keys["log"]), await client.hlen(keys["ids"])) == (1, 1)
        generation = purges.epochs.generation
        await purges.synchronise()
        assert purges.epochs.generation == generation
        assert not purges.epochs.superseded


async def test_beyond_their_bytes_the_oldest_are_removed_here_and_in_redis(
    valkey: Embedded, clock: TurnedClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with redis.Redis.from_url(valkey.url) as client:
        prefix = f"{uuid4().hex}:"
        purges = RedisPurges(client, clock, prefix=prefix, max_bytes=100_000)
        await purges.synchronise()
        stamp = purges.epochs.stamp
        await purges._stream.add([purge_of(f"p{number}", [f"t:{number}"]) for number in range(190)])
        await purges.synchronise()
        left = len(purges.epochs.records)
        assert left * 560 == purges.epochs.weight <= 100_000
        assert await client.xlen(purges._stream._keys["log"]) == left
        assert await client.hlen(purges._stream._keys["ids"]) == left
        assert purges.epochs.judge(stamp, 0.0, ["t:unheard of"])[0] is PurgeState.VOID
        assert "are forgotten" in caplog.text
        late = RedisPurges(client, clock, prefix=prefix, max_bytes=100_000)
        await late.synchronise()
        assert late.epochs.floor == purges.epochs.floor
