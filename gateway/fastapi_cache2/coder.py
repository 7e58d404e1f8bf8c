"""Encodes what FastAPI handlers return as MessagePack, and decodes it: models, dataclasses, plain data. Nothing of it
is executed.

A value is a tree of MessagePack's own types, and of extensions for other types: the fields of a model with its class
name, mappings with keys that aren't text, datetimes, numbers of any size. A type turns it into models again.

fastapi-cache2's Coder: a handler's return value, data or a response, as the stored bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from typing import Any
from uuid import UUID

import msgspec
from fastapi.encoders import jsonable_encoder
from fastapi_cache.coder import Coder
from pydantic import BaseModel, RootModel, SecretBytes, SecretStr, TypeAdapter
from starlette.responses import HTMLResponse, Response
from xxhash import xxh3_64_intdigest

from gateway.http.headers import CacheControl, has

_tree_encoder = msgspec.msgpack.Encoder()


class Data(msgspec.Struct, frozen=True, array_like=True, tag="data"):
    """A returned value. `tree` holds it in full, models by their fields; where there are models, `plain` is what
    FastAPI makes of it, for when no type is known that gives them back."""

    tree: bytes
    models: bool
    plain: bytes | None


class Unfit(ValueError):
    """Stored data is unreadable, or isn't of the expected type."""


class NotStored(Exception):
    """A value that must not be stored, or can't be."""


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


def data_of(value: Any) -> Data:
    writer = _TreeWriter()
    tree = _tree_encoder.encode(writer.node(value))
    plain = _tree_encoder.encode(_TreeWriter().node(jsonable_encoder(value))) if writer.models else None
    return Data(tree, writer.models, plain)


class _TreeWriter:
    """Makes MessagePack's own types of a value, and extensions for other types.

    Unlike msgspec's own conversion of datetimes (to UTC) and Decimals (to text), it preserves the value: a handler
    without a return type must get back what it returned.
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
        return msgspec.msgpack.Ext(_MODEL, _tree_encoder.encode((type(value).__qualname__, unset, nodes)))

    def _mapping(self, value: Mapping[Any, Any]) -> Any:
        pairs = [(self.node(key), self.node(each)) for key, each in value.items()]
        if any(isinstance(key, msgspec.msgpack.Ext) for key, _ in pairs):
            return msgspec.msgpack.Ext(_PAIRS, _tree_encoder.encode(pairs))
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
            raise NotStored(f"a {type(value).__name__}")
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
        raise Unfit(f"unreadable data: {error}") from error


def plain_of(content: Data) -> Any:
    return _tree(content.tree if content.plain is None else content.plain)


def restored(content: Data, kind: Any) -> Any:
    """The value, of the type `kind`. Raises Unfit where it isn't one, or its models would be others."""
    tree = _tree(content.tree)
    try:
        made = _adapter(kind).validate_python(tree, strict=False, by_alias=True, by_name=True)
    except Exception as error:
        # An application's validators run here, and may raise anything: the entry is a miss, and counted.
        raise Unfit(f"no {kind}: {error}") from error
    if content.models:
        _settle(tree, made)
    return made


def _settle(node: Any, made: Any) -> None:
    """Check that every model came back as one of its class, and make unset again what had not been set."""
    if isinstance(made, RootModel):
        _settle(node, made.root)
    elif isinstance(node, _Fields):
        if type(made).__qualname__ != node.of:
            raise Unfit(f"a {type(made).__qualname__}, where there was a {node.of}")
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


class _Answer(msgspec.Struct, frozen=True, array_like=True, tag="answer"):
    """A returned Response."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


_FAMILY = b"FC2"
_MAGIC = _FAMILY + b"\x01"
NOT_STORED = _MAGIC + b"\xc0"
_NOTHING: Any = object()
_encoder = msgspec.msgpack.Encoder()
_contents: msgspec.msgpack.Decoder[Data | _Answer] = msgspec.msgpack.Decoder(Data | _Answer)


class Encoded(bytes):
    """A value as GatewayCoder stores it.

    fastapi-cache2 makes its ETag of `hash()`, which Python salts by the process; this hash is of the content alone,
    so that an ETag holds in every process.
    """

    content: Data | _Answer | None
    made: Any

    def __new__(cls, data: bytes) -> Encoded:
        value = super().__new__(cls, data)
        value.content = _content(data)
        value.made = _NOTHING
        return value

    def __hash__(self) -> int:
        return xxh3_64_intdigest(self.content.tree if isinstance(self.content, Data) else bytes(self))


class GatewayCoder(Coder):
    """Encodes what FastAPI handlers return, so that a hit returns the same as the call: models, dataclasses, plain
    data, bytes, and responses with their status and headers. Stored data is never executed.

    Not stored: responses that stream, set a cookie, have `private` or `no-store`, are partial (206), 304, or a failure
    (5xx); iterators; and values with pydantic secrets in them.
    """

    @classmethod
    def encode(cls, value: Any) -> bytes:
        try:
            content = _answer(value) if isinstance(value, Response) else data_of(value)
            return Encoded(_MAGIC + _encoder.encode(content))
        except (NotStored, TypeError, ValueError, OverflowError, RecursionError):
            return NOT_STORED

    @classmethod
    def decode(cls, value: bytes) -> Any:
        """Plain data, or the Response. Raises ValueError for what `encode` didn't make."""
        content = _content_of(value)
        return _response(content) if isinstance(content, _Answer) else plain_of(content)

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
            return restored(content, type_)
        except Unfit:
            return plain_of(content)


def _content(data: bytes) -> Data | _Answer | None:
    if data[: len(_MAGIC)] != _MAGIC:
        return None
    try:
        return _contents.decode(memoryview(data)[len(_MAGIC) :])
    except (msgspec.DecodeError, RecursionError):
        return None


def _content_of(value: bytes) -> Data | _Answer:
    content = value.content if isinstance(value, Encoded) else _content(value)
    if content is None:
        raise Unfit("the value wasn't encoded by GatewayCoder")
    return content


def fitted(value: bytes, returns: Any) -> Encoded | None:
    """`value` without its plain form, which is not needed if it matches the return type of its function."""
    if returns is None or not isinstance(value, Encoded) or not isinstance(value.content, Data):
        return None
    try:
        restored(value.content, returns)
    except Unfit:
        return None
    return Encoded(_MAGIC + _encoder.encode(msgspec.structs.replace(value.content, plain=None)))


def readable(value: bytes, returns: Any, *, fits: bool) -> bytes | None:
    """`value`, read ahead for the library, which answers 500 where the coder fails; None where it can't be read.

    What fitted its function's type when it was stored (`fits`) and doesn't now (the code is another) can't. What
    another coder made is that coder's affair.
    """
    if not value.startswith(_FAMILY):
        return value
    known = Encoded(value)
    if isinstance(known.content, Data) and returns is not None:
        try:
            known.made = restored(known.content, returns)
        except Unfit:
            return None if fits else known
    return known if known.content is not None else None


def _answer(response: Response) -> _Answer:
    body = getattr(response, "body", None)
    whole = type(response).__call__ is Response.__call__ or isinstance(response, HTMLResponse)
    if not whole or not isinstance(body, bytes | memoryview):
        raise NotStored("the response streams")
    headers = [(name.lower(), value) for name, value in response.raw_headers]
    directives = CacheControl.of(headers)
    if has(headers, b"set-cookie") or "private" in directives or "no-store" in directives:
        raise NotStored("the response is for one client")
    if response.status_code in (206, 304) or response.status_code >= 500:
        raise NotStored("the response does not say what the resource is")
    return _Answer(response.status_code, headers, bytes(body))


def _response(answer: _Answer) -> Response:
    response = Response(answer.body, status_code=answer.status)
    response.raw_headers = list(answer.headers)
    return response
