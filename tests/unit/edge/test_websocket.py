"""The change from HTTP to a WebSocket: what comes too early is kept, what is no handshake is refused."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import socket
from collections.abc import Awaitable, Callable

import pytest
from fastapi import APIRouter, WebSocket
from starlette.websockets import WebSocketDisconnect
from websockets.asyncio.client import connect

from gateway.app.gateway import Gateway
from gateway.edge.websocket import EARLY, INTERNALS
from gateway.http.websocket import MOST_FRAGMENTS, accepted
from tests.support.gateways import gateway
from tests.support.raw import Connection, raw_upstream
from tests.support.websockets import HANDSHAKE, Raw, client_frame, echo, open_to, talking
from tests.support.wire import refused_by

TEXT, PING = 1, 9


async def test_frames_before_the_answer_are_kept_and_passed_on() -> None:
    async with echo() as server, open_to(talking(server.url)) as url:
        early = client_frame(TEXT, b"early") + client_frame(TEXT, b"bird")[:3]
        client, head = await Raw.connect(url, early=early)
        assert head.startswith(b"HTTP/1.1 101")
        assert await client.frame() == (TEXT, b"early")
        client.writer.write(client_frame(TEXT, b"bird")[3:])
        assert await client.frame() == (TEXT, b"bird")


async def test_an_upstream_that_accepts_while_the_client_s_connection_closes_is_closed() -> None:
    ended = asyncio.Event()

    async def script(connection: Connection) -> None:
        head = await connection.request()
        [guarded] = app.guard._connections
        guarded.transport.is_closing = lambda: True  # type: ignore[attr-defined]
        key = next(line for line in head.split(b"\r\n") if line.startswith(b"sec-websocket-key: ")).split(b": ")[1]
        fields = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: " + accepted(key)
        await connection.send(b"HTTP/1.1 101 Switching Protocols\r\n" + fields + b"\r\n\r\n")
        await connection.closed()
        ended.set()

    async with raw_upstream(script) as upstream, open_to(app := talking(upstream.url)) as url:
        port = int(url.rpartition(":")[2].partition("/")[0])
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HANDSHAKE + b"\r\n")
        async with asyncio.timeout(20):
            await ended.wait()
        assert app.worker_state.websockets.counts("api").open == 0
        writer.close()


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


def handling(handler: Callable[[WebSocket], Awaitable[None]]) -> Gateway:
    router = APIRouter()
    router.add_api_websocket_route("/talk", handler)
    app = gateway(None, {})
    app.include_router(router)
    return app


async def _listen(socket: WebSocket) -> None:
    await socket.accept()
    with contextlib.suppress(WebSocketDisconnect):
        while True:
            await socket.receive_text()


async def test_pongs_that_a_client_does_not_read_are_left_out() -> None:
    app = handling(_listen)
    async with open_to(app) as url:
        client, _ = await Raw.connect(url)
        client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        [connection] = app.guard._connections
        pings = client_frame(PING, b"x" * 125) * 500
        for _ in range(100):  # 6 MiB
            client.writer.write(pings)
            await client.writer.drain()
        assert connection.transport.get_write_buffer_size() < 1_000_000  # type: ignore[attr-defined]


async def test_a_flood_of_empty_frames_ends_a_handlers_connection() -> None:
    async with open_to(handling(_listen)) as url:
        client, _ = await Raw.connect(url)
        client.send(TEXT, fin=False)
        client.writer.write(client_frame(0, fin=False) * (MOST_FRAGMENTS + 10))
        assert await client.closed_by() == 1008


async def test_a_flood_of_frames_to_a_handler_lets_others_come_in_between() -> None:
    async def handler(socket: WebSocket) -> None:
        await socket.accept()
        with contextlib.suppress(WebSocketDisconnect):
            while True:
                await socket.send_text(await socket.receive_text())

    async with open_to(app := handling(handler)) as url:
        client, _ = await Raw.connect(url)
        [connection] = app.guard._connections
        protocol = connection.transport.get_protocol()  # type: ignore[attr-defined]
        protocol.data_received(client_frame(PING) * 20_000 + client_frame(TEXT, b"a") + client_frame(TEXT, b"b"))
        assert len(protocol._waiting) > 50_000
        client.send(TEXT, b"c")
        got = [await client.frame() for _ in range(20_003)]
        assert [payload for opcode, payload in got if opcode == TEXT] == [b"a", b"b", b"c"]
        assert not protocol._waiting
        client.send(TEXT, b"d" * 300_000)
        assert await client.frame() == (TEXT, b"d" * 300_000)


async def test_a_handlers_connection_is_closed_by_1001_when_the_server_stops() -> None:
    ended: asyncio.Queue[int] = asyncio.Queue()

    async def handler(socket: WebSocket) -> None:
        await socket.accept()
        try:
            await socket.receive_text()
        except WebSocketDisconnect as left:
            ended.put_nowait(left.code)

    async with open_to(app := handling(handler)) as url:
        client, _ = await Raw.connect(url)
        [connection] = app.guard._connections
        connection.transport.get_protocol().shutdown()  # type: ignore[attr-defined]
        assert await client.closed_by() == 1001
        assert await ended.get() == 1001


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        (b"GET /talk HTTP/1.0", b""),
        (b"POST /talk HTTP/1.1", b""),
        (b"HEAD /talk HTTP/1.1", b""),
        (b"GET /talk HTTP/1.1", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"),
        (b"GET /talk HTTP/1.1", b"Sec-WebSocket-Version: 13\r\n"),
        (b"GET /talk HTTP/1.1", b"Host: b.test\r\n"),
        (b"GET /talk HTTP/1.1", b"Content-Length: 60\r\n"),
        (b"GET /nowhere HTTP/1.1", b""),
        (b"GET /refusing HTTP/1.1", b""),
        (b"GET /wrong HTTP/1.1", b""),
    ],
)
async def test_nothing_behind_a_refused_handshake_is_read_as_a_request(line: bytes, fields: bytes) -> None:
    """Neither by the gateway nor by the upstream (upgrade smuggling)."""
    asked: list[bytes] = []

    async def script(connection: Connection) -> None:
        asked.append((await connection.request()).split(b"\r\n")[0])
        if b"/refusing" in asked[-1]:
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        else:
            await connection.send(
                b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: d3Jvbmc=\r\n\r\n"
            )
        asked.append(await connection.reader.read())

    routes = {
        name: {"path": f"/{name}", "upstream": "api", "websocket": True} for name in ("talk", "refusing", "wrong")
    }
    async with raw_upstream(script) as upstream:
        async with open_to(gateway(None, routes, upstreams={"api": {"url": upstream.url}})) as url:
            reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2].partition("/")[0]))
            head = HANDSHAKE.partition(b"\r\n")[2]
            writer.write(line + b"\r\n" + head + fields + b"\r\n" + b"GET /talk HTTP/1.1\r\nHost: a.test\r\n\r\n" * 2)
            answer = await reader.read()
            writer.close()
        assert answer.count(b"HTTP/1.1 ") == 1
        assert b"HTTP/1.1 101" not in answer
        path = line.split()[1]
        assert asked == ([b"GET %s HTTP/1.1" % path, b""] if path in (b"/refusing", b"/wrong") else [])


def test_uvicorn_is_as_the_protocol_knows_it() -> None:
    for kind, names in INTERNALS.items():
        source = inspect.getsource(kind)
        assert [name for name in names if f"self.{name}" not in source and f"def {name}(" not in source] == []
