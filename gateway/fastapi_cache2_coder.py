"""fastapi-cache2's Coder: what a handler returned, data or a response, as the bytes that are stored."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi_cache.coder import Coder
from starlette.responses import HTMLResponse, Response
from xxhash import xxh3_64_intdigest

from .headers import CacheControl, has
from .value_trees import Data, NotStored, Unfit, data_of, plain_of, restored


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
    """Encodes what FastAPI handlers return, so that a hit gives what the call gave: models, dataclasses, plain data,
    bytes, and responses with their status and headers. Nothing in what is stored is ever executed.

    Not stored: responses that stream, set a cookie, say `private` or `no-store`, are partial (206), 304, or a failure
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
        raise Unfit("this is no value that GatewayCoder encoded")
    return content


def fitted(value: bytes, returns: Any) -> Encoded | None:
    """`value` without its plain form, which nobody needs where it fits the type that its function returns."""
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
