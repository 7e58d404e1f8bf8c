"""One request to an upstream: its body, its timeouts, its attempts, what is sent, and the head that comes back."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from contextvars import Context
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import ClassVar, Protocol, Self

import msgspec

from gateway.http.headers import Headers, has, without
from gateway.policy.keys import is_identity
from gateway.upstreams.hosts import Base
from gateway.upstreams.httpx_api import httpx

Interim = Callable[[int, Sequence[tuple[bytes, bytes]]], None]
"""Called with a response before the final one: its status, and its fields."""
AHEAD = 64 * 1024
"""Bytes that are here before a place is taken: what uvicorn holds of a body before it stops reading."""


class Upload(httpx.AsyncByteStream):
    """A body that is read once: first, up to `AHEAD` bytes, by `begin`; then all of it, by the sender."""

    def __init__(self, chunks: AsyncIterable[bytes]) -> None:
        self._chunks: AsyncIterator[bytes] = aiter(chunks)
        self._read: list[bytes] = []
        self._whole = False
        self._ended: Callable[[], None] | None = None

    async def begin(self) -> bool:
        """Read the beginning; whether that is the whole body. Raises what its source raises."""
        size = 0
        while size < AHEAD and not self._whole:
            piece = await anext(self._chunks, None)
            if piece is None:
                self._whole = True
            else:
                self._read.append(piece)
                size += len(piece)
        return self._whole

    def on_end(self, ended: Callable[[], None]) -> None:
        """Call `ended` once, when all was read or reading stops."""
        self._ended = ended

    def end(self) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while self._read:
                yield self._read.pop(0)
            if not self._whole:
                async for piece in self._chunks:
                    yield piece
        finally:
            self.end()

    async def aclose(self) -> None:
        self.end()


@dataclass(frozen=True, slots=True)
class Patience:
    """How long one fetch may take, and how often it is tried again.

    `timeout` is in seconds, for a whole answer, or a streamed one's head and then between two pieces; None: the
    upstream's own. `retries` is how often at most an idempotent request is repeated where nothing was received; the
    upstream's budget bounds it as well.
    """

    timeout: float | None = None
    retries: int = 1
    safe: bool = False
    """Whether the request may be repeated whatever its method is (RFC 9110 §9.2.2): it is declared a read."""
    apart: set[str] | None = None
    """The hosts that were tried for the same request: another one is taken, if there is one. It is added to."""


ORDINARY = Patience()
METHODS = frozenset(("GET", "HEAD"))
"""The methods of requests that go out on connections of our own, without aiohttp's objects."""


RESOLUTION = 0.0005
"""Seconds: uvloop's timers count in whole milliseconds."""
MOST_LENGTHS = 16
"""Lengths of deadlines that share a timer: those of the configuration are few, while what is left for the parts of an
aggregate is of any length, and the same for several."""


class _Queue:
    """Deadlines of the same length on an event loop, which end in the order in which they began: one timer is enough.
    It goes on until none is left at its time."""

    __slots__ = ("_queues", "_seconds", "waiting")

    def __init__(self, queues: _Queues, seconds: float) -> None:
        self.waiting: dict[Deadline, float] = {}
        """When each ends that is not over. One that is over is gone: nothing keeps what it was for."""
        self._queues, self._seconds = queues, seconds
        self._set(seconds)

    def _set(self, seconds: float) -> None:
        # Without the context of the request that happens to come first, which the timer would keep.
        self._queues.loop.call_later(seconds, self._expire, context=Context())

    def _expire(self) -> None:
        now = self._queues.loop.time()
        over = []
        for deadline, when in self.waiting.items():
            if when - now > RESOLUTION:
                self._set(when - now)
                break
            over.append(deadline)
        else:
            del self._queues.by_length[self._seconds]
        for deadline in over:
            del self.waiting[deadline]
            deadline.expire()


class _Queues:
    """The queues of an event loop, for lengths that deadlines had twice in a row: others have timers of their own."""

    __slots__ = ("_last", "by_length", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.by_length: dict[float, _Queue] = {}
        self._last = -1.0

    def of(self, seconds: float) -> _Queue | None:
        queue = self.by_length.get(seconds)
        if queue is None and seconds == self._last and len(self.by_length) < MOST_LENGTHS:
            queue = self.by_length[seconds] = _Queue(self, seconds)
        self._last = seconds
        return queue


class Deadline:
    """`asyncio.timeout` for the running task, without coroutines of its own, and mostly without a timer of its own, at
    a third of the cost: each fetch has one, and each wait for a piece of a body."""

    __slots__ = ("_asked", "_expired", "_queue", "_task", "_timer", "when")
    _queues: ClassVar[_Queues | None] = None
    """Those of the event loop on which a deadline was made last."""

    def __init__(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None
        self._task, self._asked, self._expired = task, task.cancelling(), False
        queues = Deadline._queues
        if queues is None or queues.loop is not loop:
            queues = Deadline._queues = _Queues(loop)
        self.when: float | None = loop.time() + seconds
        """On the event loop's clock; None once it is lifted."""
        queue = self._queue = queues.of(seconds)
        if queue is not None:
            queue.waiting[self] = self.when
        else:
            self._timer = loop.call_later(seconds, self.expire)

    def lift(self) -> None:
        """It ends nothing from now on."""
        self.when = None
        if self._queue is not None:
            self._queue.waiting.pop(self, None)
        else:
            self._timer.cancel()

    def expire(self) -> None:
        """Its time has come."""
        self._expired = True
        self._task.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        """Raises TimeoutError in place of the cancellation that it caused."""
        self.lift()
        if self._expired and self._task.uncancel() <= self._asked and kind is asyncio.CancelledError:
            raise TimeoutError from error


class UpstreamTimeouts(msgspec.Struct, frozen=True):
    """Seconds: for a connection from the pool, for a new one to open, between two received pieces.

    `bounded`: the caller has a timeout for the response head, so none is needed here.
    """

    pool: float | None = None
    connect: float | None = None
    read: float | None = None
    bounded: bool = False


class ReceivedHead(msgspec.Struct, frozen=True):
    """A response whose head has come. Header names are as they came."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    stream: httpx.AsyncByteStream
    judged: bool = False
    """Whether its head was read strictly, names turned into lower case."""
    shows_cut: bool = True
    """Whether its body, where it ends with its connection, raises an error if that broke off."""
    framed: bool = False
    """Whether its head is known to say where its body ends."""
    content: bytes | None = None
    """All of its body, if that came with the head: then there is no more in the stream."""


class CountedConnection(Protocol):
    """What an attempt sees of its connection."""

    requests: int
    received: bool


class Attempt(msgspec.Struct):
    """One request on one connection: the callback for interim responses, and whether it is safe to send it again.

    The caller passes it as the extension `attempt`, and reads it if the request failed.
    """

    interim: Interim | None = None
    lost_its_connection: bool = False
    """Whether a kept connection was closed as it was used again (RFC 9112 §9.3.1): nothing was received."""
    connection: CountedConnection | None = None

    def on(self, connection: CountedConnection) -> None:
        connection.requests += 1
        connection.received = False
        self.connection = connection

    def lost(self) -> None:
        connection = self.connection
        self.lost_its_connection = connection is None or (connection.requests > 1 and not connection.received)


class Sending(msgspec.Struct):
    """One request, as it is sent once or twice."""

    method: str
    target: str
    headers: Headers
    body: Upload | bytes | None
    """Bytes are all of it: it can be sent again."""
    interim: Interim | None
    patience: Patience
    timeout: float
    """Seconds for the response head."""
    until: float | None
    """When these have passed, on the event loop's clock. None with a body, which is sent at its client's pace: then
    each step has the timeout, not all of them together."""
    bounded: bool = False
    """Whether the caller cancels it then."""
    apart: set[str] | None = None
    """The hosts that are not asked for it any more, if there is another one."""
    request_id: str | None = None
    """The value of `x-request-id`, which goes behind the other fields: those are the same for many requests."""
    tried: int = 0
    files_tried: int = 0
    """How often there was no file descriptor for it."""
    constants: Headers = ()

    def complete_headers(self) -> Headers:
        """All its fields, with its ID as one of them from now on."""
        if self.request_id is not None:
            self.headers = [*self.headers, (b"x-request-id", self.request_id.encode("ascii"))]
            self.request_id = None
        return self.headers

    @property
    def is_here(self) -> bool:
        """Whether all of it is here, so that it can be sent again."""
        return not isinstance(self.body, Upload)

    def is_late(self) -> bool:
        """Whether its time is up, or nearly."""
        return self.until is not None and asyncio.get_running_loop().time() >= self.until - self.timeout / 20

    def client(self) -> bytes | None:
        """The credentials that it brought, digested; None where it brought none."""
        own = [
            name + b":" + value
            for name, value in self.headers
            if (name, value) not in self.constants and is_identity(name.decode("latin-1"))
        ]
        return blake2b(b"\n".join(own), digest_size=16).digest() if own else None

    def fields(self, base: Base) -> Headers:
        """The header fields as they go to a host."""
        fields = self.complete_headers()
        if self.body is None and self.method in ("POST", "PUT", "PATCH"):
            fields = [*without(fields, b"content-length"), (b"content-length", b"0")]
        elif isinstance(self.body, bytes):
            fields = [*without(fields, b"content-length"), (b"content-length", b"%d" % len(self.body))]
        return fields if has(fields, b"host") else [(b"host", base.sent_host), *fields]

    def in_one(self, base: Base) -> bytes | None:
        """Its bytes for a host, if it goes out on a connection of our own, in one write; None otherwise. Raises
        UpstreamMalformed, httpx.LocalProtocolError."""
        if self.body is None and self.method in METHODS and self.request_id is not None:
            return _numbered_head(self.method, base.path(self.target), self.headers, base.sent_host, self.request_id)
        if self.body is None and self.method in METHODS:
            return request_head(self.method, base.path(self.target), self.headers, base.sent_host)
        if isinstance(self.body, bytes):
            return request_head(self.method, base.path(self.target), self.fields(base)) + self.body
        return None

    def timeouts(self, connect: float) -> UpstreamTimeouts:
        bounded = self.until is not None
        return UpstreamTimeouts(self.timeout, min(connect, self.timeout), self.timeout, bounded)

    def request(self, base: Base, attempt: Attempt, connect: float, tls_name: str | None) -> httpx.Request:
        times = self.timeouts(connect)
        timeout = {"connect": times.connect, "read": times.read, "write": times.read, "pool": times.pool}
        fields = self.fields(base)
        if not self.is_here and not has(fields, b"content-length"):  # httpx frames no stream that is not its own
            fields = [*fields, (b"transfer-encoding", b"chunked")]
        return httpx.Request(
            self.method,
            base.join(self.target),
            headers=fields,
            **({"content": self.body} if isinstance(self.body, bytes) else {"stream": self.body}),
            extensions={"timeout": timeout, "attempt": attempt, **({"sni_hostname": tls_name} if tls_name else {})},
        )


_BREAKS = re.compile(r"[\r\n\0]")
_TARGET = re.compile(r"/[\x21-\x7e]*")


def request_head(method: str, target: str, headers: Headers, host: bytes = b"") -> bytes:
    """A request's bytes, where it has no body; `host` is its Host if `headers` have none. Raises
    httpx.LocalProtocolError where a field would end its line."""
    if not _TARGET.fullmatch(target):
        raise httpx.LocalProtocolError("a request that can't be sent")
    return f"{method} {target} HTTP/1.1\r\n".encode("ascii") + f"{_lines(headers, host)}\r\n".encode("latin-1")


def _numbered_head(method: str, target: str, headers: Headers, host: bytes, request_id: str) -> bytes:
    """The same with the request's ID as the last field, where `Base.path` has checked the target, and the method is one
    of `METHODS`. The lines of the other fields are known: they are the same for most requests of a route."""
    if not (request_id.isascii() and request_id.isprintable()):
        return request_head(method, target, [*headers, (b"x-request-id", request_id.encode("ascii"))], host)
    lines = _known_lines(tuple(headers), host)
    return f"{method} {target} HTTP/1.1\r\n{lines}x-request-id: {request_id}\r\n\r\n".encode("latin-1")


def _lines(headers: Headers, host: bytes) -> str:
    """The lines of a request's fields. Raises httpx.LocalProtocolError."""
    fields = headers if not host or has(headers, b"host") else ((b"host", host), *headers)
    lines = [f"{name.decode('latin-1')}: {value.decode('latin-1')}" for name, value in fields]
    if _BREAKS.search("".join(lines)):
        raise httpx.LocalProtocolError("a request that can't be sent")
    return "".join([f"{line}\r\n" for line in lines])


_known_lines = lru_cache(maxsize=256)(_lines)
"""At most 256 heads, of 32 KiB each. It is asked for the same tuples: comparing them takes no time."""
