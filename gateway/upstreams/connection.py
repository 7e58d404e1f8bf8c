"""Connections to upstreams for requests without a body, and their pool.

Most requests of a gateway are a GET: one write, one read. aiohttp resolves the address and opens the connection with
its TLS; its session, request and response objects are not used, because they merge defaults, cookies and encodings that
a gateway must not have.

HTTP/1.1 matches a response to its request only by order. So a connection is reused only after a response with a certain
end and no bytes behind it; unsolicited bytes close it; and the socket of a pooled connection is checked once more, for
bytes or an end that the event loop has not read yet. What arrives in the microseconds between that check and the write,
or later, can't be distinguished from the response.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Awaitable, Callable
from typing import cast

from gateway.http.response_parser import (
    MOST_FIELDS,
    Chunks,
    Head,
    HeadForms,
    Malformed,
    TooLarge,
    end_of_head,
    read_head,
)
from gateway.upstreams.aiohttp_errors import HeadTooLarge
from gateway.upstreams.connection_end import ends_on_purpose
from gateway.upstreams.httpx_api import httpx
from gateway.upstreams.name_resolution import Name
from gateway.upstreams.plain_body import Answer, PlainBody
from gateway.upstreams.request import Attempt, Interim, ReceivedHead
from gateway.upstreams.sockets import acknowledge, host_of, peer_of

QUIET = 1.0
"""Seconds for which a connection must be silent before it is used again, after a response to HEAD that announced
content: servers that wrongly send it do so within that time."""
MOST_INTERIM = 32
"""Interim responses (1xx) before a final one, each of which may be as large as a head may be."""
TOO_MANY_INTERIM = f"more than {MOST_INTERIM} interim responses"
ENDED = httpx.ByteStream(b"")
"""The stream of a response whose content came with its head."""


class PlainConnection(asyncio.Protocol):
    """One connection, for one request at a time. `max_head` (bytes) and `max_fields` bound a response head."""

    def __init__(self, pool: Pool, max_head: int, max_fields: int = MOST_FIELDS) -> None:
        self.requests = 0
        """How many requests were sent on it."""
        self.received = False
        """Whether anything came since the last of them was sent."""
        self.origin = self.peer = ""
        self.idle_since = 0.0
        self._draining = self._ended_on_purpose = self._keeps = self._quiet = False
        self._pool = pool
        self._max_head = max_head
        self._max_fields = max_fields
        self._transport: asyncio.Transport | None = None
        self._answer: Answer | None = None
        self._patience: float | None = None
        self._interim: Interim | None = None
        self._interims, self._bodiless = 0, False
        self._buffer = b""
        self._body: PlainBody | None = None
        self._left: int | None = None
        self._chunks: Chunks | None = None
        self._poll = select.poll()

    def __repr__(self) -> str:
        state = "closed" if not self.usable else "asked" if self._answer or self._body else "idle"
        return f"<PlainConnection {self.origin} {state}, {self.requests} requests>"

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent on it: nothing waits to be read, and it has not ended."""
        return self._transport is not None and not self._transport.is_closing() and not self._poll.poll(0)

    def send(self, head: bytes, attempt: Attempt, patience: float | None) -> Answer:
        """Send a request; the result is the response head, or an httpx.TransportError. A caller that gets an error from
        waiting for it, such as its cancellation, calls `leave`. `patience` as in `PlainBody`. Raises httpx.ReadError.
        """
        if not self.usable:
            attempt.on(self)
            self.close()
            raise httpx.ReadError("the connection is gone")
        return self.write(head, attempt, patience)

    def write(self, head: bytes, attempt: Attempt, patience: float | None) -> Answer:
        """What `send` does, on a connection that is `usable`."""
        assert self._transport is not None
        attempt.on(self)
        self._interim, self._interims, self._patience = attempt.interim, 0, patience
        self._bodiless = head.startswith(b"HEAD ")
        answer = self._answer = self.loop.create_future()
        self._transport.write(head)
        return answer

    def leave(self, answer: Answer) -> None:
        """The caller waits for an answer no more: close the connection, unless that is in use again, because the
        response was complete when the caller was cancelled."""
        if self._answer is answer or (self._body is not None and self._body.answers is answer):
            self.close()

    def close(self) -> None:
        """End it, whatever is under way on it."""
        self._fail(httpx.ReadError("the connection was closed by the gateway"))
        if self._transport is not None:
            self._transport.abort()
        self._done()

    def drain(self) -> None:
        self._draining = True
        if not self._pool.uses(self):
            self.close()

    def drain_later(self) -> None:
        self._draining = True

    def go_on(self, body: PlainBody) -> None:
        """Receive more of `body`, enough of which waited to be read."""
        if self._body is body and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    # --- asyncio's callbacks ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.loop = asyncio.get_running_loop()  # once: CPython 3.11 asks the system for the process's ID each time
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        self.peer = peer_of(transport)

    def eof_received(self) -> None:
        assert self._transport is not None
        self._ended_on_purpose = ends_on_purpose(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        body = self._body
        if body is None:
            self._fail(httpx.ReadError("the connection ended"))
        elif self._left is None and self._chunks is None and exc is None and self._ended_on_purpose:
            body.end()  # its end is that of the connection
        else:
            self._fail(httpx.RemoteProtocolError("the connection ended within the body"))
        self._transport = None
        self._done()
        self._pool.lost(self)

    def data_received(self, data: bytes) -> None:
        self.received = True
        try:
            if self._answer is not None:
                self._take_head(data)
            elif self._body is not None:
                self._take_body(self._body, data)
            else:
                self.close()  # unsolicited: it reaches no other request
        except Malformed as malformed:
            kind = HeadTooLarge if isinstance(malformed, TooLarge) else httpx.RemoteProtocolError
            self._fail(kind(str(malformed)))
            self.close()
        if self._body is not None or self._answer is not None:
            acknowledge(self._transport)

    # --- a response -------------------------------------------------------------------------------------------

    def _take_head(self, data: bytes) -> None:
        at = start = 0
        if self._buffer:
            start, data = max(0, len(self._buffer) - 2), self._buffer + data
        else:
            found = None if self._bodiless else self._pool.forms.match(data)
            if found is not None and found[1] <= self._max_head:
                self._begin(found[0], data[found[1] :])
                return
            data = data.lstrip(b"\r\n")  # some servers send an empty line behind a body
        while True:
            end = end_of_head(data, start)
            if (end or len(data)) - at > self._max_head:
                raise TooLarge(f"its head is larger than max_response_headers ({self._max_head} bytes)")
            if not end:
                self._buffer = data[at:]
                return
            before = at
            head = read_head(data[at:end], bodiless=self._bodiless, most_fields=self._max_fields)
            at = start = end
            if head.status >= 200:
                break
            self._before_the_answer(head)
        self._buffer = b""
        if head.status == 200 and not self._bodiless:
            self._pool.forms.note(data[before:at], head)
        self._begin(head, data[at:])

    def _before_the_answer(self, head: Head) -> None:
        if head.status == 101:
            raise Malformed("an unsolicited protocol upgrade")
        self._interims += 1
        if self._interims > MOST_INTERIM:
            raise Malformed(TOO_MANY_INTERIM)
        if head.status > 101 and self._interim is not None:
            self._interim(head.status, head.fields)

    def _begin(self, head: Head, data: bytes) -> None:
        answer, self._answer = self._answer, None
        assert answer is not None
        if len(data) == head.length and not answer.done():
            self._interim = None
            answer.set_result(ReceivedHead(head.status, head.fields, ENDED, judged=True, framed=True, content=data))
            self._give_back(keeps=head.keeps, after=QUIET if head.quiet else 0.0)
            return
        body = self._body = PlainBody(self, answer, self._patience)
        self._keeps, self._quiet, self._left = head.keeps, head.quiet, head.length
        self._chunks = Chunks(self._max_head) if head.chunked else None
        if not answer.done():
            framed = head.chunked or head.length is not None
            answer.set_result(ReceivedHead(head.status, head.fields, body, judged=True, framed=framed))
        if data or head.length == 0:
            self._take_body(body, data)

    def _take_body(self, body: PlainBody, data: bytes) -> None:
        left = self._left
        if left is not None:
            surplus = len(data) > left
            piece = data[:left] if surplus else data
            self._left = left - len(piece)
            more = body.came(piece) if piece else True
            if not self._left:
                self._end(body, surplus=surplus)
                return
        elif self._chunks is not None:
            pieces, rest = self._chunks.take(data)
            # Joined: a chunk may be a byte, and each piece that waits takes 40 bytes beside its own.
            more = body.came(b"".join(pieces)) if pieces else True
            if self._chunks.done:
                self._end(body, surplus=bool(rest))
                return
        else:
            more = body.came(data)
        if not more and self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def _forget_body(self) -> None:
        if self._body is not None:
            self._body.answers = None  # whose result it is: such a cycle waits for the garbage collector
        self._body = self._chunks = None

    def _end(self, body: PlainBody, *, surplus: bool) -> None:
        self._forget_body()
        self._interim = None
        self._give_back(keeps=self._keeps and not surplus, after=QUIET if self._quiet else 0.0)
        body.end()

    def _give_back(self, *, keeps: bool, after: float) -> None:
        """Nothing is under way any more, after a response that has ended: close it, unless it may be used again."""
        keeps = keeps and not self._draining
        if self._transport is not None and not keeps:
            self._transport.close()
        self._pool.give_back(self, keeps=keeps, after=after)

    def _fail(self, error: httpx.TransportError) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
        if self._body is not None:
            self._body.fail(error)

    def _done(self) -> None:
        """Nothing is under way any more."""
        self._forget_body()
        self._answer = self._interim = None
        self._pool.give_back(self, keeps=False)


class Pool:
    """At most `limit` concurrent connections, opened by `connect`, which gets an origin (`http://api.test:8000`).

    An idle connection is closed after `keepalive` seconds.
    """

    def __init__(
        self, connect: Callable[[str, float | None], Awaitable[PlainConnection]], *, limit: int, keepalive: float
    ) -> None:
        self._connect = connect
        self._limit = limit
        self._free = limit
        self._left = asyncio.Event()
        self._keepalive = keepalive
        self._idle: dict[str, list[PlainConnection]] = {}
        self._used: set[PlainConnection] = set()
        self._watched: set[PlainConnection] = set()
        """Those that must be silent for a while before they are used again."""
        self._sweeping: asyncio.TimerHandle | None = None
        self.forms = HeadForms()
        """Those of the heads that came on its connections."""
        self.several: dict[str, Name] = {}
        """The hosts that lead to several addresses: requests go to them in turn."""

    def __repr__(self) -> str:
        return f"<Pool {len(self._used)} in use, {sum(map(len, self._idle.values()))} idle>"

    @property
    def in_use(self) -> int:
        return len(self._used)

    @property
    def open(self) -> int:
        """The open connections, and those that are being made."""
        return self._limit - self._free + len(self._watched) + sum(map(len, self._idle.values()))

    def close_idle(self) -> bool:
        """Close the connection that has been idle for longest; whether there was one."""
        idle = min((kept for kept in self._idle.values() if kept), key=lambda kept: kept[0].idle_since, default=None)
        if idle is not None:
            idle.pop(0).close()
        return idle is not None

    def begin(self, origin: str, head: bytes, attempt: Attempt, patience: float | None) -> Answer | None:
        """Send a request on an idle connection, as `PlainConnection.send` does; None if there is none, or none may be
        used now. Nothing is waited for."""
        connection = self._kept(origin) if self._free else None
        if connection is None:
            return None
        self._free -= 1
        self._used.add(connection)
        return connection.write(head, attempt, patience)

    async def connection(self, origin: str, *, pool: float | None, connect: float | None) -> PlainConnection:
        """An idle connection, or a new one. It returns by itself. Raises httpx.PoolTimeout, httpx.ConnectTimeout, or
        what `connect` raises."""
        try:
            async with asyncio.timeout(pool):
                while not self._free:  # its caller's queue is the bulkhead: to wait here is rare, and in no order
                    self._left.clear()
                    await self._left.wait()
        except TimeoutError:
            raise httpx.PoolTimeout("timed out waiting for a connection") from None
        self._free -= 1
        try:
            connection = self._kept(origin) or await self._connect(origin, connect)
        except BaseException:
            self._free += 1
            self._left.set()
            raise
        connection.origin = origin
        self._used.add(connection)
        return connection

    def uses(self, connection: PlainConnection) -> bool:
        """Whether a request is under way on it, or about to be sent."""
        return connection in self._used

    def _kept(self, origin: str) -> PlainConnection | None:
        idle = self._idle.get(origin)
        if self.several and idle and (name := self.several.get(host_of(origin))) is not None:
            return self._kept_in_turn(idle, name)
        while idle:
            connection = idle.pop()
            if connection.reusable:
                return connection
            connection.close()
        return None

    def _kept_in_turn(self, idle: list[PlainConnection], name: Name) -> PlainConnection | None:
        """One to the address whose turn it is. Where there is none, a new connection goes to that address."""
        while (connection := next((each for each in reversed(idle) if each.peer == name.turn), None)) is not None:
            idle.remove(connection)
            if connection.reusable:
                name.advance()
                return connection
            connection.close()
        return None

    def give_back(self, connection: PlainConnection, *, keeps: bool, after: float = 0.0) -> None:
        """Nothing is under way on a connection any more. It may be used again after so many seconds of silence."""
        if connection not in self._used:
            return
        self._used.remove(connection)
        if not self._free:  # else nobody waits, or they are woken already
            self._left.set()
        self._free += 1
        if keeps and not after:
            self._keep(connection)
        elif keeps and len(self._watched) < self._limit:
            self._watched.add(connection)
            connection.loop.call_later(after, self._keep_silent, connection)
        elif keeps:
            connection.close()

    def _keep_silent(self, connection: PlainConnection) -> None:
        if connection in self._watched:  # and not lost meanwhile
            self._watched.remove(connection)
            self._keep(connection)

    def _keep(self, connection: PlainConnection) -> None:
        connection.idle_since = connection.loop.time()
        self._idle.setdefault(connection.origin, []).append(connection)
        if self._sweeping is None:
            self._sweeping = connection.loop.call_later(self._keepalive, self._sweep)

    def lost(self, connection: PlainConnection) -> None:
        """A connection has ended."""
        self._watched.discard(connection)
        idle = self._idle.get(connection.origin, [])
        if connection in idle:
            idle.remove(connection)

    def _sweep(self) -> None:
        """Close those that were idle for too long; they are in the order in which they became idle."""
        loop = asyncio.get_running_loop()
        self._sweeping = None
        since = loop.time() - self._keepalive
        for idle in list(self._idle.values()):
            for connection in [each for each in idle if each.idle_since <= since]:
                idle.remove(connection)
                connection.close()
        self._idle = {origin: idle for origin, idle in self._idle.items() if idle}
        if self._idle:
            self._sweeping = loop.call_later(self._keepalive / 2, self._sweep)

    def close(self) -> None:
        """End all."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        idle = [each for kept in self._idle.values() for each in kept]
        for connection in [*self._used, *self._watched, *idle]:
            connection.close()
        self._idle.clear()
