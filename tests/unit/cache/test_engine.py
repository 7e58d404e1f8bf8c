"""The way of a request through policy, stores, flight and upstream, asked as a client asks."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from gateway.cache.redis.store import RedisStore
from gateway.clock import SystemClock
from gateway.server.embedded_redis import Embedded
from gateway.testing import StubUpstream, TurnedClock, running
from tests.support.gateways import THIRTY, contact, gateway, json_answer, status_of


async def test_the_second_request_is_a_hit_and_the_upstream_is_asked_once(clock: TurnedClock) -> None:
    upstream = StubUpstream(json_answer())
    async with running(gateway(upstream, THIRTY, clock=clock)) as client:
        first, second = await client.get("/items/7"), await client.get("/items/7")
    assert status_of(first).startswith("gateway; fwd=miss; stored")
    assert status_of(second).startswith("gateway; hit; ttl=")
    assert first.content == second.content
    assert upstream.asked == 1


async def test_an_entry_past_its_ttl_is_fetched_again(clock: TurnedClock) -> None:
    upstream = StubUpstream(json_answer())
    async with running(gateway(upstream, THIRTY, clock=clock)) as client:
        await client.get("/items/7")
        clock.turn(30.1)
        response = await client.get("/items/7")
    assert response.json() == {"n": 2}
    assert status_of(response).startswith("gateway; fwd=stale; stored")


async def test_five_hundred_requests_for_a_cold_key_ask_the_upstream_once(clock: TurnedClock) -> None:
    upstream = StubUpstream(json_answer())
    upstream.gate.clear()
    app = gateway(upstream, THIRTY, clock=clock)
    async with running(app) as client:
        waiting = [asyncio.ensure_future(client.get("/items/7")) for _ in range(500)]
        await upstream.came.acquire()
        while sum(flight.waiting for flight in app.engine.flights.values()) < 500:
            await asyncio.sleep(0)
        upstream.gate.set()
        responses = await asyncio.gather(*waiting)
    assert upstream.asked == 1
    assert {response.text for response in responses} == {'{"n":1}'}
    assert sum("collapsed" in status_of(response) for response in responses) == 499


async def test_five_hundred_requests_for_a_stale_key_are_answered_at_once_and_refreshed_once(
    clock: TurnedClock,
) -> None:
    upstream = StubUpstream(json_answer())
    routes = {"item": {**THIRTY["item"], "stale_while_revalidate": "60s"}}
    app = gateway(upstream, routes, clock=clock)
    async with running(app) as client:
        await client.get("/items/7")
        clock.turn(31)
        upstream.gate.clear()
        responses = await asyncio.gather(*(client.get("/items/7") for _ in range(500)))
        assert {response.text for response in responses} == {'{"n":1}'}
        assert all(status_of(response).startswith("gateway; hit; ttl=-") for response in responses)
        upstream.gate.set()
        await app.engine.settle()
        assert (await client.get("/items/7")).json() == {"n": 2}
    assert upstream.asked == 2


async def test_uncacheable_answers_of_two_users_never_cross(clock: TurnedClock) -> None:
    def personal(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text=request.headers["x-user"], headers={"cache-control": "private, max-age=60"})

    upstream = StubUpstream(personal)
    upstream.gate.clear()
    async with running(gateway(upstream, clock=clock)) as client:
        waiting = [
            asyncio.ensure_future(client.get("/me", headers={"x-user": f"user {number}"})) for number in range(100)
        ]
        await upstream.came.acquire()
        upstream.gate.set()
        responses = await asyncio.gather(*waiting)
    assert [response.text for response in responses] == [f"user {number}" for number in range(100)]
    assert upstream.asked == 100


async def test_after_an_uncacheable_answer_requests_do_not_wait_for_each_other(clock: TurnedClock) -> None:
    upstream = StubUpstream(json_answer(cache_control="no-store"))
    async with running(gateway(upstream, clock=clock)) as client:
        await client.get("/live")
        upstream.gate.clear()
        waiting = [asyncio.ensure_future(client.get("/live")) for _ in range(3)]
        for _ in range(4):
            await upstream.came.acquire()
        upstream.gate.set()
        await asyncio.gather(*waiting)
    assert upstream.asked == 4


async def test_who_leaves_does_not_cancel_the_fetch_of_those_who_wait(clock: TurnedClock) -> None:
    upstream = StubUpstream(json_answer())
    upstream.gate.clear()
    async with running(gateway(upstream, THIRTY, clock=clock)) as client:
        leaving = asyncio.ensure_future(client.get("/items/7"))
        await upstream.came.acquire()
        staying = asyncio.ensure_future(client.get("/items/7"))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.wait((leaving,))
        upstream.gate.set()
        assert (await staying).json() == {"n": 1}
    assert upstream.asked == 1


async def test_those_who_wait_for_another_variant_fetch_their_own(clock: TurnedClock) -> None:
    def speak(request: httpx.Request) -> httpx.Response:
        language = request.headers["accept-language"]
        return httpx.Response(200, text=language, headers={"cache-control": "max-age=60", "vary": "Accept-Language"})

    upstream = StubUpstream(speak)
    upstream.gate.clear()
    async with running(gateway(upstream, clock=clock)) as client:
        languages = ["de", "en", "de", "en", "fr"]
        waiting = [asyncio.ensure_future(client.get("/hello", headers={"accept-language": each})) for each in languages]
        await upstream.came.acquire()
        upstream.gate.set()
        assert [response.text for response in await asyncio.gather(*waiting)] == languages
        assert (await client.get("/hello", headers={"accept-language": "fr"})).text == "fr"
    assert upstream.asked == 3


async def test_a_failure_is_shared_by_those_who_wait_and_never_stored(clock: TurnedClock) -> None:
    upstream = StubUpstream(lambda request: httpx.Response(500, text="broken"))
    upstream.gate.clear()
    app = gateway(upstream, THIRTY, clock=clock)
    async with running(app) as client:
        waiting = [asyncio.ensure_future(client.get("/items/7")) for _ in range(10)]
        await upstream.came.acquire()
        upstream.gate.set()
        responses = await asyncio.gather(*waiting)
        assert {(response.status_code, response.text) for response in responses} == {(500, "broken")}
        assert upstream.asked == 1
        await client.get("/items/7")
    assert upstream.asked == 2


@pytest.mark.parametrize("failure", [503, httpx.ConnectError("refused"), httpx.ReadTimeout("silent")], ids=str)
async def test_a_stale_answer_stands_in_for_a_failing_upstream(clock: TurnedClock, failure: Any) -> None:
    upstream = StubUpstream(json_answer())
    async with running(gateway(upstream, THIRTY, clock=clock)) as client:
        await client.get("/items/7")
        clock.turn(31)
        upstream.answer = failing(failure)
        response = await client.get("/items/7")
        assert (response.status_code, response.json()) == (200, {"n": 1})
        assert "fwd=stale" in status_of(response)
        clock.turn(700)
        response = await client.get("/items/7")
        assert response.status_code >= 500


async def test_while_a_stale_answer_stands_in_the_upstream_is_probed_once_an_interval(clock: TurnedClock) -> None:
    upstream = StubUpstream(json_answer())
    async with running(gateway(upstream, THIRTY, clock=clock, retry_after="2s")) as client:
        await client.get("/items/7")
        clock.turn(31)
        upstream.answer = failing(503)
        for _ in range(20):
            assert (await client.get("/items/7")).status_code == 200
        assert upstream.asked == 2
        clock.turn(2)
        await client.get("/items/7")
    assert upstream.asked == 3


async def test_a_failed_refresh_leaves_the_good_entry(clock: TurnedClock) -> None:
    upstream = StubUpstream(json_answer())
    app = gateway(upstream, {"item": {**THIRTY["item"], "stale_while_revalidate": "1h"}}, clock=clock)
    async with running(app) as client:
        await client.get("/items/7")
        clock.turn(31)
        upstream.answer = failing(503)
        await client.get("/items/7")
        await app.engine.settle()
        response = await client.get("/items/7")
    assert (response.status_code, response.json()) == (200, {"n": 1})


def failing(failure: Any) -> Any:
    def answer(request: httpx.Request) -> httpx.Response:
        if isinstance(failure, Exception):
            raise failure
        return httpx.Response(failure, text="failing")

    return answer


async def test_a_response_that_must_revalidate_is_not_served_stale_on_failure(clock: TurnedClock) -> None:
    upstream = StubUpstream(json_answer(cache_control="max-age=10, must-revalidate"))
    async with running(gateway(upstream, clock=clock)) as client:
        await client.get("/strict")
        clock.turn(11)
        upstream.answer = failing(httpx.ConnectError("refused"))
        response = await client.get("/strict")
    assert response.status_code == 502
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["request_id"] == response.headers["x-request-id"]
    assert "api.test" not in response.text


async def test_head_is_answered_from_a_stored_get(clock: TurnedClock) -> None:
    upstream = StubUpstream(json_answer())
    async with running(gateway(upstream, THIRTY, clock=clock)) as client:
        whole = await client.get("/items/7")
        head = await client.head("/items/7")
    assert (head.content, head.headers["content-length"]) == (b"", str(len(whole.content)))
    assert upstream.asked == 1


async def test_a_cold_head_of_a_route_with_a_ttl_fetches_what_a_get_can_use(clock: TurnedClock) -> None:
    upstream = StubUpstream(json_answer())
    async with running(gateway(upstream, THIRTY, clock=clock)) as client:
        head, whole = await client.head("/items/7"), await client.get("/items/7")
    assert [request.method for request in upstream.requests] == ["GET"]
    assert head.content == b""
    assert status_of(whole).startswith("gateway; hit")


async def test_a_heads_answer_that_differs_makes_the_stored_get_void(clock: TurnedClock) -> None:
    upstream = StubUpstream(json_answer(etag='"v1"', cache_control="max-age=10"))
    async with running(gateway(upstream, clock=clock)) as client:
        await client.get("/page")
        clock.turn(11)
        upstream.answer = lambda request: httpx.Response(200, headers={"etag": '"v2"', "cache-control": "max-age=10"})
        await client.head("/page")
        upstream.answer = json_answer(etag='"v2"', cache_control="max-age=10")
        await client.get("/page")
    assert upstream.requests[2].headers.get("if-none-match") is None


@pytest.mark.parametrize(("status", "fresh_for"), [(404, 5), (410, 5)])
async def test_what_is_not_there_is_remembered_for_negative_ttl(
    clock: TurnedClock, status: int, fresh_for: float
) -> None:
    upstream = StubUpstream(lambda request: httpx.Response(status, text="none"))
    async with running(gateway(upstream, THIRTY, clock=clock)) as client:
        for _ in range(3):
            response = await client.get("/items/7")
            assert (response.status_code, response.text) == (status, "none")
        assert upstream.asked == 1
        clock.turn(fresh_for)
        await client.get("/items/7")
    assert upstream.asked == 2


async def test_a_successful_unsafe_request_makes_its_target_void_in_every_variant(clock: TurnedClock) -> None:
    upstream = StubUpstream(json_answer(cache_control="max-age=60", vary="Accept-Language"))
    async with running(gateway(upstream, clock=clock)) as client:
        for language in ("de", "en"):
            await client.get("/items/7", headers={"accept-language": language})
        await client.put("/items/7", content=b"new")
        for language in ("de", "en"):
            response = await client.get("/items/7", headers={"accept-language": language})
            assert "hit" not in status_of(response)
    assert upstream.asked == 5


async def test_a_failed_unsafe_request_voids_nothing(clock: TurnedClock) -> None:
    upstream = StubUpstream(json_answer(cache_control="max-age=60"))
    async with running(gateway(upstream, clock=clock)) as client:
        await client.get("/items/7")
        upstream.answer = failing(500)
        await client.delete("/items/7")
        assert status_of(await client.get("/items/7")).startswith("gateway; hit")


async def test_what_is_fetched_while_its_target_is_changed_is_not_kept(clock: TurnedClock) -> None:
    upstream = StubUpstream(json_answer(cache_control="max-age=60"))
    upstream.gate.clear()
    app = gateway(upstream, clock=clock)
    async with running(app) as client:
        reading = asyncio.ensure_future(client.get("/items/7"))
        await upstream.came.acquire()
        clock.turn(1)
        await app.engine.invalidate(["api\n/items/7"])
        upstream.gate.set()
        await reading
        assert "hit" not in status_of(await client.get("/items/7"))
    assert upstream.asked == 2


async def test_location_of_an_unsafe_answer_is_made_void_too(clock: TurnedClock) -> None:
    upstream = StubUpstream(json_answer(cache_control="max-age=60"))
    async with running(gateway(upstream, clock=clock)) as client:
        await client.get("/items/8")
        upstream.answer = lambda request: httpx.Response(201, headers={"location": "/items/8"})
        await client.post("/items", content=b"{}")
        upstream.answer = json_answer(cache_control="max-age=60")
        assert "hit" not in status_of(await client.get("/items/8"))


async def test_two_routes_share_a_target_with_different_ttls(clock: TurnedClock) -> None:
    routes = {
        "short": {"path": "/short/{id}", "upstream": "api", "upstream_path": "/items/{id}", "ttl": "10s"},
        "long": {"path": "/long/{id}", "upstream": "api", "upstream_path": "/items/{id}", "ttl": "60s"},
    }
    upstream = StubUpstream(json_answer())
    async with running(gateway(upstream, routes, clock=clock)) as client:
        await client.get("/short/7")
        assert status_of(await client.get("/long/7")).startswith("gateway; hit")
        clock.turn(20)
        assert status_of(await client.get("/long/7")).startswith("gateway; hit")
        assert (await client.get("/short/7")).json() == {"n": 2}


async def test_a_range_first_and_the_whole_after_are_both_right(clock: TurnedClock) -> None:
    def ranged(request: httpx.Request) -> httpx.Response:
        if "range" in request.headers:
            headers = {"content-range": "bytes 0-3/10", "cache-control": "max-age=60"}
            return httpx.Response(206, content=b"0123", headers=headers)
        return httpx.Response(200, content=b"0123456789", headers={"cache-control": "max-age=60"})

    upstream = StubUpstream(ranged)
    async with running(gateway(upstream, clock=clock)) as client:
        part = await client.get("/film", headers={"range": "bytes=0-3"})
        whole = await client.get("/film")
        again = await client.get("/film", headers={"range": "bytes=1-2"})
    assert (part.status_code, part.content) == (206, b"0123")
    assert (whole.status_code, whole.content) == (200, b"0123456789")
    assert (again.status_code, again.content) == (206, b"12")


async def test_only_if_cached_asks_no_upstream(clock: TurnedClock) -> None:
    upstream = StubUpstream(json_answer())
    async with running(gateway(upstream, THIRTY, clock=clock)) as client:
        response = await client.get("/items/7", headers={"cache-control": "only-if-cached"})
    assert (response.status_code, upstream.asked) == (504, 0)


async def test_no_store_of_a_client_stores_nothing(clock: TurnedClock) -> None:
    upstream = StubUpstream(json_answer())
    async with running(gateway(upstream, THIRTY, clock=clock)) as client:
        await client.get("/items/7", headers={"cache-control": "no-store"})
        assert "fwd=miss" in status_of(await client.get("/items/7"))


async def test_a_client_that_wants_validation_gets_a_new_answer_unless_the_route_ignores_it(
    clock: TurnedClock,
) -> None:
    for directive, count in (("honour", 2), ("ignore", 1)):
        upstream = StubUpstream(json_answer())
        routes = {"item": {**THIRTY["item"], "request_directives": directive}}
        async with running(gateway(upstream, routes, clock=clock)) as client:
            await client.get("/items/7")
            await client.get("/items/7", headers={"cache-control": "no-cache"})
        assert upstream.asked == count


async def test_what_was_too_large_is_not_collected_in_vain_for_a_while(clock: TurnedClock) -> None:
    sizes = iter((5000, 10, 10))
    upstream = StubUpstream(lambda request: httpx.Response(200, content=b"x" * next(sizes)))
    async with running(gateway(upstream, THIRTY, clock=clock, max_body="4KiB")) as client:
        for size in (5000, 10):
            response = await client.get("/items/7")
            assert (len(response.content), "detail=too-large" in status_of(response)) == (size, True)
        clock.turn(5.1)  # `hit_for_miss`, since it was seen to be too large
        assert "stored" in status_of(await client.get("/items/7"))


async def test_a_hanging_upstream_costs_its_deadline_and_is_a_504(clock: TurnedClock) -> None:
    upstream = StubUpstream(json_answer())
    upstream.gate.clear()
    settings = {"upstreams": {"api": {"url": "http://api.test", "timeout": "50ms"}}}
    async with running(gateway(upstream, THIRTY, clock=clock, **settings)) as client:
        response = await client.get("/items/7")
    assert response.status_code == 504
    assert response.json()["type"] == "/problems/gateway-timeout"


# --- the second tier -----------------------------------------------------------------------------------------


async def test_the_reads_of_one_loop_turn_are_one_round_trip(redis_store: RedisStore) -> None:
    await redis_store.write([("a", b"1", 60.0), ("b", b"2", 60.0)])
    before = redis_store.statistics.batches
    results = await asyncio.gather(*(redis_store.read(["a", "b", "missing"]) for _ in range(50)))
    assert results == [[b"1", b"2", None]] * 50
    assert redis_store.statistics.batches == before + 1


async def test_a_cancelled_read_never_leaves_its_reply_to_another(redis_store: RedisStore) -> None:
    values = [(f"key {number}", f"value {number}".encode(), 60.0) for number in range(200)]
    await redis_store.write(values)
    wrong = 0

    async def read(number: int) -> None:
        nonlocal wrong
        (value,) = await redis_store.read([f"key {number}"])
        wrong += value != f"value {number}".encode()

    for turn in range(20):
        tasks = [asyncio.ensure_future(read(number)) for number in range(200)]
        await asyncio.sleep(0)
        for task in tasks[turn % 3 :: 3]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert wrong == 0


async def test_redis_gives_the_clock_its_time(valkey: Embedded) -> None:
    clock = SystemClock()
    clock._offset -= 3600
    store = RedisStore(valkey.url, prefix="clock:", budget=1.0, clock=clock)
    await contact(store)
    seconds, _ = await store._client.time()
    assert abs(clock.now() - float(seconds)) < 2
    await store.aclose()
