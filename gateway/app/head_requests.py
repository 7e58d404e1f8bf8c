"""HEAD for `@cached` handlers that a route has for GET alone, which FastAPI answers with 405."""

from __future__ import annotations

from collections.abc import Callable

from fastapi.routing import APIRouter
from starlette._utils import get_route_path
from starlette.routing import BaseRoute, Match, Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.routing.handler_settings import Runtime, cached_settings


class HeadOfCached:
    """An ASGI app in front of a router, behind the app's middleware: a HEAD that no route takes goes to the `@cached`
    handler of its path as a GET, and its response has no content (RFC 9110 §9.3.2)."""

    def __init__(self, app: ASGIApp, router: APIRouter, runtime: Callable[[], Runtime | None]) -> None:
        self._app = app
        self._router = router
        self._runtime = runtime

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD" or not self._is_cached(scope):
            await self._app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            scope["method"] = "HEAD"  # of which the server must know
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        scope["method"] = "GET"
        try:
            await self._app(scope, receive, send_head)
        finally:
            scope["method"] = "HEAD"

    def _is_cached(self, scope: Scope) -> bool:
        runtime, path = self._runtime(), get_route_path(scope)
        found = any(
            "GET" in (context.methods or ()) and context.path_regex.match(path) and cached_settings(context.endpoint)
            for context in (runtime.contexts.values() if runtime is not None else ())
        )
        return found and not any(
            route.matches(scope)[0] is Match.FULL for route in self._router.routes if not _takes_all(route)
        )


def _takes_all(route: BaseRoute) -> bool:
    """Whether a route takes HEAD only as it takes every method: files at the root, or a declared route."""
    return isinstance(route, Mount) or (isinstance(route, Route) and not route.methods)
