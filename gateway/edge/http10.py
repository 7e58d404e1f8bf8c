"""Responses of the app to HTTP/1.0 clients.

Decides how such a response ends: by its length if it has one, otherwise by the end of its connection, never by chunks
(RFC 9112 §6.1); and whether the connection stays open, which the client has to request and the response confirms. The
edge sends such a client only complete responses, which have a length. It must not know the response's content.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from typing import cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from gateway.edge.head_template import KEEPS
from gateway.http.headers import WITHOUT_CONTENT, Headers, connection_options, has

_KEPT = cast("tuple[bytes, bytes]", tuple(KEEPS.removesuffix(b"\r\n").split(b": ")))


def stays_open(headers: Headers) -> bool:
    """Whether an HTTP/1.0 request asks for a persistent connection (RFC 9112 §9.3)."""
    options = connection_options(headers)
    return b"keep-alive" in options and b"close" not in options


class OldClient:
    """`app`, for the HTTP/1.0 client of `cycle`. The connection stays open if the cycle's `keep_alive` is set when the
    head is sent, and the response has a length."""

    def __init__(self, app: ASGIApp, cycle: RequestResponseCycle) -> None:
        self._app = app
        self._cycle = cycle
        self._until_close = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_old(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": self._fields(scope["method"], message)}
            elif self._until_close and message["type"] == "http.response.body":
                # uvicorn compares the sent bytes with the announced length.
                self._cycle.expected_content_length += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, send_old)
        finally:
            if self._until_close and not self._cycle.response_complete:
                # A client that reads to the connection's end would take what broke off for the whole (RFC 9112 §8).
                reset(self._cycle.transport)

    def _fields(self, method: str, message: Message) -> list[tuple[bytes, bytes]]:
        headers = [pair for pair in message.get("headers", ()) if pair[0].lower() != b"transfer-encoding"]
        bodiless = method == "HEAD" or message["status"] in WITHOUT_CONTENT
        if not bodiless and not has(headers, b"content-length"):
            self._until_close = True
            self._cycle.chunked_encoding = False
            self._cycle.keep_alive = False
        elif self._cycle.keep_alive and not has(headers, b"connection"):
            headers.append(_KEPT)
        return headers


def reset(transport: asyncio.Transport) -> None:
    """Abort a connection so that the kernel drops its buffers, and the peer detects an incomplete response."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
