"""The stream of API keys and revocations: how a change reaches every worker, and when it is in force everywhere.

`records` says what the records mean, `cache.redis.record_log` how they are distributed. A worker that is cut off from
Redis goes on with what it knows, so here a change is confirmed only by workers that have applied it: one that stopped
sending heartbeats may still run, and accept what was revoked.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import uuid4

from gateway.cache.purge_log import PurgeReport
from gateway.cache.redis.errors import risks_of_loss, unanswered
from gateway.cache.redis.record_log import RecordLog
from gateway.cache.redis.record_stream import ADD_AT_ONCE, YOUNG_SECONDS, Beat, RecordStream, Turn
from gateway.clock import Clock
from gateway.identity.records import MOST_RECORDS, Codec, CredentialRecords, Record
from gateway.observability.log import ONCE

logger = logging.getLogger("gateway")
START_SECONDS = 2.0
"""How long a start waits for the records, at most."""
EXPIRE_EVERY = 60.0


class CredentialLog(Protocol):
    """`records` are those that this worker knows."""

    records: CredentialRecords

    @property
    def keeps(self) -> bool:
        """Whether records outlast this process."""

    async def publish(self, *records: Record) -> PurgeReport:
        """Put records in force, ADD_AT_ONCE at most: here at once, everywhere when the report is complete."""

    async def complain_of_loss(self) -> None:
        """Log why API keys may be lost."""

    def begin(self) -> None:
        """`start` without waiting for the records."""

    async def start(self) -> None: ...

    async def aclose(self) -> None: ...


class LocalCredentials:
    """In one process alone: `redis_url: none`. What it knows ends with it."""

    keeps = False

    def __init__(self, clock: Clock, codec: Codec) -> None:
        self.records = CredentialRecords(codec, generation=uuid4().hex)
        self.records.known = True
        self._clock = clock

    async def publish(self, *records: Record) -> PurgeReport:
        for record in records:
            milliseconds, number = self.records.applied
            self.records.apply((milliseconds, number + 1), record)
        self.records.superseded.clear()  # there is no stream to remove them from, or to add to
        self.records.pending.clear()
        self.records.expire(self._clock.now())
        return PurgeReport(1, 1, 0.0)

    async def complain_of_loss(self) -> None:
        logger.error("there is no Redis here, and so no API key can be created", extra=ONCE)

    def begin(self) -> None:
        return None

    async def start(self) -> None:
        return None

    async def aclose(self) -> None:
        return None


@dataclass(frozen=True, slots=True)
class Unconfirming(Beat):
    """The heartbeat of a worker that misses records, so that no change counts as confirmed by it."""

    def encode(self) -> str:
        generation, _, rest = super(Unconfirming, self).encode().partition(" ")
        return f"?{generation} {rest}"


class RedisCredentials(RecordLog[Record]):
    """In Redis, for all workers. `client` is its own connection pool."""

    keeps = True
    unreadable = "API keys and revocations can't be read from Redis; those that are known stay in force"

    def __init__(
        self,
        client: Any,
        clock: Clock,
        codec: Codec,
        *,
        prefix: str = "gw:",
        young: float = YOUNG_SECONDS,
    ) -> None:
        self.records = CredentialRecords(codec, generation=f"~{uuid4().hex}")
        # None is ever removed for want of room: the number of records is limited where they are made.
        stream = RecordStream[Record](
            client, prefix, "credentials", codec.encode, codec.decode, max_records=2 * MOST_RECORDS, young=young
        )
        super().__init__(stream, self.records, clock)
        self._client = client
        self._is_another = False
        self._known = asyncio.Event()
        self._expired = time.monotonic()
        self._complained_of: set[bool] = set()

    async def complain_of_loss(self) -> None:
        """Log why Redis may lose API keys."""
        with unanswered():
            for risk in await risks_of_loss(self._client):
                logger.error("API keys are kept in a Redis that may lose them: %s", risk, extra=ONCE)

    async def publish(self, *records: Record) -> PurgeReport:
        for record in records:
            self.records.pend(record, self._clock.now())
        return await self.issued(*records)

    async def start(self) -> None:
        """Begin to read; return once all records are known, or Redis failed or did not answer in time."""
        self.begin()
        with suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS):
                await self._tried.wait()
                if self._synchronised.is_set():
                    await self._known.wait()

    def _caught_up(self, turn: Turn[Record], began: float) -> None:
        super()._caught_up(turn, began)
        # Of a stream that has just begun, others may still be adding what Redis lost.
        if not turn.young and not self.records.known:
            self.records.known = True
            self._known.set()
        self._complain_of_unusable()

    async def _adopt(self, turn: Turn[Record]) -> None:
        """Go on with a different stream. It is read as any other, in pieces between which requests are answered, as
        nothing is forgotten; what it lacks is added when all of it was read."""
        self.records.begin(turn.generation)
        self._is_another = True

    async def _add_pending(self) -> None:
        if self._is_another:
            for some in self.records.missing(ADD_AT_ONCE):
                if some:
                    await self._stream.stay_young()  # until all is there, no change is complete, and no newcomer ready
                    if not await self._add(some):
                        return  # of another generation: the next turn finds out
                await asyncio.sleep(0)
            self._is_another = False
        await super()._add_pending()

    def _complain_of_unusable(self) -> None:
        for meant in {each.meant for each in self.records.unusable.values()} - self._complained_of:
            self._complained_of.add(meant)
            logger.error("a record of API keys and revocations in Redis is %s", _why(meant), extra=ONCE)

    def _next_beat(self) -> Beat:
        beat = super()._next_beat()
        if not self.records.misses_some:
            return beat
        return Unconfirming(beat.generation, beat.applied, beat.number, beat.silent)

    async def _look_after(self) -> None:
        if time.monotonic() - self._expired > EXPIRE_EVERY:
            self._expired = time.monotonic()
            self.records.expire(self._clock.now())
        await super()._look_after()


def _why(meant: bool) -> str:
    if meant:
        return (
            "sealed with another redis_secret, or of a newer gateway: it is not in force here, and this worker confirms"
            " no change. Give all gateways on one Redis the same redis_secret and version"
        )
    return "none, and is ignored: no gateway wrote it"
