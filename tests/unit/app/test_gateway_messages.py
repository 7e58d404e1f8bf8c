"""What the gateway says: nothing of what is behind it, whatever goes wrong."""

from __future__ import annotations

import httpx
import pytest
from fastapi import APIRouter

from gateway.routing.references import below_base
from gateway.testing import StubUpstream, running
from tests.support.gateways import gateway

INSIDE = "catalog.internal.test:8080"
BASES = ["http://catalog.internal.test:8080/v2", "https://other.internal.test"]


@pytest.mark.parametrize(
    ("reference", "below"),
    [
        ("http://catalog.internal.test:8080/v2/items/1?x=1#top", "/items/1?x=1#top"),
        ("HTTP://CATALOG.Internal.Test:8080/v2/items/1", "/items/1"),
        ("//catalog.internal.test:8080/v2/items/1", "/items/1"),
        ("//catalog.internal.test/v2/items/1", "/items/1"),
        ("http://user@catalog.internal.test:8080/v2/items/1", "/items/1"),
        ("http://catalog.internal.test:8080/v2", "/"),
        ("http://catalog.internal.test:8080", "/"),
        ("http://catalog.internal.test:8080?x=1", "/?x=1"),
        ("http://catalog.internal.test:8080/v22/x", "/v22/x"),
        ("http://catalog.internal.test:8080/admin", "/admin"),
        ("https://other.internal.test:443/x", "/x"),
        ("https://other.internal.test/x", "/x"),
        ("https://elsewhere.test/x", None),
        ("http://catalog.internal.test:9090/x", None),
        ("http://catalog.internal.test.:8080/v2/x", "/x"),
        ("http://other.internal.test/x", "/x"),
        ("http://other.internal.test:8443/x", None),
        ("/items/1", None),
        ("http://[::1", None),
        ("", None),
    ],
)
def test_a_url_of_an_upstream_is_known_in_every_form(reference: str, below: str | None) -> None:
    assert below_base(reference, BASES) == below


@pytest.mark.parametrize("field", ["location", "content-location"])
async def test_no_location_names_an_upstream_even_another_than_was_asked(field: str) -> None:
    answers = {"/1": f"http://{INSIDE}/v2/x", "/2": "http://API.TEST/y", "/3": "//api.test/z?q=1"}
    upstream = StubUpstream(lambda request: httpx.Response(302, headers={field: answers[request.url.path]}))
    routes = {
        "catalog": {"path": "/catalog/{path:path}", "upstream": "catalog", "upstream_path": "/{path}"},
        "rest": {"path": "/{path:path}", "upstream": "api"},
    }
    upstreams = {"api": {"url": "http://api.test"}, "catalog": {"url": f"http://{INSIDE}/v2"}}
    async with running(gateway(upstream, routes, upstreams=upstreams)) as client:
        told = [(await client.get(path)).headers[field] for path in answers]
    assert told == ["/catalog/x", "/y", "/z?q=1"]


async def test_an_upstreams_software_is_nobodys_business() -> None:
    fields = {"Server": "Apache/2.4.1", "X-Powered-By": "PHP/5.2", "X-AspNet-Version": "4.0", "X-Generator": "Drupal 7"}
    upstream = StubUpstream(lambda request: httpx.Response(200, text="ok", headers={**fields, "X-Kept": "1"}))
    async with running(gateway(upstream)) as client:
        for answer in (await client.get("/a"), await client.get("/a"), await client.post("/a")):
            assert not set(map(str.lower, fields)) & set(answer.headers)
            assert answer.headers["x-kept"] == "1"


FAILURES = [
    httpx.ConnectError(f"connect to {INSIDE} failed"),
    httpx.ReadTimeout(f"{INSIDE} is silent"),
    httpx.RemoteProtocolError(f"{INSIDE} sent b'SSH-2.0'"),
    httpx.ReadError("/usr/lib/python3/secret.py"),
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda each: type(each).__name__)
async def test_an_error_tells_no_address_path_or_trace(failure: httpx.TransportError) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise failure

    settings = {"upstreams": {"api": {"url": f"http://{INSIDE}/v2"}}}
    async with running(gateway(StubUpstream(answer), **settings)) as client:
        for told in (await client.get("/a"), await client.post("/a")):
            assert told.status_code in (502, 504)
            for secret in ("internal.test", "8080", "Traceback", "python", "SSH", ".py"):
                assert secret not in told.text
                assert secret not in str(told.headers)


async def test_a_handlers_mistake_tells_nothing_of_itself() -> None:
    router = APIRouter()

    @router.get("/mistake")
    async def mistake() -> None:
        raise RuntimeError("postgres://user:hunter2@db.internal.test/shop")

    app = gateway(StubUpstream(lambda request: httpx.Response(200)))
    app.router.routes.insert(0, router.routes[0])
    async with running(app) as client:
        told = await client.get("/mistake")
    assert told.status_code == 500
    assert told.headers["content-type"] == "application/problem+json"
    assert "hunter2" not in told.text
    assert "Traceback" not in told.text


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
async def test_a_page_of_ours_cannot_be_framed_and_runs_nothing_that_is_not_ours(page: str) -> None:
    async with running(gateway(StubUpstream(lambda request: httpx.Response(200)))) as client:
        headers = (await client.get(page)).headers
    policy = dict(each.strip().partition(" ")[::2] for each in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["object-src"] == "'none'"
    assert (headers["x-content-type-options"], headers["x-frame-options"]) == ("nosniff", "DENY")
    assert headers["referrer-policy"] == "no-referrer"
