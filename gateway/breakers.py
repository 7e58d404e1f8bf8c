"""When a failing host is left alone, and how often a request may be repeated.

Pure: the clock is an argument, in seconds on any clock that does not go back. What counts as a failure, and what to do
while a host is left alone, is the caller's affair.

PyPI's `purgatory`, `pybreaker` and `aiobreaker` were looked at (docs/decisions/0011): none lets a single request
through when it tries again, all read a clock of their own, and all count failures in a row, which a host that fails
every second request never reaches.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class State(Enum):
    CLOSED = 0
    """Requests go through."""
    HALF_OPEN = 1
    """One request goes through, to try."""
    OPEN = 2
    """None goes through."""


@dataclass(slots=True)
class _Count:
    began: float = float("-inf")
    all: int = 0
    failed: int = 0
    by_client: dict[bytes, int] = field(default_factory=dict)


MOST_OF_ONE = 0.5
"""The share of the failures that open a breaker which may be one client's: its credentials, or what it asks for, can be
what fails."""
MOST_CLIENTS = 1000
"""Clients that are told apart within half a window; the failures of more count as anyone's."""


class Breaker:
    """The breaker of one host: opens where at least `failures` requests, and half of all, failed within `window`.

    Of one client's failures no more than half of that number count, where it is known whose they are.

    After `rest` it lets one request through: where that succeeds it closes, where that fails it opens again. `window`
    and `rest` are seconds; what is counted is what ended within the present half of the window and the one before.
    With `failures` = 0 it never opens.
    """

    __slots__ = ("_before", "_failures", "_now", "_probing", "_rest", "_series", "_until", "_window", "opened", "state")

    def __init__(self, *, failures: int = 20, window: float = 10.0, rest: float = 2.0) -> None:
        self.state = State.CLOSED
        self.opened = 0
        """How often it opened."""
        self._failures = failures
        self._window = window
        self._rest = rest
        self._until = 0.0
        self._probing = False
        self._series = 0
        self._now, self._before = _Count(), _Count()

    def __repr__(self) -> str:
        return f"<Breaker {self.state.name.lower()} failed={self._now.failed + self._before.failed}>"

    def admit(self, now: float) -> int | None:
        """A pass for one request, to be told what came of it; None where it must not be sent."""
        if self.state is State.OPEN and now >= self._until:
            self._enter(State.HALF_OPEN)
            self._probing = False
        if self.state is State.CLOSED:
            return self._series
        if self.state is State.OPEN or self._probing:
            return None
        self._probing = True
        return self._series

    def retry_after(self, now: float) -> float:
        """Seconds until it is worth asking again."""
        return max(0.0, self._until - now) if self.state is State.OPEN else 0.0 if self._closed else self._rest

    @property
    def _closed(self) -> bool:
        return self.state is State.CLOSED

    def succeeded(self, series: int, now: float) -> None:
        if series != self._series:
            return  # sent before the state changed: it says nothing of the host as it is now
        if self.state is State.HALF_OPEN:
            self._enter(State.CLOSED)
            self._now, self._before = _Count(now), _Count()
        else:
            self._counted(now).all += 1

    def failed(self, series: int, now: float, client: bytes | None = None) -> None:
        """A request failed; `client` names whose credentials it had, if that may be why."""
        if series != self._series:
            return
        if self.state is State.HALF_OPEN:
            self._open(now)
            return
        count = self._counted(now)
        if client is not None and not self._counts_of(count, client):
            return  # nor among all: its crowd of failures must not hide those of others
        count.all += 1
        count.failed += 1
        failed = count.failed + self._before.failed
        if self._failures and failed >= self._failures and 2 * failed >= count.all + self._before.all:
            self._open(now)

    def _counts_of(self, count: _Count, client: bytes) -> bool:
        """Whether one more failure of a client counts."""
        known = count.by_client.get(client, 0)
        if not known and len(count.by_client) >= MOST_CLIENTS:
            return True
        count.by_client[client] = known + 1
        return known + self._before.by_client.get(client, 0) < max(1.0, self._failures * MOST_OF_ONE)

    def abandoned(self, series: int) -> None:
        """Nothing can be said of it: whoever asked has left."""
        if series == self._series:
            self._probing = False

    def _counted(self, now: float) -> _Count:
        half = self._window / 2
        if now - self._now.began >= half:
            self._before = self._now if now - self._now.began < 2 * half else _Count()
            self._now = _Count(now)
        return self._now

    def _open(self, now: float) -> None:
        self._enter(State.OPEN)
        self._until = now + self._rest
        self.opened += 1

    def _enter(self, state: State) -> None:
        self.state = state
        self._series += 1


class RetryBudget:
    """How many requests may be sent a second time: at most `share` of those asked for, and `reserve` at once.

    A token bucket, as in Finagle and Envoy: each request puts in `share` of a token, each repetition takes one out, so
    that an upstream in trouble is asked at most 1 + `share` times as often as the clients ask.
    """

    __slots__ = ("_reserve", "_share", "_tokens", "denied", "spent")

    def __init__(self, share: float, reserve: float = 10.0) -> None:
        self.spent = 0
        self.denied = 0
        self._share = share
        self._reserve = reserve
        self._tokens = reserve if share else 0.0

    def __repr__(self) -> str:
        return f"<RetryBudget {self._tokens:.1f} left, {self.spent} spent, {self.denied} denied>"

    def asked(self) -> None:
        self._tokens = min(self._reserve, self._tokens + self._share)

    def take(self) -> bool:
        """Whether a request may be repeated now."""
        if self._tokens < 1:
            self.denied += 1
            return False
        self._tokens -= 1
        self.spent += 1
        return True
