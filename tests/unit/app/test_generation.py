"""A generation of an app: what its code gave it stays when the next one takes over; what changes its edge."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import TracerProvider
from starlette.websockets import WebSocket

from gateway import Cache, ConfigError, Gateway, aggregate, cached, part
from gateway.app.generations import Generations
from gateway.config.loader import Loaded
from gateway.config.models import Config
from gateway.testing import StubUpstream, running
from tests.support.edge_lines import Line, asked

QUIET = {"redis_url": "none", "access_log": False}
SHOP = {**QUIET, "upstreams": {"api": {"url": "http://api.test"}}}
RAW = b"GET /things/1 HTTP/1.1\r\nHost: a.test\r\n%b\r\n"


def answer(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, json={"path": request.url.path})


def refuse() -> None:
    raise HTTPException(403, "no")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
    yield {"word": "hello"}


def test_a_gateway_is_a_fastapi_whose_handlers_routes_and_aggregates_work_at_once() -> None:
    routes = {"product": {"path": "/products/{id}", "upstream": "api", "ttl": "30s"}}
    app = Gateway({**SHOP, "routes": routes}, transport=StubUpstream(answer), title="Shop", lifespan=lifespan)
    calls: list[int] = []

    @app.get("/things/{id}")
    @cached(ttl="30s")
    def thing(id: int) -> int:
        calls.append(id)
        return id

    @app.get("/word")
    def word(request: Request) -> str:
        return str(request.state.word)

    @app.websocket("/talk")
    async def talk(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text("hello")

    router = APIRouter()
    aggregate(router, "/home", parts={"a": part(dict[str, str], upstream="api", path="/a", ttl="5m")})
    app.include_router(router)
    with TestClient(app) as client:
        assert [client.get("/things/1").json() for _ in range(2)] == [1, 1]
        assert client.get("/products/7").json() == {"path": "/products/7"}
        assert client.get("/home").json() == {"a": {"path": "/a"}}
        assert client.get("/word").json() == "hello"
        assert client.get("/openapi.json").json()["info"]["title"] == "Shop"
        with client.websocket_connect("/talk") as socket:
            assert socket.receive_text() == "hello"
    assert calls == [1]


@pytest.mark.parametrize(
    ("fastapi", "found"),
    [
        ({}, {"/docs": 200, "/redoc": 200, "/openapi.json": 200}),
        ({"docs_url": None}, {"/docs": 404, "/redoc": 200, "/openapi.json": 200}),
        ({"docs_url": "/d", "redoc_url": None}, {"/docs": 404, "/d": 200, "/redoc": 404, "/openapi.json": 200}),
        ({"openapi_url": None}, {"/docs": 404, "/redoc": 404, "/openapi.json": 404}),
        ({"openapi_url": "/api.json"}, {"/docs": 200, "/openapi.json": 404, "/api.json": 200}),
    ],
)
def test_fastapis_arguments_place_the_documentation(fastapi: dict[str, Any], found: dict[str, int]) -> None:
    client = TestClient(Gateway(QUIET, **fastapi))
    assert {path: client.get(path).status_code for path in found} == found
    if found.get("/docs") == 200:
        assert (fastapi.get("openapi_url") or "/openapi.json") in client.get("/docs").text


def test_dependencies_of_the_app_are_those_of_its_handlers_and_not_of_health() -> None:
    app = Gateway(QUIET, dependencies=[Depends(refuse)])

    @app.get("/guarded")
    def guarded() -> int:
        return 1

    client = TestClient(app)
    assert (client.get("/guarded").status_code, client.get("/healthz").status_code) == (403, 200)


def test_dependencies_of_the_app_that_declared_routes_would_skip_are_refused() -> None:
    routes = {"product": {"path": "/products/{id}", "upstream": "api"}}
    with pytest.raises(ConfigError, match="dependencies"):
        Gateway({**SHOP, "routes": routes}, dependencies=[Depends(refuse)])


def test_handlers_errors_have_fastapis_bodies_where_the_setting_says_so() -> None:
    def bodies(**settings: Any) -> list[Any]:
        app = Gateway({**QUIET, **settings})
        app.get("/no")(refuse)
        client = TestClient(app)
        return [client.get("/no").json(), client.get("/nowhere").json()]

    assert bodies(http_errors="fastapi") == [{"detail": "no"}, {"detail": "Not Found"}]
    assert [each["status"] for each in bodies()] == [403, 404]


async def test_what_the_apps_code_gave_it_outlives_a_reload() -> None:
    def custom() -> dict[str, Any]:
        return {"openapi": "3.1.0", "info": {"title": "mine"}, "paths": {}}

    first = Gateway(SHOP, title="Mine", transport=StubUpstream(answer))
    sub, calls = FastAPI(), list[int]()

    @first.get("/things/{id}")
    @cached(ttl="30s")
    async def thing(id: int) -> int:
        calls.append(id)
        return id

    @first.exception_handler(KeyError)
    async def missing(request: Request, error: KeyError) -> JSONResponse:
        return JSONResponse({"missing": True}, 410)

    @first.exception_handler(404)
    async def lost(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"lost": True}, 404)

    @first.get("/missing")
    def raises() -> None:
        raise KeyError

    sub.get("/a")(lambda: "a")
    first.mount("/sub", sub)
    router = APIRouter()
    router.get("/included")(lambda: "included")
    first.include_router(router)
    first.add_middleware(CORSMiddleware, allow_origins=["https://b.test"])
    vars(first)["openapi"] = custom
    generations = Generations(first)
    async with first.lifespan():
        transport = httpx.ASGITransport(generations)
        async with httpx.AsyncClient(transport=transport, base_url="http://a.test") as client:
            for _ in range(3):
                assert (await client.get("/things/1")).json() == 1
                assert (await client.get("/missing")).json() == {"missing": True}
                assert (await client.get("/nowhere")).json() == {"lost": True}
                assert (await client.get("/sub/a")).json() == "a"
                assert (await client.get("/included")).json() == "included"
                origin = await client.get("/things/1", headers={"origin": "https://b.test"})
                assert origin.headers["access-control-allow-origin"] == "https://b.test"
                assert (await client.get("/openapi.json")).json()["info"]["title"] == "mine"
                routes = len(generations.current.app.router.routes)
                next_one = {**SHOP, "routes": {"rest": {"path": "/rest", "upstream": "api"}}}
                generations.reload(Loaded(Config.model_validate(next_one), {}, ()))
            assert (await client.get("/rest")).json() == {"path": "/rest"}
            assert len(generations.current.app.router.routes) == routes
            assert generations.current.app.title == "Mine"
    assert calls == [1]


@pytest.mark.parametrize("field", [b"", b"Origin: https://b.test\r\n"])
async def test_known_middleware_leaves_to_the_edge_what_it_does_not_act_on(field: bytes) -> None:
    app = Gateway(QUIET, middleware=None)
    app.add_middleware(CORSMiddleware, allow_origins=["https://b.test"])

    @app.get("/things/{id}")
    @cached(ttl="30s")
    async def thing(id: int) -> int:
        return id

    came: list[str] = []
    inner = app.router.middleware_stack

    async def counted(scope: Any, receive: Any, send: Any) -> None:
        came.append(scope["type"])
        await inner(scope, receive, send)

    app.router.middleware_stack = counted
    async with app.lifespan():
        line = Line(app)
        answers = [await asked(line, RAW % field) for _ in range(4)]
    allowed = [b"access-control-allow-origin: https://b.test" in each for each in answers]
    assert (allowed, len(came)) == ([bool(field)] * 4, 4 if field else 1)


@pytest.mark.parametrize("url", ["/things/1", "/shop/things/1"])
async def test_a_purge_by_url_reaches_handlers_behind_a_prefix(url: str) -> None:
    app = Gateway({**QUIET, "root_path": "/shop"})

    @app.get("/things/{id}")
    @cached(ttl="30s")
    async def thing(id: int) -> int:
        return id

    async with running(app) as client:
        for path in ("/things/1", "/shop/things/1"):
            await client.get(path)
        assert "hit" in (await client.get("/things/1")).headers["cache-status"]
        await app.purge(keys=[url])
        assert "fwd=miss" in (await client.get("/shop/things/1")).headers["cache-status"]


# --- the switch ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["variable", "setting"])
async def test_with_the_switch_off_nothing_is_stored_whoever_answers(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream = StubUpstream(answer)
    parts = {"a": {"upstream": "api", "path": "/a", "ttl": "5m"}}
    routes = {"x": {"path": "/x", "upstream": "api", "ttl": "5m"}, "home": {"path": "/home", "parts": parts}}
    if by == "variable":
        monkeypatch.setenv("GATEWAY_CACHE", "off")
    app = Gateway({**SHOP, "routes": routes, **({"cache": False} if by == "setting" else {})}, transport=upstream)
    calls: list[int] = []

    @app.get("/things/{id}")
    @cached(ttl="30s")
    async def thing(id: int) -> int:
        calls.append(id)
        return id

    router = APIRouter()
    aggregate(router, "/typed", parts={"a": part(dict[str, str], upstream="api", path="/a", ttl="5m")})
    app.include_router(router)
    async with running(app) as client:
        for _ in range(2):
            for path in ("/x", "/home", "/typed", "/things/1"):
                told = (await client.get(path)).headers
                assert "fwd=bypass; fwd-status=200; detail=off" in told["cache-status"] or path == "/things/1"
    assert (upstream.asked, calls, len(app.engine.memory)) == (6, [1, 1], 0)


async def test_the_switch_is_for_an_app_that_exists_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_CACHE", "off")
    app = FastAPI()
    cache = Cache(app, {"redis_url": "none"})
    app.get("/a")(cached(ttl="30s")(refuse))
    with TestClient(app) as client:
        assert client.get("/a").json() == {"detail": "no"}
    assert len(cache.engine.memory) == 0


def test_an_app_with_telemetry_of_its_own_is_asked_for_requests_that_are_traced() -> None:
    plain, traced = Gateway(SHOP), Gateway(SHOP, telemetry={"tracer_provider": TracerProvider()})
    assert [each.edge is not None and each.edge.traced for each in (plain, traced)] == [False, True]
    assert [each.edge is not None and each.edge.pass_through is not None for each in (plain, traced)] == [True, False]
    plain._is_instrumented_by_opentelemetry = True  # type: ignore[attr-defined]
    plain.build_middleware_stack()
    assert plain.edge is not None
    assert plain.edge.traced


async def test_running_runs_the_lifespan_of_the_apps_own_code() -> None:
    def word(request: Request) -> str:
        return str(request.state.word)

    gateway, plain = Gateway(QUIET, lifespan=lifespan), FastAPI(lifespan=lifespan)
    cache = Cache(plain, QUIET)
    for app in (gateway, cache):
        app.app.get("/word")(word)
        async with running(app) as client:
            assert (await client.get("/word")).json() == "hello"
