"""Which `@cached` handlers are answered at the edge, before FastAPI solves anything of a request, and why not others.

Decides by proof: of a hit, nothing that the app would still run for the request may refuse it or answer it otherwise.
The edge answers a request line that the app has answered before, by an entry whose key holds the declared headers and
cookies. So what is left to show is that no code of the app's own runs for a request (dependencies, decorators, route
classes, other routes that match by more than the path), and that validating the same values comes to the same result
each time. Where one of these isn't certain, the app answers; `@cached(edge=True)` is the operator's word instead.

It doesn't know the edge: the app asks for `reason_against` when it binds its handlers, and leaves a `FastPath` or not.
"""

from __future__ import annotations

import builtins
import enum
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from fastapi._compat import ModelField
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, APIRouter, APIWebSocketRoute, RouteContext, iter_route_contexts
from starlette.convertors import Convertor
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute

from gateway.routing.handler_endpoint import decorators_above
from gateway.routing.handler_inputs import IDENTITY, LIMITS, OWN, UPSTREAM, label, model_of, sees_all
from gateway.routing.handler_settings import Judged, Marked, cached_settings

_BY_PATH = (APIRoute, Route, Mount, APIWebSocketRoute, WebSocketRoute)
"""Routes that match by the path and the method alone."""
_PLAIN = frozenset(
    (
        *("any", "none", "bool", "int", "float", "decimal", "str", "bytes", "time", "timedelta", "uuid", "literal"),
        *("url", "multi-host-url", "enum", "date", "datetime", "list", "tuple", "set", "frozenset", "dict", "nullable"),
        *("union", "default", "json", "lax-or-strict", "json-or-python", "chain", "is-instance", "definitions"),
        *("definition-ref", "model", "model-fields", "model-field", "typed-dict", "typed-dict-field", "complex"),
        *("dataclass", "dataclass-args", "dataclass-field", "tagged-union"),
    )
)
"""Kinds of pydantic's core schema that return the same for the same value, except for code that they may name."""
_CODE = ("function", "default_factory", "missing", "post_init", "custom_init", "discriminator")
_NO_SCHEMAS = frozenset(("serialization", "metadata", "default", "expected", "members", "computed_fields", *_CODE))
_TRUSTED = ("pydantic.", "pydantic_core", "ipaddress", "decimal", "fractions")
"""Modules whose validators come to the same for the same value; of pydantic's, those of paths look at the disk."""


def judged(routes: Sequence[BaseRoute], overrides: Collection[Any]) -> Iterator[Judged]:
    """The routes of `@cached` handlers. `overrides` are the dependencies that `app.dependency_overrides` replaces."""
    unsure: str | None = None
    for route in routes:
        unsure = unsure or _other_router(route)
        for context in iter_route_contexts([route]):
            unsure = unsure or _other_matching(context.original_route)
            marked = cached_settings(context.endpoint)
            if marked is None:
                continue
            if marked.settings.edge is not None:
                yield Judged(context.dependant, None if marked.settings.edge else "edge=False")
            else:
                yield Judged(context.dependant, unsure or reason_against(context, marked, overrides))


def reason_against(context: RouteContext, marked: Marked, overrides: Collection[Any] = ()) -> str | None:
    """The reason why hits of a handler can't be proven to be the same without the app; None if they can."""
    dependant: Dependant = context.dependant
    if type(context.original_route) is not APIRoute:
        return f"its route is a {type(context.original_route).__name__}, which may run code for each request"
    above = decorators_above(context.endpoint, marked.endpoint)
    if above:
        return f"the decorator {label(above[0])} above @cached runs for each request"
    if marked.settings.key is not None:
        return "key= is made for each request"
    if verifies(dependant):
        return "it verifies credentials for each request"
    if any(hasattr(each.call, LIMITS) for each in dependant.dependencies):
        return "its rate limits count each request"
    depends = [each.call for each in dependant.dependencies if not getattr(each.call, OWN, False)]
    others = [each for each in depends if getattr(each, UPSTREAM, None) is None]
    if others:
        return f"it depends on {', '.join(map(label, others))}"
    replaced = [str(getattr(each, UPSTREAM)) for each in depends if each in overrides]
    if replaced:
        return f"dependency_overrides replaces the upstream {replaced[0]}"
    return reason_against_own(context, marked)


def verifies(dependant: Dependant) -> bool:
    """Whether a dependency in a tree verifies credentials."""
    return hasattr(dependant.call, IDENTITY) or any(map(verifies, dependant.dependencies))


def reason_against_own(context: RouteContext, marked: Marked) -> str | None:
    """The reason why the parameters of a handler itself, without those of dependencies, may differ for one key."""
    return _reads(context.dependant, marked) or _converts(context) or _validates(context.dependant)


def _reads(dependant: Dependant, marked: Marked) -> str | None:
    if _takes_request(dependant, marked.injected):
        return "it takes the Request"
    if marked.settings.rules.ttl is None and dependant.header_params:
        return f'with ttl="origin" the header {dependant.header_params[0].alias} is in no key'
    for each in dependant.header_params:
        model = model_of(each)
        if model is not None and (sees_all(each) or model.model_config.get("extra") == "forbid"):
            return f"the model of the headers {each.name} is shown all fields"
    return None


def _takes_request(dependant: Dependant, injected: str | None) -> bool:
    """Whether a handler takes the Request: FastAPI fills it in, or a dependency of ours (`handler_tree.SeenBy`)."""
    names = [dependant.request_param_name, dependant.http_connection_param_name]
    filled = any(hasattr(child.call, "reader") for child in dependant.dependencies if getattr(child.call, OWN, False))
    return filled or any(name is not None and name != injected for name in names)


# --- other routes ------------------------------------------------------------------------------------------


def _other_router(route: BaseRoute) -> str | None:
    """The parts of an included router, or of one that it includes, that may choose by more than the path."""
    router = getattr(route, "original_router", None)
    if router is None:
        return None
    if type(router) is not APIRouter:
        return f"the router {type(router).__name__} may choose by more than the path"
    return next((found for each in router.routes if (found := _other_router(each)) is not None), None)


def _other_matching(route: BaseRoute) -> str | None:
    """Why a route, or one behind it, may be chosen by more than the path."""
    kind = type(route)
    if kind in _BY_PATH or kind.__module__.startswith("fastapi.") or getattr(kind, "matches", None) in _MATCHES:
        return None
    return f"the route {kind.__name__} before it, or its own, may choose by more than the path"


_MATCHES = frozenset(kind.matches for kind in _BY_PATH)


def _converts(context: RouteContext) -> str | None:
    for name, convertor in context.param_convertors.items():
        if not isinstance(convertor, Convertor) or not type(convertor).__module__.startswith("starlette."):
            return f"the path parameter {name} has a convertor of the app's own"
    return None


# --- validation --------------------------------------------------------------------------------------------


def _validates(dependant: Dependant) -> str | None:
    fields: list[ModelField] = [
        *(*dependant.path_params, *dependant.query_params, *dependant.header_params),
        *(*dependant.cookie_params, *dependant.body_params),
    ]
    for each in fields:
        found = _code_in(each.field_info.default_factory, "default_factory") or _impure(each._type_adapter.core_schema)
        if found is not None:
            return f"the parameter {each.name} is validated by {found}"
    return None


def _impure(schema: Any) -> str | None:
    """The parts of a pydantic core schema that may return another result for the same value; None if there are none."""
    if isinstance(schema, list | tuple):
        return next((found for each in schema if (found := _impure(each)) is not None), None)
    if not isinstance(schema, Mapping):
        return None
    kind = schema.get("type")
    if isinstance(kind, str) and kind not in _PLAIN and not kind.startswith("function-"):
        return f"pydantic's schema {kind}"
    if schema.get("now_op") is not None:
        return "the time of the request"
    if kind == "enum" and schema["cls"]._missing_.__func__ is not enum.Enum._missing_.__func__:  # type: ignore[attr-defined]
        return label(schema["cls"]._missing_)
    for name in _CODE:
        found = _code_in(schema.get(name), name)
        if found is not None:
            return found
    inner = (value for name, value in schema.items() if name not in _NO_SCHEMAS)
    return next((found for each in inner if (found := _impure(each)) is not None), None)


def _code_in(value: Any, place: str) -> str | None:
    """The application code that a schema names at `place`; None where there is none, or it is trusted."""
    if isinstance(value, Mapping):
        value = value.get("function")
    if value is None or value is False or (place == "discriminator" and isinstance(value, str)) or _is_trusted(value):
        return None
    return label(value) if callable(value) else place


def _is_trusted(code: Any) -> bool:
    """Whether code comes to the same for the same value: a builtin type, its methods, and pydantic's own validators but
    those that look at the disk or import modules."""
    kind = code if isinstance(code, type) else getattr(code, "__objclass__", None)
    if isinstance(kind, type) and getattr(builtins, kind.__name__, None) is kind:
        return True
    module, name = getattr(code, "__module__", None) or "", getattr(code, "__qualname__", "").lower()
    return f"{module}.".startswith(_TRUSTED) and "path" not in name and "import" not in name
