"""The interface through which the engine purges: the report of a purge, and the purge log of a single process.

Decides when a purge is complete (`Report`). `redis.purge_log` distributes purges to other processes; `policy.epochs`
decides which entries a purge invalidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import uuid4

from gateway.clock import Clock
from gateway.policy.epochs import MAX_BYTES, Epochs, purge_of

MAX_RECORDS = 100_000


@dataclass(frozen=True, slots=True)
class PurgeReport:
    """The result of a purge: how many of the live workers have applied it, and in how many seconds.

    `added` is False if Redis has not accepted it yet; it is added as soon as Redis is back. `settled` is False while
    there may be a worker without recent heartbeats.
    """

    confirmed: int
    workers: int
    seconds: float
    added: bool = True
    settled: bool = True

    @property
    def complete(self) -> bool:
        return not self.detail

    @property
    def detail(self) -> str:
        """Why it is not complete; empty if it is."""
        if not self.added:
            return "Redis has not accepted it yet: it is added as soon as Redis is back."
        if self.confirmed < self.workers:
            return "The other workers apply it as soon as they reach Redis."
        if not self.settled:
            return (
                "There may be a worker that has not applied it: one stopped sending heartbeats less than a day ago, or"
                " Redis has just lost its data."
            )
        return ""


@dataclass(slots=True)
class PurgeCounts:
    """How many purges were reported complete, and how many unconfirmed (202)."""

    complete: int = 0
    unconfirmed: int = 0

    def count(self, report: PurgeReport) -> None:
        if report.complete:
            self.complete += 1
        else:
            self.unconfirmed += 1


class PurgeLog(Protocol):
    """What the tiers and the engine need for purges."""

    epochs: Epochs

    @property
    def trusted_until(self) -> float:
        """Until when (seconds) memory is trusted, if the stream is not read again."""

    def distrusted_since(self, now: float) -> float | None:
        """The instant before which fetched responses can't be trusted, because the stream was unreachable for too long;
        None if all can."""

    async def purge(self, names: Sequence[str], *, soft: bool = False, by: str = "", wait: bool = True) -> PurgeReport:
        """Purge `names`, which may be of any length (`full_key_name` and its like make them)."""

    async def start(self) -> None: ...

    async def aclose(self) -> None: ...


class LocalPurges:
    """Purging in one process alone: `redis_url: none`."""

    trusted_until = math.inf

    def __init__(self, clock: Clock) -> None:
        self.epochs = Epochs(uuid4().hex)
        self._clock = clock

    def distrusted_since(self, now: float) -> float | None:
        return None

    async def purge(self, names: Sequence[str], *, soft: bool = False, by: str = "", wait: bool = True) -> PurgeReport:
        now = self._clock.now()
        last = self.epochs.applied
        position = (int(now * 1000), 0) if int(now * 1000) > last[0] else (last[0], last[1] + 1)
        self.epochs.apply(position, purge_of(uuid4().hex, names, soft=soft, by=by), now)
        self.epochs.superseded.clear()  # there is no stream to remove them from
        if len(self.epochs.records) > MAX_RECORDS:
            self.epochs.raise_floor(next(iter(self.epochs.records.values()))[0])
        floor = self.epochs.surplus(MAX_BYTES)
        if floor is not None:
            self.epochs.raise_floor(floor)
        return PurgeReport(1, 1, 0.0)

    async def start(self) -> None:
        return None

    async def aclose(self) -> None:
        return None
