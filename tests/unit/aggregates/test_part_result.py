"""What becomes of a part that fails: null, its default, or a failure of the whole."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from gateway.testing import TurnedClock, running
from tests.support.shop import TWO, Shop, home, part, said, two


async def test_an_optional_part_that_fails_is_null_and_the_whole_is_not_stored(clock: TurnedClock) -> None:
    shop = two()
    shop.set("/offers", 503)
    parts = {**TWO, "offers": part("/offers", optional=True)}
    async with running(home(shop, parts, clock)) as client:
        response = await client.get("/home/7")
        assert (response.status_code, response.json()) == (200, {"user": {"id": 7}, "offers": None})
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["gateway-complete"] == "?0"
        assert said(response) == {"user": "miss", "offers": "status-503"}
        shop.set("/offers", [1])
        clock.turn(1.1)
        response = await client.get("/home/7")
        assert said(response) == {"user": "hit", "offers": "miss"}
        assert response.headers["gateway-complete"] == "?1"
    assert shop.count("/users/7") == 1


async def test_a_default_stands_in_for_a_part_that_fails(clock: TurnedClock) -> None:
    shop = two()
    shop.set("/offers", httpx.ConnectError("no"))
    async with running(home(shop, {**TWO, "offers": part("/offers", default=[])}, clock)) as client:
        response = await client.get("/home/7")
    assert response.json()["offers"] == []
    assert said(response)["offers"] == "unreachable;default"


@pytest.mark.parametrize(
    ("answer", "status", "kind"),
    [(500, 502, "status-500"), (b"{", 502, "wrong-type"), (httpx.ConnectError("no"), 502, "unreachable"),
     (httpx.ReadTimeout("late"), 504, "timeout: timed out"), (404, 404, "absent")],
)  # fmt: skip
async def test_a_required_part_fails_the_whole_by_its_name_and_not_its_address(
    answer: Any, status: int, kind: str, clock: TurnedClock
) -> None:
    shop = two()
    shop.set("/offers", answer)
    async with running(home(shop, TWO, clock)) as client:
        response = await client.get("/home/7")
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["cache-control"] == "no-store"
    assert f"offers: {kind}" in response.json()["detail"]
    assert "shop.test" not in response.text


async def test_the_envelope_and_the_errors_stand_in_the_body(clock: TurnedClock) -> None:
    shop = two()
    shop.set("/offers", b"[1")
    parts = {**TWO, "offers": part("/offers", optional=True)}
    async with running(home(shop, parts, clock, envelope=True, errors=True)) as client:
        body = (await client.get("/home/7")).json()
    assert body["_meta"] == {
        "complete": False,
        "parts": {"user": {"status": "miss"}, "offers": {"status": "wrong-type"}},
    }
    assert body["_errors"]["offers"]["status"] == 502
    parts["offers"]["default"] = []
    async with running(home(shop, parts, clock, envelope=True)) as client:
        body_with_default = (await client.get("/home/7")).json()
    assert body_with_default["_meta"]["parts"]["offers"] == {"status": "wrong-type", "default": True}
    assert "not valid JSON" in body["_errors"]["offers"]["detail"]


async def test_what_is_missing_is_said_in_a_string_that_every_header_can_hold(clock: TurnedClock) -> None:
    shop = Shop()
    shop.set("/p/7", {"id": 7})
    parts = {"product": part("/p/{user}"), "seller": part('/s/{product."größe"}')}
    async with running(home(shop, parts, clock)) as client:
        response = await client.get("/home/7")
    assert said(response)["seller"] == 'skipped;missing="product.\\"gr??e\\""'
    assert "desc=\"skipped;missing='product.'gr??e''\"" in response.headers["server-timing"]
