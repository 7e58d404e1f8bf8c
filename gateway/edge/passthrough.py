"""Pass-through: requests of declared routes that go to the engine without ASGI.

Decides whether a request that is not a hit may take this way: a GET or HEAD without a body, on a declared route or
aggregate, found as Starlette would find it. If anything else is involved (another kind of route, a middleware, a trace,
an explanation, a refused target), the app serves it. It must not know how a request was read, or what the cache
decides.

ASGI took half of the time of such a request (measured). `tests/unit/edge/test_passthrough.py` compares the responses of
both ways.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import msgspec
from uvicorn.protocols.http.flow_control import FlowControl

from gateway.cache.request import CacheRequest
from gateway.cache.respond import Answer, problem
from gateway.context import RequestContext
from gateway.edge.direct_routes import Direct, Patterns
from gateway.edge.head_template import INTERIM, Heads, head_of, interim_head
from gateway.errors import RequestRefused, UpstreamError
from gateway.http.forwarding import Trusted, place
from gateway.http.headers import WITHOUT_CONTENT, Headers, connection_options, first, framed, has, values
from gateway.http.request_parser import read_line
from gateway.http.target import Target, below, check_host, normalise, split_raw_target
from gateway.observability.access_log import AccessLog, silent
from gateway.observability.response_headers import Texts, complete, exchange_for
from gateway.observability.trace_context import PASSED_ON as TRACE
from gateway.observability.trace_context import TRACEPARENT, traceparent_of
from gateway.routing.cors import Cors
from gateway.streams.shared_body import SharedBody
from gateway.upstreams.response import Body, ResponseBody, WholeBody

if TYPE_CHECKING:
    from gateway.cache.engine import Engine
    from gateway.edge.guard import Underway
    from gateway.edge.header_block import Repeat
    from gateway.http.request_parser import Limits, Line, Request
    from gateway.observability.metrics import Metrics


CLIENT_LEFT = 499
"""nginx's status for a client that disconnected; only the log shows it."""
_TASK = "pass-through"
_FOR_THE_APP = frozenset((b"gateway-explain", b"upgrade", b"expect"))
_NOT_WHOLE = frozenset((b"connection", b"transfer-encoding"))
_BAD_IN_HEAD = bytes((*range(9), 0x0B, 0x0C, *range(0x0E, 0x20), 0x7F))


class Connection(Protocol):
    """The part of the protocol class that a pass-through uses."""

    flow: FlowControl
    transport: asyncio.Transport
    tasks: set[asyncio.Task[None]]

    def passed(self, pass_request: PassThroughRequest, *, close: bool) -> None:
        """The answer is written, whole."""


@dataclass(frozen=True)
class PassThrough:
    """What one generation of the app serves without ASGI. `patterns` returns its routes in matching order."""

    engine: Engine
    metrics: Metrics
    log: AccessLog
    trusted: Trusted | None
    """None: no proxy is trusted."""
    cors: Cors | None
    patterns: Patterns
    underway: Underway
    root: str = ""
    """The path prefix under which clients reach the gateway."""
    heads: Heads = field(default_factory=Heads)

    def pass_request(
        self, request: Request, peer: str, scheme: str, *, looked: bool = False
    ) -> PassThroughRequest | None:
        """The pass-through of a request without a body; None if the app must serve it."""
        fields, line = request.fields, request.line
        if line.version != "1.1" or line.method not in (b"GET", b"HEAD") or request.framing.length != 0:
            return None
        if any(name in _FOR_THE_APP for name, _ in fields):
            return None
        try:
            host = check_host(values(fields, b"host"), line.version)
            target, direct = self._found(line, host, scheme)
            if direct is None:
                return None
            method = line.method.decode("ascii")
            exchange = exchange_for(fields, peer, method, scheme, self.trusted, looked=looked)
            exchange.host = host if exchange.told is None else place(exchange.told, host, scheme)[0]
            exchange.target, exchange.root = target, self.root
            direct.engine_route.takes(exchange)
            pass_request = PassThroughRequest(self, exchange, direct, traced=has(exchange.headers, TRACEPARENT))
            pass_request.ask = direct.ask(exchange, pass_request)
        except RequestRefused:
            return None
        return pass_request

    def repeated(
        self, repeat: Repeat, line: bytes, limits: Limits, request_id: bytes, peer: str, scheme: str, began: float
    ) -> PassThroughRequest | None:
        """The same, for a request of which only the line and the ID are new on its connection: its header block was
        parsed before. `began` is a value of the performance counter."""
        plain = None if self.root else self.patterns.plain(line)
        try:
            if plain is not None:
                direct, method, path = plain
                target = Target(path, (), path)
            else:
                read = read_line(line, limits)
                if read.version != "1.1" or read.method not in (b"GET", b"HEAD"):
                    return None
                target, found = self._found(read, repeat.block.host, scheme)
                if found is None:
                    return None
                method, direct = read.method.decode("ascii"), found
            block, route = repeat.block, direct.engine_route
            exchange = RequestContext(
                request_id=request_id.decode("ascii"),
                began=began,
                method=method,
                client=peer,
                scheme=scheme,
                host=block.host,
                target=target,
                headers=[*block.headers, (b"x-request-id", request_id)] if repeat.numbered else block.headers,
                route=route.name,
                downstream=route.downstream,
                forwarded_for=peer,
                root=self.root,
            )
            if self.trusted is not None:
                told = self.trusted.told(peer, block.headers)
                exchange.came_through(told)
                exchange.host = place(told, block.host, scheme)[0]
            pass_request = PassThroughRequest(self, exchange, direct, block.traced)
            pass_request.ask = direct.ask(exchange, pass_request, block, plain=plain is not None)
        except RequestRefused:
            return None
        return pass_request

    def _found(self, line: Line, host: str, scheme: str) -> tuple[Target, Direct | None]:
        """The target below the prefix, and the route that is asked without ASGI. Raises RequestRefused."""
        target = normalise(*split_raw_target(line.target, host, scheme=scheme))
        target = below(target, self.root) if self.root else target
        direct = self.patterns.direct(target.decoded)
        return target, direct if direct is not None and direct.reads else None


class PassThroughRequest(msgspec.Struct, eq=False):
    """One request on its way to the upstream and back. It ends with its connection."""

    _pass_through: PassThrough
    exchange: RequestContext
    direct: Direct
    traced: bool
    ask: CacheRequest | None = None
    """None once its task runs."""
    _connection: Connection | None = None
    _task: asyncio.Task[None] | None = None
    _begun: bool = False
    """Whether the head is written."""
    _left: bool = False
    """Whether the client has disconnected, and the request is counted."""
    _close: bool = False
    _size: int = 0
    _shared: SharedBody | None = None

    @property
    def written(self) -> int:
        """Bytes of the body that were written."""
        return self._size if self._shared is None else self._shared.sent

    def begin(self, connection: Connection, loop: asyncio.AbstractEventLoop, *, close: bool) -> None:
        self._connection, self._close = connection, close
        self._pass_through.underway.began()
        # With a name, and not by the loop: numbering a task, and the call, would be half of what it costs.
        self._task = task = asyncio.Task(self._run(connection), loop=loop, name=_TASK)
        connection.tasks.add(task)

    def cancel(self) -> None:
        """The client has disconnected. A shared fetch continues to its landing. A task that does not run yet must, as
        its end is what counts."""
        if self._task is None or self._left:
            return
        if self.ask is None and not self.exchange.leading:
            self._task.cancel()
            return
        self._left = True
        self._tell(CLIENT_LEFT)

    def make_last(self) -> bool:
        """Announce that the connection ends with this response, unless its head is already sent; returns whether it is
        not."""
        self._close = self._close or not self._begun
        return not self._begun

    def interim(self, status: int, headers: Headers) -> None:
        """Pass an interim response on, if nothing was sent yet. 101 is a hop's own affair, and so are 100 and unknown
        ones (RFC 9110 §15.2)."""
        connection = self._connection
        if status not in INTERIM or connection is None or self._begun or connection.transport.is_closing():
            return
        if not connection.flow.write_paused:  # of a client that does not read, nothing waits here
            connection.transport.write(interim_head(status, headers))

    async def _run(self, connection: Connection) -> None:
        ask, direct, status = self.ask, self.direct, CLIENT_LEFT
        assert ask is not None
        # The request for the engine leads back to this one, by its callback for interim responses. A cycle would keep
        # all that a request is made of until a round of the garbage collector, which took a third of a miss's time.
        self.ask = None
        if self.traced:  # a task of its own: nothing is set before
            TRACE.set(traceparent_of(self.exchange.headers))
        try:
            if self._left:
                return
            try:
                answer = direct.public(await direct.answer(ask), ask)
            except Exception as error:
                answer = self._failed(error)
            if connection.flow.write_paused:
                await connection.flow.drain()
            if self._left or connection.transport.is_closing():  # a wait may end well though it was cancelled
                await _end(answer.body)
                return
            status = answer.status
            if not self._is_written_whole(connection, answer):
                await self._send(connection, answer)
        except UpstreamError as error:
            self.exchange.cut(error)
            connection.transport.close()  # in the middle: an answer that ended early must not look whole
        except BaseException:
            connection.transport.close()  # after any error, the connection is not used again
            raise
        finally:
            self._finish(connection)
            if not self._left:
                self._tell(status)
        connection.passed(self, close=self._close)

    def _finish(self, connection: Connection) -> None:
        assert self._task is not None
        connection.tasks.discard(self._task)
        self._task = None
        self._pass_through.underway.ended()

    def _tell(self, status: int) -> None:
        exchange, pass_through = self.exchange, self._pass_through
        seconds = time.perf_counter() - exchange.began
        pass_through.metrics.request(exchange.route, exchange.outcome, status, seconds)
        if pass_through.log is not silent:
            pass_through.log(exchange, status, self.written, seconds)

    def _failed(self, error: Exception) -> Answer:
        """The client gets a 500, and the error goes to the event loop's exception handler, which logs it."""
        context = {"message": "a pass-through request failed", "exception": error}
        asyncio.get_running_loop().call_exception_handler(context)
        return problem(self.exchange, 500, "Internal error; see the gateway log for this request ID.")

    def _is_written_whole(self, connection: Connection, answer: Answer) -> bool:
        """Write a response whose body is here; False if it is another one. Raises UpstreamError."""
        whole, status, exchange = answer.body, answer.status, self.exchange
        body = whole.content if type(whole) is WholeBody else whole
        if type(body) is not bytes or status != 200:
            return False
        heads, close = self._pass_through.heads, self._close
        origin = None if self._pass_through.cors is None else first(exchange.headers, b"origin")
        form, fields = answer.form, answer.headers
        head = None if form is None else heads.of_form(exchange, form, fields, origin, close=close)
        if head is None:
            named = dict(fields)
            if b"content-length" not in named or not _NOT_WHOLE.isdisjoint(named):
                return False
            if body is not whole and named[b"content-length"] != b"%d" % len(body):
                return False  # `_send` ends the connection where the length is wrong
            head = heads.head(exchange, status, fields, named, origin, self._whole_head, close=close, form=form)
            _check_head(head)
        self._begun = True
        if exchange.method == "HEAD":
            body = b""
        self._size = len(body)
        connection.transport.write(head + body)
        return True

    def _whole_head(self, headers: Headers, texts: Texts | None) -> bytes:
        return self._head(200, headers, chunked=False, texts=texts)

    async def _send(self, connection: Connection, answer: Answer) -> None:
        """Raises UpstreamError if the upstream's response is incomplete."""
        body = answer.body
        try:
            if isinstance(body, Body) and (whole := body.at_once()) is not None:
                body = whole
            headers = framed(answer.status, answer.headers)
            length = first(headers, b"content-length")
            without = answer.status in WITHOUT_CONTENT or self.exchange.method == "HEAD"
            chunked = length is None and not without
            head = self._head(answer.status, headers, chunked=chunked)
            _check_head(head)
            self._begun = True
            if isinstance(body, bytes):
                body = b"" if without else body
                self._size = len(body)
                pieces = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked and body else body
                connection.transport.write(head + (b"0\r\n\r\n" if chunked and not body else pieces))
                return
            connection.transport.write(head)
            if not without:
                await self._pump(connection, answer, None if length is None else int(length))
        finally:
            await _end(body)

    async def _pump(self, connection: Connection, answer: Answer, length: int | None) -> None:
        """Pass the body on a piece at a time, no faster than the client reads. Raises UpstreamError."""
        assert not isinstance(answer.body, bytes)
        transport, flow = connection.transport, connection.flow
        if isinstance(answer.body, SharedBody):
            await self._share(transport, answer.body)
            return
        async for piece in answer.body.chunks():
            self._size += len(piece)
            if length is None:
                transport.write(b"%x\r\n%b\r\n" % (len(piece), piece) if piece else b"")
            elif self._size > length:
                raise UpstreamError("the upstream", "a body longer than its Content-Length")
            else:
                transport.write(piece)
            if flow.write_paused:
                await flow.drain()
        if length is None:
            transport.write(b"0\r\n\r\n")
        elif self._size < length:
            raise UpstreamError("the upstream", "a body shorter than its Content-Length")

    async def _share(self, transport: asyncio.Transport, body: SharedBody) -> None:
        """Have a shared stream written piece by piece, without a task's turn for each."""
        self._shared = body
        await body.written(transport.write, transport.get_write_buffer_size)
        self._close = self._close or body.lagged
        transport.write(b"0\r\n\r\n")

    def _head(self, status: int, headers: Headers, *, chunked: bool, texts: Texts | None = None) -> bytes:
        """The answer's head as all the layers of the app would make it."""
        cors = self._pass_through.cors
        if cors is not None:
            headers = cors.told(headers, first(self.exchange.headers, b"origin"))
        fields = complete(self.exchange, headers, texts)
        if chunked:
            fields.append((b"transfer-encoding", b"chunked"))
        if has(headers, b"connection"):
            self._close = self._close or (first(headers, b"connection") or "").lower() == "close"
        elif self._close:
            fields.append((b"connection", b"close"))
        return head_of(status, fields)


def _check_head(head: bytes) -> None:
    """Raises UpstreamError if a head has a control character, which no field may have."""
    if len(head.translate(None, _BAD_IN_HEAD)) < len(head):
        raise UpstreamError("the upstream", "a response head that can't be forwarded")


async def _end(body: bytes | ResponseBody) -> None:
    if not isinstance(body, bytes):
        await body.aclose()


def ends(headers: Headers) -> bool:
    """Whether the client ends its connection after the answer (RFC 9112 §9.6)."""
    return b"close" in connection_options(headers)
