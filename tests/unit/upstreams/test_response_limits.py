"""The limits of a response's head: settings, named in the log, in the metric and in the problem where they are hit."""

from __future__ import annotations

import logging

import pytest

from gateway import create_app
from gateway.testing import running
from tests.support.raw import always, raw_upstream

WAYS = pytest.mark.parametrize(
    ("transport", "method"),
    [("aiohttp", "GET"), ("aiohttp", "POST"), ("httpx", "GET")],
    ids=["plain", "aiohttp", "httpx"],
)


def fields(count: int, size: int = 1) -> bytes:
    lines = [b"X-Field-%d: %b\r\n" % (number, b"v" * size) for number in range(count - 1)]
    return b"HTTP/1.1 200 OK\r\n" + b"".join(lines) + b"Content-Length: 2\r\n\r\nok"


@WAYS
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
