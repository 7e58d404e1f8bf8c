"""Load shedding: how late the event loop is, and how many fetches a process that is behind may start.

Refreshes are given up first, then misses; hits never. The rule is CoDel's (RFC 8289): what counts is the *standing*
delay, the least of the last 0.3 s, so that a garbage collection or a short burst passes. While it is above the target,
the limit on concurrent fetches shrinks by a fifth each tick; below it, it grows by a tenth, so that a process has its
full limit back within four seconds.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

TICK = 0.05
"""Seconds between two measurements."""
_TICKS = 6
_SHRINK = 0.8
_GROW = 1.1


class Governor:
    """`target` is the standing lag, in seconds, above which fetches are given up; 0 gives up none.

    At least `least` fetches at once are always allowed, `most` where nothing is behind.
    """

    __slots__ = ("_lags", "_least", "_most", "_target", "limit", "misses_shed", "refreshes_shed")

    def __init__(self, target: float = 0.05, *, least: int = 64, most: int = 10_000) -> None:
        self.limit = float(most)
        self.refreshes_shed = 0
        self.misses_shed = 0
        self._target = target
        self._least = float(least)
        self._most = float(most)
        self._lags: deque[float] = deque([0.0] * _TICKS, maxlen=_TICKS)

    def __repr__(self) -> str:
        return f"<Governor lag={self.lag * 1000:.0f} ms, at most {self.limit:.0f} fetches>"

    @property
    def lag(self) -> float:
        """The standing lag, in seconds."""
        return min(self._lags)

    def observe(self, lag: float, under_way: int) -> None:
        """A tick was `lag` seconds late, and so many fetches were under way."""
        self._lags.append(lag)
        if self._target and self.lag > self._target:
            self.limit = max(self._least, min(self.limit, under_way) * _SHRINK)
        else:
            self.limit = min(self._most, self.limit * _GROW + 1)

    def admits_miss(self, under_way: int) -> bool:
        admitted = under_way < self.limit
        self.misses_shed += not admitted
        return admitted

    def admits_refresh(self, under_way: int) -> bool:
        behind = bool(self._target) and self.lag > self._target / 2
        admitted = not behind and under_way < self.limit * 0.75
        self.refreshes_shed += not admitted
        return admitted


class LoopLag:
    """Reports to `observe`, twenty times a second, the event loop delay in seconds."""

    def __init__(self, observe: Callable[[float], None]) -> None:
        self._observe = observe
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        if self._timer is None:
            self._next(asyncio.get_running_loop())

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        due = loop.time() + TICK
        self._timer = loop.call_at(due, self._tick, loop, due)

    def _tick(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        self._observe(max(0.0, loop.time() - due))
        self._next(loop)
