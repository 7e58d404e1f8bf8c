"""Entries made of responses: which are stored, freshened by a 304, or completed from parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx

from gateway.server.embedded_redis import Embedded
from gateway.testing import StubUpstream, TurnedClock, running
from tests.support.gateways import THIRTY, gateway, json_answer, status_of


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


async def test_a_body_over_the_limit_streams_through_uncached(clock: TurnedClock) -> None:
    upstream = StubUpstream(lambda request: httpx.Response(200, content=b"x" * 5000))
    async with running(gateway(upstream, THIRTY, clock=clock, max_body="4KiB")) as client:
        for _ in range(2):
            response = await client.get("/items/7")
            assert len(response.content) == 5000
            assert "detail=too-large" in status_of(response)
    assert upstream.asked == 2


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
