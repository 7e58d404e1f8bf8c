"""Requests without a body over aiohttp's connections, without what aiohttp builds above them.

Most of what a gateway sends is a GET: a line and some fields that were checked already. aiohttp's pool, TLS, names and
parser do what they do for all requests (with `transport.Receiver`'s rule for bytes after the end); of the session, the
request and the response object, which merge defaults, cookies, traces and encodings that a gateway must not have,
nothing is made. Measured, that was a fifth of a pass-through's time. What this leans on beyond aiohttp's documentation
is named in `INTERNALS`, and a test fails where a new aiohttp moves any of it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import aiohttp
import httpx
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import BaseConnector, Connection
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

INTERNALS = {
    BaseConnector: ("connect",),
    Connection: ("close", "protocol", "release", "transport"),
    ResponseHandler: ("read", "set_response_params", "start_timeout"),
}
METHODS = frozenset(("GET", "HEAD"))
_BREAKS = re.compile(rb"[\r\n\0]")
_TARGET = re.compile(rb"/[\x21-\x7e]*")


class PlainBody(httpx.AsyncByteStream):
    """A response's body, as received: whole or an error. Its connection goes back to the pool at its end."""

    def __init__(self, content: aiohttp.StreamReader, connection: Connection) -> None:
        self._content = content
        self._connection = connection
        content.on_eof(connection.release)

    def ready(self) -> bytes | None:
        """What has come already; empty where the body has ended; None where one must wait, or it broke off."""
        content = self._content
        if content.exception() is not None:
            return None
        return content.read_nowait(-1) or (b"" if content.at_eof() else None)

    async def __aiter__(self) -> Any:
        async for chunk in self._content.iter_any():
            yield chunk

    async def aclose(self) -> None:
        if self._content.at_eof():
            self._connection.release()
        else:
            self._connection.close()


class PlainRequests:
    """Sends over the connections of `connector`, which is `session`'s. `max_head` is in bytes."""

    def __init__(self, session: aiohttp.ClientSession, connector: BaseConnector, max_head: int) -> None:
        self._session = session
        self._connector = connector
        self._max_head = max_head
        self._origins: dict[str, aiohttp.ClientRequest] = {}

    async def connect(self, url: str, timeout: aiohttp.ClientTimeout) -> tuple[Connection, bytes]:
        """A connection to the host of `url`, and the target to ask it for."""
        start = url.find("/", url.index("//") + 2)
        origin, target = (url[:start], url[start:]) if start > 0 else (url, "/")
        to = self._origins.get(origin)
        if to is None:
            loop = asyncio.get_running_loop()
            to = self._origins[origin] = aiohttp.ClientRequest("GET", URL(origin), loop=loop, session=self._session)
        return await self._connector.connect(to, [], timeout), target.encode("ascii")

    def ask(
        self,
        connection: Connection,
        method: str,
        target: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        read_timeout: float | None,
    ) -> ResponseHandler:
        """Send the request. Raises httpx.LocalProtocolError where it is none, aiohttp.ServerDisconnectedError where the
        connection is gone."""
        head = request_head(method, target, headers)
        protocol, transport = connection.protocol, connection.transport
        if protocol is None or transport is None or transport.is_closing():
            raise aiohttp.ServerDisconnectedError
        protocol.set_response_params(
            skip_payload=method == "HEAD",
            read_until_eof=True,
            auto_decompress=False,
            read_timeout=read_timeout,
            read_bufsize=2**16,
            max_line_size=self._max_head,
            max_field_size=self._max_head,
        )
        transport.write(head)
        protocol.start_timeout()
        return protocol


def request_head(method: str, target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A request's bytes, where it has no body. Raises httpx.LocalProtocolError where a field would end its line."""
    lines = [name + b": " + value for name, value in headers]
    if not _TARGET.fullmatch(target) or _BREAKS.search(b"".join(lines)):
        raise httpx.LocalProtocolError("a request that cannot be sent")
    return b"\r\n".join((b"%b %b HTTP/1.1" % (method.encode("ascii"), target), *lines, b"", b""))


@lru_cache(maxsize=64)
def client_timeout(pool: float | None, connect: float | None, read: float | None) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, connect=pool, sock_connect=connect, sock_read=read)


ERRORS = (aiohttp.ClientError, TimeoutError, HttpProcessingError, OSError)
"""What aiohttp raises where a request fails, or its response."""
