"""Aggregates: parts asked, cached and joined, as a client sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from gateway.app.gateway import create_app
from gateway.observability.access_log import silent
from gateway.testing import StubUpstream, TurnedClock, running
from tests.support.shop import TWO, Shop, home, part, said, two

Reply = Callable[[httpx.Request], httpx.Response]


# --- joining, and the life of the whole ----------------------------------------------------------------------


@pytest.mark.parametrize("where", ["path", "query", "header", "tag"])
async def test_a_value_as_large_as_an_answer_makes_no_request_as_large(where: str) -> None:
    shop = Shop()
    taking = {
        "path": part("/b/{a.one}"),
        "query": part("/b?c={a.one}"),
        "header": part("/b", headers={"x-one": "{a.one}"}),
        "tag": part("/b", tags=["one:{a.one}"]),
    }
    async with running(home(shop, {"a": part("/a/{user}"), "b": {**taking[where], "default": 0}})) as client:
        shop.set("/a/1", {"one": "x" * 9000})
        long = await client.get("/home/1")
        assert (said(long)["b"], shop.asked) == ("refused;default", ["/a/1"])
        shop.set("/a/2", {"one": "x" * 1000})
        await client.get("/home/2")
    assert len(shop.asked) == 3


async def test_parts_are_joined_and_the_whole_says_what_became_of_each(clock: TurnedClock) -> None:
    shop = two()
    async with running(home(shop, TWO, clock)) as client:
        first, second = await client.get("/home/7"), await client.get("/home/7")
    assert first.content == second.content == b'{"user":{"id": 7},"offers":[1,2]}'
    assert said(first) == {"user": "miss", "offers": "miss"}
    assert said(second) == {"user": "hit", "offers": "hit"}
    assert first.headers["gateway-complete"] == second.headers["gateway-complete"] == "?1"
    assert first.headers["cache-status"] == "gateway; fwd=miss; stored; fwd-status=200"
    assert second.headers["cache-status"].startswith("gateway; hit; ttl=")
    assert 'user;desc="miss";dur=' in first.headers["server-timing"]
    assert sorted(shop.asked) == ["/offers", "/users/7"]


async def test_only_what_is_stale_is_fetched(clock: TurnedClock) -> None:
    shop = two()
    async with running(home(shop, TWO, clock)) as client:
        for _ in range(5):
            await client.get("/home/7")
            clock.turn(10)
    assert (shop.count("/users/7"), shop.count("/offers")) == (2, 5)


async def test_a_part_is_shared_with_a_route_that_asks_for_the_same(clock: TurnedClock) -> None:
    shop = Shop()
    shop.set("/products/7", {"id": 7})
    async with running(home(shop, {"product": part("/products/{user}")}, clock)) as client:
        await client.get("/products/7")
        response = await client.get("/home/7")
        assert said(response) == {"product": "hit"}
    assert shop.asked == ["/products/7"]


async def test_a_part_may_name_a_route_and_has_its_settings(clock: TurnedClock) -> None:
    shop = Shop()
    shop.set("/products/7", {"id": 7})
    async with running(home(shop, {"product": {"route": "product", "path": "/products/{user}"}}, clock)) as client:
        assert (await client.get("/home/7")).json() == {"product": {"id": 7}}
        await client.get("/products/7")
    assert shop.asked == ["/products/7"]


async def test_one_join_and_one_fetch_a_part_serve_all_who_ask_at_once(clock: TurnedClock) -> None:
    shop = two()
    shop.gates["/offers"] = asyncio.Event()
    app = home(shop, TWO, clock)
    async with running(app) as client:
        waiting = [asyncio.ensure_future(client.get("/home/7")) for _ in range(50)]
        while sum(flight.waiting for flight in app.engine.flights.values()) < 50:
            await asyncio.sleep(0)
        shop.gates["/offers"].set()
        responses = await asyncio.gather(*waiting)
    assert {response.status_code for response in responses} == {200}
    assert sorted(shop.asked) == ["/offers", "/users/7"]


async def test_the_whole_has_an_etag_and_answers_304_and_head(clock: TurnedClock) -> None:
    async with running(home(two(), TWO, clock)) as client:
        head = await client.head("/home/7")
        whole = await client.get("/home/7")
        same = await client.get("/home/7", headers={"if-none-match": whole.headers["etag"]})
    assert (head.content, head.headers["content-length"]) == (b"", str(len(whole.content)))
    assert (same.status_code, same.content) == (304, b"")


async def test_a_client_that_wants_no_old_answer_gets_new_parts(clock: TurnedClock) -> None:
    shop = two()
    async with running(home(shop, TWO, clock)) as client:
        await client.get("/home/7")
        clock.turn(5)
        assert (await client.get("/home/7", headers={"cache-control": "max-age=6"})).headers["age"] == "5"
        response = await client.get("/home/7", headers={"cache-control": "max-age=3"})
        assert response.headers["age"] == "0"
        await client.get("/home/7", headers={"cache-control": "no-cache"})
        await client.get("/home/7", headers={"cache-control": "min-fresh=20"})
    assert shop.count("/offers") == 4


async def test_a_stale_part_is_used_at_once_and_refreshed_behind(clock: TurnedClock) -> None:
    shop = two()
    parts = {**TWO, "offers": part("/offers", ttl="10s", stale_while_revalidate="60s")}
    app = home(shop, parts, clock)
    async with running(app) as client:
        await client.get("/home/7")
        clock.turn(12)
        shop.set("/offers", [3])
        stale = await client.get("/home/7")
        assert stale.json()["offers"] == [1, 2]
        assert said(stale) == {"user": "hit", "offers": "stale;age=12"}
        assert stale.headers["gateway-complete"] == "?1"
        await app.engine.settle()
        assert (await client.get("/home/7")).json()["offers"] == [3]


# --- parts that fail -----------------------------------------------------------------------------------------


async def test_a_stale_copy_stands_in_first_and_the_whole_is_complete_but_not_stored(clock: TurnedClock) -> None:
    shop = two()
    parts = {**TWO, "offers": part("/offers", ttl="10s", stale_if_error="60s", default=[])}
    async with running(home(shop, parts, clock)) as client:
        await client.get("/home/7")
        clock.turn(31)
        shop.set("/offers", 500)
        response = await client.get("/home/7")
        assert response.json()["offers"] == [1, 2]
        assert said(response)["offers"] == "stale;age=31;error=error"
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["gateway-complete"] == "?1"
        clock.turn(60)
        response = await client.get("/home/7")
        assert response.json()["offers"] == []
        assert response.headers["gateway-complete"] == "?0"


async def test_a_part_that_failed_is_not_asked_again_for_retry_after(clock: TurnedClock) -> None:
    shop = two()
    shop.set("/offers", 500)
    parts = {**TWO, "offers": part("/offers", optional=True)}
    async with running(home(shop, parts, clock, retry_after="3s")) as client:
        for _ in range(4):
            response = await client.get("/home/7")
            assert said(response)["offers"] == "status-500"
            clock.turn(0.9)
        assert shop.count("/offers") == 1
        clock.turn(0.9)
        await client.get("/home/7")
    assert shop.count("/offers") == 2


async def test_a_part_that_is_late_fails_by_its_own_timeout_and_its_answer_is_kept(clock: TurnedClock) -> None:
    shop = two()
    shop.gates["/offers"] = asyncio.Event()
    app = home(shop, {**TWO, "offers": part("/offers", optional=True, timeout="50ms")}, clock)
    async with running(app) as client:
        response = await client.get("/home/7")
        assert said(response) == {"user": "miss", "offers": "timeout"}


async def test_while_one_request_tries_a_part_again_the_others_do_without_it(clock: TurnedClock) -> None:
    shop = two()
    app = home(shop, {**TWO, "offers": part("/offers", ttl="10s", stale_if_error="60s")}, clock)
    async with running(app) as client:
        await client.get("/home/7")
        clock.turn(11)
        shop.set("/offers", 500)
        await client.get("/home/7")
        clock.turn(1.1)
        gate = shop.gates["/offers"] = asyncio.Event()
        trying = asyncio.ensure_future(client.get("/home/7"))
        while shop.count("/offers") < 3:
            await asyncio.sleep(0)
        for _ in range(5):
            assert said(await client.get("/home/7"))["offers"] == "stale;age=12;error=error"
        shop.set("/offers", [9])
        gate.set()
        assert (await trying).json()["offers"] == [9]
        assert said(await client.get("/home/7"))["offers"] == "hit"
    assert shop.count("/offers") == 3


async def test_the_deadline_of_the_whole_bounds_all_parts(clock: TurnedClock) -> None:
    shop = two()
    shop.gates["/offers"] = asyncio.Event()
    app = home(shop, {**TWO, "offers": part("/offers", optional=True)}, clock, deadline="300ms")
    async with running(app) as client:
        response = await client.get("/home/7")
        assert said(response) == {"user": "miss", "offers": "timeout"}
        shop.gates["/offers"].set()
        await app.engine.settle()
        clock.turn(2)
        assert said(await client.get("/home/7"))["offers"] == "hit"


async def test_an_empty_object_from_a_healthy_part_is_complete_and_so_is_a_part_that_is_not_there(
    clock: TurnedClock,
) -> None:
    shop = two()
    shop.set("/offers", {})
    parts = {**TWO, "reviews": part("/none", optional=True)}
    async with running(home(shop, parts, clock)) as client:
        response = await client.get("/home/7")
        assert response.json() == {"user": {"id": 7}, "offers": {}, "reviews": None}
        assert response.headers["gateway-complete"] == "?1"
        assert said(response)["reviews"] == "absent"
        assert said(await client.get("/home/7"))["reviews"] == "absent"
    assert shop.count("/none") == 1


# --- whose answer it is --------------------------------------------------------------------------------------


async def test_two_users_never_get_each_others_part(clock: TurnedClock) -> None:
    shop = two()

    def answer(request: httpx.Request) -> httpx.Response:
        who = request.headers.get("authorization", "nobody")
        return httpx.Response(200, json={"who": who}, headers={"cache-control": "private"})

    upstream = StubUpstream(answer)
    config = {
        "redis_url": "none",
        "upstreams": {"shop": {"url": "http://shop.test"}},
        "routes": {
            "home": {
                "path": "/home",
                "parts": {"me": {"upstream": "shop", "path": "/me", "authorization": "pass"}},
            }
        },
    }
    app = create_app(config, transport=upstream, clock=clock, log=silent)
    async with running(app) as client:
        responses = await asyncio.gather(
            *(client.get("/home", headers={"authorization": f"Bearer {n}"}) for n in range(50))
        )
    assert [response.json()["me"]["who"] for response in responses] == [f"Bearer {n}" for n in range(50)]
    assert shop.asked == []


async def test_a_part_keyed_by_authorization_is_stored_for_each(clock: TurnedClock) -> None:
    shop = two()
    async with running(home(shop, {**TWO, "user": part("/users/{user}", authorization="key")}, clock)) as client:
        for token in ("a", "b", "a", "b"):
            response = await client.get("/home/7", headers={"authorization": token})
        assert "authorization" in response.headers["vary"]
        assert response.headers["cache-status"].startswith("gateway; hit")
    assert (shop.count("/users/7"), shop.count("/offers")) == (2, 1)


# --- purging -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("purge", "refetched"),
    [({"tags": ["offers"]}, 1), ({"tags": ["user:7"]}, 1), ({"tags": ["page:7"]}, 0), ({"tags": ["upstreams-own"]}, 1),
     ({"routes": ["home"]}, 2), ({"routes": ["home.offers"]}, 1), ({"everything": True}, 2),
     ({"keys": ["/home/7"]}, 0)],
)  # fmt: skip
async def test_a_purge_by_any_name_of_a_part_reaches_the_whole(
    purge: dict[str, Any], refetched: int, clock: TurnedClock
) -> None:
    shop = two()
    shop.set("/users/7", {"id": 7}, surrogate_key="upstreams-own")
    parts = {"user": part("/users/{user}", tags=["user:{user}"]), "offers": part("/offers", tags=["offers"])}
    app = home(shop, parts, clock, tags=["page:{user}"])
    async with running(app) as client:
        await client.get("/home/7")
        clock.turn(1)
        await app.purge(**purge)
        response = await client.get("/home/7")
    assert len(shop.asked) - 2 == refetched
    assert "fwd=" in response.headers["cache-status"] or "joined" in response.headers["cache-status"]


async def test_what_is_stored_and_void_is_missed_and_what_other_headers_selected_is_a_vary_miss(
    clock: TurnedClock,
) -> None:
    app = home(two(), {**TWO, "user": part("/users/{user}", vary=["accept-language"])}, clock)
    async with running(app) as client:
        said = []
        for language, purged in (("de", False), ("de", True), ("fr", False), ("de", False)):
            if purged:
                await app.purge(routes=["home"])
            response = await client.get("/home/7", headers={"accept-language": language})
            said.append(response.headers["cache-status"].partition("; stored")[0])
        clock.turn(100)
        response = await client.get("/home/7", headers={"accept-language": "de"})
    assert said[:3] == ["gateway; fwd=miss", "gateway; fwd=miss", "gateway; fwd=vary-miss"]
    assert said[3].startswith("gateway; hit")
    assert response.headers["cache-status"].startswith("gateway; fwd=stale; stored")


async def test_a_soft_purge_of_a_part_ends_the_wholes_freshness(clock: TurnedClock) -> None:
    shop = two()
    app = home(shop, {**TWO, "offers": part("/offers", tags=["offers"], stale_while_revalidate="60s")}, clock)
    async with running(app) as client:
        await client.get("/home/7")
        clock.turn(1)
        await app.purge(tags=["offers"], soft=True)
        response = await client.get("/home/7")
        assert said(response)["offers"] == "stale;age=1"
    assert shop.count("/offers") == 2


async def test_who_asks_after_a_purge_never_gets_what_was_being_joined_before_it(clock: TurnedClock) -> None:
    shop = two()
    shop.gates["/users/7"] = asyncio.Event()
    app = home(shop, {**TWO, "offers": part("/offers", tags=["offers"])}, clock)
    async with running(app) as client:
        early = asyncio.ensure_future(client.get("/home/7"))
        while "/offers" not in shop.asked or app.engine.memory.statistics.entries < 1:
            await asyncio.sleep(0)
        shop.set("/offers", ["new"])
        await app.purge(tags=["offers"])
        late = asyncio.ensure_future(client.get("/home/7"))
        while shop.count("/offers") < 2:
            await asyncio.sleep(0)
        shop.gates["/users/7"].set()
        assert (await late).json()["offers"] == ["new"]
        await early
        assert (await client.get("/home/7")).json()["offers"] == ["new"]


# --- chains, lists, conditions, selections -------------------------------------------------------------------


async def test_a_part_uses_a_value_of_an_earlier_one(clock: TurnedClock) -> None:
    shop = Shop()
    shop.set("/p/7", {"id": 7, "seller": {"id": 3}})
    shop.set("/s/3", {"name": "Berg"})
    parts = {"seller": part("/s/{product.seller.id}"), "product": part("/p/{user}")}
    async with running(home(shop, parts, clock)) as client:
        response = await client.get("/home/7")
        assert response.content == b'{"seller":{"name":"Berg"},"product":{"id":7,"seller":{"id":3}}}'
        clock.turn(29)
        assert (await client.get("/home/7")).status_code == 200
    assert shop.asked[:2] == ["/p/7", "/s/3"]


async def test_a_missing_value_skips_the_part_and_says_so(clock: TurnedClock) -> None:
    shop = Shop()
    shop.set("/p/7", {"id": 7})
    parts = {"product": part("/p/{user}"), "seller": part("/s/{product.seller_id}")}
    async with running(home(shop, parts, clock)) as client:
        response = await client.get("/home/7")
        again = await client.get("/home/7")
    assert response.json() == {"product": {"id": 7}, "seller": None}
    assert said(response)["seller"] == said(again)["seller"] == 'skipped;missing="product.seller_id"'
    assert response.headers["gateway-complete"] == "?1"
    assert again.headers["cache-status"].startswith("gateway; hit")


async def test_a_part_whose_earlier_part_failed_is_skipped(clock: TurnedClock) -> None:
    shop = Shop()
    shop.set("/p/7", 500)
    parts = {"product": part("/p/{user}", optional=True), "seller": part("/s/{product.seller_id}")}
    async with running(home(shop, parts, clock)) as client:
        response = await client.get("/home/7")
    assert response.json() == {"product": None, "seller": None}
    assert response.headers["gateway-complete"] == "?0"


CART = {
    "cart": part("/cart/{user}"),
    "prices": part("/prices/{item}", for_each="cart.items[*].id", limit=3, tags=["price:{item}"]),
}


async def test_a_part_for_each_element_of_a_list(clock: TurnedClock) -> None:
    shop = Shop()
    shop.set("/cart/7", {"items": [{"id": 2}, {"id": 1}, {"id": 2}]})
    shop.set("/prices/1", {"cents": 1})
    shop.set("/prices/2", {"cents": 2})
    app = home(shop, CART, clock)
    async with running(app) as client:
        response = await client.get("/home/7")
        assert response.json()["prices"] == [{"cents": 2}, {"cents": 1}, {"cents": 2}]
        assert said(response)["prices"] == "list;miss=2"
        await app.purge(tags=["price:1"])
        response = await client.get("/home/7")
        assert said(response)["prices"] == "list;hit=1;miss=1"
    assert sorted(shop.asked) == ["/cart/7", "/prices/1", "/prices/1", "/prices/2"]


async def test_no_more_elements_than_the_limit_are_asked_for(clock: TurnedClock) -> None:
    shop = Shop()
    shop.set("/cart/7", {"items": [{"id": number} for number in range(9)]})
    for number in range(9):
        shop.set(f"/prices/{number}", b"%d" % number)
    async with running(home(shop, CART, clock)) as client:
        response = await client.get("/home/7")
    assert response.json()["prices"] == [0, 1, 2, *[None] * 6]
    assert said(response)["prices"] == "list;miss=3;left-out=6"


def failing_element() -> Shop:
    shop = Shop()
    shop.set("/cart/7", {"items": [{"id": 1}, {"id": 2}, {"id": 3}]})
    shop.set("/prices/1", b"1")
    shop.set("/prices/2", 500)
    return shop


async def test_an_element_that_fails_is_null_and_leaves_the_answer_incomplete(clock: TurnedClock) -> None:
    shop = failing_element()
    async with running(home(shop, CART, clock, errors=True)) as client:
        response = await client.get("/home/7")
        assert (response.status_code, response.json()["prices"]) == (200, [1, None, None])
        assert said(response)["prices"] == "partial;miss=1;status-500=1;absent=1;failed=1"
        assert response.headers["gateway-complete"] == "?0"
        assert response.headers["cache-control"] == "no-store"
        detail = response.json()["_errors"]["prices"]["detail"]
        assert detail == "The part prices: 1 of 3 elements failed, the first because upstream returned 500."
        shop.set("/prices/2", b"2")
        clock.turn(1.1)
        response = await client.get("/home/7")
    assert said(response)["prices"] == "list;hit=1;miss=1;absent=1"
    assert (response.headers["gateway-complete"], shop.count("/prices/1")) == ("?1", 1)


async def test_where_each_element_is_required_one_that_fails_fails_the_part(clock: TurnedClock) -> None:
    shop = failing_element()
    strict = CART["prices"] | {"elements": "required"}
    async with running(home(shop, {**CART, "prices": strict}, clock)) as client:
        refused = await client.get("/home/7")
    assert (refused.status_code, "prices" in refused.json()["detail"]) == (502, True)
    async with running(home(shop, {**CART, "prices": strict | {"default": []}}, clock)) as client:
        response = await client.get("/home/7")
    assert response.json()["prices"] == []
    assert said(response)["prices"] == "failed;miss=1;status-500=1;absent=1;default"


async def test_where_all_elements_fail_the_part_has_failed(clock: TurnedClock) -> None:
    shop = failing_element()
    shop.set("/cart/7", {"items": [{"id": 2}]})
    async with running(home(shop, CART, clock)) as client:
        assert (await client.get("/home/7")).status_code == 502


async def test_parts_that_need_a_list_some_of_whose_elements_failed_take_the_others(clock: TurnedClock) -> None:
    shop = failing_element()
    shop.set("/rates/1", {"rate": 1})
    parts = {**CART, "rate": part("/rates/{prices[0]}")}
    async with running(home(shop, parts, clock)) as client:
        assert (await client.get("/home/7")).json()["rate"] == {"rate": 1}


async def test_the_part_that_takes_longest_is_asked_first(clock: TurnedClock) -> None:
    shop = two()
    app = home(shop, TWO, clock)
    paces = app.aggregates[0].kit.paces
    async with running(app) as client:
        for slow, quick in (("user", "offers"), ("offers", "user")):
            paces.update({slow: 1.0, quick: 0.1})
            await client.get("/home/7")
            clock.turn(31)
    assert shop.asked == ["/users/7", "/offers", "/offers", "/users/7"]
    assert 0.1 < paces["offers"] < 1.0


async def test_a_header_whose_value_the_client_did_not_send_is_left_out(clock: TurnedClock) -> None:
    shop = two()
    parts = {**TWO, "offers": part("/offers", headers={"x-app": "{header.x-app}", "x-key": "k"})}
    async with running(home(shop, parts, clock)) as client:
        assert said(await client.get("/home/7"))["offers"] == "miss"
        assert "x-app" not in shop.requests[-1].headers
        assert said(await client.get("/home/7", headers={"x-app": "1"}))["offers"] == "miss"
    assert [request.headers.get("x-app") for request in shop.requests if request.url.path == "/offers"] == [None, "1"]


async def test_a_header_whose_value_an_earlier_part_lacks_skips_the_part(clock: TurnedClock) -> None:
    shop = two()
    parts = {**TWO, "offers": part("/offers", headers={"x-segment": "{user.segment}"})}
    async with running(home(shop, parts, clock)) as client:
        assert said(await client.get("/home/7"))["offers"] == 'skipped;missing="user.segment"'
    assert shop.count("/offers") == 0


@pytest.mark.parametrize("came", [b'[{"id":1,"secret":2}]', b'{"id":1,"secret":2}', b"7", b'"text"', b"null"])
async def test_a_part_alone_at_the_root_is_the_whole_answer(came: bytes, clock: TurnedClock) -> None:
    shop = Shop()
    shop.set("/all", came)
    parts = {"all": part("/all", group=None, deny=["secret"])}
    async with running(home(shop, parts, clock)) as client:
        first, second = await client.get("/home/7"), await client.get("/home/7")
        schema = (await client.get("/openapi.json")).json()
    assert first.content == second.content == came.replace(b',"secret":2', b"")
    assert second.headers["cache-status"].startswith("gateway; hit")
    content = schema["paths"]["/home/{user}"]["get"]["responses"]["200"]["content"]
    assert content["application/json"]["schema"] == {}


async def test_an_empty_list_is_an_empty_part(clock: TurnedClock) -> None:
    shop = Shop()
    shop.set("/cart/7", {"items": []})
    async with running(home(shop, CART, clock)) as client:
        response = await client.get("/home/7")
        assert response.json()["prices"] == []
        shop.set("/cart/7", {})
        clock.turn(31)
        response = await client.get("/home/7")
    assert said(response)["prices"] == 'skipped;missing="cart.items[*].id"'


async def test_a_condition_leaves_a_part_out_and_each_answer_is_kept_for_itself(clock: TurnedClock) -> None:
    shop = two()
    parts = {**TWO, "debug": part("/offers", when="query.debug", group="debug")}
    async with running(home(shop, parts, clock)) as client:
        plain = await client.get("/home/7?other=1")
        debug = await client.get("/home/7?debug=1")
        again = await client.get("/home/7?other=2")
    assert "debug" not in plain.json()
    assert debug.json()["debug"] == [1, 2]
    assert said(plain)["debug"] == "skipped"
    assert again.headers["cache-status"].startswith("gateway; hit")


async def test_parameters_and_headers_reach_a_part_where_it_names_them_and_nowhere_else(clock: TurnedClock) -> None:
    shop = two()
    shop.set("/o?page=2&sort=a%20b", "page two")
    parts = {
        "user": TWO["user"],
        "o": part("/o?page={query.page}", query=["sort"], headers={"x-app": "{header.x-app}", "x-key": "k"}),
    }
    async with running(home(shop, parts, clock)) as client:
        headers = {"x-app": "ios/1", "x-other": "2"}
        response = await client.get("/home/7?page=2&sort=a%20b&evil=1", headers=headers)
        assert response.json()["o"] == "page two"
        await client.get("/home/7?page=2&sort=a%20b", headers={"x-app": "android/1"})
    asked = [request for request in shop.requests if request.url.path == "/o"]
    assert [request.headers["x-app"] for request in asked] == ["ios/1", "android/1"]
    assert all(request.headers["x-key"] == "k" and "x-other" not in request.headers for request in asked)


async def test_static_parts_stand_always_or_where_others_failed(clock: TurnedClock) -> None:
    shop = two()
    parts = {
        "user": TWO["user"],
        "offers": part("/offers", optional=True),
        "version": {"static": 3},
        "sorry": {"static": {"text": "later"}, "static_if": "incomplete"},
    }
    async with running(home(shop, parts, clock)) as client:
        assert (await client.get("/home/7")).json() == {"user": {"id": 7}, "offers": [1, 2], "version": 3}
        shop.set("/offers", 500)
        clock.turn(700)
        body = (await client.get("/home/7")).json()
    assert body == {"user": {"id": 7}, "offers": None, "version": 3, "sorry": {"text": "later"}}


async def test_a_shadow_part_is_asked_and_ignored(clock: TurnedClock) -> None:
    shop = two()
    shop.set("/new", 500)
    app = home(shop, {**TWO, "new": part("/new", shadow=True)}, clock)
    async with running(app) as client:
        response = await client.get("/home/7")
        while app.aggregates[0].kit.shadows:
            await asyncio.sleep(0)
    assert response.json() == {"user": {"id": 7}, "offers": [1, 2]}
    assert response.headers["gateway-complete"] == "?1"
    assert shop.count("/new") == 1
    assert b'outcome="shadow-failed",part="new"' in app.metrics.render()


# --- batches, hedges, retries --------------------------------------------------------------------------------


async def test_a_reference_may_begin_with_an_index(clock: TurnedClock) -> None:
    shop = Shop()
    shop.set("/offers", [{"item_id": 4}])
    shop.set("/p/4", {"id": 4})
    parts = {"offers": part("/offers"), "featured": part("/p/{offers[0].item_id}")}
    async with running(home(shop, parts, clock)) as client:
        assert (await client.get("/home/7")).json()["featured"] == {"id": 4}
