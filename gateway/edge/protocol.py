"""The gateway's uvicorn protocol class, for uvicorn's `http=` setting: serves requests before ASGI if possible.

Decides what serves a request: a memo or an entry in memory (`response_memos`, `hits`), the shared tier
(`shared_lookup`), the engine without ASGI (`passthrough`), or else the app, whose responses it learns from. It must not
know how bytes are read and limited (`client_connection`), or which entry serves a request (`hits`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Protocol, cast
from urllib.parse import unquote

import httptools
from starlette.types import Scope
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from gateway.context import LOOKED_KEY, STORED_KEY, TARGET_KEY, WRITTEN_KEY, exchange_of
from gateway.edge.client_connection import ClientConnection
from gateway.edge.entries import HeaderBlock, KnownTarget
from gateway.edge.guard import NEVER
from gateway.edge.head_template import CLOSES
from gateway.edge.header_block import LIKE, ContentRepeat, Repeat
from gateway.edge.hits import REMEMBERED_CONTENT, Edge
from gateway.edge.passthrough import PassThroughRequest, ends
from gateway.edge.shared_lookup import PendingLookup
from gateway.errors import RequestRefused
from gateway.http.headers import Headers
from gateway.http.request_parser import Line, Request, read_line, read_request
from gateway.http.target import Target
from gateway.routing.fast_path import FastPath, Planned
from gateway.routing.handler_settings import STATE


class Bearer(Protocol):
    """An app with an edge."""

    @property
    def edge(self) -> Edge | None: ...


def bearer_of(app: object) -> tuple[Bearer | None, bool]:
    """The app's edge, and whether uvicorn has wrapped the app in its ProxyHeadersMiddleware (`--proxy-headers`, its
    default).

    Other wrappers disable the edge: they may refuse a request. That one changes only requests with the forwarding
    fields, which are then left to the app.
    """
    wrapped = isinstance(app, ProxyHeadersMiddleware)
    bearer = app.app if isinstance(app, ProxyHeadersMiddleware) else app
    return _bearer(bearer), wrapped


def _bearer(app: object) -> Any:
    """An app with an edge, or the Cache that is around it."""
    if hasattr(app, "edge"):
        return app
    return getattr(getattr(getattr(app, "state", None), STATE, None), "bearer", None)


def _asks_for_websocket(fields: list[tuple[bytes, bytes]]) -> bool:
    return any(name == b"upgrade" and value.strip().lower() == b"websocket" for name, value in fields)


class GatewayProtocol(ClientConnection):
    __slots__ = ("_bearer", "_edge", "_line", "_looked", "_wrapped")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._edge: Edge | None = None
        self._bearer, self._wrapped = bearer_of(self.app)
        if (expect_lifespan := getattr(self._bearer, "expect_lifespan", None)) is not None:
            expect_lifespan()
        self._line = b""
        """The current request's line, if the edge may learn from the response."""
        self._looked = False
        """Whether the shared tier was read for the current request, without a result."""

    def data_received(self, data: bytes) -> None:
        """Serve `data` at once, if it is a single request with this connection's last header block, in which the
        credential may be another one, and the response is prepared. The guard's checks still hold: all else that
        differs is a request line that was checked before, and a request ID."""
        began = time.perf_counter()
        repeat, bearer = self._ready, self._bearer
        if repeat is None or bearer is None or bearer.edge is not repeat.edge:
            return self._take(data)
        end = data.find(b"\r\n")
        if end > repeat.longest_line:
            return self._take(data)
        tail = data[end + repeat.front_length :]
        if not data.startswith(repeat.front, end):
            renewed = repeat.renewed(data, end)
            if renewed is None:
                return self._take(data)
            repeat, request_id = renewed
            self._repeat = self._ready = repeat
        elif tail and tail.translate(LIKE) == repeat.tail:
            request_id = tail[:-4]
        elif not (request_id := repeat.request_id(data, end)):
            return self._take_content(repeat, data, end, began)
        line, block = data[:end], repeat.block
        memo, answer = block.memos.get(line), repeat.answer
        if memo is None or not answer(memo, self.transport, self._peer, block, request_id, began):
            return self._take_repeated(repeat, line, request_id, data, began)
        self.server_state.total_requests += 1
        self._deadline = began + self._keep_alive
        return None

    def _take_repeated(self, repeat: Repeat, line: bytes, request_id: bytes, data: bytes, began: float) -> None:
        """Serve a request whose header block repeats, and that has no memo."""
        edge = repeat.edge
        known = edge.known(line)
        if known is not None and (view := edge.view(known, repeat.block, self._peer)) is not None:
            if edge.answer(self.transport, self._peer, known, view, request_id, began):
                if known.connection(repeat.block) == CLOSES:
                    self.transport.close()
                self.server_state.total_requests += 1
                self._deadline = began + self._keep_alive
                return
            self._began = began
            if known.modern and self._may_wait(edge, PendingLookup(edge, known, view, request_id, data)):
                return
        if not self._goes_on(repeat, line, request_id, began):
            self._take(data)

    def _take_content(self, repeat: Repeat, data: bytes, end: int, began: float) -> None:
        """The same for a request that repeats with content; all others go on."""
        found = repeat.content(data, end) if isinstance(repeat, ContentRepeat) else None
        if found is None:
            return self._take(data)
        (request_id, content), edge, block = found, repeat.edge, repeat.block
        line = data[:end] + block.described + content
        memo = block.memos.get(line)
        if memo is None or not repeat.answer(memo, self.transport, self._peer, block, request_id, began):
            known = edge.known_contents.get(line)
            view = None if known is None else edge.view(known, block, self._peer)
            if known is None or view is None:
                return self._take(data)
            if not edge.answer(self.transport, self._peer, known, view, request_id, began):
                return self._take(data)
            if known.connection(block) == CLOSES:
                self.transport.close()
        self.server_state.total_requests += 1
        self._deadline = began + self._keep_alive
        return None

    # --- hits ----------------------------------------------------------------------------------------------

    def _is_answered(self, request: Request, end: int) -> bool:
        """Serve a parsed request, if the response is prepared, or may be in the shared tier; and remember its header
        block."""
        self._line = b""
        if request.framing.length != 0 or self._method not in ("GET", "HEAD") or self.root_path:
            return self._is_content_answered(request, end)
        edge = self._bearer.edge if self._bearer is not None else None
        line = request.head[:end]
        self._edge, self._line = edge, line
        if edge is None:
            return False
        repeat, request_id = Repeat.of(edge, request.head, end, request.fields, room=self.guard.limits.head)
        block = repeat.block
        if not block.plain or (block.proxied and self._wrapped):
            return False
        if block.prefixed and edge.has_another_prefix(block, self._peer):
            self._line = b""
            return False
        self._repeat = repeat
        known_target = edge.known(line)
        view = None if known_target is None else edge.view(known_target, block, self._peer)
        if known_target is None or view is None:
            return False
        if not edge.answer(self.transport, self._peer, known_target, view, request_id, self._began):
            return self._may_wait(edge, PendingLookup(edge, known_target, view, request_id, request.head, request))
        self._answered(known_target, view)
        return True

    def _is_content_answered(self, request: Request, end: int) -> bool:
        """The same for a read whose content came whole with its head."""
        edge = self._bearer.edge if self._bearer is not None else None
        length = request.framing.length
        if edge is None or not length or self._method not in edge.reads or self.root_path:
            return False
        whole = self._at + length
        if length > REMEMBERED_CONTENT or len(self._buffer) < whole or request.line.version != "1.1":
            return False
        repeat, request_id = ContentRepeat.of(edge, request.head, end, request.fields, room=self.guard.limits.head)
        repeat.length, block = length, repeat.block
        if not block.takes_content or (block.proxied and self._wrapped):
            return False
        if block.prefixed and edge.has_another_prefix(block, self._peer):
            return False
        line = request.head[:end] + block.described + self._buffer[self._at : whole]
        self._edge, self._line, self._repeat = edge, line, repeat
        known = edge.known_contents.get(line)
        view = None if known is None else edge.view(known, block, self._peer)
        if known is None or view is None:
            return False
        if not edge.answer(self.transport, self._peer, known, view, request_id, self._began):
            return False
        self._at = whole
        self._answered(known, view)
        return True

    def _answered(self, known_target: KnownTarget, block: HeaderBlock) -> None:
        self.server_state.total_requests += 1
        if self._last or known_target.connection(block) == CLOSES:
            self.transport.close()
        self._deadline = time.perf_counter() + self._keep_alive

    # --- answers of the shared tier ------------------------------------------------------------------------

    def _may_wait(self, edge: Edge, look: PendingLookup) -> bool:
        """Let the request wait for what the shared tier has, if it may have anything, and one more may wait."""
        if not edge.shared_finder.may_have(look.known_target, look.block):
            return False
        try:
            self.guard.admit(self._peer)
        except RequestRefused:
            return False  # and so it is, where it is handed to the app
        self._admitted = True
        self._deadline = NEVER  # the tier has its own timeout
        self._ready = None
        self._edge, self._line = edge, look.known_target.line
        self._asking = look
        look.begin(self)
        return True

    def looked(self, look: PendingLookup) -> None:
        """Serve the result from the shared tier; if there is none, the app serves the request without another
        lookup."""
        self._asking = None
        self._release()
        if self.transport.is_closing():
            return
        edge, shared_hit = look.edge, look.shared_hit
        current = self._bearer is not None and self._bearer.edge is edge
        known = current and shared_hit is not None
        if not current:
            self._edge = None  # after a reload in the meantime, the app decides
        if known and edge.answer(
            self.transport, self._peer, look.known_target, look.block, look.request_id, self._began, shared_hit
        ):
            self._answered(look.known_target, look.block)
            self._go_on()
            return
        self._looked = shared_hit is None and look.sure
        try:
            request = look.request or read_request(look.head, self.guard.limits)
            self._method = request.line.method.decode("ascii")
            self._go_further(request)
        except RequestRefused as refused:
            self._refuse(refused)

    # --- answers of upstreams ------------------------------------------------------------------------------

    def _go_further(self, request: Request) -> None:
        """Pass to the engine, or to the app if necessary. Raises RequestRefused."""
        pass_through = self._edge.pass_through if self._edge is not None and self._line else None
        if pass_through is None or self._wrapped:
            return self._pass_on(request)
        pass_request = pass_through.pass_request(request, self._peer, self.scheme or "http", looked=self._looked)
        if pass_request is None:
            return self._pass_on(request)
        self._looked = False
        self._set_out(pass_request, close=self._last or ends(request.fields))
        return None

    def _goes_on(self, repeat: Repeat, line: bytes, request_id: bytes, began: float) -> bool:
        """Have the engine or the app answer a request that repeats all but its line, which is parsed here; False if the
        slow path must handle it."""
        edge, block, limits = repeat.edge, repeat.block, self.guard.limits
        target = None if self.root_path else edge.app_targets.get(line)
        if target is not None:
            method, raw, _ = line.split(b" ")
            known = {TARGET_KEY: target, STORED_KEY: StoredResponse(self, repeat, line, request_id, began)}
            self._edge, self._line = edge, line
            fields = repeat.fields(request_id)
            return self._hand_over(Line(method, raw, "1.1"), fields, known, close=block.close, began=began)
        if edge.pass_through is not None and not self._wrapped and not self.root_path:
            peer, scheme = self._peer, self.scheme or "http"
            pass_request = edge.pass_through.repeated(repeat, line, limits, request_id, peer, scheme, began)
            if pass_request is not None:
                self._edge, self._line, self._ready = edge, line, None
                self._began, self._method = began, pass_request.exchange.method
                try:
                    self._set_out(pass_request, close=self._last or block.close)
                except RequestRefused as refused:
                    self._refuse(refused)
                return True
        try:
            read = read_line(line, limits)
        except RequestRefused:
            return False
        if read.version != "1.1" or read.method not in (b"GET", b"HEAD"):
            return False
        self._edge, self._line = edge, b"" if self.root_path else line
        return self._hand_over(read, repeat.fields(request_id), {}, close=block.close, began=began)

    def _set_out(self, pass_request: PassThroughRequest, *, close: bool) -> None:
        """Raises RequestRefused."""
        self.guard.admit(self._peer)
        self._admitted = True
        self._deadline = NEVER  # the engine has its own
        self._asking = pass_request
        pass_request.begin(self, self.loop, close=close)

    def passed(self, pass_request: PassThroughRequest, *, close: bool) -> None:
        """A pass-through has finished; its response is written."""
        self._asking = None
        self._release()
        self.server_state.total_requests += 1
        exchange, edge = pass_request.exchange, self._edge
        if exchange.stored is not None and edge is not None:
            edge.expect(self._line, exchange.recall)
        if close or self._last:
            self.transport.close()
        elif not self.transport.is_closing():
            self._deadline = time.perf_counter() + self._keep_alive
            self._go_on()

    # --- WebSockets ----------------------------------------------------------------------------------------

    def _pass_on(self, request: Request) -> None:
        asked = request.framing.upgrade and self.ws_protocol_class is not None and _asks_for_websocket(request.fields)
        if asked and getattr(self._bearer, "takes_websockets", True):
            self._become_websocket(request)
        else:
            super()._pass_on(request)

    def _become_websocket(self, request: Request) -> None:
        """Hand the connection to a WebSocket protocol; the guard still counts it, and watches its writing. Raises
        RequestRefused."""
        if request.framing.length != 0:
            raise RequestRefused("A WebSocket's handshake has no content.", 400, "websocket")
        from gateway.edge.websocket import ClientWebSocket  # with the library that it needs: most gateways have none

        protocol = ClientWebSocket(
            self.guard,
            self,
            self._peer,
            config=self.config,
            server_state=self.server_state,
            app_state=self.app_state,
        )
        rest, self._buffer, self._at = self._buffer[self._at :], b"", 0
        self._deadline, self._line, self._repeat = NEVER, b"", None
        self.connections.discard(self)
        protocol.connection_made(self.transport)
        self.transport.set_protocol(protocol)
        protocol.data_received(request.head)
        if rest:
            protocol.data_received(rest)

    # --- answers of the app --------------------------------------------------------------------------------

    def _hand_over(self, line: Line, fields: Headers, known: Mapping[str, Any], *, close: bool, began: float) -> bool:
        """Give the app a GET or HEAD of HTTP/1.1 without a body whose fields this connection has sent before, so that
        httptools need not parse them again. `known` goes to the scope. False if it must, for want of a plain URL."""
        place = _place_of(line.target, known.get(TARGET_KEY), self.root_path)
        if place is None or self.limit_concurrency is not None:
            return False
        self._ready = None
        self._began, self._method = began, line.method.decode("ascii")
        try:
            self.guard.admit(self._peer)
        except RequestRefused as refused:
            self._refuse(refused)
            return True
        self._admitted = True
        self._deadline = NEVER
        self.on_message_begin()
        self.url, self.headers = line.target, [*fields]
        scope = cast(dict[str, Any], self.scope)
        scope["method"], scope["headers"] = self._method, self.headers
        scope["path"], scope["raw_path"], scope["query_string"] = place
        scope.update(known)
        self._extend(scope, line.target)
        self.cycle = RequestResponseCycle(
            scope=cast(Any, scope),
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=not (close or self.guard.draining),
            on_response=self.on_response_complete,
        )
        self.cycle.more_body = False
        self.cycle.message_event.set()
        self._start_asgi_task(self.cycle, self.app)
        return True

    def on_headers_complete(self) -> None:
        if self._looked:
            self._looked = False
            cast(dict[str, Any], self.scope)[LOOKED_KEY] = True
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        if self._line:
            self._learn()
        super().on_response_complete()

    def _learn(self) -> None:
        """Remember how the app answered a request that the edge may answer the next time."""
        scope = cast(dict[str, Any], self.cycle.scope)
        if getattr(_bearer(scope.get("app")), "edge", None) is not self._edge:
            return  # a mounted app served it, which may have its own middleware; or there was a reload in the meantime
        exchange = exchange_of(scope)
        if exchange is None or self._edge is None:
            return
        if isinstance(exchange.recall, FastPath):
            self._edge.learn(self._line, exchange.recall, exchange.target)
        if exchange.target is not None and self._edge.pass_through is not None:
            self._edge.learn_target(self._line, exchange.target)

    def wrote(self, known_target: KnownTarget, block: HeaderBlock) -> None:
        """The stored response of the current request is written, for the app."""
        self.cycle.response_started = self.cycle.response_complete = True
        self._line = b""  # known already
        if known_target.connection(block) == CLOSES:
            self.transport.close()
        self.on_response_complete()


class StoredResponse:
    """What the edge may write of one request's stored response, once the app has solved the dependencies
    (`handler_route.StoredResponse`)."""

    def __init__(
        self, connection: GatewayProtocol, repeat: Repeat, line: bytes, request_id: bytes, began: float
    ) -> None:
        self._connection = connection
        self._repeat = repeat
        self._line, self._request_id, self._began = line, request_id, began

    @property
    def planned(self) -> Planned:
        return self._repeat.block.planned

    def is_written(self, scope: Scope, base: str, target: str) -> bool:
        """Write the stored response with this base key for this target; False if the app must."""
        connection, edge, block = self._connection, self._repeat.edge, self._repeat.block
        known_target, cycle = edge.solved_targets.get(self._line), connection.cycle
        if known_target is None or known_target.recall.target != target:
            return False
        if cast(object, cycle.scope) is not scope or cycle.disconnected or cycle.response_started:
            return False
        if cycle.keep_alive is block.close or connection.flow.write_paused or connection.transport.is_closing():
            return False  # the prepared head says whether the connection ends, by the request alone
        known = known_target.known
        added = block.bases[known] if known in block.bases else block.base(known)
        if added is None or known_target.stem + added != base:
            return False
        peer = connection.client[0] if connection.client else ""
        if not edge.answer(connection.transport, peer, known_target, block, self._request_id, self._began):
            return False
        scope[WRITTEN_KEY] = True
        connection.wrote(known_target, block)
        return True


def _place_of(raw: bytes, target: Target | None, root: str) -> tuple[str, bytes, bytes] | None:
    """Path, encoded path and query for the scope, as uvicorn would set them; of a known `target` in its normal form."""
    if target is not None:
        return target.decoded, target.path.encode("ascii"), target.query_string.encode("ascii")
    try:
        url = httptools.parse_url(raw)
    except httptools.HttpParserInvalidURLError:
        return None
    if url.path is None:
        return None
    path = url.path.decode("ascii")
    return root + (unquote(path) if "%" in path else path), root.encode("ascii") + url.path, url.query or b""
