"""CORS on responses: computed for each request, never stored, and said by Vary once."""

from __future__ import annotations

import pytest

from gateway.testing import StubUpstream, TurnedClock, running
from tests.support.gateways import THIRTY, gateway, json_answer


async def test_cors_is_computed_per_request_and_never_stored(clock: TurnedClock) -> None:
    upstream = StubUpstream(json_answer(access_control_allow_origin="*", vary="Accept-Encoding"))
    app = gateway(upstream, THIRTY, clock=clock, cors={"allow_origins": ["https://a.test", "https://b.test"]})
    async with running(app) as client:
        allowed = {}
        for origin in ("https://a.test", "https://b.test", "https://evil.test", None):
            response = await client.get("/items/7", headers={"origin": origin} if origin else {})
            allowed[origin] = response.headers.get("access-control-allow-origin")
            assert {item.strip() for item in response.headers["vary"].split(",")} >= {"Accept-Encoding", "Origin"}
    assert allowed == {
        "https://a.test": "https://a.test",
        "https://b.test": "https://b.test",
        "https://evil.test": None,
        None: None,
    }
    assert upstream.asked == 1


@pytest.mark.parametrize("origin", ["https://a.test", "https://evil.test", None])
async def test_an_answer_that_varies_on_origin_already_says_so_once(origin: str | None) -> None:
    app = gateway(StubUpstream(json_answer(vary="Accept, origin")), cors={"allow_origins": ["https://a.test"]})
    async with running(app) as client:
        answer = await client.get("/items/7", headers={"origin": origin} if origin else {})
    assert answer.headers["vary"] == "Accept, origin"


async def test_a_preflight_is_answered_here() -> None:
    upstream = StubUpstream(json_answer())
    app = gateway(upstream, cors={"allow_origins": ["https://a.test"], "allow_headers": ["X-Custom"]})
    headers = {
        "origin": "https://a.test",
        "access-control-request-method": "GET",
        "access-control-request-headers": "x-custom",
    }
    async with running(app) as client:
        response = await client.options("/x", headers=headers)
    assert (response.status_code, upstream.asked) == (200, 0)
    assert response.headers["access-control-allow-origin"] == "https://a.test"


@pytest.mark.parametrize(("methods", "allowed"), [(None, True), (["GET"], False), (["QUERY"], True)])
async def test_a_preflight_for_a_read_with_content_is_allowed_unless_methods_are_set(
    methods: list[str] | None, allowed: bool
) -> None:
    routes = {"search": {"path": "/search", "upstream": "api", "methods": ["GET", "QUERY"]}}
    cors = {"allow_origins": ["https://a.test"], **({} if methods is None else {"allow_methods": methods})}
    headers = {
        "origin": "https://a.test",
        "access-control-request-method": "QUERY",
        "access-control-request-headers": "content-type",
    }
    async with running(gateway(StubUpstream(json_answer()), routes, cors=cors)) as client:
        response = await client.options("/search", headers=headers)
    assert (response.status_code == 200) is allowed
    assert ("QUERY" in response.headers["access-control-allow-methods"]) is allowed
