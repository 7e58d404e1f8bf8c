"""Routes of aggregates: their key, selections of parts, purges and OpenAPI."""

from __future__ import annotations

from typing import Any

from gateway.http.target import normalise
from gateway.testing import TurnedClock, running
from tests.support.shop import TWO, Shop, home, part, two


async def test_a_purge_by_a_routes_url_reaches_the_aggregates_that_share_its_answer(clock: TurnedClock) -> None:
    shop = Shop()
    shop.set("/products/7", {"id": 7})
    app = home(shop, {"product": part("/products/{user}")}, clock)
    async with running(app) as client:
        await client.get("/home/7")
        await app.purge(keys=["/products/7"])
        shop.set("/products/7", {"id": 8})
        assert (await client.get("/home/7")).json() == {"product": {"id": 8}}


async def test_the_purge_method_purges_the_whole(clock: TurnedClock) -> None:
    app = home(two(), TWO, clock, purge_from=["127.0.0.1"])
    async with running(app) as client:
        await client.get("/home/7")
        assert (await client.request("PURGE", "/home/7")).status_code == 200
        assert "joined" in (await client.get("/home/7")).headers["cache-status"]
        assert (await client.post("/home/7")).status_code == 405


async def test_a_client_may_ask_for_fewer_parts(clock: TurnedClock) -> None:
    shop = two()
    async with running(home(shop, TWO, clock, selectable=True)) as client:
        few = await client.get("/home/7?parts=offers")
        assert few.json() == {"offers": [1, 2]}
        assert shop.asked == ["/offers"]
        await client.get("/home/7?parts=offers,user")
        both = await client.get("/home/7?parts=user,offers")
        assert both.headers["cache-status"].startswith("gateway; hit; ttl")
        wrong = await client.get("/home/7?parts=offer")
        none = [await client.get(f"/home/7?parts={text}") for text in ("", ",")]
    assert {response.status_code for response in none} == {400}
    assert none[0].json()["detail"] == "parts is empty; known parts: user, offers"
    assert wrong.status_code == 400
    assert "did you mean offers?" in wrong.json()["detail"]


async def test_the_aggregate_appears_in_openapi_with_its_parts_schemas(clock: TurnedClock, tmp_path: Any) -> None:
    schema = tmp_path / "user.json"
    schema.write_text('{"type": "object", "properties": {"id": {"type": "integer"}}}')
    parts = {**TWO, "user": part("/users/{user}", schema=str(schema))}
    app = home(two(), parts, clock, selectable=True)
    operation = app.openapi()["paths"]["/home/{user}"]["get"]
    joined = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert joined["properties"]["user"]["properties"]["id"] == {"type": "integer"}
    assert {each["name"] for each in operation["parameters"]} == {"user", "parts"}


async def test_the_key_of_a_whole_is_what_its_url_says(clock: TurnedClock) -> None:
    app = home(two(), TWO, clock)
    async with running(app) as client:
        await client.get("/home/7?utm=1")
    assert app.primary_keys("/home/7")[0] == "+home\n/home/7"
    assert str(normalise(b"/home/7", b"")) == "/home/7"
