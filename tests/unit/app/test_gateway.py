"""The gateway as its clients and upstreams see it: headers, targets, CORS, errors, documentation."""

from __future__ import annotations

import asyncio
import contextlib
import gc

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from gateway.context import RequestContext
from gateway.routing.cached_decorator import cached
from gateway.testing import StubUpstream, TurnedClock, running
from tests.support.gateways import THIRTY, gateway, json_answer, seen, served
from tests.support.raw import Connection, once, raw_upstream

# --- what reaches the upstream -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "location"),
    [
        pytest.param("/items/7/", "/items/7", id="a slash too many"),
        pytest.param("/under", "/under/", id="one missing"),
        pytest.param("/items/a%3Fb%23c/?x=%2F", "/items/a%3Fb%23c?x=%2F", id="encoded characters stay so"),
    ],
)
async def test_the_slash_at_the_end_is_mended_by_a_location_without_a_host(target: str, location: str) -> None:
    routes = {"item": "/items/{id}", "under": "/under/"}
    declared = {name: {"path": path, "upstream": "api"} for name, path in routes.items()}
    async with running(gateway(StubUpstream(json_answer()), routes=declared)) as client:
        answer = await client.get("http://evil.test" + target)
    assert (answer.status_code, answer.headers["location"]) == (307, location)


async def test_a_get_with_a_body_goes_by_the_cache() -> None:
    upstream = StubUpstream(lambda request: httpx.Response(200, content=request.content))
    async with running(gateway(upstream, THIRTY)) as client:
        for body in (b"one", b"two"):
            response = await client.request("GET", "/items/7", content=body)
            assert response.content == body
            assert response.headers["cache-status"].startswith("gateway; fwd=bypass")


@pytest.mark.parametrize(
    "header", [{"cookie": "session=1"}, {"authorization": "Bearer x"}, {"if-match": '"x"'}], ids=str
)
async def test_a_request_of_one_user_goes_by_the_cache_with_all_its_headers(header: dict[str, str]) -> None:
    upstream = StubUpstream(json_answer())
    async with running(gateway(upstream, THIRTY)) as client:
        for _ in range(2):
            await client.get("/items/7", headers=header)
    assert upstream.asked == 2
    assert seen(upstream)[next(iter(header))] == next(iter(header.values()))


async def test_credentials_can_be_ignored_or_made_part_of_the_key() -> None:
    cases = {"ignore": ([None, None], 1), "key": (["Bearer a", "Bearer b"], 2)}
    for choice, (forwarded, asked) in cases.items():
        upstream = StubUpstream(json_answer())
        routes = {"item": {**THIRTY["item"], "authorization": choice}}
        async with running(gateway(upstream, routes)) as client:
            for token in ("Bearer a", "Bearer b", "Bearer a", "Bearer b"):
                await client.get("/items/7", headers={"authorization": token})
        assert upstream.asked == asked
        assert [request.headers.get("authorization") for request in upstream.requests] == forwarded[:asked]


async def test_named_cookies_are_the_only_ones_that_count() -> None:
    upstream = StubUpstream(json_answer())
    routes = {"item": {**THIRTY["item"], "cookies": ["country"]}}
    async with running(gateway(upstream, routes)) as client:
        for cookie in ("country=de; session=1", "session=2; country=de", "country=fr"):
            await client.get("/items/7", headers={"cookie": cookie})
    assert [request.headers["cookie"] for request in upstream.requests] == ["country=de", "country=fr"]


# What a route keeps from its upstream, it keeps also where a request passes by the cache for another reason.
PASSES_BY = {
    "stored": {},
    "cookie": {"cookie": "sid=1; other=2"},
    "body": {"content-length": "1"},
    "precondition": {"if-match": '"v1"'},
    "no-store": {"cache-control": "no-store"},
}


@pytest.mark.parametrize("why", PASSES_BY)
@pytest.mark.parametrize("ttl", ["30s", "origin"])
async def test_what_a_route_ignores_the_upstream_never_sees(why: str, ttl: str) -> None:
    upstream = StubUpstream(json_answer())
    settings = {"upstream": "api", "ttl": ttl}
    routes = {
        "ignored": {"path": "/ignored", **settings, "authorization": "ignore", "cookies": "ignore"},
        "bypassed": {"path": "/bypassed", **settings, "authorization": "ignore"},
        "listed": {"path": "/listed", **settings, "authorization": "ignore", "cookies": ["sid"]},
        "off": {"path": "/off", "upstream": "api", "cache": "off", "authorization": "ignore", "cookies": "ignore"},
    }
    sent = {"authorization": "Bearer 1", **PASSES_BY[why]}
    async with running(gateway(upstream, routes)) as client:
        for path in routes:
            await client.request("GET", f"/{path}", headers=sent, content=b"x" if why == "body" else None)
    assert [request.url.path for request in upstream.requests] == [f"/{path}" for path in routes]
    assert not any("authorization" in request.headers for request in upstream.requests)
    cookies = [request.headers.get("cookie") for request in upstream.requests]
    assert cookies == ([None, "sid=1; other=2", "sid=1", None] if why == "cookie" else [None] * 4)


@pytest.mark.parametrize("ttl", ["30s", "origin"])
async def test_what_a_part_ignores_its_upstream_never_sees(ttl: str) -> None:
    upstream = StubUpstream(lambda request: httpx.Response(200, json=request.url.path))
    parts = {
        "plain": {},
        "cookies": {"cookies": "pass"},
        "listed": {"cookies": ["sid"]},
        "authorized": {"authorization": "pass"},
        "posted": {"method": "POST", "body": {}, "cookies": ["sid"]},
    }
    parts = {name: {"upstream": "api", "path": f"/{name}", "ttl": ttl, **part} for name, part in parts.items()}
    async with running(gateway(upstream, {"whole": {"path": "/whole", "parts": parts}})) as client:
        await client.get("/whole", headers={"authorization": "Bearer 1", "cookie": "sid=1; other=2"})
    seen = {
        request.url.path: (request.headers.get("authorization"), request.headers.get("cookie"))
        for request in upstream.requests
    }
    assert seen == {
        "/plain": (None, None),
        "/cookies": (None, "sid=1; other=2"),
        "/listed": (None, "sid=1"),
        "/authorized": ("Bearer 1", None),
        "/posted": (None, "sid=1"),
    }


# --- targets -------------------------------------------------------------------------------------------------


QUERY = "a=1&gclid=2&utm_source=3"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_a_method_that_passes_by_the_cache_keeps_its_query_whole(method: str) -> None:
    upstream = StubUpstream(json_answer())
    routes = {"item": {**THIRTY["item"], "query": ["a"], "upstream_path": "/v2/{id}?b=0"}}
    async with running(gateway(upstream, routes)) as client:
        await client.get(f"/items/7?{QUERY}")
        await client.request(method, f"/items/7?{QUERY}")
        again = await client.get("/items/7?a=1")
    assert [request.url.raw_path for request in upstream.requests[:2]] == [
        b"/v2/7?a=1&b=0",
        b"/v2/7?a=1&b=0&gclid=2&utm_source=3",
    ]
    # What is stored is known by the parameters that count: an unsafe method makes it void all the same.
    assert again.headers["cache-status"].startswith("gateway; hit" if method == "OPTIONS" else "gateway; fwd=")


@pytest.mark.parametrize(
    ("settings", "headers"),
    [
        ({}, {"cookie": "a=1"}),
        ({}, {"authorization": "Bearer 1"}),
        ({}, {"if-match": '"v1"'}),
        ({}, {"cache-control": "no-store"}),
        ({"cache": "off", "ttl": "origin"}, {}),
    ],
    ids=["cookie", "authorization", "precondition", "no-store", "cache off"],
)
async def test_a_request_that_passes_by_the_cache_keeps_its_query_whole(
    settings: dict[str, str], headers: dict[str, str]
) -> None:
    upstream = StubUpstream(json_answer())
    async with running(gateway(upstream, {"item": {**THIRTY["item"], **settings}})) as client:
        await client.get(f"/items/7?{QUERY}", headers=headers)
    assert upstream.requests[0].url.raw_path == f"/items/7?{QUERY}".encode()


async def test_a_parameter_that_a_route_lists_is_never_dropped() -> None:
    upstream = StubUpstream(json_answer())
    async with running(gateway(upstream, {"item": {**THIRTY["item"], "query": ["a", "gclid"]}})) as client:
        await client.get(f"/items/7?{QUERY}")
    assert upstream.requests[0].url.raw_path == b"/items/7?a=1&gclid=2"


async def test_one_target_has_one_entry_however_it_is_written() -> None:
    upstream = StubUpstream(json_answer())
    async with running(gateway(upstream, THIRTY)) as client:
        for target in ("/items/a-b?y=2&x=1", "/items/a%2Db?x=1&y=2&utm_source=z", "/x/../items/./a%2db?x=%31&y=2&&"):
            await client.send(
                client.build_request("GET", httpx.URL("http://gateway.test").copy_with(raw_path=target.encode()))
            )
    assert upstream.asked == 1
    assert upstream.requests[0].url.raw_path == b"/items/a-b?x=1&y=2"


@pytest.mark.parametrize(
    "target", ["/a%2fb", "/a%5cb", "/a%00", "/a%0ab", "/%2e%2e/x", "/..;/x", "/%252e%252e/x", "/a\\b"]
)
async def test_an_ambiguous_target_is_refused_and_nobody_is_asked(target: str) -> None:
    upstream = StubUpstream(json_answer())
    async with running(gateway(upstream)) as client:
        url = httpx.URL("http://gateway.test").copy_with(raw_path=target.encode())
        response = await client.send(client.build_request("GET", url))
    assert response.status_code == 400
    assert response.headers["content-type"] == "application/problem+json"
    assert upstream.asked == 0


async def test_only_allowed_query_parameters_count_and_are_forwarded() -> None:
    upstream = StubUpstream(json_answer())
    routes = {"item": {**THIRTY["item"], "query": ["page"], "upstream_path": "/v2/{id}?format=json&id={id}"}}
    async with running(gateway(upstream, routes)) as client:
        for query in ("page=2&x=1", "y=1&page=2", "page=2"):
            await client.get(f"/items/a&b?{query}")
    assert upstream.asked == 1
    assert upstream.requests[0].url.raw_path == b"/v2/a&b?format=json&id=a%26b&page=2"


async def test_an_absolute_target_of_another_host_is_refused_by_the_server(clock: TurnedClock) -> None:
    from gateway.edge.protocol import GatewayProtocol

    app = gateway(StubUpstream(json_answer()))
    async with served(app, http=GatewayProtocol) as url:
        host = url.removeprefix("http://")
        for authority, status in ((host, b"200"), ("evil.test", b"400")):
            reader, writer = await asyncio.open_connection(*host.split(":"))
            writer.write(f"GET http://{authority}/x HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            assert (await reader.read()).split(b" ")[1] == status
            writer.close()


@pytest.mark.parametrize("hosts", [[], ["a", "b"], ["a b"], ["user@a"], ["a/b"], ["a:99999999"]], ids=str)
async def test_a_missing_double_or_malformed_host_is_refused(hosts: list[str]) -> None:
    app = gateway(StubUpstream(json_answer()))
    sent: list[dict[str, object]] = []
    scope = {
        "type": "http", "method": "GET", "path": "/x", "raw_path": b"/x", "query_string": b"", "http_version": "1.1",
        "headers": [(b"host", host.encode()) for host in hosts], "client": ("192.0.2.1", 1), "scheme": "http",
    }  # fmt: skip

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    await app(scope, receive, send)  # type: ignore[arg-type]
    assert sent[0]["status"] == 400


# --- what the client is told ---------------------------------------------------------------------------------


async def test_every_answer_tells_what_happened(clock: TurnedClock) -> None:
    async with running(gateway(StubUpstream(json_answer()), THIRTY, clock=clock)) as client:
        miss = await client.get("/items/7")
        clock.turn(3)
        hit = await client.get("/items/7", headers={"x-request-id": "mine-1"})
    assert miss.headers["server-timing"].startswith("cache;desc=miss, upstream;dur=")
    assert hit.headers["server-timing"].startswith("cache;desc=hit, total;dur=")
    assert (hit.headers["age"], hit.headers["x-request-id"]) == ("3", "mine-1")
    assert len(miss.headers["x-request-id"]) == 32
    assert float(hit.headers["x-process-time"]) < 5


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "<script>"])
async def test_a_request_id_that_could_do_harm_is_replaced(given: str) -> None:
    async with running(gateway(StubUpstream(json_answer()))) as client:
        response = await client.get("/x", headers={"x-request-id": given})
    assert response.headers["x-request-id"] != given


async def test_a_route_with_a_ttl_tells_clients_its_own_promise(clock: TurnedClock) -> None:
    upstream = StubUpstream(json_answer(cache_control="max-age=99999", expires="Thu, 01 Dec 2094 16:00:00 GMT"))
    for client_ttl, turned, expected in (({}, 5, range(27, 31)), ({"client_ttl": "3s"}, 5, [8])):
        routes = {"item": {**THIRTY["item"], **client_ttl}}
        async with running(gateway(upstream, routes, clock=clock)) as client:
            await client.get("/items/7")
            clock.turn(turned)
            response = await client.get("/items/7")
        assert int(response.headers["cache-control"].removeprefix("max-age=")) in expected
        assert "expires" not in response.headers


async def test_hop_by_hop_headers_of_the_upstream_end_here() -> None:
    headers = {"connection": "x-hop, close", "x-hop": "1", "keep-alive": "5", "upgrade": "h2c", "x-kept": "1"}
    async with running(gateway(StubUpstream(lambda request: httpx.Response(200, text="x", headers=headers)))) as client:
        response = await client.get("/x")
    assert response.headers["x-kept"] == "1"
    assert not set(response.headers) & {"connection", "x-hop", "keep-alive", "upgrade"}


async def test_interim_responses_reach_the_client() -> None:
    from gateway.edge.protocol import GatewayProtocol

    early = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n"
    final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    async with raw_upstream(once(early + final)) as raw:
        app = gateway(None, upstreams={"api": {"url": raw.url}})
        async with served(app, http=GatewayProtocol) as url:
            reader, writer = await asyncio.open_connection(*url.removeprefix("http://").split(":"))
            writer.write(b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            received = await reader.read()
            writer.close()
    assert received.startswith(b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>\r\n\r\nHTTP/1.1 200 OK\r\n")


async def test_a_body_that_breaks_off_while_it_streams_breaks_the_clients_connection() -> None:
    from gateway.edge.protocol import GatewayProtocol

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(
            b"HTTP/1.1 200 OK\r\nCache-Control: no-store\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"
        )

    async with raw_upstream(script) as raw:
        app = gateway(None, upstreams={"api": {"url": raw.url}})
        async with served(app, http=GatewayProtocol) as url, httpx.AsyncClient() as client:
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get(f"{url}/x")


# --- errors and CORS -----------------------------------------------------------------------------------------


async def test_errors_are_problem_details_that_carry_cors_headers() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused to 10.0.0.7:8080")

    app = gateway(StubUpstream(refuse), cors={"allow_origins": ["https://app.test"]})
    async with running(app) as client:
        for path, status in (("/x", 502), ("/a%2fb", 400)):
            url = httpx.URL("http://gateway.test").copy_with(raw_path=path.encode())
            response = await client.send(client.build_request("GET", url, headers={"origin": "https://app.test"}))
            assert response.status_code == status
            assert response.headers["access-control-allow-origin"] == "https://app.test"
            assert response.headers["content-type"] == "application/problem+json"
            assert "10.0.0.7" not in response.text


# --- around it -----------------------------------------------------------------------------------------------


async def test_the_gateway_can_be_mounted_in_another_app() -> None:
    upstream = StubUpstream(lambda request: httpx.Response(200, text=request.url.path))
    outer = Starlette(routes=[Mount("/api", gateway(upstream, THIRTY))])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(outer), base_url="http://x.test") as client:
        responses = [await client.get("/api/items/7") for _ in range(2)]
    assert [response.text for response in responses] == ["/items/7"] * 2
    assert upstream.asked == 1


@pytest.mark.parametrize("target", ["/items/7", "/healthz", "/plain", "/kept"])
async def test_a_request_leaves_nothing_to_the_garbage_collector(target: str) -> None:
    app = gateway(StubUpstream(json_answer()), THIRTY)

    @app.get("/plain")
    async def plain() -> dict[str, int]:
        return {"a": 1}

    @app.get("/kept")
    @cached(ttl="30s")
    async def kept() -> dict[str, int]:
        return {"a": 1}

    app.rebind()
    async with running(app) as client:
        gc.collect()
        others = [each for each in gc.get_objects() if isinstance(each, RequestContext)]
        gc.disable()
        try:
            for _ in range(3):
                assert (await client.get(target)).status_code == 200
            await app.engine.settle()
            left = [each for each in gc.get_objects() if isinstance(each, RequestContext) and each not in others]
        finally:
            gc.enable()
    assert left == []


@pytest.mark.parametrize("lifespan", [True, False])
async def test_handlers_that_the_app_itself_is_given_are_cached_from_the_first_request_on(lifespan: bool) -> None:
    app = gateway(StubUpstream(json_answer()), routes={})
    asked: list[int] = []

    @app.get("/things/{id}")
    @cached(ttl="30s")
    async def thing(id: int) -> int:
        asked.append(id)
        return id

    transport = httpx.ASGITransport(app)
    async with contextlib.AsyncExitStack() as stack:
        if lifespan:
            client = await stack.enter_async_context(running(app))
        else:
            client = await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://a.test"))
        first = await client.get("/things/1")
        second = await client.get("/things/1")
    assert first.headers["cache-status"].startswith("gateway; fwd=miss; stored")
    assert second.headers["cache-status"].startswith("gateway; hit")
    assert asked == [1]
