"""What lies in Redis and is larger than anything we write there: never read whole, never believed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import msgspec
import pytest
from msgspec import structs
from redis.exceptions import ConnectionError as RedisConnectionError

from gateway.cache.redis.connection import BoundedParser
from gateway.cache.redis.store import RedisStore
from gateway.clock import SystemClock
from gateway.config.models import RECORD_REST, Config
from gateway.config.overrides import Override
from gateway.policy.entry import MOST_HEAD, decode_stored, encode
from gateway.policy.epochs import EVERYTHING, PurgeState, show_position, tag_name
from gateway.server.embedded_redis import Embedded
from gateway.testing import StubUpstream, TurnedClock, running
from tests.support.entries import STORED
from tests.support.gateways import gateway, json_answer
from tests.support.proxy import FaultProxy, faulty_url

HUGE = bytes(5_000_000)
FEW = 20_000
"""Bytes from Redis, where nothing huge was among them."""


class Behind:
    """A store of records of 1,000 bytes at most, behind a proxy that counts what Redis sends."""

    def __init__(self, proxy: FaultProxy) -> None:
        self.proxy = proxy
        self.prefix = f"{uuid4().hex}:"
        self.store = RedisStore(proxy.url("redis://x"), prefix=self.prefix, budget=20.0, largest=1000)
        self.client = self.store._client

    async def read(self, *names: str, piped: bool) -> list[bytes | None]:
        if not piped:
            self.store._keeper._make = None
        while piped and self.store._keeper.pipe is None:
            await asyncio.sleep(0.001)
        return await self.store.read(names)


@pytest.fixture
async def behind(valkey: Embedded) -> AsyncIterator[Behind]:
    async with faulty_url(valkey.url) as proxy:
        behind = Behind(proxy)
        yield behind
        await behind.client.flushdb()
        await behind.store.aclose()


@pytest.mark.parametrize("piped", [True, False])
async def test_a_value_larger_than_any_record_is_neither_read_nor_fetched_whole(
    behind: Behind, piped: bool, caplog: pytest.LogCaptureFixture
) -> None:
    await behind.client.set(behind.prefix + "planted", HUGE)
    await behind.client.set(behind.prefix + "largest", b"x" * 1000)
    await behind.client.lpush(behind.prefix + "list", b"x")

    read = await behind.read("planted", "largest", "list", "none", piped=piped)

    assert read == [None, b"x" * 1000, None, None]
    assert behind.store.statistics.oversized == 1
    assert behind.store.statistics.failures == 0
    assert behind.proxy.passed_down < FEW
    (complaint,) = [record.getMessage() for record in caplog.records]
    assert f"{behind.prefix}planted in Redis is larger than 1000 bytes" in complaint


async def test_what_is_too_large_to_be_read_is_not_written(behind: Behind) -> None:
    assert not await behind.store.write([("a", bytes(1001), 60.0)])
    assert await behind.store.write([("b", bytes(1000), 60.0)])
    assert behind.store.statistics.oversized == 1


async def test_a_planted_lease_is_not_read_whole(behind: Behind) -> None:
    await behind.client.set(behind.prefix + "l:a", HUGE)
    assert await behind.store.take("l:a", b"token", 1.0) == bytes(64)
    assert behind.proxy.passed_down < FEW


async def test_a_reply_that_outgrows_all_that_we_ask_for_ends_its_connection(
    behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BoundedParser, "most", 1_000_000)
    await behind.client.set(behind.prefix + "a", HUGE)
    with pytest.raises(RedisConnectionError, match="a reply of more than 1000000 bytes"):
        await behind.client.get(behind.prefix + "a")
    assert await behind.client.ping()


async def test_a_planted_purge_is_not_read_whole_and_purges_everything(behind: Behind) -> None:
    purges = behind.store.purge_log(SystemClock(), None)
    await purges.synchronise()
    stamp = purges.epochs.stamp
    await behind.client.xadd(behind.prefix + "{purge}:log", {b"i": b"1", b"r": HUGE})
    await behind.client.xadd(behind.prefix + "{purge}:log", {b"%d" % number: b"x" for number in range(9)})
    assert purges.epochs.judge(stamp, 0.0, [EVERYTHING])[0] is PurgeState.VALID

    await purges.synchronise()

    assert purges.epochs.judge(stamp, 0.0, [EVERYTHING])[0] is PurgeState.VOID
    assert behind.proxy.passed_down < FEW
    issued = await purges.purge([tag_name("a")])
    assert issued.added
    await purges.synchronise()
    newcomer = behind.store.purge_log(SystemClock(), None)
    await newcomer.synchronise()
    assert newcomer.epochs.applied == purges.epochs.applied
    assert behind.proxy.passed_down < 2 * FEW
    await purges.aclose()
    await newcomer.aclose()


async def test_planted_overrides_are_not_read_whole_and_the_others_hold(behind: Behind) -> None:
    live = behind.store.live()
    mine = Override(route="item", setting="ttl", value="1s", by="ops", at=0.0, until=1e9)
    names = behind.prefix + "{live}:overrides", behind.prefix + "{live}:version"
    await behind.client.hset(names[0], mapping={"item.ttl": msgspec.json.encode(mine), "planted": HUGE})
    await behind.client.set(names[1], HUGE)
    assert await live.changed() == [mine]
    assert behind.proxy.passed_down < FEW
    await live.aclose()


NO_UTF8 = b'{"id":"a,\x83soft":true, 30"}'
"""Found by fuzzing: msgspec raises another error than its own at text that is no UTF-8."""


async def test_a_purge_of_no_text_purges_everything_and_those_behind_it_hold(behind: Behind) -> None:
    purges = behind.store.purge_log(SystemClock(), None)
    await purges.synchronise()
    stamp = purges.epochs.stamp
    last = await behind.client.xadd(behind.prefix + "{purge}:log", {b"i": b"1", b"r": NO_UTF8})
    await purges.synchronise()
    assert purges.epochs.judge(stamp, 0.0, [EVERYTHING])[0] is PurgeState.VOID
    assert show_position(purges.epochs.applied).encode() == last
    await purges.aclose()


async def test_a_stream_of_purges_that_is_none_is_told_once_and_followed_again_when_it_is_gone(
    behind: Behind, caplog: pytest.LogCaptureFixture
) -> None:
    name = behind.prefix + "{purge}:log"
    await behind.client.set(name, b"no stream")
    purges = behind.store.purge_log(SystemClock(), None)
    await purges.start()
    while not caplog.records:
        await asyncio.sleep(0.01)
    await behind.client.delete(name)
    await purges._synchronised.wait()
    (complaint,) = [record.getMessage() for record in caplog.records]
    assert "purges can't be read from Redis" in complaint
    assert "WRONGTYPE" in complaint
    await purges.aclose()


@pytest.mark.parametrize("beat", [b"\xff\xfe", b"x 1-1 1 nan", b"x 1-1 1 inf", b"x 1-1 1 -1", b""])
async def test_a_planted_sign_of_life_holds_up_no_worker_and_ends(behind: Behind, beat: bytes) -> None:
    purges = behind.store.purge_log(SystemClock(), None)
    await behind.client.hset(behind.prefix + "{purge}:workers", b"\xffnobody", beat)
    await purges.synchronise()
    await purges.census()
    purge = purges.issue([tag_name("a")])
    added = await purges._stream.add([purge], count=True)
    assert purges.report([purge], added, 0.0).workers == 2
    silent = purges._fleet.silent(SystemClock().now() + 3600)
    assert len(silent) == 1
    await purges._stream.bury(*silent[0])
    assert list(await purges._stream.workers()) == [purges.worker]
    await purges.aclose()


UNTIL_NEVER = b'{"route":"item","setting":"ttl","value":"1s","by":"x","at":0,"until":1e300}'


@pytest.mark.parametrize("record", [NO_UTF8, UNTIL_NEVER])
async def test_a_planted_override_that_means_nothing_is_passed_over(behind: Behind, record: bytes) -> None:
    live = behind.store.live()
    await behind.client.hset(behind.prefix + "{live}:overrides", "planted", record)
    await behind.client.set(behind.prefix + "{live}:version", "1")
    await behind.client.lpush(behind.prefix + "{live}:audit", record)
    assert await live.changed() == []
    assert await live.audit() == []
    await live.aclose()


async def test_a_body_larger_than_its_route_stores_is_not_served_from_redis(
    valkey: Embedded, clock: TurnedClock
) -> None:
    routes = {"item": {"path": "/items/{id}", "upstream": "api", "ttl": "10m", "max_body": "1KiB"}}
    store = RedisStore(valkey.url, prefix=f"{uuid4().hex}:", budget=20.0)
    upstream = StubUpstream(json_answer())
    app = gateway(upstream, routes, clock=clock, store=store)
    async with running(app) as client:
        await client.get("/items/1")
        await app.engine.settle()
        (name,) = [name async for name in store._client.scan_iter(f"{store._prefix}e:*")]
        (key,) = app.engine.memory.hottest(10)
        known = app.engine.memory.get(key)
        assert known is not None
        await store._client.set(name, encode(structs.replace(known, body=b"x" * 1025)))
        app.engine.memory.clear()
        assert (await client.get("/items/1")).json() == {"n": 2}


def test_a_head_larger_than_any_of_ours_is_not_believed() -> None:
    for size, believed in ((MOST_HEAD - 1, True), (MOST_HEAD, False)):
        stored = structs.replace(STORED, headers=((b"x", b"y" * size),))
        assert (decode_stored(encode(stored), "k") is not None) is believed


def test_the_largest_record_follows_from_the_largest_body_of_the_configuration() -> None:
    routes = {"big": {"path": "/big", "upstream": "api", "max_body": "40MiB"}}
    upstreams = {"api": {"url": "http://api.test", "max_response_headers": "128KiB"}}
    config = Config.model_validate({"upstreams": upstreams, "routes": routes})
    assert config.largest_record == 40 * 1024**2 + 128 * 1024 + RECORD_REST
