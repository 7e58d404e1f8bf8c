"""Traces of Python handlers."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from gateway.app.gateway import Gateway
from gateway.explain.trace import render
from gateway.testing import StubUpstream, TurnedClock, running
from tests.support.explain import ANY, ROUTES, SUMS
from tests.support.gateways import gateway, json_answer


def with_handlers(clock: TurnedClock) -> Gateway:
    app = gateway(StubUpstream(json_answer()), {"item": ROUTES["item"]}, clock=clock)
    app.include_router(SUMS)
    return app


async def test_a_cached_handler_is_explained_like_a_route(clock: TurnedClock) -> None:
    app = with_handlers(clock)
    async with running(app) as client:
        before = await app.explain("GET", "/sums/4?z=1&b=3", ANY)
        await client.get("/sums/4?b=3")
        clock.turn(5)
        after = await app.explain("GET", "/sums/4?b=3", ANY)
        assert (await client.get("/sums/4?b=3")).headers["cache-status"].startswith("gateway; hit")
    assert before.route.endswith("sums")
    assert (before.path, before.decision) == ("/sums/{a}", "miss")
    assert [line.split(" (")[0] for line in before.dropped] == ["query parameter z"]
    assert after.decision == "hit"
    assert after.ttl is not None
    assert after.ttl.value == "20s"
    assert after.ttl.sources[0] == f"@cached of {after.route} (20s)"
    assert after.entry is not None
    assert (after.entry.tier, after.entry.age) == ("memory", 5.0)
    assert [name.name for name in after.names][1:] == [f"route {after.route}", "tag sum:4"]


async def test_it_is_told_whether_the_edge_answers_a_handler(clock: TurnedClock) -> None:
    app = with_handlers(clock)
    assert (await app.explain("GET", "/sums/4")).edge == "yes"

    class Passing:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

    app.add_middleware(Passing)
    trace = await app.explain("GET", "/sums/4")
    assert trace.edge == "no: the app has middleware of its own, Passing"
    assert "  edge      no: the app has middleware of its own, Passing" in render(trace)


async def test_a_handler_that_is_not_cached_says_so(clock: TurnedClock) -> None:
    trace = await with_handlers(clock).explain("GET", "/time")
    assert (trace.route, trace.decision) == ("what_time_it_is", "uncached")
    posted = await with_handlers(clock).explain("POST", "/sums/4")
    assert (posted.decision, posted.why) == ("405", "the path matches a route, but it allows only GET")


async def test_a_declared_route_stands_before_a_router_that_was_included_later(clock: TurnedClock) -> None:
    app = gateway(StubUpstream(json_answer()), ROUTES, clock=clock)
    router = APIRouter()

    @router.get("/time")
    async def time() -> str:
        return "now"

    app.include_router(router)
    trace = await app.explain("GET", "/time")
    assert (trace.route, trace.lost) == ("rest", ("time (/time)",))
    async with running(app) as client:
        assert (await client.get("/time")).json() == {"n": 1}
