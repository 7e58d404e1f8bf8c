"""The one clock that entries are judged by.

Now is the monotonic clock plus an offset, so that a wall clock set an hour back or forth ages nothing. The offset
begins as the machine's own; Redis's `TIME` then corrects it, so that all workers and replicas agree on an entry's
age. The first correction is taken whole (backwards only if nobody was told the time yet), later ones are slewed, and
the last one is kept while Redis is away.
"""

from __future__ import annotations

import time
from typing import Protocol

SLEW = 0.05
"""How fast a correction is worked off: 50 ms a second. Time never runs backwards by it."""


class Clock(Protocol):
    def now(self) -> float:
        """Seconds since 1970, never going back."""


class SystemClock:
    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()
        self._drift = 0.0
        self._since = time.monotonic()
        self._synchronised = False
        self._told = False

    def __repr__(self) -> str:
        return f"<SystemClock offset={self._offset:.3f} drift={self._drift:+.3f}>"

    def now(self) -> float:
        self._told = True
        monotonic = time.monotonic()
        return monotonic + self._offset + (self._worked_off(monotonic) if self._drift else 0.0)

    def _worked_off(self, monotonic: float) -> float:
        step = (monotonic - self._since) * SLEW
        return max(-step, min(step, self._drift))

    def synchronise(self, reference: float) -> None:
        """Take `reference` (seconds since 1970, just read from Redis) as the time to agree on."""
        monotonic = time.monotonic()
        first, self._synchronised = not self._synchronised, True
        if first and (not self._told or reference >= self.now()):
            self._offset, self._drift = reference - monotonic, 0.0
            return
        self._offset += self._worked_off(monotonic)
        self._since = monotonic
        self._drift = reference - monotonic - self._offset
