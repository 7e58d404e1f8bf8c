"""Circuit breakers and bulkheads of upstreams.

A breaker decides when a failing host is skipped; a bulkhead bounds concurrent requests and the queue for them, and
refuses the others at once. Breakers take the time as an argument, in seconds of any clock that does not go back. What
counts as a failure is for the caller to decide.

PyPI's `purgatory`, `pybreaker` and `aiobreaker` were considered (docs/decisions/0011): none lets a single request
through when it tries again, all read a clock of their own, and all count failures in a row, which a host that fails
every second request never reaches.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import NoReturn

from gateway.errors import GatewayError
from gateway.observability.trace_context import BEHIND


class BreakerState(Enum):
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
"""The share of a breaker's failures that may be one client's: its credentials, or its requests, can be the cause."""
MOST_CLIENTS = 1000
"""Clients that are counted separately within half a window; the failures of more count as anyone's."""


class Breaker:
    """The circuit breaker of one host: opens if at least `failures` requests, and half of all, failed within `window`.

    Of one client's failures at most half of that number count, if the client is known.

    After `rest` it lets one request through (half-open): success closes it, failure opens it again. `window` and `rest`
    are seconds; requests count that ended within the current half of the window and the one before. With `failures` = 0
    it never opens.
    """

    __slots__ = ("_before", "_failures", "_now", "_probing", "_rest", "_series", "_until", "_window", "opened", "state")

    def __init__(self, *, failures: int = 20, window: float = 10.0, rest: float = 2.0) -> None:
        self.state = BreakerState.CLOSED
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
        """A permit for one request, which reports its result; None if the request must not be sent."""
        if self.state is BreakerState.OPEN and now >= self._until:
            self._enter(BreakerState.HALF_OPEN)
            self._probing = False
        if self.state is BreakerState.CLOSED:
            return self._series
        if self.state is BreakerState.OPEN or self._probing:
            return None
        self._probing = True
        return self._series

    def retry_after(self, now: float) -> float:
        """Seconds until a retry is worthwhile."""
        return max(0.0, self._until - now) if self.state is BreakerState.OPEN else 0.0 if self._closed else self._rest

    @property
    def _closed(self) -> bool:
        return self.state is BreakerState.CLOSED

    def succeeded(self, series: int, now: float) -> None:
        if series != self._series:
            return  # sent before the state changed: it doesn't concern the host's current state
        if self.state is BreakerState.HALF_OPEN:
            self._enter(BreakerState.CLOSED)
            self._now, self._before = _Count(now), _Count()
        else:
            self._counted(now).all += 1

    def failed(self, series: int, now: float, client: bytes | None = None) -> None:
        """A request failed; `client` names whose credentials it had, if that may be why."""
        if series != self._series:
            return
        if self.state is BreakerState.HALF_OPEN:
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
        """No result: the client disconnected."""
        if series == self._series:
            self._probing = False

    def _counted(self, now: float) -> _Count:
        half = self._window / 2
        if now - self._now.began >= half:
            self._before = self._now if now - self._now.began < 2 * half else _Count()
            self._now = _Count(now)
        return self._now

    def _open(self, now: float) -> None:
        self._enter(BreakerState.OPEN)
        self._until = now + self._rest
        self.opened += 1

    def _enter(self, state: BreakerState) -> None:
        self.state = state
        self._series += 1


SHARE_BEHIND = 0.75
"""The share of the places that refreshes may take."""
_MEMORY = 0.05


class Full(GatewayError):
    """Every place is taken, and no more may wait. `retry_after` (seconds) is when that may be otherwise."""

    def __init__(self, retry_after: float) -> None:
        self.retry_after = retry_after
        super().__init__("connection queue full")


class Bulkhead:
    """At most `places` concurrent requests and `queue` waiting ones; a request that would wait for more than `patience`
    seconds is refused.

    The expected wait is known on arrival (Little's law): the number of earlier requests, times how long a place is
    held, divided by the number of places. `narrow` returns a smaller number of places for the time being.
    """

    def __init__(
        self,
        places: int,
        queue: int,
        patience: float,
        *,
        narrow: Callable[[], int | None] = lambda: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._places = places
        self._narrow = narrow
        self.queue = queue
        self.taken = 0
        self.shed = 0
        self._patience = patience
        self._monotonic = monotonic
        self._waiting: deque[asyncio.Future[float]] = deque()
        self._entered = 0.0  # the sum of the times at which the places that are taken were taken
        self._held = 0.0  # for how long a place is held, a moving average

    def __repr__(self) -> str:
        return f"<Bulkhead {self.taken} of {self.places} taken, {self.waiting} waiting, {self.shed} shed>"

    @property
    def places(self) -> int:
        narrowed = self._narrow()
        return self._places if narrowed is None else min(narrowed, self._places)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def expected_wait(self) -> float:
        """The expected wait of a new request in seconds."""
        age = self._monotonic() - self._entered / self.taken if self.taken else 0.0
        return (self.waiting + 1) * max(self._held, age) / self.places

    async def enter(self) -> float:
        """Take a place, waiting for it if need be; `leave` gives back what this returns. Raises Full."""
        behind = BEHIND.get()
        free = self.places * SHARE_BEHIND if behind else self.places
        if self._waiting or self.taken >= free:
            if behind:
                self._refuse()
            self.check()
            return await self._turn()
        self.taken += 1
        return self._enters()

    def enter_now(self) -> float | None:
        """Take a place, as `enter` does, if none has to be waited for; None if `enter` has to decide."""
        if self._waiting or self.taken >= self.places or BEHIND.get():
            return None
        self.taken += 1
        return self._enters()

    def check(self) -> None:
        """Raises Full if a new request could neither get a place nor wait for one; it is counted."""
        taken = self._waiting or self.taken >= self.places
        if taken and (self.waiting >= self.queue or self.expected_wait() > self._patience):
            self._refuse()

    def _refuse(self) -> NoReturn:
        self.shed += 1
        raise Full(max(1.0, self.expected_wait()))

    def _enters(self) -> float:
        now = self._monotonic()
        self._entered += now
        return now

    async def _turn(self) -> float:
        turn: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with contextlib.suppress(ValueError):  # passed over already
                    self._waiting.remove(turn)
            else:
                self._hand_over(turn.result())
            raise

    def leave(self, entered: float) -> None:
        self._held += _MEMORY * (self._monotonic() - entered - self._held)
        self._hand_over(entered)

    def _hand_over(self, entered: float) -> None:
        """A place is free: it goes to the request that has waited longest."""
        self._entered -= entered
        while self._waiting and self.taken <= self.places:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(self._enters())
                return
        self.taken -= 1
