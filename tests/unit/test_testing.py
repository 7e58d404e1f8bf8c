"""`gateway.testing`: a clock that is turned, a stub upstream, and a client of a running gateway."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from gateway import create_app
from gateway.clock import Clock
from gateway.testing import StubUpstream, TurnedClock, running

CONFIG = {
    "redis_url": "none",
    "access_log": False,
    "upstreams": {"api": {"url": "http://api.test"}},
    "routes": {"item": {"path": "/items/{id}", "upstream": "api", "ttl": "30s"}},
}


def test_a_clock_stands_until_it_is_turned() -> None:
    clock: Clock = TurnedClock(100.0)
    assert (clock.now(), clock.when(5.0)) == (100.0, 100.0)
    clock.turn(2.5)  # type: ignore[attr-defined]
    assert (clock.now(), clock.when(5.0)) == (102.5, 102.5)


async def test_the_stub_keeps_requests_and_answers_by_its_function() -> None:
    clock, upstream = TurnedClock(), StubUpstream(lambda request: httpx.Response(200, text=request.url.path))
    async with running(create_app(CONFIG, transport=upstream, clock=clock)) as client:
        for turned, asked in ((0, 1), (20, 1), (11, 2)):
            clock.turn(turned)
            response = await client.get("/items/7")
            assert (response.status_code, response.text, upstream.asked) == (200, "/items/7", asked)
    assert [str(request.url) for request in upstream.requests] == ["http://api.test/items/7"] * 2


async def test_requests_wait_for_the_gate_and_are_counted_meanwhile() -> None:
    upstream = StubUpstream(lambda _: httpx.Response(200))
    upstream.gate.clear()
    async with running(create_app(CONFIG, transport=upstream)) as client:
        waiting = [asyncio.ensure_future(client.get(f"/items/{number}")) for number in range(2)]
        await upstream.came.acquire()
        await upstream.came.acquire()
        assert (upstream.asked, any(each.done() for each in waiting)) == (2, False)
        upstream.gate.set()
        assert [each.status_code for each in await asyncio.gather(*waiting)] == [200, 200]


async def test_bodies_of_requests_are_read() -> None:
    upstream = StubUpstream(lambda _: httpx.Response(201))
    async with running(create_app(CONFIG, transport=upstream)) as client:
        await client.post("/items/7", content=b"new")
    assert upstream.requests[0].content == b"new"


async def test_what_the_function_raises_is_the_connections_failure() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    async with running(create_app(CONFIG, transport=StubUpstream(refuse))) as client:
        assert (await client.get("/items/7")).status_code == 502


class Closing(StubUpstream):
    closed = False

    async def aclose(self) -> None:
        self.closed = True


async def test_an_app_is_stopped_when_its_test_fails() -> None:
    upstream = Closing(lambda _: httpx.Response(200))

    async def failing() -> None:
        async with running(create_app(CONFIG, transport=upstream)) as client:
            assert (await client.get("/items/7")).status_code == 200
            assert not upstream.closed
            raise RuntimeError("of the test")

    with pytest.raises(RuntimeError, match="of the test"):
        await failing()
    assert upstream.closed
