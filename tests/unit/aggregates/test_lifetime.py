"""The lifetime of a joined response: that of its parts, with their Vary, and private or not stored where one is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from gateway.aggregates.lifetime import PartLife, joining, together, whole_headers
from gateway.cache.flight import Landed
from gateway.cache.request import CacheRequest
from gateway.context import RequestContext
from gateway.policy.keys import Plan
from gateway.policy.rules import PLAIN
from gateway.policy.storability import Admit, ReceivedResponse, admit
from gateway.testing import TurnedClock, running
from gateway.upstreams.response import Fetched, WholeBody
from tests.support.shop import TWO, Shop, home, part, said, two


async def test_age_is_the_oldest_parts_and_max_age_that_plus_the_least_remaining_life(clock: TurnedClock) -> None:
    shop = two()
    parts = {"user": part("/users/{user}", ttl="60s"), "offers": part("/offers", ttl="10s")}
    app = home(shop, parts, clock)
    app.engine._storing.jitter = lambda: 0.0
    async with running(app) as client:
        await client.get("/home/7")
        clock.turn(11)
        response = await client.get("/home/7")
        assert said(response) == {"user": "hit", "offers": "miss"}
        assert (response.headers["age"], response.headers["cache-control"]) == ("11", "max-age=21")
        clock.turn(5)
        response = await client.get("/home/7")
        assert (response.headers["age"], response.headers["cache-control"]) == ("16", "max-age=21")
        assert response.headers["cache-status"] == "gateway; hit; ttl=5"
    assert shop.count("/users/7") == 1


async def test_a_private_part_makes_the_whole_private_and_its_public_parts_are_shared(clock: TurnedClock) -> None:
    shop = two()
    shop.set("/cart/7", {"items": []}, cache_control="private, max-age=60")
    parts = {**TWO, "cart": part("/cart/{user}", ttl="origin", vary=None) | {"authorization": "pass"}}
    del parts["cart"]["vary"]
    async with running(home(shop, parts, clock)) as client:
        for token in ("a", "b"):
            response = await client.get("/home/7", headers={"authorization": f"Bearer {token}"})
            assert response.headers["cache-control"].startswith("private, max-age=")
            assert response.headers["gateway-complete"] == "?1"
    assert shop.count("/cart/7") == 2
    assert shop.count("/offers") == shop.count("/users/7") == 1
    sent = [request.headers.get("authorization") for request in shop.requests if request.url.path == "/cart/7"]
    assert sent == ["Bearer a", "Bearer b"]
    assert all("authorization" not in request.headers for request in shop.requests if request.url.path != "/cart/7")


async def test_a_parts_vary_is_the_wholes(clock: TurnedClock) -> None:
    shop = two()
    shop.set("/news", ["n"], vary="Accept-Language", cache_control="max-age=60")
    parts = {**TWO, "news": {"upstream": "shop", "path": "/news"}}
    async with running(home(shop, parts, clock)) as client:
        for language in ("de", "fr", "de"):
            response = await client.get("/home/7", headers={"accept-language": language})
        assert "accept-language" in response.headers["vary"]
        assert response.headers["cache-status"].startswith("gateway; hit")
    assert (shop.count("/news"), shop.count("/offers")) == (2, 1)


async def test_what_an_upstream_forbids_to_store_makes_the_whole_no_store(clock: TurnedClock) -> None:
    shop = two()
    shop.set("/secret", {"x": 1}, cache_control="no-store")
    async with running(home(shop, {**TWO, "secret": {"upstream": "shop", "path": "/secret"}}, clock)) as client:
        await client.get("/home/7")
        response = await client.get("/home/7")
    assert response.headers["cache-control"] == "no-store"
    assert (shop.count("/secret"), shop.count("/offers")) == (2, 1)


async def test_an_answer_for_which_nobody_was_asked_lives_for_a_minute(clock: TurnedClock) -> None:
    parts = {"version": {"static": 1}, "debug": part("/debug", when="query.debug")}
    async with running(home(Shop(), parts, clock)) as client:
        response = await client.get("/home/7")
    assert (response.json(), response.headers["cache-control"]) == ({"version": 1}, "max-age=60")


LIVES = st.builds(
    PartLife,
    age=st.floats(0, 100),
    remaining=st.floats(-1, 100),
    personal=st.booleans(),
    stamps=st.just(("",)),
    started=st.just(5.0),
    names=st.sampled_from([(), ("r:a",)]),
    vary=st.sampled_from([(), ("accept",), ("accept", "x-b")]),
)


@pytest.fixture(scope="module")
def whole() -> Any:
    app = home(Shop(), TWO, TurnedClock())
    return app.engine, app.aggregates[0].route


@given(lives=st.lists(LIVES, min_size=1, max_size=3), keyed=st.sampled_from([(), ("authorization",)]))
def test_a_derived_response_is_stored_as_its_fields_say(
    whole: Any, lives: list[PartLife], keyed: tuple[str, ...]
) -> None:
    engine, route = whole
    life = joining(together(lives), complete=True, stamp="", longest=60.0)
    if life.made is None:
        return
    body = b"{}"
    fetched = Fetched(200, whole_headers(body, life, "a=hit", complete=True), WholeBody(body), life.made)
    received = ReceivedResponse(200, fetched.headers, 10.0, 11.0)
    plan = Plan("+home\n/", "+home\n/", (), keyed=keyed)
    nothing: Any = None
    wanted = structs.replace(route.selection, plan=plan)
    request = CacheRequest(route, plan, PLAIN, (), RequestContext("", 0.0, "GET", "", ""), nothing, nothing, wanted)
    landing = engine._storing.derived(request, fetched, received, life.made, None)
    verdict = admit(received, PLAIN, route.rules, plan)
    assert isinstance(landing, Landed) == isinstance(verdict, Admit)
    if isinstance(landing, Landed) and isinstance(verdict, Admit):
        stored = landing.stored
        assert stored.headers == (*verdict.headers, (b"date", b"Thu, 01 Jan 1970 00:00:11 GMT"))
        assert (stored.vary, stored.born, stored.started) == (verdict.vary, 11.0, 5.0)
        assert int(stored.life.lifetime or 0) == verdict.life.lifetime
