"""The layers around the routes, in plain ASGI: timing, the target rule, and the redirect to the other slash.

Decides what a request has before a route sees it (a RequestContext, a normalised target or a 400), which diagnostic
fields a response leaves with, and what a path without a route gets. `gateway` decides the order: timing ─► CORS ─►
target ─► FastAPI; CORS stands outside of the error handling, so that errors carry its fields too. The layers know
neither routes nor cache. State of one request lives in its RequestContext, never in a layer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from starlette.responses import Response
from starlette.routing import Match, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.context import LOOKED_KEY, RAW_TARGET_KEY, SCOPE_KEY, RequestContext, exchange_of
from gateway.errors import PROBLEM_MEDIA_TYPE, RequestRefused, problem_body
from gateway.http.forwarding import Trusted
from gateway.http.headers import WITHOUT_CONTENT, framed, values
from gateway.http.target import Target, check_host, normalise, other_slash, split_raw_target
from gateway.observability.access_log import AccessLog, silent
from gateway.observability.metrics import Metrics
from gateway.observability.response_headers import complete, exchange_for
from gateway.observability.trace_context import PASSED_ON, traceparent_of
from gateway.policy.preconditions import as_given
from gateway.routing.location import rooted


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
                message["headers"] = complete(exchange, framed(status, message.get("headers", ())))
            elif message["type"] == "http.response.body":
                if status in WITHOUT_CONTENT:
                    message["body"] = b""
                size += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, send_told)
        finally:
            seconds = time.perf_counter() - exchange.began
            self._metrics.request(exchange.route, exchange.outcome, status, seconds)
            self._log(exchange, status, size, seconds)


def _exchange(scope: Scope, trusted: Trusted) -> RequestContext:
    peer = scope["client"][0] if scope.get("client") else ""
    scheme = scope.get("scheme", "http")
    return exchange_for(scope["headers"], peer, scope["method"], scheme, trusted, looked=LOOKED_KEY in scope)


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

    def _apply(self, scope: Scope, exchange: RequestContext | None) -> Target:
        if scope["method"] in ("CONNECT", "TRACE"):
            raise RequestRefused(f"{scope['method']} is not supported.", 405, "method")
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
        else:
            await self._otherwise(scope, receive, send)

    def _is_served(self, path: str, scope: Scope) -> bool:
        other = {**scope, "path": path}
        return bool(path) and any(route.matches(other)[0] is not Match.NONE for route in self._router.routes)
