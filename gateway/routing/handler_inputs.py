"""The inputs that FastAPI handlers and their dependencies declare, from their routes' dependency trees.

Names are not guessed from annotations: FastAPI extracts the parameters of an empty request, and its lookups are
recorded.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from fastapi._compat import ModelField
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import request_params_to_args
from fastapi.security.base import SecurityBase
from pydantic import BaseModel
from starlette.datastructures import Headers, QueryParams

logger = logging.getLogger("gateway")
UPSTREAM = "__gateway_upstream__"
"""The attribute of a dependency that is an upstream: its name."""
OWN = "__gateway_own__"
"""The attribute of a dependency that the gateway put into a handler's tree."""
LIMITS = "__gateway_limits__"
"""The attribute of a dependency that names rate limits, or counts by them."""
IDENTITY = "__gateway_identity__"
"""The attribute of a dependency that verifies credentials."""


@dataclass(frozen=True)
class Inputs:
    """The declared inputs of a handler and its dependencies. `query` is None if it is unknown.

    `parameters` are the query parameters that are declared in any case. `identities` are the fields of API keys;
    `authorization` is whether Authorization is declared, by a security scheme or as a header. `open` are the parameters
    whose models can see every field of a request.
    """

    query: frozenset[str] | None = None
    headers: frozenset[str] = frozenset()
    cookies: frozenset[str] = frozenset()
    parameters: frozenset[str] = frozenset()
    identities: frozenset[str] = frozenset()
    authorization: str | None = None
    open: frozenset[str] = frozenset()

    def union(self, other: Inputs) -> Inputs:
        known = self.query is not None and other.query is not None
        query = (self.query or frozenset()) | (other.query or frozenset()) if known else None
        return Inputs(
            query,
            self.headers | other.headers,
            self.cookies | other.cookies,
            self.parameters | other.parameters,
            self.identities | other.identities,
            self.authorization or other.authorization,
            self.open | other.open,
        )


def inputs_of(dependant: Dependant, injected: str | None) -> Inputs:
    """The inputs that a route's dependency tree declares; a handler that takes the Request may read any query
    parameter.

    `injected` is the name of the Request parameter that `@cached` added for itself.
    """
    found = Inputs(frozenset())
    for each in _tree(dependant):
        if getattr(each.call, UPSTREAM, None) is None and not getattr(each.call, OWN, False):
            found = found.union(_declared(each, injected if each is dependant else None))
    return found


def _declared(node: Dependant, injected: str | None) -> Inputs:
    if isinstance(node.call, SecurityBase):
        return _secured(node.call).union(_parameters(node, takes_request=False))
    return _parameters(node, takes_request=_takes_request(node, injected))


def _parameters(node: Dependant, *, takes_request: bool) -> Inputs:
    headers = frozenset(name.lower() for name in _looked_for(node.header_params, _Noted()))
    query = frozenset(_looked_for(node.query_params, _NotedQuery()))
    open_ended = takes_request or any(map(model_of, node.query_params))
    return Inputs(
        query=None if open_ended else query,
        headers=headers,
        cookies=frozenset(_looked_for(node.cookie_params, _NotedCookies())),
        parameters=query,
        authorization=f"the header {label(node.call)} declares" if "authorization" in headers else None,
        open=frozenset(f"{label(node.call)}({each.name})" for each in node.header_params if sees_all(each)),
    )


def _takes_request(node: Dependant, injected: str | None) -> bool:
    names = [node.request_param_name, node.http_connection_param_name]
    names += [child.name for child in node.dependencies if getattr(child.call, OWN, False)]
    return any(name is not None and name != injected for name in names)


def _secured(scheme: SecurityBase) -> Inputs:
    """The input of a security scheme: an API key in its place; all others read Authorization."""
    model = getattr(scheme, "model", None)
    place, name = getattr(getattr(model, "in_", None), "value", None), str(getattr(model, "name", ""))
    if place == "query":
        return Inputs(frozenset((name,)), parameters=frozenset((name,)))
    if place == "header":
        field = frozenset((name.lower(),))
        given = type(scheme).__name__ if name.lower() == "authorization" else None
        return Inputs(frozenset(), headers=field, identities=field, authorization=given)
    if place == "cookie":
        return Inputs(frozenset(), cookies=frozenset((name,)))
    return Inputs(frozenset(), authorization=type(scheme).__name__)


# --- names -------------------------------------------------------------------------------------------------


class _Noted(Headers):
    """No fields; `names` are those that were looked up."""

    def __init__(self) -> None:
        super().__init__(raw=[])
        self.names: dict[str, None] = {}

    def __contains__(self, key: Any) -> bool:
        self.names[key] = None
        return False

    def __getitem__(self, key: str) -> str:
        self.names[key] = None
        raise KeyError(key)

    def getlist(self, key: str) -> list[str]:
        self.names[key] = None
        return []


class _NotedQuery(QueryParams):
    def __init__(self) -> None:
        super().__init__("")
        self.names: dict[str, None] = {}

    def __contains__(self, key: Any) -> bool:
        self.names[key] = None
        return False

    def get(self, key: Any, default: Any = None) -> Any:
        self.names[key] = None
        return default

    def getlist(self, key: Any) -> list[Any]:
        self.names[key] = None
        return []


class _NotedCookies(dict[str, str]):
    def __init__(self) -> None:
        self.names: dict[str, None] = {}

    def __contains__(self, key: Any) -> bool:
        self.names[key] = None
        return False

    def get(self, key: Any, default: Any = None) -> Any:
        self.names[key] = None
        return default


def _looked_for(parameters: list[ModelField], nothing: Any) -> list[str]:
    for each in parameters:
        try:
            request_params_to_args([each], nothing)
        except Exception:  # of a validator of the app's own, which runs after the names were noted
            logger.debug("a validator of the parameter %s requires a value", each.name, exc_info=True)
    return list(nothing.names)


def model_of(parameter: ModelField) -> type[BaseModel] | None:
    annotation = parameter.field_info.annotation
    candidates = get_args(annotation) if get_origin(annotation) is not None else (annotation,)
    models = [each for each in candidates if isinstance(each, type) and issubclass(each, BaseModel)]
    return models[0] if models else None


def sees_all(parameter: ModelField) -> bool:
    """Whether the model of a header parameter can see undeclared fields: it keeps extra ones, or its own code runs
    before they are dropped."""
    model = model_of(parameter)
    if model is None:
        return False
    validators = model.__pydantic_decorators__.model_validators.values()
    early = any(each.info.mode in ("before", "wrap") for each in validators)
    custom = bool(getattr(model, "__pydantic_custom_init__", False)) or bool(parameter.field_info.metadata)
    return early or custom or model.model_config.get("extra") == "allow"


def label(call: Any) -> str:
    """A dependency's name, for logs."""
    while hasattr(call, "func"):
        call = call.func
    named = call if hasattr(call, "__qualname__") else type(call)
    return f"{named.__module__}.{named.__qualname__}"


# --- trees -------------------------------------------------------------------------------------------------


def refusing(dependant: Dependant, *, follows_origin: bool) -> list[str]:
    """The inputs of a `@cached(edge=True)` handler that could refuse a request, or change a stored response: any
    dependency but an upstream; with `ttl="origin"` also declared headers, which may not be in the key."""
    children = (each.call for each in dependant.dependencies)
    found = [
        getattr(call, "__name__", repr(call))
        for call in children
        if getattr(call, UPSTREAM, None) is None and not getattr(call, OWN, False)
    ]
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


def covered_readers(dependant: Dependant, named: frozenset[str]) -> frozenset[str]:
    """The dependencies whose values reach a handler by the parameters `named` alone."""
    by_key: set[str] = set()
    others: set[str] = set()
    for child in dependant.dependencies:
        if child.name is not None:
            (by_key if child.name in named else others).update(_readers(child))
    return frozenset(by_key - others)


def _readers(dependant: Dependant) -> Iterator[str]:
    for each in _tree(dependant):
        if not getattr(each.call, OWN, False):
            yield label(each.call)
