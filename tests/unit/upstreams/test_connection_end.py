"""Responses that end with their connection: whole where the upstream ended it on purpose, an error where it was cut."""

from __future__ import annotations

import gzip
import socket
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from gateway import create_app
from gateway.app.gateway import Gateway
from gateway.errors import UpstreamError
from gateway.testing import TurnedClock, running
from tests.support.raw import Connection, RawUpstream, raw_upstream, speaking_to

UNTIL_CLOSE = b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\nCache-Control: max-age=60\r\n\r\n[1, 2, 3]"
BODY = len(UNTIL_CLOSE) - len(b"[1, 2, 3]")
FRAMED = {
    "a length": b"HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\n[1, 2, 3]",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n9\r\n[1, 2, 3]\r\n0\r\n\r\n",
}
End = Callable[[Connection], Awaitable[None]]


async def fin(connection: Connection) -> None:
    connection.writer.close()


async def reset(connection: Connection) -> None:
    """A reset, behind what was sent: it has left, as a reset drops what has not."""
    sock = connection.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.writer.transport.abort()


async def cut(connection: Connection) -> None:
    """The end of a TLS connection without close_notify: a FIN from somebody on the way."""
    transport = connection.writer.transport
    transport._ssl_protocol._transport.close()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    made = tmp_path_factory.mktemp("tls")
    files = ["-keyout", str(made / "key"), "-out", str(made / "certificate")]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", *files],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made / "certificate", made / "key")
    return context


class Cutting:
    """Sends the first `at` bytes of `data` in answer to a request; then `end`."""

    def __init__(self, data: bytes, end: End, *, at: int | None = None) -> None:
        self.data, self.end, self.at = data, end, len(data) if at is None else at
        self.asked = 0

    async def __call__(self, connection: Connection) -> None:
        head = await connection.request()
        if not head:
            return
        self.asked += 1
        if b"content-length: 2" in head.lower():
            await connection.reader.readexactly(2)
        await connection.send(self.data[: self.at])
        await self.end(connection)


async def _body() -> AsyncIterator[bytes]:
    yield b"{}"


async def whole(raw: RawUpstream, method: str) -> bytes | None:
    """The body that an upstream's answer has. Raises UpstreamError."""
    upstream = speaking_to(raw, verify=False)
    try:
        headers = [(b"content-length", b"2")] if method == "POST" else []
        fetched = await upstream.fetch(method, "/", headers, _body() if method == "POST" else None)
        return await fetched.body.whole(1000)
    finally:
        await upstream.aclose()


WAYS = pytest.mark.parametrize("method", ["GET", "POST"], ids=["plain sockets", "aiohttp"])


@WAYS
@pytest.mark.parametrize("secured", [False, True], ids=["plain", "TLS"])
async def test_a_body_ends_with_a_connection_that_was_ended_on_purpose(
    method: str, secured: bool, tls: ssl.SSLContext
) -> None:
    async with raw_upstream(Cutting(UNTIL_CLOSE, fin), tls if secured else None) as raw:
        assert await whole(raw, method) == b"[1, 2, 3]"


@WAYS
async def test_a_reset_at_every_byte_is_an_error(method: str) -> None:
    for at in range(len(UNTIL_CLOSE) + 1):
        async with raw_upstream(Cutting(UNTIL_CLOSE, reset, at=at)) as raw:
            with pytest.raises(UpstreamError):
                await whole(raw, method)


@WAYS
async def test_an_end_of_tls_without_close_notify_at_every_byte_is_an_error(method: str, tls: ssl.SSLContext) -> None:
    for at in range(len(UNTIL_CLOSE) + 1):
        async with raw_upstream(Cutting(UNTIL_CLOSE, cut, at=at), tls) as raw:
            with pytest.raises(UpstreamError):
                await whole(raw, method)


@WAYS
@pytest.mark.parametrize("framing", FRAMED)
async def test_an_early_end_at_every_byte_of_a_framed_body_is_an_error(method: str, framing: str) -> None:
    data = FRAMED[framing]
    for at in range(len(data)):
        async with raw_upstream(Cutting(data, fin, at=at)) as raw:
            with pytest.raises(UpstreamError):
                await whole(raw, method)


def site(url: str, clock: TurnedClock | None = None, transport: str = "aiohttp", **route: Any) -> Gateway:
    part = {"upstream": "api", "path": "/", "ttl": "60s", **route}
    routes = {
        "own": {"path": "/own", "upstream": "api", "ttl": "60s"},
        "origin": {"path": "/origin", "upstream": "api"},
        "joined": {"path": "/joined", "parts": {"a": part, "b": {"static": {}}}},
    }
    upstreams = {"api": {"url": url, "transport": transport, "breaker_failures": 1000}}
    return create_app({"redis_url": "none", "upstreams": upstreams, "routes": routes}, clock=clock)


@pytest.mark.parametrize("target", ["/own", "/joined"], ids=["a route", "a part"])
async def test_what_ends_with_its_connection_is_stored_where_the_route_decides_the_life(target: str) -> None:
    script = Cutting(UNTIL_CLOSE, fin)
    async with raw_upstream(script) as raw, running(site(raw.url)) as client:
        for _ in range(3):
            response = await client.get(target)
            assert response.status_code == 200
        assert script.asked == 1
        for _ in range(2):
            response = await client.get("/origin")
            assert "detail=end-in-doubt" in response.headers["cache-status"]
        assert script.asked == 3


async def test_a_compressed_body_that_shows_that_it_was_cut_is_not_stored() -> None:
    clock = TurnedClock()
    head = b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\n\r\n"
    script = Cutting(head + gzip.compress(b"[1, 2, 3]"), fin)
    async with raw_upstream(script) as raw, running(site(raw.url, clock)) as client:
        for at in range(len(head) + 1, len(script.data)):
            script.at, asked = at, script.asked
            async with client.stream("GET", "/own") as response:
                assert "detail=end-in-doubt" in response.headers["cache-status"], at
            assert script.asked == asked + 1
            clock.turn(60)
        script.at = len(script.data)
        asked = script.asked
        assert [(await client.get("/own")).json() for _ in range(2)] == [[1, 2, 3]] * 2
        assert script.asked == asked + 1


async def test_httpxs_transport_shows_no_cut_so_nothing_of_it_is_stored() -> None:
    script = Cutting(UNTIL_CLOSE, fin)
    async with raw_upstream(script) as raw, running(site(raw.url, transport="httpx")) as client:
        for _ in range(2):
            response = await client.get("/own")
            assert "detail=end-in-doubt" in response.headers["cache-status"]
    assert script.asked == 2


@pytest.mark.parametrize(
    ("target", "part"),
    [("/own", {}), ("/joined", {}), ("/joined", {"method": "POST", "body": {}})],
    ids=["a route", "a part", "a part by POST"],
)
@pytest.mark.parametrize("end", [reset, fin])
async def test_what_was_cut_at_any_byte_is_never_stored(target: str, part: dict[str, Any], end: End) -> None:
    """By a reset anywhere; by a FIN within the head, as behind it nothing tells one that was meant from a cut."""
    clock = TurnedClock()
    script = Cutting(UNTIL_CLOSE, end)
    async with raw_upstream(script) as raw, running(site(raw.url, clock, **part)) as client:
        for at in range(len(UNTIL_CLOSE) + 1 if end is reset else BODY):
            script.at = at
            for _ in range(2):
                asked = script.asked
                response = await client.get(target)
                assert (response.status_code, script.asked) == (502, asked + 1), at
                clock.turn(3600)
