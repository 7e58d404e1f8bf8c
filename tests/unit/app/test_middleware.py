"""Behind a path prefix and behind proxies: what links, redirects, pages and the edge make of the place."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request

from gateway import cached, create_app
from gateway.config.models import Config
from gateway.edge.protocol import GatewayProtocol
from gateway.testing import StubUpstream, TurnedClock, running
from tests.support.edge_lines import Both, Changing, Side
from tests.support.gateways import served

ROUTES = {"all": {"path": "/{rest:path}", "upstream": "api", "ttl": "30s", "upstream_path": "/{rest}"}}
UPSTREAMS = {"api": {"url": "http://api.test"}}
BASE: dict[str, Any] = {"redis_url": "none", "access_log": False, "upstreams": UPSTREAMS}


def router() -> APIRouter:
    made = APIRouter()

    @made.get("/link", name="link")
    async def link(request: Request) -> dict[str, str]:
        return {"link": str(request.url_for("link")), "url": str(request.url)}

    @made.get("/kept", name="kept")
    @cached(ttl="30s")
    async def kept(request: Request) -> dict[str, str]:
        return {"link": str(request.url_for("kept"))}

    return made


def app_of(**settings: Any) -> Any:
    made = create_app({**BASE, **settings})
    made.include_router(router())
    return made


@asynccontextmanager
async def at(app: Any, url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client whose requests have the host of `url`."""
    async with running(app) as http:
        http.base_url = httpx.URL(url)
        yield http


@pytest.mark.parametrize("settings", [{"root_path": "/shop"}, {"public_url": "http://inside.test/shop"}])
@pytest.mark.parametrize("asked", ["", "/shop"])
async def test_a_proxy_may_take_the_prefix_off_or_not(settings: dict[str, str], asked: str) -> None:
    async with at(app_of(**settings), "http://inside.test") as http:
        assert (await http.get(f"{asked}/link")).json()["link"] == "http://inside.test/shop/link"
        assert (await http.get(f"{asked}/kept")).json()["link"] == "http://inside.test/shop/kept"
        assert (await http.get(f"{asked}/link/")).headers["location"] == "/shop/link"
        assert "'/shop/openapi.json'" in (await http.get(f"{asked}/docs")).text
        assert "/shop/openapi.json" in (await http.get(f"{asked}/redoc")).text
        assert (await http.get(f"{asked}/openapi.json")).json()["servers"] == [{"url": "/shop"}]
        assert (await http.get(f"{asked}/_gateway/docs/swagger-ui.css")).status_code == 200
        assert (await http.get(f"{asked}/healthz")).status_code == 200
        assert (await http.get("/shopping")).status_code == 404


async def test_links_have_the_host_of_public_url_whatever_a_client_says() -> None:
    made = app_of(public_url="https://api.example.com/shop", trusted_proxies=["127.0.0.1/32"])
    async with at(made, "http://evil.test") as http:
        for path in ("link", "kept"):
            told = await http.get(f"/{path}", headers={"x-forwarded-host": "other.test", "x-forwarded-proto": "http"})
            assert told.json()["link"] == f"https://api.example.com/shop/{path}"


async def test_what_trusted_proxies_say_makes_links_and_entries_of_their_own() -> None:
    made = app_of(trusted_proxies=["127.0.0.1/32"])
    said = {"x-forwarded-host": "shop.example", "x-forwarded-proto": "https", "x-forwarded-port": "8443"}
    async with at(made, "http://inside.test") as http:
        for _ in range(2):
            for path in ("link", "kept"):
                plain = await http.get(f"/{path}")
                assert plain.json()["link"] == f"http://inside.test/{path}"
                told = await http.get(f"/{path}", headers=said)
                assert told.json()["link"] == f"https://shop.example:8443/{path}"
                moved = await http.get(f"/{path}", headers={**said, "x-forwarded-prefix": "/shop"})
                assert moved.json()["link"] == f"https://shop.example:8443/shop/{path}"


async def test_others_are_not_believed() -> None:
    made = app_of(trusted_proxies=["10.0.0.0/8"])
    said = {"x-forwarded-host": "evil.test", "x-forwarded-prefix": "/evil", "forwarded": "host=evil.test"}
    async with at(made, "http://inside.test") as http:
        assert (await http.get("/link", headers=said)).json()["link"] == "http://inside.test/link"
        assert (await http.get("/link/", headers=said)).headers["location"] == "/link"
        assert "evil" not in (await http.get("/docs", headers=said)).text


async def test_a_mounted_gateway_keeps_its_place_below_the_prefix() -> None:
    made = app_of(trusted_proxies=["127.0.0.1/32"])
    outer = FastAPI()
    outer.mount("/gw", made)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(outer), base_url="http://inside.test") as http:
        moved = {"x-forwarded-prefix": "/shop"}
        assert (await http.get("/gw/link/", headers=moved)).headers["location"] == "/shop/gw/link"
        assert (await http.get("/gw/link/")).headers["location"] == "/gw/link"
        assert (await http.get("/gw/openapi.json", headers=moved)).json()["servers"] == [{"url": "/shop/gw"}]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"root_path": "shop"}, "must be a path"),
        ({"root_path": "/a//b"}, "must be a path"),
        ({"root_path": "/a/../b"}, "must be a path"),
        ({"root_path": "/other", "public_url": "https://api.example.com/shop"}, "the path of public_url is /shop"),
    ],
)
def test_a_prefix_that_cant_be_is_refused(settings: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Config.model_validate(settings)


async def test_one_resource_has_one_entry_with_and_without_the_prefix() -> None:
    upstream = StubUpstream(lambda request: httpx.Response(200, text=request.url.path))
    made = create_app({**BASE, "root_path": "/shop", "routes": ROUTES}, transport=upstream)
    async with running(made) as http:
        assert (await http.get("/shop/a")).text == (await http.get("/a")).text == "/a"
        assert len(upstream.requests) == 1
        assert made.primary_keys("/shop/a") == made.primary_keys("/a")
        assert (await made.explain("GET", "/shop/a", ((b"accept", b"*/*"),))).decision == "hit"


MOVED = b"X-Forwarded-Prefix: /other\r\n"
LINES = [
    b"GET %b HTTP/1.1\r\nHost: gateway.test\r\n%b\r\n" % (path, fields)
    for path in (b"/shop/a", b"/a", b"/other/a", b"/shop", b"/shopping")
    for fields in (b"", MOVED, b"X-Forwarded-Prefix: /shop\r\n", b"X-Forwarded-Prefix: //evil\r\n")
]


@pytest.mark.parametrize("trusted", [[], ["192.0.2.0/24"]])
async def test_the_edge_answers_as_the_app_does(trusted: list[str]) -> None:
    def side(clock: TurnedClock, changing: Changing, *, edge: bool) -> Side:
        return Side(clock, changing, edge=edge, root_path="/shop", trusted_proxies=trusted, routes=ROUTES)

    both = Both(Changing(), side, {})
    moved = {"location": "http://api.test/b", "link": "<http://api.test/c>; rel=next"}
    both.changing.say(200, moved, 1)
    for line in LINES * 3:
        answer = await both.ask("ask", line)
        prefix = b"/other" if MOVED in line and trusted else b"/shop"
        assert b"location: %b/b\r\n" % prefix in answer
        assert b"link: <%b/c>" % prefix in answer
    asked = [request.url.path for request in both.sides[0].upstream.requests]
    assert len(asked) == len(set(asked))


@pytest.mark.parametrize("protocol", [GatewayProtocol, "httptools"])
async def test_the_servers_own_root_path_is_the_prefix(protocol: Any) -> None:
    async with served(app_of(), http=protocol, root_path="/shop") as url, httpx.AsyncClient(base_url=url) as http:
        for path in ("link", "kept"):
            assert (await http.get(f"/{path}")).json()["link"] == f"{url}/shop/{path}"
        assert (await http.get("/link/")).headers["location"] == "/shop/link"
        assert (await http.get("/openapi.json")).json()["servers"] == [{"url": "/shop"}]
