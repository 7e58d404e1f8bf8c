"""Purges in Redis: issues and applies them, for one worker.

Each worker reads the stream on its own connection. A purge that Redis has not accepted is kept and added again; so are
the records known here when the generation changes, because Redis has lost them. `purge_stream` stores purges in Redis;
`policy.epochs` decides which entries they invalidate.

A worker's name begins with the boot ID of its machine and its PID namespace, where its process ID is valid. So a worker
can tell which others on the same machine are gone, but not those on other machines.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

from redis.exceptions import ResponseError

from gateway.cache.background import end
from gateway.cache.purge_log import MAX_RECORDS, PurgeReport
from gateway.cache.redis.errors import UNANSWERED, unanswered
from gateway.cache.redis.purge_stream import (
    ADD_AT_ONCE,
    ANSWER_SECONDS,
    READ_AT_ONCE,
    READS_DIGESTS,
    SETTLED_SECONDS,
    SILENT_SECONDS,
    TRIM_AT_ONCE,
    YOUNG_SECONDS,
    Added,
    Beat,
    PurgeStream,
    Record,
    Turn,
)
from gateway.clock import Clock
from gateway.observability.log import ONCE, at_most_every
from gateway.policy.epochs import MAX_BYTES, ZERO, Epochs, Purge, purge_of, show_position
from gateway.policy.rules import MAX_LIFE

BOOT = Path("/proc/sys/kernel/random/boot_id")
NAMESPACE = Path("/proc/self/ns/pid")


def own_name() -> str:
    """A unique name for this process; `gone` can check it on Linux."""
    return f"{_place()}.{os.getpid()}.{uuid4().hex}{READS_DIGESTS}"


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
TRIM_EVERY = 60.0
BLIND_LIFE = 1.0
"""Seconds that a response may be used by a worker that has been disconnected from the stream for longer than `blind`.
If a worker stopped sending heartbeats recently, a purge is complete only after this time: even if the worker lives, its
entries have expired then."""
DEFAULT_BLIND = 30.0


class RedisPurges:
    """The stream in Redis. `client` is its own connection pool; `blind` (seconds, None for ever) is how long memory is
    trusted while the stream is unreachable, and how long a silent worker is counted. `max_records` is the stream's
    maximum length, `max_bytes` the maximum size of its records in this worker's memory; `young` (seconds) is how long
    after a data loss no purge is complete, so that disconnected workers can rejoin first."""

    def __init__(
        self,
        client: Any,
        clock: Clock,
        *,
        prefix: str = "gw:",
        blind: float | None = DEFAULT_BLIND,
        max_records: int = MAX_RECORDS,
        max_bytes: int = MAX_BYTES,
        young: float = YOUNG_SECONDS,
    ) -> None:
        own = uuid4().hex + READS_DIGESTS
        self.epochs = Epochs("~" + own, lineage=())
        self.worker = own
        self._stream = PurgeStream(client, prefix, max_records=max_records, young=young)
        self._clock = clock
        self._blind = blind
        self._max_bytes = max_bytes
        self._tidied = time.monotonic()
        self._contact: float | None = None
        self._task: asyncio.Task[None] | None = None
        self._adder: asyncio.Task[None] | None = None
        self._synchronised = asyncio.Event()
        self._tried = asyncio.Event()
        """Set when synchronised, or failed once."""
        self._added: dict[str, str] = {}
        self._fleet = _Fleet(own)
        self._beats = 0
        self._trimmed = time.monotonic()
        self._census_at = -math.inf
        self._joins = -1
        self._complained_at = -math.inf

    def __repr__(self) -> str:
        return f"<RedisPurges {self.epochs!r}>"

    @property
    def trusted_until(self) -> float:
        if self.unread:
            return -math.inf
        if self._contact is None:
            self._contact = self._clock.now()
        return math.inf if self._blind is None else self._contact + self._blind

    @property
    def unread(self) -> bool:
        """Whether the stream is not read, or never was: no entry can be trusted, at any age."""
        return self._contact is None and self._task is None

    def distrusted_since(self, now: float) -> float | None:
        if self.unread:
            return math.nextafter(now, math.inf)
        return None if now <= self.trusted_until else now - BLIND_LIFE

    @property
    def silent(self) -> float:
        """Seconds without a heartbeat after which this worker trusts no entry any more: a tenth more than its own
        limit, as its clock is slewed by a twentieth at most."""
        return (DEFAULT_BLIND if self._blind is None else self._blind) * 1.1 + 1.0

    async def start(self) -> None:
        """Begin to read; return once the whole stream was read, or Redis failed or did not answer in time."""
        self.begin()
        with suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._tried.wait()

    def begin(self) -> None:
        """Begin to read, and do not wait for it."""
        if self._task is None:
            self.worker = self._fleet.own = own_name()  # only here is it certain which process this is
            self._task = asyncio.ensure_future(self._run())

    async def aclose(self) -> None:
        """Stop reading, and leave the workers' number."""
        for task in (self._task, self._adder):
            await end(task)
        with unanswered():
            await self._stream.leave(self.worker)
        await self._stream.aclose()

    # --- issuing -------------------------------------------------------------------------------------------

    async def purge(self, names: Sequence[str], *, soft: bool = False, by: str = "", wait: bool = True) -> PurgeReport:
        """Purge `names`: here at once, everywhere when the report is complete.

        Without `wait` it is on its way when this returns.
        """
        began = time.perf_counter()
        purge = self.issue(names, soft=soft, by=by)
        if not wait:
            self._begin_adding()
            return PurgeReport(1, 1, 0.0, added=False)
        report, place, since = PurgeReport(1, self._fleet.number, 0.0, added=False), "", self._clock.now()
        pause = 0.001
        while True:
            with unanswered():
                added = await self._stream.add([purge], count=True, in_full=self._fleet.has_older)
                if added.generation != place:  # its first time in this generation
                    place, since = added.generation, self._clock.now()
                report = self.report(purge, added, self._clock.now() - since)
                await self._bury_the_dead(added)
            if report.complete or self.unread or time.perf_counter() + pause > began + CONFIRM_SECONDS:
                return replace(report, seconds=time.perf_counter() - began)
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 0.05)

    def issue(self, names: Sequence[str], *, soft: bool = False, by: str = "") -> Purge:
        """A purge that holds here from now on, and is still to be added to the stream."""
        purge = purge_of(uuid4().hex[:24], names, soft=soft, by=by)
        self.epochs.pend(purge, self._clock.now())
        return self.epochs.pending[purge.id][1]

    def report(self, purge: Purge, added: Added, waited: float) -> PurgeReport:
        """The state of a purge that has been in the stream for `waited` seconds."""
        self._added[purge.id] = added.generation
        self._fleet.note(added.generation, added.beats, self._clock.now())
        beats = [beat for text in added.beats.values() if (beat := _beat(text)) is not None]
        confirmed = sum(beat.confirms(added.generation, added.places[0]) for beat in beats)
        if added.silenced:
            self._fleet.silenced_at = self._clock.now()
        silenced = self._clock.now() - self._fleet.silenced_at < SILENT_SECONDS
        settled = not added.young and (not silenced or waited >= BLIND_LIFE * 1.2)
        return PurgeReport(confirmed, self._fleet.number, 0.0, settled=settled)

    async def _bury_the_dead(self, added: Added) -> None:
        """A worker of this machine whose process is gone confirms nothing any more, and answers nothing."""
        for worker, beat in added.beats.items():
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
            generation = self.epochs.generation
            waiting = [purge for _, purge in self.epochs.pending.values() if self._added.get(purge.id) != generation]
            if not waiting:
                break
            if not await self._add(waiting[:ADD_AT_ONCE]):
                break  # of another generation: the next turn finds out
        self._added = {key: each for key, each in self._added.items() if key in self.epochs.pending}

    async def _add(self, purges: Sequence[Purge]) -> bool:
        added = await self._stream.add(purges, in_full=self._fleet.has_older)
        self._added.update((purge.id, added.generation) for purge in purges)
        return added.generation == self.epochs.generation

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
        said = "purges can't be read from Redis, so entries in memory are trusted only briefly: %s"
        logger.warning(said, error, extra=at_most_every(COMPLAIN_EVERY, "purges"))

    async def _follow(self) -> None:
        while True:
            await self.synchronise()
            self._synchronised.set()
            self._tried.set()
            await self._look_after()
            # Records from a blocking read are not applied: only a turn checks that they follow the applied ones.
            await self._stream.wait(self.epochs.applied, BLOCK_MS)

    async def synchronise(self) -> None:
        """Read and apply new records, confirm them, and add pending purges."""
        while True:
            began = self._clock.now()
            turn = await self._stream.turn(self.worker, self._next_beat())
            if turn.joins != self._joins:
                self._joins, self._census_at = turn.joins, -math.inf
            if turn.generation != self.epochs.generation:
                await self._adopt(turn)
                continue
            self.epochs.raise_floor(turn.floor)
            for position, purge in turn.records:
                self.epochs.apply(position, purge, self._clock.now())
            if len(turn.records) < READ_AT_ONCE:
                self._contact = began
            await self._forget_surplus()
            if not turn.records:
                break
        await self._add_pending()

    async def _forget_surplus(self) -> None:
        """Forget the oldest purges, here and in the stream, if all of them take too much memory."""
        floor = self.epochs.surplus(self._max_bytes)
        if floor is not None:
            logger.warning(
                "the purges of the last 7 days take more than %d MiB: the oldest are forgotten, and what was fetched"
                " before %s is void",
                self._max_bytes // 2**20,
                show_position(floor),
                extra=ONCE,
            )
            self.epochs.raise_floor(floor)
            await self._stream.trim_to(self.epochs.generation, floor)

    async def tidy(self, settled: float = SETTLED_SECONDS) -> None:
        """Remove from the stream what later purges of the same names have made needless, `settled` seconds ago."""
        superseded = self.epochs.superseded
        dropped = TRIM_AT_ONCE
        while superseded and dropped == TRIM_AT_ONCE:
            some = list(islice(superseded, TRIM_AT_ONCE))
            dropped = await self._stream.drop(self.epochs.generation, some, settled)
            for _ in range(min(dropped, len(superseded))):
                superseded.popleft()

    def _next_beat(self) -> Beat:
        self._beats += 1
        return Beat(self.epochs.generation, self.epochs.applied, self._beats, self.silent)

    async def _adopt(self, turn: Turn) -> None:
        """Switch to a different stream: Redis lost it, or went back. Records known here are added again, then the whole
        stream is read; only then does it replace the current state."""
        records = await self._read_all([])
        there = {purge.id for _, purge in records}
        missing = [purge for purge_id, (_, purge) in self.epochs.records.items() if purge_id not in there]
        for at in range(0, len(missing), ADD_AT_ONCE):
            await self._add(missing[at : at + ADD_AT_ONCE])
        if missing:
            records = await self._read_all(records)
        now = self._clock.now()
        self.epochs.adopt(turn.generation, records, now=now, continuous=now <= self.trusted_until)
        self.epochs.raise_floor(turn.floor)

    async def _read_all(self, records: list[Record]) -> list[Record]:
        while batch := await self._stream.read(records[-1][0] if records else ZERO):
            records.extend(batch)
        return records

    async def _look_after(self) -> None:
        """Maintenance that any worker does for all: remove old records, and workers without heartbeats."""
        now = self._clock.now()
        if now - self._census_at > self.silent / 3:
            self._census_at = now
            await self.census()
        if time.monotonic() - self._trimmed > TRIM_EVERY:
            self._trimmed = time.monotonic()
            await self._stream.trim(MAX_LIFE)
        if self.epochs.superseded and time.monotonic() - self._tidied > SETTLED_SECONDS / 2:
            self._tidied = time.monotonic()
            await self.tidy()

    async def census(self) -> None:
        """Update the known workers, and remove those without a heartbeat for too long."""
        now = self._clock.now()
        self._fleet.note(self.epochs.generation, await self._stream.workers(), now)
        for worker, beat in self._fleet.silent(now):
            await self._stream.bury(worker, beat)


@dataclass(slots=True)
class _Seen:
    beat: str
    generation: str
    """Of the stream beside which it was last seen."""
    at: float
    """When `beat` was seen first."""
    silent: float


class _Fleet:
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
    def has_older(self) -> bool:
        """Whether one of them is of a version that reads no digests in purges."""
        return not all(worker.endswith(READS_DIGESTS) for worker in self._seen)

    def note(self, generation: str, beats: dict[str, str], now: float) -> None:
        """Apply the list of workers read with the stream. A missing worker has left, unless Redis has lost all since:
        then it is counted until it trusts no entry any more."""
        for worker, beat in beats.items():
            known = self._seen.get(worker)
            if known is None or known.beat != beat:
                decoded = _beat(beat)
                silent = decoded.silent if decoded is not None else DEFAULT_BLIND
                self._seen[worker] = _Seen(beat, generation, now, silent)
            else:
                known.generation = generation
        for worker, seen in list(self._seen.items()):
            if worker in beats:
                continue
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
