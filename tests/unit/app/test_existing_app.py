"""`Cache(app)`: what of an app is cached, and that all else of it stays the app's."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.testclient import TestClient
from pydantic import BaseModel
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.websockets import WebSocket

from gateway import Cache, ConfigError, Upstream, cached, create_app, upstream
from gateway.app.generations import Generations
from gateway.config.loader import Loaded
from gateway.config.models import Config
from gateway.testing import StubUpstream, TurnedClock
from tests.support.edge_lines import Line, asked

GET = b"GET %b HTTP/1.1\r\nHost: a.test\r\n%b\r\n"


class Counting(FastAPI):
    """Counts the requests that reach it by ASGI."""

    came = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.came += scope["type"] == "http"
        await super().__call__(scope, receive, send)


class Thing(BaseModel):
    name: str
    secret: str = "s"


class Shown(BaseModel):
    name: str


class Paging:
    def __init__(self, page: int = 1) -> None:
        self.page = page


def name_of() -> str:
    return "Ann"


def shop(**settings: Any) -> tuple[Counting, Cache, list[int]]:
    """An app with a cached handler, its cache, and the calls of the handler."""
    app, calls = Counting(), list[int]()
    cache = Cache(app, {"redis_url": "none"}, clock=TurnedClock(), **settings)

    @app.get("/items/{id}")
    @cached(ttl="30s", tags=["item:{id}"])
    async def item(id: int) -> dict[str, int]:
        calls.append(id)
        return {"id": id}

    return app, cache, calls


def status(response: httpx.Response) -> str:
    return response.headers.get("cache-status", "")


def test_one_line_caches_the_handlers_of_an_app() -> None:
    app, _, calls = shop()
    with TestClient(app) as client:
        first, second = client.get("/items/1"), client.get("/items/1")
    assert (first.json(), second.json(), calls) == ({"id": 1}, {"id": 1}, [1])
    assert (status(first)[:17], status(second)[:12]) == ("gateway; fwd=miss", "gateway; hit")


def test_a_response_that_no_cached_handler_made_is_the_apps_to_the_last_field() -> None:
    def made(with_cache: bool) -> FastAPI:
        app = FastAPI()
        if with_cache:
            Cache(app, {"redis_url": "none"})

        @app.get("/plain")
        def plain() -> int:
            return 1

        @app.get("/raises")
        def raises() -> None:
            raise HTTPException(418, "a teapot", headers={"x-pot": "tea"})

        @app.get("/typed/{id}")
        def typed(id: int) -> int:
            return id

        @app.exception_handler(KeyError)
        async def missing(request: Request, error: KeyError) -> JSONResponse:
            return JSONResponse({"missing": True}, 410)

        @app.get("/missing")
        def lost() -> None:
            raise KeyError

        return app

    targets = ("/plain", "/raises", "/typed/a", "/missing", "/nowhere", "/plain/", "/docs", "/openapi.json", "//plain")
    with TestClient(made(False)) as bare, TestClient(made(True)) as around:
        for target in (*targets, "/a/../plain", "/a%2Fb", "/%zz", "/plain?b=2&a=1"):
            for method in ("GET", "HEAD", "POST", "OPTIONS"):
                plain, same = (each.request(method, f"http://testserver{target}") for each in (bare, around))
                assert (same.status_code, same.content) == (plain.status_code, plain.content), (method, target)
                assert same.headers == plain.headers, (method, target)


def test_a_path_that_the_gateway_would_read_as_another_is_not_cached() -> None:
    app = FastAPI()
    Cache(app, {"redis_url": "none"})

    @app.get("/files/{path:path}")
    @cached(ttl="30s")
    async def file(path: str) -> str:
        return path

    told: list[Any] = []

    async def main() -> None:
        async def receive() -> Any:
            return {"type": "http.request", "body": b""}

        async def send(message: Any) -> None:
            told.append(message.get("body"))

        for path in ("/files/b", "/files/a/../b", "/files/b", "/files//b", "/files/%62"):
            scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b""}
            await app({**scope, "headers": [(b"host", b"a.test")]}, receive, send)

    asyncio.run(main())
    assert [json.loads(each) for each in told if each] == ["b", "a/../b", "b", "/b", "%62"]


def test_handlers_that_come_later_are_cached_too() -> None:
    app = FastAPI()
    Cache(app, {"redis_url": "none"})
    router, calls = APIRouter(prefix="/late", dependencies=[Depends(lambda: None)]), list[str]()

    @router.get("/{name}")
    @cached(ttl="30s")
    def late(name: str) -> str:
        calls.append(name)
        return name

    app.include_router(router, prefix="/v1")
    with TestClient(app) as client:
        assert [client.get("/v1/late/a").json() for _ in range(2)] == ["a", "a"]
        again = APIRouter()

        @again.get("/after-start")
        @cached(ttl="30s")
        async def after() -> int:
            calls.append("after")
            return 1

        app.include_router(again)
        for _ in range(3):  # the first request prepares it
            assert client.get("/after-start").json() == 1
    assert calls in (["a", "after"], ["a", "after", "after"])


def test_handlers_of_a_sub_application_are_cached() -> None:
    app, cache, _ = shop()
    sub, calls = FastAPI(), list[int]()

    @sub.get("/things/{id}", name="thing")
    @cached(ttl="30s", tags=["thing"])
    async def thing(id: int, request: Request) -> dict[str, str]:
        calls.append(id)
        return {"self": str(request.url_for("thing", id=id))}

    app.mount("/sub", sub)
    with TestClient(app) as client:
        for _ in range(2):
            assert client.get("/sub/things/1").json() == {"self": "http://testserver/sub/things/1"}
        assert calls == [1]
        assert client.portal is not None
        client.portal.call(lambda: cache.purge(tags=["thing"]))
        client.get("/sub/things/1")
    assert calls == [1, 1]


def test_dependency_overrides_answer_hits_as_misses() -> None:
    app, _, _ = shop()

    @app.get("/name")
    @cached(ttl="30s", key=["name"], authorization="ignore")
    async def named(name: Annotated[str, Depends(name_of)]) -> str:
        return name

    with TestClient(app) as client:
        assert client.get("/name").json() == "Ann"
        app.dependency_overrides[name_of] = lambda: "Bob"
        assert client.get("/name").json() == "Bob"
        app.dependency_overrides = {}
        assert client.get("/name").json() == "Ann"


def test_websockets_and_lifespan_state_pass() -> None:
    told: list[str] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> Any:
        told.append("up")
        yield {"word": "hello"}
        told.append("down")

    app = FastAPI(lifespan=lifespan)
    cache = Cache(app, {"redis_url": "none"})

    @app.websocket("/talk")
    async def talk(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text(await socket.receive_text())

    @app.get("/word")
    @cached(ttl="30s")
    async def word(request: Request) -> str:
        return str(request.state.word)

    with TestClient(app) as client:
        assert cache.worker_state.started
        assert [client.get("/word").json() for _ in range(2)] == ["hello", "hello"]
        assert status(client.get("/word")).startswith("gateway; hit")
        with client.websocket_connect("/talk") as socket:
            socket.send_text("a")
            assert socket.receive_text() == "a"
    assert told == ["up", "down"]


def test_behind_a_prefix_and_mounted_the_key_is_the_apps_own_path() -> None:
    app, cache, calls = shop()
    outer = FastAPI(lifespan=cache.lifespan)
    outer.mount("/api", app)
    with TestClient(outer) as client:
        assert [client.get("/api/items/1").json() for _ in range(2)] == [{"id": 1}] * 2
        assert calls == [1]
    with TestClient(app, root_path="/shop") as client:
        assert client.get("/shop/items/1").json() == {"id": 1}
        assert status(client.get("/items/1")).startswith("gateway; hit")
    assert calls == [1]


def test_streams_models_background_tasks_and_sync_handlers_are_as_without() -> None:
    app = FastAPI()
    Cache(app, {"redis_url": "none"})
    done: list[str] = []

    @app.get("/model", response_model=Shown)
    @cached(ttl="30s")
    def model() -> Thing:
        return Thing(name="a")

    @app.get("/stream")
    @cached(ttl="30s")
    async def stream() -> StreamingResponse:
        return StreamingResponse(iter(["a", "b"]), media_type="text/plain")

    @app.get("/later")
    @cached(ttl="30s")
    async def later(tasks: BackgroundTasks) -> int:
        tasks.add_task(done.append, "later")
        return 1

    @app.get("/paged")
    @cached(ttl="30s")
    def paged(paging: Annotated[Paging, Depends()], x_tenant: Annotated[str, Header()] = "none") -> list[str]:
        done.append("paged")
        return [str(paging.page), x_tenant]

    with TestClient(app) as client:
        for _ in range(2):
            assert client.get("/model").json() == {"name": "a"}
            assert client.get("/stream").text == "ab"
            assert client.get("/later").json() == 1
            assert client.get("/paged").json() == ["1", "none"]
            assert client.get("/paged?page=2", headers={"x-tenant": "b"}).json() == ["2", "b"]
    assert sorted(done) == ["later", "paged", "paged"]


def test_an_upstream_can_be_used_and_its_failure_is_a_gateways_error() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/away":
            raise httpx.ConnectError("refused")
        return httpx.Response(200, json={"name": "Lamp"})

    app = FastAPI()
    upstreams = {"shop": {"url": "http://shop.test"}}
    Cache(app, redis_url="none", upstreams=upstreams, transport=StubUpstream(answer))

    @app.get("/names/{path}")
    async def name(path: str, shop: Annotated[Upstream, upstream("shop")]) -> str:
        return str((await shop.get(f"/{path}")).json()["name"])

    with TestClient(app) as client:
        assert client.get("/names/lamp").json() == "Lamp"
        assert client.get("/names/away").status_code == 502


@pytest.mark.parametrize("given", [{"routes": {"a": {"path": "/a", "upstream": "b"}}}, {"include": ["a:b"]}])
def test_routes_of_the_configuration_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="Gateway"):
        Cache(FastAPI(), {"upstreams": {"b": {"url": "http://b.test"}}, **given})


def test_an_app_has_one_cache() -> None:
    app, _, _ = shop()
    with pytest.raises(ValueError, match="already"):
        Cache(app)
    with pytest.raises(ValueError, match="already"):
        Cache(create_app({"redis_url": "none"}))


def test_a_wrong_setting_is_refused() -> None:
    with pytest.raises(ConfigError, match="redis_ulr"):
        Cache(FastAPI(), redis_ulr="none")


# --- at the edge -------------------------------------------------------------------------------------------


async def test_hits_are_answered_before_asgi() -> None:
    app, cache, calls = shop()
    app.middleware_stack = app.build_middleware_stack()
    async with cache.lifespan():
        line = Line(app)
        for _ in range(4):
            assert (await asked(line, GET % (b"/items/1", b""))).endswith(b'{"id":1}')
        assert (app.came, calls) == (1, [1])


@pytest.mark.parametrize(
    ("middleware", "options", "field"),
    [
        (SessionMiddleware, {"secret_key": "s"}, b"Cookie: session=a\r\n"),
        (CORSMiddleware, {"allow_origins": ["https://b.test"]}, b"Origin: https://b.test\r\n"),
    ],
)
async def test_known_middleware_leaves_requests_to_the_edge_that_it_does_not_act_on(
    middleware: Any, options: dict[str, Any], field: bytes
) -> None:
    app, cache, _ = shop()
    app.add_middleware(middleware, **options)
    app.middleware_stack = app.build_middleware_stack()
    async with cache.lifespan():
        line = Line(app)
        answers = [await asked(line, GET % (b"/items/1", b"")) for _ in range(3)]
        assert app.came == 1
        assert len({each for answer in answers for each in answer.split(b"\r\n") if each.startswith(b"vary:")}) == 1
        for _ in range(3):
            await asked(line, GET % (b"/items/1", field))
        assert app.came == 4


async def test_other_middleware_is_asked_each_time() -> None:
    app, cache, _ = shop()

    @app.middleware("http")
    async def passing(request: Request, go_on: Any) -> Any:
        return await go_on(request)

    app.middleware_stack = app.build_middleware_stack()
    async with cache.lifespan():
        line = Line(app)
        for _ in range(3):
            await asked(line, GET % (b"/items/1", b""))
        assert app.came == 3
    assert [each.cached.edge for each in cache.handler_routes() if each.cached] == [
        "no: the app has middleware of its own, BaseHTTPMiddleware"
    ]


async def test_a_sub_application_is_not_answered_at_the_edge() -> None:
    app, cache, _ = shop()
    sub = FastAPI()

    @sub.get("/a")
    @cached(ttl="30s")
    async def a() -> int:
        return 1

    app.mount("/sub", sub)
    async with cache.lifespan():
        line = Line(app)
        for _ in range(3):
            await asked(line, GET % (b"/sub/a", b""))
        assert app.came == 3


# --- reloading ---------------------------------------------------------------------------------------------


async def test_a_reload_changes_settings_and_keeps_entries_and_the_app() -> None:
    app, cache, _ = shop()
    generations = Generations(cache)
    async with cache.lifespan():
        transport = httpx.ASGITransport(generations)
        async with httpx.AsyncClient(transport=transport, base_url="http://a.test") as client:
            await client.get("/items/1?utm=1")
            generations.reload(Loaded(Config.model_validate({"redis_url": "none", "drop_query": ["x_*"]}), {}, ()))
            assert generations.current is not cache
            assert status(await client.get("/items/1?utm=1")).startswith("gateway; hit")
            assert generations.current.runtime is app.state.gateway
            line = Line(generations)
            came = app.came
            for _ in range(3):
                await asked(line, GET % (b"/items/1", b""))
            assert app.came <= came + 1
