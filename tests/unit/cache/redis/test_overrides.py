"""Overrides in Redis: read by each worker, and every change in the audit list."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from gateway.cache.redis.connection import connect
from gateway.cache.redis.overrides import RedisLive
from gateway.config.overrides import Event, Live, LocalLive, Override, OverridesUnavailable
from gateway.server.embedded_redis import Embedded
from tests.support.overrides import override


def event(what: str = "ttl set") -> Event:
    return Event(at=0.0, by="ops", what=what, detail="item.ttl = 10s")


@pytest.fixture
async def fleet(valkey: Embedded) -> AsyncIterator[list[RedisLive]]:
    prefix = f"{uuid4().hex}:"
    made = [RedisLive(connect(valkey.url, 2.0), prefix=prefix) for _ in range(2)]
    yield made
    for each in made:
        await each.aclose()


async def test_what_one_worker_is_told_the_others_read_once(fleet: list[RedisLive]) -> None:
    one, two = fleet
    assert await two.changed() == []
    assert await two.changed() is None
    await one.put(override(), event())
    assert await two.changed() == [override()]
    assert await two.changed() is None
    assert await one.changed() == [override()]
    await two.drop(override().key, event("ttl reset"))
    assert await one.changed() == []


async def test_a_redis_that_lost_it_all_is_told_again(fleet: list[RedisLive]) -> None:
    one, two = fleet
    await one.put(override(), event())
    await one.changed()
    await one._client.flushall()
    assert await one.changed() == [override()]
    assert await two.changed() == [override()]


@pytest.fixture(params=["local", "redis"])
def live(request: pytest.FixtureRequest, fleet: list[RedisLive]) -> Live:
    return LocalLive() if request.param == "local" else fleet[0]


async def test_the_audit_list_tells_the_newest_first_and_is_bounded_by_what_is_asked(live: Live) -> None:
    await live.put(override(), event("ttl set"))
    await live.drop(override().key, event("ttl reset"))
    await live.note(event("purge"))
    assert [each.what for each in await live.audit()] == ["purge", "ttl reset", "ttl set"]
    assert [each.what for each in await live.audit(1)] == ["purge"]


async def test_an_override_comes_and_goes(live: Live) -> None:
    await live.put(override(), event())
    assert await live.changed() == [override()]
    await live.put(override("20s"), event())
    assert await live.changed() == [override("20s")]
    await live.drop("item.ttl", event())
    assert await live.changed() == []
    assert await live.changed() is None


async def test_what_cannot_be_read_is_passed_over(fleet: list[RedisLive]) -> None:
    live = fleet[0]
    await live._client.hset(live._overrides, "x", b"nonsense")
    await live._client.lpush(live._audit, b"nonsense")
    await live.put(override(), event())
    assert await live.changed() == [override()]
    assert [each.what for each in await live.audit()] == ["ttl set"]


async def test_without_redis_a_change_is_refused_and_what_holds_goes_on() -> None:
    live = RedisLive(connect("unix:///nonexistent/redis.sock", 0.1))
    with pytest.raises(OverridesUnavailable, match="nothing was changed"):
        await live.put(override(), event())
    assert await live.changed() is None
    assert await live.audit() == []
    await live.note(event())
    await live.aclose()


def test_records_are_read_by_later_versions_too() -> None:
    record: dict[str, Any] = {**msgspec.to_builtins(override()), "reason": "added by a later version"}
    assert msgspec.convert(record, Override) == override()
