"""fastapi-cache2's own `@cache` on the gateway's store: that library's Backend, and its registration.

A handler written for fastapi-cache2 keeps its decorator; its entries are in the gateway's memory and its shared tier,
in the gateway's record format, and are cleared by the gateway's purges: nothing is scanned.

The backend works out three things that the library doesn't pass on. Which `get` a `set` belongs to: both run in their
caller's context, so the `get` leaves its stamp there, and a clear in between invalidates the value. The return type of
a function: its key builder sees the function. Whether the coder will fail, which the library turns into a 500: the
backend decodes stored data first, and unreadable data is a miss.
"""

from __future__ import annotations

import asyncio
import re
import weakref
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from inspect import isawaitable
from typing import Any
from uuid import uuid4

from fastapi.dependencies.utils import get_typed_return_annotation
from fastapi_cache import FastAPICache
from fastapi_cache.key_builder import default_key_builder
from fastapi_cache.types import Backend, KeyBuilder
from starlette.requests import Request
from starlette.responses import Response

from gateway.cache.engine import Engine
from gateway.cache.store import entry_name
from gateway.fastapi_cache2.coder import NOT_STORED, GatewayCoder, fitted, readable
from gateway.policy.entry import Entry, Life, decode_stored, encode
from gateway.policy.epochs import EVERYTHING, PurgeState, full_key_name, full_tag_name, key_name, route_name, tag_name
from gateway.policy.rules import MAX_LIFE

ROUTE = "fastapi-cache2"
"""The route that everything stored here belongs to, for purges."""
LEVELS = 8
"""How many of a key's namespaces, split at colons, can be cleared separately; deeper ones with the eighth."""
_NAME = "@fc2\n"  # neither an upstream's name nor a handler's, with which the engine's own keys begin
_FITS = ((b"fits", b"1"),)  # the stored value matched the return type of its function
_MAX_BEGUN = 64
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def register(
    engine: Engine,
    *,
    prefix: str = "gateway",
    expire: int | None = None,
    key_builder: KeyBuilder = default_key_builder,
    budget: float = 0.05,
) -> GatewayBackend:
    """`FastAPICache.init` with `engine`'s store. FastAPICache is one for the process: the last registration counts.

    `expire` (seconds) is for decorators that name none; None keeps for 7 days. `budget` (seconds) bounds what each
    call waits for the shared tier.
    """
    backend = GatewayBackend(engine, budget=budget)
    FastAPICache.reset()
    FastAPICache.init(
        backend, prefix=prefix, expire=expire, coder=GatewayCoder, key_builder=_NotingKeyBuilder(key_builder)
    )
    return backend


def unregister(engine: Engine) -> None:
    """Undo `register`, unless another has registered since."""
    backend = FastAPICache._backend
    if isinstance(backend, GatewayBackend) and backend.engine is engine:
        FastAPICache.reset()


# --- state of a call for its later steps ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Begun:
    """A `get`, after which the library may call the function and then `set`. The library doesn't connect the two, but
    both run in the caller's context."""

    backend: GatewayBackend
    key: str
    returns: Any
    started: float
    stamp: str


_begun: ContextVar[tuple[_Begun, ...]] = ContextVar("fastapi_cache2_begun", default=())
_returns: ContextVar[tuple[str, Any] | None] = ContextVar("fastapi_cache2_returns", default=None)


def _begin(begun: _Begun) -> None:
    # The library doesn't report that a call failed, so leftovers are bounded.
    others = [each for each in _begun.get() if (each.backend, each.key) != (begun.backend, begun.key)]
    _begun.set((*others[1 - _MAX_BEGUN :], begun))


def _ended(backend: GatewayBackend, key: str) -> _Begun | None:
    known = _begun.get()
    found = next((each for each in known if each.backend is backend and each.key == key), None)
    if found is not None:
        _begun.set(tuple(each for each in known if each is not found))
    return found


class _NotingKeyBuilder:
    """A key builder that records the return type of its function, by which the backend decodes stored data.

    It runs right before `get`, and is the only place where the library passes the function.
    """

    def __init__(self, build: KeyBuilder) -> None:
        self._build = build
        self._identities = _Identities()

    def __call__(
        self,
        function: Callable[..., Any],
        namespace: str = "",
        *,
        request: Request | None = None,
        response: Response | None = None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Awaitable[str] | str:
        key = self._build(function, namespace, request=request, response=response, args=args, kwargs=kwargs)
        if isawaitable(key):
            return self._later(key, function, request)
        if self._build is default_key_builder:
            key = "-".join((key, *self._identities.of((*args, *kwargs.values()))))
        return self._noted(key, function, request)

    async def _later(self, key: Awaitable[str], function: Callable[..., Any], request: Request | None) -> str:
        return self._noted(await key, function, request)

    def _noted(self, key: str, function: Callable[..., Any], request: Request | None) -> str:
        returns = _annotation(function)
        if returns is None and request is not None:
            returns = _response_model(function, request)
        _returns.set((key, returns))
        return key


class _Identities:
    """Names for objects whose repr contains their address.

    The library's own key is a digest of its arguments' reprs. The address of a deleted object is soon reused by
    another, whose request would then get the first one's entry.
    """

    def __init__(self) -> None:
        self._names: dict[int, tuple[weakref.ref[Any], str]] = {}

    def of(self, values: Sequence[object]) -> list[str]:
        if not _ADDRESS.search(repr(values)):
            return []
        return [self._name(value) for value in values if _ADDRESS.search(repr(value))]

    def _name(self, value: object) -> str:
        place = id(value)
        known = self._names.get(place)
        if known is not None and known[0]() is value:
            return known[1]
        name = uuid4().hex
        with suppress(TypeError):  # some can't be referred to weakly: they are new each time
            self._names[place] = (weakref.ref(value, lambda _: self._names.pop(place, None)), name)
        return name


@lru_cache(maxsize=1024)
def _annotation(function: Callable[..., Any]) -> Any:
    return get_typed_return_annotation(function)


def _response_model(function: Callable[..., Any], request: Request) -> Any:
    """The response model of the route whose handler `function` is."""
    route = request.scope.get("route")
    endpoint = getattr(route, "endpoint", None)
    while endpoint is not None and endpoint is not function:
        endpoint = getattr(endpoint, "__wrapped__", None)
    return getattr(route, "response_model", None) if endpoint is not None else None


# --- the backend -----------------------------------------------------------------------------------------------


class GatewayBackend(Backend):
    """fastapi-cache2's Backend on the two tiers of `engine`, memory first.

    Nothing here raises because the shared tier is away. What can't be read is counted in `engine.tiers.unreadable`.
    """

    def __init__(self, engine: Engine, *, budget: float = 0.05) -> None:
        self.engine = engine
        self._budget = budget

    def __repr__(self) -> str:
        return f"<GatewayBackend {self.engine!r}>"

    async def get_with_ttl(self, key: str) -> tuple[int, bytes | None]:
        """The value and its remaining life in whole seconds, or (0, None)."""
        noted = _returns.get()
        returns = noted[1] if noted is not None and noted[0] == key else None
        _begin(self._begun(key, returns))
        stored = await self._find(key)
        value = self._value(stored, returns) if stored is not None else None
        if stored is None or value is None:
            return 0, None
        return int(_end(stored) - self.engine.clock.now()), value

    async def get(self, key: str) -> bytes | None:
        return (await self.get_with_ttl(key))[1]

    async def set(self, key: str, value: bytes, expire: int | None = None) -> None:
        """Store `value` for `expire` seconds (None: 7 days), as of the `get` of `key` that went before in this context:
        a clear in between makes it void."""
        if value == NOT_STORED:
            return
        begun = _ended(self, key) or self._begun(key, None)
        life = MAX_LIFE if expire is None else min(float(expire), MAX_LIFE)
        stored = self._stored(begun, value, life)
        if self._valid(stored, key):
            self.engine.memory.put(stored)
            await self._share(stored, life)

    async def clear(self, namespace: str | None = None, key: str | None = None) -> int:
        """Invalidate entries and calls in progress: with a `key` only that key, else all keys that begin with
        `namespace` and a colon. Returns when all workers have confirmed it, after at most 2 s.

        `FastAPICache.clear` puts its prefix before the namespace and not before the key: the key may be complete, or
        the part after the namespace. Returns how many of the keys existed; 0 for a namespace, whose keys are not
        counted.
        """
        purges = self.engine.tiers.purges
        if key is None:
            if namespace:
                await purges.purge([full_tag_name(":".join(namespace.split(":")[:LEVELS]))], by=ROUTE)
            return 0
        whole = not namespace or key.startswith(f"{namespace}:")
        keys = (key,) if whole else (key, f"{namespace}:{key}")
        there = [await self._find(each) is not None for each in keys]
        await purges.purge([full_key_name(_NAME + each) for each in keys], by=ROUTE)
        for each in keys:
            self.engine.memory.remove(_NAME + each)
        return sum(there)

    # --- entries ---------------------------------------------------------------------------------------------

    def _begun(self, key: str, returns: Any) -> _Begun:
        return _Begun(self, key, returns, self.engine.clock.now(), self.engine.tiers.stamp())

    async def _find(self, key: str) -> Entry | None:
        name, memory = _NAME + key, self.engine.memory
        stored = memory.get(name)
        if stored is not None and self._valid(stored, key):
            return stored
        memory.remove(name)
        stored = await self._shared(name)
        if stored is None or not self._valid(stored, key):
            return None
        memory.put(stored)
        return stored

    def _valid(self, stored: Entry, key: str) -> bool:
        """Whether it lives still, and no purge of it happened since its call began, or could have been missed."""
        purges, now = self.engine.tiers.purges, self.engine.clock.now()
        distrusted = purges.distrusted_since(now)
        if now >= _end(stored) or (distrusted is not None and stored.started < distrusted):
            return False
        names = (EVERYTHING, route_name(ROUTE), key_name(stored.key), *map(tag_name, _namespaces(key)))
        return purges.epochs.judge(stored.stamp, stored.started, names)[0] is PurgeState.VALID

    def _stored(self, begun: _Begun, value: bytes, life: float) -> Entry:
        fits = fitted(value, begun.returns)
        name = _NAME + begun.key
        return Entry(
            key=name,
            primary=name,
            born=self.engine.clock.now(),
            started=begun.started,
            initial_age=0.0,
            status=200,
            headers=_FITS if fits is not None else (),
            body=bytes(value if fits is None else fits),
            life=Life(lifetime=life),
            route=ROUTE,
            stamp=begun.stamp,
        )

    def _value(self, stored: Entry, returns: Any) -> bytes | None:
        value = readable(stored.body, returns, fits=stored.headers == _FITS)
        if value is None:
            self.engine.tiers.unreadable += 1
        return value

    # --- the shared tier -------------------------------------------------------------------------------------

    async def _shared(self, name: str) -> Entry | None:
        try:
            async with asyncio.timeout(self._budget):
                (data,) = await self.engine.shared.read([entry_name(name)])
        except TimeoutError:
            return None
        if data is None:
            return None
        stored = decode_stored(data, name, self.engine.tiers.secret)
        if stored is None:
            self.engine.tiers.unreadable += 1
        return stored

    async def _share(self, stored: Entry, life: float) -> None:
        try:
            async with asyncio.timeout(self._budget):
                await self.engine.shared.write(
                    [(entry_name(stored.key), encode(stored, self.engine.tiers.secret), life)]
                )
        except TimeoutError:
            return


def _namespaces(key: str) -> list[str]:
    parts = key.split(":", LEVELS)
    return [":".join(parts[:end]) for end in range(1, len(parts))]


def _end(stored: Entry) -> float:
    return stored.born + (stored.life.lifetime or 0.0)
