"""WebSockets to upstreams: the connection and its handshake (RFC 6455 §4.1). Frames are the caller's affair.

Decides whether a handshake is sent (the upstream's limit, its circuit breaker), and whether the answer is the one that
changes the protocol: any other answer is returned as it is, and the connection is closed, so that nothing that a client
sends later is ever read as a request (upgrade smuggling).
"""

from __future__ import annotations

import asyncio
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from os import urandom
from typing import Protocol, cast

from gateway.errors import UpstreamBusy, UpstreamError, UpstreamMalformed, UpstreamTimeout
from gateway.http.field_changes import FieldChanges
from gateway.http.headers import Headers, combined, connection_options, first, has, split_list, values, without
from gateway.http.response_parser import Chunks, Head, Malformed, TooLarge, end_of_head, read_head
from gateway.http.websocket import accepted
from gateway.observability.trace_context import PASSED_ON
from gateway.upstreams.aiohttp_errors import ERRORS, HeadTooLarge
from gateway.upstreams.aiohttp_errors import translated as as_httpx
from gateway.upstreams.client import Upstream
from gateway.upstreams.connection import MOST_INTERIM, TOO_MANY_INTERIM
from gateway.upstreams.failure_causes import cause_of
from gateway.upstreams.hosts import LATE, Host
from gateway.upstreams.httpx_api import httpx
from gateway.upstreams.request import ORDINARY, Sending, request_head
from gateway.upstreams.response import translated
from gateway.upstreams.sockets import peer_of
from gateway.upstreams.transport import Transport

LARGEST_REFUSAL = 64 * 1024
"""Bytes of the body of an answer other than 101 that are passed on; a longer one is left out."""
WAITING = 64 * 1024
"""Bytes that may wait to be written, before reading from the other side pauses."""
_OF_HANDSHAKE = (
    *(b"connection", b"upgrade", b"sec-websocket-key", b"sec-websocket-version", b"sec-websocket-accept"),
    *(b"sec-websocket-extensions", b"sec-websocket-protocol"),
)


@dataclass(slots=True)
class WebSocketCounts:
    """Of one upstream in one worker, over all reloads."""

    open: int = 0
    opening: int = 0
    """Handshakes under way."""
    closed: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By who closed it and the code."""
    messages: Counter[str] = field(default_factory=Counter)
    """Of closed connections, by who sent them: `client` or `upstream`."""


class Receiver(Protocol):
    """What an upstream's bytes go to."""

    def from_upstream(self, data: bytes) -> None: ...
    def upstream_lost(self) -> None: ...
    def upstream_full(self, full: bool) -> None:
        """Whether more waits to be sent to the upstream than should."""


@dataclass(frozen=True, slots=True)
class Refused:
    """An answer other than 101."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class UpstreamSocket(asyncio.Protocol):
    """A connection to an upstream for one WebSocket."""

    def __init__(self) -> None:
        self.peer = ""
        self.transport: asyncio.Transport | None = None
        self.subprotocol: str | None = None
        self.headers: list[tuple[bytes, bytes]] = []
        """Those of the answer, for the client."""
        self._receiver: Receiver | None = None
        self._early = b""
        self._handshake: _Handshake | None = None

    def __repr__(self) -> str:
        return f"<UpstreamSocket {self.peer}>"

    # `name_resolution.Drained`: it stays on its address until it ends.
    def drain(self) -> None: ...
    def drain_later(self) -> None: ...

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=WAITING)
        self.peer = peer_of(transport)

    def data_received(self, data: bytes) -> None:
        if self._receiver is not None:
            self._receiver.from_upstream(data)
        elif self._handshake is not None:
            self._early = self._handshake.take(data)
            if self._handshake.upgraded:
                self._wait_for_receiver()
        elif self.transport is not None:
            self.transport.abort()  # bytes before a handshake was sent

    def _wait_for_receiver(self) -> None:
        assert self.transport is not None
        self._handshake = None
        self.transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self._handshake is not None:
            self._handshake.lost()
        if self._receiver is not None:
            self._receiver.upstream_lost()

    def pause_writing(self) -> None:
        if self._receiver is not None:
            self._receiver.upstream_full(True)

    def resume_writing(self) -> None:
        if self._receiver is not None:
            self._receiver.upstream_full(False)

    def begin(self, head: bytes, handshake: _Handshake) -> None:
        self._handshake = handshake
        if self.transport is None or self.transport.is_closing():
            handshake.lost()
        else:
            self.transport.write(head)

    def give_to(self, receiver: Receiver) -> None:
        """Pass on what comes from now on, and what has come since the handshake."""
        self._receiver = receiver
        early, self._early = self._early, b""
        if self.transport is None:
            receiver.upstream_lost()
            return
        self.transport.resume_reading()
        if early:
            receiver.from_upstream(early)

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class _Handshake:
    """Reads the answer to a handshake. `answer` gets its head and, unless that is a 101, its body."""

    def __init__(self, max_head: int, max_fields: int) -> None:
        self.answer: asyncio.Future[tuple[Head, bytes | None]] = asyncio.get_running_loop().create_future()
        self._max_head = max_head
        self._max_fields = max_fields
        self._buffer, self._heads = b"", 0
        self._head: Head | None = None
        self._body: bytes | None = b""
        self._chunks: Chunks | None = None

    @property
    def upgraded(self) -> bool:
        return self._head is not None and self._head.status == 101

    def take(self, data: bytes) -> bytes:
        """Bytes from the upstream; what comes behind a 101 is given back."""
        try:
            if self._head is None:
                data = self._read_head(data)
            if self._head is not None and not self.upgraded:
                self._read_body(self._head, data)
                return b""
        except Malformed as malformed:
            kind = HeadTooLarge if isinstance(malformed, TooLarge) else httpx.RemoteProtocolError
            self._fail(kind(str(malformed)))
            return b""
        return data if self.upgraded else b""

    def _read_head(self, data: bytes) -> bytes:
        seen, self._buffer = len(self._buffer), self._buffer + data
        start = max(0, seen - 2)
        while end := end_of_head(self._buffer, start):
            head = read_head(self._buffer[:end], bodiless=False, most_fields=self._max_fields)
            self._heads += 1
            if self._heads > MOST_INTERIM:
                raise Malformed(TOO_MANY_INTERIM)
            self._buffer, start = self._buffer[end:], 0
            if head.status == 101 or head.status >= 200:
                self._head = head
                self._chunks = Chunks(self._max_head) if head.chunked else None
                rest, self._buffer = self._buffer, b""
                if head.status == 101:
                    self._finish()
                return rest
        if len(self._buffer) > self._max_head:
            raise TooLarge(f"its head is larger than max_response_headers ({self._max_head} bytes)")
        return b""

    def _read_body(self, head: Head, data: bytes) -> None:
        done = False
        if self._chunks is not None:
            pieces, _ = self._chunks.take(data)
            data, done = b"".join(pieces), self._chunks.done
        if self._body is not None:
            self._body = self._body + data if len(self._body) + len(data) <= LARGEST_REFUSAL else None
        if self._body is None or done or (head.length is not None and len(self._body) >= head.length):
            self._finish()

    def _finish(self) -> None:
        if not self.answer.done():
            assert self._head is not None
            length = self._head.length
            self.answer.set_result((self._head, self._body if self._body is None else self._body[:length]))

    def lost(self) -> None:
        head = self._head
        if head is not None and head.length is None and not head.chunked:
            self._finish()  # its body ends with the connection
        else:
            self._fail(httpx.ReadError("the connection ended"))

    def _fail(self, error: httpx.TransportError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


async def connect(
    upstream: Upstream,
    counts: WebSocketCounts,
    target: str,
    headers: Headers,
    subprotocols: list[str],
    changes: FieldChanges,
    seen: Callable[[str, float], None],
) -> UpstreamSocket | Refused:
    """Open a WebSocket to an upstream at `target`, a normalised path and query, by the timeouts of its requests. `seen`
    gets the result, in the terms of the metric of upstream requests, and the seconds that it took.

    Raises UpstreamError: too many WebSockets, circuit breaker open, connection failed, timeout, an invalid answer.
    """
    began, result = time.perf_counter(), "cancelled"
    try:
        if counts.open + counts.opening >= upstream.config.max_websockets:
            upstream.places.shed += 1
            raise UpstreamBusy(upstream.name, "too many WebSockets", 1.0)
        sending = Sending("GET", target, without(headers, *_OF_HANDSHAKE), None, None, ORDINARY, upstream.timeout, None)
        upstream.complete(sending, changes, PASSED_ON.get())
        counts.opening += 1
        try:
            opened = await _opened(upstream, sending, subprotocols)
        finally:
            counts.opening -= 1
        result = f"{opened.status // 100}xx" if isinstance(opened, Refused) else "1xx"
        return opened
    except UpstreamError as error:
        result = error.kind
        raise
    finally:
        seen(result, time.perf_counter() - began)


async def _opened(upstream: Upstream, sending: Sending, subprotocols: list[str]) -> UpstreamSocket | Refused:
    if not isinstance(upstream.transport, Transport):
        raise UpstreamMalformed(upstream.name, "WebSockets require `transport: aiohttp`")
    host, series = upstream.admitted(None)
    socket: UpstreamSocket | None = None
    try:
        async with asyncio.timeout(upstream.timeout):
            socket = await _connected(upstream.transport, host, upstream.config.connect_timeout.total_seconds())
            key = b64encode(urandom(16))
            handshake = _Handshake(upstream.config.max_response_headers, upstream.config.max_response_fields)
            socket.begin(_head(sending, host, key, subprotocols), handshake)
            head, body = await handshake.answer
        host.answered(series, head.status, None)
        if head.status == 101:
            _check(upstream.name, head.fields, key, subprotocols, socket)
            return socket
        socket.abort()
        return _refused(head, body)
    except BaseException as error:
        if socket is not None:
            socket.abort()
        raise _reported(upstream.name, host, series, error) from error


def _reported(name: str, host: Host, series: int, error: BaseException) -> BaseException:
    """What to raise for a failed handshake, whose failure is the host's."""
    if isinstance(error, UpstreamError):
        return error
    host.ended_by(series, error, late=False, lost=False)
    if isinstance(error, TimeoutError):
        host.failed_by(LATE)
        return UpstreamTimeout(name, LATE.text)
    if isinstance(error, httpx.TransportError):
        host.failed_by(cause_of(error))
        return translated(name, error)
    return error


async def _connected(transport: Transport, host: Host, timeout: float) -> UpstreamSocket:
    """Raises httpx.TransportError."""
    try:
        return await transport.open(host.base.origin, timeout, UpstreamSocket)
    except httpx.TransportError:
        raise
    except (*ERRORS, ValueError) as error:
        raise as_httpx(error) from error


def _head(sending: Sending, host: Host, key: bytes, subprotocols: list[str]) -> bytes:
    fields = [
        *sending.fields(host.base),
        (b"connection", b"Upgrade"),
        (b"upgrade", b"websocket"),
        (b"sec-websocket-version", b"13"),
        (b"sec-websocket-key", key),
    ]
    if subprotocols:
        fields.append((b"sec-websocket-protocol", ", ".join(subprotocols).encode("latin-1")))
    return request_head("GET", host.base.path(sending.target), fields)


def _check(name: str, fields: Headers, key: bytes, subprotocols: list[str], socket: UpstreamSocket) -> None:
    """Raises UpstreamMalformed where a 101 does not accept what was asked (RFC 6455 §4.1)."""
    upgrade = map(str.lower, split_list(combined(fields, b"upgrade") or ""))
    if "websocket" not in upgrade or b"upgrade" not in connection_options(fields):
        raise UpstreamMalformed(name, "a 101 that does not upgrade to a WebSocket")
    if [*values(fields, b"sec-websocket-accept")] != [accepted(key)]:
        raise UpstreamMalformed(name, "a 101 without the right Sec-WebSocket-Accept")
    if has(fields, b"sec-websocket-extensions"):
        raise UpstreamMalformed(name, "a WebSocket extension that was not offered")
    chosen = first(fields, b"sec-websocket-protocol")
    if chosen is not None and chosen not in subprotocols:
        raise UpstreamMalformed(name, "a WebSocket subprotocol that was not offered")
    socket.subprotocol = chosen
    socket.headers = without(fields, *_OF_HANDSHAKE)


def _refused(head: Head, body: bytes | None) -> Refused:
    fields = without(head.fields, *_OF_HANDSHAKE, b"content-length", b"transfer-encoding")
    if body is None:
        body, fields = b"", without(fields, b"content-encoding", b"content-type")
    return Refused(head.status, fields, body)
