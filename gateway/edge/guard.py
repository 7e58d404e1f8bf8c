"""The limits on client connections, and their timeouts.

Decides how many connections and requests may be open, whether one more is admitted, the response to a refused client,
and when a connection is checked for being slow. It must not know the content of a connection: `client_connection` asks
for admission before a request is processed. `Underway` counts the requests of one generation of the app, for its end.

Timeouts don't have their own timers: one sweep twice a second checks every connection. A request then costs one
assignment instead of a timer (0.6 µs on uvloop to set and cancel; a sweep over 10,000 connections takes some 2 ms).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol
from uuid import uuid4

from gateway.config.models import Config, LimitsConfig
from gateway.context import Outcome, RequestContext, Result
from gateway.errors import PROBLEM_MEDIA_TYPE, RequestRefused, problem_body, problem_title
from gateway.http.forwarding import Trusted
from gateway.http.headers import http_date
from gateway.http.request_parser import ALLOW, Limits
from gateway.observability.access_log import AccessLog, silent
from gateway.observability.metrics import Metrics
from gateway.observability.open_files import OpenFiles

SWEEP = 0.5
"""Seconds between two sweeps."""
SLICE = 0.002
"""Seconds of one look at a stretch."""
NEVER = math.inf
EARLY = 1.2 * SWEEP
"""A connection that would time out before the next sweep is closed in this one, so that no limit is exceeded if the
next sweep is late."""
BODY_RATE = 500
"""Bytes a second that a request's body must come in at (Apache's mod_reqtimeout demands as much)."""
READ_RATE = 500
"""Bytes per second that a client must read of a response that it does not read at once."""
LINGER = 2.0
"""Seconds for which a refused client is listened to after its answer: closing at once would reset the connection and
take the answer away with it (RFC 9112 §9.6)."""


class GuardedConnection(Protocol):
    """A connection as the sweep sees it."""

    def sweep(self, now: float) -> None: ...


@dataclass(frozen=True, slots=True)
class ClientTimeouts:
    """All in seconds."""

    head: float = 8.0
    body: float = 8.0
    write: float = 8.0
    keep_alive: float = 75.0


class ConnectionGuard:
    """The guard of one app's listeners in one worker."""

    def __init__(
        self,
        config: Config | None = None,
        *,
        metrics: Metrics | None = None,
        log: AccessLog = silent,
        files: OpenFiles | None = None,
    ) -> None:
        self.configure(config, log)
        self.files = files or OpenFiles()
        self.draining = False
        """Whether each answer shall be the last on its connection: another process answers from then on."""
        self._metrics = metrics
        self._connections: set[GuardedConnection] = set()
        self._by_client: dict[str, int] = {}
        self._requests = 0
        self._requests_by_client: dict[str, int] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<ConnectionGuard connections={len(self._connections)} requests={self._requests}>"

    def configure(self, config: Config | None, log: AccessLog) -> None:
        """Use other limits from now on, also for existing connections."""
        limits = config.limits if config is not None else LimitsConfig()
        self.limits = _limits(config, limits)
        self.timeouts = ClientTimeouts(
            *(each.total_seconds() for each in (limits.head_timeout, limits.body_timeout)),
            *(each.total_seconds() for each in (limits.write_timeout, limits.keep_alive)),
        )
        self._bounds = limits
        self._most, self._most_of_client = limits.requests, limits.requests_per_client
        self._trusted = Trusted(config.trusted_proxies if config is not None else [])
        self._log = log

    def __len__(self) -> int:
        """Connections now."""
        return len(self._connections)

    def enter(
        self,
        connection: GuardedConnection,
        client: str,
        loop: asyncio.AbstractEventLoop,
        transport: asyncio.BaseTransport | None = None,
    ) -> None:
        """Register a new connection from `client` (empty: a unix socket). Raises RequestRefused if it is one too many;
        it is still tracked."""
        self._connections.add(connection)
        own = self._by_client[client] = self._by_client.get(client, 0) + 1
        if self._timer is None:
            self._timer = loop.call_later(SWEEP, self._sweep, loop)
        sock = transport.get_extra_info("socket") if transport is not None else None
        descriptor = sock.fileno() if sock is not None else -1
        if self.files.is_too_many(descriptor):
            if transport is not None and self.files.is_full(descriptor):
                loop.call_soon(transport.close)
            raise RequestRefused("Too many open files.", 503, "files")
        over = len(self._connections) > self._bounds.connections
        if over or (own > self._bounds.connections_per_client and self._is_counted(client)):
            raise RequestRefused("Too many connections.", 503, "connections")

    def leave(self, connection: GuardedConnection, client: str) -> None:
        self._connections.discard(connection)
        _uncount(self._by_client, client)

    def replace(self, connection: GuardedConnection, other: GuardedConnection) -> None:
        """Look at `other` from now on, in the place of a registered connection."""
        self._connections.discard(connection)
        self._connections.add(other)

    def admit(self, client: str) -> None:
        """Register a request for the app. Raises RequestRefused if it is one too many."""
        own = self._requests_by_client.get(client, 0)
        if self._requests >= self._most or (own >= self._most_of_client and self._is_counted(client)):
            raise RequestRefused("Too many concurrent requests.", 503, "requests")
        self._requests += 1
        self._requests_by_client[client] = own + 1

    def release(self, client: str) -> None:
        self._requests -= 1
        _uncount(self._requests_by_client, client)

    def count(self, reason: str) -> None:
        """Count a refusal whose answer, if it has one, is not made by `refusal`: it is not logged."""
        if self._metrics is not None:
            self._metrics.refused(reason)

    def _is_counted(self, client: str) -> bool:
        return bool(client) and client not in self._trusted

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._look(loop, iter(tuple(self._connections)))

    def _look(self, loop: asyncio.AbstractEventLoop, connections: Iterator[GuardedConnection]) -> None:
        """Check some connections, then the others after other due work: five hundred refusals at once take 50 ms,
        during which no other request is served."""
        until = time.perf_counter() + SLICE
        for connection in connections:
            now = time.perf_counter()
            connection.sweep(now)
            if now > until:
                self._timer = loop.call_later(0, self._look, loop, connections)
                return
        self._timer = loop.call_later(SWEEP, self._sweep, loop) if self._connections else None

    def refusal(self, refused: RequestRefused, *, client: str, method: str, scheme: str, began: float) -> bytes:
        """The whole answer to a refused request, counted and logged."""
        exchange = RequestContext(uuid4().hex, began, method, client, scheme)
        body = problem_body(refused.status, refused.detail, exchange.request_id)
        exchange.outcome = Outcome(Result.LOCAL, detail=refused.reason)
        seconds = max(0.0, time.perf_counter() - began)
        if self._metrics is not None:
            self._metrics.refused(refused.reason)
            self._metrics.request("", exchange.outcome, refused.status, seconds)
        sent = b"" if method == "HEAD" else body
        self._log(exchange, refused.status, len(sent), seconds)
        return _refusal_head(refused, exchange.request_id, len(body)) + sent


class SlowReader:
    """Judges whether the other end of one connection reads less than `READ_RATE` of what waits to be sent to it."""

    __slots__ = ("_due", "_read", "_unsent", "_written")

    def __init__(self) -> None:
        self._due = NEVER
        self._read = self._unsent = self._written = 0

    def is_too_slow(self, now: float, limit: float, unsent: int, written: int) -> bool:
        """Whether it was, for `limit` seconds up to the next sweep. `unsent` bytes wait now; `written` is how many were
        written to the connection so far, 0 where that is not known: without it only what waits less was read."""
        read = max(0, self._unsent - unsent + max(0, written - self._written))
        self._unsent, self._written = unsent, written
        if not unsent:
            self._due = NEVER
            return False
        if self._due == NEVER:
            self._due, self._read = now + limit, 0
            return False
        self._read += read
        if now + EARLY < self._due:
            return False
        slow = self._read < READ_RATE * limit
        self._due, self._read = now + limit, 0
        return slow


def _limits(config: Config | None, limits: LimitsConfig) -> Limits:
    body = config.max_request_body if config is not None else Config.model_fields["max_request_body"].default
    return Limits(limits.request_line, limits.request_head, limits.request_headers, body)


def _uncount(counts: dict[str, int], name: str) -> None:
    """One less; a name of none is forgotten, so that the table does not grow with every address ever seen."""
    left = counts.pop(name, 0) - 1
    if left > 0:
        counts[name] = left


def _refusal_head(refused: RequestRefused, request_id: str, length: int) -> bytes:
    status = refused.status
    fields = [
        f"HTTP/1.1 {status} {problem_title(status)}".encode("ascii"),
        b"content-type: " + PROBLEM_MEDIA_TYPE,
        b"content-length: %d" % length,
        b"cache-control: no-store",
        b"date: " + http_date(int(time.time())),
        b"x-request-id: " + request_id.encode("ascii"),
    ]
    if status == 503:
        fields.append(b"retry-after: 1")
    if status == 405:
        fields.append(b"allow: " + ALLOW)
    return b"\r\n".join([*fields, b"connection: close", b"", b""])


class Underway:
    """Counts requests from their beginning to the end of their answers; `none` waits until there are none."""

    __slots__ = ("_waiting", "count")

    def __init__(self) -> None:
        self.count = 0
        self._waiting: list[asyncio.Future[None]] = []

    def __repr__(self) -> str:
        return f"<Underway {self.count}>"

    def began(self) -> None:
        self.count += 1

    def ended(self) -> None:
        self.count -= 1
        if self._waiting and not self.count:
            for waiting in self._waiting:
                if not waiting.done():
                    waiting.set_result(None)
            self._waiting.clear()

    async def none(self) -> None:
        """Wait until no request is under way."""
        while self.count:
            self._waiting.append(waiting := asyncio.get_running_loop().create_future())
            await waiting
