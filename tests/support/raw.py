"""An upstream that speaks raw bytes: a script handles each connection, so that a test
can send what no server would."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from gateway.config.upstream import UpstreamConfig
from gateway.upstreams.client import Upstream

Script = Callable[["Connection"], Awaitable[None]]


class Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def request(self) -> bytes:
        """The head of the next request; empty where the client closed, or broke off."""
        try:
            return await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return b""

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        with contextlib.suppress(ConnectionError):
            await self.writer.drain()

    async def closed(self) -> None:
        """Return once the other side has closed."""
        with contextlib.suppress(ConnectionError):
            await self.reader.read()


class RawUpstream:
    def __init__(self, url: str) -> None:
        self.url = url
        self.connections = 0
        self.open = 0


@contextlib.asynccontextmanager
async def raw_upstream(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[RawUpstream]:
    """A server on a free port; `script` speaks on each of its connections, which ends with it."""
    upstream = RawUpstream("")

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream.connections += 1
        upstream.open += 1
        try:
            await script(Connection(reader, writer))
        finally:
            upstream.open -= 1
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, backlog=1024, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    upstream.url = f"https://localhost:{port}" if tls is not None else f"http://127.0.0.1:{port}"
    try:
        yield upstream
    finally:
        server.close()


def always(data: bytes) -> Script:
    """Answer every request on a connection with the same bytes."""

    async def script(connection: Connection) -> None:
        while await connection.request():
            await connection.send(data)

    return script


def once(data: bytes) -> Script:
    """Answer one request, then close."""

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(data)

    return script


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def ask(upstream: Upstream, target: str = "/", method: str = "GET") -> tuple[int, bytes | None]:
    fetched = await upstream.fetch(method, target, [])
    return fetched.status, await fetched.body.whole(1_000_000)


def speaking_to(raw: RawUpstream, *, timeout: str = "5s", **settings: object) -> Upstream:
    """To connect may take as long as the whole: on a loaded machine this process is paused for a second and more."""
    limits = {"timeout": timeout, "connect_timeout": timeout}
    config = UpstreamConfig.model_validate({"url": raw.url, **limits, **settings})
    return Upstream("raw", config)


MALFORMED = {
    "no HTTP at all": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "a status of 99": b"HTTP/1.1 99 Low\r\nContent-Length: 0\r\n\r\n",
    "a status of 600": b"HTTP/1.1 600 High\r\nContent-Length: 0\r\n\r\n",
    "two lengths that differ": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
    "a length that is none": b"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\nok",
    "a negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok",
    "length and chunking": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"2\r\nok\r\n0\r\n\r\n",
    "an unknown coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: cheese\r\n\r\nok",
    "NUL in a header": b"HTTP/1.1 200 OK\r\nX-A: a\0b\r\nContent-Length: 2\r\n\r\nok",
    # The writer of answers refuses it: whoever asked would get nothing at all, and everybody else from the cache.
    "ESC in a header": b"HTTP/1.1 200 OK\r\nX-A: a\x1bb\r\nContent-Length: 2\r\n\r\nok",
    "DEL in a header": b"HTTP/1.1 200 OK\r\nX-A: a\x7fb\r\nContent-Length: 2\r\n\r\nok",
    "a header without a colon": b"HTTP/1.1 200 OK\r\nnonsense\r\nContent-Length: 2\r\n\r\nok",
    "5,000 headers": b"HTTP/1.1 200 OK\r\n" + b"X-A: 1\r\n" * 5000 + b"Content-Length: 2\r\n\r\nok",
    "a huge header": b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 200_000 + b"\r\nContent-Length: 2\r\n\r\nok",
    "a bad chunk size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nok\r\n0\r\n\r\n",
    "a cut body": b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nok",
    "a cut chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n20\r\nok",
    "nothing": b"",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Le",
}


WAYS = pytest.mark.parametrize("method", ["GET", "OPTIONS"], ids=["plain", "by aiohttp's session"])


POISON = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
SECOND = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond"
