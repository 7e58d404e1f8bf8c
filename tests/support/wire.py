"""Clients of the gateway's protocol that speak raw bytes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from gateway.app.gateway import Gateway
from gateway.edge.protocol import GatewayProtocol
from gateway.testing import StubUpstream
from tests.support.gateways import gateway, json_answer, served


class Wire:
    """A client that speaks raw bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next answer: status, headers, body."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")[:-2]
        headers = dict(line.lower().split(": ", 1) for line in lines)
        if headers.get("transfer-encoding") == "chunked":
            return int(first.split()[1]), headers, await self.reader.readuntil(b"0\r\n\r\n")
        return int(first.split()[1]), headers, await self.reader.readexactly(int(headers.get("content-length", 0)))

    async def rest(self) -> bytes:
        """All that comes until the connection ends."""
        with contextlib.suppress(ConnectionError):
            return await self.reader.read()
        return b""

    async def ended(self) -> bool:
        return await self.rest() == b""


@contextlib.asynccontextmanager
async def door(app: Any) -> AsyncIterator[Any]:
    """Serves `app` with the gateway's protocol; gives a function that opens a connection."""
    async with served(app, http=GatewayProtocol) as url, contextlib.AsyncExitStack() as stack:
        port = int(url.rpartition(":")[2])

        async def connect() -> Wire:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            stack.callback(writer.close)
            return Wire(reader, writer)

        yield connect


def guarded(upstream: StubUpstream | None = None, **settings: Any) -> Gateway:
    return gateway(upstream or StubUpstream(json_answer(cache_control="max-age=60")), **settings)


def refused_by(app: Gateway) -> dict[str, float]:
    lines = [line for line in app.metrics.render().decode().splitlines() if "refused_requests_total{" in line]
    return {line.split('"')[1]: float(line.split()[-1]) for line in lines}


QUICK = {"head_timeout": "1s", "body_timeout": "1s", "write_timeout": "1s", "keep_alive": "1s"}
