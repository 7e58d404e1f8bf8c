"""Every kind of route, handler and part by what it does with a request's fields, for tests and for docs/keys.md.

The rows follow the code: one for each value that a setting may have, taken from the models and from the decorator's
signature, so that a new value is a new row, which the tests then try.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from gateway import cached
from gateway.config.part import PartConfig
from gateway.config.route import RouteConfig

KEYED = ("authorization", "cookies")
"""The settings that say what becomes of a request's credentials. Each of their values is a row for each kind."""
LIVES = ("60s", "origin")


@dataclass(frozen=True)
class Input:
    """Something of a request by which two users differ. `head` makes its fields, `query` its part of the URL."""

    name: str
    head: Mapping[str, str] = field(default_factory=dict)
    query: str = ""

    def headers(self, user: str) -> dict[str, str]:
        return {name: value.format(user=user) for name, value in self.head.items()}


INPUTS = (
    Input("Authorization", {"Authorization": "Bearer {user}"}),
    Input("Cookie", {"Cookie": "sid={user}"}),
    Input("X-Tenant", {"X-Tenant": "{user}"}),
    Input("X-Api-Key", {"X-Api-Key": "{user}"}),
    Input("Accept-Language", {"Accept-Language": "{user}"}),
    Input("Host", {"Host": "{user}.example.com"}),
    Input("page", query="page={user}"),
    Input("utm_source", query="utm_source={user}"),
)
ECHOED = ("authorization", "cookie", "x-tenant", "x-api-key", "accept-language", "host", "page", "utm_source")


@dataclass(frozen=True)
class Row:
    """`kind` is the table that the row stands in, `name` what it is about."""

    kind: str
    name: str
    path: str
    routes: Mapping[str, Any] = field(default_factory=dict)
    """The routes of the configuration that it needs; none where a handler answers."""
    status: int = 200

    @property
    def id(self) -> str:
        return f"{self.kind}: {self.name}"


def rows() -> list[Row]:
    return [*_of_routes(), *_of_parts(), *_of_handlers()]


def _values(annotation: Any) -> Iterator[Any]:
    """The values that a setting may have: each word, and a list of one name."""
    origin = get_origin(annotation)
    if origin is Literal:
        yield from get_args(annotation)
    elif origin in (Union, UnionType):
        for inner in get_args(annotation):
            yield from _values(inner)
    elif origin is typing.Annotated:
        yield from _values(get_args(annotation)[0])
    elif origin is list or getattr(origin, "__name__", "") == "Sequence":
        yield ["sid"]
    else:
        raise TypeError(f"the table does not know what values {annotation} has")


def _written(value: Any) -> str:
    return f"[{', '.join(value)}]" if isinstance(value, list) else str(value)


def settings(annotations: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "nothing else set", {}
    for name in KEYED:
        for value in _values(annotations[name]):
            yield f"{name}: {_written(value)}", {name: value}
    yield "authorization: key, cookies: [sid]", {"authorization": "key", "cookies": ["sid"]}
    yield "query: [page]", {"query": ["page"]}


def _annotations(model: Any) -> dict[str, Any]:
    return {name: model.model_fields[name].annotation for name in KEYED}


def _of_routes() -> Iterator[Row]:
    number = 0
    for ttl in LIVES:
        further = [("vary: [x-tenant]", {"vary": ["x-tenant"]}), ("vary: [x-api-key]", {"vary": ["x-api-key"]})]
        for name, given in [*settings(_annotations(RouteConfig)), *(further if ttl != "origin" else [])]:
            number += 1
            path = f"/route{number}"
            upstream = "plain" if ttl != "origin" else "honest"
            yield Row(
                f"route, ttl: {ttl}",
                name,
                path,
                {f"route{number}": {"path": path, "upstream": upstream, "ttl": ttl, **given}},
            )
    kept = {"path": "/large", "upstream": "plain", "ttl": "60s", "cookies": ["sid"]}
    yield Row("route, ttl: 60s, cookies: [sid]", "larger than max_body", "/large", {"large": {**kept, "max_body": 1}})
    yield Row(
        "route, ttl: 60s, cookies: [sid]", "a failure", "/failing", {"failing": {**kept, "path": "/failing"}}, 500
    )


def _of_parts() -> Iterator[Row]:
    number = 0
    for ttl in LIVES:
        further: list[tuple[str, dict[str, Any]]] = [
            ("headers: {header.x-tenant}", {"headers": {"X-Tenant": "{header.x-tenant}"}})
        ]
        if ttl != "origin":
            further.append(("vary: [x-api-key]", {"vary": ["x-api-key"]}))
        for name, given in [*settings(_annotations(PartConfig)), *further]:
            number += 1
            path = f"/whole{number}"
            upstream = "plain" if ttl != "origin" else "honest"
            part = {"upstream": upstream, "path": "/part", "ttl": ttl, "group": None, **given}
            yield Row(f"part, ttl: {ttl}", name, path, {f"whole{number}": {"path": path, "parts": {"one": part}}})


def _of_handlers() -> Iterator[Row]:
    from tests.shared_caches import handlers

    for kind, name, path in handlers.made():
        yield Row(kind, name, path)


def decorator_values() -> dict[str, Any]:
    """By argument of `@cached`: its annotation, for the settings in `KEYED`."""
    hints = typing.get_type_hints(cached, include_extras=True)
    return {name: hints[name] for name in KEYED if name in inspect.signature(cached).parameters}
