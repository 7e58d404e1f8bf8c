"""Calls of plain functions behind the cache: `get_or_set`, and `@cached` on a function that is no route's handler.

    @cached(ttl="5m", tags=["rates:{currency}"])
    async def rates(currency: str) -> dict[str, float]: ...

The same engine as for handlers: one call for all that wait for its value, in the process and in the fleet; stale
windows, tags and purges. A value is stored as JSON and restored by the return annotation; one that would not be
restored equal is not stored. Without an app that has started there is no cache: the function is called.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread
from msgspec import structs

from gateway.cache.engine import Engine
from gateway.cache.request import CacheRequest, Route
from gateway.context import RequestContext
from gateway.http.headers import Headers
from gateway.http.path_template import render_tag
from gateway.observability.log import ONCE
from gateway.policy.keys import Keying, Plan, primary_key
from gateway.policy.rules import PLAIN
from gateway.routing.handler_key import Unwritable, written
from gateway.routing.handler_settings import Cached, Runtime, not_stored, settings_of
from gateway.routing.handler_tags import text_of
from gateway.routing.handler_value import Coder
from gateway.upstreams.response import Fetched, WholeBody

T = TypeVar("T")
logger = logging.getLogger("gateway")
_JSON = (b"content-type", b"application/json")
_THREADS = 40
"""Threads for sync functions, beside those of FastAPI's sync handlers, which may wait for them."""


class Raised(Exception):
    """A function raised `error`, which its callers get; the engine takes no error of a function's for an upstream's."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass
class FunctionCall:
    """One call: the origin of its value."""

    name: str
    deadline: float
    settings: Cached
    coder: Coder
    function: Callable[[], Awaitable[Any]]
    returned: tuple[Any] | None = None
    """The value, where this call made it."""

    def refusal(self) -> None:
        """None: a function is never full."""

    async def fetch(self, method: str, headers: Headers) -> Fetched:
        """Raises Raised."""
        return await self.fetched()

    async def fetched(self) -> Fetched:
        try:
            value = await self.function()
            self.returned = (value,)
            text = self.coder.written(value)
            fetched = _fetched(text) if text is not None else not_stored(_fetched(b""))
            return fetched if self.settings.by_value is None else self.settings.by_value.applied(value, fetched)
        except Exception as error:
            raise Raised(error) from error


def _fetched(text: bytes) -> Fetched:
    return Fetched(200, [_JSON, (b"content-length", b"%d" % len(text))], WholeBody(text))


class FunctionCache:
    """The calls of functions in one app. `runtime` returns what its handlers have now."""

    def __init__(self, engine: Engine, runtime: Callable[[], Runtime]) -> None:
        self._engine = engine
        self._runtime = runtime
        self._threads: anyio.CapacityLimiter | None = None
        self._told: set[str] = set()

    def is_handler(self, settings: Cached) -> bool:
        """Whether a route has the function: called directly, that is the plain function."""
        return id(settings) in self._runtime().bound

    async def value(self, settings: Cached, key: str, coder: Coder, tags: tuple[str, ...], function: Any) -> Any:
        """The value of a call, stored or made now. Raises what the function raises, and TimeoutError."""
        runtime, name = self._runtime(), settings.name
        runtime.functions.add(name)
        if runtime.off or settings.rules.off:
            return await function()
        call = FunctionCall(name, settings.deadline, settings, coder, function)
        primary = primary_key(settings.origin_name, key)
        max_body = runtime.max_body if settings.max_body is None else settings.max_body
        route = Route(name, settings.rules, Keying(vary=()), max_body, local=True)
        plan = Plan(primary, f"{primary}\n:call", ())
        request = CacheRequest(
            route=route,
            plan=plan,
            facts=PLAIN,
            headers=[],
            exchange=RequestContext("", time.perf_counter(), "GET", "", "http"),
            origin=call,
            past=call.fetched,
            wanted=structs.replace(route.selection, plan=plan, tags=tags),
        )
        try:
            answer = self._engine.at_hand(request) or await self._engine.answer(request)
        except Raised as raised:
            raise raised.error from None
        if call.returned is not None:
            return call.returned[0]
        if answer.status == 504:
            raise TimeoutError(f"{name} returned no value within {settings.deadline:g} s")
        if answer.status != 200:  # the cache is overloaded
            return await function()
        body = (
            answer.body if isinstance(answer.body, bytes) else b"".join([each async for each in answer.body.chunks()])
        )
        return coder.read(body)

    async def of_arguments(self, settings: Cached, coder: Coder, function: Any, args: Any, kwargs: Any) -> Any:
        """The value of `function(*args, **kwargs)`; its arguments are its key."""

        async def make() -> Any:
            if inspect.iscoroutinefunction(function):
                return await function(*args, **kwargs)
            return await self.in_thread(lambda: function(*args, **kwargs))

        bound = inspect.signature(function).bind(*args, **kwargs)
        bound.apply_defaults()
        try:
            key = self._key(settings, bound.arguments)
        except Unwritable as error:
            if settings.name not in self._told:
                self._told.add(settings.name)
                said = "calls of %s are not cached: %s; name what counts with key="
                logger.warning(said, settings.name, error, extra=ONCE)
            return await make()
        texts = {name: text_of(value) for name, value in bound.arguments.items()}
        tags = tuple(render_tag(tag, texts) for tag in settings.tags)
        return await self.value(settings, key, coder, tags, make)

    def _key(self, settings: Cached, arguments: dict[str, Any]) -> str:
        """Raises Unwritable."""
        secret = self._engine.identity_key
        if settings.key is None:
            return secret.digest("call", written(arguments))
        return settings.key.line(arguments, None, secret)

    async def in_thread(self, function: Callable[[], T]) -> T:
        if self._threads is None:
            self._threads = anyio.CapacityLimiter(_THREADS)
        return await anyio.to_thread.run_sync(function, limiter=self._threads)


class _Running:
    """The caches of the apps that have started in this process; functions use the one that started last."""

    def __init__(self) -> None:
        self._caches: list[FunctionCache] = []

    def begin(self, cache: FunctionCache) -> None:
        self._caches.append(cache)

    def end(self, cache: FunctionCache) -> None:
        if cache in self._caches:
            self._caches.remove(cache)

    @property
    def latest(self) -> FunctionCache | None:
        return self._caches[-1] if self._caches else None


running = _Running()


class Outside:
    """What a function under `@cached` does for callers other than its route."""

    def __init__(self, function: Callable[..., Any], settings: Cached, coder: Callable[[], Coder]) -> None:
        self._function, self._settings, self._coder = function, settings, coder

    def _cache(self) -> FunctionCache | None:
        cache = running.latest
        return None if cache is None or cache.is_handler(self._settings) else cache

    async def awaited(self, args: Any, kwargs: Any) -> Any:
        cache = self._cache()
        if cache is None:
            return await self._function(*args, **kwargs)
        return await cache.of_arguments(self._settings, self._coder(), self._function, args, kwargs)

    def called(self, args: Any, kwargs: Any) -> Any:
        """Of a sync function: cached where its thread may wait for the event loop, as in FastAPI's sync handlers."""
        cache = self._cache()
        if cache is None or not _may_wait():
            return self._function(*args, **kwargs)
        return anyio.from_thread.run(cache.of_arguments, self._settings, self._coder(), self._function, args, kwargs)


def _may_wait() -> bool:
    """Whether this is a thread that an event loop started for sync code."""
    try:
        anyio.from_thread.check_cancelled()
    except RuntimeError:
        return False
    return True


async def get_or_set(
    key: str,
    make: Callable[[], T | Awaitable[T]],
    *,
    ttl: str | timedelta | Callable[[Any], str | int | float | timedelta | None],
    stale_while_revalidate: str | timedelta | None = None,
    stale_if_error: str | timedelta | None = None,
    tags: Sequence[str] = (),
    deadline: str | timedelta = "30s",
    when: Callable[[Any], object] | None = None,
    returns: Any = None,
) -> T:
    """The value stored for `key`; where there is none, that of `make()`, which is then stored for `ttl`.

    The arguments are those of `@cached`. Of all that ask for a key at once, in all workers, one calls `make`. `returns`
    is the type by which the value is restored; default: the return annotation of `make`. Its route name, for purges and
    metrics, is `get_or_set`.

    Raises what `make` raises, TimeoutError after `deadline`, and ValueError for a wrong argument.
    """
    given = {
        "ttl": ttl,
        "stale_while_revalidate": stale_while_revalidate,
        "stale_if_error": stale_if_error,
        "tags": list(tags),
        "deadline": deadline,
    }
    settings = settings_of(get_or_set, None, when, given)

    async def made() -> Any:
        cache = running.latest
        if inspect.iscoroutinefunction(make) or cache is None:
            value = make()
        else:
            value = await cache.in_thread(make)
        return await value if inspect.isawaitable(value) else value

    settings.name = "get_or_set"
    cache = running.latest
    if cache is None:
        return await made()  # type: ignore[no-any-return]
    return await cache.value(settings, key, Coder(make, returns), settings.tags, made)  # type: ignore[no-any-return]
