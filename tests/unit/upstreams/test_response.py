"""Streams have limits of their own: the time between two pieces apart from the whole, and no end for endless types."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import httpx
import pytest

from gateway import create_app
from gateway.config.upstream import UpstreamConfig
from gateway.edge import GatewayProtocol
from gateway.errors import UpstreamTimeout
from gateway.testing import running
from gateway.upstreams.client import Upstream
from tests.support.gateways import gateway, served
from tests.support.raw import Connection, always, raw_upstream

ENDLESS = [
    "text/event-stream",
    "Text/Event-Stream; charset=utf-8",
    "application/x-ndjson",
    "multipart/x-mixed-replace; boundary=x",
]
WAYS = pytest.mark.parametrize(
    ("transport", "method"),
    [("aiohttp", "GET"), ("aiohttp", "OPTIONS"), ("httpx", "GET")],
    ids=["plain", "session", "httpx"],
)


def dripping(content_type: str, pieces: int, pause: float) -> Any:
    """A script that answers by so many pieces, with pauses between them."""

    async def script(connection: Connection) -> None:
        while await connection.request():
            await connection.send(
                b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n" % content_type.encode()
            )
            for _ in range(pieces):
                await connection.send(b"1\r\nx\r\n")
                await asyncio.sleep(pause)
            await connection.send(b"0\r\n\r\n")

    return script


async def streamed(upstream: Upstream, method: str) -> bytes:
    fetched = await upstream.fetch(method, "/", [])
    return b"".join([piece async for piece in fetched.body.chunks()])


@WAYS
@pytest.mark.parametrize("content_type", ENDLESS)
async def test_an_endless_type_is_cut_by_no_total_and_by_a_gap_of_its_own(
    content_type: str, method: str, transport: str
) -> None:
    async with raw_upstream(dripping(content_type, 5, 0.15)) as raw:
        settings = {"url": raw.url, "transport": transport, "timeout": "100ms", "stream_timeout": "200ms"}
        upstream = Upstream("up", UpstreamConfig.model_validate(settings))
        assert await streamed(upstream, method) == b"xxxxx"
        assert upstream.hosts[0].failures == {}
        await upstream.aclose()
        upstream = Upstream("up", UpstreamConfig.model_validate({**settings, "stream_idle_timeout": "50ms"}))
        with pytest.raises(UpstreamTimeout, match="stream_idle_timeout"):
            await streamed(upstream, method)
        assert upstream.hosts[0].failures == {"timeout": 1}
        await upstream.aclose()


@WAYS
async def test_other_streams_have_both_limits(method: str, transport: str) -> None:
    async with raw_upstream(dripping("application/octet-stream", 5, 0.15)) as raw:
        for settings, over in (
            ({"timeout": "100ms"}, "stream_idle_timeout"),
            ({"stream_idle_timeout": "100ms"}, "stream_idle_timeout"),
            ({"timeout": "100ms", "stream_idle_timeout": "1s", "stream_timeout": "400ms"}, "stream_timeout"),
            ({"timeout": "100ms", "stream_idle_timeout": "1s"}, None),
        ):
            config = UpstreamConfig.model_validate({"url": raw.url, "transport": transport, **settings})
            upstream = Upstream("up", config)
            if over is None:
                assert await streamed(upstream, method) == b"xxxxx"
            else:
                with pytest.raises(UpstreamTimeout, match=over):
                    await streamed(upstream, method)
            await upstream.aclose()


@pytest.mark.parametrize("edge", [True, False], ids=["edge", "app"])
@pytest.mark.parametrize("content_type", ENDLESS)
async def test_an_endless_type_is_neither_collected_nor_compressed_nor_stored(content_type: str, edge: bool) -> None:
    sent = asyncio.Event()
    asked = 0

    async def script(connection: Connection) -> None:
        nonlocal asked
        while await connection.request():
            asked += 1
            await connection.send(
                b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n800\r\n%b\r\n"
                % (content_type.encode(), b"x" * 2048)
            )
            await sent.wait()
            await connection.send(b"1\r\ny\r\n0\r\n\r\n")

    routes = {"all": {"path": "/{path:path}", "upstream": "up", "ttl": "60s"}}
    async with raw_upstream(script) as raw:
        app = gateway(None, routes, upstreams={"up": {"url": raw.url, "timeout": "300ms"}})
        http: Any = GatewayProtocol if edge else "httptools"
        async with served(app, http=http) as url, httpx.AsyncClient(base_url=url) as client:
            for _ in range(2):
                sent.clear()
                async with client.stream("GET", "/events", headers={"accept-encoding": "gzip"}) as answer:
                    pieces = answer.aiter_raw()
                    assert (await anext(pieces))[:1] == b"x"  # before the end has come
                    assert "content-encoding" not in answer.headers
                    await asyncio.sleep(0.5)  # longer than the upstream's timeout
                    sent.set()
                    assert b"".join([piece async for piece in pieces]).endswith(b"y")
            assert asked == 2


TRANSPORTS = pytest.mark.parametrize(
    ("transport", "method"),
    [("aiohttp", "GET"), ("aiohttp", "POST"), ("httpx", "GET")],
    ids=["plain", "aiohttp", "httpx"],
)


def fields(count: int, size: int = 1) -> bytes:
    lines = [b"X-Field-%d: %b\r\n" % (number, b"v" * size) for number in range(count - 1)]
    return b"HTTP/1.1 200 OK\r\n" + b"".join(lines) + b"Content-Length: 2\r\n\r\nok"


@TRANSPORTS
@pytest.mark.parametrize(
    ("settings", "fits", "exceeds", "named"),
    [
        ({}, fields(256), fields(257), "max_response_fields"),
        ({"max_response_fields": 600}, fields(600), fields(601), "max_response_fields"),
        ({"max_response_fields": 3}, fields(3), fields(4), "max_response_fields"),
        ({"max_response_headers": "4KiB"}, fields(20, 100), fields(40, 100), "max_response_headers"),
    ],
    ids=["the default", "more", "fewer", "bytes"],
)
async def test_a_head_within_its_limits_passes_and_one_beyond_names_the_setting(
    transport: str,
    method: str,
    settings: dict[str, object],
    fits: bytes,
    exceeds: bytes,
    named: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for data, status in ((fits, 200), (exceeds, 502)):
        async with raw_upstream(always(data)) as raw:
            upstream = {"url": raw.url, "transport": transport, **settings}
            routes = {"all": {"path": "/{p:path}", "upstream": "api"}}
            app = create_app({"redis_url": "none", "upstreams": {"api": upstream}, "routes": routes})
            async with running(app) as client:
                response = await client.request(method, "/x")
                assert response.status_code == status
    assert response.json()["title"] == "Upstream sent a response head that is too large"
    assert "detail=large-head" in response.headers["cache-status"]
    assert 'gateway_upstream_requests_total{result="large-head",upstream="api"} 1.0' in app.metrics.render().decode()
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any("upstream api" in text and "large-head" in text and named in text for text in warnings)
