"""A response as it came from an upstream, its body still to be read: whole up to a limit, or a piece at a time."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Protocol

import msgspec

from gateway.errors import (
    Overloaded,
    UpstreamBusy,
    UpstreamError,
    UpstreamHeadTooLarge,
    UpstreamMalformed,
    UpstreamTimeout,
    UpstreamTooLarge,
    UpstreamUnreachable,
)
from gateway.http import codings as http_codings
from gateway.http.codings import Undecodable
from gateway.http.headers import WITHOUT_CONTENT, Headers, has, values
from gateway.http.request_parser import BAD_IN_VALUE, NAME
from gateway.policy.entry import DerivedFrom
from gateway.policy.storability import is_endless
from gateway.upstreams.aiohttp_errors import HeadTooLarge
from gateway.upstreams.failure_causes import cause_of
from gateway.upstreams.httpx_api import httpx
from gateway.upstreams.plain_body import PlainBody
from gateway.upstreams.request import Deadline, ReceivedHead


class Live(msgspec.Struct, frozen=True):
    """Recognises a body of unknown length: a pause of so many seconds, or no end after `longest` seconds."""

    pause: float
    longest: float


class Body:
    """A response's body: read whole up to a limit, or streamed, or first the one and then the other.

    `idle` is the most seconds between two pieces of a streamed one, `longest` the most for all of it. One of an endless
    content type has no such end, and its pieces are at most `endless_idle` seconds apart. `done` is called once, when
    it is closed: with the error by which the upstream broke off.
    """

    def __init__(
        self,
        name: str,
        response: ReceivedHead,
        *,
        idle: float,
        longest: float = math.inf,
        endless_idle: float = math.inf,
        done: Callable[[UpstreamError | None], None] | None = None,
    ) -> None:
        self._name = name
        self._response = response
        self._idle = idle
        self._ends = time.monotonic() + longest
        self._endless_idle = endless_idle
        self._done = done
        self._error: UpstreamError | None = None
        self.live = False
        """Whether it was given up to have all of it, as it comes as it is made."""
        self._read: list[bytes] = []
        self._ahead: asyncio.Task[bytes | None] | None = None
        self._chunks: AsyncIterator[bytes] | None = None
        self._ready = response.stream.ready if isinstance(response.stream, PlainBody) else _unknown

    async def whole(self, limit: int, live: Live | None = None) -> bytes | None:
        """All of it; None where it is larger than `limit` bytes, or `live`, and `chunks` then gives all of it.

        Raises UpstreamError where it breaks off.
        """
        at_once = self.at_once(limit)
        if at_once is not None:
            return at_once
        size = sum(map(len, self._read))  # by an earlier request, whose response was too large
        if size > limit:
            return None
        until = asyncio.get_running_loop().time() + (live.longest if live is not None else math.inf)
        while True:
            ready = self._ready() if self._ahead is None else None
            pause = live.pause if live is not None and self._read else math.inf
            if ready is None and live is not None and not await self._comes(pause, until):
                self.live = True
                return None
            piece = (ready or None) if ready is not None else await self._next()
            if piece is None:
                break
            self._read.append(piece)
            size += len(piece)
            if size > limit:
                return None
        body = self._read[0] if len(self._read) == 1 else b"".join(self._read)
        await self.aclose()
        return body

    def at_once(self, limit: float = math.inf) -> bytes | None:
        """All of it, if all has come, none was read yet, and it is not larger than `limit`; then it is closed, too."""
        stream = self._response.stream
        if self._read or not isinstance(stream, PlainBody) or stream.size > limit:
            return None
        body = stream.ready() if stream.ended else None
        if body is not None:
            self._end(None)
        return body

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body a piece at a time, what was read already first. Raises UpstreamError."""
        self._pace()
        try:
            for piece in self._read:
                yield piece
            self._read = []
            while (chunk := await self._next_in_time()) is not None:
                yield chunk
        finally:
            await self.aclose()

    def _pace(self) -> None:
        """From now on the limits of a stream apply, and not those of the transport."""
        if is_endless([(name.lower(), value) for name, value in self._response.headers]):
            self._idle, self._ends = self._endless_idle, math.inf
        # A stream may have a limit of its own on the time between two pieces.
        wait_longer = getattr(self._response.stream, "wait_longer", None)
        if wait_longer is not None:
            wait_longer()

    async def _next_in_time(self) -> bytes | None:
        piece = self._ready() if self._ahead is None else None
        if piece is not None:
            return piece or None
        try:
            with Deadline(min(self._idle, self._ends - time.monotonic())):
                return await self._next()
        except TimeoutError:
            over = "stream_timeout" if time.monotonic() >= self._ends else "stream_idle_timeout"
            self._error = UpstreamTimeout(self._name, f"{over} exceeded")
            raise self._error from None

    async def _comes(self, seconds: float, until: float) -> bool:
        """Whether a piece or the end comes within so many seconds, and before `until`. If not, it is waited for on."""
        left, stream = min(seconds, until - asyncio.get_running_loop().time()), self._response.stream
        if isinstance(stream, PlainBody):
            return await stream.comes(left)
        if self._ahead is None:
            self._ahead = asyncio.ensure_future(self._next())
        done, _ = await asyncio.wait((self._ahead,), timeout=max(0.0, left))
        return bool(done)

    async def _next(self) -> bytes | None:
        ahead = self._ahead
        if ahead is not None and ahead is not asyncio.current_task():
            self._ahead = None
            return await ahead
        stream = self._response.stream
        try:
            if isinstance(stream, PlainBody):
                return await stream.piece() or None
            if self._chunks is None:
                self._chunks = aiter(stream)
            return await anext(self._chunks, None)
        except httpx.TransportError as error:
            self._error = translated(self._name, error)
            self._error.cause, self._error.text = "cut", f"its body broke off: {self._error.text}"
            await self.aclose()
            raise self._error from error

    async def aclose(self, error: UpstreamError | None = None) -> None:
        ahead = self._ahead
        if ahead is not None and ahead is not asyncio.current_task():
            self._ahead = None
            ahead.cancel()
            await asyncio.wait((ahead,))
            _ = ahead.cancelled() or ahead.exception()  # no other waiter
        try:
            await self._response.stream.aclose()
        finally:
            self._end(error or self._error)

    def _end(self, error: UpstreamError | None) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(error)


def _unknown() -> bytes | None:
    """Whether anything of a body has arrived can't be determined without waiting for it."""
    return None


class ResponseBody(Protocol):
    """A body still to be read; `Body` is an upstream's, `WholeBody` one that is there already."""

    async def whole(self, limit: int, live: Live | None = None) -> bytes | None: ...

    def chunks(self) -> AsyncIterator[bytes]: ...

    async def aclose(self) -> None: ...


class WholeBody(msgspec.Struct):
    """A body that has come."""

    content: bytes

    async def whole(self, limit: int, live: Live | None = None) -> bytes | None:
        return self.content if len(self.content) <= limit else None

    async def chunks(self) -> AsyncIterator[bytes]:
        yield self.content

    async def aclose(self) -> None:
        return None


class LimitedBody:
    """A body of unknown length, of at most `largest` bytes."""

    def __init__(self, name: str, body: ResponseBody, largest: int) -> None:
        self._name, self._body, self._largest = name, body, largest

    async def whole(self, limit: int, live: Live | None = None) -> bytes | None:
        """Raises UpstreamTooLarge, and other UpstreamError where it breaks off."""
        body = await self._body.whole(min(limit, self._largest), live)
        if body is None and self._largest <= limit and not getattr(self._body, "live", False):
            await self._body.aclose()
            raise self._too_large()
        return body

    async def chunks(self) -> AsyncIterator[bytes]:
        """The same pieces. Raises UpstreamTooLarge at the one that is too much, and UpstreamError."""
        size = 0
        async with aclosing(self._body.chunks()) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                size += len(piece)
                if size > self._largest:
                    raise self._too_large()
                yield piece

    async def aclose(self) -> None:
        await self._body.aclose()

    def _too_large(self) -> UpstreamTooLarge:
        return too_large(self._name, self._largest)


def too_large(name: str, largest: int) -> UpstreamTooLarge:
    return UpstreamTooLarge(name, f"a body of more than {largest} bytes (max_response_body)")


class PartOfBody:
    """The bytes `first` to `last` (inclusive) of a body, which is closed as soon as they were read."""

    def __init__(self, body: ResponseBody, first: int, last: int) -> None:
        self._body, self._first, self._last = body, first, last

    async def whole(self, limit: int, live: Live | None = None) -> bytes | None:
        raise NotImplementedError("only part of the body is streamed")

    async def chunks(self) -> AsyncIterator[bytes]:
        """Raises UpstreamError."""
        at = 0
        try:
            async with aclosing(self._body.chunks()) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    wanted = piece[max(self._first - at, 0) : self._last + 1 - at]
                    at += len(piece)
                    if wanted:
                        yield wanted
                    if at > self._last:
                        return
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        await self._body.aclose()


class Reads(Protocol):
    """What a handler read of its request; more of it may be read until the body has ended."""

    def names(self) -> tuple[str, ...]:
        """The request fields that its answers vary on."""

    def reason(self) -> str | None:
        """Why its answer is for its client alone; None where it is not."""

    def agrees(self, headers: Headers) -> bool:
        """Whether what was read has the same values in `headers`."""


class Fetched(msgspec.Struct, frozen=True):
    """A response as it came, its body still to be read. Field names are in lower case."""

    status: int
    headers: Headers
    body: ResponseBody
    made: DerivedFrom | None = None
    """For a response derived from stored ones: what it inherits from them."""
    reads: Reads | None = None
    """For a handler's response: the inputs that it depends on."""
    shows_cut: bool = False
    """Whether its body, where it ends with its connection, raises an error if that broke off."""
    framed: bool = False
    """Whether its head is known to say where its body ends."""

    @property
    def ends_surely(self) -> bool:
        """Whether a broken connection could be distinguished from the end of the body (RFC 9112 §8)."""
        if self.framed or self.status in WITHOUT_CONTENT:
            return True
        codings = b",".join(values(self.headers, b"transfer-encoding")).lower()
        return has(self.headers, b"content-length") or b"chunked" in codings


def check_response(
    name: str, status: int, headers: Sequence[tuple[bytes, bytes]], max_head: int, max_fields: int
) -> None:
    """Raises UpstreamMalformed if a response head isn't valid HTTP or is contradictory, UpstreamHeadTooLarge if it is
    too large."""
    if not 200 <= status <= 599:
        raise UpstreamMalformed(name, f"the status {status}")
    check_head(name, headers, max_head, max_fields)
    lengths = values(headers, b"content-length")
    if len(lengths) > 1 or any(not length.isdigit() for length in lengths):
        raise UpstreamMalformed(name, "contradictory lengths")
    codings = values(headers, b"transfer-encoding")
    if codings and (lengths or b",".join(codings).strip().lower() != b"chunked"):
        raise UpstreamMalformed(name, "ambiguous framing")


def check_head(name: str, headers: Headers, max_head: int, max_fields: int) -> None:
    """Raises UpstreamHeadTooLarge where the fields of a head are too large or too many, UpstreamMalformed where they
    are no HTTP."""
    if len(headers) > max_fields:
        reason = f"its head has {len(headers)} fields, more than max_response_fields ({max_fields})"
        raise UpstreamHeadTooLarge(name, reason)
    if sum(len(key) + len(value) + 4 for key, value in headers) > max_head:
        raise UpstreamHeadTooLarge(name, f"its head is larger than max_response_headers ({max_head} bytes)")
    for key, value in headers:
        if not NAME.fullmatch(key) or BAD_IN_VALUE.search(value):
            raise UpstreamMalformed(name, "a malformed header")


UNSOLICITED = (206, 304)
"""Statuses that must have been asked for."""
_CONDITIONAL = frozenset((b"if-none-match", b"if-modified-since"))


def refuse_unsolicited(name: str, status: int, sent: Headers) -> None:
    """Raises UpstreamMalformed for an unsolicited response: a 304 without a precondition, a 206 without a range (RFC
    9110 §15.4.5, §15.3.7). The client could not use it."""
    names = {key for key, _ in sent}
    if status == 304 and not names & _CONDITIONAL:
        raise UpstreamMalformed(name, "an unsolicited 304")
    if status == 206 and b"range" not in names:
        raise UpstreamMalformed(name, "an unsolicited 206")


def decoded(name: str, headers: Headers, body: bytes, limit: int) -> bytes:
    """`body` without its content codings, at most `limit` bytes. Raises UpstreamMalformed."""
    try:
        return http_codings.decoded(headers, body, limit)
    except Undecodable as error:
        raise UpstreamMalformed(name, str(error)) from None


def translated(name: str, error: httpx.TransportError) -> UpstreamError:
    """The gateway's error for one of httpx's; a test goes through all of httpx's."""
    kinds: tuple[tuple[type[httpx.TransportError], type[UpstreamError], str], ...] = (
        (httpx.PoolTimeout, UpstreamBusy, "all connections are in use"),
        (httpx.TimeoutException, UpstreamTimeout, "no response before the deadline"),
        (HeadTooLarge, UpstreamHeadTooLarge, str(error)),
        (httpx.RemoteProtocolError, UpstreamMalformed, "an invalid or incomplete response"),
        (httpx.LocalProtocolError, UpstreamMalformed, "a request that can't be sent"),
        (httpx.UnsupportedProtocol, UpstreamMalformed, "an unsupported protocol"),
    )
    found = next(
        (counterpart(name, reason) for kind, counterpart, reason in kinds if isinstance(error, kind)),
        UpstreamUnreachable(name, "connection failed or lost"),
    )
    if not isinstance(found, UpstreamBusy):
        cause = cause_of(error)
        if cause.word == "files":
            found = Overloaded(name, cause.text, 1.0)
            found.title = "Gateway has no file descriptor left"
        found.cause, found.text = cause
    return found
