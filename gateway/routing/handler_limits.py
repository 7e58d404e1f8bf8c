"""Rate limits of Python handlers: what counts their requests, for `@cached(rate_limits=[...])` and `rate_limited`.

A request is counted once, after its credential is verified and before the cache is read, by a dependency that is put
into the handler's tree. Limits with `counts: misses` count what the cache can't answer; of a handler without `@cached`,
each request. Refreshes behind a stale response count for nobody.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import get_dependant

from gateway.config.models import Config
from gateway.config.rate_limits import unusable_limits
from gateway.context import exchange_of
from gateway.errors import LimitReached
from gateway.limits.limiter import Limiter
from gateway.limits.route_limits import RouteLimits
from gateway.routing.admitting import is_preflight, over_limit
from gateway.routing.handler_inputs import LIMITS, OWN
from gateway.routing.handler_replay import replay_of
from gateway.routing.handler_settings import Cached, Runtime, runtime_of
from gateway.routing.principal import ASKED_KEY, Admit, principal
from gateway.routing.responses import AnswerResponse, RaisedAnswer

COUNTED_KEY = "gateway.counted"
"""The scope key of a request that is counted."""


class RateLimited:
    """Names the limits of the handlers that depend on it."""

    def __init__(self, names: tuple[str, ...]) -> None:
        setattr(self, LIMITS, names)
        setattr(self, OWN, True)

    async def __call__(self) -> None:
        return None


def rate_limited(*names: str) -> Any:
    """A dependency, for a router or a handler: its requests are counted by these limits of the setting `rate_limits`,
    and get 429 beyond them. Raises ValueError without a name; an unknown name is found when the app is made."""
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError('rate_limited requires names of the setting `rate_limits`, such as rate_limited("user")')
    return Depends(RateLimited(names))


def limits_of_handler(
    dependant: Dependant, settings: Cached | None, config: Config, limiter: Limiter, *, identified: bool
) -> RouteLimits | None:
    """The limits that a handler names, by its tree of dependencies and its arguments of `@cached`; None if there are
    none. `identified` is whether it verifies credentials. Raises ValueError for one that it can't have."""
    named = [*(settings.rate_limits if settings is not None else ()), *_named(dependant)]
    for _, message in unusable_limits(named, config.rate_limits, identified=identified):
        raise ValueError(message)
    for name in named:
        if config.rate_limits[name].counts == "refused":
            raise ValueError(f"{name} counts refused credentials, which only declared routes can")
    return RouteLimits.of(config, named, limiter)


def _named(dependant: Dependant) -> Iterator[str]:
    for child in dependant.dependencies:
        yield from getattr(child.call, LIMITS, ())
        yield from _named(child)


class _Ask:
    """Says, before the principal is asked for, what its handler asks of it."""

    def __init__(self, of: Dependant) -> None:
        self._of = of
        setattr(self, OWN, True)

    async def __call__(self, request: Request) -> None:
        request.scope.setdefault(ASKED_KEY, runtime_of(request).identified[id(self._of)])


class Count:
    """A dependency that counts requests, before all others but the one that admits them. `of` is the tree of
    dependencies whose limits it counts by; with `verifying` it has the principal verified first."""

    def __init__(self, of: Dependant, *, cached: bool, verifying: bool) -> None:
        self._of, self._cached = of, cached
        setattr(self, LIMITS, ())
        setattr(self, OWN, True)
        annotations: dict[str, Any] = {"request": Request}
        if verifying:
            annotations["asked"] = Annotated[None, Depends(_Ask(of))]
            annotations["who"] = Annotated[Any, Depends(principal)]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        self.__signature__ = inspect.Signature(
            [inspect.Parameter(name, kind, annotation=annotation) for name, annotation in annotations.items()]
        )

    async def __call__(self, request: Request, asked: None = None, who: Any = None) -> None:
        """Raises RaisedAnswer."""
        exchange = exchange_of(request.scope)
        if exchange is not None and who is not None:
            exchange.principal = who
        await count(request, runtime_of(request).limited[id(self._of)], cached=self._cached)


def instrument_limits(dependant: Dependant, *, cached: bool, verifying: bool) -> None:
    """Have a handler's requests counted before any other of its dependencies is solved, once they are admitted."""
    if any(isinstance(child.call, Count) for child in dependant.dependencies):
        return
    counting = Count(dependant, cached=cached, verifying=verifying and not cached)
    at = sum(isinstance(child.call, Admit) for child in dependant.dependencies[:1])
    dependant.dependencies.insert(at, get_dependant(path=dependant.path or "/", call=counting))


async def count(request: Request, limits: RouteLimits, *, cached: bool) -> None:
    """Count a request by the limits that count all; and by those that count misses if the cache can't answer it. Raises
    RaisedAnswer, with a 429, for one beyond them."""
    scope, exchange = request.scope, exchange_of(request.scope)
    if exchange is None or COUNTED_KEY in scope or is_preflight(exchange) or replay_of(scope) is not None:
        return
    scope[COUNTED_KEY] = True
    reached = await limits.before_cache(exchange)
    if reached is not None:
        raise _answer(request, reached)
    if not cached or request.method not in ("GET", "HEAD"):
        await count_miss(request)


async def count_miss(request: Request) -> None:
    """Count a request that the cache can't answer. Raises RaisedAnswer."""
    exchange = exchange_of(request.scope)
    if exchange is not None and exchange.allowance is not None and replay_of(request.scope) is None:
        reached = await exchange.allowance.refusal(exchange)
        if reached is not None:
            raise _answer(request, reached)


async def count_late(request: Request, settings: Cached) -> None:
    """Count a request that reached a `@cached` handler by a route which wasn't prepared."""
    runtime: Runtime = runtime_of(request)
    if id(settings) in runtime.limited:
        await count(request, runtime.limited[id(settings)], cached=True)


def _answer(request: Request, reached: LimitReached) -> RaisedAnswer:
    exchange = exchange_of(request.scope)
    assert exchange is not None
    return RaisedAnswer(AnswerResponse(over_limit(exchange, reached, runtime_of(request).metrics)))
