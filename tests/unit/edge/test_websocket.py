"""The change from HTTP to a WebSocket: what comes too early is kept, what is no handshake is refused."""

from __future__ import annotations

import asyncio
import inspect

import pytest
from fastapi import APIRouter, WebSocket
from starlette.websockets import WebSocketDisconnect
from websockets.asyncio.client import connect

from gateway.edge.websocket import EARLY, INTERNALS
from tests.support.gateways import gateway
from tests.support.websockets import Raw, client_frame, echo, open_to, talking
from tests.support.wire import refused_by

TEXT = 1


async def test_frames_before_the_answer_are_kept_and_passed_on() -> None:
    async with echo() as server, open_to(talking(server.url)) as url:
        early = client_frame(TEXT, b"early") + client_frame(TEXT, b"bird")[:3]
        client, head = await Raw.connect(url, early=early)
        assert head.startswith(b"HTTP/1.1 101")
        assert await client.frame() == (TEXT, b"early")
        client.writer.write(client_frame(TEXT, b"bird")[3:])
        assert await client.frame() == (TEXT, b"bird")


async def test_many_early_bytes_wait_unread() -> None:
    async with echo() as server, open_to(talking(server.url)) as url:
        client, _ = await Raw.connect(url, early=client_frame(TEXT, b"x" * 60_000) * (2 * EARLY // 60_000 + 2))
        for _ in range(2 * EARLY // 60_000 + 2):
            assert await client.frame() == (TEXT, b"x" * 60_000)


async def test_a_handler_of_the_apps_own_gets_them_too() -> None:
    router = APIRouter()

    @router.websocket("/talk")
    async def talk(socket: WebSocket) -> None:
        await socket.accept()
        try:
            while True:
                await socket.send_text((await socket.receive_text()).upper())
        except WebSocketDisconnect:
            return

    app = gateway(None, {})
    app.include_router(router)
    async with open_to(app) as url:
        client, _ = await Raw.connect(url, early=client_frame(TEXT, b"a"))
        assert await client.frame() == (TEXT, b"A")
        async with connect(url) as other:
            await other.send("b" * 100_000)
            assert await other.recv() == "B" * 100_000
        with pytest.raises(OSError, match="404"):
            await _refused(url + "/nowhere")


async def _refused(url: str) -> None:
    from websockets.exceptions import InvalidStatus

    try:
        await connect(url)
    except InvalidStatus as refused:
        raise OSError(refused.response.status_code) from None


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (b"Content-Length: 5\r\n", 400),
        (b"Transfer-Encoding: chunked\r\n", 400),
    ],
)
async def test_a_handshake_with_content_is_refused(fields: bytes, status: int) -> None:
    async with echo() as server, open_to(app := talking(server.url)) as url:
        _, head = await Raw.connect(url, fields=fields)
        assert head.startswith(b"HTTP/1.1 %d" % status)
        assert refused_by(app) == {"websocket": 1}
        assert not server.requests


@pytest.mark.parametrize(
    "changed", [b"Sec-WebSocket-Version: 12", b"Sec-WebSocket-Key: c2hvcnQ=", b"Connection: close"]
)
async def test_what_is_no_handshake_is_refused_and_reaches_no_upstream(changed: bytes) -> None:
    name = changed.partition(b":")[0]
    lines = [
        b"GET /talk HTTP/1.1",
        b"Host: a.test",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ]
    lines = [changed if line.startswith(name) else line for line in lines]
    async with echo() as server, open_to(app := talking(server.url)) as url:
        port = int(url.rpartition(":")[2].partition("/")[0])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"\r\n".join(lines) + b"\r\n\r\n")
        assert (await reader.readline())[9:12] in (b"400", b"426")
        await reader.read()
        writer.close()
        assert refused_by(app) == {"websocket": 1}
        assert not server.requests


def test_uvicorn_is_as_the_protocol_knows_it() -> None:
    for kind, names in INTERNALS.items():
        source = inspect.getsource(kind)
        assert [name for name in names if f"self.{name}" not in source and f"def {name}(" not in source] == []
