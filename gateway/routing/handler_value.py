"""The values of `@cached` handlers below decorators of the app, which use the handler's return value.

Such a value is stored as JSON, and restored by the return annotation. A value that is not restored equal is not stored:
a decorator must get the same on a miss and on a hit.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property
from typing import Any, ForwardRef

from fastapi import Request
from fastapi.dependencies.utils import get_typed_return_annotation
from pydantic import PydanticUserError, TypeAdapter
from pydantic.errors import PydanticSchemaGenerationError
from starlette.responses import Response

from gateway.cache.respond import Answer
from gateway.http.headers import Headers, first, without
from gateway.policy.storability import TAG_FIELDS
from gateway.routing.handler_responses import RawHeaders, added, route_of
from gateway.routing.handler_settings import not_stored
from gateway.upstreams.response import Fetched, WholeBody

FIELD = b"gateway-handler-returned"
"""The kind of a stored response's body: `value`; `object`, one that can't be stored; `response`. Clients never see
it."""
_MEDIA = (b"content-type", b"application/octet-stream")
_OF_THE_BODY = (
    b"etag",
    b"last-modified",
    b"content-type",
    b"content-length",
    b"content-encoding",
    b"transfer-encoding",
)
CONDITIONS = (b"if-none-match", b"if-modified-since", b"if-match", b"if-unmodified-since", b"range", b"if-range")


class Coder:
    """Writes the values of a function as JSON, and reads them: by the type `returns`, or else by its annotation."""

    def __init__(self, function: Callable[..., Any], returns: Any = None) -> None:
        self._function = function
        self._returns = returns

    @cached_property
    def _adapter(self) -> TypeAdapter[Any] | None:
        annotation = self._returns if self._returns is not None else get_typed_return_annotation(self._function)
        if annotation is None or annotation is Any or isinstance(annotation, ForwardRef):
            return None
        try:
            return TypeAdapter(annotation)
        except (PydanticUserError, PydanticSchemaGenerationError):
            return None

    def read(self, text: bytes) -> Any:
        return json.loads(text) if self._adapter is None else self._adapter.validate_json(text)

    def _write(self, value: Any) -> bytes:
        return json.dumps(value).encode() if self._adapter is None else self._adapter.dump_json(value, by_alias=True)

    def written(self, value: Any) -> bytes | None:
        """None if the value would not be restored equal."""
        try:
            text = self._write(value)
            again = self.read(text)
            return text if type(again) is type(value) and bool(again == value) else None
        except (TypeError, ValueError, RecursionError):
            return None


def fetched_value(text: bytes | None, request: Request, response: Response, before: RawHeaders) -> Fetched:
    """A handler's value as the engine takes it; None is one that is not stored. `before` are the headers that
    `response`, FastAPI's own, had before the handler."""
    status = response.status_code or route_of(request).status_code or 200
    headers = [(name.lower(), value) for name, value in added(before, response)]
    if text is None:
        return not_stored(Fetched(status, [*headers, (FIELD, b"object")], WholeBody(b"")))
    return Fetched(
        status, [*headers, (FIELD, b"value"), _MEDIA, (b"content-length", b"%d" % len(text))], WholeBody(text)
    )


def kind_of(answer: Answer) -> str | None:
    """The handler's return value; None if it raised, or was not called."""
    return first(answer.headers, FIELD)


def put_headers(answer: Answer, request: Request, response: Response, before: RawHeaders) -> None:
    """Makes FastAPI's own response carry a response's fields; the decorators make its body anew."""
    kept: Headers = without(answer.headers, FIELD, *_OF_THE_BODY, *TAG_FIELDS)
    response.headers.raw[:] = [*before, *kept]
    if answer.status != (route_of(request).status_code or 200):
        response.status_code = answer.status
