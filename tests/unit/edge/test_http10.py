"""Clients that speak HTTP/1.0: no chunks, no interim responses, an open connection where they ask for one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import APIRouter
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from gateway.app.gateway import create_app
from gateway.edge.protocol import GatewayProtocol
from gateway.routing.cached_decorator import cached
from tests.support.gateways import served
from tests.support.raw import Connection, Script, always, raw_upstream

CHUNKED = b"HTTP/1.1 200 OK\r\n%bTransfer-Encoding: %b\r\n\r\n5\r\nhello\r\n5;a=b\r\nworld\r\n0\r\n\r\n"
NO_STORE = b"Cache-Control: no-store\r\n"
KEPT = CHUNKED % (b"Cache-Control: max-age=60\r\n", b"Chunked")
BAD_GATEWAY = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 3\r\n\r\nbad"

ROUTES: dict[str, Any] = {
    "all": {"path": "/up/{p:path}", "upstream": "api"},
    "own": {"path": "/own/{p:path}", "upstream": "api", "ttl": "60s"},
    "joined": {
        "path": "/joined/{p}",
        "parts": {"a": {"upstream": "api", "path": "/json"}, "b": {"upstream": "api", "path": "/json"}},
    },
}


def handlers() -> APIRouter:
    router = APIRouter()

    @router.get("/stream")
    async def stream() -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"hello"
            yield b"world"

        return StreamingResponse(pieces(), headers={"Transfer-Encoding": "chunked"})

    @router.get("/broken")
    async def broken() -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"hello"
            raise RuntimeError("in the middle")

        return StreamingResponse(pieces())

    @router.post("/read")
    async def read(body: dict[str, Any]) -> PlainTextResponse:
        return PlainTextResponse("helloworld")

    @router.get("/kept")
    @cached(ttl="60s")
    async def kept() -> dict[str, str]:
        return {"hello": "world"}

    @router.get("/nothing")
    async def nothing() -> Response:
        return Response(status_code=204)

    return router


@contextlib.asynccontextmanager
async def site(script: Script) -> AsyncIterator[Any]:
    """A function that sends bytes to a gateway before an upstream, and gives all that comes until the end."""
    async with raw_upstream(script) as raw:
        app = create_app({"redis_url": "none", "upstreams": {"api": {"url": raw.url}}, "routes": ROUTES})
        app.include_router(handlers())
        async with served(app, http=GatewayProtocol) as url:
            port = int(url.rpartition(":")[2])

            async def sent(data: bytes) -> bytes:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(data)
                try:
                    return await asyncio.wait_for(reader.read(), 5)
                finally:
                    writer.close()

            yield sent


def request(target: str, *fields: str, method: str = "GET", version: str = "1.0", body: bytes = b"") -> bytes:
    length = [f"Content-Length: {len(body)}"] if body else []
    return "\r\n".join([f"{method} {target} HTTP/{version}", "Host: a.test", *length, *fields, "", ""]).encode() + body


def split(answer: bytes) -> tuple[bytes, dict[bytes, bytes], bytes]:
    """The status line, the fields and the rest."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    line, *lines = head.split(b"\r\n")
    return line, {name: value for name, _, value in (each.partition(b": ") for each in lines)}, rest


def answers(data: bytes) -> list[tuple[bytes, bytes]]:
    """The `Connection` and the body of each answer in `data`, by their lengths."""
    found = []
    while data:
        _, fields, data = split(data)
        length = int(fields.get(b"content-length", b"0"))
        found.append((fields.get(b"connection", b""), data[:length]))
        data = data[length:]
    return found


@pytest.mark.parametrize("coding", [b"chunked", b"Chunked", b"CHUNKED"])
@pytest.mark.parametrize("method", ["GET", "POST"], ids=["plain sockets", "aiohttp"])
async def test_a_body_without_a_length_comes_plain_and_ends_with_the_connection(coding: bytes, method: str) -> None:
    async with site(always(CHUNKED % (NO_STORE, coding))) as sent:
        for target, asked in (("/up/x", ()), ("/up/x", ("Connection: keep-alive",)), ("/own/x", ("Authorization: b",))):
            _, fields, body = split(await sent(request(target, *asked, method=method, body=b"{}" * (method == "POST"))))
            assert (fields[b"connection"], body) == (b"close", b"helloworld")
            assert b"transfer-encoding" not in fields


async def test_the_same_is_in_chunks_for_who_speaks_1_1() -> None:
    async with site(always(CHUNKED % (NO_STORE, b"Chunked"))) as sent:
        for method in ("GET", "POST"):
            data = request("/up/x", "Connection: close", method=method, version="1.1", body=b"{}" * (method == "POST"))
            _, fields, body = split(await sent(data))
            assert fields[b"transfer-encoding"] == b"chunked"
            assert body.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize(
    ("target", "method", "expected"),
    [
        ("/up/kept", "GET", b"helloworld"),
        ("/own/x", "GET", b"helloworld"),
        ("/up/kept", "HEAD", b""),
        ("/kept", "GET", b'{"hello":"world"}'),
        ("/nowhere/%00", "GET", None),
        ("/%2e%2e/x", "GET", None),
        ("/healthz", "GET", None),
    ],
)
async def test_an_answer_with_a_length_leaves_the_connection_open_if_asked(
    target: str, method: str, expected: bytes | None
) -> None:
    async with site(always(KEPT)) as sent:
        asked = request(target, method=method)
        for _ in range(2):  # by the app, then by the edge
            line, fields, body = split(await sent(asked))
            assert fields[b"connection"] == b"close"
            assert expected is None or (line, body) == (b"HTTP/1.1 200 OK", expected)
        kept = request(target, "Connection: Keep-Alive", method=method)
        last = request(target, "Connection: keep-alive, close", method=method)
        said = [connection for connection, _ in answers_of(await sent(kept + kept + last), method)]
    refused = expected is None and target != "/healthz"
    assert said == ([b"close"] if refused else [b"keep-alive", b"keep-alive", b"close"])


def answers_of(data: bytes, method: str) -> list[tuple[bytes, bytes]]:
    if method != "HEAD":
        return answers(data)
    return [(split(head + b"\r\n\r\n")[1].get(b"connection", b""), b"") for head in data.split(b"\r\n\r\n")[:-1]]


async def test_an_aggregate_a_304_a_204_and_an_error_of_the_upstream_end_as_they_should() -> None:
    async def script(connection: Connection) -> None:
        while head := await connection.request():
            if b"/json" in head:
                await connection.send(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nCache-Control: max-age=60\r\n"
                    b"Transfer-Encoding: Chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
                )
            elif b"/up/fails" in head:
                await connection.send(BAD_GATEWAY)
            else:
                await connection.send(
                    b'HTTP/1.1 200 OK\r\nETag: "v"\r\nCache-Control: max-age=60\r\nContent-Length: 2\r\n\r\nok'
                )

    kept = "Connection: keep-alive"
    async with site(script) as sent:
        for _ in range(2):
            joined = await sent(request("/joined/1", kept) + request("/joined/1"))
            assert answers(joined) == [(b"keep-alive", b'{"a":{},"b":{}}'), (b"close", b'{"a":{},"b":{}}')]
            known = await sent(request("/up/x", kept, 'If-None-Match: "v"') + request("/up/x", 'If-None-Match: "v"'))
            assert [line for line in known.split(b"\r\n") if b"HTTP/1.1" in line] == [b"HTTP/1.1 304 Not Modified"] * 2
            assert answers(await sent(request("/up/fails", kept) + request("/up/fails"))) == [
                (b"keep-alive", b"bad"),
                (b"close", b"bad"),
            ]
            assert answers(await sent(request("/nothing", kept) + request("/nothing"))) == [
                (b"keep-alive", b""),
                (b"close", b""),
            ]


async def test_a_stream_of_a_handler_comes_plain_and_one_that_breaks_off_is_reset() -> None:
    async with site(always(BAD_GATEWAY)) as sent:
        _, fields, body = split(await sent(request("/stream", "Connection: keep-alive")))
        assert (fields[b"connection"], body) == (b"close", b"helloworld")
        assert b"transfer-encoding" not in fields
        with pytest.raises(ConnectionResetError):
            await sent(request("/broken"))


async def test_what_the_upstream_breaks_off_is_reset() -> None:
    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel")

    async with site(script) as sent:
        with pytest.raises(ConnectionResetError):
            await sent(request("/up/x", "Authorization: b"))


@pytest.mark.parametrize("target", ["/read", "/up/x"])
async def test_an_expectation_is_ignored_and_no_interim_response_is_sent(target: str) -> None:
    async def script(connection: Connection) -> None:
        while await connection.request():
            await connection.reader.readexactly(2)
            hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
            await connection.send(hints + b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhelloworld")

    async with site(script) as sent:
        asked = request(target, "Expect: 100-continue", "Content-Type: application/json", method="POST", body=b"{}")
        line, _, body = split(await sent(asked))
        assert (line, body) == (b"HTTP/1.1 200 OK", b"helloworld")
        both = await sent(asked.replace(b"HTTP/1.0", b"HTTP/1.1").replace(b"Expect", b"Connection: close\r\nExpect"))
        assert both.startswith((b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103", b"HTTP/1.1 200"))
