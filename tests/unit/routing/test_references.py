"""References of upstreams: what a client follows leads to what the upstream named, or there is no such link."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest
from fastapi import APIRouter
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.app.gateway import Gateway
from gateway.edge.direct_routes import Patterns
from gateway.http.target import normalise
from gateway.routing.location import replaced
from gateway.routing.references import Asked, References
from gateway.testing import StubUpstream, running
from tests.support.gateways import gateway, served
from tests.support.raw import Connection, raw_upstream

BASE = "http://api.test/v2"
UPSTREAMS = {"api": {"url": BASE}, "other": {"url": "http://api.test/v3"}}
ROUTES: dict[str, Any] = {
    "list": {"path": "/items", "upstream": "api", "query": ["page"]},
    "search": {"path": "/search", "upstream": "api", "upstream_path": "/items", "query": ["q", "page"]},
    "latest": {"path": "/items/latest", "upstream": "other", "upstream_path": "/latest"},
    "item": {"path": "/items/{id}", "upstream": "api"},
    "books": {"path": "/books", "upstream": "api", "upstream_path": "/goods?kind=book"},
    "goods": {"path": "/goods/{kind}", "upstream": "api", "upstream_path": "/goods?kind={kind}"},
    "kept": {"path": "/all/{rest:path}", "upstream": "api", "upstream_path": "/{rest}", "drop_query": []},
    "moved": {"path": "/v2/{rest:path}", "upstream": "other", "upstream_path": "/{rest}"},
}
SEARCH = "/search?q=x"


def showing(field: str, said: str) -> StubUpstream:
    return StubUpstream(
        lambda request: httpx.Response(200, text="x", headers={field: said, "cache-control": "no-store"})
    )


def app_of(upstream: StubUpstream | None, **settings: Any) -> Gateway:
    return gateway(upstream, ROUTES, upstreams=UPSTREAMS, **settings)


async def told(field: str, said: str, at: str = SEARCH) -> str | None:
    async with running(app_of(showing(field, said))) as client:
        return (await client.get(at)).headers.get(field)


FOLLOWED = [
    # an upstream's reference, what the client is told
    (f"{BASE}/items?q=x&page=2", "/search?page=2&q=x"),
    (f"{BASE}/items?page=2", "/items?page=2"),
    (f"{BASE}/items?page=2#top", "/items?page=2#top"),
    (f"{BASE}/items?z=1", "/all/items?z=1"),
    (f"{BASE}/items/7", "/items/7"),
    (f"{BASE}/items/latest", "/all/items/latest"),
    (f"{BASE}/items/7?utm_source=x", "/all/items/7?utm_source=x"),
    ("/v3/x", "/v2/x"),
    (f"{BASE}/goods?kind=book", "/books"),
    (f"{BASE}/goods?kind=film&sort=a", "/goods/film?sort=a"),
    (f"{BASE}/goods?sort=a", "/all/goods?sort=a"),
    ("http://api.test/v3/latest", "/items/latest"),
    ("http://api.test/v3/x/y?q=1", "/v2/x/y?q=1"),
    ("//api.test/v2/items?q=x", "/search?q=x"),
    ("/v2/items?q=x&page=2", "/search?page=2&q=x"),
    ("/v2/items?page=2", "/items?page=2"),
    ("/v2/items/7", "/items/7"),
    ("items?q=y", "/search?q=y"),
    ("?q=x&page=2", "?q=x&page=2"),
    ("?z=1", "/all/items?z=1"),
    ("items/7", "items/7"),
    ("#top", "#top"),
    ("https://elsewhere.test/v2/items?q=x", "https://elsewhere.test/v2/items?q=x"),
    ("mailto:a@b.test", "mailto:a@b.test"),
]


@pytest.mark.parametrize(("said", "shown"), FOLLOWED)
@pytest.mark.parametrize("field", ["location", "content-location", "link", "refresh"])
async def test_a_reference_is_mapped_to_the_route_that_passes_it_on_unchanged(
    field: str, said: str, shown: str
) -> None:
    around = {"link": '<{}>; rel="next"', "refresh": "5; url={}"}.get(field, "{}")
    assert await told(field, around.format(said)) == around.format(shown)


@pytest.mark.parametrize(
    ("field", "said", "shown"),
    [
        ("location", "http://api.test/admin?x=1", "/admin?x=1"),
        ("refresh", "0; url=http://api.test/admin", "0; url=/admin"),
        ("location", "http://api.test/v2/a%2Fb", "/a%2Fb"),
        ("content-location", "http://api.test/admin", None),
        ("link", '<http://api.test/admin>; rel="next"', None),
        ("link", '<http://api.test/admin>; rel="next", </v2/items/7>; title="a, <b>"', '</items/7>; title="a, <b>"'),
        ("link", f'<https://a.test/>; anchor="{BASE}/items/7"; rel=x', '<https://a.test/>; anchor="/items/7"; rel=x'),
        ("link", "<https://a.test/>; anchor=http://api.test/admin", None),
        ("link", "http://api.test/admin", None),
        ("link", "</a>; rel=x, junk <http://api.test/admin>", "</a>; rel=x"),
        ("link", "", ""),
        ("location", "/admin", "/admin"),
        ("location", "http://[::1", "http://[::1"),
        ("location", "http://api.test:8:0/v2/items", None),
        ("link", "<http://[api.test/v2/items>; rel=next, <http://[::1>", "<http://[::1>"),
        ("refresh", "0; url=http://api.test:8:0/", None),
        ("location", "/v2/a%2Fb", "/v2/a%2Fb"),
    ],
)
async def test_what_is_not_served_here_is_not_linked_and_no_upstream_is_named(
    field: str, said: str, shown: str | None
) -> None:
    assert await told(field, said) == shown


async def test_no_more_links_are_mapped_than_take_a_few_milliseconds() -> None:
    told_of = await told("link", ", ".join(f"<{BASE}/items/{n}>" for n in range(500)))
    assert told_of == ", ".join(f"</items/{n}>" for n in range(100))


async def test_where_no_route_passes_the_query_on_there_is_no_link() -> None:
    routes = {name: ROUTES[name] for name in ("list", "search")}
    for said in (f"<{BASE}/items?z=1>; rel=next", f"<{BASE}/items?page=2&utm_source=x>; rel=next"):
        async with running(gateway(showing("link", said), routes, upstreams=UPSTREAMS)) as client:
            assert "link" not in (await client.get(SEARCH)).headers


async def test_the_most_specific_route_of_the_whole_app_counts() -> None:
    """A handler in front takes the path that a route would have shown the reference at."""
    router = APIRouter()

    @router.get("/items/7")
    async def own() -> str:
        return "own"

    app = app_of(showing("location", f"{BASE}/items/7"))
    app.router.routes.insert(0, router.routes[0])
    async with running(app) as client:
        assert (await client.get("/items/8")).headers["location"] == "/all/items/7"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        pytest.param(f"{BASE}/items?z=1", "/items?z=1", id="the place is there but for a parameter"),
        pytest.param("http://api.test/v3/items", None, id="another upstream's content is there"),
        pytest.param("http://api.test/v3/gone", "/gone", id="nothing is there"),
        pytest.param("http://api.test/items", None, id="what is there is below the base"),
    ],
)
async def test_a_location_that_nothing_leads_to_never_becomes_anothers_content(said: str, shown: str | None) -> None:
    routes = {name: ROUTES[name] for name in ("list", "search", "latest")}
    for field in ("location", "refresh"):
        text = f"0;url={said}" if field == "refresh" else said
        expected = None if shown is None else text.replace(said, shown)
        async with running(gateway(showing(field, text), routes, upstreams=UPSTREAMS)) as client:
            assert (await client.get(SEARCH)).headers.get(field) == expected


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
async def test_every_way_to_an_answer_maps_them(method: str) -> None:
    said = f"<{BASE}/items?q=x&page=2>; rel=next"
    for headers in ({"cache-control": "no-store"}, {"cache-control": "max-age=60"}):
        fields = {"link": said, **headers}
        upstream = StubUpstream(lambda request, fields=fields: httpx.Response(200, text="x", headers=fields))  # type: ignore[misc]
        async with (
            served(app_of(upstream), http="gateway.edge:GatewayProtocol") as url,
            httpx.AsyncClient(base_url=url) as client,
        ):
            for _ in range(4):  # passed on, stored, from memory, from a memo
                answer = await client.request(method, SEARCH)
                assert answer.headers["link"] == "</search?page=2&q=x>; rel=next"


async def test_an_interim_response_names_no_upstream_either() -> None:
    url = ""

    async def script(connection: Connection) -> None:
        await connection.request()
        early = f"HTTP/1.1 103 Early Hints\r\nLink: <{url}/a.css>; rel=preload, <{url}/gone>\r\n\r\n"
        await connection.send(early.encode() + b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with raw_upstream(script) as raw:
        url = raw.url
        routes = {"css": {"path": "/css/{name}.css", "upstream": "api", "upstream_path": "/{name}.css"}}
        app = gateway(None, routes, upstreams={"api": {"url": raw.url}})
        async with served(app, http="gateway.edge:GatewayProtocol") as own:
            reader, writer = await asyncio.open_connection(*own.removeprefix("http://").split(":"))
            writer.write(b"GET /css/x.css HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            received = await reader.read()
            writer.close()
    assert received.startswith(b"HTTP/1.1 103 Early Hints\r\nlink: </css/a.css>; rel=preload\r\n\r\n")


async def test_a_mounted_gateway_keeps_its_clients_below_its_place() -> None:
    from fastapi import FastAPI

    outer = FastAPI()
    said = showing("location", "/v2/items?q=y")
    inner = app_of(said)
    outer.mount("/shop", inner)
    await inner.start()
    try:
        transport = httpx.ASGITransport(outer)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway.test") as client:
            assert (await client.get("/shop/items/7")).headers["location"] == "/shop/search?q=y"
            said.answer = lambda request: httpx.Response(200, headers={"location": "?q=y"})
            assert (await client.get("/shop/search?q=x")).headers["location"] == "?q=y"
    finally:
        await inner.stop()


# --- the property ------------------------------------------------------------------------------------------

PIECES = st.sampled_from(["items", "latest", "goods", "7", "a%20b", "", "..", ".", "%2e", "x;y", "book", "v2", "v3"])
PAIRS = st.sampled_from(
    ["q=x", "page=2", "kind=book", "kind=a%2Fb", "utm_source=x", "z", "z=", "q=%26", "kind=a&kind=c"]
)


@settings(max_examples=2000, deadline=None)
@given(
    st.sampled_from([BASE, "http://api.test/v3", "/v2", "//api.test/v2", "", ".", "http://api.test"]),
    st.lists(PIECES, max_size=3),
    st.lists(PAIRS, max_size=3),
    st.sampled_from([SEARCH, "/items/7", "/all/a/b?x=1", "/v2/a"]),
)
def test_whatever_is_mapped_leads_to_what_was_meant(prefix: str, path: list[str], query: list[str], at: str) -> None:
    reference = "/".join([prefix, *path]) + ("?" + "&".join(query) if query else "")
    served_by = Patterns(lambda: APP.router.routes, APP._direct).declared
    target = normalise(*(each.encode() for each in (*at.split("?"), "")[:2]))
    route = served_by(target.decoded)
    assert route is not None
    asked = Asked(route, route.upstream_target(target.path, target.query)[0], target.path, target.query)
    shown = replaced(b"content-location", reference.encode(), lambda text: mapped(asked, text))
    if shown not in (None, reference.encode()):
        led = urljoin("http://gateway.test" + asked.public, shown.decode())
        assert leads(led) == outside(urljoin(route.upstream.config.bases[0] + asked.target, reference))


def mapped(asked: Asked, text: str) -> str | None:
    references = References(APP.declared, Patterns(lambda: APP.router.routes, APP._direct).declared)
    found = references.mapped([(b"content-location", text.encode())], asked)
    return found[0][1].decode() if found else None


def leads(url: str) -> str | None:
    """The upstream's URL that the gateway asks for this one."""
    path, _, query = url.removeprefix("http://gateway.test").partition("#")[0].partition("?")
    try:
        target = normalise(path.encode(), query.encode())
    except Exception:
        return None
    route = Patterns(lambda: APP.router.routes, APP._direct).declared(target.decoded)
    if route is None:
        return None
    return route.upstream.config.bases[0] + route.upstream_target(target.path, target.query)[0]


def outside(url: str) -> str:
    path, _, query = url.removeprefix("http://api.test").partition("?")
    return f"http://api.test{normalise(path.encode() or b'/', query.encode())}"


APP = app_of(None)
