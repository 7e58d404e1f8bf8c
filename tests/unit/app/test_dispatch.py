"""The route of a request is found as FastAPI's own router finds it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request
from fastapi.routing import APIRoute
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Mount, Route

from gateway.app.dispatch import Dispatch


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
        for path in ("/a/1", "/b", "/two/b", "/two/under/deep/3", "/again/items/7"):
            assert (await client.get(path)).status_code == 200


async def test_a_host_is_the_routers_to_find() -> None:
    app, _ = app_of()
    app.router.routes.insert(0, Host("other", Mount("/", PlainTextResponse("other"))))
    app.router.middleware_stack = Dispatch(app.router, app.router.middleware_stack)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://other") as client:
        assert (await client.get("/b")).text == "other"
