"""redis store: leases and small writes use the connection of the reads; a response is stored before its lease ends."""

from __future__ import annotations

import asyncio
import re
import select
import time
from typing import Any
from uuid import uuid4

import pytest

from gateway.cache.leases import STORED, STORED_LIFE
from gateway.cache.redis.errors import complain_about_policy
from gateway.cache.redis.reader import Pipe
from gateway.cache.redis.store import FAILURES_BEFORE_REST, MOST_AT_ONCE, RedisStore
from gateway.cache.redis.writes import MAX_BATCH_BYTES
from gateway.clock import SystemClock
from gateway.server.embedded_redis import Embedded
from tests.support.gateways import contact
from tests.support.proxy import faulty_url


async def connected(store: RedisStore) -> None:
    """Wait for the connection of the reads."""
    await store.read(["open"])
    connecting = store._keeper._connecting
    assert connecting is not None
    await connecting
    assert store._keeper.pipe is not None


@pytest.fixture
async def sent(redis_store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The commands of each send on the connection of the reads, which is open."""
    await connected(redis_store)
    found: list[bytes] = []
    run = Pipe.run

    def noted(self: Pipe, commands: bytes, number: int, then: Any, **how: bool) -> None:
        found.append(commands)
        run(self, commands, number, then, **how)

    monkeypatch.setattr(Pipe, "run", noted)
    return found


async def test_a_response_is_stored_and_its_lease_ended_in_one_send(redis_store: RedisStore, sent: list[bytes]) -> None:
    assert await redis_store.take("l:1", b"token", 60.0) == b"token"
    await redis_store.give_back("l:1", b"token", STORED, STORED_LIFE, after=[("e:1", b"entry", 60.0)])
    take, end = sent
    names = re.compile(rb"\*\d+\r\n\$\d+\r\n(\w+)")
    assert (names.findall(take), names.findall(end)) == ([b"EVAL"], [b"SET", b"EVAL"])
    assert await redis_store.read(["e:1", "l:1"]) == [b"entry", STORED]


async def test_a_small_write_is_sent_at_once(redis_store: RedisStore, sent: list[bytes]) -> None:
    assert await redis_store.write([("e:1", b"a", 60.0), ("i:1", b"b", 60.0)])
    assert len(sent) == 1
    assert await redis_store.read(["e:1", "i:1"]) == [b"a", b"b"]


async def test_a_large_response_does_not_delay_reads_and_is_stored_before_its_lease_ends(
    redis_store: RedisStore, sent: list[bytes]
) -> None:
    body = b"x" * (MOST_AT_ONCE + 1)
    await redis_store.take("l:1", b"token", 60.0)
    await redis_store.give_back("l:1", b"token", STORED, STORED_LIFE, after=[("e:1", body, 60.0)])
    assert all(len(commands) < MOST_AT_ONCE for commands in sent)
    assert await redis_store.read(["e:1", "l:1"]) == [body, STORED]


async def test_a_small_write_does_not_overtake_a_large_one(redis_store: RedisStore, sent: list[bytes]) -> None:
    large = asyncio.ensure_future(redis_store.write([("e:1", b"x" * (MOST_AT_ONCE + 1), 60.0)]))
    small = asyncio.ensure_future(redis_store.write([("e:1", b"new", 60.0)]))
    assert await large
    assert await small
    assert sent == []
    assert await redis_store.read(["e:1"]) == [b"new"]


async def test_what_redis_refuses_is_counted_and_the_lease_is_given_up(
    redis_store: RedisStore, sent: list[bytes]
) -> None:
    await redis_store.take("l:1", b"token", 60.0)
    policy = await redis_store._client.config_get("maxmemory*")
    before = redis_store.statistics.failures
    try:
        await redis_store._client.config_set("maxmemory-policy", "noeviction")
        await redis_store._client.config_set("maxmemory", "1")
        assert not await redis_store.write([("e:1", b"a", 60.0)])
        await redis_store.give_back("l:1", b"token", STORED, STORED_LIFE, after=[("e:2", b"b", 60.0)])
    finally:
        for name, value in policy.items():
            await redis_store._client.config_set(name, value)
    assert redis_store.statistics.failures == before + 2
    assert redis_store.statistics.dropped == 2
    assert await redis_store.read(["e:1", "e:2"]) == [None, None]


async def test_without_that_connection_the_client_does_the_same(redis_store: RedisStore) -> None:
    redis_store._keeper._make = None
    assert redis_store._keeper.pipe is None
    assert await redis_store.take("l:1", b"token", 60.0) == b"token"
    await redis_store.give_back("l:1", b"token", STORED, STORED_LIFE, after=[("e:1", b"entry", 60.0)])
    assert await redis_store.read(["e:1", "l:1"]) == [b"entry", STORED]


async def test_without_that_connection_entries_and_lease_are_still_one_round_trip(redis_store: RedisStore) -> None:
    redis_store._keeper._make = None
    before = redis_store.statistics.batches
    found = await redis_store.read_and_take(["i:1", "e:1"], [b""], "l:1", b"token", 60.0)
    assert (found, redis_store.statistics.batches - before) == (([None, None], b"token"), 1)
    await redis_store.give_back("l:1", b"token", STORED, STORED_LIFE, after=[("e:1", b"entry", 60.0)])
    assert await redis_store.read_and_take(["i:1", "e:1"], [b""], "l:1", b"token", 60.0) == ([None, b"entry"], b"")


async def test_many_small_writes_at_once_leave_room_for_reads(redis_store: RedisStore, sent: list[bytes]) -> None:
    """Together they are more than the connection of the reads takes: the rest goes by the client."""
    body = b"x" * (MOST_AT_ONCE - 1)
    writes = [redis_store.write([(f"e:{number}", body, 60.0)]) for number in range(40)]
    *done, read = await asyncio.gather(*writes, redis_store.read(["e:none"]))
    assert all(done)
    assert read == [None]
    assert sent
    assert redis_store.statistics.failures == 0
    assert await redis_store.read([f"e:{number}" for number in range(40)]) == [body] * 40


async def test_writes_that_are_refused_together_are_one_failure_of_redis(
    redis_store: RedisStore, sent: list[bytes]
) -> None:
    """A full Redis can still be read."""
    policy = await redis_store._client.config_get("maxmemory*")
    try:
        await redis_store._client.config_set("maxmemory-policy", "noeviction")
        await redis_store._client.config_set("maxmemory", "1")
        done = await asyncio.gather(*(redis_store.write([(f"e:{number}", b"a", 60.0)]) for number in range(8)))
        assert not any(done)
        assert redis_store.available
    finally:
        for name, value in policy.items():
            await redis_store._client.config_set(name, value)


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
        await contact(store)
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


async def test_a_reply_that_came_while_the_loop_was_blocked_counts_and_sets_no_clock(
    valkey: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked, now = 0.0, time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + blocked)
    store = RedisStore(valkey.url, prefix=f"{uuid4().hex}:", clock=SystemClock())
    await contact(store)
    synchronised = store._synchronised_at
    [connection] = store._client.connection_pool._available_connections
    send = connection._writer.writelines

    def send_and_block(data: Any) -> None:
        send(data)
        asyncio.get_running_loop().call_soon(block)

    def block() -> None:
        nonlocal blocked
        assert select.select([connection._writer.get_extra_info("socket")], [], [], 10)[0]
        blocked += 0.5

    monkeypatch.setattr(connection._writer, "writelines", send_and_block)
    assert await store._ping()
    assert await store._reads_again()
    assert (blocked, store._synchronised_at) == (1.0, synchronised)
    await store.aclose()


async def test_a_read_that_was_not_sent_when_the_store_is_closed_opens_no_connection(valkey: Embedded) -> None:
    async with faulty_url(valkey.url) as proxy:
        store = RedisStore(proxy.url("redis://x"))
        read = asyncio.ensure_future(store.read(["e:1"]))
        await asyncio.sleep(0)
        await store.aclose()
        assert await asyncio.wait_for(read, 5) == [None]
        await asyncio.sleep(0.1)
        assert proxy.accepted == 0


async def test_what_ends_when_the_store_is_closed_opens_no_connection(valkey: Embedded) -> None:
    async with faulty_url(valkey.url) as proxy:
        store = RedisStore(proxy.url("redis://x"), prefix=f"{uuid4().hex}:", budget=5.0)
        await connected(store)
        proxy.down.delay = 60.0
        store._failures = FAILURES_BEFORE_REST - 1  # the next one starts a probe
        reading = asyncio.ensure_future(store.read_and_take(["i:1", "e:1"], [b""], "l:1", b"token", 60.0))
        writing = asyncio.ensure_future(store.give_back("l:2", b"token", after=[("e:2", b"entry", 60.0)]))
        await asyncio.sleep(0)
        store._failures = FAILURES_BEFORE_REST - 1
        opened = proxy.accepted
        await store.aclose()
        assert await asyncio.wait_for(reading, 5) == ([None, None], None)
        await asyncio.wait_for(writing, 5)
        await asyncio.sleep(0.1)
        assert proxy.accepted == opened
        assert await store.read(["e:1"]) == [None]


async def test_writes_that_wait_when_the_store_is_closed_are_given_up(valkey: Embedded) -> None:
    async with faulty_url(valkey.url) as proxy:
        store = RedisStore(proxy.url("redis://x"), prefix=f"{uuid4().hex}:", budget=0.1)
        proxy.down.delay = 60.0
        body = b"x" * MAX_BATCH_BYTES
        writing = [asyncio.ensure_future(store.write([(f"e:{number}", body, 60.0)])) for number in range(20)]
        await asyncio.sleep(0)
        await store.aclose()
        opened = proxy.accepted
        assert await asyncio.wait_for(asyncio.gather(*writing), 5) == [False] * 20
        await asyncio.sleep(0.1)
        assert proxy.accepted == opened
