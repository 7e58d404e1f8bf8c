"""What is received from an upstream, and which of it answers a request."""

from __future__ import annotations

import asyncio

import pytest

from gateway.upstreams import connection
from tests.support.gateways import gateway, served
from tests.support.raw import POISON, SECOND, Connection, raw_upstream, speaking_to


async def test_a_connection_is_used_again_after_a_head_once_it_was_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "QUIET", 0.05)

    async def script(connection: Connection) -> None:
        while await connection.request():
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n")

    async with raw_upstream(script) as raw:
        upstream = speaking_to(raw)
        pool = upstream.transport.plain  # type: ignore[attr-defined]
        for _ in range(3):
            await (await upstream.fetch("HEAD", "/", [])).body.aclose()
            while not any(pool._idle.values()):
                await asyncio.sleep(0.001)
        assert (raw.connections, pool.in_use) == (1, 0)
        await upstream.aclose()


async def test_what_comes_late_after_a_head_answers_no_other_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """The content that the head announced is sent when the next request is on its way already."""
    monkeypatch.setattr(connection, "QUIET", 60.0)

    async def script(connection: Connection) -> None:
        while request := await connection.request():
            if request.startswith(b"HEAD"):
                await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(POISON))
                await connection.request()
                await connection.send(POISON)
            else:
                await connection.send(SECOND)

    async with raw_upstream(script) as raw:
        upstream = speaking_to(raw)
        await (await upstream.fetch("HEAD", "/", [])).body.aclose()
        assert await (await upstream.fetch("GET", "/", [])).body.whole(100) == b"second"
        await upstream.aclose()


@pytest.mark.parametrize(("method", "ttl"), [("GET", "30s"), ("GET", "origin"), ("GET", "0s"), ("PUT", "30s")])
@pytest.mark.parametrize("status", [204, 304])
async def test_a_client_is_told_of_no_content_that_does_not_come(status: int, method: str, ttl: str) -> None:
    """On its connection, too, what announces content would take the next answer for it."""
    answers = [b"HTTP/1.1 %d X\r\nContent-Length: 43\r\n\r\n" % status, SECOND]

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(answers.pop(0))
        await connection.closed()

    head = f"{method} /first HTTP/1.1\r\nHost: a\r\nIf-None-Match: a\r\nCookie: a=b\r\n"
    routes = {"all": {"path": "/{path:path}", "upstream": "raw", "ttl": ttl}}
    async with (
        raw_upstream(script) as raw,
        served(gateway(None, routes, upstreams={"raw": {"url": raw.url}})) as url,
    ):
        host, _, port = url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"{head}\r\n".encode())
        first = await reader.readuntil(b"\r\n\r\n")
        assert first.startswith(b"HTTP/1.1 %d " % status)
        assert b"content-length: 43" not in first.lower()
        assert b"transfer-encoding" not in first.lower()
        writer.write(b"GET /second HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        second = await reader.read()
        assert (second.startswith(b"HTTP/1.1 200 "), second[-6:]) == (True, b"second")
        writer.close()


async def test_another_protocol_that_nobody_asked_for_is_an_error_and_ends_the_connection() -> None:
    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")
        await connection.closed()

    async with raw_upstream(script) as raw:
        upstream = speaking_to(raw)
        with pytest.raises(Exception, match="invalid or incomplete"):
            await upstream.fetch("GET", "/", [])
        assert upstream.transport.connections_in_use == 0  # type: ignore[attr-defined]
        await upstream.aclose()
