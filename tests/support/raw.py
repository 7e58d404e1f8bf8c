"""An upstream that speaks raw bytes: a script handles each connection, so that a test
can send what no server would."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

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
