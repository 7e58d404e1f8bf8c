"""Purges in Redis: issues and applies them, for one worker.

How records reach every worker is decided in `record_log`, and `policy.epochs` decides which entries they invalidate.
Here it is decided how long a worker's memory is trusted while it can't read the stream, which purges are forgotten, and
how one is written.

A record is JSON with bounded names. Older gateways can't read digests. So if one of the names is a digest, `digests`
has all names for new gateways, and `names` those for older ones: the original names while an older gateway is connected
and they are short enough, otherwise everything. Both forms are read.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from sys import intern
from typing import Any
from uuid import uuid4

import msgspec

from gateway.cache.purge_log import MAX_RECORDS, PurgeReport
from gateway.cache.redis.record_log import RecordLog
from gateway.cache.redis.record_stream import ADD_AT_ONCE, LONGEST_ID, YOUNG_SECONDS, Added, RecordStream, Turn
from gateway.clock import Clock
from gateway.observability.log import ONCE
from gateway.policy.epochs import (
    EVERYTHING,
    LONGEST_ISSUER,
    MAX_BYTES,
    ZERO,
    Epochs,
    Position,
    Purge,
    bounded,
    purge_of,
    show_position,
)
from gateway.policy.rules import MAX_LIFE

logger = logging.getLogger("gateway")
TRIM_EVERY = 60.0
BLIND_LIFE = 1.0
"""Seconds that a response may be used by a worker that has been disconnected from the stream for longer than `blind`.
If a worker stopped sending heartbeats recently, a purge is complete only after this time: even if the worker lives, its
entries have expired then."""
DEFAULT_BLIND = 30.0
READS_DIGESTS = ".2"
"""The suffix of a worker's name that reads digests."""
Record = tuple[Position, Purge]


class PurgeStream(RecordStream[Purge]):
    def __init__(self, client: Any, prefix: str, *, max_records: int = 100_000, young: float = YOUNG_SECONDS) -> None:
        super().__init__(client, prefix, "purge", _encoded, _decoded, max_records=max_records, young=young)

    async def add(self, records: Sequence[Purge], *, count: bool = False, in_full: bool = False) -> Added:
        """With `in_full`, names are written as they were, for gateways that read no digests."""
        return await self.add_encoded([(each.id, _encoded(each, in_full=in_full)) for each in records], count=count)


class _Wire(msgspec.Struct, omit_defaults=True):
    """A purge as a record has it."""

    id: str
    names: tuple[str, ...]
    soft: bool = False
    by: str = ""
    digests: tuple[str, ...] = ()


_decoder = msgspec.json.Decoder(_Wire)


def _encoded(purge: Purge, *, in_full: bool = False) -> bytes:
    if not any(name.startswith("#") for name in purge.names):
        return msgspec.json.encode(_Wire(purge.id, purge.names, purge.soft, purge.by))
    names = purge.full if in_full and purge.full else (EVERYTHING,)
    return msgspec.json.encode(_Wire(purge.id, names, purge.soft, purge.by, purge.names))


def _decoded(position: Position, record: bytes | None) -> Purge:
    """An unreadable record, perhaps of a newer version, purges everything."""
    try:
        wire = _decoder.decode(record or b"")
        names = tuple(map(bounded, wire.digests or wire.names))
        if len(wire.id) > LONGEST_ID:
            raise ValueError("an id that no gateway made")
        return Purge(wire.id, names, wire.soft, intern(wire.by[:LONGEST_ISSUER]))
    except (msgspec.DecodeError, ValueError, RecursionError):
        return Purge(f"unreadable {show_position(position)}", (EVERYTHING,))


class RedisPurges(RecordLog[Purge]):
    """The stream in Redis. `client` is its own connection pool; `blind` (seconds, None for ever) is how long memory is
    trusted while the stream is unreachable, and how long a silent worker is counted. `max_records` is the stream's
    maximum length, `max_bytes` the maximum size of its records in this worker's memory; `young` (seconds) is how long
    after a data loss no purge is complete, so that disconnected workers can rejoin first."""

    unreadable = "purges can't be read from Redis, so entries in memory are trusted only briefly"

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
        self.epochs = Epochs(f"~{uuid4().hex}", lineage=())
        self._purges = PurgeStream(client, prefix, max_records=max_records, young=young)
        super().__init__(self._purges, self.epochs, clock, suffix=READS_DIGESTS)
        self._blind = blind
        self._max_bytes = max_bytes
        self._trimmed = time.monotonic()
        # A tenth more than its own limit, as its clock is slewed by a twentieth at most.
        self.silent = (DEFAULT_BLIND if blind is None else blind) * 1.1 + 1.0

    @property
    def trusted_until(self) -> float:
        if self._contact is None:
            if self.unread:
                return -math.inf
            self._contact = self._clock.now()
        return math.inf if self._blind is None else self._contact + self._blind

    def distrusted_since(self, now: float) -> float | None:
        if self.unread:
            return math.nextafter(now, math.inf)
        return None if now <= self.trusted_until else now - BLIND_LIFE

    async def purge(self, names: Sequence[str], *, soft: bool = False, by: str = "", wait: bool = True) -> PurgeReport:
        """Purge `names`: here at once, everywhere when the report is complete.

        Without `wait` it is on its way when this returns.
        """
        purge = self.issue(names, soft=soft, by=by)
        if not wait:
            self._begin_adding()
            return PurgeReport(1, 1, 0.0, added=False)
        return await self.issued(purge)

    def issue(self, names: Sequence[str], *, soft: bool = False, by: str = "") -> Purge:
        """A purge that holds here from now on, and is still to be added to the stream."""
        purge = purge_of(uuid4().hex[:24], names, soft=soft, by=by)
        self.epochs.pend(purge, self._clock.now())
        return self.epochs.pending[purge.id][1]

    @property
    def _has_older(self) -> bool:
        """Whether a worker is of a version that reads no digests in purges."""
        return not all(worker.endswith(READS_DIGESTS) for worker in self._fleet.names)

    async def _add_to_stream(self, records: Sequence[Purge], *, count: bool = False) -> Added:
        return await self._purges.add(records, count=count, in_full=self._has_older)

    def outlasts_silence(self, waited: float) -> bool:
        return waited >= BLIND_LIFE * 1.2

    async def _adopt(self, turn: Turn[Purge]) -> None:
        """Purges known here are added again, then the whole stream is read; only then does it replace what is known,
        which includes every confirmed purge of the last stream if memory was trusted until now."""
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

    async def _look_after(self) -> None:
        await super()._look_after()
        if time.monotonic() - self._trimmed > TRIM_EVERY:
            self._trimmed = time.monotonic()
            await self._stream.trim(MAX_LIFE)
