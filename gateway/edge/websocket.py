"""A client's WebSocket: uvicorn's protocol, and how a connection goes over to a relay.

Decides what is done with bytes that come before the handshake's answer: they are kept, and at most `EARLY`. A handler
of the app's own is served by uvicorn, except for floods of control frames and fragments, and its end at a deploy. A
declared route asks by the extension `gateway.websocket` of the scope for a relay to an upstream; when the handshake is
accepted, that is the transport's protocol, and uvicorn's is free.

`INTERNALS` lists the parts of uvicorn that it uses; a test fails if a new uvicorn changes any of them.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from gateway.context import RELAY_KEY
from gateway.edge.guard import ConnectionGuard, GuardedConnection
from gateway.edge.relay import RESTARTS, Relay, RelayLimits
from gateway.http.websocket import GOING_AWAY, MOST_FRAGMENTS, POLICY
from gateway.upstreams.websocket import UpstreamSocket, WebSocketCounts

EARLY = 64 * 1024
"""Bytes that a client may send before its handshake is answered, such as its first messages; more wait unread."""
PIECE = 4096
"""Bytes that uvicorn's protocol gets at once."""
SLICE = 0.005
"""Seconds for the bytes of one connection, before others have their turn."""
INTERNALS = {
    WebSocketsSansIOProtocol: (
        *("app", "close_sent", "conn", "connections", "disconnected", "frames", "handshake_complete"),
        *("handshake_initiated", "queue", "response", "transport", "writable"),
        *("connection_lost", "data_received", "handle_connect", "handle_cont", "handle_parser_exception"),
        *("handle_ping", "loop", "read_paused", "receive", "send", "shutdown", "stop_keepalive"),
    )
}


class _Gone:
    """Stands for the transport that uvicorn's protocol had."""

    def is_closing(self) -> bool:
        return True

    def close(self) -> None: ...
    def write(self, data: bytes) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


class ClientWebSocket(WebSocketsSansIOProtocol):
    """`guard` counts the connection as `guarded`, which came from the address `peer`."""

    def __init__(self, guard: ConnectionGuard, guarded: GuardedConnection, peer: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._guard, self._guarded, self._peer = guard, guarded, peer
        self._early = self._waiting = b""
        self._relay: Relay | None = None
        app: Any = self.app

        async def offering(scope: Any, receive: Any, send: Any) -> None:
            scope["extensions"][RELAY_KEY] = self
            scope["headers"] = [(name.lower(), value) for name, value in scope["headers"]]  # as ASGI has them
            await app(scope, receive, send)

        self.app = offering

    def connection_lost(self, exc: Exception | None) -> None:
        self._guard.leave(self._guarded, self._peer)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.handshake_initiated and not self.handshake_complete:
            self._early += data
            if len(self._early) > EARLY:
                self.transport.pause_reading()
        elif self._waiting:
            self._waiting += data
        else:
            self._feed(data)

    def _feed(self, data: bytes) -> None:
        """Have uvicorn read, in pieces: what came in one read may be 40,000 frames, which take it half a second."""
        until = time.perf_counter() + SLICE
        for end in range(PIECE, len(data) + PIECE, PIECE):
            if self.transport.is_closing():
                return
            super().data_received(data[end - PIECE : end])
            if end < len(data) and time.perf_counter() > until and not self.transport.is_closing():
                self._waiting = data[end:]
                self.transport.pause_reading()
                self.loop.call_soon(self._feed_more)
                return

    def _feed_more(self) -> None:
        data, self._waiting = self._waiting, b""
        if not self.transport.is_closing():
            self._feed(data)
            if not (self._waiting or self.read_paused or self.transport.is_closing()):
                self.transport.resume_reading()

    async def receive(self) -> Any:
        message = await super().receive()
        if self._waiting and not self.transport.is_closing():
            self.transport.pause_reading()  # uvicorn resumes it
        return message

    def handle_connect(self, event: Any) -> None:
        super().handle_connect(event)
        self.response.headers.pop("Server", None)
        if self.response.status_code != 101:
            self._guard.count("websocket")

    # --- a handler of the app's own -------------------------------------------------------------------------

    def handle_ping(self) -> None:
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()  # pongs that a client doesn't read would wait in memory (RFC 6455 §5.5.3: it may)

    def handle_cont(self, event: Any) -> None:
        if len(self.frames) < MOST_FRAGMENTS:
            super().handle_cont(event)
        elif not self.close_sent:  # empty ones count towards no size of a message
            self.conn.fail(POLICY, f"a message of more than {MOST_FRAGMENTS} frames")
            self.handle_parser_exception()

    def shutdown(self) -> None:
        if not self.handshake_complete or self.close_sent or self.disconnected:
            super().shutdown()
            return
        self.stop_keepalive()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": GOING_AWAY, "reason": RESTARTS})
        self.conn.send_close(GOING_AWAY, RESTARTS)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.transport.close()

    # --- the extension -------------------------------------------------------------------------------------

    def relay(self, upstream: UpstreamSocket, counts: WebSocketCounts, limits: RelayLimits) -> Relay:
        """Have frames passed on between the client and `upstream` once the handshake is accepted."""
        self.response.headers.pop("Sec-WebSocket-Extensions", None)  # the upstream was offered none
        self._relay = Relay(upstream, counts, limits, self._left)
        return self._relay

    async def send(self, message: Any) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True  # uvicorn logs an error otherwise, though it is refused
        if message["type"] != "websocket.accept":
            return
        if not self.handshake_complete:  # its transport is closing: the upstream's WebSocket would stay open
            raise ClientDisconnected
        early, self._early = self._early, b""
        if self._relay is not None:
            self._give_to(self._relay, early)
        elif early:
            self.transport.resume_reading()
            self._feed(early)

    def _give_to(self, relay: Relay, early: bytes) -> None:
        self.stop_keepalive()
        transport, self.transport = self.transport, cast(asyncio.Transport, _Gone())
        self.connections.discard(self)
        self.connections.add(cast(Any, relay))
        self._guard.replace(self._guarded, relay)
        transport.set_protocol(relay)
        transport.resume_reading()
        relay.begin(transport, early)

    def _left(self, relay: Relay) -> None:
        self.connections.discard(cast(Any, relay))
        self._guard.leave(relay, self._peer)
