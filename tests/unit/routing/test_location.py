"""URLs in the fields that clients follow: none names an upstream, and none leads to another host."""

from __future__ import annotations

import httpx
import pytest

from gateway.testing import StubUpstream, running
from tests.support.gateways import gateway


@pytest.mark.parametrize(
    ("said", "told"),
    [
        pytest.param("http://api.test//evil.test/x", "/.//evil.test/x", id="two slashes"),
        pytest.param("http://api.test/\\evil.test/x", "/./\\evil.test/x", id="a backslash"),
        pytest.param("http://api.test/\t/evil.test/x", "/.//evil.test/x", id="a tab, which browsers drop"),
        pytest.param("http://api.test/a//b", "/a//b", id="two slashes further on"),
    ],
)
async def test_a_location_of_the_upstreams_own_becomes_no_other_host(said: str, told: str) -> None:
    upstream = StubUpstream(lambda request: httpx.Response(302, headers={"location": said}))
    for path in ("/{all:path}", "/items/{id}"):
        routes = {"route": {"path": path, "upstream": "api"}}
        async with running(gateway(upstream, routes=routes)) as client:
            assert (await client.get("/items/7")).headers["location"] == told


async def test_an_upstreams_own_address_stays_inside() -> None:
    routes = {
        "item": {"path": "/items/{id}", "upstream": "api", "upstream_path": "/v2/items/{id}"},
        "rest": {"path": "/{path:path}", "upstream": "api"},
    }
    answers = {
        "/v2/items/1": "http://api.test/v2/items/2?x=1",
        "/other": "http://api.test/somewhere",
        "/out": "https://elsewhere.test/x",
    }
    upstream = StubUpstream(lambda request: httpx.Response(302, headers={"location": answers[request.url.path]}))
    async with running(gateway(upstream, routes)) as client:
        locations = [(await client.get(path)).headers["location"] for path in ("/items/1", "/other", "/out")]
    assert locations == ["/items/2?x=1", "/somewhere", "https://elsewhere.test/x"]


@pytest.mark.parametrize(
    ("field", "said", "shown"),
    [
        ("refresh", "5; url=http://api.test/inside/7", "5; url=/items/7"),
        ("refresh", "0;URL='http://api.test/inside/7'", "0;URL='/items/7'"),
        ("refresh", "1,//api.test/inside/7?x=1", "1,/items/7?x=1"),
        ("refresh", "5; url=https://elsewhere.test/x", "5; url=https://elsewhere.test/x"),
        ("refresh", "5", "5"),
        (
            "link",
            '<http://api.test/inside/8>; rel="next", <http://API.test:80/inside/9>; rel=prev, <https://a.test/>; rel=x',
            '</items/8>; rel="next", </items/9>; rel=prev, <https://a.test/>; rel=x',
        ),
        ("content-location", "http://api.test/inside/7", "/items/7"),
    ],
)
async def test_no_field_by_which_a_client_goes_on_names_an_upstream(field: str, said: str, shown: str) -> None:
    upstream = StubUpstream(lambda request: httpx.Response(200, headers={field: said}))
    routes = {"item": {"path": "/items/{id}", "upstream": "api", "upstream_path": "/inside/{id}", "ttl": "60s"}}
    async with running(gateway(upstream, routes)) as client:
        for _ in range(2):
            assert (await client.get("/items/1")).headers[field] == shown


@pytest.mark.parametrize("ttl", ["origin", "60s"])
@pytest.mark.parametrize("status", [304, 206])
async def test_an_answer_that_only_another_request_could_have_had_is_502(status: int, ttl: str) -> None:
    upstream = StubUpstream(
        lambda request: httpx.Response(status, headers={"content-range": "bytes 0-1/9"}, content=b"")
    )
    routes = {"item": {"path": "/items/{id}", "upstream": "api", "ttl": ttl}}
    async with running(gateway(upstream, routes)) as client:
        assert (await client.get("/items/1")).status_code == 502
        assert (await client.post("/items/1")).status_code == 502
        asked = await client.get("/items/1", headers={"cache-control": "no-store", "range": "bytes=0-1"})
        assert asked.status_code == (206 if status == 206 else 502)
