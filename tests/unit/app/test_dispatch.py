"""The route of a request is found as FastAPI's own router finds it."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.routing import APIRoute
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Host, Mount, Route

from gateway.app.dispatch import Dispatch, FrameworkLayers, Recording
from gateway.context import STORED_KEY


class Versioned(APIRoute):
    def matches(self, scope: Any) -> Any:
        return super().matches(scope) if dict(scope["headers"]).get(b"version") == b"2" else (0, {})


def said(name: str) -> Any:
    async def answer(request: Request) -> list[Any]:
        scope = request.scope
        context = scope.get("fastapi", {}).get("effective_route_context")
        return [
            *(name, scope["endpoint"].__name__, scope["path_params"], scope["route"].path, scope["root_path"]),
            *(context and context.path, scope["router"] is request.app.router),
        ]

    answer.__name__ = name
    return answer


def app_of(*, first: type[APIRoute] = APIRoute) -> tuple[FastAPI, APIRouter]:
    app, one, two, deep = FastAPI(), APIRouter(route_class=first), APIRouter(prefix="/two"), APIRouter()
    app.get("/a/{id}")(said("direct"))
    one.get("/b")(said("one"))
    one.get("/items/{id}")(said("item"))
    two.post("/b")(said("posted"))
    two.get("/{path:path}")(said("rest"))
    deep.get("/deep/{number:int}")(said("deep"))
    two.include_router(deep, prefix="/under")
    for router in (one, two):
        app.include_router(router)
    app.include_router(one, prefix="/again")
    app.router.routes.append(Route("/plain", lambda request: PlainTextResponse("plain")))
    app.mount("/mounted", FastAPI())
    app.get("/items/{id}/more")(said("more"))
    app.get("/plain")(said("behind"))
    return app, one


PATHS = (
    *("/a/1", "/b", "/b/", "/items/x%20y", "/items/1/more", "/two/b", "/two/x/y", "/two/under/deep/3", "/again/b"),
    *("/again/items/7", "/plain", "/mounted/x", "/nothing", "/two", "/"),
)


async def answers(app: FastAPI) -> list[tuple[int, str]]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://g", headers={"version": "1"}) as client:
        found = [await client.request(method, path) for path in PATHS for method in ("GET", "POST", "HEAD")]
    return [(each.status_code, each.text) for each in found]


@pytest.mark.parametrize("first", [APIRoute, Versioned])
async def test_each_request_goes_where_fastapi_sends_it(first: type[APIRoute]) -> None:
    app, one = app_of(first=first)
    without = await answers(app)
    dispatch = Dispatch(app.router, app.router.middleware_stack)
    app.router.middleware_stack = dispatch
    assert await answers(app) == without
    assert len({status for status, _ in without}) > 2

    one.get("/two/later")(said("later"))
    app.router.routes.insert(0, Route("/a/1", lambda request: PlainTextResponse("before")))
    app.router.middleware_stack = dispatch._otherwise
    changed = await answers(app)
    app.router.middleware_stack = dispatch
    assert await answers(app) == changed != without


async def test_plain_routes_are_found_without_the_router() -> None:
    app, _ = app_of()

    async def asked_in_vain(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError(scope["path"])

    app.router.middleware_stack = Dispatch(app.router, asked_in_vain)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://g") as client:
        for path in ("/a/1", "/b", "/two/b", "/two/under/deep/3", "/again/items/7", "/items/1/more"):  # behind a mount
            assert (await client.get(path)).status_code == 200


async def test_a_host_is_the_routers_to_find() -> None:
    app, _ = app_of()
    app.router.routes.insert(0, Host("other", Mount("/", PlainTextResponse("other"))))
    app.router.middleware_stack = Dispatch(app.router, app.router.middleware_stack)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://other") as client:
        assert (await client.get("/b")).text == "other"


# --- FastAPI's layers ---------------------------------------------------------------------------------------


class Known(Exception):
    pass


class Worse(Exception):
    pass


async def known(request: Request, error: Exception) -> PlainTextResponse:
    if request.url.path == "/worse":
        raise Worse from error
    return PlainTextResponse(f"known, by {request.url.path}", 418)


async def worse(request: Request, error: Exception) -> PlainTextResponse:
    return PlainTextResponse("worse", 422)


async def unknown(request: Request, error: Exception) -> PlainTextResponse:
    return PlainTextResponse(f"{type(error).__name__}", 500)


def failing_app() -> FastAPI:
    app = FastAPI(exception_handlers={Known: known, Worse: worse, Exception: unknown, 404: known})

    def raising(error: Exception) -> Any:
        async def answer() -> None:
            raise error

        return answer

    async def late() -> StreamingResponse:
        async def pieces() -> Any:
            yield "a"
            raise Known

        return StreamingResponse(pieces())

    for path, error in {"/known": Known(), "/worse": Known(), "/unknown": ValueError()}.items():
        app.get(path)(raising(error))
    app.get("/none")(raising(HTTPException(404)))
    app.get("/refused")(raising(HTTPException(403, "no", headers={"x": "y"})))
    app.get("/number/{n}")(said("number"))
    app.get("/int")(lambda n: int(n))
    app.get("/late")(late)
    return app


def shortened(app: FastAPI) -> Any:
    dispatch = Dispatch(app.router, app.router.middleware_stack)
    app.router.middleware_stack = dispatch
    app.middleware_stack = FrameworkLayers.around(dispatch, app.build_middleware_stack(), app.router)
    return app.middleware_stack


async def test_errors_are_answered_as_through_all_layers_of_fastapi() -> None:
    plain, short = failing_app(), failing_app()
    assert isinstance(shortened(short), FrameworkLayers)

    async def told(app: FastAPI, path: str) -> Any:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://g") as client:
            found = await client.get(path)
            return found.status_code, found.text, {**found.headers}

    statuses = set()
    for path in (
        "/known",
        "/worse",
        "/unknown",
        "/none",
        "/refused",
        "/number/1",
        "/int",
        "/int?n=x",
        "/files",
        "/gone",
    ):
        expected = await told(plain, path)
        assert await told(short, path) == expected, path
        statuses.add(expected[0])
    assert statuses == {200, 403, 418, 422, 500}


async def test_an_error_that_nothing_handles_reaches_the_server() -> None:
    app = failing_app()
    shortened(app)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": "GET", "query_string": b"", "headers": [], "root_path": "", "app": app}
    with pytest.raises(ValueError):
        await app.middleware_stack({**scope, "path": "/unknown"}, receive, send)  # type: ignore[misc]
    assert [each.get("status") for each in sent] == [500, None]


BOUNDED = "max_body_size" in inspect.signature(FastAPI.__init__).parameters
"""Whether this FastAPI can bound bodies."""


@pytest.mark.parametrize("change", ["middleware", *(["max_body_size"] if BOUNDED else [])])
async def test_layers_that_do_more_are_all_called(change: str) -> None:
    app = FastAPI(**({"max_body_size": 100} if change == "max_body_size" else {}))
    if change == "middleware":
        app.add_middleware(GZipMiddleware)
    layers = app.build_middleware_stack()
    dispatch = Dispatch(app.router, app.router.middleware_stack)
    assert FrameworkLayers.around(dispatch, layers, app.router) is layers


def test_fastapis_own_telemetry_is_noticed() -> None:
    app = FastAPI()
    assert not Recording(app).is_on()
    app._native_telemetry.enabled = lambda: True  # type: ignore[method-assign]
    assert Recording(app).is_on()
    del app._native_telemetry
    assert Recording(app).is_on()  # where this FastAPI keeps it elsewhere


async def test_where_middleware_may_add_to_a_response_none_is_written_past_it() -> None:
    app, seen = FastAPI(), []

    @app.get("/a")
    async def answer(request: Request) -> None:
        seen.append(STORED_KEY in request.scope)

    dispatch = Dispatch(app.router, app.router.middleware_stack)
    app.router.middleware_stack = dispatch
    layers = app.build_middleware_stack()

    async def offering(layers: Any, scope: Any, receive: Any, send: Any) -> None:
        await layers({**scope, STORED_KEY: object(), "app": app}, receive, send)

    for stack in (layers, FrameworkLayers.around(dispatch, layers, app.router)):
        transport = httpx.ASGITransport(partial(offering, stack))
        async with httpx.AsyncClient(transport=transport, base_url="http://g") as client:
            assert (await client.get("/a")).status_code == 200
    assert seen == [False, True]
