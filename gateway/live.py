"""What operators changed while the gateway runs, shared by all workers and replicas: live overrides and the audit list.

A version number beside the overrides tells whether there is anything to read: a worker asks for it several times a
second, and for the rest only when it is another. Where Redis has lost it all, whoever knows an override that has
not ended puts it back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import msgspec

from .errors import GatewayError
from .redis_reasons import UNANSWERED, is_unanswered

POLL_EVERY = 0.1
"""Seconds between two looks: with the answer's way, an override is in force everywhere within a second."""
ANSWER_SECONDS = 1.0
MOST_AUDIT = 1000
LONGEST_VERSION = 64
LARGEST = 16 * 1024
"""Bytes of an override that is believed."""
MOST_OVERRIDES = 2000
LATEST = 253_402_300_799.0
"""The last second of the year 9999, which is the latest that can be told."""
UNREADABLE = (msgspec.DecodeError, ValueError, RecursionError)
"""What msgspec raises at bytes that are no record; a ValueError where they are no UTF-8."""

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
# KEYS: overrides, version. ARGV: field and record by turns. Puts back what is not there.
_RESTORE = f"""
for position = 1, #ARGV, 2 do redis.call('HSETNX', KEYS[1], ARGV[position], ARGV[position + 1]) end
{_NEXT}"""
# KEYS: overrides. ARGV: greatest length, greatest number. What is larger, which no worker writes, is passed over.
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


class LiveAway(GatewayError):
    """Redis cannot be reached, so nothing can be changed for all workers now."""


class Override(msgspec.Struct, frozen=True, kw_only=True):
    """One setting of one route, for a while. `at` and `until` are seconds since 1970 on the gateway's clock."""

    route: str
    setting: str
    value: str
    by: str
    at: float
    until: float

    @property
    def key(self) -> str:
        return f"{self.route}.{self.setting}"


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the audit list: who did what, when (seconds since 1970)."""

    at: float
    by: str
    what: str
    detail: str


class Live(Protocol):
    """Where overrides and the audit list are kept."""

    async def changed(self) -> Sequence[Override] | None:
        """All overrides where any is another than at the last call; None where none is, or where nothing is known."""

    async def put(self, override: Override, event: Event) -> None:
        """Raises LiveAway."""

    async def drop(self, key: str, event: Event) -> None:
        """Raises LiveAway."""

    async def note(self, event: Event) -> None:
        """Add to the audit list; lost where Redis is away."""

    async def audit(self, limit: int = 100) -> list[Event]:
        """The newest events first."""

    async def aclose(self) -> None: ...


class LocalLive:
    """In one process alone: `redis_url: none`."""

    def __init__(self) -> None:
        self._overrides: dict[str, Override] = {}
        self._events: list[Event] = []
        self._news = False

    async def changed(self) -> Sequence[Override] | None:
        news, self._news = self._news, False
        return list(self._overrides.values()) if news else None

    async def put(self, override: Override, event: Event) -> None:
        self._overrides[override.key] = override
        self._news = True
        await self.note(event)

    async def drop(self, key: str, event: Event) -> None:
        self._overrides.pop(key, None)
        self._news = True
        await self.note(event)

    async def note(self, event: Event) -> None:
        self._events = [event, *self._events][:MOST_AUDIT]

    async def audit(self, limit: int = 100) -> list[Event]:
        return self._events[:limit]

    async def aclose(self) -> None:
        return None


_override = msgspec.json.Decoder(Override)
_event = msgspec.json.Decoder(Event)


class RedisLive:
    """In Redis, for the whole fleet. `client` is a connection pool of its own."""

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
            raise LiveAway("Redis cannot be reached: nothing was changed; try again") from None

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
