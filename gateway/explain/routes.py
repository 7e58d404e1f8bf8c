"""The trace of Python handlers, and of the paths that the gateway serves itself.

The latter are health, documentation, and redirects to the path with or without its trailing slash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta

from fastapi.routing import RouteContext
from starlette.routing import BaseRoute, Match, Router

from gateway.cache.request import Route
from gateway.config.types import show_duration
from gateway.http.target import Target, other_slash, select_query
from gateway.identity.admission import Admission
from gateway.identity.principal import Principal
from gateway.limits.route_limits import RouteLimits
from gateway.routing.handler_settings import Runtime, cached_settings, target_text
from gateway.routing.handler_tags import rendered

Order = tuple[bool, tuple[tuple[int, int], ...]]
"""Of two routes that match a path, the one with the lower order wins: whether it was added after the others, then how
specific it is."""


@dataclass(frozen=True)
class HandlerCache:
    """`origin` is the handler's name in its keys; `query` the keyed parameters (None: all)."""

    route: Route
    origin: str
    query: frozenset[str] | None
    drop_query: tuple[str, ...]
    kept: frozenset[str]
    tags: tuple[str, ...]
    written: float | None
    """The TTL in code, in seconds; `route` has the one in force."""
    against: str | None
    """Why the edge doesn't serve its hits; None if it does."""
    admission: Admission | None = None
    """What it asks of credentials; None if it lets anybody in."""
    limits: RouteLimits | None = None

    def target(self, target: Target) -> str:
        """The handler's plan for the request, as in its key."""
        return target_text(target.path, select_query(target.query, self.query, self.drop_query, self.kept))

    @property
    def edge(self) -> str:
        """Whether the edge answers its hits, in words."""
        return "yes" if self.against is None else f"no: {self.against}"

    @property
    def ttl(self) -> timedelta | str:
        return _ttl(self.route.rules.ttl)

    @property
    def written_ttl(self) -> str:
        ttl = _ttl(self.written)
        return ttl if isinstance(ttl, str) else show_duration(ttl)


def _ttl(seconds: float | None) -> timedelta | str:
    return "origin" if seconds is None else timedelta(seconds=seconds)


@dataclass(frozen=True)
class HandlerRoute:
    """A path of a Python handler. `cached` is None if its responses are not stored."""

    name: str
    path: str
    order: Order
    context: RouteContext
    cached: HandlerCache | None

    def matches(self, target: Target) -> bool:
        return self.context.path_regex.fullmatch(target.decoded) is not None

    @property
    def methods(self) -> frozenset[str]:
        return frozenset(self.context.methods or ())

    def tags(self, target: Target, principal: Principal | None = None) -> tuple[str, ...]:
        found = self.context.path_regex.fullmatch(target.decoded)
        if self.cached is None or found is None:
            return ()
        cached, key = self.cached, self.cached.route.keying.identity_key
        claims = {} if principal is None or cached.admission is None else principal.texts(cached.admission.per)
        return rendered(cached.tags, self.context.dependant, found.groupdict(), key, claims)


def handler_route(context: RouteContext, order: Order, runtime: Runtime) -> HandlerRoute:
    marked = cached_settings(context.endpoint)
    path = context.path or "/"
    if marked is None:
        return HandlerRoute(context.name or path, path, order, context, None)
    settings = marked[0]
    route, query = runtime.bound[id(settings)]
    cached = HandlerCache(
        route,
        settings.origin_name,
        query,
        runtime.drop_query,
        runtime.inputs[id(settings)].parameters,
        settings.tags,
        written=settings.rules.ttl,
        against=runtime.against_edge(context.dependant),
        admission=runtime.identified.get(id(context.dependant)),
        limits=runtime.limited.get(id(context.dependant)),
    )
    return HandlerRoute(settings.name, path, order, context, cached)


Local = Callable[[str, str], int | None]
"""For a method and a decoded path: 200 if the gateway serves it, 405 if it does for another method, 307 if the path
differs from a route's only by a trailing slash; None if routes handle it."""


def nothing_local(method: str, path: str) -> int | None:
    return None


def local_of(own: Iterable[BaseRoute], router: Router) -> Local:
    """`own` are the routes of `router` that are the gateway's."""

    def local(method: str, path: str) -> int | None:
        match _matched(own, method, path):
            case Match.FULL:
                return 200
            case Match.PARTIAL:
                return 405
        other = other_slash(path)
        return 307 if other and _matched(router.routes, method, other) is not Match.NONE else None

    return local


def _matched(routes: Iterable[BaseRoute], method: str, path: str) -> Match:
    """How the first of `routes` with this path matches it."""
    scope = {"type": "http", "method": method, "path": path, "root_path": "", "headers": []}
    return next((match for route in routes if (match := route.matches(scope)[0]) is not Match.NONE), Match.NONE)
