"""How a part is fetched: retried, hedged at another host, or in a batch."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx

from gateway.app.gateway import Gateway, create_app
from gateway.observability.access_log import silent
from gateway.testing import TurnedClock, running
from tests.support.shop import Shop, home, part, said, two


async def test_a_post_part_is_sent_its_body_and_never_kept(clock: TurnedClock) -> None:
    shop = two()
    shop.set("/graphql", {"data": 1})
    parts = {"q": {"upstream": "shop", "path": "/graphql", "method": "POST", "body": {"query": "{me}"}}}
    async with running(home(shop, parts, clock)) as client:
        await client.get("/home/7")
        response = await client.get("/home/7")
    assert response.json() == {"q": {"data": 1}}
    assert response.headers["cache-control"] == "no-store"
    assert [json.loads(request.content) for request in shop.requests] == [{"query": "{me}"}] * 2


BATCHED = {
    "cart": part("/cart/{user}", ttl="1s"),
    "prices": part("/prices/{item}", for_each="cart.items[*].id", batch="/prices?ids={ids}", tags=["price:{item}"]),
}


async def test_elements_are_fetched_together_and_each_is_cached_for_itself(clock: TurnedClock) -> None:
    shop = Shop()
    shop.set("/cart/7", {"items": [{"id": 3}, {"id": 1}, {"id": 2}]})
    shop.set("/prices?ids=3%2C1%2C2", [{"id": 1, "cents": 10}, {"id": 3, "cents": 30}])
    app = home(shop, BATCHED, clock)
    async with running(app) as client:
        response = await client.get("/home/7")
        assert response.json()["prices"] == [{"id": 3, "cents": 30}, {"id": 1, "cents": 10}, None]
        assert said(response)["prices"] == "list;miss=2;absent=1"
        await app.purge(tags=["price:1"])
        shop.set("/prices/1", {"id": 1, "cents": 11})
        response = await client.get("/home/7")
        assert response.json()["prices"][1] == {"id": 1, "cents": 11}
    assert sorted(shop.asked) == ["/cart/7", "/prices/1", "/prices?ids=3%2C1%2C2"]


async def test_a_batch_may_be_an_object_by_key_and_fails_as_one(clock: TurnedClock) -> None:
    shop = Shop()
    shop.set("/cart/7", {"items": [{"id": 1}, {"id": 2}]})
    shop.set("/prices?ids=1%2C2", 500)
    parts = {**BATCHED, "prices": BATCHED["prices"] | {"optional": True}}
    async with running(home(shop, parts, clock)) as client:
        assert said(await client.get("/home/7"))["prices"] == "failed;status-500=2"
        clock.turn(1.1)
        shop.set("/prices?ids=1%2C2", b'{"1": 10, "2": 20}')
        assert (await client.get("/home/7")).json()["prices"] == [10, 20]


class Hosts(httpx.AsyncBaseTransport):
    """Two hosts; the first answers only when it is let."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.slow = asyncio.Event()
        self.failing: set[str] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.url.host)
        if len(self.asked) == 1:
            await self.slow.wait()
        if request.url.host in self.failing:
            return httpx.Response(500)
        return httpx.Response(200, json=request.url.host)


def hedged(hosts: Hosts, clock: TurnedClock, **settings: Any) -> Gateway:
    config = {
        "redis_url": "none",
        "upstreams": {"two": {"urls": ["http://a.test", "http://b.test"], "breaker_failures": 0}},
        "routes": {
            "home": {"path": "/home", "parts": {"x": {"upstream": "two", "path": "/x", "ttl": "5s", **settings}}}
        },
    }
    return create_app(config, transport=hosts, clock=clock, log=silent)


async def test_a_hedged_part_asks_another_host_after_a_while_and_the_first_good_answer_wins(
    clock: TurnedClock,
) -> None:
    hosts = Hosts()
    async with running(hedged(hosts, clock, hedge="20ms")) as client:
        assert (await client.get("/home")).json() == {"x": "b.test"}
    assert hosts.asked == ["a.test", "b.test"]


async def test_no_hedge_is_sent_for_an_answer_in_time(clock: TurnedClock) -> None:
    hosts = Hosts()
    hosts.slow.set()
    async with running(hedged(hosts, clock, hedge="10s")) as client:
        await client.get("/home")
    assert hosts.asked == ["a.test"]


async def test_a_part_is_tried_again_as_often_as_it_says(clock: TurnedClock) -> None:
    hosts = Hosts()
    hosts.slow.set()
    hosts.failing = {"a.test"}
    async with running(hedged(hosts, clock, retries=1)) as client:
        assert (await client.get("/home")).json() == {"x": "b.test"}
    assert hosts.asked == ["a.test", "b.test"]
