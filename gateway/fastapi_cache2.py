"""fastapi-cache2's own `@cache` on the gateway's store: that library's Backend and Coder, and their registration.

A handler written for fastapi-cache2 keeps its decorator; what it caches lies in the gateway's memory and its shared
tier, in the gateway's record format, and is cleared by the gateway's purges: nothing is scanned.

Three things the library doesn't tell are found out here. Which `get` a `set` belongs to: both run in their caller's
context, so the `get` leaves its stamp there, and a clear in between makes the value void. What type a function returns:
its key builder sees the function. Whether the coder will fail, which the library answers with a 500: the backend has
it read what is stored first, and what can't be read is a miss.
"""

from __future__ import annotations

import asyncio
import re
import weakref
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, fields, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from inspect import isawaitable
from typing import Any
from uuid import UUID, uuid4

import msgspec
from fastapi.dependencies.utils import get_typed_return_annotation
from fastapi.encoders import jsonable_encoder
from fastapi_cache import FastAPICache
from fastapi_cache.coder import Coder
from fastapi_cache.key_builder import default_key_builder
from fastapi_cache.types import Backend, KeyBuilder
from pydantic import BaseModel, RootModel, SecretBytes, SecretStr, TypeAdapter
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from xxhash import xxh3_64_intdigest

from .engine import Engine
from .epochs import EVERYTHING, State, key_name, route_name, tag_name
from .headers import CacheControl, has
from .policy import MAX_LIFE
from .record import Life, Stored, decode_stored, encode
from .tiers import entry_name

ROUTE = "fastapi-cache2"
"""The route that everything stored here belongs to, for purges."""
LEVELS = 8
"""How many of a key's namespaces, cut at colons, can be cleared each by itself; deeper ones with the eighth."""
_NAME = "@fc2\n"  # neither an upstream's name nor a handler's, with which the engine's own keys begin
_FITS = ((b"fits", b"1"),)  # what is stored fitted the type that its function returns
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


# --- what a call leaves for its later steps ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Begun:
    """A `get`, after which the library may call the function and then `set`. The library doesn't say that the two
    belong together, but both run in the caller's context."""

    backend: GatewayBackend
    key: str
    returns: Any
    started: float
    stamp: str


_begun: ContextVar[tuple[_Begun, ...]] = ContextVar("fastapi_cache2_begun", default=())
_returns: ContextVar[tuple[str, Any] | None] = ContextVar("fastapi_cache2_returns", default=None)


def _begin(begun: _Begun) -> None:
    # The library never tells that a call failed, so what is left over is bounded.
    others = [each for each in _begun.get() if (each.backend, each.key) != (begun.backend, begun.key)]
    _begun.set((*others[1 - _MAX_BEGUN :], begun))


def _ended(backend: GatewayBackend, key: str) -> _Begun | None:
    known = _begun.get()
    found = next((each for each in known if each.backend is backend and each.key == key), None)
    if found is not None:
        _begun.set(tuple(each for each in known if each is not found))
    return found


class _NotingKeyBuilder:
    """A key builder that notes the type its function returns, by which the backend then reads what is stored.

    It runs right before `get`, and is the one place where the library shows the function.
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
    """Names for objects whose repr tells their address.

    The library's own key is a digest of its arguments' reprs. The address of an object that is gone is soon another's,
    whose request would then be answered by what was stored for the first.
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
        if value == _NOT_STORED:
            return
        begun = _ended(self, key) or self._begun(key, None)
        life = MAX_LIFE if expire is None else min(float(expire), MAX_LIFE)
        stored = self._stored(begun, value, life)
        if self._valid(stored, key):
            self.engine.memory.put(stored)
            await self._share(stored, life)

    async def clear(self, namespace: str | None = None, key: str | None = None) -> int:
        """Make void what is stored, and what is being called for: with a `key` that key alone, else all keys that
        begin with `namespace` and a colon. Returns when all workers have heard of it, after 2 s at most.

        `FastAPICache.clear` puts its prefix before the namespace and not before the key: the key may be whole, or what
        follows the namespace. Gives how many of the keys were there; 0 for a namespace, whose keys nobody counts.
        """
        purges = self.engine.tiers.purges
        if key is None:
            if namespace:
                await purges.purge([tag_name(":".join(namespace.split(":")[:LEVELS]))], by=ROUTE)
            return 0
        whole = not namespace or key.startswith(f"{namespace}:")
        keys = (key,) if whole else (key, f"{namespace}:{key}")
        there = [await self._find(each) is not None for each in keys]
        await purges.purge([key_name(_NAME + each) for each in keys], by=ROUTE)
        for each in keys:
            self.engine.memory.remove(_NAME + each)
        return sum(there)

    # --- entries ---------------------------------------------------------------------------------------------

    def _begun(self, key: str, returns: Any) -> _Begun:
        return _Begun(self, key, returns, self.engine.clock.now(), self.engine.tiers.stamp())

    async def _find(self, key: str) -> Stored | None:
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

    def _valid(self, stored: Stored, key: str) -> bool:
        """Whether it lives still, and no purge of it happened since its call began, or could have been missed."""
        purges, now = self.engine.tiers.purges, self.engine.clock.now()
        distrusted = purges.distrusted_since(now)
        if now >= _end(stored) or (distrusted is not None and stored.started < distrusted):
            return False
        names = (EVERYTHING, route_name(ROUTE), key_name(stored.key), *map(tag_name, _namespaces(key)))
        return purges.epochs.judge(stored.stamp, stored.started, names)[0] is State.VALID

    def _stored(self, begun: _Begun, value: bytes, life: float) -> Stored:
        fitted = _fitted(value, begun.returns)
        name = _NAME + begun.key
        return Stored(
            key=name,
            primary=name,
            born=self.engine.clock.now(),
            started=begun.started,
            initial_age=0.0,
            status=200,
            headers=_FITS if fitted is not None else (),
            body=bytes(value if fitted is None else fitted),
            life=Life(lifetime=life),
            route=ROUTE,
            stamp=begun.stamp,
        )

    def _value(self, stored: Stored, returns: Any) -> bytes | None:
        """The value for the library's decorator, which answers 500 where the coder then fails: so it is read here.

        What fitted its function's type when it was stored and doesn't now (the code is another) is a miss. What another
        coder made is that coder's affair.
        """
        if not stored.body.startswith(_FAMILY):
            return stored.body
        value = Encoded(stored.body)
        readable = value.content is not None
        if isinstance(value.content, _Data) and returns is not None:
            try:
                value.made = _restored(value.content, returns)
            except _Unfit:
                readable = stored.headers != _FITS
        if not readable:
            self.engine.tiers.unreadable += 1
            return None
        return value

    # --- the shared tier -------------------------------------------------------------------------------------

    async def _shared(self, name: str) -> Stored | None:
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

    async def _share(self, stored: Stored, life: float) -> None:
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


def _end(stored: Stored) -> float:
    return stored.born + (stored.life.lifetime or 0.0)


# --- the coder -------------------------------------------------------------------------------------------------


class _Data(msgspec.Struct, frozen=True, array_like=True, tag="data"):
    """A returned value. `tree` holds it in full, models by their fields; where there are models, `plain` is what
    FastAPI makes of it, for when no type is known that gives them back."""

    tree: bytes
    models: bool
    plain: bytes | None


class _Answer(msgspec.Struct, frozen=True, array_like=True, tag="answer"):
    """A returned Response."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class _Unfit(ValueError):
    """Stored data that can't be read, or isn't of the type asked for."""


class _NotStored(Exception):
    """A value that must not be stored, or can't be."""


_FAMILY = b"FC2"
_MAGIC = _FAMILY + b"\x01"
_NOT_STORED = _MAGIC + b"\xc0"
_NOTHING: Any = object()
_encoder = msgspec.msgpack.Encoder()
_contents: msgspec.msgpack.Decoder[_Data | _Answer] = msgspec.msgpack.Decoder(_Data | _Answer)


class Encoded(bytes):
    """A value as GatewayCoder stores it.

    fastapi-cache2 makes its ETag of `hash()`, which Python salts by the process; this hash is of the content alone,
    so that an ETag holds in every process.
    """

    content: _Data | _Answer | None
    made: Any

    def __new__(cls, data: bytes) -> Encoded:
        value = super().__new__(cls, data)
        value.content = _content(data)
        value.made = _NOTHING
        return value

    def __hash__(self) -> int:
        return xxh3_64_intdigest(self.content.tree if isinstance(self.content, _Data) else bytes(self))


class GatewayCoder(Coder):
    """Encodes what FastAPI handlers return, so that a hit gives what the call gave: models, dataclasses, plain data,
    bytes, and responses with their status and headers. Nothing in what is stored is ever executed.

    Not stored: responses that stream, set a cookie, say `private` or `no-store`, are partial (206), 304, or a failure
    (5xx); iterators; and values with pydantic secrets in them.
    """

    @classmethod
    def encode(cls, value: Any) -> bytes:
        try:
            content = _answer(value) if isinstance(value, Response) else _data(value)
            return Encoded(_MAGIC + _encoder.encode(content))
        except (_NotStored, TypeError, ValueError, OverflowError, RecursionError):
            return _NOT_STORED

    @classmethod
    def decode(cls, value: bytes) -> Any:
        """Plain data, or the Response. Raises ValueError for what `encode` didn't make."""
        content = _content_of(value)
        return _response(content) if isinstance(content, _Answer) else _plain(content)

    @classmethod
    def decode_as_type(cls, value: bytes, *, type_: Any) -> Any:
        """The value validated into `type_` (models come back as models), or plain data where it can't be, as
        the library's own JsonCoder always gives. Raises ValueError for what `encode` didn't make."""
        content = _content_of(value)
        if isinstance(value, Encoded) and value.made is not _NOTHING:
            return value.made
        if isinstance(content, _Answer) or type_ is None:
            return cls.decode(value)
        try:
            return _restored(content, type_)
        except _Unfit:
            return _plain(content)


def _content(data: bytes) -> _Data | _Answer | None:
    if data[: len(_MAGIC)] != _MAGIC:
        return None
    try:
        return _contents.decode(memoryview(data)[len(_MAGIC) :])
    except (msgspec.DecodeError, RecursionError):
        return None


def _content_of(value: bytes) -> _Data | _Answer:
    content = value.content if isinstance(value, Encoded) else _content(value)
    if content is None:
        raise _Unfit("this is no value that GatewayCoder encoded")
    return content


def _fitted(value: bytes, returns: Any) -> Encoded | None:
    """`value` without its plain form, which nobody needs where it fits the type that its function returns."""
    if returns is None or not isinstance(value, Encoded) or not isinstance(value.content, _Data):
        return None
    try:
        _restored(value.content, returns)
    except _Unfit:
        return None
    return Encoded(_MAGIC + _encoder.encode(msgspec.structs.replace(value.content, plain=None)))


# --- responses -----------------------------------------------------------------------------------------------


def _answer(response: Response) -> _Answer:
    body = getattr(response, "body", None)
    whole = type(response).__call__ is Response.__call__ or isinstance(response, HTMLResponse)
    if not whole or not isinstance(body, bytes | memoryview):
        raise _NotStored("the response streams")
    headers = [(name.lower(), value) for name, value in response.raw_headers]
    directives = CacheControl.of(headers)
    if has(headers, b"set-cookie") or "private" in directives or "no-store" in directives:
        raise _NotStored("the response is for one client")
    if response.status_code in (206, 304) or response.status_code >= 500:
        raise _NotStored("the response does not say what the resource is")
    return _Answer(response.status_code, headers, bytes(body))


def _response(answer: _Answer) -> Response:
    response = Response(answer.body, status_code=answer.status)
    response.raw_headers = list(answer.headers)
    return response


# --- data ------------------------------------------------------------------------------------------------------


class _Fields(dict[str, Any]):
    """The fields of a model or dataclass, as read: of which class, and which of them had not been set."""

    of: str = ""
    unset: Sequence[str] = ()


_MODEL, _PAIRS = 1, 2
_SCALARS: tuple[tuple[int, type, Callable[[Any], str], Callable[[str], Any]], ...] = (
    (3, datetime, datetime.isoformat, datetime.fromisoformat),
    (4, date, date.isoformat, date.fromisoformat),
    (5, time, time.isoformat, time.fromisoformat),
    (6, timedelta, lambda d: f"{d.days} {d.seconds} {d.microseconds}", lambda s: timedelta(*map(int, s.split()))),
    (7, Decimal, str, Decimal),
    (8, UUID, str, UUID),
    (9, int, str, int),
)
_READ_SCALAR = {code: read for code, _, _, read in _SCALARS}
_NATIVE = frozenset((type(None), bool, float, str, bytes))


def _data(value: Any) -> _Data:
    writer = _TreeWriter()
    tree = _encoder.encode(writer.node(value))
    plain = _encoder.encode(_TreeWriter().node(jsonable_encoder(value))) if writer.models else None
    return _Data(tree, writer.models, plain)


class _TreeWriter:
    """Makes MessagePack's own types of a value, and extensions of what it has no type for.

    Not msgspec's own conversion of datetimes (it turns them to UTC) and Decimals (to text): what a handler without a
    return type gives must come back as it was.
    """

    def __init__(self) -> None:
        self.models = False

    def node(self, value: Any) -> Any:
        if type(value) in _NATIVE:
            return value
        if isinstance(value, Enum):
            return self.node(value.value)
        if isinstance(value, RootModel):
            self.models = True
            return self.node(value.root)
        if isinstance(value, BaseModel):
            return self._model(value)
        if is_dataclass(value) and not isinstance(value, type):
            named = {field.name: getattr(value, field.name) for field in fields(value)}
            return self._fields(value, named, [])
        if isinstance(value, Mapping):
            return self._mapping(value)
        if isinstance(value, list | tuple | set | frozenset | deque):
            return [self.node(each) for each in value]
        return self._scalar(value)

    def _model(self, value: BaseModel) -> Any:
        declared = type(value).model_fields
        named = {name: each for name, each in value.__dict__.items() if name in declared}
        unset = [name for name in named if name not in value.model_fields_set]
        return self._fields(value, named | (value.model_extra or {}), unset)

    def _fields(self, value: object, named: dict[str, Any], unset: Sequence[str]) -> Any:
        self.models = True
        nodes = {name: self.node(each) for name, each in named.items()}
        return msgspec.msgpack.Ext(_MODEL, _encoder.encode((type(value).__qualname__, unset, nodes)))

    def _mapping(self, value: Mapping[Any, Any]) -> Any:
        pairs = [(self.node(key), self.node(each)) for key, each in value.items()]
        if any(isinstance(key, msgspec.msgpack.Ext) for key, _ in pairs):
            return msgspec.msgpack.Ext(_PAIRS, _encoder.encode(pairs))
        return dict(pairs)

    def _scalar(self, value: Any) -> Any:
        if isinstance(value, int) and -(2**63) <= value < 2**64:
            return int(value)
        for code, kind, write, _ in _SCALARS:
            if isinstance(value, kind):
                return msgspec.msgpack.Ext(code, write(value).encode("ascii"))
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, float):
            return float(value)
        if isinstance(value, bytes | bytearray | memoryview):
            return bytes(value)
        if isinstance(value, SecretStr | SecretBytes | Iterator | AsyncIterator | Awaitable):
            raise _NotStored(f"a {type(value).__name__}")
        return self.node(jsonable_encoder(value))


def _read_extension(code: int, data: memoryview) -> Any:
    if code == _PAIRS:
        return dict(_trees.decode(data))
    if code != _MODEL:
        return _READ_SCALAR[code](str(data, "ascii"))
    of, unset, named = _trees.decode(data)
    node = _Fields(named)
    node.of, node.unset = of, unset
    return node


_trees: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(ext_hook=_read_extension)


def _tree(data: bytes) -> Any:
    try:
        return _trees.decode(data)
    except (msgspec.DecodeError, ValueError, TypeError, KeyError, ArithmeticError, RecursionError) as error:
        raise _Unfit(f"unreadable data: {error}") from error


def _plain(content: _Data) -> Any:
    return _tree(content.tree if content.plain is None else content.plain)


def _restored(content: _Data, kind: Any) -> Any:
    """The value, of the type `kind`. Raises _Unfit where it isn't one, or its models would be others."""
    tree = _tree(content.tree)
    try:
        made = _adapter(kind).validate_python(tree, strict=False, by_alias=True, by_name=True)
    except Exception as error:
        # An application's validators run here, and may raise what they like: the entry is a miss, and counted.
        raise _Unfit(f"no {kind}: {error}") from error
    if content.models:
        _settle(tree, made)
    return made


def _settle(node: Any, made: Any) -> None:
    """Check that every model came back as one of its class, and make unset again what had not been set."""
    if isinstance(made, RootModel):
        _settle(node, made.root)
    elif isinstance(node, _Fields):
        if type(made).__qualname__ != node.of:
            raise _Unfit(f"a {type(made).__qualname__}, where there was a {node.of}")
        if isinstance(made, BaseModel):
            made.model_fields_set.difference_update(node.unset)
        for name, each in node.items():
            _settle(each, getattr(made, name, None))
    elif isinstance(node, dict):
        for name, each in node.items():
            _settle(each, made.get(name) if isinstance(made, dict) else None)
    elif isinstance(node, list):
        parts = made if isinstance(made, list | tuple | deque) else ()
        for position, each in enumerate(node):
            _settle(each, parts[position] if position < len(parts) else None)


def _adapter(kind: Any) -> TypeAdapter[Any]:
    try:
        return _known_adapter(kind)
    except TypeError:  # metadata that has no hash
        return TypeAdapter(kind)


@lru_cache(maxsize=1024)
def _known_adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
