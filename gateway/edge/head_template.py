"""The bytes of response heads, made at once or as templates.

Decides how a head is written: the response's own fields (`template_of`), then the diagnostic fields (`Ending`), both
from the lists that the app sends, with placeholders for the values that differ from one response to the next. It must
not know those values, or whose response it is.
"""

from __future__ import annotations

import re
from functools import lru_cache
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from gateway.cache.respond import is_writable
from gateway.context import RequestContext
from gateway.http.headers import Headers
from gateway.observability import response_headers
from gateway.observability.response_headers import Texts, in_milliseconds

INTERIM = (HTTPStatus.PROCESSING, HTTPStatus.EARLY_HINTS)
"""Interim responses that are passed on; 101 is a hop's own affair, and so are 100 and unknown ones (RFC 9110 §15.2)."""
_NOT_OF_INTERIM = frozenset((b"connection", b"content-length", b"transfer-encoding"))  # RFC 9110 §8.6, RFC 9112 §6.1
TICKS = 1000
"""For how many microseconds the texts of a time are made beforehand."""
MARK = b"\0"
"""The placeholder for a value in a template; no field can contain it (RFC 9110 §5.5)."""
_ID, _SECONDS, _DURATION, _TOTAL, _TTL = "\0i", "\0s", "\0d", "\0t", "\0l"
_MARKED = Texts(_ID, _SECONDS, _TOTAL, lambda _: _DURATION, _TTL)
_MARKS = re.compile(rb"(\0[a-z])")
CLOSES = b"connection: close\r\n"
KEEPS = b"connection: keep-alive\r\n"
"""For an HTTP/1.0 client whose connection stays open, as it requested (RFC 9112 §C.2.2)."""


def lines_of(headers: Headers) -> bytes:
    return b"".join([name + b": " + value + b"\r\n" for name, value in headers])


def start_of(status: int, headers: Headers) -> bytes:
    """A head up to where more fields may follow."""
    return STATUS_LINE[status] + lines_of(headers)


def head_of(status: int, headers: Headers) -> bytes:
    return STATUS_LINE[status] + lines_of(headers) + b"\r\n"


def interim_head(status: int, headers: Headers) -> bytes:
    """An interim response as it goes out. The fields of CORS are the gateway's own, and those of the final response."""
    fields = [pair for pair in headers if pair[0] not in _NOT_OF_INTERIM and not pair[0].startswith(b"access-control-")]
    line = b"HTTP/1.1 %d %s\r\n" % (status, HTTPStatus(status).phrase.encode("ascii"))
    return line + lines_of(fields) + b"\r\n"


def template_of(status: int, headers: Headers, varying: tuple[bytes, ...]) -> bytes | None:
    """The status line and a response's own fields, as a template (`%`) that takes the values of the fields `varying`,
    in this order; None if these are not present once each in this order, or the response can't be written directly."""
    if tuple(name for name, _ in headers if name in varying) != varying or not is_writable(status, headers):
        return None
    marked = [(name, b"%b" if name in varying else value.replace(b"%", b"%%")) for name, value in headers]
    return start_of(status, marked)


class Ending:
    """The end of a head, from the diagnostic fields on, for all responses of one form: those of one route and outcome,
    with the same activities and parts. `start` ends before the request ID."""

    __slots__ = ("_before_ttl", "_last", "start", "ticks", "timing")

    def __init__(self, exchange: RequestContext) -> None:
        """`exchange` is that of an answer of this form; its outcome has a `ttl`."""
        text = lines_of(response_headers.diagnostics(exchange, _MARKED)) + b"\r\n"
        self.start, *more = _MARKS.split(text)
        marks, pieces = more[::2], more[1::2]
        durations = [_DURATION] * (len(marks) - 4)
        assert marks == [mark.encode() for mark in (_ID, _SECONDS, *durations, _TOTAL, _TTL)]
        before_seconds, *before_total, self._before_ttl, self._last = pieces
        times = _times(before_seconds, tuple(before_total))
        self.timing = times.text
        """The text between the request ID and the end of the total time."""
        self.ticks = times.ticks
        """The same by microseconds, if only the total is included."""

    def status(self, ttl: float) -> bytes:
        """The text after the timing; `ttl` is in seconds."""
        return b"%b%d%b" % (self._before_ttl, ttl, self._last)


def with_last(head: bytes, field: bytes) -> bytes:
    """A head, or the end of one, with a further field line at its end: `CLOSES` or `KEEPS`."""
    return head[:-2] + field + b"\r\n"


class _Times:
    """The part of a head with times, between constant pieces."""

    __slots__ = ("_before_seconds", "_before_total", "ticks")

    def __init__(self, before_seconds: bytes, before_total: tuple[bytes, ...]) -> None:
        self._before_seconds, self._before_total = before_seconds, before_total
        alone = len(before_total) == 1
        self.ticks = [self.text(tick / 1_000_000) for tick in range(TICKS)] if alone else []

    def text(self, elapsed: float, duration: float = 0.0) -> bytes:
        """`elapsed` is the total, `duration` that of everything it was spent on; both in seconds."""
        tick, part = int(elapsed * 1_000_000 + 0.5), int(duration * 1_000_000 + 0.5)
        seconds = _SECONDS_TEXT[tick] if tick < TICKS else b"%.6f" % elapsed
        total = _MILLISECONDS_TEXT[tick] if tick < TICKS else in_milliseconds(elapsed).encode()
        each = _MILLISECONDS_TEXT[part] if part < TICKS else in_milliseconds(duration).encode()
        return b"".join((self._before_seconds, seconds, each.join(self._before_total), total))


_times = lru_cache(maxsize=256)(_Times)  # a thousand texts each, the same for most routes


_SECONDS_TEXT = [b"%.6f" % (tick / 1_000_000) for tick in range(TICKS)]
_MILLISECONDS_TEXT = [in_milliseconds(tick / 1_000_000).encode() for tick in range(TICKS)]
