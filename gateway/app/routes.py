"""The routes of one generation, and their order: health and documentation first, then those of the configuration and of
included routers, the more specific path before the less specific.

Decides the order of routes, and their OpenAPI description. It serves no requests: the handlers come from `routing` and
`aggregates`. `python_routes` prepares `@cached` handlers later.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.routing import iter_route_contexts
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.aggregates.aggregate import Aggregate
from gateway.aggregates.routes import AggregateHandlers, DirectAggregate
from gateway.app.collectors import WebSocketCollector
from gateway.app.health import add_health
from gateway.app.openapi import add_pages, aggregate_operation, documented_methods, openapi_operation
from gateway.app.protected_resource import ProtectedResources
from gateway.app.python_routes import pieces_of, router_of
from gateway.cache.engine import Engine
from gateway.config.models import Config
from gateway.config.route import RouteConfig
from gateway.edge.direct_routes import Direct, DirectRoute, DirectStream, Patterns
from gateway.edge.guard import ConnectionGuard
from gateway.edge.relay import Relay, RelayLimits
from gateway.http.target import Target
from gateway.identity.admission import Admission
from gateway.observability.log import ONCE
from gateway.observability.metrics import Metrics
from gateway.routing.cors import Cors
from gateway.routing.declared import Declared
from gateway.routing.handlers import Handlers
from gateway.routing.websockets import WebSockets
from gateway.streams.shared_stream import SharedStreams
from gateway.upstreams.websocket import UpstreamSocket

if TYPE_CHECKING:
    from gateway.edge.websocket import ClientWebSocket

logger = logging.getLogger("gateway")


@dataclass(frozen=True)
class WebSocketRelays:
    """Has the server pass frames on between clients and upstreams, by a route's limits."""

    guard: ConnectionGuard
    counting: WebSocketCollector
    cors: Cors | None

    def relay(self, extension: ClientWebSocket, upstream: UpstreamSocket, route: Declared) -> Relay:
        config = route.config
        idle, ping = (each.total_seconds() for each in (config.websocket_idle_timeout, config.websocket_ping))
        limits = RelayLimits(config.websocket_max_message, idle, ping, self.guard.timeouts.write)
        return extension.relay(upstream, self.counting.counts(route.upstream.name), limits)


def takes_websockets(routes: Sequence[BaseRoute]) -> bool:
    """Whether one of `routes`, or of those mounted below them, takes WebSockets; a mounted app of another kind may."""
    for each in iter_route_contexts(routes):
        route = each.original_route
        if isinstance(route, Mount):
            below = route.routes
            if takes_websockets(below) or not (below or isinstance(route.app, StaticFiles)):
                return True
        elif not isinstance(route, Route):
            return True
    return False


@dataclass(frozen=True)
class AppRoutes:
    """Adds routes to `app`. `direct` gets, by route name, what the edge uses without ASGI."""

    app: FastAPI
    config: Config
    engine: Engine
    metrics: Metrics
    declared: list[Declared]
    aggregates: list[Aggregate]
    direct: dict[str, Direct]
    handlers: Callable[[Target | None], list[Admission]]
    """What Python handlers at a target ask of credentials."""
    relays: WebSocketRelays
    streams: SharedStreams = field(default_factory=SharedStreams)

    def add_own(self, docs: str, redoc: str) -> list[BaseRoute]:
        """Add health and the documentation pages, at these paths; `off` for none. Returns all routes that are the
        gateway's own."""
        add_health(self.app)
        if self.config.identity:
            ProtectedResources(lambda: (self.config.identity, self._admissions)).add_to(self.app)
        add_pages(self.app, docs=self._page("docs", docs), redoc=self._page("redoc", redoc))
        return list(self.app.router.routes)

    def _admissions(self, target: Target | None) -> list[Admission]:
        routes: list[Declared | Aggregate] = [*self.declared, *self.aggregates]
        if target is not None:
            routes.sort(key=lambda each: each.config.template.specificity)
            routes = [each for each in routes if each.config.template.match(target.path) is not None][:1]
        found = [each.admission for each in routes if each.admission is not None]
        return found if target is not None and routes else [*found, *self.handlers(target)]

    def add_configured(self) -> None:
        """Add declared routes, aggregates and included routers, by how specific their paths are."""
        patterns = Patterns(lambda: self.app.router.routes, self.direct)
        handlers = Handlers(self.engine, self.metrics, self.declared, patterns.declared, self.streams)
        added = [(route.template.specificity, partial(self._add_declared, handlers, route)) for route in self.declared]
        joined = AggregateHandlers(self.engine, self.metrics)
        added += [
            (each.config.template.specificity, partial(self._add_aggregate, joined, each)) for each in self.aggregates
        ]
        added += [
            (specificity, partial(self.app.include_router, router))
            for place in self.config.include
            for specificity, router in pieces_of(router_of(place))
        ]
        for _, add in sorted(added, key=lambda each: each[0]):
            add()

    def _add_declared(self, handlers: Handlers, route: Declared) -> None:
        if route.config.websocket:
            cors, relays = self.relays.cors, self.relays
            websockets = WebSockets(self.engine, self.metrics, cors, relays.counting.counts, relays.relay)
            handler = _HandshakeHandler(websockets.handler(route))
            self.app.router.routes.append(WebSocketRoute(route.config.path, handler, name=f"{route.name}_websocket"))
        kind = DirectStream if route.shares_streams else DirectRoute
        self.direct[f"{route.name}_direct"] = kind(handlers, route)
        operations = {method: openapi_operation(route, method) for method in documented_methods(route.config)}
        self._add_route(route.name, route.config, handlers.handler(route), operations)

    def _add_aggregate(self, handlers: AggregateHandlers, route: Aggregate) -> None:
        self.direct[f"{route.name}_direct"] = DirectAggregate(handlers, route)
        self._add_route(route.name, route.config, handlers.handler(route), {"GET": aggregate_operation(route)})

    def _add_route(
        self,
        name: str,
        config: RouteConfig,
        handler: Callable[[Request], Awaitable[Response]],
        operations: Mapping[str, dict[str, Any]],
    ) -> None:
        # Every method, those that FastAPI has no name for among them. It stands before the route that FastAPI
        # documents: FastAPI's own way to a handler without parameters takes an eighth of the time of a Redis hit.
        self.app.router.routes.append(Route(config.path, _AnyMethod(handler), name=f"{name}_direct"))
        for method, operation in operations.items():
            self.app.add_api_route(
                config.path,
                handler,
                methods=[method],
                name=name,
                summary=config.summary or name.replace("_", " "),
                description=config.description or "",
                operation_id=name if method == "GET" else f"{name}_{method.lower()}",
                openapi_extra=operation,
                response_model=None,
                response_class=Response,
            )

    def _page(self, which: str, path: str) -> str:
        for route in self.declared:
            if route.template.text == path:
                said = "the route %s has the path %s: the %s page is not served"
                logger.warning(said, route.name, path, which, extra=ONCE)
                return "off"
        return path


class _HandshakeHandler:
    """A handler of handshakes as an ASGI app; Starlette gives a plain function a WebSocket."""

    def __init__(self, handler: ASGIApp) -> None:
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._handler(scope, receive, send)


class _AnyMethod:
    """A handler as an ASGI app, for all methods; Starlette allows only GET for a plain function."""

    def __init__(self, handler: Callable[[Request], Awaitable[Response]]) -> None:
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._handler(Request(scope, receive, send))
        await response(scope, receive, send)
