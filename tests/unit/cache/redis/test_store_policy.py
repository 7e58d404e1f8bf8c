"""Redis must not evict the stream of purges: what is said at start where it may."""

from __future__ import annotations

import logging

import pytest

from gateway.cache.redis.errors import complaint_about
from gateway.cache.redis.store import RedisStore
from gateway.server.embedded_redis import Embedded


@pytest.mark.parametrize(
    "policy", ["noeviction", "volatile-lru", "volatile-lfu", "volatile-ttl", "volatile-random", ""]
)
def test_a_policy_that_keeps_what_does_not_expire_is_well(policy: str) -> None:
    assert complaint_about(policy, 1024) is None


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-lfu", "allkeys-random"])
@pytest.mark.parametrize(("maxmemory", "level"), [(0, logging.WARNING), (1024, logging.ERROR)])
def test_a_policy_that_evicts_anything_is_complained_about(policy: str, maxmemory: int, level: int) -> None:
    complaint = complaint_about(policy, maxmemory)
    assert complaint is not None
    assert complaint[0] == level
    assert policy in complaint[1]
    assert "volatile-lru" in complaint[1]


async def test_the_policy_is_looked_at_when_the_gateway_starts(
    redis_store: RedisStore, valkey: Embedded, caplog: pytest.LogCaptureFixture
) -> None:
    await redis_store.start()
    assert caplog.records == []
    await redis_store._client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        await redis_store.start()
    finally:
        await redis_store._client.config_set("maxmemory-policy", "volatile-lru")
    assert [record.levelname for record in caplog.records] == ["ERROR"]
