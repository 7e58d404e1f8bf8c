"""Injects recording requests into a `@cached` handler and its dependencies.

FastAPI solves a tree of dependencies for each request. The tree of a `@cached` handler gets additional dependencies:
one that is solved first and computes the key and the view (`Prepare`), and for each parameter that takes the Request
one that fills it (`SeenBy`). So nothing of FastAPI is replaced, and FastAPI's own reads are not recorded as the
handler's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import get_dependant
from starlette.types import Scope

from gateway.cache.request import Route
from gateway.context import STORED_KEY, RequestContext, exchange_of
from gateway.http.target import normalise_query
from gateway.policy.keys import Plan, plan
from gateway.routing.declared import has_body, local_path
from gateway.routing.fast_path import PlanCache
from gateway.routing.handler_inputs import OWN, UPSTREAM, label, model_of
from gateway.routing.handler_reading import READING, Reading, by_model
from gateway.routing.handler_request import SeenRequest, declared_view, without_ignored
from gateway.routing.handler_settings import WHO_KEY, Cached, Runtime, runtime_of, target_text

PREPARED_KEY = "gateway.prepared"
"""The scope key of the reason for a bypass, where that is known before FastAPI makes its Request."""


class SeenBy:
    """The request for `reader`; FastAPI's own if its response will not be stored."""

    def __init__(self, reader: str) -> None:
        self.reader = reader
        setattr(self, OWN, True)

    async def __call__(self, request: Request) -> Request:
        reading = getattr(request, READING, None)
        return SeenRequest(reading, self.reader) if isinstance(reading, Reading) else request


@dataclass(eq=False)
class Prepare:
    """Stores the Reading of a request on it; for a bypass, the reason."""

    settings: Cached
    dependant: Dependant
    calls: frozenset[Callable[..., Any]]
    declares: bool
    _overrides: dict[Callable[..., Any], bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        setattr(self, OWN, True)

    async def __call__(self, request: Request) -> None:
        exchange = exchange_of(request.scope)
        if exchange is None or request.method not in ("GET", "HEAD"):
            return
        runtime = runtime_of(request)
        if id(self.settings) not in runtime.bound:
            return
        reason = request.scope.pop(PREPARED_KEY, None)
        if reason is None:
            setattr(request, READING, self.reading(request, exchange, runtime))
            return
        without_ignored(request, runtime.bound[id(self.settings)][0].keying)
        setattr(request, READING, reason)

    def reading(self, request: Request, exchange: RequestContext, runtime: Runtime) -> Reading | str:
        route, _ = runtime.bound[id(self.settings)]
        if route.rules.off:
            return "off"
        if id(self.settings) in runtime.identified and WHO_KEY not in request.scope:
            return "unprepared"
        path, pairs = _target(request, exchange)
        pairs = runtime.counted(self.settings, pairs)
        planned = self._planned(request.scope, exchange, route, target_text(path, pairs))
        if planned.bypass is not None:
            without_ignored(request, route.keying)
            return planned.bypass
        reading = Reading(
            request.scope,
            planned,
            "&".join(pairs),
            route.keying,
            runtime.so_far(self.settings),
            runtime.lifespan,
            runtime.public,
            path,
            self.dependant,
        )
        for each in runtime.inputs[id(self.settings)].open:
            reading.unknown[by_model(each)] = None
        self._note_overrides(request, reading)
        if self.declares or self._overrides:
            declared_view(request, reading)
        return reading

    def _planned(self, scope: Scope, exchange: RequestContext, route: Route, target: str) -> Plan:
        headers, origin = scope["headers"], self.settings.origin_name
        block: PlanCache | None = scope.get(STORED_KEY)
        if headers is not exchange.headers:
            block = None
        known = None if block is None else block.planned[route, exchange.method]
        if known is None:
            return plan(route.keying, origin, target, headers, has_body=has_body(headers))
        return known[0].plan(origin, target)

    def _note_overrides(self, request: Request, reading: Reading) -> None:
        """An override (`app.dependency_overrides`) is not in the tree, and is handed FastAPI's own request."""
        overrides: dict[Callable[..., Any], Callable[..., Any]] = getattr(request.app, "dependency_overrides", {})
        for call in self.calls.intersection(overrides):
            if self._takes_request(overrides[call]):
                reading.note("scope", "the request, as an override", label(overrides[call]))

    def _takes_request(self, call: Callable[..., Any]) -> bool:
        if call not in self._overrides:
            nodes = tree(get_dependant(path="/", call=call))
            self._overrides[call] = any(each.request_param_name or each.http_connection_param_name for each in nodes)
        return self._overrides[call]


def _target(request: Request, exchange: RequestContext) -> tuple[str, tuple[str, ...]]:
    """The path and the query as the handler sees them: a middleware may have written others."""
    scope, target = request.scope, exchange.target
    assert target is not None
    unchanged = scope["path"] in (target.decoded, exchange.scope.get("path"))
    path = local_path(request) if unchanged else quote(scope["path"], safe="/:@!$&'()*+,;=~")
    if scope["query_string"] == target.query_string.encode("ascii"):
        return path, target.query
    return path, normalise_query(scope["query_string"].decode("latin-1"))


def instrument(dependant: Dependant, settings: Cached, injected: str | None) -> Prepare | None:
    """Add the dependencies to the tree of a `@cached` handler, unless they are there. `injected` is the name of the
    Request parameter that `@cached` added for itself. If nothing in the tree can see more than the key, it is
    unchanged, and the function that prepares a request is returned."""
    if any(isinstance(child.call, Prepare) for child in dependant.dependencies):
        return None
    nodes = list(tree(dependant))
    calls = frozenset(each.call for each in nodes[1:] if each.call is not None)
    declares = any(map(_declares, nodes))
    prepare = Prepare(settings, dependant, calls, declares)
    readers = [each for each in nodes if not _is_the_gateways(each) and _taken(each, injected)]
    if not (readers or declares or settings.key is not None):
        return prepare
    for each in readers:
        _fill(each, settings.name if each is dependant else label(each.call), injected)
    dependant.dependencies.insert(0, Dependant(call=prepare, request_param_name="request", path=dependant.path))
    return None


def _is_the_gateways(node: Dependant) -> bool:
    """Whether a dependency is the gateway's own code: an upstream, or what verifies credentials."""
    return getattr(node.call, UPSTREAM, None) is not None or getattr(node.call, OWN, False)


def _declares(node: Dependant) -> bool:
    """Whether FastAPI extracts parameters from more of a request than its key has: of the query, only what is declared,
    except for models."""
    return bool(node.header_params or node.cookie_params or any(map(model_of, node.query_params)))


def _taken(node: Dependant, injected: str | None) -> list[str]:
    """The places of a dependency's parameters that take the Request."""
    places = ("request_param_name", "http_connection_param_name")
    return [place for place in places if getattr(node, place) not in (None, injected)]


def _fill(node: Dependant, reader: str, injected: str | None) -> None:
    """Let a dependency of ours fill the parameters that take the Request."""
    for place in _taken(node, injected):
        name = getattr(node, place)
        setattr(node, place, None)
        filling = Dependant(call=SeenBy(reader), name=name, request_param_name="request", path=node.path)
        node.dependencies.append(filling)


def tree(dependant: Dependant) -> Iterator[Dependant]:
    yield dependant
    for child in dependant.dependencies:
        yield from tree(child)
