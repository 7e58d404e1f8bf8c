"""TTL advice for the whole fleet, in Redis: one list of observed traffic, and a lease for the worker that replays it.

Decides which worker replays, and where the advice is published. What traffic is sampled is decided in
`advisor.traffic`, what is advised in `advisor.advice`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any
from uuid import uuid4

import msgspec

from gateway.advisor.advice import Advice
from gateway.advisor.traffic import (
    ANSWER_SECONDS,
    KEPT_BATCHES,
    LEADS_FOR_MS,
    REPORT_LIVES_MS,
    Advisor,
    Batch,
    WorkerAdvice,
)
from gateway.cache.redis.errors import UNANSWERED, is_unanswered, unanswered
from gateway.clock import Clock

# KEYS: leader. ARGV: worker, milliseconds. 1 where the worker leads.
_LEAD = """
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
"""
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Batch)
_reports = msgspec.msgpack.Decoder(list[Advice])


class RedisAdvice:
    """The whole fleet, through Redis. While Redis is away, what was seen is lost to the advice: it is a sample."""

    def __init__(self, client: Any, clock: Clock, *, prefix: str = "gw:") -> None:
        self.leads = False
        self.told = WorkerAdvice()
        self._client = client
        self._clock = clock
        self._worker = uuid4().hex
        self._advisor = Advisor()
        self._leader, self._list, self._report = (f"{prefix}{{advice}}:{name}" for name in ("leader", "traffic", "now"))

    async def deliver(self, batch: Batch, today: Mapping[str, float | None]) -> None:
        with unanswered():
            async with asyncio.timeout(ANSWER_SECONDS):
                if batch:
                    await self._hand_over(batch)
                await self._lead(today)

    async def _hand_over(self, batch: Batch) -> None:
        await self._client.rpush(self._list, _encoder.encode(batch))
        await self._client.ltrim(self._list, -KEPT_BATCHES, -1)

    async def _lead(self, today: Mapping[str, float | None]) -> None:
        led = self.leads
        self.leads = bool(await self._client.eval(_LEAD, 1, self._leader, self._worker, LEADS_FOR_MS))
        if not self.leads:
            self.told = WorkerAdvice()
            return
        if not led:
            self._advisor = Advisor()
        waiting = await self._client.lpop(self._list, KEPT_BATCHES) or []
        self._advisor.add(_readable(waiting), self._clock.now())
        advice = self._advisor.advice(today)
        self.told = WorkerAdvice(self._clock.now(), tuple(advice))
        report = _encoder.encode(advice)
        await self._client.set(self._report, report, px=REPORT_LIVES_MS)

    async def advice(self, today: Mapping[str, float | None]) -> list[Advice]:
        if self.leads:
            return self._advisor.advice(today)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                report = await self._client.get(self._report)
            return _reports.decode(report) if report is not None else []
        except UNANSWERED as error:
            is_unanswered(error)
            return []
        except (msgspec.DecodeError, ValueError, RecursionError):
            return []

    async def aclose(self) -> None:
        await self._client.aclose()


def _readable(payloads: Iterable[bytes]) -> Iterable[Batch]:
    """Deliveries; those of another version are passed over."""
    for payload in payloads:
        with suppress(msgspec.DecodeError, ValueError, RecursionError):
            yield _decoder.decode(payload)
