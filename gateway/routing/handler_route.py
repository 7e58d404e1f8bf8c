"""The route of a `@cached` handler: solves its dependencies by FastAPI, and lets the edge write a stored response.

FastAPI's own app for a route does the same for every kind of endpoint and body. A `@cached` handler has no body and
returns a response, so that only these steps are left: the exit stacks, `solve_dependencies`, the endpoint, the
response. What a handler and its dependencies may see is worked out before (`handler_tree.Prepare`), as part of no
dependency. If they read nothing that the key lacks, and change nothing of the response, the stored one is the same
bytes for each such request, and the protocol class writes it (`StoredResponse`).

Where a route is more than that (a decorator above `@cached`, a body, a replaced internal of FastAPI), FastAPI's app
answers: slower, and right.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any, Protocol

from fastapi import Request, __version__
from fastapi.dependencies import utils
from fastapi.dependencies.models import Dependant, _is_async_gen_callable, _is_gen_callable
from fastapi.exceptions import FastAPIError, RequestValidationError
from fastapi.routing import APIRoute, RouteContext
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.context import STORED_KEY, exchange_of
from gateway.observability.log import ONCE
from gateway.routing.fast_path import PlanCache
from gateway.routing.handler_edge import reason_against_own, verifies
from gateway.routing.handler_endpoint import decorators_above
from gateway.routing.handler_reading import READING, Reading
from gateway.routing.handler_replay import replay_of
from gateway.routing.handler_settings import STATE, Cached, Runtime, cached_settings
from gateway.routing.handler_tree import PREPARED_KEY, Prepare, tree

logger = logging.getLogger("gateway")


class StoredResponse(PlanCache, Protocol):
    """In the scope, by the protocol class: what it may write of the request's stored response."""

    def is_written(self, scope: Scope, base: str, target: str) -> bool:
        """Write the stored response for this key and target; False if there is none that is ready."""


def _solver() -> Callable[..., Any] | None:
    """FastAPI's function that solves dependencies; None if this version has another."""
    found = getattr(utils, "solve_dependencies", None)
    wanted = {"request", "dependant", "dependency_overrides_provider", "async_exit_stack", "embed_body_fields"}
    wanted |= {"response", "background_tasks"}
    try:
        parameters = inspect.signature(found).parameters if found is not None else {}
    except (TypeError, ValueError):
        return None
    required = {name for name, each in parameters.items() if each.default is inspect.Parameter.empty}
    return found if wanted <= set(parameters) and required <= wanted else None


_told = False


def _tell() -> None:
    """Log once that hits take longer with this version of FastAPI."""
    global _told
    if not _told:
        _told = True
        logger.warning(
            "FastAPI %s solves dependencies by an unknown function: hits of @cached handlers with dependencies take "
            "more time",
            __version__,
            extra=ONCE,
        )


def handler_app(context: RouteContext, runtime: Runtime | None) -> ASGIApp:
    """The app for a route: FastAPI's, or for a `@cached` handler one that does less."""
    app: ASGIApp = context.app
    marked = cached_settings(context.endpoint)
    if marked is None or runtime is None or type(context.original_route) is not APIRoute:
        return app
    dependant: Dependant = context.dependant
    prepare = _prepare_of(dependant, runtime, marked.settings)
    solve = _solver()
    if solve is None:
        _tell()
    more = (
        verifies(dependant)
        or decorators_above(context.endpoint, marked.endpoint)
        or context.body_field is not None
        or dependant.body_params
    )
    if solve is None or prepare is None or more or not hasattr(context, "dependency_overrides_provider"):
        return app
    return HandlerApp(app, context, marked.settings, prepare, solve, reason_against_own(context, marked) is None)


def _prepare_of(dependant: Dependant, runtime: Runtime, settings: Cached) -> Prepare | None:
    """What prepares a request; None of a tree that FastAPI made anew, which is not known yet."""
    if id(dependant) not in runtime.contexts or id(settings) not in runtime.bound:
        return None
    found = [each.call for each in dependant.dependencies if isinstance(each.call, Prepare)]
    if found:
        return found[0]
    bound = runtime.prepared.get(id(settings))
    return getattr(bound, "__self__", None)


class HandlerApp:
    """An ASGI app; `otherwise` is FastAPI's. `proven` is whether the handler's own parameters are the same for one key,
    so that a stored response needs only the dependencies."""

    def __init__(
        self,
        otherwise: ASGIApp,
        context: RouteContext,
        settings: Cached,
        prepare: Prepare,
        solve: Callable[..., Any],
        proven: bool,
    ) -> None:
        dependant: Dependant = context.dependant
        self._call = dependant.call
        others = [each for each in dependant.dependencies if each.call is not prepare]
        self._dependencies = Dependant(path=dependant.path, dependencies=others)
        self._parameters = dataclasses.replace(dependant, dependencies=[])
        self._otherwise = otherwise
        self._provider = context.dependency_overrides_provider
        self._settings = settings
        self._prepare = prepare
        self._solve = solve
        # The response is sent after what ends with the handler has ended, which may still fail.
        ends_before = any(map(_ends_before_the_response, tree(dependant)))
        self._may_be_written = settings.key is None and settings.edge is None and not ends_before and proven

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        reading = self._reading(request, scope)
        if not isinstance(reading, Reading):
            await self._otherwise(scope, receive, send)
            return
        setattr(request, READING, reading)
        response, written = None, False
        async with AsyncExitStack() as request_stack:
            scope["fastapi_inner_astack"] = request_stack
            async with AsyncExitStack() as function_stack:
                scope["fastapi_function_astack"] = function_stack
                solved = await self._solved(self._dependencies, request, request_stack)
                written = self._is_written(scope, reading, solved)
                if not written:
                    response = await self._called(request, request_stack, solved)
            if response is not None:
                await response(scope, receive, send)
        if response is None and not written:
            raise FastAPIError("a dependency with yield caught an exception and did not raise it again")

    def _reading(self, request: Request, scope: Scope) -> Reading | str | None:
        exchange, runtime = exchange_of(scope), getattr(request.app.state, STATE, None)
        if exchange is None or scope["method"] not in ("GET", "HEAD") or not isinstance(runtime, Runtime):
            return None
        if id(self._settings) not in runtime.bound:
            return None
        reading = self._prepare.reading(request, exchange, runtime)
        if not isinstance(reading, Reading):
            scope[PREPARED_KEY] = reading
        return reading

    def _is_written(self, scope: Scope, reading: Reading, solved: Any) -> bool:
        """Whether the stored response was written: the dependencies have read nothing that is in no key, and added
        nothing to the response."""
        stored: StoredResponse | None = scope.get(STORED_KEY)
        if stored is None or not self._may_be_written or reading.unknown or replay_of(scope) is not None:
            return False
        own = solved.response
        if solved.errors or own.headers.raw or own.status_code is not None or solved.background_tasks is not None:
            return False
        if getattr(self._provider, "dependency_overrides", None) or reading.reason() is not None:
            return False
        return stored.is_written(scope, reading.plan.base, reading.target)

    async def _called(self, request: Request, stack: AsyncExitStack, solved: Any) -> Response:
        """The response of the handler, whose own parameters are read now. Raises RequestValidationError."""
        given = {"response": solved.response, "background_tasks": solved.background_tasks}
        own = await self._solved(self._parameters, request, stack, **given)
        if solved.errors or own.errors:
            raise RequestValidationError([*solved.errors, *own.errors], body=None)
        response = await self._call(**solved.values, **own.values)  # type: ignore[misc]
        assert isinstance(response, Response)
        if response.background is None:
            response.background = own.background_tasks
        return response

    async def _solved(self, dependant: Dependant, request: Request, stack: AsyncExitStack, **given: Any) -> Any:
        return await self._solve(
            request=request,
            dependant=dependant,
            dependency_overrides_provider=self._provider,
            async_exit_stack=stack,
            embed_body_fields=False,
            **given,
        )


def _ends_before_the_response(node: Dependant) -> bool:
    """Whether it is a dependency with yield that ends with the handler: `Depends(…, scope="function")`."""
    call = node.call
    return getattr(node, "scope", None) == "function" and (_is_gen_callable(call) or _is_async_gen_callable(call))
