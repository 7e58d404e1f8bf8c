"""Answers made ready: all that does not change from one hit of a stored response to the next.

A Ready is a stored response's, a Shape is one form of it (by coding, by 200 or 304, by Origin). The age and the
remaining freshness are written once a second.
"""

from __future__ import annotations

import asyncio
import math
import time

from . import policy
from .engine import Route
from .epochs import Epochs
from .exchange import Exchange
from .metrics import Tally
from .middleware import server_timing
from .outcome import Outcome, Result, cache_status
from .record import Stored
from .remembered import Spot
from .traffic import key_hash

JOINED = 16 * 1024
"""Up to this size a body is copied behind its head, for one write; larger ones are handed over as they are."""
SHAPES = 32
"""How many forms of one stored response are kept: by GET or HEAD, by coding, by 200 or 304, by Origin."""
TICKS = 1000
"""For how many microseconds the fields that tell the time taken are made beforehand."""
_TOLD = {
    result: b"cache-status: " + cache_status(Outcome(result, ttl=0)).removesuffix(b"0")
    for result in (Result.HIT, Result.STALE)
}
_CLOSING = b"\r\nconnection: close\r\n"


class Ready:
    """A stored response made ready: its windows as the purges known by then leave it, and its shapes.

    It holds the stored headers, by whose identity it knows its response again, but not the body (one that is brought
    anew each time `records` knows again). Shapes are kept by what they are for (hits of GET and HEAD, stale answers to
    GET and HEAD: 0 to 3) and by what the request says of the form.
    """

    __slots__ = ("flight", "fresh", "headers", "key", "revalidate", "shapes", "softened", "version")

    def __init__(self, stored: Stored, route: Route, epochs: Epochs, *, base: str, flight: str) -> None:
        self.key = key_hash(base)
        self.headers = stored.headers
        self.version = epochs.version
        self.softened = stored.softened
        self.flight = flight
        windows = policy.windows(stored, route.rules)  # as the purges leave it
        self.fresh = windows.fresh
        self.revalidate = windows.revalidate
        self.shapes: dict[tuple[int, bytes], Shape] = {}


class Shape:
    """One form of a stored response: all bytes of an answer but those that differ with each request.

    `head` ends where the request id stands, and has the age `at` an index; `end` follows what tells the time taken.
    Both hold until the instant `until`, at which the age or the remaining freshness changes next, or trust ends.
    `coded` is the key under which the body lies in memory, where it is not the stored response's own.
    """

    __slots__ = (
        *("_at", "_digits", "coded", "end", "head", "length", "lines", "result"),
        *("status", "tally", "timing", "until", "volatile"),
    )

    def __init__(self, status: int, before: bytes, after: bytes, result: Result, tally: Tally, *, length: int) -> None:
        """`before` ends where the age stands, `after` begins there."""
        self.status = status
        self.head = before + after
        self._at = len(before)
        self._digits = 0
        self.result = result
        self.tally = tally
        self.timing: list[bytes] = []
        self.length = length
        self.coded = ""
        self.lines: dict[tuple[Spot, str], tuple[bytes, ...]] | None = None
        self.volatile = False
        self.until = -math.inf
        self.end = b""

    def render(self, stored: Stored, ready: Ready, rules: policy.Rules, now: float, trusted: float) -> None:
        """Write the age and the remaining freshness at `now`; `trusted` is until when memory is trusted (seconds)."""
        age = policy.age_for(stored, rules, now)
        left = ready.fresh - now
        text = b"%d" % age
        self.head = self.head[: self._at] + text + self.head[self._at + self._digits :]
        self._digits = len(text)
        self.end = b"%b%d\r\n\r\n" % (_TOLD[self.result], left)
        self.until = min(now + min(1.0 - age % 1.0, left % 1.0), trusted)
        if self.result is Result.HIT:
            self.until = min(self.until, ready.fresh)

    def write(
        self,
        transport: asyncio.Transport,
        body: bytes,
        request_id: bytes,
        began: float,
        *,
        close: bool,
        looked: float | None = None,
    ) -> float:
        """Write an answer, and say how many seconds it took; `began` is on the performance counter. `looked` (seconds)
        is what the shared tier took, where it was asked."""
        elapsed = time.perf_counter() - began
        ticks = int(elapsed * 1_000_000 + 0.5)
        timing = self.timing[ticks] if looked is None and ticks < TICKS else timing_of(self.result, elapsed, looked)
        end = self.end.replace(b"\r\n", _CLOSING, 1) if close else self.end
        if not self.length:
            transport.write(b"".join((self.head, request_id, timing, end)))
        elif self.length <= JOINED:
            transport.write(b"".join((self.head, request_id, timing, end, body)))
        else:
            transport.writelines((b"".join((self.head, request_id, timing, end)), body))
        return elapsed


def timing_of(result: Result, elapsed: float, looked: float | None = None) -> bytes:
    """The fields that tell the time taken, in seconds and milliseconds, as the app tells it. `looked` (seconds) is what
    the shared tier took of it, where it was asked."""
    exchange = Exchange("", 0.0, "", "", "", outcome=Outcome(result))
    if looked is not None:
        exchange.spend("cache", looked)
    return b"\r\nx-process-time: %.6f\r\nserver-timing: %b\r\n" % (elapsed, server_timing(exchange, elapsed))


def timings_of(result: Result) -> list[bytes]:
    return [timing_of(result, ticks / 1_000_000) for ticks in range(TICKS)]
