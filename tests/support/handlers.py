"""Apps of one `@cached` handler, and requests to them."""

from collections.abc import Callable
from typing import Any

import httpx
from fastapi import APIRouter, Request

from gateway import cached, create_app
from gateway.app.gateway import Gateway
from gateway.observability.access_log import silent
from gateway.testing import running

Fields = dict[str, str] | list[tuple[str, str]]


def app_of(*routers: APIRouter, **settings: Any) -> Gateway:
    app = create_app({"redis_url": "none", **settings}, log=silent)
    for router in routers:
        app.include_router(router)
    return app


def of(handler: Callable[..., Any], path: str = "/it", **arguments: Any) -> APIRouter:
    """A router whose only route is this handler, with `@cached` for 30 s unless told otherwise."""
    router = APIRouter()
    router.get(path)(cached(**{"ttl": "30s", **arguments})(handler))
    return router


async def asked(app: Gateway, *requests: Fields, path: str = "/it") -> list[httpx.Response]:
    async with running(app) as client:
        return [await client.get(path, headers=headers) for headers in requests]


def is_hit(response: httpx.Response) -> bool:
    return response.headers["cache-status"].startswith("gateway; hit")


ANN, BOB = {"x-user": "ann"}, {"x-user": "bob"}


def with_users(app: Gateway) -> Gateway:
    @app.middleware("http")
    async def auth(request: Request, call_next: Any) -> Any:
        user = request.headers.get("x-user")
        request.state.user = user
        request.state.role = user
        request.scope["user"] = user
        request.scope["session"] = {"user": user}
        return await call_next(request)

    return app


async def taking(fixed: str, q: int = 1) -> str:
    return fixed * q


async def answers_of(router: APIRouter, method: str = "GET", path: str = "/it") -> list[httpx.Response]:
    app = create_app({"redis_url": "none"}, log=silent)
    app.include_router(router)
    async with running(app) as client:
        return [await client.request(method, path), await client.request(method, path)]
