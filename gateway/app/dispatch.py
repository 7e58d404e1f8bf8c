"""Finds the route of a request in one pass, where FastAPI looks through each included router twice.

Decides nothing that FastAPI would decide otherwise: the first route whose path and method match answers. What isn't a
plain FastAPI route (a mount, a route of the configuration, a route or router class of the app's own), and a request
that no route takes, goes to the app's router, which does the same and more. An included router is one route there, and
each handler of `include` is a router of its own, so that looking cost 5 µs for each (measured).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from fastapi import routing
from fastapi.routing import APIRoute, APIRouter, RouteContext, iter_route_contexts
from starlette._utils import get_route_path
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

_ANYTHING = re.compile("")
_route_selected = getattr(routing, "_route_selected", None)
"""Tells FastAPI's telemetry, which older versions don't have."""


class Row(NamedTuple):
    """`app` is None of what the router itself must find. `methods` is None where all match."""

    pattern: re.Pattern[str]
    methods: frozenset[str] | None
    app: ASGIApp | None
    context: Any


class Dispatch:
    """An ASGI app in front of `router`."""

    def __init__(self, router: APIRouter, otherwise: ASGIApp) -> None:
        self._router = router
        self._otherwise = otherwise
        self._routers: list[Any] = []
        self._version = (-1, 0)
        self._rows: list[Row] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        row = self._found(scope) if scope["type"] == "http" else None
        if row is None or row.app is None:
            await self._otherwise(scope, receive, send)
            return
        await row.app(scope, receive, send)

    def _found(self, scope: Scope) -> Row | None:
        """The route that answers, with what FastAPI leaves of it in the scope."""
        if self._now() != self._version:
            self._routers = [self._router, *_included(self._router.routes)]
            self._rows = [row for route in self._router.routes for row in _rows(route)]
            self._version = self._now()
        path, method = get_route_path(scope), scope["method"]
        for row in self._rows:
            match = row.pattern.match(path)
            if match is None or (row.methods is not None and method not in row.methods):
                continue
            if row.app is not None:
                self._select(scope, row.context, match)
            return row
        return None

    def _select(self, scope: Scope, context: RouteContext, match: re.Match[str]) -> None:
        found = {name: context.param_convertors[name].convert(value) for name, value in match.groupdict().items()}
        scope.setdefault("router", self._router)
        scope["path_params"] = {**scope.get("path_params", {}), **found}
        scope["endpoint"], scope["route"] = context.endpoint, context.original_route
        if context._route_context is not None:
            scope.setdefault("fastapi", {})["effective_route_context"] = context._route_context
        if _route_selected is not None:
            _route_selected(scope=scope, path=context.path_format, mount=False)

    def _now(self) -> tuple[int, int]:
        """Differs once a route is added anywhere; FastAPI counts as well."""
        return sum(getattr(each, "_routes_version", 0) for each in self._routers), len(self._router.routes)


def _included(routes: list[BaseRoute]) -> Iterator[Any]:
    for route in routes:
        router = getattr(route, "original_router", None)
        if router is not None:
            yield router
            yield from _included(router.routes)


def _rows(route: BaseRoute) -> Iterator[Row]:
    plain = all(type(each) is APIRouter and not getattr(each, "form_limits", None) for each in _included([route]))
    limits = getattr(getattr(route, "include_context", None), "form_limits", None)
    for context in iter_route_contexts([route]):
        kind, methods = type(context.original_route), frozenset(context.methods or ()) or None
        if kind is APIRoute and plain and not limits:
            yield Row(context.path_regex, methods, context.app, context)
        elif kind is Route and plain:
            yield Row(context.path_regex, methods, None, context)
        else:
            yield Row(_ANYTHING, None, None, context)
