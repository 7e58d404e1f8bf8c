"""Records that every worker applies: issues and applies those of one stream, for one worker.

Each worker reads the stream on its own connection. A record that Redis has not accepted is kept and added again; so are
the records known here when the generation changes, because Redis has lost them. `record_stream` stores records in
Redis; a `State` decides what they mean: `policy.epochs` for purges, `identity.records` for API keys and revocations.

A worker's name begins with the boot ID of its machine and its PID namespace, where its process ID is valid. So a worker
can tell which others on the same machine are gone, but not those on other machines.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Generic, Protocol
from uuid import uuid4

from redis.exceptions import ResponseError

from gateway.cache.background import end
from gateway.cache.purge_log import PurgeReport
from gateway.cache.redis.errors import UNANSWERED, unanswered
from gateway.cache.redis.record_stream import (
    ADD_AT_ONCE,
    ANSWER_SECONDS,
    READ_AT_ONCE,
    SETTLED_SECONDS,
    SILENT_SECONDS,
    TRIM_AT_ONCE,
    Added,
    Beat,
    R,
    RecordStream,
    Turn,
)
from gateway.clock import Clock
from gateway.observability.log import at_most_every
from gateway.policy.epochs import Position

BOOT = Path("/proc/sys/kernel/random/boot_id")
NAMESPACE = Path("/proc/self/ns/pid")


def own_name() -> str:
    """A unique name for this process; `gone` can check it on Linux."""
    return f"{_place()}.{os.getpid()}.{uuid4().hex}"


def gone(name: str) -> bool:
    """Whether the process of that name certainly no longer runs."""
    place, _, rest = name.partition(".")
    number = rest.partition(".")[0]
    if not place or not number.isdigit() or place != _place():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _place() -> str:
    try:
        text = f"{BOOT.read_text()} {os.readlink(NAMESPACE)}"
    except OSError:
        return ""
    return blake2b(text.encode(), digest_size=8).hexdigest()


UNREADABLE: tuple[type[Exception], ...] = (*UNANSWERED, ValueError)
BLOCK_MS = 400
CONFIRM_SECONDS = 2.0
RETRY_SECONDS = 0.1
COMPLAIN_EVERY = 60.0
logger = logging.getLogger("gateway")
DEFAULT_SILENT = 34.0
"""Seconds without a heartbeat after which a worker is counted no longer."""


class State(Protocol[R]):
    """What the records of a stream mean: a worker's view of it. `pending` are those issued here that have not come
    back on the stream; positions that are `superseded` are needless there."""

    generation: str
    applied: Position
    pending: dict[str, tuple[float, R]]
    superseded: deque[Position]

    def pend(self, record: R, now: float) -> None: ...

    def apply(self, position: Position, record: R, now: float = math.inf) -> None: ...

    def raise_floor(self, floor: Position) -> None: ...


class RecordLog(ABC, Generic[R]):
    """A stream in Redis. `state` is what this worker knows of it, `suffix` the end of its name there."""

    unreadable = "records can't be read from Redis"
    silent: float = DEFAULT_SILENT
    """Seconds without a heartbeat after which others count this worker no longer."""

    def __init__(self, stream: RecordStream[R], state: State[R], clock: Clock, *, suffix: str = "") -> None:
        self._suffix = suffix
        self.worker = uuid4().hex + suffix
        self._state = state
        self._stream = stream
        self._clock = clock
        self._tidied = time.monotonic()
        self._contact: float | None = None
        self._task: asyncio.Task[None] | None = None
        self._adder: asyncio.Task[None] | None = None
        self._synchronised = asyncio.Event()
        self._tried = asyncio.Event()
        """Set when synchronised, or failed once."""
        self._added: dict[str, str] = {}
        self._fleet = Fleet(self.worker)
        self._beats = 0
        self._census_at = -math.inf
        self._joins = -1
        self._complained_at = -math.inf

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._state!r}>"

    @property
    def unread(self) -> bool:
        """Whether the stream is not read, or never was."""
        return self._contact is None and self._task is None

    async def start(self) -> None:
        """Begin to read; return once the whole stream was read, or Redis failed or did not answer in time."""
        self.begin()
        with suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._tried.wait()

    def begin(self) -> None:
        """Begin to read, and do not wait for it."""
        if self._task is None:
            self.worker = self._fleet.own = own_name() + self._suffix  # only here is it certain which process this is
            self._task = asyncio.ensure_future(self._run())

    async def aclose(self) -> None:
        """Stop reading, and leave the workers' number."""
        for task in (self._task, self._adder):
            await end(task)
        with unanswered():
            await self._stream.leave(self.worker)
        await self._stream.aclose()

    # --- issuing -------------------------------------------------------------------------------------------

    async def issued(self, *records: R) -> PurgeReport:
        """Add records that are pending here, ADD_AT_ONCE at most, and wait until all workers have applied them,
        CONFIRM_SECONDS at most."""
        began = time.perf_counter()
        report, place, since = PurgeReport(1, self._fleet.number, 0.0, added=False), "", self._clock.now()
        pause = 0.001
        while True:
            with unanswered():
                added = await self._add_to_stream(records, count=True)
                if added.generation != place:  # its first time in this generation
                    place, since = added.generation, self._clock.now()
                report = self.report(records, added, self._clock.now() - since)
                await self._bury_the_dead(added.beats)
            if report.complete or self.unread or time.perf_counter() + pause > began + CONFIRM_SECONDS:
                return replace(report, seconds=time.perf_counter() - began)
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 0.05)

    async def _add_to_stream(self, records: Sequence[R], *, count: bool = False) -> Added:
        return await self._stream.add(records, count=count)

    def report(self, records: Sequence[R], added: Added, waited: float) -> PurgeReport:
        """The state of records that have been in the stream for `waited` seconds."""
        self._added.update((record.id, added.generation) for record in records)
        self._fleet.note(added.generation, added.beats, self._clock.now())
        beats = [beat for text in added.beats.values() if (beat := _beat(text)) is not None]
        confirmed = sum(beat.confirms(added.generation, max(added.places)) for beat in beats)
        if added.silenced:
            self._fleet.silenced_at = self._clock.now()
        silenced = self._clock.now() - self._fleet.silenced_at < SILENT_SECONDS
        settled = not added.young and (not silenced or self.outlasts_silence(waited))
        return PurgeReport(confirmed, self._fleet.number, 0.0, settled=settled)

    def outlasts_silence(self, waited: float) -> bool:
        """Whether a record that has been in the stream for `waited` seconds is in force also at a worker that stopped
        sending heartbeats, and may still run, disconnected from Redis."""
        return False

    async def _bury_the_dead(self, beats: Mapping[str, str]) -> None:
        """A worker of this machine whose process is gone confirms nothing any more, and answers nothing."""
        for worker, beat in beats.items():
            if gone(worker):
                await self._stream.bury(worker, beat, certain=True)

    def _begin_adding(self) -> None:
        if self._adder is None or self._adder.done():
            self._adder = asyncio.ensure_future(self._add_in_background())

    async def _add_in_background(self) -> None:
        # Where Redis is away, the next turn does it.
        with unanswered():
            await self._add_pending()

    async def _add_pending(self) -> None:
        """Add what was issued here and is not in the stream, as far as is known."""
        while True:
            generation = self._state.generation
            waiting = [record for _, record in self._state.pending.values() if self._added.get(record.id) != generation]
            if not waiting:
                break
            if not await self._add(waiting[:ADD_AT_ONCE]):
                break  # of another generation: the next turn finds out
        self._added = {key: each for key, each in self._added.items() if key in self._state.pending}

    async def _add(self, records: Sequence[R]) -> bool:
        added = await self._add_to_stream(records)
        self._added.update((record.id, added.generation) for record in records)
        return added.generation == self._state.generation

    # --- reading the stream ---------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            try:
                await self._follow()
            except UNREADABLE as error:
                self._tried.set()
                self._complain(error)
                await asyncio.sleep(RETRY_SECONDS)

    def _complain(self, error: Exception) -> None:
        """Logs once a minute why no purges are read although Redis responds; an outage is logged elsewhere."""
        if not isinstance(error, ResponseError | ValueError) or time.monotonic() - self._complained_at < COMPLAIN_EVERY:
            return
        self._complained_at = time.monotonic()
        logger.warning("%s: %s", self.unreadable, error, extra=at_most_every(COMPLAIN_EVERY, self.unreadable))

    async def _follow(self) -> None:
        while True:
            await self.synchronise()
            self._synchronised.set()
            self._tried.set()
            await self._look_after()
            # Records from a blocking read are not applied: only a turn checks that they follow the applied ones.
            await self._stream.wait(self._state.applied, BLOCK_MS)

    async def synchronise(self) -> None:
        """Read and apply new records, confirm them, and add pending purges."""
        while True:
            began = self._clock.now()
            turn = await self._stream.turn(self.worker, self._next_beat())
            if turn.joins != self._joins:
                self._joins, self._census_at = turn.joins, -math.inf
            if turn.generation != self._state.generation:
                await self._adopt(turn)
                continue
            self._state.raise_floor(turn.floor)
            for position, record in turn.records:
                self._state.apply(position, record, self._clock.now())
            if len(turn.records) < READ_AT_ONCE:
                self._caught_up(turn, began)
            await self._forget_surplus()
            if not turn.records:
                break
        await self._add_pending()

    def _caught_up(self, turn: Turn[R], began: float) -> None:
        """All that the stream had at `began` is applied."""
        self._contact = began

    async def _forget_surplus(self) -> None:
        """Forget the oldest records if all of them take too much memory."""

    async def tidy(self, settled: float = SETTLED_SECONDS) -> None:
        """Remove from the stream what later records have made needless, `settled` seconds ago."""
        superseded = self._state.superseded
        dropped = TRIM_AT_ONCE
        while superseded and dropped == TRIM_AT_ONCE:
            some = list(islice(superseded, TRIM_AT_ONCE))
            dropped = await self._stream.drop(self._state.generation, some, settled)
            for _ in range(min(dropped, len(superseded))):
                superseded.popleft()

    def _next_beat(self) -> Beat:
        self._beats += 1
        return Beat(self._state.generation, self._state.applied, self._beats, self.silent)

    @abstractmethod
    async def _adopt(self, turn: Turn[R]) -> None:
        """Go on with a different stream, as Redis lost the last one or went back: add what it lacks and is known here,
        and have the state follow it from now on."""

    async def _look_after(self) -> None:
        """Maintenance that any worker does for all: remove needless records, and workers without heartbeats."""
        now = self._clock.now()
        if now - self._census_at > self.silent / 3:
            self._census_at = now
            await self.census()
        if self._state.superseded and time.monotonic() - self._tidied > SETTLED_SECONDS / 2:
            self._tidied = time.monotonic()
            await self.tidy()

    async def census(self) -> None:
        """Update the known workers, and remove those whose process is gone, or without a heartbeat for too long."""
        now = self._clock.now()
        beats = await self._stream.workers()
        self._fleet.note(self._state.generation, beats, now)
        await self._bury_the_dead(beats)  # first: of a silent one it is not known whether it still answers
        for worker, beat in self._fleet.silent(now):
            await self._stream.bury(worker, beat, certain=gone(worker))


@dataclass(slots=True)
class _Seen:
    beat: str
    generation: str
    """Of the stream beside which it was last seen."""
    at: float
    """When `beat` was seen first."""
    silent: float


class Fleet:
    """The workers as seen by one of them, by its own clock and by changes of their heartbeats: so no clocks need to
    agree."""

    def __init__(self, own: str) -> None:
        self.own = own
        self.silenced_at = -math.inf
        """When a worker was last known to have fallen silent, which may still be there, cut off from Redis."""
        self._seen: dict[str, _Seen] = {}

    @property
    def number(self) -> int:
        return len(self._seen.keys() | {self.own})

    @property
    def names(self) -> Iterable[str]:
        """The names of those that were seen."""
        return self._seen.keys()

    def note(self, generation: str, beats: dict[str, str], now: float) -> None:
        """Apply the list of workers read with the stream. A missing worker has left, unless Redis has lost all since:
        then it is counted until it trusts no entry any more."""
        for worker, beat in beats.items():
            known = self._seen.get(worker)
            if known is None or known.beat != beat:
                decoded = _beat(beat)
                silent = decoded.silent if decoded is not None else DEFAULT_SILENT
                self._seen[worker] = _Seen(beat, generation, now, silent)
            else:
                known.generation = generation
        for worker, seen in list(self._seen.items()):
            if worker in beats:
                continue
            if not gone(worker):
                if now - seen.at > seen.silent:
                    self.silenced_at = now
                elif seen.generation != generation:
                    continue
            del self._seen[worker]

    def silent(self, now: float) -> list[tuple[str, str]]:
        """Workers without a heartbeat for too long, with their last."""
        others = ((worker, seen) for worker, seen in self._seen.items() if worker != self.own)
        return [(worker, seen.beat) for worker, seen in others if now - seen.at > seen.silent]


def _beat(text: str) -> Beat | None:
    try:
        return Beat.decode(text)
    except ValueError:
        return None  # of another version: it confirms nothing
