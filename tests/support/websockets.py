"""WebSockets of a gateway in this event loop: an echo server of `websockets` behind it, and clients of raw bytes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from gateway.app.gateway import Gateway
from gateway.edge.protocol import GatewayProtocol
from gateway.http.websocket import masked
from tests.support.gateways import gateway, served

MASK = b"\x01\x02\x03\x04"
HANDSHAKE = (
    b"GET /talk HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
_opened: list[asyncio.StreamWriter] = []
"""Of clients of raw bytes: they end with their server."""


class Echo:
    """A server that sends each message back. `ended` has the code and reason by which each connection ended."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[dict[str, str]] = []
        self.open: list[ServerConnection] = []
        self.ended: asyncio.Queue[tuple[int | None, str | None]] = asyncio.Queue()

    async def talk(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        self.requests.append({name.lower(): value for name, value in connection.request.headers.raw_items()})
        self.open.append(connection)
        with contextlib.suppress(ConnectionClosed):
            async for message in connection:
                await connection.send(message)
        await connection.wait_closed()
        self.ended.put_nowait((connection.close_code, connection.close_reason))


@contextlib.asynccontextmanager
async def echo(**settings: Any) -> AsyncIterator[Echo]:
    server = Echo()
    defaults: dict[str, Any] = {"max_size": 2**24, "select_subprotocol": lambda _, offered: next(iter(offered), None)}
    async with serve(server.talk, "127.0.0.1", 0, **{**defaults, **settings}) as listening:
        server.url = f"http://127.0.0.1:{next(iter(listening.sockets)).getsockname()[1]}"
        yield server


def talking(server: str, *, route: dict[str, Any] | None = None, **settings: Any) -> Gateway:
    """A gateway with the route /talk to a WebSocket server."""
    upstreams = {"api": {"url": server, "timeout": "5s", **settings.pop("upstream", {})}}
    routes = {"talk": {"path": "/talk", "upstream": "api", "websocket": True, **(route or {})}}
    return gateway(None, routes, upstreams=upstreams, **settings)


@contextlib.asynccontextmanager
async def open_to(app: Any, **settings: Any) -> AsyncIterator[str]:
    """Serves an app with WebSockets; gives the URL of /talk."""
    async with served(app, http=GatewayProtocol, ws=asyncio.Protocol, **settings) as url:
        try:
            yield url.replace("http", "ws") + "/talk"
        finally:
            while _opened:
                _opened.pop().close()


class Raw:
    """A client that speaks raw frames."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, url: str, *, fields: bytes = b"", early: bytes = b"") -> tuple[Raw, bytes]:
        """A connection, and the head of the answer to its handshake."""
        port = int(url.rpartition(":")[2].partition("/")[0])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        _opened.append(writer)
        writer.write(HANDSHAKE + fields + b"\r\n" + early)
        return cls(reader, writer), await reader.readuntil(b"\r\n\r\n")

    def send(self, opcode: int, payload: bytes = b"", *, fin: bool = True) -> None:
        self.writer.write(client_frame(opcode, payload, fin=fin))

    async def frame(self) -> tuple[int, bytes]:
        """The next frame: its opcode, and its payload."""
        first, length = await self.reader.readexactly(2)
        if length > 125:
            length = int.from_bytes(await self.reader.readexactly(2 if length == 126 else 8), "big")
        return first & 15, await self.reader.readexactly(length)

    async def closed_by(self) -> int:
        """The code of the Close frame that comes next, pings left out."""
        while (got := await self.frame())[0] in (9, 10):
            pass
        assert got[0] == 8, got
        return int.from_bytes(got[1][:2], "big")


def client_frame(opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
    length = len(payload)
    if length < 126:
        size = bytes((0x80 | length,))
    else:
        size = b"\xfe" + length.to_bytes(2, "big") if length < 65_536 else b"\xff" + length.to_bytes(8, "big")
    return bytes((opcode | (0x80 if fin else 0),)) + size + MASK + masked(payload, MASK)
