"""Whatever an upstream or a handler says of a response's framing, what leaves is well-formed: the next response on the
connection is read as it was meant."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi import APIRouter
from starlette.responses import Response

from gateway.app.gateway import create_app
from gateway.edge.protocol import GatewayProtocol
from tests.support.gateways import served
from tests.support.raw import Connection, raw_upstream

STATUSES = {200: b"OK", 204: b"No Content", 205: b"Reset Content", 304: b"Not Modified"}
FRAMINGS = {
    "nothing": b"\r\n",
    "a length of 0": b"Content-Length: 0\r\n\r\n",
    "a length": b"Content-Length: 5\r\n\r\nhello",
    "a length without content": b"Content-Length: 5\r\n\r\n",
    "chunks": b"Transfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "chunks without content": b"Transfer-Encoding: chunked\r\n\r\n",
}
ROUTES: dict[str, Any] = {
    "all": {"path": "/up/{p:path}", "upstream": "api"},
    "own": {"path": "/own/{p:path}", "upstream": "api", "ttl": "60s"},
}


class Parser:
    """Reads the responses of one connection as a client does."""

    def __init__(self, methods: list[str]) -> None:
        self.methods = methods
        self.statuses: list[int] = []
        self.interim = 0
        self.fields: list[tuple[bytes, bytes]] = []

    def read(self, data: bytes) -> None:
        """Raises httptools.HttpParserError where what came is no response, or has bytes behind it."""
        for method in self.methods:
            while True:
                head, _, data = data.partition(b"\r\n\r\n")
                status = int(head[9:12])
                assert head.startswith(b"HTTP/1.1 "), head
                fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
                if status >= 200:
                    break
                self.interim += 1
                assert not {b"content-length", b"transfer-encoding"} & fields.keys(), head
            self.statuses.append(status)
            if status in (204, 304):
                assert not {b"content-length", b"transfer-encoding"} & fields.keys(), head
            elif method != "HEAD":
                data = self._body(fields, data, head)
            if status == 205:
                assert fields[b"content-length"] == b"0"
            if data == b"" and fields.get(b"connection") == b"close":
                return
        assert data == b""

    def _body(self, fields: dict[bytes, bytes], data: bytes, head: bytes) -> bytes:
        assert (b"content-length" in fields) != (b"transfer-encoding" in fields), head
        if b"content-length" in fields:
            length = int(fields[b"content-length"])
            assert len(data) >= length, head
            return data[length:]
        assert fields[b"transfer-encoding"] == b"chunked"
        while True:
            size, _, data = data.partition(b"\r\n")
            data = data[int(size, 16) :]
            assert data.startswith(b"\r\n")
            data = data[2:]
            if size == b"0":
                return data


async def _sent(url: str, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    writer.write(data)
    try:
        return await asyncio.wait_for(reader.read(), 5)
    finally:
        writer.close()


INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nContent-Length: 0\r\n\r\n"
CASES = [
    pytest.param(status, framing, id=f"{status} with {name}")
    for status in STATUSES
    for name, framing in FRAMINGS.items()
    if status != 200 or not name.endswith("without content")
]


@pytest.mark.parametrize(("status", "framing"), CASES)
@pytest.mark.parametrize("interim", [b"", INTERIM], ids=["", "after interim responses"])
async def test_an_upstreams_response_leaves_well_formed_by_every_way(
    status: int, framing: bytes, interim: bytes
) -> None:
    head, _, content = (b"HTTP/1.1 %d %b\r\n" % (status, STATUSES[status]) + framing).partition(b"\r\n\r\n")

    async def script(connection: Connection) -> None:
        while asked := await connection.request():
            await connection.send(interim + head + b"\r\n\r\n" + (b"" if asked.startswith(b"HEAD") else content))
            if not content:
                return

    async with raw_upstream(script) as raw:
        app = create_app({"redis_url": "none", "upstreams": {"api": {"url": raw.url}}, "routes": ROUTES})
        async with served(app, http=GatewayProtocol, date_header=False, server_header=False) as url:
            for target in ("/up/x", "/own/x"):
                for method in ("GET", "HEAD", "POST", "PUT", "OPTIONS"):
                    for version in (b"1.1", b"1.0"):
                        body = b"Content-Length: 2\r\n\r\n{}" if method in ("POST", "PUT") else b"\r\n"
                        fields = b'Host: a\r\nConnection: keep-alive\r\nIf-None-Match: "x"\r\n'
                        one = b"%b %b HTTP/%b\r\n%b%b" % (method.encode(), target.encode(), version, fields, body)
                        last = b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
                        answer = await _sent(url, one + last)
                        parser = Parser([method, "GET"])
                        head = answer.partition(b"\r\n\r\n")[0].lower()
                        if version == b"1.0" and b"content-length" not in head and b"connection: close" in head:
                            continue  # its end is that of the connection
                        parser.read(answer)
                        assert parser.interim == 0 or version == b"1.1"


HANDLED = (200, 204, 205, 304)


@pytest.mark.parametrize("status", HANDLED)
@pytest.mark.parametrize("fields", [{}, {"Content-Length": "5"}, {"Transfer-Encoding": "chunked"}])
async def test_a_handlers_response_leaves_well_formed(status: int, fields: dict[str, str]) -> None:
    router = APIRouter()

    @router.get("/h")
    async def handler() -> Response:
        response = Response(b"hello", status_code=status)
        response.raw_headers = [(name.lower().encode(), value.encode()) for name, value in fields.items()]
        return response

    app = create_app({"redis_url": "none"})
    app.include_router(router)
    async with served(app, http=GatewayProtocol) as url:
        one = b"GET /h HTTP/1.1\r\nHost: a\r\n\r\n"
        last = b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        parser = Parser(["GET", "GET"])
        parser.read(await _sent(url, one + last))
    assert parser.statuses == [status, 200]
