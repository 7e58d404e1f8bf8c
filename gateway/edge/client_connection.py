"""One client's connection: a subclass of uvicorn's httptools protocol that reads before httptools does.

Decides which bytes of a connection are processed: a request head is parsed strictly and its body's end is found
(`http.request_parser`) before httptools gets either, one request at a time; the next one waits, unread, until the last
response is written. A client that is too slow, too large or ambiguous gets an error response, and the connection is
closed (`guard` holds the limits). It must not know what is cached, or how a request is served without the app.

It adds to the scope what ASGI lacks: the target of the request line, whose authority may contradict `Host`, and a way
to send interim responses (102, 103) to the client (RFC 9110 §15.2).

`INTERNALS` lists the parts of uvicorn that it uses; a test fails if a new uvicorn changes any of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from enum import Enum, auto
from functools import partial
from typing import Any, Protocol, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from gateway.context import INTERIM_KEY, RAW_TARGET_KEY
from gateway.edge.guard import BODY_RATE, EARLY, LINGER, NEVER, ConnectionGuard, SlowReader
from gateway.edge.head_template import INTERIM, interim_head
from gateway.edge.header_block import Repeat
from gateway.edge.http10 import OldClient, reset, stays_open
from gateway.errors import RequestRefused
from gateway.http.request_parser import (
    ASTERISK,
    ChunkedBody,
    LengthBody,
    Line,
    Request,
    check_part,
    read_fields,
    read_framing,
    read_line,
)

INTERNALS = {
    HttpToolsProtocol: (
        *("app", "client", "config", "cycle", "flow", "headers", "loop", "parser", "root_path", "scheme", "scope"),
        *("server_state", "tasks", "timeout_keep_alive_task", "transport", "url"),
        *("on_headers_complete", "on_header", "on_response_complete", "resume_writing", "shutdown"),
        *("_start_asgi_task", "expect_100_continue"),
    ),
    RequestResponseCycle: (
        *("disconnected", "keep_alive", "message_event", "response_complete", "response_started", "scope"),
        *("chunked_encoding", "expected_content_length", "transport"),
    ),
}
"""The attributes of uvicorn that this module uses beyond `asyncio.Protocol`."""


AT_A_TIME = 4
"""Requests of one connection per event loop iteration: 50 clients with 6,000 each delayed all others by over 3 s."""


class Phase(Enum):
    HEAD = auto()
    """Waiting for a head, or for the rest of one; the last response may still be in progress."""
    BODY = auto()
    CLOSING = auto()
    """Refused: the response is written, further bytes are discarded."""


class EarlyAnswer(Protocol):
    """A response in progress without the app, which does not see the request."""

    @property
    def written(self) -> int:
        """Bytes of its body that were written."""

    def cancel(self) -> None:
        """The client has disconnected."""

    def make_last(self) -> bool:
        """Make the response the last on its connection; returns whether its head is not yet sent."""


class ClientConnection(HttpToolsProtocol):
    """A connection whose requests the app serves, except those of a subclass: see `_is_answered`, `_go_further`.

    With slots of its own, as CPython stores the attributes of uvicorn's class in line only while they are 30 at most.
    """

    __slots__ = (
        *("_admitted", "_asking", "_at", "_began", "_body", "_buffer", "_checked", "_deadline", "_head_read"),
        *("_keep_alive", "_known", "_last", "_method", "_number", "_of_server", "_peer", "_phase", "_reader", "_ready"),
        *("_received", "_repeat", "_skipped", "guard"),
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.guard = guard_of(self.app)
        self._phase = Phase.HEAD
        self._buffer = b""
        self._at = 0
        self._checked = 0
        self._skipped = False
        self._method = ""
        self._body: LengthBody | ChunkedBody = LengthBody(0)
        self._received = 0
        self._began = time.perf_counter()
        self._deadline = NEVER
        self._admitted = False
        self._head_read = False
        self._known = False
        """Whether a complete head has arrived on this connection; the first has a timeout from its opening."""
        self._reader = SlowReader()
        self._number = 0
        """Of the current request, among those that the app is given."""
        self._repeat: Repeat | None = None
        """The client's last header block: most clients send the same one with each request."""
        self._ready: Repeat | None = None
        """The same, while no request is in progress: the next one may use it."""
        self._asking: EarlyAnswer | None = None
        self._last = False
        self._of_server = False
        """Whether the request that the app is given is about the server, not about a resource."""

    # --- the connection ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        self._peer = self.client[0] if self.client else ""
        self._began = time.perf_counter()
        self._deadline = self._began + self.guard.timeouts.head
        self._keep_alive = self.guard.timeouts.keep_alive
        try:
            self.guard.enter(self, self._peer, self.loop, transport)
        except RequestRefused as refused:
            self._refuse(refused)

    def connection_lost(self, exc: Exception | None) -> None:
        self.guard.leave(self, self._peer)
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None
        self._release()
        self._buffer = b""
        super().connection_lost(exc)

    def sweep(self, now: float) -> None:
        """Close it if it is too slow: called twice a second."""
        self._watch_writing(now)
        if now + EARLY < self._deadline or self.transport.is_closing():
            return
        if self._phase is Phase.BODY:
            self._judge_body(now)
        elif self._phase is Phase.HEAD and self._at < len(self._buffer):
            self._refuse(RequestRefused("Timeout while reading the request head.", 408, "slow_head"))
        else:
            self.transport.close()

    def _watch_writing(self, now: float) -> None:
        """Reset a connection whose client reads too slowly."""
        written = self._asking.written if self._asking is not None else 0
        unsent = self.transport.get_write_buffer_size()
        if self._reader.is_too_slow(now, self.guard.timeouts.write, unsent, written):
            reset(self.transport)

    def _judge_body(self, now: float) -> None:
        if self.flow.read_paused:  # the app is slower than the client
            self._received = 0
        elif self._received < BODY_RATE * self.guard.timeouts.body:
            self._refuse(RequestRefused("Timeout while reading the request body.", 408, "slow_body"))
            return
        self._received = 0
        self._deadline = now + self.guard.timeouts.body

    def make_this_the_last(self) -> None:
        """Make the current response the last on its connection, if its head is not yet sent."""
        self._ready = None
        if self._asking is not None:
            self._last = self._asking.make_last()
        elif self._pending and not self.cycle.response_started:
            self.cycle.keep_alive = False

    def shutdown(self) -> None:
        if self._asking is not None:
            self._asking.make_last()
            self._last = True
        else:
            super().shutdown()

    def pause_writing(self) -> None:
        self._ready = None
        super().pause_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._at < len(self._buffer):
            self.loop.call_soon(self._advance)

    # --- bytes ---------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._take(data)

    def _take(self, data: bytes) -> None:
        """Process bytes that are not a hit, or not known to be one."""
        self._ready = None
        if self._phase is Phase.CLOSING:
            return
        rest = len(self._buffer) - self._at
        if not rest and self._phase is Phase.HEAD and not self._pending:
            self._began = time.perf_counter()
            if self._known:
                self._deadline = self._began + self.guard.timeouts.head
        self._buffer = self._buffer[self._at :] + data if rest else data
        self._at = 0
        self._advance()

    def _advance(self) -> None:
        """Process the received bytes, as far as possible now."""
        taken = 0
        try:
            while self._at < len(self._buffer) and not self.transport.is_closing():
                if self._phase is Phase.CLOSING:
                    return
                if self._phase is Phase.BODY:
                    self._feed_body()
                elif self._pending or self.flow.write_paused:
                    self.flow.pause_reading()
                    return
                elif taken == AT_A_TIME:
                    self.flow.pause_reading()
                    self.loop.call_soon(self._advance)
                    return
                elif not self._take_head():
                    break
                taken += 1
        except RequestRefused as refused:
            self._refuse(refused)
            return
        if self._at >= len(self._buffer):
            self._buffer, self._at = b"", 0
        if self._phase is Phase.HEAD and not self._pending and not self.transport.is_closing():
            self.flow.resume_reading()
            self._be_ready()

    def _be_ready(self) -> None:
        """No request is in progress: let the next one be a hit, if all received bytes were read."""
        if not self._buffer and not self.flow.write_paused:
            self._ready = self._repeat

    @property
    def _pending(self) -> bool:
        """Whether a response is pending on this connection: from the app, or an early one."""
        return self._asking is not None or (self.cycle is not None and not self.cycle.response_complete)

    def _take_head(self) -> bool:
        """Process the next head; False if it is incomplete. Raises RequestRefused."""
        limits = self.guard.limits
        if self._checked == 0 and not self._skipped and self._buffer.startswith(b"\r\n", self._at):
            # RFC 9112 §2.2: an empty line before a request, such as old clients send after a body.
            self._at += 2
            self._skipped = True
        end = self._buffer.find(b"\r\n\r\n", self._at) + 4
        if end < 4 or end - self._at > limits.head:
            part = self._buffer[self._at :]
            self._method = "HEAD" if part.startswith(b"HEAD ") else ""
            check_part(part, limits, seen=self._checked)
            self._checked = len(part)
            return False
        head = self._buffer[self._at : end]
        self._at, self._checked = end, 0
        self._begin(head)
        return True

    def _begin(self, head: bytes) -> None:
        """Process a request with a complete head. Raises RequestRefused."""
        limits = self.guard.limits
        end = head.index(b"\r\n")
        self._skipped = False
        self._known = True
        self._method = "HEAD" if head.startswith(b"HEAD ") else ""
        line = read_line(head[:end], limits)
        self._method = line.method.decode("ascii")
        fields = read_fields(head[end + 2 : -2], limits)
        request = Request(head, line, fields, read_framing(line, fields, limits))
        if not self._is_answered(request, end):
            self._go_further(request)

    def _is_answered(self, request: Request, end: int) -> bool:
        """Answer a request at once, or begin an early answer. Its request line ends at `end` of its head."""
        return False

    def _go_further(self, request: Request) -> None:
        """Start the response to a request. Raises RequestRefused."""
        self._pass_on(request)

    # --- the app -------------------------------------------------------------------------------------------

    def _pass_on(self, request: Request) -> None:
        """Pass a request to the app. Raises RequestRefused."""
        head, line, fields, framing = request.head, request.line, request.fields, request.framing
        self._of_server = line.target == ASTERISK
        if self._of_server:  # which uvicorn can't read as a URL; the scope has it as it came
            line = Line(line.method, b"/", line.version)
            head = head.replace(b" * ", b" / ", 1)
        self.guard.admit(self._peer)
        self._admitted = True
        self._head_read = False
        self._feed(head if not framing.upgrade else _without_upgrade(line, fields))
        self._head_read = True
        self._body = ChunkedBody(self.guard.limits) if framing.length is None else LengthBody(framing.length)
        self._deadline = NEVER
        if not self._body.done:
            self._phase = Phase.BODY
            self._received = 0
            self._deadline = time.perf_counter() + self.guard.timeouts.body

    def _feed_body(self) -> None:
        end = self._body.take(self._buffer, self._at)
        piece = self._buffer[self._at : end]
        self._at = end
        self._received += len(piece)
        self._feed(piece)
        if self._body.done:
            self._phase = Phase.HEAD
            self._deadline = NEVER if self._pending else time.perf_counter() + self.guard.timeouts.keep_alive

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            # A callback's own error is ours, and not the client's; but uvicorn's reads the target there.
            its_target = isinstance(error.__context__, httptools.HttpParserInvalidURLError)
            if isinstance(error, httptools.HttpParserCallbackError) and not its_target:
                raise
            raise RequestRefused("The request is malformed.", 400, "parser") from error

    def _refuse(self, refused: RequestRefused) -> None:
        """Respond, and close the connection; if a response has begun, only close it."""
        self._ready = None
        begun = self._end_cycle()
        self._phase = Phase.CLOSING
        self._buffer, self._at = b"", 0
        if begun or self.transport.is_closing():
            self.transport.close()
            return
        answer = self.guard.refusal(
            refused, client=self._peer, method=self._method, scheme=self.scheme or "http", began=self._began
        )
        self.transport.write(answer)
        self._linger()

    def _end_cycle(self) -> bool:
        """Detach the app's response; returns whether it had begun."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return False
        cycle.disconnected = True
        cycle.message_event.set()
        return cycle.response_started

    def _linger(self) -> None:
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._deadline = time.perf_counter() + LINGER
        else:
            self.transport.close()

    # --- what httptools calls ------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        # httptools hands trailers over like headers; after the head they would change what was judged already.
        if not self._head_read:
            super().on_header(name, value.strip(b" \t"))

    def on_headers_complete(self) -> None:
        self._extend(cast(dict[str, Any], self.scope), ASTERISK if self._of_server else self.url)
        old = self.parser.get_http_version() != "1.1"
        if old:
            self.expect_100_continue = False  # HTTP/1.0 has no interim responses (RFC 9110 §15.2)
        super().on_headers_complete()
        if old:
            self.cycle.keep_alive = stays_open(self.headers)
        if self.guard.draining:
            self.cycle.keep_alive = False  # uvicorn then sends `Connection: close`

    def _extend(self, scope: dict[str, Any], target: bytes) -> None:
        scope[RAW_TARGET_KEY] = target
        # By number: a scope that holds itself waits for the garbage collector, which took a fifth of each request.
        self._number += 1
        scope["extensions"] = {INTERIM_KEY: partial(self._interim, self._number)}

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        old = cycle.scope["http_version"] != "1.1"
        super()._start_asgi_task(cycle, cast(Any, OldClient(app, cycle)) if old else app)

    # --- what uvicorn calls --------------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        self._release()
        if self.transport.is_closing():
            return
        if self._phase is Phase.HEAD:
            self._deadline = time.perf_counter() + self.guard.timeouts.keep_alive
        self._go_on()

    def _go_on(self) -> None:
        """Process the bytes behind a request that has been served."""
        if self._at < len(self._buffer):
            self._began = time.perf_counter()
            self._deadline = self._began + self.guard.timeouts.head
            self.loop.call_soon(self._advance)
        else:
            self.flow.resume_reading()
            if self._phase is Phase.HEAD:
                self._be_ready()

    def _release(self) -> None:
        if self._admitted:
            self._admitted = False
            self.guard.release(self._peer)

    def _interim(self, number: int, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Send an interim response, if the request of that `number` is being answered and nothing was sent yet.

        HTTP/1.0 has none (RFC 9110 §15.2); 101 is a hop's own affair, and so are 100 and unknown ones.
        """
        cycle = self.cycle
        if (
            status not in INTERIM
            or number != self._number
            or cycle.scope["http_version"] != "1.1"
            or cycle.response_started
            or self.flow.write_paused  # of a client that does not read, nothing waits here
            or self.transport.is_closing()
        ):
            return
        self.transport.write(interim_head(status, headers))


def guard_of(app: object) -> ConnectionGuard:
    """The app's guard, also behind wrappers that keep it as `app`; otherwise one with defaults."""
    for _ in range(8):
        guard = getattr(app, "guard", None)
        if isinstance(guard, ConnectionGuard):
            return guard
        app = getattr(app, "app", None)
    return ConnectionGuard()


def _without_upgrade(line: Line, fields: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The head without `Upgrade`, which may be ignored (RFC 9110 §7.8); httptools would switch the protocol."""
    lines = [line.method + b" " + line.target + b" HTTP/" + line.version.encode("ascii")]
    lines += [name + b": " + value for name, value in fields if name != b"upgrade"]
    return b"\r\n".join([*lines, b"", b""])
