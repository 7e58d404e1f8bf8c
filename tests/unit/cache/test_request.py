"""A request for the engine: what follows from its route, its plan and its directives."""

from __future__ import annotations

import pytest
from msgspec import structs

from gateway.cache.request import CacheRequest, Route
from gateway.context import RequestContext
from gateway.policy.keys import Keying, Plan
from gateway.policy.rules import CachePolicy, RequestDirectives


def route(ttl: float | None = 60.0, **settings: object) -> Route:
    return Route("item", CachePolicy(ttl=ttl), Keying(vary=()), **settings)  # type: ignore[arg-type]


def request(of: Route, *, head: bool = False, through: str | None = None) -> CacheRequest:
    plan, headers = Plan("p", "b", (), None, ()), ((b"accept", b"a/b"),)
    return CacheRequest(
        of,
        plan,
        RequestDirectives(head=head),
        headers,
        RequestContext("1", 0.0, "GET", "", "http"),
        None,  # type: ignore[arg-type]
        None,  # type: ignore[arg-type]
        structs.replace(of.selection, plan=plan, headers=headers, tags=("shop",), through=through),
    )


@pytest.mark.parametrize(("ttl", "made", "follows"), [(60.0, False, False), (None, False, True), (None, True, False)])
def test_a_route_follows_the_origin_unless_it_has_a_duration_or_derives_its_responses(
    ttl: float | None, made: bool, follows: bool
) -> None:
    assert route(ttl, made=made).follows_origin == follows


def test_a_request_is_noted_as_its_routes() -> None:
    exchange, of = RequestContext("1", 0.0, "GET", "", "http"), route()
    of.takes(exchange)
    assert (exchange.route, exchange.downstream) == ("item", of.downstream)


def test_a_route_is_equal_to_itself_alone_and_is_found_by_that() -> None:
    one, other = route(), route()
    assert {one: 1, other: 2} == {other: 2, one: 1}
    assert one != other


def test_the_origin_is_asked_by_head_only_where_the_client_was() -> None:
    assert (request(route()).method, request(route(), head=True).method) == ("GET", "HEAD")


def test_what_may_answer_is_selected_by_the_route_and_what_it_was_requested_through() -> None:
    asked = request(route(max_body=5), through="home.item")
    assert asked.wanted.largest == 5
    names = " ".join(map(str, asked.wanted.names))
    assert [word in names for word in ("item", "home.item", "shop")] == [True] * 3
    assert "home.item" not in " ".join(map(str, request(route()).wanted.names))
