"""Finds the route of a request in one pass, where FastAPI looks through each included router twice.

Decides nothing that FastAPI would decide otherwise: the first route whose path and method match answers. What isn't a
plain FastAPI route (a mount, a route of the configuration, a route or router class of the app's own), and a request
that no route takes, goes to the app's router, which does the same and more. An included router is one route there, and
each handler of `include` is a router of its own, so that looking cost 5 µs for each (measured).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from importlib.util import find_spec
from operator import attrgetter
from typing import Any, NamedTuple

from fastapi import FastAPI, applications, routing
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.routing import APIRoute, APIRouter, RouteContext, iter_route_contexts
from starlette._utils import get_route_path
from starlette.convertors import StringConvertor
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.app.middleware import STARTED_KEY
from gateway.context import STORED_KEY

_ANYTHING = re.compile("")
_route_selected = getattr(routing, "_route_selected", None)
"""Tells FastAPI's telemetry, which older versions don't have."""


class Row(NamedTuple):
    """`app` is None of what the router itself must find. `methods` is None where all match. What the scope gets is
    worked out once; `convertors` are empty where all parameters are text."""

    pattern: re.Pattern[str]
    methods: frozenset[str] | None
    app: ASGIApp | None = None
    endpoint: Any = None
    route: Any = None
    included: Any = None
    """What including the route made of it."""
    path: str = ""
    convertors: Mapping[str, Any] = {}


class Dispatch:
    """An ASGI app in front of `router`. `app_of` returns the app that answers for a route."""

    def __init__(
        self, router: APIRouter, otherwise: ASGIApp, app_of: Callable[[RouteContext], ASGIApp] = attrgetter("app")
    ) -> None:
        self._router = router
        self._otherwise = otherwise
        self._app_of = app_of
        self._routers: list[Any] = []
        self._version = (-1, 0)
        self._rows: list[Row] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (error := scope.pop(_ERROR_KEY, None)) is not None:
            raise error
        row = self.found(scope) if scope["type"] == "http" else None
        if row is None or row.app is None:
            await self._otherwise(scope, receive, send)
            return
        scope.pop(STORED_KEY, None)  # middleware of the app's own may add to the response
        await row.app(scope, receive, send)

    def found(self, scope: Scope) -> Row | None:
        """The route that answers, with what FastAPI leaves of it in the scope."""
        if self._now() != self._version:
            self._routers = [each for each in (self._router, *_included(self._router.routes)) if hasattr(each, _COUNT)]
            self._rows = [row for route in self._router.routes for row in self._rows_of(route)]
            self._version = self._now()
        path, method = get_route_path(scope), scope["method"]
        for row in self._rows:
            match = row.pattern.match(path)
            if match is None or (row.methods is not None and method not in row.methods):
                continue
            if row.app is not None:
                self._select(scope, row, match.groupdict())
            return row
        return None

    def _select(self, scope: Scope, row: Row, found: dict[str, Any]) -> None:
        if row.convertors:
            found = {name: row.convertors[name].convert(value) for name, value in found.items()}
        scope.setdefault("router", self._router)
        scope["path_params"] = {**scope["path_params"], **found} if "path_params" in scope else found
        scope["endpoint"], scope["route"] = row.endpoint, row.route
        if row.included is not None:
            scope.setdefault("fastapi", {})["effective_route_context"] = row.included
        if _route_selected is not None and "fastapi.telemetry" in scope:
            _route_selected(scope=scope, path=row.path, mount=False)

    def _rows_of(self, route: BaseRoute) -> Iterator[Row]:
        if type(route) is Mount:
            yield Row(route.path_regex, None)
            return
        plain = all(type(each) is APIRouter and not getattr(each, "form_limits", None) for each in _included([route]))
        limits = getattr(getattr(route, "include_context", None), "form_limits", None)
        for context in iter_route_contexts([route]):
            kind, methods = type(context.original_route), frozenset(context.methods or ()) or None
            if kind is APIRoute and plain and not limits:
                yield self._plain_row(context, methods)
            elif kind is Route and plain:
                yield Row(context.path_regex, methods)
            else:
                yield Row(_ANYTHING, None)

    def _plain_row(self, context: RouteContext, methods: frozenset[str] | None) -> Row:
        text = all(type(each) is StringConvertor for each in context.param_convertors.values())
        return Row(
            context.path_regex,
            methods,
            self._app_of(context),
            context.endpoint,
            context.original_route,
            context._route_context,
            context.path_format or "",
            {} if text else context.param_convertors,
        )

    def _now(self) -> tuple[int, int]:
        """Differs once a route is added anywhere; FastAPI counts as well."""
        count = 0
        for each in self._routers:
            count += each._routes_version
        return count, len(self._router.routes)


_COUNT = "_routes_version"
_ERROR_KEY = "gateway.error"
"""An error that the layers around the router are to handle."""
_LAYERS = {ServerErrorMiddleware, ExceptionMiddleware, AsyncExitStackMiddleware} | {
    kind
    for name in ("ExceptionTelemetryMiddleware", "AppBodyLimitMiddleware")
    if (kind := getattr(applications, name, None)) is not None  # newer versions alone have them
}
_FOR_ALL_LAYERS = ("fastapi.telemetry", "starlette.max_body_size")
"""Keys of a scope that more of the layers act on: FastAPI's telemetry, and the limit of an app that mounts this one."""


_HAS_TELEMETRY = find_spec("fastapi.telemetry") is not None


class Recording:
    """Whether FastAPI itself makes spans, metrics or log records of requests, as it does once OpenTelemetry has
    providers: looked up once a second, since it takes 5 µs (measured)."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._until = 0.0
        self._on = True

    def is_on(self) -> bool:
        """Also where a version of FastAPI with telemetry keeps it elsewhere."""
        now = time.monotonic()
        if now >= self._until:
            self._until = now + 1
            telemetry = getattr(self._app, "_native_telemetry", None)
            self._on = _HAS_TELEMETRY if telemetry is None else bool(telemetry.enabled())
        return self._on


class FrameworkLayers:
    """FastAPI's layers around the router, left out where a plain route answers: they took a fifth of such a request
    (measured), and most of what they do is for errors, which still go through them.

    An ASGI app. What they do for a route is here: the exception handlers in the scope, and the files of a form, closed.
    """

    def __init__(self, dispatch: Dispatch, layers: ASGIApp, handlers: tuple[Any, Any]) -> None:
        self._dispatch = dispatch
        self._layers = layers
        self._handlers = handlers

    @classmethod
    def around(cls, dispatch: Dispatch, layers: ASGIApp, router: APIRouter) -> ASGIApp:
        """`layers` around `router`, as FastAPI made them; unchanged where one isn't FastAPI's own, or limits bodies."""
        handlers = None
        layer: Any = layers
        while layer is not router:
            if type(layer) not in _LAYERS:
                return layers
            if isinstance(layer, ExceptionMiddleware):
                handlers = _handlers_of(layer)
            layer = getattr(layer, "app", None)
        return layers if handlers is None else cls(dispatch, layers, handlers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        whole = scope["type"] != "http" or any(key in scope for key in _FOR_ALL_LAYERS)
        row = None if whole else self._dispatch.found(scope)
        if row is None or row.app is None:
            await self._layers(scope, receive, send)
            return
        scope["starlette.exception_handlers"] = self._handlers
        try:
            async with AsyncExitStack() as files:
                scope["fastapi_middleware_astack"] = files
                await row.app(scope, receive, send)
            return
        except Exception as error:
            if STARTED_KEY in scope:
                raise
            scope[_ERROR_KEY] = error
        await self._layers(scope, receive, send)


def _handlers_of(layer: ExceptionMiddleware) -> tuple[Mapping[Any, Any], Mapping[int, Any]] | None:
    """The exception handlers as the layer leaves them in the scope; None if this Starlette keeps them elsewhere."""
    found = tuple(getattr(layer, name, None) for name in ("_exception_handlers", "_status_handlers"))
    return None if None in found else found  # type: ignore[return-value]


def _included(routes: list[BaseRoute]) -> Iterator[Any]:
    for route in routes:
        router = getattr(route, "original_router", None)
        if router is not None:
            yield router
            yield from _included(router.routes)
