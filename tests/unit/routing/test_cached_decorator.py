"""`@cached` on FastAPI handlers, asked as a client asks."""

from __future__ import annotations

import asyncio

import pytest

from gateway.cache.redis.store import RedisStore
from gateway.testing import StubUpstream, TurnedClock, running
from tests.support import shop_routes
from tests.support.gateways import gateway, json_answer
from tests.support.shop_routes import shop


async def test_a_model_comes_back_on_a_hit_as_it_was(clock: TurnedClock) -> None:
    async with running(shop(clock)) as client:
        first, second = await client.get("/products/7/summary"), await client.get("/products/7/summary")
    assert first.json() == second.json() == {"id": 7, "name": "item at /v2/items/7", "secret": None}
    assert second.headers["content-type"] == "application/json"
    assert second.headers["cache-status"].startswith("gateway; hit; ttl=")
    assert shop_routes.calls["summary"] == 1


async def test_the_response_model_filters_and_the_status_and_headers_stay(clock: TurnedClock) -> None:
    async with running(shop(clock)) as client:
        for _ in range(2):
            response = await client.get("/filtered/7")
            assert (response.status_code, response.json()) == (203, {"id": 7, "name": "filtered"})
            assert response.headers["x-made-by"] == "handler"
    assert shop_routes.calls["filtered"] == 1


async def test_a_raw_response_comes_back_byte_for_byte(clock: TurnedClock) -> None:
    async with running(shop(clock)) as client:
        responses = [await client.get("/raw") for _ in range(2)]
    assert {response.content for response in responses} == {bytes(range(256))}
    assert {response.headers["x-own"] for response in responses} == {"1"}
    assert shop_routes.calls["raw"] == 1


@pytest.mark.parametrize(("path", "body"), [("/missing", {"why": "none"}), ("/raised", None)])
async def test_a_404_stays_a_404_and_is_remembered_for_negative_ttl(
    clock: TurnedClock, path: str, body: dict[str, str] | None
) -> None:
    async with running(shop(clock)) as client:
        for _ in range(2):
            response = await client.get(path)
            assert response.status_code == 404
            assert body is None or response.json() == body
        assert shop_routes.calls[path[1:]] == 1
        clock.turn(5)
        await client.get(path)
    assert shop_routes.calls[path[1:]] == 2


async def test_a_raised_404_keeps_its_headers_and_names_no_other_request(clock: TurnedClock) -> None:
    async with running(shop(clock)) as client:
        responses = [await client.get("/raised") for _ in range(2)]
    assert {response.headers["x-reason"] for response in responses} == {"test"}
    assert "request_id" not in responses[1].json()


async def test_concurrent_callers_share_one_call(clock: TurnedClock) -> None:
    shop_routes.gate.clear()
    async with running(shop(clock)) as client:
        waiting = [asyncio.ensure_future(client.get("/slow")) for _ in range(50)]
        while shop_routes.calls["slow"] < 1:
            await asyncio.sleep(0)
        shop_routes.gate.set()
        responses = await asyncio.gather(*waiting)
    assert {response.text for response in responses} == {'{"call":1}'}


async def test_a_dependency_that_refuses_refuses_on_a_hit_too(clock: TurnedClock) -> None:
    async with running(shop(clock)) as client:
        assert (await client.get("/guarded", headers={"x-token": "good"})).status_code == 200
        assert (await client.get("/guarded", headers={"x-token": "bad"})).status_code == 403
        assert (await client.get("/guarded", headers={"x-token": "good"})).json() == {"token": "good"}
    assert shop_routes.calls["allowed"] == 3
    assert shop_routes.calls["guarded"] == 1


async def test_a_header_that_a_dependency_declares_is_part_of_the_key(clock: TurnedClock) -> None:
    async with running(shop(clock)) as client:
        for token in ("one", "two", "one"):
            assert (await client.get("/guarded", headers={"x-token": token})).json() == {"token": token}
    assert shop_routes.calls["guarded"] == 2


async def test_undeclared_query_parameters_do_not_split_the_cache(clock: TurnedClock) -> None:
    async with running(shop(clock)) as client:
        for query in ("q=a", "q=a&cachebuster=1", "utm_source=x&q=a"):
            assert (await client.get(f"/search?{query}")).json() == {"q": "a"}
        assert (await client.get("/search?q=b")).json() == {"q": "b"}
    assert shop_routes.calls["search"] == 2


async def test_a_handler_that_takes_the_request_is_keyed_by_the_whole_query(clock: TurnedClock) -> None:
    async with running(shop(clock)) as client:
        assert (await client.get("/echo?a=1")).json() == {"a": "1"}
        assert (await client.get("/echo?a=2")).json() == {"a": "2"}


async def test_headers_of_dependencies_belong_to_their_own_request(clock: TurnedClock) -> None:
    async with running(shop(clock)) as client:
        stamps = [(await client.get("/stamped")).headers["x-stamp"] for _ in range(3)]
    assert stamps == ["1", "2", "3"]
    assert shop_routes.calls["stamped"] == 1


async def test_a_streamed_response_is_kept_whole(clock: TurnedClock) -> None:
    async with running(shop(clock)) as client:
        assert [(await client.get("/streamed")).text for _ in range(2)] == ["one two"] * 2
    assert shop_routes.calls["streamed"] == 1


async def test_an_error_of_the_handler_is_a_500_for_all_and_not_stored(clock: TurnedClock) -> None:
    async with running(shop(clock)) as client:
        for _ in range(2):
            response = await client.get("/broken")
            assert response.status_code == 500
            assert response.headers["content-type"] == "application/problem+json"
            assert response.json()["title"] == "Internal Server Error"
            assert "RuntimeError" not in response.text
    assert shop_routes.calls["broken"] == 2


async def test_a_handler_may_decide_its_own_life(clock: TurnedClock) -> None:
    async with running(shop(clock)) as client:
        await client.get("/own")
        clock.turn(9)
        assert (await client.get("/own")).json() == {"call": 1}
        clock.turn(2)
        assert (await client.get("/own")).json() == {"call": 2}


async def test_an_unsafe_method_is_never_cached(clock: TurnedClock) -> None:
    async with running(shop(clock)) as client:
        assert [(await client.post("/orders")).json() for _ in range(2)] == [{"order": 1}, {"order": 2}]


async def test_a_request_with_authorization_goes_by_the_cache(clock: TurnedClock) -> None:
    async with running(shop(clock)) as client:
        for _ in range(2):
            response = await client.get("/search?q=a", headers={"authorization": "Bearer x"})
            assert response.headers["cache-status"] == "gateway; fwd=bypass; detail=authorization"
    assert shop_routes.calls["search"] == 2


async def test_the_response_model_stays_in_openapi_without_the_decorators_own_parameters(clock: TurnedClock) -> None:
    async with running(shop(clock)) as client:
        document = (await client.get("/openapi.json")).json()
    operation = document["paths"]["/products/{id}/summary"]["get"]
    assert [parameter["name"] for parameter in operation["parameters"]] == ["id"]
    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/Summary"}


async def test_two_gateways_share_a_handlers_answers_through_redis(clock: TurnedClock, redis_store: RedisStore) -> None:
    config = {"include": ["tests.support.shop_routes:router"]}
    apps = [gateway(StubUpstream(json_answer()), {}, clock=clock, store=redis_store, **config) for _ in range(2)]
    async with running(apps[0]) as first, running(apps[1]) as second:
        original = await first.get("/raw")
        await apps[0].engine.settle()
        assert (await second.get("/raw")).content == original.content
    assert shop_routes.calls["raw"] == 1
