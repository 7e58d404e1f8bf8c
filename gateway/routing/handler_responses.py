"""A FastAPI handler's responses for the engine: a returned value, a response, a streaming response, an error."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, TypeAlias

from fastapi import Request
from fastapi.datastructures import DefaultPlaceholder
from fastapi.routing import serialize_response
from fastapi.utils import is_body_allowed_for_status_code
from starlette._utils import is_async_callable
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Message, Scope

from gateway.errors import UpstreamUnreachable
from gateway.http.headers import Headers
from gateway.upstreams.response import Fetched, Live, WholeBody

RawHeaders: TypeAlias = list[tuple[bytes, bytes]]


async def serialised(value: Any, request: Request, response: Response, before: RawHeaders) -> Fetched:
    """A returned value as FastAPI would answer it: validated, filtered and serialised by the response model.

    `response` is the one that FastAPI handed to the handler, `before` the headers that it had then.
    """
    route = route_of(request)
    plain = isinstance(route.response_class, DefaultPlaceholder)
    fast = plain and route.response_field is not None
    content = await serialize_response(
        field=route.response_field,
        response_content=value,
        include=route.response_model_include,
        exclude=route.response_model_exclude,
        by_alias=route.response_model_by_alias,
        exclude_unset=route.response_model_exclude_unset,
        exclude_defaults=route.response_model_exclude_defaults,
        exclude_none=route.response_model_exclude_none,
        dump_json=fast,
    )
    # If neither names a status, the response class's default applies.
    status = response.status_code or route.status_code
    given: dict[str, Any] = {} if status is None else {"status_code": status}
    if fast:
        made = Response(content, media_type="application/json", **given)
    else:
        made = (route.response_class.value if plain else route.response_class)(content, **given)
    if not is_body_allowed_for_status_code(made.status_code):
        made.body = b""
    made.raw_headers.extend(added(before, response))
    return Fetched(made.status_code, _lowered(made.raw_headers), WholeBody(bytes(made.body)))


def route_of(request: Request) -> Any:
    """The route of a request, as including its router made it."""
    route, context = request.scope["route"], request.scope.get("fastapi", {}).get("effective_route_context")
    return context if context is not None and context.original_route is route else route


def added(before: RawHeaders, response: Response) -> RawHeaders:
    """The headers that the handler set: those its dependencies had set belong to this request."""
    old = list(before)
    added = []
    for pair in response.headers.raw:
        if pair in old:
            old.remove(pair)
        else:
            added.append(pair)
    return added


def _lowered(headers: Headers) -> list[tuple[bytes, bytes]]:
    return [(name.lower(), value) for name, value in headers]


async def handled(request: Request, error: Exception) -> Response:
    """The response of the app's exception handlers for `error`, found as in Starlette: by the status of an
    HTTPException, then by class. Raises it if there is none.

    `request` is a `SeenRequest`, which has no RequestContext: a stored response must not name this one request.
    """
    by_class, by_status = request.scope["starlette.exception_handlers"]
    handler = by_status.get(error.status_code) if isinstance(error, HTTPException) else None
    if handler is None:
        handler = next((by_class[kind] for kind in type(error).__mro__ if kind in by_class), None)
    if handler is None:
        raise error
    if is_async_callable(handler):
        response = await handler(request, error)
    else:
        response = await run_in_threadpool(handler, request, error)
    if not isinstance(response, Response):
        raise error
    return response


async def fetched_of(response: Response, scope: Scope) -> Fetched:
    """A response that the handler made itself, without its follow-up work."""
    body = getattr(response, "body", None)
    if isinstance(body, bytes | memoryview):
        return Fetched(response.status_code, _lowered(response.raw_headers), WholeBody(bytes(body)))
    return await _AsgiBody(response, scope).head()


class _AsgiBody:
    """The body of a response that streams (StreamingResponse, FileResponse): run as ASGI, a piece at a time."""

    def __init__(self, response: Response, scope: Scope) -> None:
        self._response = copy.copy(response)
        self._response.background = None  # it follows the answer to a client, which this is not
        self._scope = {**scope, "method": "GET"}
        self._messages: asyncio.Queue[Message | None] = asyncio.Queue(maxsize=8)
        self._read: list[bytes] = []
        self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        try:
            await self._response(self._scope, self._never, self._messages.put)
        finally:
            with suppress(asyncio.QueueFull):
                self._messages.put_nowait(None)

    async def _never(self) -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def head(self) -> Fetched:
        start = await self._messages.get()
        if start is None:
            await self._task
            raise UpstreamUnreachable("handler", "no response was sent")
        return Fetched(start["status"], [*_lowered(start["headers"]), (b"transfer-encoding", b"chunked")]
                       if not any(k.lower() == b"content-length" for k, _ in start["headers"])
                       else _lowered(start["headers"]), self)  # fmt: skip

    async def whole(self, limit: int, live: Live | None = None) -> bytes | None:
        size = 0
        async for chunk in self._pieces():
            self._read.append(chunk)
            size += len(chunk)
            if size > limit:
                return None
        return b"".join(self._read)

    async def chunks(self) -> AsyncIterator[bytes]:
        for chunk in self._read:
            yield chunk
        async for chunk in self._pieces():
            yield chunk

    async def _pieces(self) -> AsyncIterator[bytes]:
        while (message := await self._messages.get()) is not None:
            if message.get("body"):
                yield message["body"]
            if not message.get("more_body", False):
                break
        if self._task.done():
            self._task.result()

    async def aclose(self) -> None:
        if not self._task.done():
            self._task.cancel()
        await asyncio.wait((self._task,))
