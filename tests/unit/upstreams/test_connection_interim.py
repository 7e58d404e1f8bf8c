"""Interim responses (1xx) of an upstream: a bounded number of them, and what of them goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from gateway.edge.protocol import GatewayProtocol
from gateway.errors import UpstreamMalformed
from gateway.http.response_parser import Malformed
from gateway.upstreams.connection import MOST_INTERIM, PlainConnection, Pool
from tests.support.gateways import gateway, served
from tests.support.raw import OK, WAYS, Connection, always, ask, once, raw_upstream, speaking_to

EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n"


@WAYS
async def test_so_many_interim_responses_are_passed_over_and_no_more(method: str) -> None:
    heard: list[int] = []

    def hear(status: int, fields: Sequence[tuple[bytes, bytes]]) -> None:
        heard.append(status)

    async with raw_upstream(once(EARLY * MOST_INTERIM + OK)) as raw:
        upstream = speaking_to(raw)
        fetched = await upstream.fetch(method, "/", [], None, hear)
        assert await fetched.body.whole(10) == b"ok"
        await upstream.aclose()
    assert heard == [103] * MOST_INTERIM


@WAYS
@pytest.mark.parametrize("status", [b"100 Continue", b"102 Processing", b"103 Early Hints", b"199 Whatever"])
async def test_more_of_them_are_malformed_and_the_next_request_is_right(
    method: str, status: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    answers = [b"HTTP/1.1 %b\r\n\r\n" % status * (MOST_INTERIM + 1) + OK, OK]

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(answers.pop(0))

    async with raw_upstream(script) as raw:
        upstream = speaking_to(raw)
        with pytest.raises(UpstreamMalformed):
            await ask(upstream, method=method)
        assert await ask(upstream, method=method) == (200, b"ok")
        await upstream.aclose()
    assert "failed: malformed (more than 32 interim responses)" in caplog.text


@WAYS
async def test_a_server_that_sends_nothing_else_is_left_at_once(method: str) -> None:
    sent = 0

    async def script(connection: Connection) -> None:
        nonlocal sent
        await connection.request()
        while not connection.writer.is_closing():
            connection.writer.write(EARLY * 1000)
            sent += 1000
            try:
                await connection.writer.drain()
            except ConnectionError:
                return

    async with raw_upstream(script) as raw:
        upstream = speaking_to(raw)
        with pytest.raises(UpstreamMalformed):
            await ask(upstream, method=method)
        await upstream.aclose()
        while raw.open:
            await asyncio.sleep(0)
    assert sent * len(EARLY) < 64 * 2**20


def test_heads_in_one_piece_are_read_in_a_time_that_is_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.upstreams.connection.MOST_INTERIM", 10**9)

    def seconds(count: int) -> float:
        data = b"HTTP/1.1 102 P\r\n\r\n" * count
        best = 1e9
        for _ in range(3):
            connection = reading()
            began = time.process_time()
            connection._take_head(data)
            best = min(best, time.process_time() - began)
        return best

    assert seconds(160_000) < 8 * seconds(40_000)  # 4 where it is linear, 16 where each copies what is left


def reading() -> PlainConnection:
    pool: Pool = Pool(None, limit=1, keepalive=1)  # type: ignore[arg-type]
    return PlainConnection(pool, 65_536)


def test_each_interim_head_is_as_large_as_a_head_may_be_and_all_of_them_may_be_larger() -> None:
    connection = reading()
    early = b"HTTP/1.1 103 E\r\nX: %b\r\n\r\n" % (b"x" * 60_000)
    connection._take_head(early * 3 + early[:1000])
    assert connection._buffer == early[:1000]
    with pytest.raises(Malformed, match="larger than max_response_headers"):
        connection._take_head(b"x" * 65_000)


FILTERED = (
    b"HTTP/1.1 103 Early Hints\r\nServer: x\r\nX-Powered-By: php\r\nCache-Tag: a\r\nSurrogate-Key: b\r\n"
    b"Keep-Alive: timeout=5\r\nGateway-Cache-Control: max-age=1\r\nSurrogate-Control: max-age=1\r\n"
    b"Connection: X-Hop\r\nX-Hop: 1\r\nAccess-Control-Allow-Origin: *\r\nProxy-Authenticate: Basic\r\n"
    b"Link: <%b/a.css>; rel=preload\r\n\r\n"
)


@pytest.mark.parametrize("line", [b"GET /css/x", b"GET /css/x?1", b"POST /css/x", b"DELETE /css/x"])
@pytest.mark.parametrize("ttl", ["1m", "origin", "0s"])
async def test_an_interim_response_has_the_fields_that_a_final_one_would_keep(line: bytes, ttl: str) -> None:
    url = b""

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(FILTERED % url + b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with raw_upstream(script) as raw:
        url = raw.url.encode()
        routes = {
            "css": {"path": "/css/{name:path}", "upstream": "api", "upstream_path": "/{name}", "ttl": ttl},
        }
        app = gateway(None, routes, upstreams={"api": {"url": raw.url}})
        async with served(app, http=GatewayProtocol) as own:
            reader, writer = await asyncio.open_connection(*own.removeprefix("http://").split(":"))
            writer.write(b"%b HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % line)
            received = await reader.read()
            writer.close()
    assert received.startswith(
        b"HTTP/1.1 103 Early Hints\r\nlink: </css/a.css>; rel=preload\r\n\r\nHTTP/1.1 200 OK\r\n"
    )


async def test_a_malformed_field_of_an_interim_response_goes_no_further() -> None:
    heard: list[int] = []
    large = b"".join(b"X-%d: %b\r\n" % (number, b"x" * 30_000) for number in range(3))
    async with raw_upstream(once(b"HTTP/1.1 103 E\r\n" + large + b"\r\n" + OK)) as raw:
        upstream = speaking_to(raw)
        fetched = await upstream.fetch("POST", "/", [], None, lambda status, _: heard.append(status))
        assert await fetched.body.whole(10) == b"ok"
        await upstream.aclose()
    assert heard == []


@pytest.mark.parametrize("method", [b"GET", b"POST"])
async def test_nothing_waits_for_a_client_that_does_not_read(method: bytes) -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nX-Long: %b\r\n\r\n" % (b"x" * 60_000)
    final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nCache-Control: no-store\r\n\r\nok"
    async with raw_upstream(always(early * MOST_INTERIM + final)) as raw:
        app = gateway(None, upstreams={"api": {"url": raw.url}})
        async with served(app, http=GatewayProtocol) as own:
            host, port = own.removeprefix("http://").split(":")
            most, answered = 0, 0
            _, writer = await asyncio.open_connection(host, int(port))
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            request = b"%b /x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n" % method
            writer.write(request * 200)
            while answered < 100:
                most = max([most, *(each.transport.get_write_buffer_size() for each in app.guard._connections)])
                answered += 1
                await asyncio.sleep(0.005)
            writer.close()
    assert 0 < most < 64 * 1024 + 2 * len(early)
