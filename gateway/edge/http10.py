"""Answers of the app to clients that speak HTTP/1.0.

Decides how such an answer ends: by its length where it has one, by the end of its connection where it has none, never
by chunks (RFC 9112 §6.1); and whether the connection stays open, which the client has to ask for and is told. The edge
answers such a client with whole responses alone, which have a length. It must not know what the answer is.
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
    """Whether a request of HTTP/1.0 asks for its connection to stay open (RFC 9112 §9.3)."""
    options = connection_options(headers)
    return b"keep-alive" in options and b"close" not in options


class OldClient:
    """`app`, as the client of `cycle` is answered by it. The connection stays open where the cycle's `keep_alive` says
    so when the head is sent, and the answer has a length."""

    def __init__(self, app: ASGIApp, cycle: RequestResponseCycle) -> None:
        self._app = app
        self._cycle = cycle
        self._until_close = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_old(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": self._fields(scope["method"], message)}
            elif self._until_close and message["type"] == "http.response.body":
                # uvicorn compares what is sent with what was announced.
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
    """End a connection so that the kernel drops what it holds for it, and its other side sees that it broke off."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
