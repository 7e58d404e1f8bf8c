"""WebSockets of declared routes: who may open one, what the upstream is asked for, and what a refusal says."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from gateway.app.gateway import Gateway, create_app
from gateway.context import RequestContext
from gateway.observability.access_log import fields_of
from gateway.testing import StubUpstream
from tests.support.gateways import gateway, json_answer
from tests.support.raw import Connection, raw_upstream
from tests.support.websockets import HANDSHAKE, echo, open_to, talking
from tests.support.wire import refused_by


async def refused(url: str, **options: Any) -> tuple[int, dict[str, str], bytes]:
    """The answer to a handshake that is not accepted."""
    with pytest.raises(InvalidStatus) as raised:
        await connect(url, **options)
    response = raised.value.response
    return response.status_code, {name.lower(): value for name, value in response.headers.raw_items()}, response.body


async def test_the_upstream_sees_the_clients_fields_and_the_forwarding_ones_and_no_extension() -> None:
    async with echo() as server, open_to(talking(server.url)) as url:
        fields = {"Cookie": "a=1", "Authorization": "Basic eA==", "X-Forwarded-Host": "evil.test", "Forwarded": "for=x"}
        origin, offered = url.replace("ws", "http")[:-5], ["one", "two"]
        async with connect(url + "?room=7", origin=origin, subprotocols=offered, additional_headers=fields) as client:
            assert client.subprotocol == "one"
            assert client.response is not None
            assert "sec-websocket-extensions" not in client.response.headers
            assert client.response.headers["x-request-id"] == server.requests[0]["x-request-id"]
    [seen] = server.requests
    assert (seen["cookie"], seen["authorization"]) == ("a=1", "Basic eA==")
    assert seen["x-forwarded-for"] == "127.0.0.1"
    assert seen["x-forwarded-proto"] == "http"
    assert "evil" not in str(seen)
    assert "sec-websocket-extensions" not in seen
    assert seen["connection"] == "Upgrade"


@pytest.mark.parametrize(
    ("cors", "origin", "allowed"),
    [
        ({}, None, True),
        ({}, "same", True),
        ({}, "https://evil.test", False),
        ({}, "null", False),
        ({"allow_origins": ["https://app.test"]}, "https://app.test", True),
        ({"allow_origins": ["https://app.test"]}, "https://evil.test", False),
        ({"allow_origins": ["*"]}, "https://evil.test", True),
    ],
)
async def test_pages_open_one_by_the_cors_settings(cors: dict[str, Any], origin: str | None, allowed: bool) -> None:
    async with echo() as server, open_to(talking(server.url, cors=cors)) as url:
        given: Any = url.replace("ws", "http")[:-5] if origin == "same" else origin
        if allowed:
            async with connect(url, origin=given):
                pass
        else:
            status, headers, body = await refused(url, origin=given)
            assert (status, json.loads(body)["title"]) == (403, "Forbidden")
            assert "cache-status" not in headers
        assert len(server.requests) == allowed


async def test_a_refusal_of_the_upstream_is_passed_on() -> None:
    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 418 Teapot\r\nServer: x\r\nX-A: 1\r\nContent-Length: 3\r\n\r\ntea")

    async with raw_upstream(script) as upstream, open_to(talking(upstream.url)) as url:
        status, headers, body = await refused(url)
        assert (status, headers["x-a"], body) == (418, "1", b"tea")
        assert headers["cache-status"] == "gateway; fwd=bypass; fwd-status=418; detail=websocket"
        assert "server" not in headers


async def test_an_upstream_that_is_gone_is_a_502_and_then_a_503() -> None:
    async with raw_upstream(_nothing) as upstream:
        pass
    settings = {"breaker_failures": 1, "retry_budget": 0}
    async with open_to(talking(upstream.url, upstream=settings)) as url:
        status, _, body = await refused(url)
        assert (status, json.loads(body)["title"]) == (502, "Upstream unreachable")
        status, headers, _ = await refused(url)
        assert (status, "retry-after" in headers) == (503, True)


async def _nothing(connection: Connection) -> None:
    return


async def test_one_too_many_is_a_503_until_another_ends() -> None:
    async with echo() as server, open_to(app := talking(server.url, upstream={"max_websockets": 1})) as url:
        async with connect(url):
            assert (await refused(url))[0] == 503
        await server.ended.get()
        counts = app.worker_state.websockets.counts("api")
        while counts.open:
            await asyncio.sleep(0.01)
        async with connect(url):
            pass


async def test_a_route_without_websocket_and_a_path_without_a_route_have_none() -> None:
    async with echo() as server:
        app = talking(server.url)
        async with open_to(app) as url:
            assert (await refused(url.replace("/talk", "/other")))[0] == 404
        plain: Gateway = gateway(StubUpstream(json_answer()), {"talk": {"path": "/talk", "upstream": "api"}})
        async with open_to(plain) as url:
            assert (await refused(url))[0] == 200  # where no route has one, Upgrade is ignored
    assert not server.requests


async def test_the_same_path_answers_http_as_before() -> None:
    route = {"ttl": "1m"}
    async with (
        raw_upstream(_hello) as raw,
        httpx.AsyncClient() as client,
        open_to(talking(raw.url, route=route)) as url,
    ):
        for outcome in ("fwd=miss", "hit"):
            answer = await client.get(url.replace("ws", "http"))
            assert answer.text == "hello"
            assert answer.headers["cache-status"].startswith(f"gateway; {outcome}")


async def _hello(connection: Connection) -> None:
    while await connection.request():
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")


async def test_one_without_a_credential_is_a_401_before_the_upstream_is_asked() -> None:
    identity = {"own": {"issuer": "https://issuer.test", "jwks": "https://issuer.test/keys", "audience": "a"}}
    async with echo() as server:
        app = talking(server.url, route={"identity": ["own"], "cache": False}, identity=identity)
        async with open_to(app) as url:
            status, headers, _ = await refused(url)
            assert status == 401
            assert headers["www-authenticate"].startswith("Bearer")
            assert refused_by(app) == {"identity-missing": 1}
        assert not server.requests


async def test_a_client_that_leaves_during_its_handshake_ends_that_with_the_upstream() -> None:
    logged: asyncio.Queue[int] = asyncio.Queue()
    arrived, ended = asyncio.Event(), asyncio.Event()

    async def silent(connection: Connection) -> None:
        await connection.request()
        arrived.set()
        await connection.closed()
        ended.set()

    def log(exchange: RequestContext, status: int, size: int, seconds: float) -> None:
        logged.put_nowait(status)

    async with raw_upstream(silent) as upstream:
        app = create_app(talking(upstream.url, upstream={"timeout": "1h"}).config, log=log)
        async with open_to(app) as url:
            port = int(url.rpartition(":")[2].partition("/")[0])
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HANDSHAKE + b"\r\n")
            await arrived.wait()
            writer.close()
            await ended.wait()
            assert await logged.get() == 499
            assert app.worker_state.websockets.counts("api").opening == 0


async def test_the_log_has_a_line_at_its_end_and_the_metrics_have_the_handshake() -> None:
    logged: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def log(exchange: RequestContext, status: int, size: int, seconds: float) -> None:
        logged.put_nowait(fields_of(exchange, status, size, seconds))

    async with echo() as server:
        config = talking(server.url).config
        app = create_app(config, log=log)
        async with open_to(app) as url:
            async with connect(url) as client:
                await client.send("hello")
                await client.recv()
                text = app.metrics.render().decode()
                assert 'gateway_requests_total{outcome="bypass",route="talk",status="1xx"} 1.0' in text
                assert 'gateway_upstream_requests_total{result="1xx",upstream="api"} 1.0' in text
                assert 'gateway_websockets{upstream="api"} 1.0' in text
                assert logged.empty()
            line = await logged.get()
    expected = {"status": 101, "route": "talk", "outcome": "bypass", "detail": "websocket", "path": "/talk"}
    assert expected.items() <= line.items()
    assert (line["close_code"], line["closed_by"], line["bytes"]) == (1000, "client", 11)
