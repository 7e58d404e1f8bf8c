"""Replies of another shape than their command's are no replies: Redis is left alone, and taken up again."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from gateway.cache.redis.errors import complain_about_policy
from gateway.cache.redis.store import RedisStore
from gateway.server.embedded_redis import Embedded
from tests.support.proxy import faulty_url

SHAPES = {
    "an empty push": b">0\r\n",
    "a list of another length": b"*1\r\n$1\r\nx\r\n",
    "text for a number": b"*2\r\n$1\r\nx\r\n$1\r\ny\r\n",
    "a map for a text": b"%1\r\n$1\r\nx\r\n$1\r\ny\r\n",
    "a number for a text": b":7\r\n",
    "nothing of the protocol": b"\x00\x01",
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
async def test_after_replies_of_another_shape_redis_is_used_again(valkey: Embedded, shape: bytes) -> None:
    async with faulty_url(valkey.url) as proxy:
        store = RedisStore(proxy.url("redis://x"), prefix=f"{uuid4().hex}:", budget=0.5)
        await store.start()
        assert await store.write([("name", b"value", 60.0)])
        proxy.down.corrupt = lambda _: shape
        for _ in range(5):
            await store.read(["name"])
            assert await store.take("l:name", b"token", 60.0) != b"token"
        await store._ping()
        await complain_about_policy(store._client)
        proxy.clear()
        async with asyncio.timeout(20):
            while not store.available:
                await asyncio.sleep(0.01)
        assert await store.read(["name"]) == [b"value"]
        await store.aclose()
