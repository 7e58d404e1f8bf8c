"""Bodies of parts: decoded and shaped once for each content."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.testing import TurnedClock, running
from tests.support.shop import TWO, home, part, said, two


async def test_a_content_is_parsed_once_however_often_it_is_joined(clock: TurnedClock) -> None:
    shop = two()
    app = home(shop, TWO, clock)
    async with running(app) as client:
        for _ in range(9):
            await client.get("/home/7")
            clock.turn(8.9)
    # Fetched again and again, the same content is known.
    assert shop.count("/offers") >= 5
    assert app.aggregates[0].kit.body_cache.parsed == 2


@pytest.mark.parametrize("settings", [{"deny": ["x"]}, {"select": "@"}, {"group": None}, {"rename": {"a": "b"}}])
async def test_a_part_too_deep_to_be_reshaped_has_failed_and_a_spliced_one_is_as_it_came(
    settings: dict[str, Any], clock: TurnedClock
) -> None:
    shop = two()
    deep = b'{"a":' * 300 + b"1" + b"}" * 300
    shop.set("/deep", deep)
    parts = {"user": TWO["user"], "deep": part("/deep", optional=True, **settings), "same": part("/deep")}
    async with running(home(shop, parts, clock)) as client:
        response = await client.get("/home/7")
    assert (said(response)["deep"], response.headers["gateway-complete"]) == ("wrong-type", "?0")
    assert b'"same":' + deep in response.content


async def test_the_content_of_a_part_is_parsed_once_however_many_aggregates_it_is_in(clock: TurnedClock) -> None:
    shop = two()
    app = home(shop, {**TWO, "again": part("/offers", ttl="10s"), "shaped": part("/offers", select="[0]")}, clock)
    async with running(app) as client:
        for user in ("7", "8", "9"):
            shop.set(f"/users/{user}", {})
            await client.get(f"/home/{user}")
    assert app.builder.body_cache.parsed == 3 + 1 + 1  # users; offers as they are, in two places; and shaped
    assert shop.count("/offers") == 1


async def test_parts_are_shaped_and_merged_as_configured(clock: TurnedClock) -> None:
    shop = two()
    shop.set("/users/7", {"id": 7, "name": "Ada", "email": "a@b"})
    parts = {
        "user": part("/users/{user}", group=None, deny=["email"], rename={"name": "user"}),
        "offers": part("/offers", select="[0]", group="first"),
    }
    async with running(home(shop, parts, clock)) as client:
        assert (await client.get("/home/7")).content == b'{"id":7,"user":"Ada","first":1}'
