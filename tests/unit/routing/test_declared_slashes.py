"""Encoded slashes: one reading of a path for the key, for routing and for the upstream, whatever the route says."""

from __future__ import annotations

import httpx
import pytest

from gateway.app.gateway import Gateway, create_app
from gateway.testing import StubUpstream, running
from tests.support.edge_lines import Counted, Line, asked
from tests.support.gateways import json_answer

ROUTES = {
    "kept": {
        "path": "/api/v4/projects/{id}",
        "upstream": "api",
        "ttl": "60s",
        "vary": [],
        "tags": ["p:{id}"],
        "encoded_slashes": "keep",
    },
    "queues": {
        "path": "/queues/{vhost}/{name}",
        "upstream": "api",
        "upstream_path": "/api/queues/%2F{vhost}/{name}",
        "encoded_slashes": "keep",
    },
    "jobs": {"path": "/job/{p:path}", "upstream": "api", "encoded_slashes": "keep"},
    "decoded": {"path": "/files/{p:path}", "upstream": "api", "ttl": "60s", "vary": [], "encoded_slashes": "decode"},
    "deep": {"path": "/one/{a}/{b}", "upstream": "api", "encoded_slashes": "decode"},
    "shallow": {"path": "/one/{a}", "upstream": "api"},
    "secret": {"path": "/job/admin/{p:path}", "upstream": "api"},
    "joined": {
        "path": "/joined/{id}",
        "encoded_slashes": "keep",
        "parts": {
            "kept": {"upstream": "api", "path": "/p/{id}"},
            "decoded": {"upstream": "api", "path": "/d/{id}/{query.q}", "encoded_slashes": "decode", "optional": True},
            "refused": {"upstream": "api", "path": "/r/{id}", "encoded_slashes": "refuse", "optional": True},
            "named": {"route": "kept", "path": "/api/v4/projects/{id}"},
        },
    },
    "rest": {"path": "/{p:path}", "upstream": "api"},
}


def site(upstream: StubUpstream) -> Gateway:
    upstreams = {"api": {"url": "http://api.test/base"}}
    return create_app({"redis_url": "none", "upstreams": upstreams, "routes": ROUTES}, transport=upstream)


def answering() -> StubUpstream:
    return StubUpstream(json_answer(cache_control="max-age=60"))


async def get(client: httpx.AsyncClient, target: str, method: str = "GET") -> httpx.Response:
    url = httpx.URL("http://gateway.test").copy_with(raw_path=target.encode())
    return await client.send(client.build_request(method, url))


@pytest.mark.parametrize(
    ("target", "asked_for"),
    [
        ("/api/v4/projects/group%2Fname", "/base/api/v4/projects/group%2Fname"),
        ("/api/v4/projects/group%2fname?b=%2f&a", "/base/api/v4/projects/group%2Fname?a&b=%2F"),
        ("/queues/%2F/jobs", "/base/api/queues/%2F%2F/jobs"),
        ("/job/feature%252Fx/%2F/", "/base/job/feature%252Fx/%2F/"),
        ("/job/admin%2Fx", "/base/job/admin%2Fx"),
        ("/files/a%2Fb%2fc", "/base/files/a/b/c"),
        ("/one/a%2Fb", "/base/one/a/b"),
        ("/api/v4/projects/group%2Fname/%2e%2e/x", "/base/api/v4/projects/x"),
    ],
)
async def test_what_a_route_wants_of_an_encoded_slash_reaches_the_upstream(target: str, asked_for: str) -> None:
    upstream = answering()
    for method in ("GET", "HEAD", "POST", "DELETE"):
        async with running(site(upstream)) as client:
            assert (await get(client, target, method)).status_code == 200
        assert upstream.requests[-1].url.raw_path.decode() == asked_for


@pytest.mark.parametrize(
    "target",
    [
        *("/x/a%2Fb", "/one/%2Fa%2Fb", "/healthz%2F", "/api/v4/projects/a%2Fb/c%2Fd", "/files/a%252Fb", "/joined%2Fa"),
        *("/job/..%2F..%2Fadmin", "/job/%2e%2e%2fadmin", "/job/a%252f..%252fb", "/job/a%2F.;/b", "/queues/..%2F/x"),
        *(
            "/files/%2e%2e%2f%2e%2e%2f%2e%2e%2fx",
            "/files/a%2F..%2Fb",
            "/job/a%5cb",
            "/job/a%2F%00",
            "/api/v4/projects/%2F..",
        ),
    ],
)
async def test_what_no_route_wants_or_what_would_leave_its_place_is_refused(target: str) -> None:
    upstream = answering()
    async with running(site(upstream)) as client:
        assert (await get(client, target)).status_code == 400
    assert upstream.asked == 0


async def test_a_slash_and_an_encoded_one_have_two_entries_where_it_is_kept_and_one_where_it_is_decoded() -> None:
    upstream = answering()
    async with running(site(upstream)) as client:
        kept = ["/api/v4/projects/a%2Fb", "/api/v4/projects/a%2fb", "/api/v4/projects/a%2F%62"]
        assert [(await get(client, each)).json() for each in kept] == [{"n": 1}] * 3
        assert (await get(client, "/api/v4/projects/a%252Fb")).json() == {"n": 2}
        decoded = ["/files/a%2Fb", "/files/a/b", "/files/a%2fb", "/files/x/../a%2fb"]
        assert [(await get(client, each)).json() for each in decoded] == [{"n": 3}] * 4


async def test_a_url_with_an_encoded_slash_is_purged_explained_and_tagged() -> None:
    upstream = answering()
    app = site(upstream)
    async with running(app) as client:
        for purge in ({"keys": ["/api/v4/projects/a%2fb"]}, {"tags": ["p:a/b"]}):
            before = (await get(client, "/api/v4/projects/a%2Fb")).json()
            assert (await get(client, "/api/v4/projects/a%2Fb")).json() == before
            trace = await app.explain("GET", "/api/v4/projects/a%2Fb")
            assert (trace.route, trace.decision) == ("kept", "hit")
            await app.purge(**purge)  # type: ignore[arg-type]
            assert (await get(client, "/api/v4/projects/a%2Fb")).json() != before
        await get(client, "/files/a%2Fb")
        await app.purge(keys=["/files/a%2Fb"])
        assert (await app.explain("GET", "/files/a/b")).decision == "miss"
        assert (await app.explain("GET", "/x/a%2Fb")).decision == "400"
        await get(client, "/api/v4/projects/a%2Fb", "PUT")
        assert (await app.explain("GET", "/api/v4/projects/a%2Fb")).decision == "miss"


async def test_a_value_with_a_slash_in_a_parts_path_is_what_the_part_says() -> None:
    upstream = answering()
    async with running(site(upstream)) as client:
        found = (await get(client, "/joined/a%2Fb?q=x/../y")).json()
        asked_for = {request.url.raw_path.decode() for request in upstream.requests}
        assert asked_for == {"/base/p/a%2Fb", "/base/api/v4/projects/a%2Fb"}
        assert (found["decoded"], found["refused"]) == (None, None)
        await get(client, "/joined/a%2Fb?q=x/y")
        asked_for = {request.url.raw_path.decode() for request in upstream.requests} - asked_for
        assert asked_for == {"/base/d/a/b/x/y"}


async def test_a_reference_of_the_upstream_with_an_encoded_slash_leads_where_it_means() -> None:
    location = "http://api.test/base/api/v4/projects/a%2Fb"
    upstream = StubUpstream(lambda _: httpx.Response(302, headers={"location": location}))
    async with running(site(upstream)) as client:
        assert (await get(client, "/job/x")).headers["location"] == "/api/v4/projects/a%2Fb"


async def test_the_edge_answers_the_next_one_without_the_app() -> None:
    upstream = answering()
    app = Counted(site(upstream))
    line = Line(app)
    request = b"GET /api/v4/projects/a%2fb HTTP/1.1\r\nHost: a\r\n\r\n"
    first = await asked(line, request)
    count = app.asked
    again = await asked(line, request)
    assert first.partition(b"\r\n\r\n")[2] == again.partition(b"\r\n\r\n")[2] == b'{"n":1}'
    assert app.asked == count


def test_an_encoded_slash_in_an_upstream_path_wants_them_kept() -> None:
    routes = {"a": {"path": "/a", "upstream": "api", "upstream_path": "/api/%2F"}}
    with pytest.raises(ValueError, match="upstream_path The path contains an encoded slash"):
        create_app({"redis_url": "none", "upstreams": {"api": {"url": "http://api.test"}}, "routes": routes})
