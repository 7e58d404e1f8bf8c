"""Aggregates in Python, of typed parts."""

from __future__ import annotations

import re
from typing import Any

import pytest
from fastapi import APIRouter
from pydantic import BaseModel

from gateway.aggregates.typed import aggregate
from gateway.aggregates.typed import part as typed_part
from gateway.app.gateway import Gateway, create_app
from gateway.errors import ConfigError
from gateway.observability.access_log import silent
from gateway.testing import TurnedClock, running
from tests.support.shop import Shop, part, said, two


class User(BaseModel):
    id: int


def typed(shop: Shop, clock: TurnedClock, **settings: Any) -> Gateway:
    config = {"redis_url": "none", "upstreams": {"shop": {"url": "http://shop.test", "breaker_failures": 0}}}
    app = create_app(config, transport=shop.transport, clock=clock, log=silent)
    router = APIRouter()
    parts = {
        "user": typed_part(User, **part("/users/{user}")),
        "offers": typed_part(list[int], **part("/offers", optional=True)),
    }
    aggregate(router, "/home/{user}", parts=parts, name="home", **settings)
    app.include_router(router)
    return app


async def test_an_aggregate_in_python_is_joined_cached_and_purged_as_one_of_the_configuration(
    clock: TurnedClock,
) -> None:
    shop = two()
    app = typed(shop, clock, selectable=True)
    async with running(app) as client:
        assert (await client.get("/home/7")).json() == {"user": {"id": 7}, "offers": [1, 2]}
        assert (await client.get("/home/7")).headers["cache-status"].startswith("gateway; hit")
        assert (await client.get("/home/7?parts=offers")).json() == {"offers": [1, 2]}
        await app.purge(routes=["home.user"])
        await client.get("/home/7")
    assert (shop.count("/users/7"), shop.count("/offers")) == (2, 1)


async def test_a_typed_part_of_another_type_has_failed(clock: TurnedClock) -> None:
    shop = two()
    shop.set("/offers", ["text"])
    async with running(typed(shop, clock, errors=True)) as client:
        response = await client.get("/home/7")
        assert said(response)["offers"] == "wrong-type"
        assert "doesn't match its type: 0: " in response.json()["_errors"]["offers"]["detail"]
        shop.set("/users/7", {"id": "x"})
        clock.turn(700)
        assert (await client.get("/home/7")).status_code == 502


async def test_an_aggregate_in_python_appears_in_openapi_with_its_types(clock: TurnedClock) -> None:
    document = typed(two(), clock).openapi()
    home = document["components"]["schemas"]["Home"]
    assert home["properties"]["user"] == {"$ref": "#/components/schemas/User"}


def test_an_aggregate_in_python_that_names_an_unknown_upstream_is_refused() -> None:
    app = create_app({"redis_url": "none", "upstreams": {"shop": {"url": "http://shop.test"}}}, log=silent)
    router = APIRouter()
    aggregate(router, "/home", parts={"x": typed_part(User, upstream="shp", path="/x")})
    with pytest.raises(ConfigError, match="there is no upstream shp; did you mean shop"):
        app.include_router(router)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("usr", "home.rate_limits: there is no rate limit 'usr'; did you mean user"),
        ("user", "home.rate_limits: user counts by sub, which requires `identity` on the route"),
    ],
)
def test_an_aggregate_in_python_that_names_no_limit_that_it_can_have_is_refused(named: str, message: str) -> None:
    app = create_app(
        {
            "redis_url": "none",
            "upstreams": {"shop": {"url": "http://shop.test"}},
            "rate_limits": {"user": {"by": "sub", "rate": "2/m"}},
        },
        log=silent,
    )
    router = APIRouter()
    aggregate(router, "/home", parts={"x": typed_part(User, upstream="shop", path="/x")}, rate_limits=[named])
    with pytest.raises(ConfigError, match=re.escape(message)):
        app.include_router(router)


def test_an_aggregate_in_python_is_made_of_no_route_with_identity() -> None:
    secret = {"issuer": "https://id.example.com", "audience": ["a"], "algorithms": ["HS256"], "secret": "x" * 32}
    app = create_app(
        {
            "redis_url": "none",
            "upstreams": {"shop": {"url": "http://shop.test"}},
            "identity": {"shop": secret},
            "routes": {"user": {"path": "/user", "upstream": "shop", "ttl": "1m", "identity": ["shop"]}},
        }
    )
    router = APIRouter()
    aggregate(router, "/home", parts={"user": typed_part(User, route="user")}, name="home")
    with pytest.raises(ConfigError, match="the route user has `identity`"):
        app.include_router(router)
