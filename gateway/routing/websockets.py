"""WebSockets of declared routes: from a client's handshake to a relay between it and the upstream.

Decides who may open one (`Origin` by the CORS settings, `identity`), what the upstream is asked for, and the answer to
a client whose handshake is refused: an HTTP response, as for any other request. Frames are passed on by the protocol
class; nothing is cached.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from starlette.types import Receive, Scope, Send

from gateway.cache.engine import Engine
from gateway.cache.respond import Answer, problem
from gateway.context import RELAY_KEY, Relayed, RequestContext, exchange_of
from gateway.http.headers import combined, first, split_list, without
from gateway.observability.metrics import Metrics
from gateway.policy.keys import sent_host, without_ignored
from gateway.routing.admitting import let_in
from gateway.routing.cors import Cors
from gateway.routing.declared import Declared
from gateway.routing.responses import Client, ClientLeft
from gateway.routing.upstream_request import forwarded
from gateway.upstreams.response import Fetched, WholeBody
from gateway.upstreams.websocket import UpstreamSocket, WebSocketCounts, connect

WITHOUT_SERVER = (
    "WebSockets of declared routes are served by `gateway serve`, or by uvicorn with the gateway's protocol."
)
_OF_HANDSHAKE = tuple(b"sec-websocket-" + name for name in (b"key", b"version", b"protocol", b"extensions", b"accept"))
Relaying = Callable[[Any, UpstreamSocket, Declared], Relayed]
"""Has the server's extension pass frames on between a client and an upstream."""


@dataclass(frozen=True)
class WebSockets:
    """Makes the handlers of routes with `websocket`."""

    engine: Engine
    metrics: Metrics
    cors: Cors | None
    counts: Callable[[str], WebSocketCounts]
    """Those of an upstream, over all reloads."""
    relaying: Relaying

    def handler(self, route: Declared) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        """An ASGI app for the handshakes of a declared route."""

        async def handle(scope: Scope, receive: Receive, send: Send) -> None:
            exchange = exchange_of(scope)
            assert exchange is not None
            await receive()  # websocket.connect
            client = Client(receive)
            client.expect_no_body()
            try:
                refusal = await client.while_there(self._begun(route, exchange, scope, send))
            except ClientLeft:
                refusal = problem(exchange, 499, "The client disconnected before its WebSocket was open.")
            if refusal is not None:
                await deny(send, refusal)

        return handle

    async def _begun(self, route: Declared, exchange: RequestContext, scope: Scope, send: Send) -> Answer | None:
        route.engine_route.takes(exchange)
        refusal = await self._refusal(route, exchange, scope)
        return refusal if refusal is not None else await self._joined(route, exchange, scope, send)

    async def _refusal(self, route: Declared, exchange: RequestContext, scope: Scope) -> Answer | None:
        """The answer to a client that may not open one; None for one that may."""
        if RELAY_KEY not in scope.get("extensions", {}):
            return problem(exchange, 501, WITHOUT_SERVER)
        if not self._is_from_here(exchange):
            self.metrics.refused("origin")
            return problem(exchange, 403, "A page of this origin may not open a WebSocket here.")
        return await let_in(route.admission, route.limits, exchange, self.engine.identity_key, self.metrics)

    def _is_from_here(self, exchange: RequestContext) -> bool:
        """Whether a page may open one (RFC 6455 §10.2): browsers send cookies whatever page does, and let it read what
        it receives. Without CORS settings it must be a page of the host itself; other clients have no `Origin`."""
        origin = first(exchange.headers, b"origin")
        if origin is None:
            return True
        if self.cors is not None and (self.cors.allow_all_origins or self.cors.is_allowed_origin(origin)):
            return True
        return urlsplit(origin).netloc.lower() == exchange.host

    async def _joined(self, route: Declared, exchange: RequestContext, scope: Scope, send: Send) -> Answer | None:
        """Open the upstream's WebSocket and accept the client's; the answer if the upstream does not."""
        opened: UpstreamSocket | None = None

        async def ask() -> Fetched:
            nonlocal opened
            found = await connect(
                route.upstream,
                self.counts(route.upstream.name),
                self._target(route, exchange, scope),
                self._headers(route, exchange),
                split_list(combined(exchange.headers, b"sec-websocket-protocol") or ""),
                route.config.headers.request.changes,
                partial(self.metrics.upstream, route.upstream.name),
            )
            if isinstance(found, UpstreamSocket):
                opened = found
                return Fetched(101, found.headers, WholeBody(b""))
            length = (b"content-length", b"%d" % len(found.body))
            return Fetched(found.status, [*found.headers, length], WholeBody(found.body))

        answer = await self.engine.pass_by(exchange, "bypass", ask, detail="websocket")
        if opened is None:
            return answer
        try:
            relay = self.relaying(scope["extensions"][RELAY_KEY], opened, route)
            await send({"type": "websocket.accept", "subprotocol": opened.subprotocol, "headers": answer.headers})
            exchange.relay = relay  # one that has not begun would not tell the log its end
        except BaseException:
            opened.abort()
            raise
        return None

    def _target(self, route: Declared, exchange: RequestContext, scope: Scope) -> str:
        assert exchange.target is not None
        path = scope["raw_path"].decode("ascii").removeprefix(exchange.root)
        _, parameters = route.upstream_target(path, ())
        return route.whole_target(parameters, exchange.target.query)

    def _headers(self, route: Declared, exchange: RequestContext) -> list[tuple[bytes, bytes]]:
        keying = route.engine_route.keying
        kept = without(without_ignored(keying, exchange.headers), *_OF_HANDSHAKE)
        return [
            *sent_host(keying, exchange.headers),
            *forwarded(exchange, kept, keying.constants),
            (b"x-request-id", exchange.request_id.encode("ascii")),
        ]


async def deny(send: Send, answer: Answer) -> None:
    """Answer a handshake by an HTTP response (ASGI's extension `websocket.http.response`)."""
    body = answer.body.content if isinstance(answer.body, WholeBody) else answer.body
    await send({"type": "websocket.http.response.start", "status": answer.status, "headers": list(answer.headers)})
    await send({"type": "websocket.http.response.body", "body": body})
