"""The client's query as it reaches a part: repeated names, encoded names, empty values; and what the key has of it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.aggregates.routes import asked_of
from gateway.app.gateway import create_app
from gateway.http.target import normalise, query_name
from gateway.observability.access_log import silent
from gateway.testing import TurnedClock, running
from tests.support.shop import Shop, home, part


@pytest.mark.parametrize("settings", [{}, {"query": ["q"]}, {"tags": ["t-{user}"]}, {"path": "/p?x={user}"}])
def test_a_plain_path_makes_the_request_that_the_path_matched_anew_makes(settings: dict[str, Any]) -> None:
    (aggregate,) = home(Shop(), {"p": part("/p/{user}") | settings}).aggregates
    target = normalise(b"/home/A-7_~", b"")
    long, short = (asked_of(aggregate, target.path, target, (), plain=plain) for plain in (False, True))
    assert (short.target, short.shown, short.values.path) == (long.target, long.shown, long.values.path)
    source = aggregate.kit.sources["p"]
    assert source.target(short.values) == source.target(long.values)


SENT = [
    ("tag=a&tag=b", "/list?tag=a&tag=b"),
    ("tag=b&tag=a", "/list?tag=b&tag=a"),
    ("tag=a&x=1&tag=b&tag=a", "/list?tag=a&tag=b&tag=a"),
    ("tag=&tag=b", "/list?tag=&tag=b"),
    ("tag&tag=b", "/list?tag&tag=b"),
    ("tag=a+b&tag=%C3%BC", "/list?tag=a+b&tag=%C3%BC"),
    ("%74ag=a&tag=b", "/list?tag=a&tag=b"),
    ("filter%5Bname%5D=1&filter[name]=2", "/list?filter%5Bname%5D=1&filter%5Bname%5D=2"),
    ("other=1", "/list"),
]


@pytest.mark.parametrize(("query", "asked"), SENT)
async def test_the_pairs_of_a_name_reach_a_part_as_they_reach_a_route(
    query: str, asked: str, clock: TurnedClock
) -> None:
    shop = Shop()
    names = ["tag", "filter[name]"]
    config = {
        "redis_url": "none",
        "upstreams": {"shop": {"url": "http://shop.test"}},
        "routes": {
            "plain": {"path": "/list", "upstream": "shop", "ttl": "30s", "vary": [], "query": names},
            "home": {"path": "/home", "parts": {"list": part("/list", query=names, optional=True)}},
        },
    }
    app = create_app(config, transport=shop.transport, clock=clock, log=silent)
    async with running(app) as client:
        await client.get(httpx.URL("http://test", raw_path=f"/list?{query}".encode()))
        shop.asked.append("|")
        await client.get(httpx.URL("http://test", raw_path=f"/home?{query}".encode()))
    # The one entry serves both: an upstream that answers 404 is asked once.
    assert shop.asked == [asked, "|"]


TEMPLATES = [
    ("/l?t={query.tag}", "/l?t=a%20b&t=c"),
    ("/l?t={query.tag}&u={user}", "/l?t=a%20b&t=c&u=1"),
    ("/l?t=x-{query.tag}-{user}", "/l?t=x-a%20b-1&t=x-c-1"),
    ("/l?t={query.tag}.{query.page}", "/l?t=a%20b.2"),
    ("/l?t={query.tag}.{query.none}", "/l"),
    ("/l?t={query.none}", "/l"),
    ("/l?t={query.empty}", "/l"),
    ("/l/{query.tag}", "/l/a%20b"),
]


@pytest.mark.parametrize(("path", "asked"), TEMPLATES)
async def test_a_pair_that_takes_a_value_is_repeated_for_each_and_elsewhere_the_first_counts(
    path: str, asked: str, clock: TurnedClock
) -> None:
    shop = Shop()
    async with running(home(shop, {"list": part(path, optional=True)}, clock)) as client:
        await client.get("/home/1?tag=a+b&page=2&tag=&tag=c&empty=")
    assert shop.asked == [asked]


async def test_elements_that_are_fetched_together_are_asked_for_with_the_clients_pairs(clock: TurnedClock) -> None:
    shop = Shop()
    shop.set("/ids", [1, 2])
    shop.set("/items?currency=eur&ids=1%2C2", [{"id": 1}, {"id": 2}])
    each = part("/items/{item}", for_each="all[*]", batch="/items?ids={ids}", query=["currency"])
    async with running(home(shop, {"all": part("/ids"), "items": each}, clock)) as client:
        assert (await client.get("/home/1?currency=eur")).json()["items"] == [{"id": 1}, {"id": 2}]


SEEN = ("tag", "a b", "a+b")
names = st.sampled_from(["tag", "p", "a%20b", "a+b", "a%2Bb", "%74ag", "q"])
query_values = st.sampled_from(["", "a", "b", "a,b", "a+b", "a%20b", "%2C", "%26", "="])
queries = st.lists(st.tuples(names, query_values), max_size=4).map(lambda pairs: "&".join(f"{n}={v}" for n, v in pairs))


@given(queries, queries)
def test_where_two_requests_have_one_key_their_parts_are_asked_for_the_same(one: str, other: str) -> None:
    (aggregate,) = home(Shop(), {"a": part("/a?p={query.p}&z=1", query=list(SEEN))}).aggregates
    keys, asked = [], []
    for query in (one, other):
        target = normalise(b"/home/1", query.encode())
        found = asked_of(aggregate, "/home/1", target, ())
        keys.append(found.target)
        asked.append(aggregate.kit.sources["a"].target(found.values)[0])
        passed = [pair for pair in asked[-1].partition("?")[2].split("&") if pair[:2] not in ("p=", "z=")]
        assert passed == [pair for pair in target.query if query_name(pair) in SEEN]
    assert keys[0] != keys[1] or asked[0] == asked[1]


async def test_the_bytes_of_a_value_stand_in_a_target_whatever_they_mean(clock: TurnedClock) -> None:
    shop = Shop()
    async with running(home(shop, {"list": part("/l/{query.q}?q={query.q}", optional=True)}, clock)) as client:
        await client.get("/home/1?q=%FF+%C3%BC&q=%FE")
    assert shop.asked == ["/l/%FF%20%C3%BC?q=%FF%20%C3%BC&q=%FE"]


async def test_a_condition_sees_the_path_and_the_query_as_text(clock: TurnedClock) -> None:
    shop = Shop()
    shop.set("/a", b"1")
    when = "path.user == 'ü b' && query.q == 'ü b'"
    async with running(home(shop, {"a": part("/a", when=when)}, clock)) as client:
        assert (await client.get("/home/%C3%BC%20b?q=%C3%BC+b&q=c")).json() == {"a": 1}
        assert (await client.get("/home/x?q=%C3%BC+b")).json() == {}
