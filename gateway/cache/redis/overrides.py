"""Live overrides and the audit list in Redis: a hash of overrides, a version to poll, and a capped list of changes.

Each change is one script, so that overrides, version and audit list change together. What an override may set, and
what it makes of a configuration, is decided in `config.overrides`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from gateway.cache.redis.errors import UNANSWERED, is_unanswered
from gateway.config.overrides import (
    ANSWER_SECONDS,
    LARGEST,
    LATEST,
    LONGEST_VERSION,
    MOST_AUDIT,
    MOST_OVERRIDES,
    UNREADABLE,
    Event,
    Override,
    OverridesUnavailable,
)

# The version is Redis's time, so that after a loss none comes again.
_NEXT = """
local now = redis.call('TIME')
local version = now[1] .. string.format('%06d', now[2])
redis.call('SET', KEYS[2], version)
return version
"""
# KEYS: overrides, version, audit. ARGV: field, record (empty: remove it), audit entry, most entries kept.
_CHANGE = f"""
if ARGV[2] == '' then redis.call('HDEL', KEYS[1], ARGV[1]) else redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end
redis.call('LPUSH', KEYS[3], ARGV[3])
redis.call('LTRIM', KEYS[3], 0, tonumber(ARGV[4]) - 1)
{_NEXT}"""
# KEYS: overrides, version. ARGV: field and record alternately. Restores those that are missing.
_RESTORE = f"""
for position = 1, #ARGV, 2 do redis.call('HSETNX', KEYS[1], ARGV[position], ARGV[position + 1]) end
{_NEXT}"""
# KEYS: overrides. ARGV: maximum length, maximum number. Larger records, which no worker writes, are skipped.
_ALL = """
local found = {}
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  if #found >= tonumber(ARGV[2]) then break end
  if redis.call('HSTRLEN', KEYS[1], field) <= tonumber(ARGV[1]) then
    found[#found + 1] = redis.call('HGET', KEYS[1], field)
  end
end
return found
"""


_override = msgspec.json.Decoder(Override)
_event = msgspec.json.Decoder(Event)


class RedisLive:
    """In Redis, for the whole fleet. `client` is its own connection pool."""

    def __init__(self, client: Any, *, prefix: str = "gw:") -> None:
        self._client = client
        self._version: bytes | None = None
        self._known: list[Override] = []
        self._overrides, self._versions, self._audit = (
            f"{prefix}{{live}}:{name}" for name in ("overrides", "version", "audit")
        )

    async def changed(self) -> Sequence[Override] | None:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await self._changed()
        except UNANSWERED as error:
            is_unanswered(error)
            return None

    async def _changed(self) -> Sequence[Override] | None:
        text = await self._client.getrange(self._versions, 0, LONGEST_VERSION) or None
        if text is None and self._known:
            text = await self._restored()
        version = text if text is not None else b""
        if version == self._version:
            return None
        records = await self._client.eval(_ALL, 1, self._overrides, LARGEST, MOST_OVERRIDES)
        self._known, self._version = list(_readable(records)), version
        return self._known

    async def _restored(self) -> bytes:
        pairs = [item for each in self._known for item in (each.key, msgspec.json.encode(each))]
        version: bytes = await self._client.eval(_RESTORE, 2, self._overrides, self._versions, *pairs)
        return version

    async def put(self, override: Override, event: Event) -> None:
        await self._change(override.key, msgspec.json.encode(override), event)

    async def drop(self, key: str, event: Event) -> None:
        await self._change(key, b"", event)

    async def _change(self, key: str, record: bytes, event: Event) -> None:
        keys = (self._overrides, self._versions, self._audit)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._client.eval(_CHANGE, 3, *keys, key, record, msgspec.json.encode(event), MOST_AUDIT)
        except UNANSWERED as error:
            is_unanswered(error)
            raise OverridesUnavailable("Redis is unavailable: nothing was changed; try again") from None

    async def note(self, event: Event) -> None:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._client.lpush(self._audit, msgspec.json.encode(event))
                await self._client.ltrim(self._audit, 0, MOST_AUDIT - 1)
        except UNANSWERED as error:
            is_unanswered(error)
            return

    async def audit(self, limit: int = 100) -> list[Event]:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                records = await self._client.lrange(self._audit, 0, limit - 1)
        except UNANSWERED as error:
            is_unanswered(error)
            return []
        return [event for event in map(_event_of, records) if event is not None]

    async def aclose(self) -> None:
        await self._client.aclose()


def _readable(records: Iterable[bytes]) -> Iterable[Override]:
    """Overrides; those of another version are passed over."""
    for record in records:
        try:
            override = _override.decode(record)
        except UNREADABLE:
            continue
        if 0 <= override.at <= LATEST and 0 <= override.until <= LATEST:
            yield override


def _event_of(record: bytes) -> Event | None:
    try:
        event = _event.decode(record)
    except UNREADABLE:
        return None
    return event if 0 <= event.at <= LATEST else None
