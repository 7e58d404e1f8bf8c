"""`methods` of a route: what passes, what is refused and how, and what the next release's default will refuse."""

from __future__ import annotations

import logging
from typing import Any

import httpx
import pytest

from gateway.app.gateway import Gateway, create_app
from gateway.testing import StubUpstream, running
from tests.support.edge_lines import Counted, Line, asked
from tests.support.gateways import json_answer

ROUTES: dict[str, Any] = {
    "reads": {"path": "/reads", "upstream": "api", "ttl": "60s", "methods": ["GET"]},
    "writes": {"path": "/writes", "upstream": "api", "methods": "post, Put"},
    "both": {"path": "/both", "upstream": "api", "ttl": "60s", "methods": ["GET", "PUT", "OPTIONS"]},
    "any": {"path": "/any", "upstream": "api", "ttl": "60s", "methods": "any"},
    "own": {"path": "/own/{id}", "upstream": "api", "ttl": "60s", "vary": []},
    "origin": {"path": "/origin", "upstream": "api"},
    "off": {"path": "/off", "upstream": "api", "ttl": "0s"},
    "joined": {"path": "/joined", "parts": {"a": {"upstream": "api", "path": "/a"}}},
}
BROWSER = {"origin": "https://app.test", "access-control-request-method": "DELETE"}


def site(upstream: StubUpstream, routes: dict[str, Any] | None = None, **settings: Any) -> Gateway:
    config = {"redis_url": "none", "upstreams": {"api": {"url": "http://api.test"}}, "routes": routes or ROUTES}
    return create_app({**config, **settings}, transport=upstream)


def answering() -> StubUpstream:
    return StubUpstream(json_answer(cache_control="max-age=60"))


@pytest.mark.parametrize(
    ("target", "passing", "allow"),
    [
        ("/reads", "GET HEAD", "GET, HEAD, OPTIONS"),
        ("/writes", "POST PUT", "POST, PUT, OPTIONS"),
        ("/both", "GET HEAD PUT OPTIONS", "GET, HEAD, PUT, OPTIONS"),
        ("/joined", "GET HEAD", "GET, HEAD"),
    ],
)
async def test_a_method_that_is_not_listed_is_refused_with_allow_and_reaches_no_upstream(
    target: str, passing: str, allow: str
) -> None:
    upstream = answering()
    app = site(upstream)
    async with running(app) as client:
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "PROPFIND", "OPTIONS"):
            count = upstream.asked
            response = await client.request(method, target)
            if method in passing.split():
                assert response.status_code == 200
            elif method == "OPTIONS" and target != "/joined":
                assert (response.status_code, response.headers["allow"], response.content) == (204, allow, b"")
            else:
                assert (response.status_code, response.headers["allow"]) == (405, allow)
                if method != "HEAD":
                    assert response.json()["type"] == "/problems/method-not-allowed"
                assert (await app.explain(method, target)).decision == "405"
            assert method in passing.split() or upstream.asked == count


async def test_the_edge_refuses_what_the_app_refuses() -> None:
    upstream = answering()
    app = Counted(site(upstream))
    line = Line(app)
    for method in (b"GET", b"GET", b"HEAD"):
        answer = await asked(line, method + b" /writes HTTP/1.1\r\nHost: a\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 405 Method Not Allowed\r\n")
        assert b"\r\nallow: POST, PUT, OPTIONS\r\n" in answer
    assert upstream.asked == 0


@pytest.mark.parametrize("cors", [True, False])
async def test_a_preflight_is_answered_by_cors_or_by_the_upstream(cors: bool) -> None:
    upstream = answering()
    settings = {"cors": {"allow_origins": ["https://app.test"], "allow_methods": ["DELETE"]}} if cors else {}
    async with running(site(upstream, **settings)) as client:
        response = await client.options("/reads", headers=BROWSER)
    assert response.status_code == 200
    assert upstream.asked == (0 if cors else 1)
    if cors:
        assert response.headers["access-control-allow-origin"] == "https://app.test"


async def test_what_the_next_release_refuses_passes_with_one_warning_and_invalidates(
    caplog: pytest.LogCaptureFixture,
) -> None:
    upstream = answering()
    async with running(site(upstream)) as client:
        first = (await client.get("/own/1")).json()
        assert (await client.get("/own/1")).json() == first
        for method in ("PUT", "PUT", "DELETE", "OPTIONS"):
            assert (await client.request(method, "/own/1")).status_code == 200
        assert (await client.put("/own/2")).status_code == 200
        assert (await client.get("/own/1")).json() != first
        for target in ("/any", "/origin", "/off"):
            assert (await client.delete(target)).status_code == 200
    warnings = [each.getMessage() for each in caplog.records if "methods" in each.getMessage()]
    assert [text[:19] for text in warnings] == ["route own: PUT pass", "route own: DELETE p"]
    assert all(record.levelno == logging.WARNING for record in caplog.records if "methods" in record.getMessage())


def test_openapi_has_what_passes() -> None:
    paths = site(answering()).openapi()["paths"]
    assert {path: sorted(operations) for path, operations in paths.items()} == {
        "/reads": ["get"],
        "/writes": ["post", "put"],
        "/both": ["get", "put"],
        "/any": ["get"],
        "/own/{id}": ["get"],
        "/origin": ["get"],
        "/off": ["get"],
        "/joined": ["get"],
    } | {path: sorted(operations) for path, operations in paths.items() if path in ("/healthz", "/readyz")}
    assert paths["/writes"]["post"]["x-gateway"]["methods"] == ["POST", "PUT"]
    assert paths["/origin"]["get"]["x-gateway"]["methods"] == "any"
    ids = [operation["operationId"] for path in paths.values() for operation in path.values()]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ([], "must name at least one"),
        (["GET", "DELTE"], "DELTE is no method that can pass; expected GET, .*; did you mean DELETE?"),
        (["all"], "all is no method .*; for all methods write: any"),
        (["GET", "any"], "any is no method .*; for all methods write: any"),
        (["PURGE"], "purge_from"),
        (["CONNECT"], "CONNECT is no method"),
        (["TRACE"], "TRACE is no method"),
    ],
)
def test_a_method_that_cannot_pass_is_refused(methods: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        site(answering(), {"a": {"path": "/a", "upstream": "api", "methods": methods}})


def test_an_aggregate_has_no_methods_of_its_own() -> None:
    with pytest.raises(ValueError, match="an aggregate takes GET and HEAD"):
        site(answering(), {"a": {**ROUTES["joined"], "methods": ["GET"]}})


async def test_purge_has_a_rule_of_its_own() -> None:
    upstream = answering()
    routes = {"a": {"path": "/a", "upstream": "api", "ttl": "60s", "methods": ["GET"], "purge_from": "0.0.0.0/0"}}
    async with running(site(upstream, routes)) as client:
        await client.get("/a")
        response: httpx.Response = await client.request("PURGE", "/a")
        assert response.status_code == 200
        await client.get("/a")
    assert upstream.asked == 2
