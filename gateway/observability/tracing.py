"""Spans by OpenTelemetry (the extra `otel`): one per request that reaches the app, one per upstream request.

Names and attributes follow the semantic conventions for HTTP (stable since 1.23); the gateway's own begin with
`gateway.`. This module is imported only if tracing is enabled by OpenTelemetry's variables.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, TracerProvider, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway import __version__
from gateway.context import RequestContext, exchange_of
from gateway.http.target import pair_name
from gateway.observability.log import ONCE
from gateway.observability.trace_context import BEHIND, traceparent_of

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue


logger = logging.getLogger("gateway")
_PROPAGATOR = TraceContextTextMapPropagator()
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "QUERY"))
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class AskedBase(Protocol):
    """The base URL of an upstream's host."""

    @property
    def scheme(self) -> str: ...

    @property
    def netloc(self) -> bytes: ...

    @property
    def prefix(self) -> str: ...


class AskedHost(Protocol):
    """The upstream's host that answered a call."""

    @property
    def name(self) -> str: ...

    @property
    def base(self) -> AskedBase: ...


class Call:
    """An upstream request in flight, whose result is recorded later."""

    def __init__(self, span: Span, target: str) -> None:
        self._span = span
        self._target = target
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier)
        self.traceparent = carrier.get("traceparent", "").encode("ascii")

    def answered(self, host: AskedHost, status: int) -> None:
        base = host.base
        address, _, port = base.netloc.decode("ascii").rpartition(":") if b":" in base.netloc else (host.name, "", "")
        self._span.set_attributes(
            {
                "http.response.status_code": status,
                "server.address": address,
                "server.port": int(port) if port.isdecimal() else (443 if base.scheme == "https" else 80),
                "url.full": f"{base.scheme}://{host.name}{base.prefix}{redacted(self._target)}",
            }
        )
        if status >= 400:
            self._span.set_attribute("error.type", str(status))
            self._span.set_status(Status(StatusCode.ERROR))

    def failed(self, error: BaseException) -> None:
        kind = str(getattr(error, "kind", type(error).__name__))
        self._span.set_attribute("error.type", kind)
        self._span.set_status(Status(StatusCode.ERROR, kind))


def redacted(target: str) -> str:
    """A target without the values of its query, which may be secrets."""
    path, mark, query = target.partition("?")
    return path + mark + "&".join(f"{pair_name(pair)}=REDACTED" if "=" in pair else pair for pair in query.split("&"))


class Tracing:
    """Creates the spans. `provider` exports them; its owner shuts it down, or `aclose`."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("gateway", __version__)

    @contextmanager
    def request(self, scope: Scope) -> Iterator[Span]:
        """The span of a request, within the trace that its client names."""
        given = traceparent_of(scope["headers"])
        context = _PROPAGATOR.extract({"traceparent": given.decode("ascii")} if given else {}, Context())
        method = _method(scope["method"])
        attributes: dict[str, AttributeValue] = {
            "http.request.method": method,
            "url.scheme": scope.get("scheme", "http"),
            "url.path": scope["path"],
            "network.protocol.version": scope.get("http_version", "1.1"),
        }
        with self._tracer.start_as_current_span(
            method, context=context, kind=SpanKind.SERVER, attributes=attributes
        ) as span:
            yield span

    @contextmanager
    def call(self, upstream: str, method: str, target: str) -> Iterator[Call]:
        """The span of an upstream request, until its response head arrives.

        A background refresh is a trace of its own, linked to the request that started it.
        """
        attributes: dict[str, AttributeValue] = {
            "http.request.method": _method(method),
            "gateway.upstream": upstream,
            "url.path": target.partition("?")[0],
        }
        behind = BEHIND.get()
        asked_by = get_current_span().get_span_context()
        links = [Link(asked_by)] if behind and asked_by.is_valid else []
        if behind:
            attributes["gateway.behind"] = True
        with self._tracer.start_as_current_span(
            _method(method),
            context=Context() if behind else None,
            kind=SpanKind.CLIENT,
            attributes=attributes,
            links=links,
            set_status_on_exception=False,
            record_exception=False,
        ) as span:
            call = Call(span, target)
            try:
                yield call
            except BaseException as error:
                call.failed(error)
                raise

    def close(self) -> None:
        """Export the remaining spans, and shut down."""
        shutdown = getattr(self._provider, "shutdown", None)
        if shutdown is not None:
            shutdown()


class TracedRequests:
    """The layer that makes the span of a request, within which all else happens."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self.app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 0

        async def send_seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with self._tracing.request(scope) as span:
            try:
                await self.app(scope, receive, send_seen)
            finally:
                if span.is_recording():
                    _tell(span, exchange_of(scope), status)


def _tell(span: Span, exchange: RequestContext | None, status: int) -> None:
    """The outcome of the request."""
    if status:
        span.set_attribute("http.response.status_code", status)
    if status >= 500:
        span.set_attribute("error.type", str(status))
        span.set_status(Status(StatusCode.ERROR))
    if exchange is None:
        return
    outcome = exchange.outcome
    span.set_attributes(
        {
            "gateway.request_id": exchange.request_id,
            "gateway.cache": outcome.result.value,
            "gateway.collapsed": outcome.collapsed,
            **{f"gateway.part.{part.name}": part.text for part in exchange.parts},
        }
    )
    if exchange.route:
        span.update_name(f"{_method(exchange.method)} {exchange.route}")
        span.set_attribute("gateway.route", exchange.route)


def _method(method: str) -> str:
    return method if method in _METHODS else "_OTHER"


def tracing_of_environment(environment: Mapping[str, str]) -> Tracing | None:
    """Tracing as configured by OpenTelemetry's variables: OTLP over HTTP. None if they don't enable it."""
    exporter = environment.get("OTEL_TRACES_EXPORTER", "")
    wanted = exporter == "otlp" or (not exporter and any(environment.get(name) for name in _ENDPOINTS))
    if not wanted or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if find_spec("opentelemetry.sdk") is None or find_spec("opentelemetry.exporter") is None:
        said = "OTEL_* enables traces, which require the extra: pip install 'cached-gateway[otel]'"
        logger.warning(said, extra=ONCE)
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider as SdkProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = {} if environment.get("OTEL_SERVICE_NAME") else {"service.name": "gateway"}
    provider = SdkProvider(resource=Resource(named).merge(Resource.create()) if named else Resource.create())
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)
