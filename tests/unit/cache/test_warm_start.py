"""A new worker takes the fleet's hottest responses from Redis into its memory, and nothing that it must not."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from gateway.app.gateway import Gateway
from gateway.cache import warm_start
from gateway.cache.redis.store import RedisStore
from gateway.cache.warm_start import BATCH, NAME, Hottest
from gateway.testing import StubUpstream, TurnedClock, running
from tests.support.gateways import gateway, status_of

FRESH = {"cache-control": "max-age=600"}
LONG = {"item": {"path": "/items/{id}", "upstream": "api", "ttl": "10m", "tags": ["item:{id}"]}}


def upstream() -> StubUpstream:
    return StubUpstream(lambda request: httpx.Response(200, text=request.url.path, headers=FRESH))


def by_hand(app: Gateway, number: int = 1000) -> Hottest:
    """What a worker does at its start and then every ten seconds, done when the test says so."""
    return Hottest(app.engine.tiers, number, leads=lambda: False)


async def settled(app: Gateway, client: httpx.AsyncClient, *targets: str) -> None:
    for target in targets:
        await client.get(target)
    await app.engine.settle()


async def test_the_hottest_responses_lie_in_a_new_workers_memory(clock: TurnedClock, redis_store: RedisStore) -> None:
    api = upstream()
    old, new = (gateway(api, LONG, clock=clock, store=redis_store, warm_start=0) for _ in range(2))
    async with running(old) as client:
        await settled(old, client, *(f"/items/{number}" for number in range(5)))
        await settled(old, client, *["/items/3", "/items/1"] * 2)
        await by_hand(old).publish()
        async with running(new) as other:
            await by_hand(new, 2).take()
            assert new.engine.memory.statistics.entries == 2
            before = redis_store.statistics.reads
            answers = [await other.get(f"/items/{number}") for number in (1, 3)]
            assert redis_store.statistics.reads == before
    assert [answer.text for answer in answers] == ["/items/1", "/items/3"]
    assert all(status_of(answer).startswith("gateway; hit") for answer in answers)
    assert api.asked == 5
    assert "gateway_taken_total 2.0" in new.metrics.render().decode()


async def test_a_started_worker_takes_them_by_itself(clock: TurnedClock, redis_store: RedisStore) -> None:
    old, new = (gateway(upstream(), LONG, clock=clock, store=redis_store, warm_start=number) for number in (0, 1000))
    async with running(old) as client:
        await settled(old, client, "/items/1", "/items/1")
        await by_hand(old).publish()
        async with running(new), asyncio.timeout(30):
            while not new.engine.memory.statistics.entries:
                await asyncio.sleep(0)


async def test_what_was_purged_is_not_taken_or_not_given(clock: TurnedClock, redis_store: RedisStore) -> None:
    api = upstream()
    old, new = (gateway(api, LONG, clock=clock, store=redis_store, warm_start=0) for _ in range(2))
    async with running(old) as client, running(new) as other:
        await settled(old, client, "/items/1", "/items/2", "/items/3")
        await by_hand(old).publish()
        await old.purge(tags=["item:1"])
        await new.purge(keys=["/items/2"])
        await by_hand(new).take()
        assert new.engine.memory.statistics.entries <= 2
        answers = [status_of(await other.get(f"/items/{number}")) for number in (1, 2, 3)]
    assert [answer.startswith("gateway; hit") for answer in answers] == [False, False, True]


async def test_variants_are_taken_with_the_index_that_selects_them(clock: TurnedClock, redis_store: RedisStore) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        headers = {"cache-control": "max-age=600", "vary": "accept-language"}
        return httpx.Response(200, text=request.headers["accept-language"], headers=headers)

    api = StubUpstream(answer)
    old, new = (gateway(api, LONG, clock=clock, store=redis_store, warm_start=0) for _ in range(2))
    async with running(old) as client, running(new) as other:
        for language in ("de", "fr"):
            await client.get("/items/1", headers={"accept-language": language})
        await old.engine.settle()
        await by_hand(old).publish()
        assert await by_hand(new).take() == 2
        before = redis_store.statistics.reads
        answers = [await other.get("/items/1", headers={"accept-language": language}) for language in ("de", "fr")]
        assert redis_store.statistics.reads == before
    assert [answer.text for answer in answers] == ["de", "fr"]
    assert api.asked == 2


async def test_it_goes_by_small_batches_and_leaves_half_of_the_memory(
    clock: TurnedClock, redis_store: RedisStore
) -> None:
    big = StubUpstream(lambda request: httpx.Response(200, content=bytes(20_000), headers=FRESH))
    old = gateway(big, LONG, clock=clock, store=redis_store, warm_start=0)
    new = gateway(big, LONG, clock=clock, store=redis_store, warm_start=0, memory="1MiB")
    async with running(old) as client, running(new):
        await settled(old, client, *(f"/items/{number}" for number in range(100)))
        await by_hand(old).publish()
        before = redis_store.statistics.batches
        taken = await by_hand(new).take()
        rounds = redis_store.statistics.batches - before
    # 20 KB each: a batch of 32 passes half of one MiB, and is the last.
    assert taken == BATCH
    assert rounds <= 1 + 2 + 1


@pytest.mark.parametrize("planted", [b"\x80\x04pickled", b"", b"\x93\x01\x02\x03"])
async def test_a_list_that_means_nothing_is_none(clock: TurnedClock, redis_store: RedisStore, planted: bytes) -> None:
    app = gateway(upstream(), LONG, clock=clock, store=redis_store, warm_start=0)
    async with running(app):
        await redis_store.write([(NAME, planted, 60.0)])
        assert await by_hand(app).take() == 0


async def test_a_record_under_another_ones_name_is_not_taken(clock: TurnedClock, redis_store: RedisStore) -> None:
    old, new = (gateway(upstream(), LONG, clock=clock, store=redis_store, warm_start=0) for _ in range(2))
    async with running(old) as client, running(new):
        await settled(old, client, "/items/1")
        await by_hand(old).publish()
        (name,) = [name async for name in redis_store._client.scan_iter(redis_store._prefix + "e:*")]
        await redis_store._client.set(name, b"planted")
        assert await by_hand(new).take() == 0
    assert new.engine.tiers.unreadable == 1


async def test_a_worker_that_has_little_keeps_the_list_before(clock: TurnedClock, redis_store: RedisStore) -> None:
    old, new = (gateway(upstream(), LONG, clock=clock, store=redis_store, warm_start=0) for _ in range(2))
    async with running(old) as client, running(new) as other:
        await settled(old, client, "/items/1", "/items/2")
        await by_hand(old).publish()
        # Redis evicts the responses, not the list.
        async for name in redis_store._client.scan_iter(redis_store._prefix + "e:*"):
            await redis_store._client.delete(name)
        worker = by_hand(new)
        assert await worker.take() == 0
        await settled(new, other, "/items/3")
        await worker.publish()
        (data,) = await redis_store.read([NAME])
    listed = warm_start._read(data)
    assert len(listed) == 3
    assert "/items/3" in listed[0]


async def test_without_redis_or_with_0_nothing_runs(clock: TurnedClock, redis_store: RedisStore) -> None:
    for app in (
        gateway(upstream(), LONG, clock=clock),
        gateway(upstream(), LONG, clock=clock, store=redis_store, warm_start=0),
    ):
        async with running(app):
            assert app.worker_state.hottest._task is None


async def test_forms_of_a_response_that_lie_in_memory_alone_are_not_listed(clock: TurnedClock) -> None:
    text = StubUpstream(
        lambda request: httpx.Response(200, text="text " * 1000, headers=FRESH | {"content-type": "text/plain"})
    )
    app = gateway(text, LONG, clock=clock, compression=["gzip"])
    async with running(app) as client:
        await settled(app, client, "/items/1", "/items/1")
        async with asyncio.timeout(30):
            while len(app.engine.memory) < 2:
                await client.get("/items/1", headers={"accept-encoding": "gzip"})
        assert len(app.engine.memory.hottest(10)) == 1
