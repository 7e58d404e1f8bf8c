"""`aggregate()`: an aggregate in Python, of typed parts; the same engine as behind `parts:` in the configuration.

    aggregate(
        router,
        "/mobile/home/{user}",
        parts={
            "profile": part(Profile, upstream="users", path="/users/{user}", ttl="5m"),
            "offers": part(list[Offer], upstream="promo", path="/offers", ttl="10s", default=[]),
        },
        deadline="800ms",
    )

A part's body is validated once when it comes; one of another type has failed. What is answered is what came.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi import APIRouter
from pydantic import BaseModel, TypeAdapter, ValidationError, create_model
from starlette.requests import Request
from starlette.responses import Response

from gateway.aggregates.merge import WrongType
from gateway.config.route import RouteConfig
from gateway.routing.handler_settings import runtime_of

MARK = "__gateway_aggregate__"


@dataclass(frozen=True)
class TypedPart:
    """A part of the type `model`; `settings` are those of a part in the configuration."""

    model: Any
    settings: Mapping[str, Any]

    def check(self) -> Callable[[bytes], None]:
        """Raises merge.WrongType for JSON text that is not of the type."""
        adapter: TypeAdapter[Any] = TypeAdapter(self.model)

        def check(text: bytes) -> None:
            try:
                adapter.validate_json(text)
            except ValidationError as error:
                first = error.errors(include_url=False, include_input=False)[0]
                where = ".".join(map(str, first["loc"])) or "the whole"
                raise WrongType(f"it doesn't match its type: {where}: {first['msg']}") from None

        return check


def part(model: Any, **settings: Any) -> TypedPart:
    """A part of an aggregate: its type (any type that pydantic supports), and the settings of a part."""
    return TypedPart(model, settings)


class Handle(Protocol):
    def __call__(self, request: Request) -> Awaitable[Response]: ...


@dataclass(frozen=True)
class TypedAggregate:
    """An aggregate written in Python, until a gateway binds it to its upstreams."""

    name: str
    config: RouteConfig
    parts: Mapping[str, TypedPart]

    @property
    def checks(self) -> dict[str, Callable[[bytes], None]]:
        return {name: each.check() for name, each in self.parts.items()}


def aggregate(
    router: APIRouter, path: str, *, parts: Mapping[str, TypedPart], name: str | None = None, **settings: Any
) -> None:
    """Add an aggregate to `router`, which the configuration's `include` names. `settings` are those of a route with
    parts: deadline, merge, selectable, envelope, errors, tags, identity, rate_limits, summary, description.

    `name` is its name in purges; default: its path in words. Raises pydantic.ValidationError (a ValueError) for an
    invalid setting.
    """
    own = name or "_".join(filter(None, path.replace("{", "").replace("}", "").replace("-", "_").split("/")))
    raw = {"path": path, "parts": {each: dict(typed.settings) for each, typed in parts.items()}, **settings}
    made = TypedAggregate(own, RouteConfig.model_validate(raw), dict(parts))

    async def handle(request: Request) -> Response:
        return await runtime_of(request).aggregates[made.name](request)

    handle.__name__ = own
    setattr(handle, MARK, made)
    router.add_api_route(path, handle, methods=["HEAD"], include_in_schema=False)
    router.add_api_route(
        path,
        handle,
        methods=["GET"],
        name=own,
        summary=made.config.summary or own.replace("_", " "),
        description=made.config.description or "",
        response_model=None,
        response_class=Response,
        responses={200: {"model": _model(made), "description": "The joined responses of the parts."}},
    )


def _model(made: TypedAggregate) -> type[BaseModel]:
    """The type of the whole, for the API documentation."""
    fields: dict[str, Any] = {}
    for name, typed in made.parts.items():
        config = made.config.parts[name]
        group = config.group_of(name)
        if group is not None and not config.shadow:
            kind = list[typed.model | None] if config.for_each is not None else typed.model  # type: ignore[name-defined]
            fields[group] = (kind | None if config.optional else kind, ...)
    return create_model("".join(word.title() for word in made.name.split("_")), **fields)


def typed_aggregate(endpoint: Any) -> TypedAggregate | None:
    """The aggregate that `aggregate()` made an endpoint for."""
    made = getattr(endpoint, MARK, None)
    return made if isinstance(made, TypedAggregate) else None
