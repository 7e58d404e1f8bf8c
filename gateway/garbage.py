"""The garbage collector's full rounds: when they come, and what they walk.

CPython frees most objects with their last reference. Its collector looks for cycles among the rest, and a full round
walks all that it follows while nobody is answered: 35 ms and more at 70,000 objects (two cores, CPython 3.11), and one
begins whenever a quarter more has come. A gateway under load has that many: what the edge remembers of request lines.

So full rounds are begun here. What survives one is *frozen* (`gc.freeze`), and the next walks only what came since. A
cycle that breaks off among what is frozen is found when that is *thawed* and all of it walked once: every ten minutes,
sooner where much has gathered, and after a reload, when a whole generation of routes is left behind; where it can be,
while no fetch is under way. Rounds over young objects stay CPython's own affair.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable

LOOK_EVERY = 1.0
"""Seconds between two looks at whether a round is due."""
_YOUNG_ROUNDS = 10  # as CPython has it: a full round after so many of the middle generation
_COUNT_EVERY = 10.0  # seconds; counting what is frozen walks it, if only its list
_THAW_EVERY = 600.0
_THAW_WAITS = 60.0  # seconds for an idle moment
_GATHERED = 100_000  # frozen objects more than after the last thaw, beside half of those: 10 to 20 MB
_NEVER = 1_000_000


class Garbage:
    """`observe` is told how many seconds each full round took, `idle` whether it would delay nobody's fetch.

    Of the process as a whole, as the collector is: a worker has one.
    """

    def __init__(
        self,
        observe: Callable[[float], None],
        idle: Callable[[], bool] = lambda: True,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._observe = observe
        self._idle = idle
        self._monotonic = monotonic
        self._rounds = 0
        self._live = 0
        self._counted = self._thaw_due = 0.0

    async def run(self) -> None:
        """Begin full rounds when they are due, until cancelled; then CPython does again."""
        before = gc.get_threshold()
        gc.set_threshold(before[0], before[1], _NEVER)
        try:
            self._begin()
            while True:
                await asyncio.sleep(LOOK_EVERY)
                self.look()
        finally:
            gc.set_threshold(*before)

    def _begin(self) -> None:
        """Freeze what was made at start without walking it, which would keep the first request waiting for 60 ms: next
        to nothing of it (0.3 of 85 MiB) is garbage. `beginning` had switched the collector off."""
        gc.freeze()
        gc.enable()
        self._live = gc.get_freeze_count()
        self._thaw_due = self._monotonic() + _THAW_EVERY
        self._rounds = _young_rounds()

    def look(self) -> None:
        """A round, if one is due."""
        now = self._monotonic()
        if now - self._counted >= _COUNT_EVERY:
            self._counted = now
            if gc.get_freeze_count() > self._live * 1.5 + _GATHERED:
                self.thaw_soon()
        if now >= self._thaw_due and (self._idle() or now >= self._thaw_due + _THAW_WAITS):
            self.thaw()
        elif _young_rounds() - self._rounds >= _YOUNG_ROUNDS:
            self._round()

    def thaw_soon(self) -> None:
        """At the next look, or within a minute of it."""
        self._thaw_due = min(self._thaw_due, self._monotonic())

    def thaw(self) -> None:
        """Walk all there is."""
        gc.unfreeze()
        self._round()
        self._live = gc.get_freeze_count()
        self._thaw_due = self._monotonic() + _THAW_EVERY

    def _round(self) -> None:
        began = time.perf_counter()
        gc.collect()
        gc.freeze()
        self._observe(time.perf_counter() - began)
        self._rounds = _young_rounds()


def _young_rounds() -> int:
    """How often the middle generation was walked since the start."""
    count: int = gc.get_stats()[1]["collections"]
    return count
