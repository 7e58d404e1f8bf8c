"""The endpoint that `@cached` makes of a handler: its signature for FastAPI, and how it is called.

A route calls it with FastAPI's arguments, and gets the cache's response. Any other caller, such as another handler or a
test, calls the plain function. Parameters that are injected into the signature, which only FastAPI fills, distinguish
the two.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
import types
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Protocol, get_args, get_origin

import anyio.from_thread
from fastapi import Depends, Request
from fastapi.dependencies.models import _is_async_gen_callable, _is_coroutine_callable, _is_gen_callable
from fastapi.dependencies.utils import get_typed_signature
from starlette.responses import Response
from starlette.routing import get_name

from gateway.routing.handler_inputs import OWN
from gateway.routing.handler_value import Coder

Serve = Callable[["Called"], Coroutine[Any, Any, Any]]
"""Handles calls by a route."""


class Elsewhere(Protocol):
    """Handles calls by others than a route, or FastAPI's for a dependency."""

    async def awaited(self, args: Any, kwargs: Any) -> Any: ...

    def called(self, args: Any, kwargs: Any) -> Any: ...


@dataclass(frozen=True)
class Called:
    """A call by a route: the handler with its arguments, and the request and response that FastAPI gave it."""

    function: functools.partial[Any]
    request: Request
    response: Response
    wrapped: Wrapped
    endpoint: Callable[..., Any]

    @cached_property
    def decorated(self) -> bool:
        """Whether a decorator stands between the route and `@cached`, which takes what the endpoint returns."""
        return bool(decorators_above(self.request.scope.get("endpoint"), self.endpoint))


@dataclass(frozen=True)
class Wrapped:
    """A handler, and where FastAPI puts the request and the response; `injected` are parameters of ours."""

    function: Callable[..., Any]
    request: str
    response: str
    injected: tuple[inspect.Parameter, ...]
    is_coroutine: bool

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Wrapped:
        """Raises ValueError if it is a generator."""
        if _is_gen_callable(function) or _is_async_gen_callable(function):
            raise ValueError(
                "the handler is a generator, so FastAPI streams its output and there is no complete response to store: "
                "return a list or a StreamingResponse, or remove @cached"
            )
        request, response = _place(function, Request), _place(function, Response)
        missing = (_REQUEST if request is None else None, _RESPONSE if response is None else None)
        injected = tuple(each for each in missing if each is not None) or (_MARKER,)
        return cls(
            function,
            request or _REQUEST.name,
            response or _RESPONSE.name,
            injected,
            _is_coroutine_callable(function),
        )

    @cached_property
    def coder(self) -> Coder:
        return Coder(self.function)

    @property
    def injected_request(self) -> str | None:
        return _REQUEST.name if _REQUEST in self.injected else None

    @property
    def signature(self) -> inspect.Signature:
        signature = inspect.signature(self.function)
        parameters = [*signature.parameters.values()]
        at = next((i for i, p in enumerate(parameters) if p.kind is inspect.Parameter.VAR_KEYWORD), len(parameters))
        parameters[at:at] = self.injected
        return signature.replace(parameters=parameters)

    def called(self, endpoint: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Called | None:
        """The call by a route that leads to `endpoint`; None for any other caller."""
        if self.injected[0].name not in kwargs:
            return None
        request, response = kwargs[self.request], kwargs[self.response]
        for each in self.injected:
            del kwargs[each.name]
        if not any(each is endpoint for each in layers(request.scope.get("endpoint"))):
            return None  # as a dependency
        function = functools.partial(self.function, *args, **kwargs)
        return Called(function, request, response, self, endpoint)


def endpoint_of(wrapped: Wrapped, serve: Serve, elsewhere: Elsewhere) -> Callable[..., Any]:
    """The replacement of the handler: an async function for an async one, else a function whose result FastAPI
    awaits."""
    function, marker = wrapped.function, wrapped.injected[0].name
    if not wrapped.is_coroutine:
        endpoint: Any = _Endpoint(wrapped, serve, elsewhere)
    else:

        async def endpoint(*args: Any, **kwargs: Any) -> Any:
            if marker not in kwargs:
                return await elsewhere.awaited(args, kwargs)
            called = wrapped.called(endpoint, args, kwargs)
            return await (function(*args, **kwargs) if called is None else serve(called))

    functools.update_wrapper(endpoint, function)
    endpoint.__name__ = get_name(function)
    endpoint.__signature__ = wrapped.signature
    return endpoint  # type: ignore[no-any-return]


class _Endpoint:
    """For a sync handler. A route awaits it, so that hits need no thread; other callers get the function's return
    value."""

    def __init__(self, wrapped: Wrapped, serve: Serve, elsewhere: Elsewhere) -> None:
        self._wrapped, self._serve, self._elsewhere = wrapped, serve, elsewhere

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._wrapped.injected[0].name not in kwargs:
            return self._elsewhere.called(args, kwargs)
        called = self._wrapped.called(self, args, kwargs)
        if called is None:
            return self._wrapped.function(*args, **kwargs)
        try:
            asyncio.get_running_loop()
        except RuntimeError:  # a sync decorator above runs in a thread
            return anyio.from_thread.run(self._serve, called)
        return self._serve(called)


def _awaited(function: Any) -> None:
    """Makes FastAPI await a function's result, though it is not `async`."""
    if sys.version_info >= (3, 12):
        inspect.markcoroutinefunction(function)
    else:
        function._is_coroutine = vars(asyncio.coroutines)["_is_coroutine"]


_awaited(_Endpoint.__call__)


# --- parameters --------------------------------------------------------------------------------------------


async def _nothing() -> None:
    """What FastAPI solves for an endpoint with its own Request and Response, which identifies a route's call."""


setattr(_nothing, OWN, True)
_OURS = inspect.Parameter.KEYWORD_ONLY
_REQUEST = inspect.Parameter("gateway_request", _OURS, annotation=Request)
_RESPONSE = inspect.Parameter("gateway_response", _OURS, annotation=Response)
_MARKER = inspect.Parameter("gateway_call", _OURS, annotation=Annotated[None, Depends(_nothing)])


def _place(function: Callable[..., Any], kind: type) -> str | None:
    """The last of the handler's parameters that FastAPI fills with a `kind`. As in FastAPI, an annotation that can't be
    evaluated (an import under TYPE_CHECKING) is none."""
    found = None
    for parameter in get_typed_signature(function).parameters.values():
        annotation = parameter.annotation
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        if isinstance(annotation, type) and issubclass(annotation, kind):
            found = parameter.name
    return found


# --- layers ------------------------------------------------------------------------------------------------


def layers(endpoint: Any) -> Iterator[Any]:
    """An endpoint, and what it wraps: bound methods, partials, decorators with `__wrapped__`."""
    while endpoint is not None:
        yield endpoint
        own = vars(endpoint) if hasattr(endpoint, "__dict__") else {}
        if isinstance(endpoint, types.MethodType):
            endpoint = endpoint.__func__
        elif isinstance(endpoint, functools.partial):
            endpoint = endpoint.func
        else:
            endpoint = own.get("__wrapped__")


def decorators_above(endpoint: Any, cached: Any) -> list[Any]:
    """The functions of decorators that stand between a route's endpoint and what `@cached` made."""
    above = []
    for each in layers(endpoint):
        if each is cached:
            break
        if not isinstance(each, types.MethodType | functools.partial):
            above.append(each)
    return above


def deaf(endpoint: Any, cached: Any, injected: str) -> list[str]:
    """The decorators above that don't pass on unknown arguments, and so can't pass on the parameter `injected`."""
    found = []
    for each in decorators_above(endpoint, cached):
        code = getattr(each, "__code__", None)
        if code is not None and not code.co_flags & inspect.CO_VARKEYWORDS and injected not in code.co_varnames:
            found.append(code.co_qualname)
    return found
