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
from .head_template import TICKS, Ending, closing
from .metrics import Tally
from .outcome import Outcome, Result
from .record import Stored
from .remembered import Spot
from .traffic import key_hash

JOINED = 16 * 1024
"""Up to this size a body is copied behind its head, for one write; larger ones are handed over as they are."""
SHAPES = 32
"""How many forms of one stored response are kept: by GET or HEAD, by coding, by 200 or 304, by Origin."""


class Endings:
    """The ends of heads of one route's hits of one kind: from memory (`plain`), and where the shared tier was asked
    (`looked`)."""

    __slots__ = ("looked", "plain")

    def __init__(self, route: str, result: Result) -> None:
        exchange = Exchange("", 0.0, "", "", "", route=route, outcome=Outcome(result, ttl=0))
        self.plain = Ending(exchange)
        exchange.spend("cache", 0.0)
        self.looked = Ending(exchange)


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
        *("_at", "_digits", "coded", "end", "ending", "head", "length", "lines", "result"),
        *("status", "tally", "timing", "until", "volatile"),
    )

    def __init__(
        self, status: int, before: bytes, after: bytes, ending: Endings, result: Result, tally: Tally, *, length: int
    ) -> None:
        """`before` ends where the age stands; `after` begins there, and ends with the answer's own fields."""
        self.status = status
        self.head = before + after + ending.plain.start
        self._at = len(before)
        self._digits = 0
        self.result = result
        self.tally = tally
        self.ending = ending
        self.timing = ending.plain.ticks
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
        self.end = self.ending.plain.status(left)
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
        if looked is not None:
            timing = self.ending.looked.timing(elapsed, looked)
        else:
            timing = self.timing[ticks] if ticks < TICKS else self.ending.plain.timing(elapsed)
        end = closing(self.end) if close else self.end
        if not self.length:
            transport.write(b"".join((self.head, request_id, timing, end)))
        elif self.length <= JOINED:
            transport.write(b"".join((self.head, request_id, timing, end, body)))
        else:
            transport.writelines((b"".join((self.head, request_id, timing, end)), body))
        return elapsed
