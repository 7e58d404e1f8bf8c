"""Routes written in Python: loads routers that `include` names, prepares `@cached` handlers and typed aggregates.

Decides which handlers are refused at start, each with the reason, and how specific a path is among the declared ones.
It serves no requests: `routing` has the prepared handlers.
"""

from __future__ import annotations

import copy
import importlib
import logging
import sys
import traceback
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute, RouteContext, iter_route_contexts
from starlette.routing import BaseRoute

from gateway.aggregates.aggregate import Aggregate
from gateway.aggregates.builder import Builder
from gateway.aggregates.routes import AggregateHandlers
from gateway.aggregates.typed import TypedAggregate, typed_aggregate
from gateway.config.names import did_you_mean
from gateway.config.part_identity import tag_problems
from gateway.errors import ConfigError, ConfigProblem
from gateway.explain.routes import HandlerRoute, handler_route
from gateway.http.path_template import PathTemplate, compile_path, tag_parameters
from gateway.observability.log import ONCE
from gateway.routing.handler_edge import judged, verifies
from gateway.routing.handler_endpoint import deaf, decorators_above
from gateway.routing.handler_inputs import Inputs, inputs_of, label, refusing, upstream_names
from gateway.routing.handler_limits import instrument_limits, limits_of_handler
from gateway.routing.handler_reading import by_model
from gateway.routing.handler_settings import CACHED_AS, Cached, Marked, Runtime, cached_settings
from gateway.routing.handler_tree import instrument
from gateway.routing.principal import admission_of_handler, instrument_identity

logger = logging.getLogger("gateway")


class Binding:
    """Of one app; results go to `runtime` and, for aggregates, to `aggregates` too."""

    def __init__(self, runtime: Runtime, builder: Builder, aggregates: list[Aggregate]) -> None:
        self._runtime = runtime
        self._builder = builder
        self._aggregates = aggregates

    def bind(self, routes: Sequence[BaseRoute], overrides: Collection[Any], mounted: Sequence[BaseRoute] = ()) -> None:
        """Make the handlers of `routes` ready, and those of sub-applications; those that are new since the first time
        were included after the app was made. `overrides` are the dependencies that `app.dependency_overrides` replaces.

        Raises ConfigError.
        """
        runtime = self._runtime
        known = {id(each.original_route) for each in runtime.contexts.values()}
        runtime.contexts, runtime.identified, runtime.limited = {}, {}, {}
        inputs: dict[int, Inputs] = {}
        for context in _contexts(routes):
            if known and id(context.original_route) not in known:
                runtime.late.add(id(context.original_route))
            runtime.contexts[id(context.dependant)] = context
            self._bind(context, inputs)
        for context in _contexts(mounted):
            self._bind(context, inputs)
        runtime.edge = {id(each.dependant): each for each in judged(routes, overrides)}
        _check_order(list(runtime.contexts.values()))

    def _bind(self, context: RouteContext, inputs: dict[int, Inputs]) -> None:
        """Make a handler ready; `inputs` has what other routes of the same handlers declare, by their settings."""
        runtime = self._runtime
        self._check_upstreams(context)
        typed = typed_aggregate(context.endpoint)
        if typed is not None and typed.name not in runtime.aggregates:
            self._bind_aggregate(typed)
        marked = cached_settings(context.endpoint)
        self._identify(context, marked.settings if marked is not None else None)
        if marked is None:
            self._limit(context, None)
            return
        settings, injected = marked.settings, marked.injected
        _check_decorators(context, marked)
        _check_edge(context, settings)
        found = inputs_of(context.dependant, injected)
        _check_inputs(context, settings, found)
        inputs[id(settings)] = inputs.get(id(settings), found).union(found)
        runtime.bind(settings, inputs[id(settings)])
        self._warn(settings, found)
        prepare = instrument(context.dependant, settings, injected)
        if prepare is not None:
            runtime.prepared[id(settings)] = prepare.reading
        if id(settings) in runtime.identified:
            instrument_identity(context.dependant, settings)
        self._limit(context, settings)

    def _limit(self, context: RouteContext, settings: Cached | None) -> None:
        """Have a handler's requests counted by the limits that it names."""
        runtime, limiter, dependant = self._runtime, self._builder.limiter, context.dependant
        identified = id(dependant) in runtime.identified
        if limiter is None:
            return
        try:
            limits = limits_of_handler(dependant, settings, self._builder.config, limiter, identified=identified)
        except ValueError as error:
            name = settings.name if settings is not None else context.name
            raise _problem(f"rate_limits of the handler {name}: {error}") from None
        if limits is None:
            return
        runtime.limited[id(dependant)] = limits
        if settings is not None:
            runtime.limited[id(settings)] = limits
        instrument_limits(dependant, cached=settings is not None, verifying=identified)

    def _identify(self, context: RouteContext, settings: Cached | None) -> None:
        """Note what a handler asks of credentials."""
        runtime = self._runtime
        try:
            admission = admission_of_handler(context.dependant, settings, runtime.providers)
        except ValueError as error:
            name = settings.name if settings is not None else context.name
            raise _problem(f"the handler {name} {error}") from None
        if admission is None:
            return
        runtime.identified[id(context.dependant)] = admission
        if settings is not None:
            runtime.identified[id(settings)] = admission

    def handler_routes(self, own: Collection[int], declared: Collection[str]) -> list[HandlerRoute]:
        """The paths that Python handlers answer, but typed aggregates, the `declared` routes, and the gateway's `own`,
        by their ids."""
        runtime = self._runtime
        return [
            handler_route(
                context, (id(context.original_route) in runtime.late, specificity_of(context.path or "/")), runtime
            )
            for context in runtime.contexts.values()
            if context.name not in declared and id(context.original_route) not in own
            if typed_aggregate(context.endpoint) is None
        ]

    def _warn(self, settings: Cached, inputs: Inputs) -> None:
        """Log once that a handler's responses can't be shared, whatever it reads."""
        so_far = self._runtime.so_far(settings)
        for unknown in map(by_model, inputs.open):
            if so_far.is_news(unknown):
                said = "responses of %s are not shared: they depend on %s"
                logger.warning(said, settings.name, unknown.what, extra=ONCE)

    def _bind_aggregate(self, typed: TypedAggregate) -> None:
        made = self._builder.typed(typed.name, typed.config, typed.checks)
        self._aggregates.append(made)
        self._runtime.aggregates[typed.name] = AggregateHandlers(self._runtime.engine, self._runtime.metrics).handler(
            made
        )

    def _check_upstreams(self, context: RouteContext) -> None:
        upstreams = self._runtime.upstreams
        for name in upstream_names(context.dependant) - set(upstreams):
            hint = did_you_mean(name, upstreams)
            raise _problem(f"the handler {context.name} requires the upstream {name!r}, which is not configured{hint}")


def _check_order(contexts: list[RouteContext]) -> None:
    """A route whose handler was decorated with `@cached` after the route was made, so that nothing is cached."""
    routed = {id(marked.endpoint) for each in contexts if (marked := cached_settings(each.endpoint)) is not None}
    for context in contexts:
        handler = context.endpoint
        cached = getattr(handler, CACHED_AS, None)
        if cached is None or getattr(cached, "__wrapped__", None) is not handler or id(cached) in routed:
            continue
        # A handler may have another route next to the cached one; then its name still refers to it.
        named = cached_settings(getattr(handler, "__globals__", {}).get(getattr(handler, "__name__", "")))
        if "<locals>" in label(handler) or (named is not None and named.endpoint is cached):
            raise _problem(
                f"the handler {label(handler)} has @cached above the decorator of its route {context.path}, so the "
                "route calls the plain function and nothing is cached; write @cached below it"
            )


def _check_decorators(context: RouteContext, marked: Marked) -> None:
    name = marked.settings.name
    for each in deaf(context.endpoint, marked.endpoint, marked.passed):
        raise _problem(
            f"the handler {name} has a decorator above @cached, {each}, that doesn't accept **kwargs, so FastAPI's "
            "arguments don't reach @cached; pass on *args and **kwargs in it, or write it below @cached"
        )
    if marked.settings.edge and decorators_above(context.endpoint, marked.endpoint):
        raise _problem(
            f"the handler {name} is @cached(edge=True) and has a decorator above it, which hits would skip; write it "
            "below @cached, or remove edge=True"
        )


def _check_edge(context: RouteContext, settings: Cached) -> None:
    if not settings.edge:
        return
    if verifies(context.dependant):
        raise _problem(
            f"the handler {context.name} is @cached(edge=True) and verifies credentials, which would be skipped by "
            "hits; remove edge=True"
        )
    found = refusing(context.dependant, follows_origin=settings.rules.ttl is None)
    if found:
        raise _problem(
            f"the handler {context.name} is @cached(edge=True) and depends on {', '.join(found)}, which can "
            "refuse a request and would be skipped by hits; remove edge=True"
        )


def _check_inputs(context: RouteContext, settings: Cached, inputs: Inputs) -> None:
    if settings.authorization == "ignore" and inputs.authorization is not None:
        raise _problem(
            f"the handler {settings.name} is @cached(authorization='ignore'), which hides the Authorization that "
            f"{inputs.authorization} requires; use authorization='key' or 'pass'"
        )
    per = settings.identity.per if settings.identity is not None else ()
    for problem in tag_problems(settings.tags, per, ()):
        raise _problem(f"the handler {settings.name} has the tag {problem.message}")
    known = sorted(context.param_convertors)
    for tag in settings.tags:
        for name in set(tag_parameters(tag)) - set(known):
            raise _problem(
                f"the handler {settings.name} has the tag {tag!r}, but {{{name}}} isn't a parameter of the path "
                f"{context.path}, which has {', '.join(known) or 'none'}{did_you_mean(name, known)}"
            )


def _contexts(routes: Sequence[BaseRoute]) -> Iterator[RouteContext]:
    return (each for each in iter_route_contexts(routes) if isinstance(each.original_route, APIRoute))


def _problem(message: str) -> ConfigError:
    return ConfigError([ConfigProblem("", "include", message)])


def router_of(place: str) -> APIRouter:
    """The router that `module:attribute` names. Raises ConfigError, with the line at which its module fails."""
    found = object_at(place, "include")
    if not isinstance(found, APIRouter):
        raise _refused("include", f"{place} is a {type(found).__name__}; expected a fastapi.APIRouter")
    return found


def object_at(place: str, key: str) -> Any:
    """What `module:attribute` names, for the setting `key`. Raises ConfigError, with the line at which its module
    fails."""
    module, _, attribute = place.partition(":")
    try:
        imported = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever a module's own code raises
        raise _refused(key, f"{place} cannot be imported: {_said(error)}") from error
    found = getattr(imported, attribute, None)
    if found is None:
        raise _refused(
            key, f"{place} cannot be imported: {module} has no {attribute!r}{did_you_mean(attribute, dir(imported))}"
        )
    return found


def _refused(key: str, message: str) -> ConfigError:
    return ConfigError([ConfigProblem("", key, message)])


def _said(error: BaseException) -> str:
    """An error with its kind, and where in the user's code it was raised."""
    if isinstance(error, ModuleNotFoundError):
        text = f"there is no module {error.name!r} (searched are the current folder and the installed packages)"
    elif isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: SyntaxError: {error.msg}"
    else:
        text = f"{type(error).__name__}: {error}"
    place = _raised_at(error)
    return f"{place}: {text}" if place else text


def _raised_at(error: BaseException) -> str:
    """`file:line` of the last frame outside of this package and the import system; empty if there is none."""
    ours = str(Path(__file__).parents[1])
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(("<", ours))
    ]
    users = [frame for frame in frames if not frame.filename.startswith(sys.prefix)] or frames
    standard = str(Path(importlib.__file__).parent.parent)
    users = [frame for frame in users if not frame.filename.startswith(standard)]
    return f"{users[-1].filename}:{users[-1].lineno}" if users else ""


def pieces_of(router: APIRouter) -> list[tuple[Any, APIRouter]]:
    """A router as routers of one route each, so that its routes can stand among the others by how specific they are.

    The first keeps the router's lifespan and event handlers.
    """
    pieces = []
    for position, route in enumerate(router.routes):
        piece = copy.copy(router)
        piece.routes = [route]
        if position:
            piece.on_startup, piece.on_shutdown = [], []
            piece.lifespan_context = APIRouter().lifespan_context
        contexts = list(iter_route_contexts([route]))
        pieces.append((specificity_of(contexts[0].path or "/" if contexts else "/"), piece))
    return pieces


def specificity_of(path: str) -> tuple[tuple[int, int], ...]:
    """How specific a FastAPI path is; convertors other than `path` take one segment."""
    plain = path if ":path}" in path else _without_convertors(path)
    try:
        return compile_path(plain).specificity
    except ValueError:
        return PathTemplate(plain).specificity


def _without_convertors(path: str) -> str:
    pieces = path.split("{")
    return pieces[0] + "".join(
        "{" + piece.split(":")[0].rstrip("}") + "}" + piece.partition("}")[2] for piece in pieces[1:]
    )
