"""The client's side of one request: its body, whether it is still there, and sending it an answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from typing import TypeVar

from starlette.background import BackgroundTask, BackgroundTasks
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from gateway.cache.respond import Answer
from gateway.context import exchange_of
from gateway.errors import GatewayError, RequestRefused, UpstreamError
from gateway.http.headers import WITHOUT_CONTENT

logger = logging.getLogger("gateway")
R = TypeVar("R")


class ClientLeft(GatewayError):
    """The client disconnected."""


TOO_LARGE = "large_body"
"""Why a request is refused whose body is too large."""


def too_large_request() -> RequestRefused:
    return RequestRefused("The request body is too large for this route.", 413, TOO_LARGE)


class Client:
    """Reads what the client sends; one reader at a time. `largest` bounds the body, in bytes."""

    def __init__(self, receive: Receive, largest: int | None = None) -> None:
        self._receive = receive
        self._largest = largest
        self._read = asyncio.Event()
        self._left = False

    async def body(self) -> AsyncIterator[bytes]:
        """The request body, in pieces. Raises ClientLeft if it is incomplete, RequestRefused if it is too large."""
        size = 0
        try:
            more = True
            while more:
                message: Message = await self._receive()
                if message["type"] == "http.disconnect":
                    self._left = True
                    raise ClientLeft("the client disconnected during its request")
                more = message.get("more_body", False)
                size += len(message.get("body", b""))
                if self._largest is not None and size > self._largest:
                    raise too_large_request()
                if message.get("body"):
                    yield message["body"]
        finally:
            self._read.set()

    def expect_no_body(self) -> None:
        """Discards the body, which is not needed, until the client disconnects."""
        self._read.set()

    async def left(self) -> None:
        """Return once the client has hung up."""
        await self._read.wait()
        while not self._left:
            message = await self._receive()
            self._left = message["type"] in ("http.disconnect", "websocket.disconnect")

    async def while_there(self, work: Coroutine[None, None, R]) -> R:
        """The result of `work`; it is cancelled when the client disconnects. Raises ClientLeft.

        It runs in the caller's own task, which the disconnect interrupts, as `asyncio.timeout` does: this saves one of
        two tasks and a wait for both.
        """
        task = asyncio.current_task()
        assert task is not None
        cancelling, interrupted, over = task.cancelling(), False, False

        def interrupt(left: asyncio.Task[None]) -> None:
            nonlocal interrupted
            if over or left.cancelled():
                return
            interrupted = True
            task.cancel()

        left = asyncio.ensure_future(self.left())
        left.add_done_callback(interrupt)
        try:
            return await work
        except asyncio.CancelledError:
            if interrupted and task.uncancel() <= cancelling:
                interrupted = False
                raise ClientLeft("the client disconnected before its response") from None
            raise
        finally:
            over = True
            left.cancel()
            if interrupted:
                task.uncancel()


async def read_up_to(pieces: AsyncIterator[bytes], most: int) -> bytes:
    """All of `pieces`, or their beginning of more than `most` bytes."""
    read, size = [], 0
    while size <= most and (piece := await anext(pieces, None)) is not None:
        read.append(piece)
        size += len(piece)
    return b"".join(read)


async def chained(beginning: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if beginning:
        yield beginning
    async for piece in rest:
        yield piece


class AnswerResponse(Response):
    """An engine's answer as a response of FastAPI's: plain ASGI, headers as they are, the body streamed if need be.

    When the client leaves in the middle, the upstream's response is closed. When the upstream breaks off, the
    connection to the client is broken too: an answer that ended early must not look whole.
    """

    def __init__(self, answer: Answer, client: Client | None = None) -> None:
        self.status_code = answer.status
        self.raw_headers = list(answer.headers)
        self.body = answer.body if isinstance(answer.body, bytes) else b""
        self.background: BackgroundTask | BackgroundTasks | None = None
        self._answer = answer
        self._client = client

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = self._answer.body
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if isinstance(body, bytes):
            await send({"type": "http.response.body", "body": body})
        else:
            await self._stream(scope, receive, send)
        if self.background is not None:
            await self._follow(self.background)

    async def _follow(self, work: BackgroundTask | BackgroundTasks) -> None:
        try:
            await work()
        except Exception:
            logger.exception("a background task of a handler failed, after its response")

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = self._answer.body
        assert not isinstance(body, bytes)
        client = self._client
        if client is None:
            client = Client(receive)
            client.expect_no_body()
        if scope["method"] == "HEAD" or self.status_code in WITHOUT_CONTENT:
            await body.aclose()
            await send({"type": "http.response.body", "body": b""})
            return
        try:
            await client.while_there(self._pump(send))
        except UpstreamError as error:
            if (exchange := exchange_of(scope)) is not None:
                exchange.cut(error)
            return  # without a last piece: it makes the server break the connection
        except ClientLeft:
            return
        finally:
            await body.aclose()

    async def _pump(self, send: Send) -> None:
        body = self._answer.body
        assert not isinstance(body, bytes)
        async for chunk in body.chunks():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


class RaisedAnswer(HTTPException):
    """A response that represents a handler's exception, for the decorators above `@cached`."""

    def __init__(self, response: AnswerResponse) -> None:
        super().__init__(response.status_code)
        self.response = response
