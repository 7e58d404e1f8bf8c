"""The way of a request through policy, stores, flight and upstream, asked as a client asks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from gateway.cache.redis.store import RedisStore
from gateway.clock import SystemClock
from gateway.server.embedded_redis import Embedded
from gateway.testing import StubUpstream, TurnedClock, running
from tests.support.gateways import gateway, json_answer, status_of

THIRTY = {"item": {"path": "/items/{id}", "upstream": "api", "ttl": "30s"}}


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
    async with running(gateway(upstream, THIRTY, clock=clock)) as client:
        waiting = [asyncio.ensure_future(client.get("/items/7")) for _ in range(500)]
        await upstream.came.acquire()
        while sum(flight.waiting for flight in client._transport.app.engine.flights.values()) < 500:  # type: ignore[attr-defined]
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
    async with running(gateway(upstream, THIRTY, clock=clock)) as client:
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


async def test_a_stale_entry_is_validated_and_the_304_makes_it_fresh(clock: TurnedClock) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.headers.get("if-none-match") == '"v1"':
            return httpx.Response(304, headers={"etag": '"v1"', "cache-control": "max-age=10", "x-new": "yes"})
        return httpx.Response(200, text="body", headers={"etag": '"v1"', "cache-control": "max-age=10"})

    upstream = StubUpstream(answer)
    async with running(gateway(upstream, clock=clock)) as client:
        await client.get("/page")
        clock.turn(11)
        revalidated, hit = await client.get("/page"), await client.get("/page")
    assert (revalidated.text, revalidated.headers["x-new"]) == ("body", "yes")
    assert "fwd-status=304" in status_of(revalidated)
    assert status_of(hit).startswith("gateway; hit")
    assert upstream.asked == 2


async def test_a_304_about_another_representation_is_not_believed(clock: TurnedClock) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if "if-none-match" in request.headers:
            return httpx.Response(304, headers={"etag": '"other"'})
        return httpx.Response(200, text="body", headers={"etag": '"v1"', "cache-control": "max-age=10"})

    upstream = StubUpstream(answer)
    async with running(gateway(upstream, clock=clock)) as client:
        await client.get("/page")
        clock.turn(11)
        response = await client.get("/page")
    assert (response.status_code, response.text) == (200, "body")
    assert [("if-none-match" in request.headers) for request in upstream.requests] == [False, True, False]


async def test_a_client_that_has_it_already_gets_304(clock: TurnedClock) -> None:
    async with running(gateway(StubUpstream(json_answer(etag='W/"a"')), THIRTY, clock=clock)) as client:
        first = await client.get("/items/7")
        for condition in ('W/"a"', '"x", "a"', "*"):
            response = await client.get("/items/7", headers={"if-none-match": condition})
            assert (response.status_code, response.content) == (304, b"")
            assert response.headers["etag"] == first.headers["etag"]
        assert (await client.get("/items/7", headers={"if-none-match": '"b"'})).status_code == 200


async def test_an_answer_without_a_tag_gets_one_that_every_worker_makes_the_same(clock: TurnedClock) -> None:
    tags = set()
    for _ in range(2):
        async with running(gateway(StubUpstream(json_answer()), THIRTY, clock=clock)) as client:
            response = await client.get("/items/7")
            tags.add(response.headers["etag"])
            again = await client.get("/items/7", headers={"if-none-match": response.headers["etag"]})
            assert again.status_code == 304
    assert len(tags) == 1


async def test_the_gateways_own_tag_never_goes_upstream(clock: TurnedClock) -> None:
    upstream = StubUpstream(json_answer(last_modified="Sun, 06 Nov 1994 08:49:37 GMT"))
    async with running(gateway(upstream, THIRTY, clock=clock)) as client:
        await client.get("/items/7")
        clock.turn(31)
        await client.get("/items/7")
    assert "if-none-match" not in upstream.requests[1].headers
    assert upstream.requests[1].headers["if-modified-since"] == "Sun, 06 Nov 1994 08:49:37 GMT"


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
    async with running(gateway(upstream, clock=clock)) as client:
        reading = asyncio.ensure_future(client.get("/items/7"))
        await upstream.came.acquire()
        clock.turn(1)
        await client._transport.app.engine.invalidate(["api\n/items/7"])  # type: ignore[attr-defined]
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


async def test_a_range_of_a_stored_response_is_answered_from_it(clock: TurnedClock) -> None:
    upstream = StubUpstream(lambda request: httpx.Response(200, content=b"0123456789", headers={"etag": '"v1"'}))
    async with running(gateway(upstream, THIRTY, clock=clock)) as client:
        await client.get("/items/7")
        part = await client.get("/items/7", headers={"range": "bytes=2-4"})
        assert (part.status_code, part.content) == (206, b"234")
        assert part.headers["content-range"] == "bytes 2-4/10"
        beyond = await client.get("/items/7", headers={"range": "bytes=20-"})
        assert (beyond.status_code, beyond.headers["content-range"]) == (416, "bytes */10")
        other = await client.get("/items/7", headers={"range": "bytes=2-4", "if-range": '"v2"'})
        assert (other.status_code, other.content) == (200, b"0123456789")
    assert upstream.asked == 1


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


async def test_a_stored_part_answers_ranges_within_it(clock: TurnedClock) -> None:
    def ranged(request: httpx.Request) -> httpx.Response:
        headers = {"content-range": "bytes 2-5/10", "cache-control": "max-age=60"}
        return httpx.Response(206, content=b"2345", headers=headers)

    upstream = StubUpstream(ranged)
    async with running(gateway(upstream, clock=clock)) as client:
        await client.get("/film", headers={"range": "bytes=2-5"})
        inside = await client.get("/film", headers={"range": "bytes=3-4"})
        assert (inside.content, inside.headers["content-range"]) == (b"34", "bytes 3-4/10")
        assert upstream.asked == 1
        await client.get("/film", headers={"range": "bytes=5-7"})
    assert upstream.asked == 2


def serving_ranges(body: bytes, tag: Callable[[], str]) -> Callable[[httpx.Request], httpx.Response]:
    """An upstream's answers by RFC 9110 §14, of a representation with `tag`."""

    def answer(request: httpx.Request) -> httpx.Response:
        headers = {"etag": tag(), "cache-control": "max-age=60"}
        wanted = request.headers.get("range", "")
        if not wanted or request.headers.get("if-range", tag()) != tag():
            return httpx.Response(200, content=body, headers=headers)
        start, _, end = wanted.removeprefix("bytes=").partition("-")
        piece = body[int(start) : int(end) + 1] if end else body[int(start) :]
        headers["content-range"] = f"bytes {start}-{int(start) + len(piece) - 1}/{len(body)}"
        return httpx.Response(206, content=piece, headers=headers)

    return answer


async def test_a_stored_part_is_completed_by_asking_for_the_rest(clock: TurnedClock) -> None:
    upstream = StubUpstream(serving_ranges(b"0123456789", lambda: '"v1"'))
    async with running(gateway(upstream, clock=clock)) as client:
        await client.get("/film", headers={"range": "bytes=0-3"})
        whole, again = await client.get("/film"), await client.get("/film")
    assert (whole.status_code, whole.content) == (200, b"0123456789")
    assert "content-range" not in whole.headers
    assert status_of(whole).startswith("gateway; fwd=miss; stored")
    assert (again.content, status_of(again)) == (b"0123456789", "gateway; hit; ttl=60")
    assert [(r.headers.get("range"), r.headers.get("if-range")) for r in upstream.requests] == [
        ("bytes=0-3", None),
        ("bytes=4-", '"v1"'),
    ]


async def test_a_stored_part_of_what_has_changed_is_not_joined_to_the_rest(clock: TurnedClock) -> None:
    now = ['"v1"']
    upstream = StubUpstream(serving_ranges(b"0123456789", lambda: now[0]))
    async with running(gateway(upstream, clock=clock)) as client:
        await client.get("/film", headers={"range": "bytes=0-3"})
        now[0] = '"v2"'
        whole = await client.get("/film")
    assert (whole.status_code, whole.content, whole.headers["etag"]) == (200, b"0123456789", '"v2"')
    assert upstream.asked == 2


async def test_parts_asked_for_one_after_another_come_together(clock: TurnedClock) -> None:
    upstream = StubUpstream(serving_ranges(b"0123456789", lambda: '"v1"'))
    async with running(gateway(upstream, clock=clock)) as client:
        await client.get("/film", headers={"range": "bytes=0-3"})
        await client.get("/film", headers={"range": "bytes=4-6"})
        across = await client.get("/film", headers={"range": "bytes=2-5"})
        await client.get("/film", headers={"range": "bytes=7-"})
        whole = await client.get("/film")
    assert (across.content, whole.content) == (b"2345", b"0123456789")
    assert upstream.asked == 3


async def test_an_upstream_that_joins_parts_wrongly_is_asked_for_the_whole(clock: TurnedClock) -> None:
    def deceiving(request: httpx.Request) -> httpx.Response:
        headers = {"etag": '"v1"', "cache-control": "max-age=60"}
        if "if-range" in request.headers:
            return httpx.Response(206, content=b"XX", headers={**headers, "content-range": "bytes 8-9/10"})
        return serving_ranges(b"0123456789", lambda: '"v1"')(request)

    upstream = StubUpstream(deceiving)
    async with running(gateway(upstream, clock=clock)) as client:
        await client.get("/film", headers={"range": "bytes=0-3"})
        whole = await client.get("/film")
    assert (whole.status_code, whole.content) == (200, b"0123456789")
    assert upstream.asked == 3


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


async def test_a_body_over_the_limit_streams_through_uncached(clock: TurnedClock) -> None:
    upstream = StubUpstream(lambda request: httpx.Response(200, content=b"x" * 5000))
    async with running(gateway(upstream, THIRTY, clock=clock, max_body="4KiB")) as client:
        for _ in range(2):
            response = await client.get("/items/7")
            assert len(response.content) == 5000
            assert "detail=too-large" in status_of(response)
    assert upstream.asked == 2


async def test_what_was_too_large_is_not_collected_in_vain_for_a_while(clock: TurnedClock) -> None:
    sizes = iter((5000, 10, 10))
    upstream = StubUpstream(lambda request: httpx.Response(200, content=b"x" * next(sizes)))
    async with running(gateway(upstream, THIRTY, clock=clock, max_body="4KiB")) as client:
        for size in (5000, 10):
            response = await client.get("/items/7")
            assert (len(response.content), "detail=too-large" in status_of(response)) == (size, True)
        clock.turn(5.1)  # `hit_for_miss`, since it was seen to be too large
        assert "stored" in status_of(await client.get("/items/7"))


async def test_an_answer_whose_end_is_in_doubt_is_not_stored(clock: TurnedClock) -> None:
    class Unending(httpx.AsyncByteStream):
        async def __aiter__(self) -> Any:
            yield b"perhaps all"

    upstream = StubUpstream(lambda request: httpx.Response(200, stream=Unending()))
    async with running(gateway(upstream, THIRTY, clock=clock)) as client:
        for _ in range(2):
            assert (await client.get("/items/7")).text == "perhaps all"
    assert upstream.asked == 2


async def test_a_body_that_breaks_off_is_never_stored(clock: TurnedClock) -> None:
    class Broken(httpx.AsyncByteStream):
        async def __aiter__(self) -> Any:
            yield b"half"
            raise httpx.RemoteProtocolError("cut")

    upstream = StubUpstream(lambda request: httpx.Response(200, stream=Broken(), headers={"content-length": "8"}))
    async with running(gateway(upstream, THIRTY, clock=clock)) as client:
        assert (await client.get("/items/7")).status_code == 502
        upstream.answer = json_answer()
        assert (await client.get("/items/7")).json() == {"n": 1}


async def test_a_hanging_upstream_costs_its_deadline_and_is_a_504(clock: TurnedClock) -> None:
    upstream = StubUpstream(json_answer())
    upstream.gate.clear()
    settings = {"upstreams": {"api": {"url": "http://api.test", "timeout": "50ms"}}}
    async with running(gateway(upstream, THIRTY, clock=clock, **settings)) as client:
        response = await client.get("/items/7")
    assert response.status_code == 504
    assert response.json()["type"] == "/problems/gateway-timeout"


async def test_a_post_that_is_the_representation_of_its_target_serves_gets(clock: TurnedClock) -> None:
    headers = {"content-location": "/thing", "cache-control": "max-age=60"}
    upstream = StubUpstream(lambda request: httpx.Response(200, text=request.method, headers=headers))
    async with running(gateway(upstream, clock=clock)) as client:
        await client.post("/thing", content=b"{}")
        response = await client.get("/thing")
    assert (response.text, upstream.asked) == ("POST", 1)


async def test_a_post_that_is_the_representation_serves_gets_where_the_purges_are_in_redis(valkey: Embedded) -> None:
    headers = {"content-location": "/thing", "cache-control": "max-age=60"}
    upstream = StubUpstream(lambda request: httpx.Response(200, text=request.method, headers=headers))
    app = gateway(upstream, redis_url=valkey.url, redis_prefix="posted:", redis_budget="5s")
    async with running(app) as client:
        await client.post("/thing", content=b"{}")
        await app.engine.tiers.purged()  # the invalidation that the POST made holds from here on
        response = await client.get("/thing")
    assert (response.text, upstream.asked) == ("POST", 1)


# --- the second tier -----------------------------------------------------------------------------------------


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
    await store.start()
    seconds, _ = await store._client.time()
    assert abs(clock.now() - float(seconds)) < 2
    await store.aclose()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param({"gateway-cache-control": "max-age=60"}, id="stored"),
        pytest.param({"gateway-cache-control": "no-store"}, id="not stored"),
        pytest.param({"gateway-cache-control": "max-age=60", "vary": "*"}, id="for its client alone"),
        pytest.param({"gateway-cache-control": "max-age=60", "status": "500"}, id="a failure"),
    ],
)
async def test_the_gateways_own_field_goes_no_further(answer: dict[str, str], clock: TurnedClock) -> None:
    fields = {"cache-control": "max-age=5", **answer}
    status = int(fields.pop("status", "200"))
    upstream = StubUpstream(lambda request: httpx.Response(status, text="x", headers=fields))
    async with running(gateway(upstream, clock=clock)) as client:
        responses = [await client.get("/x"), await client.get("/x"), await client.post("/x"), await client.head("/y")]
    assert not [response for response in responses if "gateway-cache-control" in response.headers]
    assert {response.headers["cache-control"] for response in responses} == {"max-age=5"}


async def test_the_gateways_own_field_decides_before_the_others(clock: TurnedClock) -> None:
    upstream = StubUpstream(json_answer(gateway_cache_control="max-age=60", cache_control="no-store"))
    async with running(gateway(upstream, clock=clock)) as client:
        await client.get("/x")
        clock.turn(59)
        await client.get("/x")
        assert upstream.asked == 1
        clock.turn(2)
        await client.get("/x")
    assert upstream.asked == 2


async def test_cache_status_is_appended_to_an_upstreams_own(clock: TurnedClock) -> None:
    upstream = StubUpstream(json_answer(cache_status="origin-cache; hit", cache_control="max-age=60"))
    async with running(gateway(upstream, clock=clock)) as client:
        first, second = await client.get("/x"), await client.get("/x")
    assert first.headers.get_list("cache-status") == ["origin-cache; hit", status_of(first).rpartition(", ")[2]]
    assert second.headers.get_list("cache-status") == ["origin-cache; hit", "gateway; hit; ttl=60"]


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
