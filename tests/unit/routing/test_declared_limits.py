"""declared: limits of a route's own, in place of its upstream's and the gateway's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from gateway import create_app
from gateway.config.models import Config
from gateway.testing import StubUpstream, running
from tests.support.gateways import served

LARGE = b"x" * 200_000


def settings(upstream_timeout: str = "5s", **route: Any) -> dict[str, Any]:
    upstreams = {"api": {"url": "http://api.test", "timeout": upstream_timeout}}
    routes = {"r": {"path": "/{rest:path}", "upstream": "api", **route}}
    return {"redis_url": "none", "access_log": False, "upstreams": upstreams, "routes": routes}


async def pieces(*body: bytes) -> AsyncIterator[bytes]:
    for piece in body:
        yield piece


def sized(request: httpx.Request) -> httpx.Response:
    """A body of as many bytes as the path names, of unknown length below `/chunked/`."""
    size = int(request.url.path.rpartition("/")[2] or 0)
    if "chunked" in request.url.path:
        return httpx.Response(200, content=pieces(b"x" * (size // 2), b"x" * (size - size // 2)))
    return httpx.Response(200, content=b"x" * size)


@pytest.mark.parametrize("life", [{"ttl": "10s"}, {}, {"cache": False}])
async def test_a_routes_timeout_takes_the_place_of_its_upstreams(life: dict[str, Any]) -> None:
    slow = StubUpstream(sized)
    slow.gate.clear()
    async with running(create_app(settings("30s", **life, timeout="60ms"), transport=slow)) as http:
        assert [(await http.request(method, "/1")).status_code for method in ("GET", "POST")] == [504, 504]
    patient = StubUpstream(sized)
    patient.gate.clear()
    async with running(create_app(settings("60ms", **life, timeout="30s"), transport=patient)) as http:
        asyncio.get_running_loop().call_later(0.2, patient.gate.set)
        assert (await http.get("/1")).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "GET"])
async def test_a_request_body_beyond_the_routes_limit_is_413(method: str) -> None:
    upstream = StubUpstream(sized)
    app = create_app(settings(max_request_body="1KiB"), transport=upstream)
    async with served(app) as url, httpx.AsyncClient(base_url=url) as http:
        assert (await http.request(method, "/1", content=b"x" * 1024)).status_code == 200
        asked = upstream.asked
        for body in (b"x" * 1025, LARGE, pieces(b"x" * 1000, b"x" * 25), pieces(LARGE)):
            refused = await http.request(method, "/1", content=body)
            assert (refused.status_code, refused.json()["title"]) == (413, "Content Too Large")
            assert "for this route" in refused.json()["detail"]
        assert upstream.asked == asked
        assert (await http.get("/1")).status_code == 200
    counted = [line for line in app.metrics.render().decode().splitlines() if '_total{reason="large_body"}' in line]
    assert [line.rpartition(" ")[2] for line in counted] == ["4.0"]


@pytest.mark.parametrize("life", [{"ttl": "10s"}, {}, {"cache": False}])
@pytest.mark.parametrize("edge", [True, False])
async def test_a_response_body_beyond_the_routes_limit_is_502(life: dict[str, Any], edge: bool) -> None:
    app = create_app(settings(max_response_body="1KiB", **life), transport=StubUpstream(sized))
    if not edge:
        app.edge = None
    async with served(app) as url, httpx.AsyncClient(base_url=url) as http:
        for _ in range(2):
            assert (await http.get("/1024")).content == b"x" * 1024
            assert (await http.get("/chunked/1024")).content == b"x" * 1024
            refused = await http.get("/1025")
            assert (refused.status_code, refused.json()["title"]) == (502, "Upstream response too large")
            assert "detail=too-large" in refused.headers["cache-status"]
        assert (await http.post("/1025")).status_code == 502
        if "ttl" in life:
            assert (await http.get("/chunked/1025")).status_code == 502
        else:
            with pytest.raises(httpx.RemoteProtocolError):
                await http.get("/chunked/300000", headers={"cookie": "a=b"})


async def test_a_part_has_a_limit_of_its_own_or_that_of_its_route() -> None:
    own = {"upstream": "api", "ttl": "5s", "optional": True, "decode": "text", "max_body": "1KiB"}
    parts = {
        "small": {**own, "path": "/1024"},
        "large": {**own, "path": "/1025"},
        "route": {"route": "r", "path": "/1025", "optional": True, "decode": "text"},
    }
    config = settings(ttl="5s", max_response_body="1KiB")
    config["routes"]["whole"] = {"path": "/whole", "parts": parts}
    async with running(create_app(config, transport=StubUpstream(sized))) as http:
        answer = await http.get("/whole")
        assert [answer.json()[name] is None for name in parts] == [False, True, True]
        said = answer.headers["gateway-parts"]
        assert "large=too-large" in said
        assert "route=too-large" in said


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"max_request_body": "32MiB"}, "exceeds the gateway's max_request_body"),
        ({"timeout": "2h"}, "exceeds the stream_timeout of api"),
        ({"max_body": "2MiB", "max_response_body": "1MiB"}, "exceeds max_response_body"),
        ({"max_response_body": "0"}, "greater than or equal to 1"),
    ],
)
def test_a_limit_that_another_comes_before_is_refused(given: dict[str, str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Config.model_validate(settings(**given))


def test_a_parts_limit_lies_within_its_aggregates() -> None:
    part = {"upstream": "api", "path": "/p", "max_body": "4MiB"}
    config = settings()
    config["routes"]["whole"] = {"path": "/whole", "parts": {"p": part}}
    with pytest.raises(ValueError, match="exceeds the aggregate's max_body"):
        Config.model_validate(config)
