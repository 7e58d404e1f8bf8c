"""The result of a part: its value, its absence, or its failure; and which failed parts back off, for whom."""

from __future__ import annotations

from collections import OrderedDict

import msgspec
from pydantic import JsonValue

from gateway.aggregates.lifetime import PartLife
from gateway.clock import Clock
from gateway.errors import UpstreamError, UpstreamTimeout
from gateway.http.headers import Headers
from gateway.policy.keys import short_key


class Failure(Exception):
    """A part failed. `kind` is a token for headers, `status` the aggregate's status without it, `why` the cause of the
    upstream's failure and a text for the log, if known."""

    def __init__(self, kind: str, detail: str, status: int = 502, why: tuple[str, str] | None = None) -> None:
        self.kind = kind
        self.detail = detail
        self.status = status
        self.why = why
        super().__init__(detail)

    @property
    def backs_off(self) -> bool:
        """Whether another request now would fail as well. Not for a 3xx or 4xx, except 429: it depends on what this
        client sent, including its credentials."""
        return not self.kind.startswith("status-") or self.kind == "status-429" or self.kind >= "status-5"

    @property
    def of_all(self) -> bool:
        """Whether it applies to every client's requests, as a timeout or a lost connection does. A status applies to
        one of them."""
        return self.kind in _OF_ALL

    def of_elements(self, failed: int, asked: int) -> Failure:
        """The same, of so many of a list's elements."""
        detail = f"{failed} of {asked} elements failed, the first because {self.detail}"
        return Failure(self.kind, detail, self.status, self.why)

    def again(self) -> Failure:
        """The same for another request, without the traceback of the first."""
        return Failure(self.kind, self.detail, self.status, self.why)


_OF_ALL = frozenset(("timeout", "unreachable", "malformed", "busy", "resting", "overloaded"))


class Absent(Failure):
    """The upstream has no such resource (404, 410): a response, which may be cached."""

    def __init__(self, status: int, life: PartLife) -> None:
        self.life = life
        super().__init__("absent", f"upstream returned {status}", 404)


def failure_by(status: int, life: PartLife) -> Failure:
    """What a status that is not 2xx says; `life` is that of the response."""
    if status in (404, 410):
        return Absent(status, life)
    return Failure(f"status-{status}", f"upstream returned {status}")


def failure_of(error: UpstreamError) -> Failure:
    """The failure of a part whose upstream failed."""
    return Failure(error.kind, error.title.lower(), status_without(error.status), error.why)


def unanswered(kind: str, status: int, why: tuple[str, str] | None) -> Failure:
    """The failure of a part in whose place the gateway made a problem of this status; `why` is for the log."""
    said = "timed out" if kind == UpstreamTimeout.kind else "upstream unavailable"
    return Failure(kind, said, status_without(status), why)


def late() -> Failure:
    """The failure of a part that does not come in time."""
    return Failure("timeout", "timed out", 504, ("timeout", "no answer within the deadline of the part"))


def status_without(status: int) -> int:
    """The status of an aggregate without a part in whose place a problem of this status came."""
    return 504 if status == 504 else 502


class Got(msgspec.Struct, frozen=True):
    """A part's response as received. `key` is that of the stored response; empty if it is not stored."""

    said: str
    headers: Headers
    body: bytes
    life: PartLife
    key: str = ""


class Resolved(msgspec.Struct, frozen=True):
    """The state of a part. `text` is None if it is omitted from the response; `failure` is set if it failed, or if
    elements failed and it is `partial`."""

    name: str
    said: str
    text: bytes | None
    value: JsonValue = None
    shown: JsonValue = None
    life: PartLife | None = None
    failure: Failure | None = None
    seconds: float = 0.0
    partial: bool = False

    @property
    def incomplete(self) -> bool:
        """Whether it, or an element of it, failed."""
        return self.failure is not None and not isinstance(self.failure, Absent)

    @property
    def why(self) -> tuple[str, str] | None:
        """The cause of its upstream's failure, and a text; None where it did not fail by that."""
        return self.failure.why if self.failure is not None else None

    @property
    def failed(self) -> bool:
        return self.incomplete and not self.partial


class BackOff:
    """Recent failures; at most `limit` keys, the oldest are dropped. `key` is that of a target, `own` that of the same
    with some client's credentials."""

    def __init__(self, clock: Clock, seconds: float, limit: int = 10_000) -> None:
        self._clock = clock
        self._seconds = seconds
        self._limit = limit
        self.failures: OrderedDict[str, tuple[float, Failure | None]] = OrderedDict()
        """When each ends, by the short keys. Where it is empty, no key need be looked for."""

    def put(self, key: str, failure: Failure) -> None:
        key = short_key(key)
        self.failures[key] = (self._clock.now() + self._seconds, failure)
        self.failures.move_to_end(key)
        if len(self.failures) > self._limit:
            self.failures.popitem(last=False)

    def known(self, key: str, own: str) -> Failure | None:
        """The failure for all, or for these credentials, during its back-off."""
        return self.get(key) or (self.get(own) if own != key else None)

    def claimed(self, key: str, own: str, seconds: float) -> Failure | None:
        """The same, as from `claim`."""
        if own == key:
            return self.claim(key, seconds)
        return self.get(own) or self.claim(key, seconds) or self.claim(own, seconds)

    def remember(self, key: str, own: str, failure: Failure) -> None:
        """The last request failed so."""
        self.forget(key, own)
        if failure.backs_off:
            self.put(key if failure.of_all else own, failure)

    def forget(self, key: str, own: str) -> None:
        """The last request did not fail."""
        self.discard(key)
        if own != key:
            self.discard(own)

    def get(self, key: str) -> Failure | None:
        """The failure of `key`, during its back-off."""
        until, failure = self.failures.get(short_key(key), _NEVER)
        return failure if self._clock.now() < until else None

    def claim(self, key: str, seconds: float) -> Failure | None:
        """The same; but after the back-off, the first claim may try again, and others continue to back off during its
        try, for at most `seconds`."""
        key = short_key(key)
        until, failure = self.failures.get(key, _NEVER)
        now = self._clock.now()
        if failure is None or now < until:
            return failure
        self.failures[key] = (now + seconds, failure)
        return None

    def discard(self, key: str) -> None:
        self.failures.pop(short_key(key), None)


_NEVER: tuple[float, Failure | None] = (0.0, None)
