"""Places at an upstream: so many requests at once, few that wait, and the others are told so at once.

One slow upstream thus takes its own places and nobody else's, and a client that cannot be served learns it in time to
do something else.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from typing import NoReturn

from .errors import GatewayError

BEHIND: ContextVar[bool] = ContextVar("behind", default=False)
"""Whether what is done now is a refresh behind a stale answer, for which no client waits: the first to be shed."""
SHARE_BEHIND = 0.75
"""The share of the places that refreshes may take."""
_MEMORY = 0.05


class Full(GatewayError):
    """Every place is taken, and no more may wait. `retry_after` (seconds) is when that may be otherwise."""

    def __init__(self, retry_after: float) -> None:
        self.retry_after = retry_after
        super().__init__("every place is taken")


class Bulkhead:
    """At most `places` at once and `queue` waiting; nobody waits who would wait for more than `patience` seconds.

    How long one would wait is known on arrival (Little's law): those before it, times how long a place is held, by the
    number of places. `narrow` gives a smaller number of places for the time being.
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
        """Seconds that one who came now would wait."""
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
        """Take a place, as `enter` does, where none need wait for one; None where `enter` has to say."""
        if self._waiting or self.taken >= self.places or BEHIND.get():
            return None
        self.taken += 1
        return self._enters()

    def check(self) -> None:
        """Raises Full where one who came now could neither have a place nor wait for one; it is counted."""
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
        """A place is free: it goes to the one who waited longest."""
        self._entered -= entered
        while self._waiting and self.taken <= self.places:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(self._enters())
                return
        self.taken -= 1
