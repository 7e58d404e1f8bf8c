"""Direct routes: declared routes that are served without ASGI, and how a request line finds its route.

`Patterns` tries the paths of all routes of the app in their order, as Starlette would; for a plain line, one pattern
does. A `Direct` makes the request for the engine, and leaves in its context how the next one of the line is served
(`RequestContext.recall`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Protocol

import msgspec
from fastapi.routing import RouteContext, iter_route_contexts
from msgspec import structs
from starlette.routing import BaseRoute, Mount, Route, compile_path

from gateway.cache.request import CacheRequest
from gateway.cache.request import Route as EngineRoute
from gateway.cache.respond import Answer
from gateway.context import RequestContext
from gateway.edge.entries import HeaderBlock
from gateway.http.headers import Headers
from gateway.http.target import Slashes, Target
from gateway.routing.declared import Declared
from gateway.routing.fast_path import InterimClient
from gateway.routing.handlers import AskedAgain, DeclaredRequest, Handlers, PlainAgain
from gateway.routing.references import Asked


class Direct(Protocol):
    """A declared route, as used without ASGI."""

    @property
    def slashes(self) -> Slashes:
        """The handling of encoded slashes in its path."""

    @property
    def reads(self) -> bool:
        """Whether it takes GET and HEAD."""

    @property
    def engine_route(self) -> EngineRoute:
        """The same as the engine sees it."""

    def ask(
        self,
        exchange: RequestContext,
        client: InterimClient,
        block: HeaderBlock | None = None,
        *,
        plain: bool = False,
    ) -> CacheRequest:
        """`block` is the header block of `exchange`, where that is known; `plain` where `Patterns.plain` found its
        path. `exchange` gets the `Recall` of its line. Raises RequestRefused."""

    def answer(self, ask: CacheRequest) -> Coroutine[Any, Any, Answer]:
        """The answer of the cache."""

    def public(self, answer: Answer, ask: CacheRequest) -> Answer:
        """The same as clients may see it."""


class PublicInterim(msgspec.Struct, frozen=True):
    """Passes interim responses of an upstream to `client` as it may see them. Made for each request, most of which get
    none, so it holds what it takes and no more."""

    client: InterimClient
    handlers: Handlers
    asked: Asked

    def __call__(self, status: int, headers: Headers) -> None:
        self.handlers.interim(self.client.interim, self.asked, status, headers)


Pattern = tuple[re.Pattern[str], Direct | None]
"""A route's path, and the declared route at it; None for another kind of route."""


_ANYTHING = re.compile("")
_PLAIN_LINE = r"(?:GET|HEAD) (?=(?:/[A-Za-z0-9_~-]+)+ HTTP/1\.1\Z)(?:%s) HTTP/1\.1"
"""A request line without a query whose path `http.target.normalise` leaves as it is, and any target with pieces of it,
as it has no dots; and whose path is one of the alternatives."""
_NAMED = re.compile(r"\(\?P<\w+>")


class DirectRoute:
    """A route of the configuration with one upstream, in the form of `Direct`."""

    __slots__ = ("_origin", "_plain", "engine_route", "handlers", "reads", "route", "slashes")

    def __init__(self, handlers: Handlers, route: Declared) -> None:
        self.handlers, self.route, self.engine_route = handlers, route, route.engine_route
        self.slashes: Slashes = route.config.encoded_slashes
        open_to_all = route.admission is None and not route.counts_hits
        self.reads = open_to_all and route.passes("GET") and route.passes("HEAD")
        self._origin = route.origin("", "", handlers.metrics)
        """The origin of its responses, but for what each request has of its own."""
        self._plain = PlainAgain(handlers, route)

    def ask(
        self,
        exchange: RequestContext,
        client: InterimClient,
        block: HeaderBlock | None = None,
        *,
        plain: bool = False,
    ) -> CacheRequest:
        """Raises RequestRefused."""
        public, route, handlers = exchange.target, self.route, self.handlers
        assert public is not None
        path, query = public.path, public.query
        if plain:
            target = path if route.keeps_path else route.plain_target(path)
        else:
            target = route.upstream_target(path, query)[0]
        asked = Asked(route, target, path, query, exchange.root)
        interim = PublicInterim(client, handlers, asked)
        origin = structs.replace(self._origin, target=target, request_id=exchange.request_id, interim=interim)
        if route.limits is not None:
            exchange.allowance = route.limits.allowance()
        exchange.recall = self._plain if plain else AskedAgain(handlers, asked, public)
        return handlers.ask(exchange, asked, origin, block=block, stays=True)

    def answer(self, ask: CacheRequest) -> Coroutine[Any, Any, Answer]:
        return self.handlers.engine.answer(ask)

    def public(self, answer: Answer, ask: CacheRequest) -> Answer:
        assert isinstance(ask, DeclaredRequest)
        return self.handlers.public(answer, ask.asked)


class DirectStream(DirectRoute):
    """The same for a route with `stream: share`."""

    __slots__ = ()

    def answer(self, ask: CacheRequest) -> Coroutine[Any, Any, Answer]:
        assert isinstance(ask, DeclaredRequest)
        return self.handlers.streamed(ask)


class Patterns:
    """The patterns of `routes`, made again where some were added. Of `direct` the names are those of their routes."""

    def __init__(self, routes: Callable[[], Sequence[BaseRoute]], direct: Mapping[str, Direct]) -> None:
        self._routes = routes
        self._direct = direct
        self._made: tuple[Pattern, ...] = ()
        self._plain, self._groups = _one_of(())
        self._of = 0

    def __call__(self) -> tuple[Pattern, ...]:
        if len(self._routes()) != self._of:
            self._make(self._routes())
        return self._made

    def _make(self, routes: Sequence[BaseRoute]) -> None:
        self._of = len(routes)
        self._made = tuple(pattern for route in routes for pattern in self._patterns(route))
        self._plain, self._groups = _one_of(self._made)

    def direct(self, path: str) -> Direct | None:
        """The declared route that a decoded path leads to; None for another kind of route, and for none."""
        return next((direct for pattern, direct in self() if pattern.match(path)), None)

    def plain(self, line: bytes) -> tuple[Direct, str, str] | None:
        """The declared route of a request line whose path is in its one form, its method and the path; None for all
        other lines."""
        if len(self._routes()) != self._of:
            self._make(self._routes())
        match = self._plain.fullmatch(line)
        direct = None if match is None else self._groups.get(match.lastindex)
        if direct is None:
            return None
        method = "HEAD" if line.startswith(b"HEAD") else "GET"
        return direct, method, line[len(method) + 1 : -9].decode("ascii")

    def slashes(self, target: Target) -> Slashes:
        """How the route of a target handles encoded slashes. Python handlers refuse them."""
        direct = self.direct(target.decoded)
        return direct.slashes if direct is not None else "refuse"

    def declared(self, path: str) -> Declared | None:
        """The declared route by which the app answers a decoded path, if one does."""
        direct = self.direct(path)
        return direct.route if isinstance(direct, DirectRoute) else None

    def _patterns(self, route: BaseRoute) -> list[Pattern]:
        if type(route) is Route:
            return [(route.path_regex, self._direct.get(route.name))]
        contexts = list(iter_route_contexts([route]))
        return [_pattern(context) for context in contexts] if contexts else [(_ANYTHING, None)]


Groups = dict[int | None, Direct]


def _one_of(patterns: Iterable[Pattern]) -> tuple[re.Pattern[bytes], Groups]:
    """One pattern for the plain lines of all, the first of which matches; and the route, if it is read, by the last
    group of the match.

    That group is empty and ends a path, because alternatives that begin with a literal are the only ones that a regular
    expression passes over at once, at half the cost with ten of them. Paths that stand there twice, for other methods,
    count once."""
    alternatives: dict[str, None] = {}
    groups, index = Groups(), 0
    for pattern, direct in patterns:
        path = _NAMED.sub("(?:", pattern.pattern).removeprefix("^").removesuffix("$") or "[^ ]*"
        if path + "()" in alternatives:
            continue
        alternatives[path + "()"] = None
        index += 1 + pattern.groups - len(pattern.groupindex)
        if direct is not None and direct.reads:
            groups[index] = direct
    return re.compile((_PLAIN_LINE % "|".join(alternatives)).encode()), groups


def _pattern(context: RouteContext) -> Pattern:
    """A route's path; of a mount everything below it; of an unknown kind of route every path."""
    path, route = context.path, context.original_route
    if path is None or not isinstance(route, Route | Mount):
        return _ANYTHING, None
    return compile_path(path + "/{path:path}" if isinstance(route, Mount) else path)[0], None
