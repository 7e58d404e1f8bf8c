"""What FastAPI handlers find of the gateway that serves them: its engine, its upstreams, and their own routes in it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import Depends, Request
from fastapi.routing import RouteContext
from starlette.responses import Response
from starlette.types import Scope

from .asks import Route
from .engine import Engine
from .errors import GatewayError
from .exchange import Exchange
from .handler_inputs import UPSTREAM, Inputs
from .handler_request import Public, Reading, SoFar
from .handler_settings import Cached, cached_settings
from .keys import primary_key
from .metrics import Metrics
from .policy import Rules
from .targets import Target, select_query
from .upstreams import Upstream

STATE = "gateway"


@dataclass
class Runtime:
    """What handlers find at `request.app.state.gateway`."""

    engine: Engine
    upstreams: dict[str, Upstream]
    metrics: Metrics
    drop_query: tuple[str, ...]
    max_body: int
    inner: Callable[[Scope, Any, Any], Awaitable[None]]
    contexts: dict[int, RouteContext] = field(default_factory=dict)
    """By the id of the route that a router holds: what including it made of it."""
    late: set[int] = field(default_factory=set)
    """The ids of those whose router was included after the app was made: declared routes stand before them."""
    aggregates: dict[str, Callable[[Request], Awaitable[Response]]] = field(default_factory=dict)
    """The handlers of aggregates that are written in Python, by name."""
    bound: dict[int, tuple[Route, frozenset[str] | None]] = field(default_factory=dict)
    """By the id of a handler's settings: its route for the engine, and the query parameters that count."""
    inputs: dict[int, Inputs] = field(default_factory=dict)
    """By the id of a handler's settings: what its routes declare to read."""
    public: Public | None = None
    """The host and scheme that `@cached` handlers see, where `public_url` is set."""
    lifespan: Mapping[str, Any] = field(default_factory=dict)
    """The state that the app's lifespan gave, which is in every request's."""
    overridden: Mapping[str, Rules] = field(default_factory=dict)
    """By a handler's name: its rules where live overrides made them other than its code has them."""
    coded: dict[str, Rules] = field(default_factory=dict)
    """By a handler's name: its rules as its code has them."""
    prepared: dict[int, Callable[[Request, Exchange, Runtime], Reading | str]] = field(default_factory=dict)
    """By the id of a handler's settings, where no dependency of its tree could see more than its key holds: what makes
    the Reading of a request."""
    _so_far: dict[str, SoFar] = field(default_factory=dict)

    def keys_of(self, target: Target) -> list[str]:
        """The primary keys of what `@cached` handlers answer at a target."""
        keys = []
        for context in self.contexts.values():
            marked = cached_settings(context.endpoint)
            if marked is not None and context.path_regex.fullmatch(target.decoded):
                settings = marked[0]
                pairs = self.counted(settings, target.query)
                keys.append(primary_key(settings.origin_name, target_text(target.path, pairs)))
        return keys

    def bind(self, settings: Cached, inputs: Inputs) -> None:
        """Make ready a `@cached` handler whose routes declare `inputs`."""
        allowed = inputs.query if settings.query is None else settings.query | inputs.parameters
        self.inputs[id(settings)] = inputs
        self.coded[settings.name] = settings.rules
        rules = self.overridden.get(settings.name, settings.rules)
        route = replace(settings, rules=rules).route(inputs, self.max_body, self.engine.identity_key)
        self.bound[id(settings)] = (route, allowed)

    def counted(self, settings: Cached, pairs: Sequence[str]) -> tuple[str, ...]:
        """The query parameters that a handler is shown, all of them in its key: none that it declares is dropped."""
        declared = self.inputs[id(settings)].parameters
        return select_query(pairs, self.bound[id(settings)][1], self.drop_query, declared)

    def so_far(self, settings: Cached) -> SoFar:
        """What the answers of a handler have read so far."""
        return self._so_far.setdefault(settings.name, SoFar())


def target_text(path: str, pairs: Sequence[str]) -> str:
    return f"{path}?{'&'.join(pairs)}" if pairs else path


def upstream(name: str) -> Any:
    """A dependency: the configured upstream of that name. Its existence is checked when the app is made."""

    def get_upstream(request: Request) -> Upstream:
        return runtime_of(request).upstreams[name]

    setattr(get_upstream, UPSTREAM, name)
    return Depends(get_upstream)


def runtime_of(request: Request) -> Runtime:
    """The gateway that serves `request`. Raises GatewayError where none does."""
    runtime = getattr(request.app.state, STATE, None)
    if not isinstance(runtime, Runtime):
        raise GatewayError(
            "this handler needs the gateway: name its router in the configuration's `include`, or make the app with "
            "gateway.create_app and include the router there"
        )
    return runtime
