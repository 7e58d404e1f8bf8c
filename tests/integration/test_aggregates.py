"""Aggregates over real sockets: a home screen of five parts, whose upstreams are slow and fail as the test says.

How long the rows under load last is set by `--scale`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from gateway.app.gateway import Gateway, create_app
from gateway.edge.protocol import GatewayProtocol
from gateway.observability.access_log import silent
from gateway.testing import TurnedClock
from tests.support.gateways import served
from tests.support.scale import size

SECONDS = float(size("aggregate_seconds"))
CLIENTS = 8


class Shop:
    """An upstream in plain ASGI. `answers` by path; `failing` paths end in 503, `hanging` ones never; `version` is in
    every offer."""

    def __init__(self) -> None:
        self.version = 1
        self.failing: set[str] = set()
        self.hanging: set[str] = set()
        self.delay: dict[str, float] = {}
        self.asked: Counter[str] = Counter()
        self.under_way: set[str] = set()
        self.together: set[frozenset[str]] = set()

    def answer(self, path: str, query: str) -> tuple[Any, dict[str, str]]:
        if path.startswith("/prices") and query:
            return [{"id": int(id), "cents": int(id) * 100} for id in query.removeprefix("ids=").split("%2C")], {}
        answers: dict[str, tuple[Any, dict[str, str]]] = {
            "/users/7": ({"id": 7, "name": "Ada", "email": "ada@shop.example"}, {}),
            "/users/7/cart": ({"items": [{"id": 3}, {"id": 1}]}, {"cache-control": "private, max-age=60"}),
            "/offers": ({"version": self.version, "seller_id": 5}, {}),
            "/sellers/5": ({"name": "Berg"}, {}),
        }
        return answers[path]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path, query = scope["path"], scope["query_string"].decode()
        self.asked[path] += 1
        self.under_way.add(path)
        self.together.add(frozenset(self.under_way))
        try:
            if path in self.hanging:
                await asyncio.Event().wait()
            await asyncio.sleep(self.delay.get(path, 0.01))
            body, headers = ({}, {}) if path in self.failing else self.answer(path, query)
        finally:
            self.under_way.discard(path)
        raw = json.dumps(body).encode()
        fields = {"content-type": "application/json", "content-length": str(len(raw)), **headers}
        status = 503 if path in self.failing else 200
        told = [(name.encode(), value.encode()) for name, value in fields.items()]
        await send({"type": "http.response.start", "status": status, "headers": told})
        await send({"type": "http.response.body", "body": raw})


def config(url: str, retry_after: str = "200ms", **offers: Any) -> dict[str, Any]:
    part = {"upstream": "shop", "vary": []}
    parts = {
        "profile": {**part, "path": "/users/{user}", "ttl": "10m", "deny": ["email"]},
        "cart": {"upstream": "shop", "path": "/users/{user}/cart"},
        "prices": {
            **part,
            "for_each": "cart.items[*].id",
            "path": "/prices/{item}",
            "batch": "/prices?ids={ids}",
            "ttl": "10m",
        },
        "offers": {
            **part,
            "path": "/offers",
            "ttl": "200ms",
            "stale_if_error": "0s",
            "timeout": "2s",
            "default": {},
            "tags": ["offers"],
            **offers,
        },
        "seller": {**part, "path": "/sellers/{offers.seller_id}", "ttl": "10m"},
    }
    public = {name: each for name, each in parts.items() if name not in ("cart", "prices")}
    return {
        "redis_url": "none",
        "retry_after": retry_after,
        "upstreams": {"shop": {"url": url, "timeout": "5s", "breaker_failures": 0}},
        "routes": {
            "home": {"path": "/home/{user}", "parts": parts},
            "public": {"path": "/public/{user}", "parts": public},
        },
    }


@asynccontextmanager
async def screen(
    shop: Shop, clock: TurnedClock | None = None, **offers: Any
) -> AsyncIterator[tuple[Gateway, httpx.AsyncClient]]:
    async with served(shop) as upstream:
        app = create_app(config(upstream, **offers), log=silent, clock=clock)
        # With the edge, which answers hits on the whole before any ASGI.
        async with (
            served(app, http=GatewayProtocol) as url,
            httpx.AsyncClient(base_url=url, timeout=20, trust_env=False) as client,
        ):
            yield app, client


def said(response: httpx.Response) -> dict[str, str]:
    return dict(item.split("=", 1) for item in response.headers["gateway-parts"].split(", "))


async def test_a_home_screen_of_five_parts() -> None:
    shop, clock = Shop(), TurnedClock()
    shop.delay = {"/users/7": 0.3, "/users/7/cart": 0.3, "/offers": 0.3}
    async with screen(shop, clock) as (_, client):
        response = await client.get("/home/7")
        assert response.json() == {
            "profile": {"id": 7, "name": "Ada"},
            "cart": {"items": [{"id": 3}, {"id": 1}]},
            "prices": [{"id": 3, "cents": 300}, {"id": 1, "cents": 100}],
            "offers": {"version": 1, "seller_id": 5},
            "seller": {"name": "Berg"},
        }
        assert said(response) == {
            "profile": "miss", "cart": "miss", "prices": "list;miss=2", "offers": "miss", "seller": "miss"
        }  # fmt: skip
        assert response.headers["cache-control"] == "private, max-age=0"
        assert response.headers["gateway-complete"] == "?1"
        # Parts that need no other's values were under way together.
        assert any({"/users/7", "/users/7/cart", "/offers"} <= each for each in shop.together)
        timing = response.headers["server-timing"]
        spent = {each.split(";")[0]: float(each.rpartition("dur=")[2]) for each in timing.split(", ") if "dur=" in each}
        assert spent["profile"] >= 300
        assert spent["total"] >= 300
        assert shop.asked["/prices"] == 1

        shop.failing.add("/offers")
        clock.turn(0.3)
        response = await client.get("/home/7")
        assert (response.status_code, response.json()["offers"], response.json()["seller"]) == (200, {}, None)
        assert said(response)["offers"] == "status-503;default"
        assert said(response)["prices"] == "list;hit=2"
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["gateway-complete"] == "?0"
    # The private part was asked for each time, the public ones once.
    assert (shop.asked["/users/7/cart"], shop.asked["/users/7"], shop.asked["/sellers/5"]) == (2, 1, 1)


async def test_a_hanging_part_costs_its_timeout_once_and_then_nothing() -> None:
    shop = Shop()
    shop.hanging.add("/offers")
    async with screen(shop, timeout="500ms", retry_after="1m") as (_, client):
        assert said(await client.get("/public/7"))["offers"] == "timeout;default"
        responses = await asyncio.gather(*(client.get("/public/7") for _ in range(20)))
    assert {said(response)["offers"] for response in responses} == {"timeout;default"}
    assert shop.asked["/offers"] == 1


async def load(client: httpx.AsyncClient, until: asyncio.Event, seen: list[tuple[float, httpx.Response]]) -> None:
    while not until.is_set():
        began = time.monotonic()
        seen.append((began, await client.get("/public/7")))
        await asyncio.sleep(0.005)


@pytest.mark.timeout(SECONDS * 4 + 60)
async def test_while_a_parts_upstream_is_down_its_stale_copy_serves_and_then_its_default() -> None:
    shop = Shop()
    lives = SECONDS / 2
    async with screen(shop, stale_if_error=f"{int(lives * 1000)}ms") as (_, client):
        warm = await client.get("/public/7")
        assert warm.headers["gateway-complete"] == "?1"
        until = asyncio.Event()
        seen: list[tuple[float, httpx.Response]] = []
        down = time.monotonic()
        shop.failing.add("/offers")
        tasks = [asyncio.ensure_future(load(client, until, seen)) for _ in range(CLIENTS)]
        await asyncio.sleep(SECONDS)
        until.set()
        await asyncio.gather(*tasks)
        print(f"{len(seen)} answers, {shop.asked['/offers']} asked for the part that is down: {shop.asked}")
        assert {response.status_code for _, response in seen} == {200}
        early = [response for began, response in seen if began - down < lives * 0.9]
        late = [response for began, response in seen if began - down > lives + 1.0]
        assert len(early) > 20
        assert {response.json()["offers"].get("version") for response in early} == {1}
        assert {response.headers["gateway-complete"] for response in early} == {"?1"}
        assert all(response.json()["offers"] == {} for response in late)
        # The other parts are hits throughout, and the failing one is left alone between probes.
        assert {said(response)["profile"] for _, response in seen} == {"hit"}
        assert shop.asked["/users/7"] == shop.asked["/sellers/5"] == 1
        assert shop.asked["/offers"] <= SECONDS / 0.2 + 3


@pytest.mark.timeout(SECONDS * 4 + 60)
async def test_no_answer_that_started_after_a_purge_returned_contains_the_old_part() -> None:
    shop = Shop()
    async with screen(shop, ttl="10m") as (app, client):
        until = asyncio.Event()
        seen: list[tuple[float, httpx.Response]] = []
        tasks = [asyncio.ensure_future(load(client, until, seen)) for _ in range(CLIENTS)]
        purged: list[tuple[float, int]] = []
        ends = time.monotonic() + SECONDS
        while time.monotonic() < ends:
            await asyncio.sleep(0.05)
            shop.version += 1
            await app.purge(tags=["offers"])
            purged.append((time.monotonic(), shop.version))
        until.set()
        await asyncio.gather(*tasks)
        assert app.edge is not None
        assert app.edge.known_targets
    print(f"{len(seen)} answers, {len(purged)} purges")
    assert len(purged) > 5
    assert any(response.headers["cache-status"].startswith("gateway; hit") for _, response in seen)
    for began, response in seen:
        least = max((version for at, version in purged if at < began), default=1)
        assert response.json()["offers"]["version"] >= least
