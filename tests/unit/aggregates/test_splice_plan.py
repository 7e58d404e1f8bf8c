"""Which aggregates the edge may join itself, and from what."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from gateway.aggregates.routes import Again
from gateway.aggregates.splice_plan import SplicePart, SplicePlan, frame_of
from gateway.app.gateway import create_app
from gateway.context import SCOPE_KEY
from gateway.observability.access_log import silent
from gateway.testing import StubUpstream, running
from tests.support.edge_lines import Counted, Line, asked
from tests.support.gateways import json_answer


def part(**settings: Any) -> dict[str, Any]:
    return {"upstream": "api", "path": "/x", "ttl": "60s", **settings}


async def plan_of(parts: dict[str, Any], **route: Any) -> SplicePlan | None:
    """How the edge may join what a request for `/home/7` was answered with."""
    routes = {"home": {"path": "/home/{user}", "parts": parts, **route}}
    upstreams = {"api": {"url": "http://api.test"}}
    config = {"redis_url": "none", "upstreams": upstreams, "routes": routes}
    app = create_app(config, transport=StubUpstream(json_answer()), log=silent)
    scopes: list[Any] = []
    found: list[SplicePlan | None] = []

    async def noting(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        await app(scope, receive, send)
        if scope["type"] == "http":
            exchange = scope[SCOPE_KEY]
            found.append(exchange.recall.joinable(exchange) if exchange.recall is not None else None)

    async with running(app):
        client = httpx.AsyncClient(transport=httpx.ASGITransport(noting), base_url="http://gateway.test")
        assert (await client.get("/home/7")).status_code == 200
    return found[0]


async def test_parts_that_are_independent_are_joined_from_their_own_entries() -> None:
    plan = await plan_of(
        {"user": part(path="/users/{user}"), "news": part(path="/news"), "fixed": {"static": {"a": 1}}}
    )
    assert plan is not None
    assert (plan.asked, plan.said) == (("user", "news"), ("user", "news"))
    user, news, fixed = plan.splice_parts
    assert [each.group for each in plan.splice_parts] == ["user", "news", "fixed"]
    assert (user.route, news.route, fixed.route) == ("home.user", "home.news", "")
    assert fixed.constant == b'{"a":1}'
    assert "/users/7" in user.primary
    assert user.base != news.base


async def test_what_the_edge_keeps_of_a_line_has_none_of_the_fields_of_its_request() -> None:
    """A line is bounded in bytes; the fields of its first request, of up to 32 KiB, are not."""
    parts = {"a": part(vary=["x-kind"]), "b": part(path="/y", headers={"x-own": "{header.x-own}"})}
    config = {
        "redis_url": "none",
        "upstreams": {"api": {"url": "http://api.test"}},
        "routes": {"home": {"path": "/home/{user}", "parts": parts}},
    }
    app = create_app(config, transport=StubUpstream(json_answer()), log=silent)
    assert app.edge is not None
    async with running(app):
        line = Line(Counted(app))
        for _ in range(2):  # the second has the header block of the first
            for number in (1, 2):
                head = b"GET /home/%d HTTP/1.1\r\nHost: a.test\r\nX-Kind: of-a-client\r\nX-Own: of-a-client\r\n\r\n"
                assert b"200 OK" in await asked(line, head % number)
            kept = [*app.edge._expected.values(), *(each.recall for each in app.edge.known_targets.values())]
            assert len(kept) == 2
            for each in kept:
                assert "of-a-client" not in repr(each)
                assert each.fast_path().ask is None if isinstance(each, Again) else each.ask is None


async def test_a_part_with_headers_of_its_own_sees_none_of_the_clients() -> None:
    plan = await plan_of({"a": part(), "b": part(path="/y", headers={"x-key": "1"})})
    assert plan is not None
    assert plan.splice_parts[0].unseen
    assert plan.splice_parts[1].unseen is None


@pytest.mark.parametrize(
    ("parts", "route"),
    [
        ({"a": part(), "b": part(path="/y/{a.n}")}, {}),
        ({"a": part(), "b": part(path="/y", when="query.b == '1'")}, {}),
        ({"a": part(), "b": part(path="/y", shadow=True)}, {}),
        ({"a": part(), "b": part(path="/y", method="POST", body={})}, {}),
        ({"a": part()}, {"envelope": True}),
        ({"a": {"static": {}}}, {}),
    ],
    ids=["needs another", "a condition", "a shadow", "a POST", "an envelope", "static parts alone"],
)
async def test_what_takes_more_than_joining_bytes_is_the_apps(parts: dict[str, Any], route: dict[str, Any]) -> None:
    assert await plan_of(parts, **route) is None


def test_a_frame_with_its_values_is_the_body_that_merging_writes() -> None:
    transform: Any = object()
    splice_parts = [
        SplicePart("a", transform=transform),
        SplicePart("b", constant=b"[1]"),
        SplicePart('c"', transform=transform),
    ]
    pieces, places = frame_of(splice_parts)
    for place, value in zip(places, (b"1", b'{"x":2}'), strict=True):
        pieces[place] = value
    assert b"".join(pieces) == b'{"a":1,"b":[1],"c\\"":{"x":2}}'
    assert frame_of([]) == ([b"{}"], [])
