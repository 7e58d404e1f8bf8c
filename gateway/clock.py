"""The clock by which entries age.

Now is the performance counter, which is monotonic, plus an offset, so that a change of the wall clock ages nothing. The
offset begins as the machine's; Redis's `TIME` then corrects it, so that all workers and replicas agree on an entry's
age. The first correction is applied at once (backwards only if the time was not read yet), later ones are slewed, and
the last one is kept while Redis is down.
"""

from __future__ import annotations

import time
from typing import Protocol

SLEW = 0.05
"""How fast a correction is worked off: 50 ms a second. Time never runs backwards by it."""


class Clock(Protocol):
    def now(self) -> float:
        """Seconds since 1970, never going back."""

    def when(self, counted: float) -> float:
        """The value of `now` at a given performance counter (seconds), for callers that have just read it."""


class SystemClock:
    def __init__(self) -> None:
        self._offset = time.time() - time.perf_counter()
        self._drift = 0.0
        self._since = time.perf_counter()
        self._synchronised = False
        self._told = False

    def __repr__(self) -> str:
        return f"<SystemClock offset={self._offset:.3f} drift={self._drift:+.3f}>"

    def now(self) -> float:
        # As `when`, written out: it is called a dozen times for each response that is fetched.
        self._told = True
        counted = time.perf_counter()
        return self._slewed(counted) if self._drift else counted + self._offset

    def when(self, counted: float) -> float:
        self._told = True
        return self._slewed(counted) if self._drift else counted + self._offset

    def _slewed(self, counted: float) -> float:
        """The time while a correction is worked off. Once all of it is, it is part of the offset, and costs nothing."""
        step = (counted - self._since) * SLEW
        if step < abs(self._drift):
            return counted + self._offset + (step if self._drift > 0 else -step)
        self._offset += self._drift
        self._drift = 0.0
        return counted + self._offset

    def synchronise(self, reference: float) -> None:
        """Take `reference` (seconds since 1970, just read from Redis) as the time to agree on."""
        counted = time.perf_counter()
        first, self._synchronised = not self._synchronised, True
        if first and (not self._told or reference >= self.now()):
            self._offset, self._drift = reference - counted, 0.0
            return
        self._offset = self._slewed(counted) - counted
        self._since = counted
        self._drift = reference - counted - self._offset
