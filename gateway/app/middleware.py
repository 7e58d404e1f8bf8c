"""The layers around the routes, in plain ASGI: timing, CORS, target normalisation, and the redirect for trailing
slashes.

Decides what a request has before a route sees it (a RequestContext, a normalised target or a 400), which diagnostic
fields a response gets, and the response for a path without a route: timing ─► CORS ─► target ─► FastAPI, all in one
call; CORS is outside of the error handling, so that errors have its fields too. The layers depend on neither routes nor
cache. State of one request is in its RequestContext, never in a layer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from starlette.middleware.errors import ServerErrorMiddleware
from starlette.responses import Response
from starlette.routing import Match, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.cache.respond import problem
from gateway.config.models import Config
from gateway.context import (
    HOST_KEY,
    LOOKED_KEY,
    RAW_TARGET_KEY,
    SCOPE_KEY,
    TARGET_KEY,
    WRITTEN_KEY,
    Ended,
    Outcome,
    RequestContext,
    Result,
    exchange_of,
)
from gateway.errors import PROBLEM_MEDIA_TYPE, RequestRefused, problem_body
from gateway.http.forwarding import Told, Trusted, place
from gateway.http.headers import WITHOUT_CONTENT, Headers, first, framed, values, without
from gateway.http.request_parser import ALLOW, ASTERISK
from gateway.http.target import (
    PATH_CHARS,
    Slashes,
    Target,
    below,
    check_host,
    other_slash,
    resolve_below,
    split_raw_target,
)
from gateway.observability.access_log import AccessLog
from gateway.observability.log import state
from gateway.observability.metrics import Metrics
from gateway.observability.response_headers import complete, exchange_for
from gateway.observability.trace_context import PASSED_ON, traceparent_of
from gateway.policy.preconditions import as_given
from gateway.routing.cors import Cors
from gateway.routing.location import rooted
from gateway.routing.websockets import deny

logger = logging.getLogger("gateway")


def log_ignored(field: str, value: str) -> None:
    """Log that a field of a trusted proxy is invalid."""
    said = "a trusted proxy sent %s with a value that can't be read, %r: it is ignored"
    logger.warning(said, field, value, extra=state(f"trusted proxy {field}", "ignored"))


STARTED_KEY = "gateway.started"
"""Set in the scope once the head of the response is sent."""


class Layers:
    """The gateway's layers around FastAPI, in one pass of each request.

    Creates the RequestContext. Normalises the target: a valid one has its normalised path and query in the scope;
    others get a 400. Sets the gateway's public address in the scope, for links that handlers make: the path prefix, and
    the host and scheme of `public_url`, or those from trusted proxies. `slashes` is the handling of encoded slashes in
    a target below that prefix. `began` gets the state that the lifespan fills, which every request has.

    Each response gets the fields of `cors`, then `X-Request-ID` (the client's if it is valid), `X-Process-Time`
    (seconds until the response head), `Server-Timing`, `Cache-Status` and, if it is missing, `Date`. The request is
    counted and logged at its end.
    """

    def __init__(
        self,
        app: ASGIApp,
        config: Config,
        *,
        metrics: Metrics,
        log: AccessLog,
        trusted: Trusted,
        cors: Cors | None,
        began: Callable[[Mapping[str, Any]], None],
        slashes: Callable[[Target], Slashes],
    ) -> None:
        self.app = app
        self._metrics = metrics
        self._log = log
        self._trusted = trusted
        self._cors = cors
        self._began = began
        self._root = config.prefix
        self._slashes = slashes
        public = urlsplit(config.public_url) if config.public_url else None
        self._public = (public.netloc.lower(), public.scheme) if public is not None else None
        self._is_at_the_root = not config.prefix and public is None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                self._began(scope.get("state", {}))
                await self.app(scope, receive, send)
            else:
                await self._websocket(scope, receive, send)
            return
        exchange = _exchange(scope, self._trusted)
        if scope["method"] not in ("GET", "HEAD"):
            # Reads are answered by the compressed form's own tag; a write is compared with the tag as it was given.
            scope["headers"] = as_given(scope["headers"])
        scope[SCOPE_KEY] = exchange
        PASSED_ON.set(traceparent_of(exchange.headers))
        preflight = None if self._cors is None else self._cors.preflight(scope)
        cors = self._cors if preflight is None else None
        origin = None if cors is None else first(exchange.headers, b"origin")
        status, size = 500, 0

        async def send_with_fields(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                scope[STARTED_KEY] = True
                headers = message.get("headers", ())
                headers = framed(status, headers if cors is None else cors.told(headers, origin))
                message["headers"] = self._with_diagnostics(exchange, headers)
            elif message["type"] == "http.response.body":
                if status in WITHOUT_CONTENT:
                    message["body"] = b""
                size += len(message.get("body", b""))
            await send(message)

        try:
            if preflight is not None:
                await preflight(scope, receive, send_with_fields)
            elif await self._is_for_the_app(scope, exchange, send_with_fields):
                await self.app(scope, receive, send_with_fields)
        finally:
            if WRITTEN_KEY not in scope:
                seconds = time.perf_counter() - exchange.began
                self._metrics.request(exchange.route, exchange.outcome, status, seconds)
                self._log(exchange, status, size, seconds)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A WebSocket: its handshake is counted like a request, and logged when it has ended."""
        exchange = _exchange(scope, self._trusted)
        exchange.outcome = Outcome(Result.LOCAL, detail="websocket")
        scope[SCOPE_KEY] = exchange
        PASSED_ON.set(traceparent_of(exchange.headers))
        answered = WebSocketAnswer(exchange, send, self._with_diagnostics)
        try:
            if await self._is_for_the_app(scope, exchange, answered.deny):
                scope["scheme"] = {"http": "ws", "https": "wss"}.get(scope["scheme"], scope["scheme"])
                await self.app(scope, receive, answered)
        finally:
            self._metrics.request(exchange.route, exchange.outcome, answered.status, answered.seconds)
            exchange.scope = {}  # which a connection of hours would keep
            if exchange.relay is not None:
                exchange.relay.on_end(partial(_log_ended, self._log, exchange))
            else:
                self._log(exchange, answered.status, answered.size, time.perf_counter() - exchange.began)

    def _with_diagnostics(self, exchange: RequestContext, headers: Headers) -> Headers:
        return complete(exchange, headers)

    async def _is_for_the_app(self, scope: Scope, exchange: RequestContext, send: Send) -> bool:
        """Normalise the target; False if the request is answered by that: it is refused, or asks about the server."""
        try:
            if exchange.method == "OPTIONS" and _raw_target(scope) == ASTERISK:
                check_host(values(scope["headers"], b"host"), scope.get("http_version", "1.1"))
                await send({"type": "http.response.start", "status": 204, "headers": [(b"allow", ALLOW)]})
                await send({"type": "http.response.body", "body": b""})
                return False
            exchange.target = self._apply(scope, exchange)
        except RequestRefused as refused:
            self._metrics.refused(refused.reason)
            await _send_problem(send, refused.status, refused.detail, exchange.request_id, exchange.method)
            return False
        # Without the Exchange, which would hold itself: each request would wait for the garbage collector.
        exchange.scope = {**scope}
        del exchange.scope[SCOPE_KEY]
        return True

    def _apply(self, scope: Scope, exchange: RequestContext) -> Target:
        """Raises RequestRefused."""
        target: Target | None = scope.pop(TARGET_KEY, None)
        if target is None or not self._is_at_the_root or exchange.told is not None or scope["root_path"]:
            return self._resolved(scope, exchange)
        exchange.host = check_host(values(exchange.headers, b"host"), scope["http_version"])
        return target  # which the scope has already

    def _resolved(self, scope: Scope, exchange: RequestContext) -> Target:
        if exchange.method in ("CONNECT", "TRACE"):
            raise RequestRefused(f"{exchange.method} is not supported.", 405, "method")
        host = check_host(values(scope["headers"], b"host"), scope.get("http_version", "1.1"))
        raw_path, query = scope.get("raw_path") or scope["path"].encode(), scope["query_string"]
        raw = scope.get(RAW_TARGET_KEY)
        if raw is not None:
            raw_path, query = split_raw_target(raw, host, scheme=scope.get("scheme", "http"))
        told = exchange.told
        prefix, mount = self._prefix(scope, told)
        root = prefix + mount
        target = below(resolve_below(raw_path, query, root, self._slashes), prefix)
        exchange.root = root
        exchange.host = host if told is None else place(told, host, scope.get("scheme", "http"))[0]
        self._show_place(scope, told, host)
        if prefix:
            scope["root_path"] = unquote(root)
            if mount:
                scope["app_root_path"] = unquote(prefix)
        scope["path"] = unquote(prefix) + target.decoded
        scope["raw_path"] = (prefix + target.path).encode("ascii")
        scope["query_string"] = target.query_string.encode("ascii")
        return target

    def _prefix(self, scope: Scope, told: Told | None) -> tuple[str, str]:
        """The prefix under which clients reach the outermost app, and where in that the gateway is mounted; both
        encoded. Proxies come before the server (uvicorn's `--root-path`), and that before the setting."""
        root = quote(scope.get("root_path", ""), safe=PATH_CHARS)
        outer = quote(scope.get("app_root_path", ""), safe=PATH_CHARS) if "app_root_path" in scope else None
        given, mount = (root, "") if outer is None else (outer, root[len(outer) :])
        if told is not None and told.prefix is not None:
            return told.prefix, mount
        return given.rstrip("/") or self._root.removesuffix(mount), mount

    def _show_place(self, scope: Scope, told: Told | None, host: str) -> None:
        scheme = scope.get("scheme", "http")
        shown, scheme = (host, scheme) if told is None else place(told, host, scheme)
        if self._public is not None:
            scope[HOST_KEY] = shown
            shown, scheme = self._public
        scope["scheme"] = scheme
        if shown and shown != host:
            scope["headers"] = [*without(scope["headers"], b"host"), (b"host", shown.encode("latin-1"))]


def _exchange(scope: Scope, trusted: Trusted) -> RequestContext:
    peer = scope["client"][0] if scope.get("client") else ""
    scheme = scope.get("scheme", "http")
    if scope["type"] == "websocket":
        scheme = scope["scheme"] = {"ws": "http", "wss": "https"}.get(scheme, scheme)
    method = scope.get("method", "GET")  # a WebSocket's handshake is a GET
    return exchange_for(scope["headers"], peer, method, scheme, trusted, looked=LOOKED_KEY in scope)


class WebSocketAnswer:
    """What a client gets to its handshake, for metrics and log: `send` with diagnostic fields. `seconds` are those of
    the handshake, `size` bytes of messages or of a refusal's body."""

    def __init__(
        self, exchange: RequestContext, send: Send, diagnostics: Callable[[RequestContext, Headers], Headers]
    ) -> None:
        self.status, self.size, self._seconds = 500, 0, 0.0
        self._exchange = exchange
        self._send = send
        self._diagnostics = diagnostics

    @property
    def seconds(self) -> float:
        return self._seconds or time.perf_counter() - self._exchange.began

    async def __call__(self, message: Message) -> None:
        kind = message["type"]
        if kind == "websocket.accept":
            identified = (b"x-request-id", self._exchange.request_id.encode("ascii"))
            message = {**message, "headers": [*message.get("headers", ()), identified]}
            self._answered(101)
        elif kind == "websocket.http.response.start":
            self._answered(message["status"])
            headers = self._diagnostics(self._exchange, framed(self.status, message.get("headers", ())))
            message = {**message, "headers": [*headers]}
        elif kind == "websocket.close" and not self._seconds:
            self._answered(403)
        self.size += len(message.get("body") or message.get("bytes") or message.get("text") or "")
        await self._send(message)

    def _answered(self, status: int) -> None:
        self.status, self._seconds = status, time.perf_counter() - self._exchange.began

    async def deny(self, message: Message) -> None:
        """Answer by HTTP."""
        await self({**message, "type": f"websocket.{message['type']}"})


def _log_ended(log: AccessLog, exchange: RequestContext, ended: Ended) -> None:
    exchange.closed = ended.by, ended.code
    log(exchange, 101, ended.sent, time.perf_counter() - exchange.began)


def _raw_target(scope: Scope) -> bytes:
    raw: bytes = scope.get(RAW_TARGET_KEY) or scope.get("raw_path") or scope["path"].encode()
    return raw


async def _send_problem(send: Send, status: int, detail: str, request_id: str, method: str) -> None:
    body = problem_body(status, detail, request_id)
    headers = [
        (b"content-type", PROBLEM_MEDIA_TYPE),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        # A client that sends an ambiguous request may have sent more of it.
        (b"connection", b"close"),
    ]
    if status == 405:
        headers.append((b"allow", ALLOW))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if method == "HEAD" else body})


class Outermost(ServerErrorMiddleware):
    """All layers of an app, in the class that opentelemetry-instrumentation-fastapi looks for: it puts its own layers
    around `app`. It does nothing itself, as FastAPI's layers have one that handles errors."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


class OtherSlash:
    """Redirects (307) a path that no route has to the one that differs by the slash at its end, if a route has that.

    It replaces Starlette's redirect of `router`, which names the host of the client's `Host` field and writes the path
    decoded, so that an encoded question mark would begin a query. Here the target stays encoded, and no host is named.
    """

    def __init__(self, router: Router) -> None:
        self._router = router
        self._otherwise = router.default
        router.redirect_slashes = False
        router.default = self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._is_served(other_slash(scope["path"]), scope):
            query: bytes = scope["query_string"]
            location = other_slash(scope["raw_path"].decode("ascii")) + ("?" + query.decode("ascii") if query else "")
            await Response(status_code=307, headers={"location": rooted(location)})(scope, receive, send)
        elif scope["type"] == "websocket" and (exchange := exchange_of(scope)) is not None:
            await receive()
            await deny(send, problem(exchange, 404, "There is no WebSocket at this path."))
        else:
            await self._otherwise(scope, receive, send)

    def _is_served(self, path: str, scope: Scope) -> bool:
        other = {**scope, "path": path}
        return bool(path) and any(route.matches(other)[0] is not Match.NONE for route in self._router.routes)
