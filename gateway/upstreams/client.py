"""Upstreams: the only module that is an HTTP client. It has no caching.

It uses httpx's API throughout, with direct calls to its transport: the client around it costs 80 to 330 µs per request
and adds redirects, cookies and decoding that a gateway must not have. A request passes the bulkhead, the selection of a
host, its circuit breaker, the timeout and the checks of the response, each of which can end it; a retry takes from the
budget.

The beginning of a request body is read before a connection is taken, so that a client that sends slowly occupies none:
for nearly all requests to an API that is the complete body. A longer body is streamed, with separate connections; nginx
reads all of it first, to disk (`proxy_request_buffering`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from gateway.config.upstream import UpstreamConfig
from gateway.errors import (
    UpstreamBusy,
    UpstreamCircuitOpen,
    UpstreamError,
    UpstreamMalformed,
    UpstreamTimeout,
)
from gateway.http.field_changes import NO_CHANGES, FieldChanges
from gateway.http.headers import DIGESTS, SOFTWARE, Headers, has, without
from gateway.http.response_parser import WITHOUT_BODY
from gateway.http.target import normalise
from gateway.observability.trace_context import PASSED_ON, traced
from gateway.upstreams.bulkhead import Bulkhead, Full, RetryBudget
from gateway.upstreams.connection import PlainConnection
from gateway.upstreams.failure_causes import Cause, cause_of
from gateway.upstreams.health import HealthChecks
from gateway.upstreams.hosts import LATE, Host, in_turn
from gateway.upstreams.httpx_api import httpx
from gateway.upstreams.name_resolution import Names
from gateway.upstreams.request import ORDINARY, Attempt, Deadline, Interim, Patience, ReceivedHead, Sending, Upload
from gateway.upstreams.response import (
    UNSOLICITED,
    Body,
    Fetched,
    ResponseBody,
    WholeBody,
    check_head,
    check_response,
    decoded,
    refuse_unsolicited,
    translated,
)
from gateway.upstreams.transport import IDEMPOTENT, Transport, transport_of

if TYPE_CHECKING:
    from gateway.observability.tracing import Call, Tracing


ENDLESS_IDLE = 60.0
"""Seconds between two pieces of a response of an endless content type, unless configured otherwise."""
FILES_PAUSE = 0.05
FILES_TRIES = 50
"""How often, and after which pause (seconds), a connection that gets no file descriptor is tried again."""
SHARE_OF_UPLOADS = 0.5
"""The share of an upstream's places for requests whose bodies are still coming."""


class Upstream:
    """An API behind the gateway: a pool of connections, its timeouts, and a base URL that no request leaves.

    In a handler, `get` and `request` return httpx's Response; the engine uses `fetch`. `alone` is whether the shared
    tier is down, so that each worker fetches for itself.
    """

    def __init__(
        self,
        name: str,
        config: UpstreamConfig,
        transport: httpx.AsyncBaseTransport | None = None,
        *,
        alone: Callable[[], bool] = lambda: False,
        monotonic: Callable[[], float] = time.monotonic,
        tracing: Tracing | None = None,
    ) -> None:
        self.name = name
        self._tracing = tracing
        self.config = config
        self.timeout = config.timeout.total_seconds()
        self._connect_timeout = config.connect_timeout.total_seconds()
        self.hosts = [Host.of(name, url, config, monotonic) for url in config.bases]
        self.places = Bulkhead(
            config.max_connections,
            config.max_queue,
            self.timeout / 2,
            narrow=config.connections_alone,
            narrowed=alone,
            monotonic=monotonic,
        )
        # A slowly sent long body occupies its connection for as long: if it could take all of them, reads would fail.
        self.uploads = Bulkhead(
            max(1, int(config.max_connections * SHARE_OF_UPLOADS)),
            config.max_queue,
            self.timeout / 2,
            monotonic=monotonic,
        )
        self.budget = RetryBudget(config.retry_budget)
        self._stream_longest = config.stream_timeout.total_seconds()
        idle = config.stream_idle_timeout
        self._stream_idle = idle.total_seconds() if idle is not None else None
        self.transport = transport or transport_of(name, config)
        self._connections = self.transport.plain if isinstance(self.transport, Transport) else None
        health = config.health
        self._checks = HealthChecks(health, self.hosts, self._status_of) if health is not None else None
        self._checked_every = health.every.total_seconds() if health is not None else 1.0
        self._order = in_turn(self.hosts, config.weights)
        self._usable = len(set(map(id, self._order)))
        self._only = self._order[0] if self._usable == 1 else None
        self._next_host = 0
        self._lookups_failed = 0
        self._changes = config.headers.request.changes.without(b"host")

    def __repr__(self) -> str:
        return f"<Upstream {self.name} {', '.join(self.config.bases)} {self.places!r}>"

    @property
    def names(self) -> Names | None:
        """Its host names, which are resolved again in the background; None while none was needed."""
        return self.transport.names if isinstance(self.transport, Transport) else None

    @property
    def lookups_failed(self) -> int:
        """Look-ups of its names that failed."""
        return self._lookups_failed + (self.names.failures if self.names is not None else 0)

    @property
    def shed(self) -> int:
        """Requests refused with 503 because no connection was free."""
        return self.places.shed + self.uploads.shed

    def go_on_counting(self, before: Upstream) -> None:
        """Take the counters of the upstream in whose place this one comes: a counter never falls."""
        if before is self:
            return
        self.places.shed, self.uploads.shed = before.places.shed, before.uploads.shed
        self.budget.spent, self.budget.denied = before.budget.spent, before.budget.denied
        self._lookups_failed = before.lookups_failed
        known = {host.name: host for host in before.hosts}
        for host in self.hosts:
            if host.name in known:
                host.breaker.opened = known[host.name].breaker.opened
                host.failures.update(known[host.name].failures)
                host.healthy = known[host.name].healthy or self._checks is None

    def fetch(
        self,
        method: str,
        target: str,
        headers: Headers,
        body: AsyncIterable[bytes] | bytes | None = None,
        interim: Interim | None = None,
        patience: Patience = ORDINARY,
        *,
        bounded: bool = False,
        changes: FieldChanges = NO_CHANGES,
        request_id: str | None = None,
    ) -> Coroutine[Any, Any, Fetched]:
        """Request `target` (a normalised path and query); the response head has arrived when this returns.

        `interim` is called with 1xx responses before it. With `bounded` the caller cancels it at the upstream's
        timeout, and it needs no timer of its own. `request_id` is sent behind `headers`. The caller closes the body.
        Raises UpstreamError: queue full, circuit breaker open, connection failed, timeout, invalid response.
        """
        timeout = self.timeout if patience.timeout is None else patience.timeout
        until = None
        if body is None or isinstance(body, bytes):
            until = asyncio.get_running_loop().time() + timeout
        else:
            body = Upload(body)
        sending = Sending(
            method, target, headers, body, interim, patience, timeout, until, bounded, patience.apart, request_id
        )
        if self._tracing is not None:
            return self._fetch_traced(self._tracing, sending, changes)
        traceparent = PASSED_ON.get()
        if traceparent or changes is not NO_CHANGES or self._changes is not NO_CHANGES:
            self.complete(sending, changes, traceparent)
        return self._fetch(sending)

    async def _fetch_traced(self, tracing: Tracing, sending: Sending, changes: FieldChanges) -> Fetched:
        with tracing.call(self.name, sending.method, sending.target) as call:
            self.complete(sending, changes, call.traceparent)
            return await self._fetch(sending, call)

    def complete(self, sending: Sending, changes: FieldChanges, traceparent: bytes) -> None:
        """Set the fields that go to the upstream, as settings change them."""
        if traceparent:
            sending.headers = traced(sending.complete_headers(), traceparent)
        if self._changes is not NO_CHANGES or changes is not NO_CHANGES:
            changes = self._changes.then(changes)
            sending.headers, sending.constants = changes.applied(sending.complete_headers()), changes.added

    async def _fetch(self, sending: Sending, call: Call | None = None) -> Fetched:
        self.budget.asked()
        upload = sending.body if isinstance(sending.body, Upload) else None
        if upload is not None:
            await self._ahead(upload)
        entered = self.places.enter_now()
        try:
            if entered is None:
                entered = await self._place(self.places, sending.until)
            while True:
                host, series = self.admitted(sending.apart)
                attempt = Attempt(partial(self._tell, sending.interim) if sending.interim is not None else None)
                answer: Awaitable[ReceivedHead] | None = None
                try:
                    answer = self._at_once(sending, host, attempt) or self._sent(sending, host, attempt)
                    if sending.bounded or sending.until is None:
                        response = await answer
                    else:
                        with Deadline(sending.until - asyncio.get_running_loop().time()):
                            response = await answer
                    break
                except BaseException as error:
                    _ended_early(attempt, answer, error)
                    if not await self._is_sent_again(sending, host, series, attempt, error):
                        raise
            host.answered(series, response.status, sending.client() if response.status >= 500 else None)
        except BaseException:
            if entered is not None:
                self.places.leave(entered)
            if upload is not None:
                await upload.aclose()
            raise
        if call is not None:
            call.answered(host, response.status)
        try:
            return self._fetched(sending, entered, host, series, response)
        except UpstreamError as error:
            self._ended(sending, entered, host, series, error)
            await response.stream.aclose()
            raise

    def _fetched(self, sending: Sending, entered: float, host: Host, series: int, response: ReceivedHead) -> Fetched:
        """The response to a request. Raises UpstreamError if it must not be used."""
        headers = self._checked(response, sending.headers)
        body: ResponseBody
        if response.content is not None:
            self._ended(sending, entered, host, series, None)
            body = WholeBody(response.content)
        else:
            body = self._body(sending, response, partial(self._ended, sending, entered, host, series))
        return Fetched(response.status, headers, body, shows_cut=response.shows_cut, framed=response.framed)

    def _ended(self, sending: Sending, entered: float, host: Host, series: int, error: UpstreamError | None) -> None:
        """A request has ended, with all of its response, or with `error`."""
        self.places.leave(entered)
        if isinstance(sending.body, Upload):
            sending.body.end()
        if error is not None:
            host.broke(series, Cause(*error.why))

    def _body(self, sending: Sending, response: ReceivedHead, done: Callable[[UpstreamError | None], None]) -> Body:
        """A body that is still coming."""
        idle = self._stream_idle
        return Body(
            self.name,
            response,
            idle=sending.timeout if idle is None else idle,
            longest=self._stream_longest,
            endless_idle=ENDLESS_IDLE if idle is None else idle,
            done=done,
        )

    def refusal(self) -> UpstreamBusy | None:
        """Why a new request would be refused at once, without a wait; None if it may try. It is counted."""
        try:
            self.places.check()
        except Full as full:
            return UpstreamBusy(self.name, "connection queue full", full.retry_after)
        return None

    async def _ahead(self, upload: Upload) -> None:
        """Have the beginning of a body here; take one of the places for bodies where that is not all of it."""
        try:
            if not await upload.begin():
                entered = await self._place(self.uploads, None)
                upload.on_end(partial(self.uploads.leave, entered))
        except BaseException:
            await upload.aclose()
            raise

    async def _place(self, places: Bulkhead, until: float | None) -> float:
        try:
            async with asyncio.timeout_at(until):
                return await places.enter()
        except Full as full:
            raise UpstreamBusy(self.name, "connection queue full", full.retry_after) from None
        except TimeoutError:
            raise UpstreamBusy(self.name, "connection queue full", places.expected_wait()) from None

    async def _is_sent_again(
        self, sending: Sending, host: Host, series: int, attempt: Attempt, error: BaseException
    ) -> bool:
        """Whether a request is sent once more, after an attempt that ended with `error`: where that is safe and within
        the budget. Raises UpstreamError where the upstream failed."""
        host.ended_by(series, error, late=sending.is_late(), lost=attempt.lost_its_connection)
        if isinstance(error, TimeoutError):
            host.failed_by(LATE)
            raise UpstreamTimeout(self.name, LATE.text) from None
        if not isinstance(error, httpx.TransportError):
            return False
        if sending.files_tried < FILES_TRIES and sending.is_here and cause_of(error).word == "files":
            # Connections that were accepted in a burst and are refused give their descriptors back soon.
            sending.files_tried += 1
            await asyncio.sleep(FILES_PAUSE)
            return True
        sending.tried += 1
        again = sending.tried <= sending.patience.retries and self._repeatable(sending, attempt, error)
        if not (again and attempt.lost_its_connection) and not isinstance(error, httpx.PoolTimeout):
            host.failed_by(cause_of(error))
        if not again:
            raise translated(self.name, error) from error
        if sending.apart is None and not attempt.lost_its_connection:
            sending.apart = {host.name}  # the next in turn may be the same, by its weight
        return True

    def _at_once(self, sending: Sending, host: Host, attempt: Attempt) -> asyncio.Future[ReceivedHead] | None:
        """The answer to a request that is sent on an idle connection, now; None if it must wait for a connection, or
        is of another kind."""
        if self._connections is None or (sent := sending.in_one(host.base)) is None:
            return None
        return self._connections.begin(host.base.origin, sent, attempt, sending.timeout)

    def _tell(self, interim: Interim, status: int, fields: Headers) -> None:
        """Report an interim response with the fields that a final one could have; one that is too large is not
        reported."""
        headers = [(name.lower(), value) for name, value in fields]
        try:
            check_head(self.name, headers, self.config.max_response_headers, self.config.max_response_fields)
        except UpstreamError:
            return
        interim(status, [pair for pair in headers if pair[0] not in SOFTWARE])

    async def _sent(self, sending: Sending, host: Host, attempt: Attempt) -> ReceivedHead:
        if isinstance(self.transport, Transport):
            return await self.transport.send(
                sending.method,
                host.base.join(sending.target),
                sending.fields(host.base),
                sending.body,
                sending.timeouts(self._connect_timeout),
                attempt,
            )
        request = sending.request(host.base, attempt, self._connect_timeout, self.config.tls_name)
        response = await self.transport.handle_async_request(request)
        request.extensions["timeout"]["read"] = None  # of the head; the reader of the body has its own limit
        assert isinstance(response.stream, httpx.AsyncByteStream)
        # httpx takes the end of a TLS connection without close_notify for one that was meant.
        return ReceivedHead(response.status_code, response.headers.raw, response.stream, shows_cut=False)

    def _repeatable(self, sending: Sending, attempt: Attempt, error: httpx.TransportError) -> bool:
        if not sending.is_here or not (sending.method in IDEMPOTENT or sending.patience.safe):
            return False
        unconnected = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout) and self._usable > 1
        return (unconnected or attempt.lost_its_connection) and self.budget.take()

    def admitted(self, apart: set[str] | None) -> tuple[Host, int]:
        """The next host, and its breaker's pass. Raises UpstreamResting where none may be asked."""
        only = self._only
        if only is not None and apart is None and (series := only.admit()) is not None:
            return only, series
        later: Host | None = None
        for _ in self._order:
            host = self._order[self._next_host]
            self._next_host = (self._next_host + 1) % len(self._order)
            if apart is not None and host.name in apart and len(apart) < self._usable:
                continue
            if host.returned is not None and not host.is_its_turn():
                later = host
                continue
            series = host.admit()
            if series is not None:
                if apart is not None:
                    apart.add(host.name)
                return host, series
        series = later.admit() if later is not None else None
        if later is not None and series is not None:
            if apart is not None:
                apart.add(later.name)
            return later, series
        if not any(host.healthy for host in self._order):
            raise UpstreamCircuitOpen(self.name, "no healthy host", self._checked_every)
        raise UpstreamCircuitOpen(self.name, "circuit breaker open", min(host.retry_after for host in self._order))

    @property
    def usable(self) -> bool:
        """Whether it has a host that requests may be sent to."""
        return any(host.usable for host in self._order)

    def start(self) -> None:
        """Check the hosts from now on, if that is configured. Needs a running event loop."""
        if self._checks is not None:
            self._checks.start()

    async def _status_of(self, host: Host) -> int:
        """The status that a host's active check is answered with. Raises httpx.TransportError, UpstreamError."""
        assert self.config.health is not None
        timeout = self.config.health.timeout.total_seconds()
        sent = self._changes.applied([(b"user-agent", b"cached-gateway health check")])
        until = asyncio.get_running_loop().time() + timeout
        sending = Sending("GET", self.config.health.path, sent, None, None, ORDINARY, timeout, until)
        response = await self._sent(sending, host, Attempt())
        await response.stream.aclose()
        return response.status

    def _checked(self, response: ReceivedHead, sent: Headers) -> Headers:
        """A response's fields. Raises UpstreamError if it must not be used."""
        headers = response.headers
        if not response.judged:
            headers = [(name.lower(), value) for name, value in headers if name.lower() not in SOFTWARE]
        if not response.judged or response.status > 599:
            limits = self.config.max_response_headers, self.config.max_response_fields
            check_response(self.name, response.status, headers, *limits)
        if response.status in UNSOLICITED:
            refuse_unsolicited(self.name, response.status, sent)
        if response.status in WITHOUT_BODY:
            # A 204 must not have them (RFC 9110 §8.6), a 304 need not: no content must be announced that won't come.
            return without(headers, b"content-length", b"transfer-encoding")
        return headers

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        max_body: int = 16 * 1024 * 1024,
        patience: Patience = ORDINARY,
    ) -> httpx.Response:
        """For handlers: request `path` below the base and read the complete response.

        At most `max_body` bytes of it, also decompressed. `path` must be percent-encoded where necessary. Raises
        UpstreamError.
        """
        query = urlencode(params, doseq=True) if params else ""
        target = normalise(quote(path, safe="/%:@!$&'()*+,;=~-._").encode(), query.encode())
        fields = [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in (headers or {}).items()]
        if not any(name == b"accept-encoding" for name, _ in fields):
            fields.append((b"accept-encoding", b"identity"))
        if content is not None:
            fields.append((b"content-length", b"%d" % len(content)))
        sent = _once(content) if content else None
        try:
            async with asyncio.timeout(patience.timeout or self.timeout):
                fetched = await self.fetch(method, str(target), fields, sent, patience=patience)
                try:
                    body = await fetched.body.whole(max_body)
                finally:
                    await fetched.body.aclose()
        except TimeoutError:
            raise UpstreamTimeout(self.name, "no complete response before the deadline") from None
        if body is None:
            raise UpstreamMalformed(self.name, f"its body is larger than {max_body} bytes")
        plain = decoded(self.name, fetched.headers, body, max_body)
        of_the_coded = (b"content-encoding", *DIGESTS) if has(fetched.headers, b"content-encoding") else ()
        left = without(fetched.headers, *of_the_coded, b"content-length", b"transfer-encoding")
        return httpx.Response(fetched.status, headers=left, content=plain)

    async def get(
        self,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """`request` with GET. Raises UpstreamError."""
        return await self.request("GET", path, params=params, headers=headers)

    async def aclose(self) -> None:
        if self._checks is not None:
            await self._checks.aclose()
        await self.transport.aclose()


def _ended_early(attempt: Attempt, answer: Awaitable[ReceivedHead] | None, error: BaseException) -> None:
    """Note that an attempt has ended with `error`, whose `answer` was waited for."""
    connection = attempt.connection
    if isinstance(connection, PlainConnection):
        if isinstance(answer, asyncio.Future):
            connection.leave(answer)
        if isinstance(error, httpx.ReadError):
            attempt.lost()


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content
