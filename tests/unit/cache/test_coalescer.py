"""Who waits for another's fetch: nobody for what cannot be shared, and nobody longer than until that is known."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import uuid4

import httpx
import pytest

from gateway.cache import fetch
from gateway.cache.redis.store import RedisStore
from gateway.server.embedded_redis import Embedded
from gateway.testing import TurnedClock, running
from tests.support import waiting_routes
from tests.support.gateways import gateway, served
from tests.support.raw import Connection, raw_upstream
from tests.support.waiting import Held, N, crowd, waiting

FOLLOWING = {"all": {"path": "/{path:path}", "upstream": "api"}}


class Gated:
    """A body that ends when the test says so."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()

    async def pieces(self) -> AsyncIterator[bytes]:
        yield b"{"
        await self.gate.wait()
        yield b"}"


Asking = Callable[[int], Awaitable[httpx.Response]]


@pytest.mark.parametrize(
    "fields",
    [
        {"cache_control": "no-store"},
        {"cache_control": "private, max-age=60"},
        {"set_cookie": "a=b"},
        {"vary": "*"},
        {},
        {"cache_control": "no-cache", "etag": '"a"'},
        {"cache_control": "max-age=0", "etag": '"a"'},
        {"content_type": "text/event-stream", "cache_control": "max-age=60"},
    ],
    ids=str,
)
async def test_all_go_at_once_when_the_first_head_says_that_it_cannot_be_shared(
    fields: dict[str, str], clock: TurnedClock
) -> None:
    upstream, body = Held(), Gated()
    app = gateway(upstream, FOLLOWING, clock=clock)
    async with running(app) as client:
        asked = crowd(client)
        await upstream.have(1)
        await waiting(app, N)
        upstream.answer(0, body=body, **fields)
        await upstream.have(N)
        later = asyncio.ensure_future(client.get("/a"))
        await upstream.have(N + 1)
        body.gate.set()
        upstream.answer_all(**fields)
        assert {(await each).status_code for each in [*asked, later]} == {200}
    assert len(upstream.requests) == N + 1


async def test_after_what_is_stale_as_it_comes_nobody_waits(clock: TurnedClock) -> None:
    upstream = Held()
    async with running(gateway(upstream, FOLLOWING, clock=clock)) as client:
        first = crowd(client, 1)
        await upstream.have(1)
        upstream.answer(0, cache_control="no-cache", etag='"a"')
        await asyncio.gather(*first)
        asked = crowd(client)
        await upstream.have(N + 1)
        assert all(request.headers.get("if-none-match") == '"a"' for request in upstream.requests[1:])
        upstream.answer_all(304, b"", etag='"a"', cache_control="no-cache")
        assert {response.text for response in await asyncio.gather(*asked)} == {"{}"}


async def test_whoever_the_vary_of_a_head_excludes_leaves_at_once_and_each_variant_is_fetched_once(
    clock: TurnedClock,
) -> None:
    upstream, body = Held(), Gated()
    app = gateway(upstream, FOLLOWING, clock=clock)
    fields = {"vary": "x-shade", "cache_control": "max-age=60"}
    async with running(app) as client:
        asked = crowd(client, 12, **{"x-shade": lambda one: f"{one % 3}"})
        await upstream.have(1)
        await waiting(app, 12)
        upstream.answer(0, body=body, **fields)
        await upstream.have(3)
        await waiting(app, 12)
        body.gate.set()
        for index in (1, 2):
            upstream.answer(index, body=upstream.requests[index].headers["x-shade"].encode(), **fields)
        texts = [response.text for response in await asyncio.gather(*asked)]
    assert texts == ["{}", "1", "2"] * 4
    assert len(upstream.requests) == 3


@pytest.mark.parametrize("settings", [{"ttl": "0s"}, {"ttl": "30s", "cache": "off"}, {"cache": False}], ids=str)
async def test_what_is_never_cached_never_waits_and_is_never_stored(
    settings: dict[str, Any], clock: TurnedClock
) -> None:
    upstream = Held()
    app = gateway(upstream, {"all": {**FOLLOWING["all"], **settings}}, clock=clock)
    async with running(app) as client:
        asked = crowd(client)
        await upstream.have(N)
        upstream.answer_all(cache_control="max-age=60")
        assert {r.headers["cache-status"] for r in await asyncio.gather(*asked)} == {
            "gateway; fwd=bypass; fwd-status=200; detail=off"
        }
        again = crowd(client, 1)
        await upstream.have(N + 1)
        upstream.answer_all(503)
        assert [response.status_code for response in await asyncio.gather(*again)] == [503]


async def test_a_ttl_of_zero_with_a_stale_window_keeps_answers_for_it(clock: TurnedClock) -> None:
    upstream = Held()
    route = {**FOLLOWING["all"], "ttl": "0s", "stale_if_error": "10m"}
    async with running(gateway(upstream, {"all": route}, clock=clock)) as client:
        for index, status in enumerate((200, 503)):
            asked = crowd(client, 1)
            await upstream.have(index + 1)
            upstream.answer(index, status)
            assert (await asked[0]).text == "{}"


async def test_users_with_credentials_of_their_own_do_not_wait_for_each_other(clock: TurnedClock) -> None:
    upstream = Held()
    async with running(gateway(upstream, FOLLOWING, clock=clock)) as client:
        asked = crowd(client, 6, authorization=lambda one: f"Bearer {one}")
        await upstream.have(6)
        for index, request in enumerate(upstream.requests):
            upstream.answer(index, body=request.headers["authorization"].encode())
        assert [response.text for response in await asyncio.gather(*asked)] == [f"Bearer {one}" for one in range(6)]


async def test_what_is_stored_for_all_is_fetched_once_for_users_with_credentials(clock: TurnedClock) -> None:
    upstream = Held()
    app = gateway(upstream, FOLLOWING, clock=clock)
    async with running(app) as client:
        first = crowd(client, 1, authorization="Bearer 0")
        await upstream.have(1)
        upstream.answer(0, cache_control="public, max-age=60")
        await asyncio.gather(*first)
        clock.turn(61)
        asked = crowd(client, 6, authorization=lambda one: f"Bearer {one}")
        await upstream.have(2)
        await waiting(app, 6)
        upstream.answer(1, cache_control="public, max-age=60")
        assert {response.status_code for response in await asyncio.gather(*asked)} == {200}
    assert len(upstream.requests) == 2


@pytest.mark.alone  # the lease ends if its holder's event loop, which is this one, stands still for 0.6 s
async def test_who_waits_on_another_workers_lease_is_released_with_all_who_wait_behind_it(
    valkey: Embedded, clock: TurnedClock
) -> None:
    prefix, upstream = f"{uuid4().hex}:", Held()
    apps = [
        gateway(
            upstream,
            FOLLOWING,
            clock=clock,
            store=RedisStore(valkey.url, prefix=prefix, budget=5.0),
            upstreams={"api": {"url": "http://api.test", "timeout": "20s"}},
        )
        for _ in range(2)
    ]
    async with running(apps[0]) as one, running(apps[1]) as two:
        holder = crowd(one, 1)
        await upstream.have(1)
        asked = crowd(two)
        await waiting(apps[1], N)
        upstream.answer(0, cache_control="no-store")
        await upstream.have(1 + N)
        upstream.answer_all(cache_control="no-store")
        assert {response.status_code for response in await asyncio.gather(*holder, *asked)} == {200}


async def test_a_body_that_comes_as_it_is_made_is_passed_on_and_the_next_time_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fetch, "PAUSE", 0.05)
    more = asyncio.Semaphore(0)

    async def script(connection: Connection) -> None:
        while await connection.request():
            await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for number in range(3):
                await connection.send(b"1\r\n%d\r\n" % number)
                await more.acquire()
            await connection.send(b"0\r\n\r\n")

    routes = {"all": {"path": "/{path:path}", "upstream": "raw", "ttl": "60s"}}
    async with (
        raw_upstream(script) as raw,
        served(gateway(None, routes, upstreams={"raw": {"url": raw.url}})) as url,
        httpx.AsyncClient(base_url=url, timeout=5) as client,
    ):
        for _ in range(2):
            async with client.stream("GET", "/live") as response:
                assert "detail=endless" in response.headers["cache-status"]
                pieces = response.aiter_raw()
                for number in range(3):
                    assert await anext(pieces) == b"%d" % number
                    more.release()
                assert [piece async for piece in pieces] == []
            monkeypatch.setattr(fetch, "PAUSE", 60.0)


async def test_a_body_in_pieces_without_a_pause_is_stored(clock: TurnedClock) -> None:
    async def script(connection: Connection) -> None:
        while await connection.request():
            await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for _ in range(20):
                await connection.send(b"1\r\na\r\n")
                await asyncio.sleep(0)
            await connection.send(b"0\r\n\r\n")

    routes = {"all": {"path": "/{path:path}", "upstream": "raw", "ttl": "60s"}}
    async with (
        raw_upstream(script) as raw,
        running(gateway(None, routes, clock=clock, upstreams={"raw": {"url": raw.url}})) as client,
    ):
        for said in ("fwd=miss; stored", "hit"):
            response = await client.get("/a")
            assert (response.text, said in response.headers["cache-status"]) == ("a" * 20, True)


async def test_a_body_that_stalls_is_a_failure_where_a_stale_copy_can_stand_in(
    clock: TurnedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "PAUSE", 0.01)
    bodies = [b"4\r\ngood\r\n0\r\n\r\n", b"3\r\nbad\r\n"]

    async def script(connection: Connection) -> None:
        while bodies and await connection.request():
            await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + bodies.pop(0))
        await connection.closed()

    routes = {"all": {"path": "/{path:path}", "upstream": "raw", "ttl": "60s"}}
    upstreams = {"raw": {"timeout": "200ms"}}
    async with raw_upstream(script) as raw:
        upstreams["raw"]["url"] = raw.url
        async with running(gateway(None, routes, clock=clock, upstreams=upstreams)) as client:
            await client.get("/a")
            clock.turn(61)
            assert (await client.get("/a")).text == "good"


async def test_nobody_waits_for_an_aggregate_with_a_part_that_is_never_cached(clock: TurnedClock) -> None:
    upstream = Held()
    parts = {
        "never": {"upstream": "api", "path": "/never", "ttl": "0s"},
        "kept": {"upstream": "api", "path": "/kept", "ttl": "60s"},
    }
    async with running(gateway(upstream, {"screen": {"path": "/a", "parts": parts}}, clock=clock)) as client:
        asked = crowd(client, 6)
        await upstream.have(7)
        assert sorted(request.url.path for request in upstream.requests) == ["/kept", *["/never"] * 6]
        upstream.answer_all(content_type="application/json")
        assert {response.text for response in await asyncio.gather(*asked)} == {'{"never":{},"kept":{}}'}


@pytest.mark.parametrize(
    ("settings", "sent"),
    [
        ({"authorization": "pass", "cookies": "pass"}, ("Bearer 1", "a=1; b=2")),
        ({"authorization": "ignore", "cookies": "ignore"}, (None, None)),
        ({"authorization": "key", "cookies": ["b"]}, ("Bearer 1", "b=2")),
    ],
    ids=str,
)
async def test_what_a_route_keeps_from_its_upstream_it_keeps_with_its_cache_off_too(
    settings: dict[str, Any], sent: tuple[str | None, str | None], clock: TurnedClock
) -> None:
    upstream = Held()
    part = {"upstream": "api", "path": "/a", "ttl": "0s", **settings}
    routes = {
        "never": {**FOLLOWING["all"], "ttl": "30s", "cache": "off", **settings},
        "screen": {"path": "/screen", "parts": {"part": part}},
    }
    async with running(gateway(upstream, routes, clock=clock)) as client:
        for index, path in enumerate(("/a", "/screen")):
            headers = {"authorization": "Bearer 1", "cookie": "a=1; b=2"}
            asked = asyncio.ensure_future(client.get(path, headers=headers))
            await upstream.have(index + 1)
            got = upstream.requests[index].headers
            assert (got.get("authorization"), got.get("cookie")) == sent, path
            upstream.answer(index, content_type="application/json")
            assert (await asked).status_code == 200


@pytest.mark.parametrize("path", ["/never", "/zero"])
async def test_a_handler_that_is_never_cached_is_called_for_each_request_at_once(
    path: str, clock: TurnedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting_routes, "inside", 0)
    monkeypatch.setattr(waiting_routes, "gate", asyncio.Event())
    async with running(gateway(None, {}, clock=clock, include=["tests.support.waiting_routes:router"])) as client:
        asked = [asyncio.ensure_future(client.get(path)) for _ in range(6)]
        async with asyncio.timeout(5):
            while waiting_routes.inside < 6:
                await asyncio.sleep(0)
        waiting_routes.gate.set()
        assert sorted(response.json()["n"] for response in await asyncio.gather(*asked)) == [1, 2, 3, 4, 5, 6]
