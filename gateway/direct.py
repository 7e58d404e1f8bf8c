"""Declared routes as the edge asks them, and the patterns by which it finds them: those of the app, in their order."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fastapi.routing import RouteContext, iter_route_contexts
from starlette.routing import BaseRoute, Mount, Route, compile_path

from .aggregate import Aggregate
from .aggregate_routes import AggregateHandlers, whole_bytes
from .answers import Answer
from .asks import Ask
from .edge_pass import Direct, Pattern
from .exchange import Exchange
from .passing import UpstreamOrigin
from .references import Asked
from .remembered import Block, Recall
from .routes import Declared, Handlers
from .transport import Interim

_ANYTHING = re.compile("")


@dataclass(frozen=True)
class DirectRoute:
    """A route of the configuration with one upstream, of `edge_pass.Direct`'s form."""

    handlers: Handlers
    route: Declared

    def ask(self, exchange: Exchange, interim: Interim | None, block: Block | None = None) -> Ask:
        """Raises RequestRefused."""
        assert exchange.target is not None
        target, parameters = self.route.upstream_target(exchange.target.path, exchange.target.query)
        told = self.handlers.interim(interim, Asked(self.route, target, str(exchange.target)))
        origin = UpstreamOrigin(self.route.upstream, target, exchange.request_id, self.handlers.metrics, interim=told)
        return self.handlers.ask(exchange, self.route, origin, parameters, None, block=block, stays=True)

    async def answer(self, ask: Ask) -> Answer:
        return self.handlers.public(await self.handlers.engine.answer(ask), self._asked(ask))

    def recall(self, ask: Ask) -> Recall:
        assert isinstance(ask.origin, UpstreamOrigin)
        assert ask.exchange.target is not None
        _, parameters = self.route.upstream_target(ask.exchange.target.path, ask.exchange.target.query)
        return self.handlers.recall(self._asked(ask), ask.origin, parameters)

    def _asked(self, ask: Ask) -> Asked:
        assert isinstance(ask.origin, UpstreamOrigin)
        return Asked(self.route, ask.origin.target, str(ask.exchange.target))


@dataclass(frozen=True)
class DirectAggregate:
    """A route of the configuration with parts, of `edge_pass.Direct`'s form."""

    handlers: AggregateHandlers
    aggregate: Aggregate

    def ask(self, exchange: Exchange, interim: Interim | None, block: Block | None = None) -> Ask:
        """Raises RequestRefused."""
        assert exchange.target is not None
        return self.handlers.ask(exchange, self.aggregate, exchange.target.path)

    async def answer(self, ask: Ask) -> Answer:
        answer = self.aggregate.at_hand(ask) or await self.aggregate.answer(ask)
        return whole_bytes(answer, head=ask.facts.head)

    def recall(self, ask: Ask) -> Recall:
        assert isinstance(ask.exchange.recall, Recall)
        return ask.exchange.recall


class Patterns:
    """The patterns of `routes`, made again where some were added. Of `direct` the names are those of their routes."""

    def __init__(self, routes: Callable[[], Sequence[BaseRoute]], direct: Mapping[str, Direct]) -> None:
        self._routes = routes
        self._direct = direct
        self._made: tuple[Pattern, ...] = ()
        self._of = 0

    def __call__(self) -> tuple[Pattern, ...]:
        routes = self._routes()
        if len(routes) != self._of:
            self._of = len(routes)
            self._made = tuple(pattern for route in routes for pattern in self._patterns(route))
        return self._made

    def declared(self, path: str) -> Declared | None:
        """The declared route by which the app answers a decoded path, if one does."""
        direct = next((direct for pattern, direct in self() if pattern.match(path)), None)
        return direct.route if isinstance(direct, DirectRoute) else None

    def _patterns(self, route: BaseRoute) -> list[Pattern]:
        if type(route) is Route:
            return [(route.path_regex, self._direct.get(route.name))]
        contexts = list(iter_route_contexts([route]))
        return [_pattern(context) for context in contexts] if contexts else [(_ANYTHING, None)]


def _pattern(context: RouteContext) -> Pattern:
    """A route's path; of a mount all that lies below it; of what nobody knows everything."""
    path, route = context.path, context.original_route
    if path is None or not isinstance(route, Route | Mount):
        return _ANYTHING, None
    return compile_path(path + "/{path:path}" if isinstance(route, Mount) else path)[0], None
