"""Memory and the shared tier as one store."""

from __future__ import annotations

import httpx
import pytest

from gateway.cache.redis.store import RedisStore
from gateway.server.embedded_redis import Embedded
from gateway.testing import StubUpstream, TurnedClock, running
from tests.support.gateways import THIRTY, gateway, json_answer, status_of


async def test_what_one_gateway_stored_another_finds_in_redis(clock: TurnedClock, redis_store: RedisStore) -> None:
    upstream = StubUpstream(json_answer())
    first, second = (gateway(upstream, THIRTY, clock=clock, store=redis_store) for _ in range(2))
    async with running(first) as client:
        original = await client.get("/items/7")
        await first.engine.settle()
        async with running(second) as other:
            found = await other.get("/items/7")
    assert found.content == original.content
    assert second.engine.memory.statistics.entries == 1
    assert upstream.asked == 1


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(
            200,
            content=bytes(range(256)),
            headers=[(f"x-header-{number}", f"value {number}") for number in range(40)]
            + [
                ("vary", "Accept-Language"),
                ("vary", "X-Plan"),
                ("cache-control", "max-age=60"),
                ("link", "<a>"),
                ("link", "<b>"),
            ],
        ),
        httpx.Response(404, content=b"not here", headers={"cache-control": "max-age=60", "x-why": "gone"}),
        httpx.Response(201, content=b"made", headers={"cache-control": "max-age=60", "location": "/made"}),
    ],
    ids=["40 headers, two Vary lines, binary", "404", "201"],
)
async def test_an_answer_comes_back_as_it_was_from_memory_and_from_redis(
    clock: TurnedClock, redis_store: RedisStore, answer: httpx.Response
) -> None:
    upstream = StubUpstream(lambda request: answer)
    asked = {"accept-language": "de", "x-plan": "gold"}
    first, second = (gateway(upstream, clock=clock, store=redis_store) for _ in range(2))
    async with running(first) as client, running(second) as other:
        fresh = await client.get("/thing", headers=asked)
        memory = await client.get("/thing", headers=asked)
        await first.engine.settle()
        redis = await other.get("/thing", headers=asked)
    assert upstream.asked == 1
    for response in (memory, redis):
        assert status_of(response).startswith("gateway; hit")
        assert (response.status_code, response.content) == (fresh.status_code, fresh.content)
        assert lasting(response) == lasting(fresh)


def lasting(response: httpx.Response) -> list[tuple[str, str]]:
    own = {"x-request-id", "x-process-time", "server-timing", "cache-status", "age"}
    return sorted((k, v) for k, v in response.headers.multi_items() if k not in own)


async def test_an_unreadable_record_in_redis_is_a_counted_miss(valkey: Embedded, clock: TurnedClock) -> None:
    store = RedisStore(valkey.url, prefix="unreadable:", budget=1.0)
    upstream = StubUpstream(json_answer())
    app = gateway(upstream, THIRTY, clock=clock, store=store)
    async with running(app) as client:
        await client.get("/items/7")
        await app.engine.settle()
        names = [name async for name in store._client.scan_iter("unreadable:e:*")]
        for name in names:
            await store._client.set(name, b"\x80\x04pickled")
        app.engine.memory.clear()
        response = await client.get("/items/7")
    assert response.json() == {"n": 2}
    assert app.engine.tiers.unreadable >= 1


async def test_without_redis_requests_are_answered_from_memory(clock: TurnedClock) -> None:
    store = RedisStore("unix:///nonexistent/redis.sock", budget=0.05)
    upstream = StubUpstream(json_answer())
    app = gateway(upstream, THIRTY, clock=clock, store=store)
    async with running(app) as client:
        for _ in range(10):
            assert (await client.get("/items/7")).json() == {"n": 1}
    assert not store.available
    assert store.statistics.failures <= 3


async def test_a_route_that_follows_its_upstream_does_not_take_what_one_with_a_duration_stored(
    clock: TurnedClock,
) -> None:
    """The upstream varies on a field that the other route neither forwards nor counts."""

    def answer(request: httpx.Request) -> httpx.Response:
        device = request.headers.get("x-device", "none")
        return httpx.Response(200, text=device, headers={"vary": "x-device", "cache-control": "max-age=60"})

    routes = {
        "short": {"path": "/short", "upstream": "api", "upstream_path": "/thing", "ttl": "30s", "vary": []},
        "thing": {"path": "/thing", "upstream": "api"},
    }
    upstream = StubUpstream(answer)
    async with running(gateway(upstream, routes, clock=clock)) as client:
        assert (await client.get("/short", headers={"x-device": "1"})).text == "none"
        for device in ("1", "2", "1", "2"):
            assert (await client.get("/thing", headers={"x-device": device})).text == device
        assert (await client.get("/short", headers={"x-device": "2"})).text == "none"
    assert upstream.asked == 3
