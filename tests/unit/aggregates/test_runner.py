"""Which parts are awaited, until when, and what becomes of a fetch for which an aggregate waits no longer."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from gateway.aggregates.runner import Run
from gateway.testing import TurnedClock, running
from tests.support.shop import TWO, Shop, home, part, said, two

PRODUCT = {"product": {"route": "product", "path": "/products/{user}", "optional": True}}
OWN = {"own": part("/own", authorization="pass", optional=True)}


async def until_asked(shop: Shop, *paths: str) -> None:
    while not {*paths} <= {*shop.asked}:
        await asyncio.sleep(0)


def gated(path: str, answer: Any, **headers: str) -> tuple[Shop, asyncio.Event]:
    """A shop that answers a path once the event is set."""
    shop = two()
    shop.set(path, answer, **headers)
    gate = shop.gates[path] = asyncio.Event()
    return shop, gate


class Endless(httpx.AsyncByteStream):
    """A body that never ends."""

    def __init__(self) -> None:
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            yield b"1"
            await asyncio.sleep(0.001)

    async def aclose(self) -> None:
        self.closed = True


async def test_a_fetch_that_others_wait_for_goes_on_where_the_aggregate_gives_up(clock: TurnedClock) -> None:
    shop, gate = gated("/products/7", b"1")
    app = home(shop, PRODUCT, clock, deadline="100ms")
    async with running(app) as client:
        late = asyncio.ensure_future(client.get("/home/7"))
        await until_asked(shop, "/products/7")
        other = asyncio.ensure_future(client.get("/products/7"))
        assert said(await late) == {"product": "timeout"}
        gate.set()
        assert (await other).text == "1"
        await app.engine.settle()
        assert said(await client.get("/home/7")) == {"product": "hit"}
    assert shop.asked == ["/products/7"]


async def test_a_fetch_that_others_wait_for_goes_on_where_the_client_leaves(clock: TurnedClock) -> None:
    shop, gate = gated("/offers", [1])
    own = shop.gates["/own"] = asyncio.Event()
    app = home(shop, OWN | {"offers": part("/offers")}, clock)
    async with running(app) as client:
        leaving = asyncio.ensure_future(client.get("/home/7", headers={"authorization": "Bearer me"}))
        await until_asked(shop, "/offers", "/own")
        other = asyncio.ensure_future(client.get("/home/7"))
        while len(app.engine.flights) < 3:
            await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.wait([leaving])
        gate.set()
        own.set()
        assert said(await other)["offers"] == "miss"
        await app.engine.settle()
        assert app.engine.under_way == 0
    assert shop.count("/offers") == 1


async def test_a_request_for_one_client_ends_where_the_aggregate_gives_up(clock: TurnedClock) -> None:
    shop, _ = gated("/own", b"1")
    app = home(shop, OWN | TWO, clock, deadline="50ms")
    async with running(app) as client:
        response = await client.get("/home/7", headers={"authorization": "Bearer me"})
        assert said(response) == {"own": "timeout", "user": "miss", "offers": "miss"}
        async with asyncio.timeout(2):  # the upstream's own timeout is 5 s
            await app.engine.settle()
        assert app.engine.under_way == 0


@pytest.mark.parametrize("in_time", [True, False])
async def test_a_body_that_nobody_waits_for_is_not_read_for_ever(in_time: bool, clock: TurnedClock) -> None:
    endless = Endless()
    response = httpx.Response(200, headers={"cache-control": "no-store"}, stream=endless)
    shop, gate = gated("/own", response)
    own = {"upstream": "shop", "path": "/own", "ttl": "origin", "timeout": "200ms", "optional": True}
    app = home(shop, {"own": own}, clock, deadline="100ms")
    async with running(app) as client:
        asked = asyncio.ensure_future(client.get("/home/7"))
        await until_asked(shop, "/own")
        if not in_time:
            assert said(await asked) == {"own": "timeout"}
        gate.set()
        assert said(await asked) == {"own": "timeout"}
        await app.engine.settle()
    assert endless.closed


async def test_the_body_of_a_response_to_a_post_is_closed_where_it_is_late(clock: TurnedClock) -> None:
    shop, endless = two(), Endless()
    shop.set("/search", httpx.Response(200, stream=endless))
    parts = {"found": {"upstream": "shop", "path": "/search", "method": "POST", "body": {"q": 1}, "optional": True}}
    async with running(home(shop, parts, clock, deadline="100ms")) as client:
        assert said(await client.get("/home/7")) == {"found": "timeout"}
    assert endless.closed
    assert [shop.requests[0].content, shop.requests[0].headers["content-length"]] == [b'{"q":1}', "7"]


async def test_a_part_that_comes_late_ends_the_time_for_which_it_is_left_alone(clock: TurnedClock) -> None:
    shop, gate = gated("/offers", [1])
    app = home(shop, {"offers": part("/offers", ttl="1s", optional=True)}, clock, deadline="50ms")
    async with running(app) as client:
        assert said(await client.get("/home/7")) == {"offers": "timeout"}
        gate.set()
        await app.engine.settle()
        (source,) = app.aggregates[0].kit.sources.values()
        assert not source.back_off.failures


async def test_a_stale_part_stands_in_for_one_that_is_late(clock: TurnedClock) -> None:
    shop = two()
    app = home(shop, {"offers": part("/offers", ttl="1s", stale_if_error="60s")}, clock, deadline="50ms")
    async with running(app) as client:
        await client.get("/home/7")
        clock.turn(2)
        shop.gates["/offers"] = asyncio.Event()
        response = await client.get("/home/7")
        assert (response.json(), said(response)) == ({"offers": [1, 2]}, {"offers": "stale;age=2;error=timeout"})
        shop.gates["/offers"].set()
        await app.engine.settle()


async def test_parts_in_time_are_awaited_beside_one_that_is_late(clock: TurnedClock) -> None:
    shop, gate = gated("/offers", [1])
    shop.set("/more/7", b"1")
    shop.gates["/late/7"] = gate
    parts = {
        "offers": part("/offers", optional=True, timeout="50ms"),
        "user": part("/users/{user}"),
        "more": part("/more/{user.id}"),
        "each": part("/late/{item}", for_each="user.[id]", optional=True, timeout="80ms"),
        "none": part("/users/{offers[0]}", optional=True),
    }
    async with running(home(shop, parts, clock)) as client:
        response = await client.get("/home/7")
        gate.set()
    none = 'skipped;missing="offers"'
    states = {"offers": "timeout", "user": "miss", "more": "miss", "each": "failed;timeout=1", "none": none}
    assert said(response) == states


async def test_a_failure_that_is_remembered_holds_nothing_of_its_request(clock: TurnedClock) -> None:
    shop = two()
    shop.set("/products/7", httpx.Response(503))
    async with running(home(shop, PRODUCT, clock)) as client:
        before = {id(each) for each in gc.get_objects() if isinstance(each, Run)}
        gc.disable()  # what refers to itself would stay
        try:
            assert said(await client.get("/home/7")) == {"product": "status-503"}
            assert {id(each) for each in gc.get_objects() if isinstance(each, Run)} <= before
        finally:
            gc.enable()


def test_no_more_than_a_thousand_selections_are_remembered(clock: TurnedClock) -> None:
    names = [f"p{number}" for number in range(11)]
    kit = home(Shop(), {name: part(f"/{name}") for name in names}, clock).aggregates[0].kit
    for number in range(1, 1 << len(names)):
        shown = tuple(name for place, name in enumerate(names) if number >> place & 1)
        asked = kit.sequence(shown)
        assert asked == shown
        assert kit.sequence(shown) is asked
        assert len(kit.sequences) <= 1001
