"""declared: the fields of requests that settings set, add and remove, and the keys of what their answers lie under."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from gateway import create_app
from gateway.policy.keys import plan
from gateway.testing import StubUpstream, running

BASE: dict[str, Any] = {"redis_url": "none", "access_log": False}
UPSTREAM = {"url": "http://api.test", "headers": {"request": {"set": {"X-Up": "up", "X-Both": "up"}}}}


def route(path: str, tenant: str, **more: Any) -> dict[str, Any]:
    request = {"set": {"X-Tenant": tenant, "X-Both": "route"}, "add": {"X-More": ["1", "2"]}, "remove": ["X-Hidden"]}
    return {"path": path, "upstream": "api", "upstream_path": "/same", "headers": {"request": request}, **more}


def echo(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, text=request.headers.get("x-tenant", "none"), headers={"cache-control": "max-age=60"})


@pytest.mark.parametrize("life", [{"ttl": "10s"}, {}])
async def test_routes_that_ask_the_same_with_other_fields_share_nothing(life: dict[str, str]) -> None:
    upstream = StubUpstream(echo)
    routes = {
        "a": route("/a", "one", **life),
        "b": route("/b", "two", **life),
        "again": route("/again", "one", **life),
        "plain": {"path": "/plain", "upstream": "api", "upstream_path": "/same", **life},
    }
    parts = {"p": {"route": "a"}, "q": {"route": "b"}, "r": {"route": "plain"}}
    decode = {name: {**part, "decode": "text"} for name, part in parts.items()}
    app = create_app(
        {**BASE, "upstreams": {"api": UPSTREAM}, "routes": {**routes, "whole": {"path": "/w", "parts": decode}}},
        transport=upstream,
    )
    async with running(app) as http:
        for _ in range(2):
            for path, tenant in (("/a", "one"), ("/b", "two"), ("/again", "one"), ("/plain", "none")):
                assert (await http.get(path)).text == tenant
        same = {"accept": "*/*"}
        whole = (await http.get("/w", headers=same)).json()
        assert whole == {"p": "one", "q": "two", "r": "none"}
        assert (await app.explain("GET", "/a", ((b"accept", b"*/*"),))).decision == "hit"
        bases = [plan(each.engine_route.keying, "api", "/same", ()).base for each in app.declared]
        assert len({*bases}) == 3
        assert "one" not in "".join(bases)


@pytest.mark.parametrize("ask", [("GET", {}), ("GET", {"cookie": "a=b"}), ("POST", {}), ("HEAD", {}), ("DELETE", {})])
async def test_every_request_of_a_route_has_them(ask: tuple[str, dict[str, str]]) -> None:
    upstream = StubUpstream(echo)
    app = create_app({**BASE, "upstreams": {"api": UPSTREAM}, "routes": {"a": route("/a", "one")}}, transport=upstream)
    method, headers = ask
    async with running(app) as http:
        told = {"x-tenant": "mine", "x-both": "mine", "x-up": "mine", "x-hidden": "h", "x-more": "0", "x-kept": "k"}
        await http.request(method, "/a", headers={**told, **headers})
    [sent] = upstream.requests
    assert sent.headers.get_list("x-tenant") == ["one"]
    assert sent.headers.get_list("x-both") == ["route"]
    assert sent.headers.get_list("x-up") == ["up"]
    assert sent.headers.get_list("x-more")[-2:] == ["1", "2"]
    assert "x-hidden" not in sent.headers
