"""The layers around the routes, in plain ASGI: timing, CORS, the rule for targets.

Their order is fixed in `app`: timing ─► CORS ─► target ─► FastAPI's own error handling and routes. CORS stands outside
of the error handling, so that errors carry its headers too. What can be computed is computed in `__init__`; what
belongs to one request lives in its Exchange.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Any
from uuid import uuid4

from starlette.datastructures import Headers as StarletteHeaders
from starlette.datastructures import MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .access_log import AccessLog, silent
from .config import CorsConfig
from .errors import PROBLEM_MEDIA_TYPE, RequestRefused, problem_body
from .exchange import LOOKED_KEY, SCOPE_KEY, Exchange, exchange_of
from .headers import Headers, values, vary_names
from .metrics import Metrics
from .preconditions import as_given
from .proxies import Trusted
from .response_headers import complete
from .targets import Target, check_host, normalise, split_raw_target
from .trace_context import PASSED_ON, traceparent_of

REQUEST_ID = re.compile(rb"[A-Za-z0-9._\-]{1,128}")
RAW_TARGET_KEY = "gateway.raw_target"
"""Where the protocol class leaves the request line's target as it came; ASGI alone drops an absolute form's host."""


class Timing:
    """The outermost layer: makes the Exchange, and tells at the end what became of it.

    Adds `X-Request-ID` (kept where the client's is sane), `X-Process-Time` (seconds until the head of the answer),
    `Server-Timing`, `Cache-Status` and, where it is missing, `Date`; counts and logs the request.
    """

    def __init__(
        self, app: ASGIApp, *, metrics: Metrics, log: AccessLog = silent, trusted: Trusted | None = None
    ) -> None:
        self.app = app
        self._metrics = metrics
        self._log = log
        self._trusted = trusted or Trusted([])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["method"] not in ("GET", "HEAD"):
            # Reads are answered by the compressed form's own tag; a write is compared with the tag as it was given.
            scope["headers"] = as_given(scope["headers"])
        exchange = _exchange(scope, self._trusted)
        scope[SCOPE_KEY] = exchange
        PASSED_ON.set(traceparent_of(exchange.headers))
        status, size = 500, 0

        async def send_told(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = complete(exchange, message.get("headers", ()))
            elif message["type"] == "http.response.body":
                size += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, send_told)
        finally:
            seconds = time.perf_counter() - exchange.began
            self._metrics.request(exchange.route, exchange.outcome, status, seconds)
            self._log(exchange, status, size, seconds)


def _exchange(scope: Scope, trusted: Trusted) -> Exchange:
    peer = scope["client"][0] if scope.get("client") else ""
    scheme = scope.get("scheme", "http")
    return exchange_for(scope["headers"], peer, scope["method"], scheme, trusted, looked=LOOKED_KEY in scope)


def exchange_for(
    headers: Headers, peer: str, method: str, scheme: str, trusted: Trusted, *, looked: bool = False
) -> Exchange:
    """The Exchange of a request that came from `peer` just now. Its `X-Request-ID` is kept where it is sane."""
    given = values(headers, b"x-request-id")
    kept = len(given) == 1 and REQUEST_ID.fullmatch(given[0])
    return Exchange(
        request_id=given[0].decode("ascii") if kept else uuid4().hex,
        began=time.perf_counter(),
        method=method,
        client=trusted.client(peer, headers),
        scheme=trusted.scheme(peer, headers, scheme),
        forwarded_for=trusted.chain(peer, headers),
        headers=headers,
        looked=looked,
    )


class TargetRule:
    """Applies the one rule for targets: what passes has its normalised path and query in the scope; the rest is 400.

    `began` is handed the state that the lifespan fills, which every request has.
    """

    def __init__(
        self, app: ASGIApp, *, metrics: Metrics, began: Callable[[Mapping[str, Any]], None] = lambda state: None
    ) -> None:
        self.app = app
        self._metrics = metrics
        self._began = began

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                self._began(scope.get("state", {}))
            await self.app(scope, receive, send)
            return
        exchange = exchange_of(scope)
        try:
            target = self._apply(scope, exchange)
        except RequestRefused as refused:
            self._metrics.refused(refused.reason)
            request_id = exchange.request_id if exchange is not None else ""
            await _send_problem(send, refused.status, refused.detail, request_id, scope["method"])
            return
        if exchange is not None:
            exchange.target = target
            # Without the Exchange, which would hold itself: each request would wait for the garbage collector.
            exchange.scope = {**scope}
            del exchange.scope[SCOPE_KEY]
        await self.app(scope, receive, send)

    def _apply(self, scope: Scope, exchange: Exchange | None) -> Target:
        if scope["method"] in ("CONNECT", "TRACE"):
            raise RequestRefused(f"{scope['method']} is not served here.", 405, "method")
        host = check_host(values(scope["headers"], b"host"), scope.get("http_version", "1.1"))
        raw_path, query = scope.get("raw_path") or scope["path"].encode(), scope["query_string"]
        raw = scope.get(RAW_TARGET_KEY)
        if raw is not None:
            raw_path, query = split_raw_target(raw, host, scheme=scope.get("scheme", "http"))
        target = normalise(raw_path, query)
        if exchange is not None:
            exchange.host = host
        scope["path"] = target.decoded
        scope["raw_path"] = target.path.encode("ascii")
        scope["query_string"] = target.query_string.encode("ascii")
        return target


async def _send_problem(send: Send, status: int, detail: str, request_id: str, method: str) -> None:
    body = problem_body(status, detail, request_id)
    headers = [
        (b"content-type", PROBLEM_MEDIA_TYPE),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        # Whoever sends what can be read in two ways may have sent more of it.
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if method == "HEAD" else body})


class Cors(CORSMiddleware):
    """Starlette's CORS, computed for each request and never stored, with what it leaves out:

    - `Vary: Origin` on every answer where origins are listed, whether this request had an Origin or not, so that a
      cache between us and the client does not give one origin's answer to another;
    - an upstream's own CORS headers give way to the gateway's.
    """

    def __init__(self, app: ASGIApp, config: CorsConfig) -> None:
        super().__init__(
            app,
            allow_origins=config.allow_origins,
            allow_origin_regex=config.allow_origin_regex,
            allow_methods=config.allow_methods,
            allow_headers=config.allow_headers,
            allow_credentials=config.allow_credentials,
            expose_headers=config.expose_headers,
            max_age=int(config.max_age.total_seconds()),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = StarletteHeaders(scope=scope)
        if scope["method"] == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers:
            response = self.preflight_response(request_headers=headers)
            await response(scope, receive, send)
            return

        origin = headers.get("origin")

        async def send_with_cors(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = self.told(message.get("headers", ()), origin)
            await send(message)

        await self.app(scope, receive, send_with_cors)

    def told(self, headers: Headers, origin: str | None) -> list[tuple[bytes, bytes]]:
        """An answer's headers with those of CORS, for a request with this `Origin`."""
        told = MutableHeaders(raw=_without_cors(headers))
        if origin is not None:
            told.update(self.simple_headers)
        if origin is not None and not self.allow_all_origins and self.is_allowed_origin(origin):
            told["Access-Control-Allow-Origin"] = origin
            _vary_on_origin(told)
        elif origin is not None or not self.allow_all_origins:
            _vary_on_origin(told)
        return told.raw


def _vary_on_origin(headers: MutableHeaders) -> None:
    if "origin" not in (vary_names(headers.raw) or ()):
        headers.add_vary_header("Origin")


def _without_cors(headers: Headers) -> list[tuple[bytes, bytes]]:
    return [pair for pair in headers if not pair[0].startswith(b"access-control-")]
