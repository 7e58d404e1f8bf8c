"""Direct routes: the route and the parameters of a plain line are those that all patterns in turn would give."""

from __future__ import annotations

from typing import cast

import pytest
from fastapi import APIRouter
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from starlette.routing import Mount, Route

from gateway import Gateway, create_app
from gateway.context import RequestContext
from gateway.edge.direct_routes import DirectRoute, Patterns
from gateway.http.request_parser import Limits, read_line
from gateway.http.target import Target, normalise, split_raw_target
from gateway.routing.fast_path import InterimClient
from gateway.routing.handlers import DeclaredRequest
from gateway.routing.upstream_request import UpstreamOrigin

PATHS = {
    "item": ("/items/{number}", "/inside/{number}/whole"),
    "special": ("/items/special", "/special"),
    "piece": ("/v{version}/{name}", "/{version}/{name}"),
    "rest": ("/files/{rest:path}", "/store/{rest}"),
    "query": ("/search/{word}", "/find?q={word}&fixed=1"),
    "constant": ("/constant", "/elsewhere"),
    "same": ("/same/{number}/{rest:path}", "/same/{number}/{rest}"),
    "turned": ("/turned/{one}/{two}", "/turned/{two}/{one}"),
}


def app() -> Gateway:
    upstream = {"up": {"url": "http://127.0.0.1:9"}}
    routes = {
        name: {"path": path, "upstream": "up", "upstream_path": inside, "ttl": "60s"}
        for name, (path, inside) in PATHS.items()
    }
    return create_app({"upstreams": upstream, "routes": routes, "redis_url": "none", "admin_listen": "none"})


APP = app()
PATTERNS = Patterns(lambda: APP.router.routes, APP._direct)
LIMITS = Limits()
NOBODY = cast(InterimClient, None)
SEGMENT = st.sampled_from(
    ["items", "special", "v1", "v", "vx-y", "files", "a", "b_c~", "search", "constant", "healthz", "same", "turned"]
)
LINES = st.builds(
    lambda method, segments: f"{method} /{'/'.join(segments)} HTTP/1.1".encode(),
    st.sampled_from(["GET", "HEAD"]),
    st.lists(SEGMENT, min_size=1, max_size=4),
)


@given(LINES)
def test_a_plain_line_has_the_route_and_target_that_any_line_has(line: bytes) -> None:
    read = read_line(line, LIMITS)
    target = normalise(*split_raw_target(read.target, "a.test", scheme="http"))
    direct, found = PATTERNS.direct(target.decoded), PATTERNS.plain(line)
    if direct is None:
        assert found is None
        return
    assert isinstance(direct, DirectRoute)
    assert found is not None
    assert found == (direct, read.method.decode(), target.path)
    inside, _ = direct.route.upstream_target(target.path, ())
    exchange = RequestContext("id", 0.0, "GET", "", "http", target=Target(target.path, (), target.path))
    asked = direct.ask(exchange, NOBODY, None, plain=True)
    assert isinstance(asked, DeclaredRequest)
    assert isinstance(asked.origin, UpstreamOrigin)
    assert (asked.origin.target, asked.asked.target) == (inside, inside)
    assert structs.replace(asked.origin, interim=None) == direct.route.origin(inside, "id", APP.metrics)


@pytest.mark.parametrize(
    "line",
    [
        b"GET /items/1?a=b HTTP/1.1",
        b"GET /items/1 HTTP/1.0",
        b"GET /items/a.b HTTP/1.1",
        b"GET /v.. HTTP/1.1",
        b"GET /v../name HTTP/1.1",
        b"GET /items/%61 HTTP/1.1",
        b"GET /items// HTTP/1.1",
        b"GET //items/1 HTTP/1.1",
        b"GET /items/1/ HTTP/1.1",
        b"GET http://a.test/items/1 HTTP/1.1",
        b"POST /items/1 HTTP/1.1",
        b"GET  /items/1 HTTP/1.1",
        b"GET /items/1 HTTP/1.1 ",
        b"GET /items/1\r HTTP/1.1",
        b"GET /items/\xc3\xa4 HTTP/1.1",
        b"GET /nothing/here HTTP/1.1",
        b"GET /healthz HTTP/1.1",
    ],
)
def test_all_other_lines_are_left_to_those_that_read_any(line: bytes) -> None:
    assert PATTERNS.plain(line) is None


def test_a_route_that_is_added_later_is_found_in_its_place() -> None:
    own = app()
    patterns = Patterns(lambda: own.router.routes, own._direct)
    line = b"GET /items/1 HTTP/1.1"
    assert patterns.plain(line) is not None
    router = APIRouter()

    @router.get("/items/{number}")
    async def item(number: int) -> int:
        return number

    own.router.routes.insert(0, router.routes[0])
    assert patterns.plain(line) is None
    assert patterns.direct("/items/1") is None


@pytest.mark.parametrize("first", [Mount("/items", routes=[]), Route("/{anything:path}", endpoint=lambda _: None)])
def test_what_stands_before_a_declared_route_is_the_app_s(first: Mount | Route) -> None:
    patterns = Patterns(lambda: [first, *APP.router.routes], APP._direct)
    assert patterns.plain(b"GET /items/1 HTTP/1.1") is None
    assert (patterns.plain(b"GET /constant HTTP/1.1") is None) is isinstance(first, Route)


def test_a_kind_of_route_that_nobody_knows_may_have_any_path() -> None:
    assert Patterns(lambda: [object(), *APP.router.routes], {}).plain(b"GET /items/1 HTTP/1.1") is None  # type: ignore[list-item]
