"""How much an upstream is asked for: concurrent requests and the queue for them, and repeated requests.

A bulkhead refuses at once what would wait too long; a retry budget bounds repetitions. Which requests are safe to
repeat is for the client to decide.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from typing import NoReturn

from gateway.errors import GatewayError
from gateway.observability.trace_context import BEHIND

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
    held, divided by the number of places. While `narrowed`, there are at most `narrow` places.
    """

    def __init__(
        self,
        places: int,
        queue: int,
        patience: float,
        *,
        narrow: int | None = None,
        narrowed: Callable[[], bool] = lambda: False,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._places = places
        self.narrow = places if narrow is None else min(narrow, places)
        """With fewer than these taken there is a free one, and nothing waits."""
        self._narrowed = narrowed
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
        return self.narrow if self.narrow < self._places and self._narrowed() else self._places

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
        if (self.taken >= self.narrow and (self._waiting or self.taken >= self.places)) or BEHIND.get():
            return None
        self.taken += 1
        now = self._monotonic()
        self._entered += now
        return now

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
        if self._waiting:
            self._hand_over(entered)
        else:
            self._entered -= entered
            self.taken -= 1

    def _hand_over(self, entered: float) -> None:
        """A place is free: it goes to the request that has waited longest."""
        self._entered -= entered
        while self._waiting and self.taken <= self.places:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(self._enters())
                return
        self.taken -= 1


class RetryBudget:
    """How many requests may be retried: at most `share` of all requests, and `reserve` at once.

    A token bucket, as in Finagle and Envoy: each request adds `share` of a token, each retry takes one, so that a
    failing upstream gets at most 1 + `share` times the clients' requests.
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
        if self._tokens < self._reserve:
            self._tokens += self._share

    def take(self) -> bool:
        """Whether a request may be repeated now."""
        if self._tokens < 1:
            self.denied += 1
            return False
        self._tokens -= 1
        self.spent += 1
        return True
