"""Traces: what is passed on to upstreams, and the spans that OpenTelemetry gets to see."""

from __future__ import annotations

import asyncio
import gzip
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Event, Thread
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from gateway.app.gateway import create_app
from gateway.edge.protocol import GatewayProtocol
from gateway.observability.access_log import silent
from gateway.observability.tracing import Tracing, redacted, tracing_of_environment
from gateway.testing import StubUpstream, TurnedClock, running
from tests.support.gateways import gateway, json_answer, served

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
OWN = {"item": {"path": "/item/{id}", "upstream": "api", "ttl": "10s", "stale_while_revalidate": "1h"}}


class Seen:
    """The spans that ended."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracing = Tracing(provider)

    def of(self, kind: SpanKind) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.kind is kind]


def traced(seen: Seen, upstream: StubUpstream, routes: dict[str, Any], **more: Any) -> Any:
    config = {"redis_url": "none", "upstreams": {"api": {"url": "http://api.test"}}, "routes": routes, **more}
    return create_app(config, transport=upstream, clock=TurnedClock(), log=silent, tracing=seen.tracing)


# --- passed on -----------------------------------------------------------------------------------------------


async def test_a_client_s_traceparent_goes_to_the_upstream_of_a_route_with_its_own_ttl() -> None:
    upstream = StubUpstream(json_answer())
    async with running(gateway(upstream, OWN)) as client:
        await client.get("/item/1", headers={"traceparent": PARENT, "tracestate": "vendor=anything"})
    assert upstream.requests[0].headers["traceparent"] == PARENT
    assert "tracestate" not in upstream.requests[0].headers


@pytest.mark.parametrize(
    "given",
    [
        "00-1-1-01",
        PARENT.upper(),
        PARENT + "-more",
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-{TRACE}-{'0' * 16}-01",
        "ff" + PARENT[2:],
    ],
)
async def test_what_is_no_traceparent_goes_nowhere(given: str) -> None:
    upstream = StubUpstream(json_answer())
    async with running(gateway(upstream, OWN)) as client:
        await client.get("/item/1", headers={"traceparent": given})
        await client.get("/item/2", headers=[("traceparent", PARENT), ("traceparent", PARENT)])
    assert all("traceparent" not in request.headers for request in upstream.requests)


async def test_one_request_s_trace_is_not_the_next_one_s() -> None:
    upstream = StubUpstream(json_answer())
    async with running(gateway(upstream, OWN)) as client:
        await client.get("/item/1", headers={"traceparent": PARENT})
        await client.get("/item/2")
    assert "traceparent" not in upstream.requests[1].headers


async def test_parts_belong_to_the_trace_of_the_request_that_they_are_fetched_for() -> None:
    upstream = StubUpstream(json_answer())
    parts = {"a": {"upstream": "api", "path": "/a", "ttl": "1m"}, "b": {"upstream": "api", "path": "/b", "ttl": "1m"}}
    async with running(gateway(upstream, {"home": {"path": "/home", "parts": parts}})) as client:
        await client.get("/home", headers={"traceparent": PARENT})
    assert [request.headers["traceparent"] for request in upstream.requests] == [PARENT, PARENT]


# --- spans ---------------------------------------------------------------------------------------------------


async def test_a_miss_has_a_span_and_its_call_one_within_it() -> None:
    seen, upstream = Seen(), StubUpstream(json_answer())
    async with running(traced(seen, upstream, OWN)) as client:
        await client.get("/item/1?token=secret", headers={"traceparent": PARENT})
    (request,), (call,) = seen.of(SpanKind.SERVER), seen.of(SpanKind.CLIENT)
    assert request.context is not None
    assert request.parent is not None
    assert f"{request.context.trace_id:032x}" == TRACE
    assert f"{request.parent.span_id:016x}" == "00f067aa0ba902b7"
    assert call.parent == request.context
    assert call.context is not None
    assert upstream.requests[0].headers["traceparent"] == f"00-{TRACE}-{call.context.span_id:016x}-01"
    assert request.name == "GET item"
    assert (
        dict(request.attributes or {}).items()
        >= {
            "http.request.method": "GET",
            "http.response.status_code": 200,
            "url.path": "/item/1",
            "gateway.route": "item",
            "gateway.cache": "miss",
        }.items()
    )
    assert (
        dict(call.attributes or {}).items()
        >= {
            "http.request.method": "GET",
            "http.response.status_code": 200,
            "server.address": "api.test",
            "server.port": 80,
            "gateway.upstream": "api",
        }.items()
    )
    assert "secret" not in repr([span.to_json() for span in (request, call)])


async def test_a_hit_in_the_app_has_a_span_and_no_call() -> None:
    seen = Seen()
    async with running(traced(seen, StubUpstream(json_answer()), OWN)) as client:
        await client.get("/item/1")
        await client.get("/item/1")
    first, second = seen.of(SpanKind.SERVER)
    assert (first.attributes or {})["gateway.cache"] == "miss"
    assert (second.attributes or {})["gateway.cache"] == "hit"
    assert len(seen.of(SpanKind.CLIENT)) == 1


async def test_a_refresh_behind_is_a_trace_of_its_own_linked_to_the_request() -> None:
    seen, clock = Seen(), TurnedClock()
    config = {"redis_url": "none", "upstreams": {"api": {"url": "http://api.test"}}, "routes": OWN}
    app = create_app(config, transport=StubUpstream(json_answer()), clock=clock, log=silent, tracing=seen.tracing)
    async with running(app) as client:
        await client.get("/item/1")
        clock.turn(60)
        await client.get("/item/1")
        await app.engine.settle()
    call = seen.of(SpanKind.CLIENT)[1]
    stale = next(span for span in seen.of(SpanKind.SERVER) if (span.attributes or {})["gateway.cache"] == "stale")
    assert call.parent is None
    assert [link.context for link in call.links] == [stale.context]
    assert (call.attributes or {})["gateway.behind"] is True


async def test_a_failed_call_says_how_it_failed() -> None:
    def fails(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no")

    seen = Seen()
    async with running(traced(seen, StubUpstream(fails), OWN)) as client:
        answer = await client.get("/item/1")
    (request,), (call,) = seen.of(SpanKind.SERVER), seen.of(SpanKind.CLIENT)
    assert answer.status_code == 502
    assert call.status.status_code is request.status.status_code is StatusCode.ERROR
    assert (call.attributes or {})["error.type"] == "unreachable"
    assert (request.attributes or {})["error.type"] == "502"


async def test_parts_are_told_in_the_span() -> None:
    seen = Seen()
    parts = {"a": {"upstream": "api", "path": "/a", "ttl": "1m"}}
    async with running(
        traced(seen, StubUpstream(json_answer()), {"home": {"path": "/home", "parts": parts}})
    ) as client:
        await client.get("/home")
    (request,) = seen.of(SpanKind.SERVER)
    assert (request.attributes or {})["gateway.part.a"] == "miss"


async def test_an_edge_hit_has_no_span_unless_its_client_names_a_trace() -> None:
    seen = Seen()
    app = traced(seen, StubUpstream(json_answer()), OWN)
    async with served(app, http=GatewayProtocol, proxy_headers=False) as url, httpx.AsyncClient(base_url=url) as client:
        for _ in range(4):
            await client.get("/item/1")
        without = len(seen.of(SpanKind.SERVER))
        for _ in range(3):
            await client.get("/item/1", headers={"traceparent": PARENT})
    assert without < 4
    assert len(seen.of(SpanKind.SERVER)) == without + 3


def test_the_values_of_a_query_are_not_told() -> None:
    assert redacted("/a?token=x&b&c=") == "/a?token=REDACTED&b&c=REDACTED"
    assert redacted("/a") == "/a"


# --- asked for by the environment ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_SERVICE_NAME": "x"},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"},
        {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"},
    ],
)
def test_nothing_is_traced_unless_it_is_asked_for(environment: dict[str, str]) -> None:
    assert tracing_of_environment(environment) is None


class Collector:
    """An OTLP receiver."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.came = Event()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.requests.append(ExportTraceServiceRequest.FromString(body))
                collector.came.set()
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever)
        self._thread.start()

    def end(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.end()


async def test_spans_go_to_the_collector_that_the_environment_names(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop-gateway")
    async with running(gateway(StubUpstream(json_answer()), OWN)) as client:
        await client.get("/item/1")
    # The app has stopped: what was left was sent.
    assert await asyncio.to_thread(collector.came.wait, 10)
    (sent,) = collector.requests[0].resource_spans
    names = {pair.key: pair.value.string_value for pair in sent.resource.attributes}
    assert names["service.name"] == "shop-gateway"
    assert {span.name for scope in sent.scope_spans for span in scope.spans} == {"GET item", "GET"}


def test_tracing_is_not_imported_where_nothing_is_traced() -> None:
    code = (
        "import sys, gateway.app; sys.exit(any(n.startswith(('gateway.tracing', 'opentelemetry.sdk.trace')) "
        "for n in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
