"""Why upstreams failed: in the access log, the metric and the log, by every way and with both transports."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.app.gateway import create_app
from gateway.config.upstream import UpstreamConfig
from gateway.context import RequestContext
from gateway.edge import GatewayProtocol
from gateway.observability.access_log import fields_of
from gateway.upstreams.client import Upstream
from gateway.upstreams.failure_causes import CAUSES, cause_of
from tests.support.gateways import served
from tests.support.raw import OK, Connection, always, ask, raw_upstream
from tests.support.tls import Authority

LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + b"x" * 100
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n20\r\nok"


class Log:
    """An access log that keeps its lines; `came` is released for each."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.came = asyncio.Semaphore(0)

    def __call__(self, exchange: RequestContext, status: int, size: int, seconds: float) -> None:
        self.lines.append(fields_of(exchange, status, size, seconds))
        self.came.release()


@contextlib.asynccontextmanager
async def asked(url: str, *, edge: bool = True, **settings: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Log, Any]]:
    """A client of a gateway before the upstream at `url`, its access log, and the app."""
    log = Log()
    routes = {
        "origin": {"path": "/origin", "upstream": "up"},
        "own": {"path": "/own", "upstream": "up", "ttl": "60s"},
        "off": {"path": "/off", "upstream": "up", "cache": False},
        "stale": {"path": "/stale", "upstream": "up", "ttl": "0s", "stale_if_error": "60s"},
        "whole": {"path": "/whole", "parts": {"one": {"upstream": "up", "path": "/one", "ttl": "60s"}}},
    }
    config = {"redis_url": "none", "upstreams": {"up": {"url": url, **settings}}, "routes": routes}
    app = create_app(config, log=log)
    http: Any = GatewayProtocol if edge else "httptools"
    async with served(app, http=http) as at, httpx.AsyncClient(base_url=at) as client:
        yield client, log, app


def failures(app: Any) -> dict[str, float]:
    """The causes that were counted."""
    return {
        sample.labels["cause"]: sample.value
        for family in app.metrics.collect()
        for sample in family.samples
        if sample.name == "gateway_upstream_failures_total" and sample.value
    }


async def silent(connection: Connection) -> None:
    await connection.closed()


async def resetting(connection: Connection) -> None:
    await connection.request()
    sock: socket.socket = connection.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def talkative(connection: Connection) -> None:
    await connection.send(b"220 mail.test ESMTP\r\n" * 3)
    await connection.closed()


@contextlib.asynccontextmanager
async def failing(cause: str, folder: Path) -> AsyncIterator[tuple[str, str]]:
    """The URL of an upstream that fails by this cause, and what the log says of it."""
    if cause == "name":
        yield "http://nowhere.invalid", "not known|No address|name resolution"
    elif cause == "refused":
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            yield f"http://127.0.0.1:{bound.getsockname()[1]}", "connection refused"
    elif cause == "connect-timeout":
        with socket.socket() as full, contextlib.ExitStack() as held:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            for _ in range(4):
                one = held.enter_context(socket.socket())
                one.setblocking(False)
                one.connect_ex(full.getsockname())
            yield f"http://127.0.0.1:{full.getsockname()[1]}", "no connection within connect_timeout"
    elif cause == "certificate":
        async with raw_upstream(always(OK), Authority(folder).server("localhost")) as raw:
            yield raw.url, "unable to get local issuer certificate|self-signed"
    elif cause == "tls":
        async with raw_upstream(talkative) as raw:
            yield raw.url.replace("http:", "https:"), "wrong version number|record layer failure|packet length"
    else:
        script = {"reset": resetting, "timeout": silent, "malformed": always(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")}[cause]
        async with raw_upstream(script) as raw:
            yield raw.url, {"reset": "", "timeout": "deadline", "malformed": ""}[cause]


FAILING = ("name", "refused", "connect-timeout", "certificate", "tls", "reset", "timeout", "malformed")


@pytest.mark.parametrize("edge", [True, False], ids=["edge", "app"])
@pytest.mark.parametrize("transport", ["aiohttp", "httpx"])
@pytest.mark.parametrize("cause", FAILING)
async def test_the_cause_of_a_failure_is_in_log_and_metric(
    cause: str, transport: str, edge: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # A deadline that ends a request that others fail at sooner would be another cause.
    timeouts = {
        "timeout": "300ms" if cause == "timeout" else "20s",
        "connect_timeout": "150ms" if cause == "connect-timeout" else "10s",
    }
    settings = {**timeouts, "transport": transport, "breaker_failures": 0}
    async with failing(cause, tmp_path) as (url, said), asked(url, edge=edge, **settings) as (client, log, app):
        requests = [("GET", "/origin"), ("GET", "/own"), ("POST", "/own"), ("GET", "/off"), ("GET", "/whole")]
        for method, path in requests:
            answer = await client.request(method, path)
            assert answer.status_code in (502, 504)
            assert "127.0.0.1" not in answer.text
        assert [line.get("cause") for line in log.lines] == [cause] * len(requests)
        assert re.search(said, log.lines[0]["reason"])
        [(counted, number)] = failures(app).items()
        assert counted == cause
        # The deadline of the part, which is as long, may end its request a moment before.
        assert number in ((4, 5) if cause == "timeout" else (5,))
        told = [each.getMessage() for each in caplog.records if " failed: " in each.getMessage()]
        assert len(told) == 1  # of all five
        assert f" failed: {cause} (" in told[0]


@pytest.mark.parametrize("edge", [True, False], ids=["edge", "app"])
@pytest.mark.parametrize("begun", [LENGTH, CHUNKED], ids=["length", "chunked"])
@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/origin"), ("GET", "/off"), ("POST", "/off"), ("OPTIONS", "/own"), ("PUT", "/origin")]
)
@pytest.mark.parametrize("how", ["closed", "reset"])
async def test_a_stream_that_is_cut_is_a_failure_in_log_and_metrics(
    how: str, method: str, path: str, begun: bytes, edge: bool
) -> None:
    seen = asyncio.Event()

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(begun)
        await seen.wait()
        if how == "reset":
            sock: socket.socket = connection.writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async with raw_upstream(script) as raw, asked(raw.url, edge=edge) as (client, log, app):
        async with client.stream(method, path, headers={"cookie": "a=b"}) as answer:
            assert answer.status_code == 200
            pieces = answer.aiter_raw()
            assert await anext(pieces)
            seen.set()
            with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
                await anext(pieces)
        await log.came.acquire()
        line = log.lines[-1]
        assert (line["cause"], line["outcome"], line["detail"], line["status"]) == ("cut", "error", "cut", 200)
        assert line["reason"].startswith("its body broke off")
        assert failures(app) == {"cut": 1}
        counted = [
            (sample.labels["outcome"], sample.value)
            for family in app.metrics.collect()
            for sample in family.samples
            if sample.name == "gateway_requests_total"
        ]
        assert counted == [("error", 1.0)]


async def test_a_body_that_is_cut_while_it_is_collected_is_a_502_with_its_cause() -> None:
    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(LENGTH)

    async with raw_upstream(script) as raw, asked(raw.url) as (client, log, app):
        assert (await client.get("/own")).status_code == 502
        assert log.lines[0]["cause"] == "cut"
        assert failures(app) == {"cut": 1}


async def test_a_stale_answer_in_the_place_of_a_failure_names_the_cause() -> None:
    answers = [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", b"x\r\n\r\n"]

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(answers.pop(0))

    async with raw_upstream(script) as raw, asked(raw.url) as (client, log, _):
        assert [(await client.get("/stale")).status_code for _ in range(2)] == [200, 200]
        assert [(line["outcome"], line.get("cause")) for line in log.lines] == [
            ("miss", None),
            ("stale_error", "malformed"),
        ]


async def test_a_kept_connection_that_was_closed_is_no_failure() -> None:
    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(OK)
        await connection.request()

    async with raw_upstream(script) as raw, asked(raw.url) as (client, log, app):
        for _ in range(5):
            assert (await client.get("/off")).status_code == 200
        assert failures(app) == {}
        assert all("cause" not in line for line in log.lines)


def test_the_reason_of_a_certificate_is_told() -> None:
    error = ssl.SSLCertVerificationError("certificate verify failed")
    error.verify_message = "certificate has expired"
    outer = httpx.ConnectError("no")
    outer.__cause__ = error
    assert cause_of(outer) == ("certificate", "certificate has expired")
    assert set(FAILING) < set(CAUSES)


@pytest.fixture(autouse=True)
def _all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gateway")


async def test_a_host_that_takes_no_connection_in_time_is_replaced_by_another() -> None:
    with socket.socket() as full, contextlib.ExitStack() as held:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            one = held.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        async with raw_upstream(always(OK)) as raw:
            urls = [f"http://127.0.0.1:{full.getsockname()[1]}", raw.url]
            upstream = Upstream("up", UpstreamConfig.model_validate({"urls": urls, "connect_timeout": "200ms"}))
            assert await ask(upstream) == (200, b"ok")
            assert upstream.hosts[0].failures == {"connect-timeout": 1}
            await upstream.aclose()


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("no way to http://a.test/b?api_key=secret&x=1", "no way to http://a.test/b?…"),
        (r"Illegal header value b'Bearer x\'y\n'", "Illegal header value b'…'"),
        ('bad "secret" here', 'bad "…" here'),
        ("Server disconnected (idle)", "Server disconnected (idle)"),
        ("x" * 300, "x" * 200),
    ],
)
def test_the_text_of_a_cause_holds_no_value_of_a_request(message: str, shown: str) -> None:
    assert cause_of(httpx.LocalProtocolError(message)).text == shown
