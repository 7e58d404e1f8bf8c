"""The stream of API keys and revocations: what workers know, and when a change is in force."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
import redis.asyncio as redis

from gateway.clock import SystemClock
from gateway.identity.credential_log import LocalCredentials, RedisCredentials
from gateway.identity.records import Codec
from gateway.policy.epochs import ZERO
from gateway.policy.identity_key import IdentityKey
from gateway.server.embedded_redis import Embedded
from gateway.testing import TurnedClock
from tests.support.records import AT, api_key

SEALED = Codec(IdentityKey(b"k" * 32))


@asynccontextmanager
async def logs(
    valkey: Embedded, codecs: Iterable[Codec], *, prefix: str | None = None, young: float = 0.001
) -> AsyncIterator[list[RedisCredentials]]:
    """The started logs of workers of one fleet."""
    prefix = prefix or f"{uuid4().hex}:"
    found = [
        RedisCredentials(redis.Redis.from_url(valkey.url), SystemClock(), codec, prefix=prefix, young=young)
        for codec in codecs
    ]
    await asyncio.gather(*(each.start() for each in found))
    try:
        yield found
    finally:
        for each in found:
            await each.aclose()


async def test_a_worker_that_starts_later_knows_all_records_when_it_has_started(valkey: Embedded) -> None:
    prefix = f"{uuid4().hex}:"
    async with logs(valkey, [SEALED], prefix=prefix) as (one,):
        assert one.records.known
        await one.publish(api_key("a"))
    async with logs(valkey, [SEALED], prefix=prefix) as (late,):
        assert late.records.known
        assert late.records.keys == {api_key("a").key: api_key("a")}


async def test_a_record_is_in_force_here_at_once_and_is_added_when_redis_is_back(
    valkey: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.cache.redis.record_log.CONFIRM_SECONDS", 0.05)
    async with logs(valkey, [SEALED, SEALED]) as (one, two):
        client = one._stream._client
        one._stream._client = redis.Redis.from_url("unix:///nonexistent/redis.sock")
        report = await one.publish(api_key("a"))
        assert (report.added, report.complete) == (False, False)
        assert one.records.keys
        one._stream._client = client
        async with asyncio.timeout(10):
            while not two.records.keys:
                await asyncio.sleep(0.01)
            while one.records.pending:
                await asyncio.sleep(0.01)


async def test_a_worker_that_can_not_read_a_record_confirms_nothing(
    valkey: Embedded, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("gateway.cache.redis.record_log.CONFIRM_SECONDS", 0.5)
    async with logs(valkey, [SEALED, Codec(IdentityKey(b"other" * 7))]) as (one, other):
        report = await one.publish(api_key("a"))
        assert (report.complete, report.confirmed, report.workers) == (False, 1, 2)
        assert not other.records.keys
        assert "sealed with another redis_secret" in caplog.text
        async with asyncio.timeout(10):
            assert not (await one.publish(api_key("b"))).complete


async def test_what_no_gateway_wrote_is_ignored_and_told_once(
    valkey: Embedded, caplog: pytest.LogCaptureFixture
) -> None:
    async with logs(valkey, [SEALED]) as (log,):
        await log._stream._client.xadd(log._stream._keys["log"], {"r": b"garbage"})
        assert (await log.publish(api_key("a"))).complete
        assert (await log.publish(api_key("b"))).complete
        assert caplog.text.count("no gateway wrote it") == 1


async def test_a_worker_that_joins_a_stream_that_has_just_begun_waits_for_what_others_add(valkey: Embedded) -> None:
    prefix = f"{uuid4().hex}:"
    async with logs(valkey, [SEALED], prefix=prefix, young=60.0) as (log,):
        assert log._synchronised.is_set()
        assert not log.records.known
        await log._stream._client.delete(log._stream._keys["young"])
        async with asyncio.timeout(10):
            await log._known.wait()
        assert log.records.known


async def test_a_worker_that_has_not_reached_redis_knows_nothing() -> None:
    client = redis.Redis.from_url("unix:///nonexistent/redis.sock")
    log = RedisCredentials(client, SystemClock(), SEALED)
    await log.start()
    assert not log.records.known
    await log.aclose()


async def test_ended_records_leave_redis_too(valkey: Embedded) -> None:
    async with logs(valkey, [SEALED]) as (log,):
        for name, expires in (("a", 1.0), ("b", 2.0), ("c", None)):
            await log.publish(api_key(name, created=0.0, expires=expires))
        log.records.expire(SystemClock().now())
        await log.tidy(0.0)
        assert [record for _, record in await log._stream.read(ZERO)] == [api_key("c", created=0.0)]
        generation = log.records.generation
        await log.synchronise()
        assert log.records.generation == generation


async def test_without_redis_one_process_knows_what_it_made_and_keeps_nothing(clock: TurnedClock) -> None:
    log = LocalCredentials(clock, Codec(None))
    log.begin()
    await log.start()
    assert log.records.known
    assert not log.keeps
    assert (await log.publish(api_key("a"))).complete
    assert log.records.keys
    await log.aclose()


async def test_after_a_failover_that_lost_the_last_records_they_are_added_again(valkey: Embedded) -> None:
    """A replica that becomes the master may lack what was acknowledged last, and have the generation all the same."""
    async with logs(valkey, [SEALED, SEALED]) as (one, two):
        made, revoked = api_key("a"), api_key("a", revoked=AT)
        for record in (made, api_key("b"), revoked):
            assert (await one.publish(record)).complete
        client, keys = one._stream._client, one._stream._keys
        ((last, fields),) = await client.xrevrange(keys["log"], count=1)
        async with client.pipeline(transaction=True) as lost:
            await lost.xdel(keys["log"], last).hdel(keys["ids"], fields[b"i"]).execute()
        async with asyncio.timeout(10):
            while revoked not in [record for _, record in await one._stream.read(ZERO)]:
                await asyncio.sleep(0.01)
        assert (await two.publish(api_key("c"))).complete
        for log in (one, two):
            assert log.records.keys[made.key].revoked == AT
            assert len(log.records.keys) == 3


async def test_a_stream_is_taken_over_while_records_are_made(valkey: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.identity.credential_log.ADD_AT_ONCE", 3)
    async with logs(valkey, [SEALED, SEALED]) as (one, two):
        await asyncio.gather(*(one.publish(api_key(f"old {n}")) for n in range(20)))
        await one._stream._client.delete(*one._stream._keys.values())
        reports = await asyncio.gather(*(two.publish(api_key(f"new {n}")) for n in range(20)))
        async with asyncio.timeout(10):
            while any(len(each.records._places) < 40 for each in (one, two)):
                await asyncio.sleep(0.01)
        assert all(report.added for report in reports)
        assert [len(each.records.keys) for each in (one, two)] == [40, 40]
        assert len(await one._stream.read(ZERO)) == 40
