"""What FastAPI handlers and their dependencies declare to read, as their routes' dependency trees tell it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fastapi.dependencies.models import Dependant
from fastapi.security.base import SecurityBase

UPSTREAM = "__gateway_upstream__"
"""The attribute of a dependency that is an upstream: its name."""


@dataclass(frozen=True)
class Inputs:
    """What a handler and its dependencies declare to read. `query` is None where that cannot be known."""

    query: frozenset[str] | None = None
    headers: frozenset[str] = frozenset()
    cookies: frozenset[str] = frozenset()

    def union(self, other: Inputs) -> Inputs:
        known = self.query is not None and other.query is not None
        query = (self.query or frozenset()) | (other.query or frozenset()) if known else None
        return Inputs(query, self.headers | other.headers, self.cookies | other.cookies)


def inputs_of(dependant: Dependant, injected: str | None) -> Inputs:
    """The inputs that a route's dependency tree declares; who takes the Request may read any query parameter."""
    query: set[str] = set()
    headers: set[str] = set()
    cookies: set[str] = set()
    open_ended = False
    for each in _tree(dependant):
        if getattr(each.call, UPSTREAM, None) is not None:
            continue
        for name, where in _security(each):
            {"header": headers, "query": query, "cookie": cookies}[where].add(name)
        if isinstance(each.call, SecurityBase):
            continue
        own = each is dependant and each.request_param_name == injected
        open_ended = open_ended or (each.request_param_name is not None and not own)
        open_ended = open_ended or each.http_connection_param_name is not None
        for parameter in each.query_params:
            query.add(parameter.alias)
            open_ended = open_ended or hasattr(parameter.field_info.annotation, "model_fields")
        headers |= {parameter.alias.lower().replace("_", "-") for parameter in each.header_params}
        cookies |= {parameter.alias for parameter in each.cookie_params}
    return Inputs(None if open_ended else frozenset(query), frozenset(headers), frozenset(cookies))


def refusing(dependant: Dependant, *, follows_origin: bool) -> list[str]:
    """What of a `@cached(edge=True)` handler could refuse a request, or answer it otherwise, though its answer is
    stored: any dependency but an upstream; with `ttl="origin"` also headers it declares, which may be in no key."""
    children = (each.call for each in dependant.dependencies)
    found = [getattr(call, "__name__", repr(call)) for call in children if getattr(call, UPSTREAM, None) is None]
    if follows_origin:
        found += [f"the header {parameter.alias}" for parameter in dependant.header_params]
    return found


def upstream_names(dependant: Dependant) -> set[str]:
    """The upstreams that a dependency tree names."""
    return {name for each in _tree(dependant) if (name := getattr(each.call, UPSTREAM, None)) is not None}


def _tree(dependant: Dependant) -> Iterator[Dependant]:
    yield dependant
    for child in dependant.dependencies:
        yield from _tree(child)


def _security(dependant: Dependant) -> Iterator[tuple[str, str]]:
    """The API keys that a security scheme reads; other schemes read Authorization, which has a rule of its own."""
    model = getattr(dependant.call, "model", None)
    place = getattr(getattr(model, "in_", None), "value", None)
    if place in ("header", "query", "cookie"):
        name = str(getattr(model, "name", ""))
        yield (name.lower() if place == "header" else name), place
