"""The stream of purges, as one worker reads and writes it.

Everything a purge needs stands in one slot of Redis: the stream, its *generation* (a random id beside it: another one
means that Redis lost it all), its *floor* (the newest record ever removed) and the workers' signs of life. Each worker
reads on a connection of its own. A purge that Redis has not taken is kept and added again; so are, when the generation
changes, the records that are known here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import uuid4

import msgspec
from redis.exceptions import RedisError

from .clock import Clock
from .epochs import EVERYTHING, ZERO, Epochs, Position, Purge, parse_position, show_position
from .policy import MAX_LIFE

BLOCK_MS = 400
CONFIRM_SECONDS = 2.0
RETRY_SECONDS = 0.1
TRIM_EVERY = 60.0
MAX_RECORDS = 100_000
ANSWER_SECONDS = 1.0
READ_AT_ONCE = 1000

# KEYS: log, generation, floor, ids. ARGV: generation to begin with, purge id, record.
_ADD = """
if redis.call('EXISTS', KEYS[2]) == 0 then redis.call('SET', KEYS[2], ARGV[1]) end
local known = redis.call('HGET', KEYS[4], ARGV[2])
if known then return {redis.call('GET', KEYS[2]), known} end
local id = redis.call('XADD', KEYS[1], '*', 'r', ARGV[3])
redis.call('HSET', KEYS[4], ARGV[2], id)
return {redis.call('GET', KEYS[2]), id}
"""
# KEYS: log, generation, floor, beats. ARGV: generation to begin with, worker, applied position.
_BEAT = """
if redis.call('EXISTS', KEYS[2]) == 0 then redis.call('SET', KEYS[2], ARGV[1]) end
local now = redis.call('TIME')
redis.call('HSET', KEYS[4], ARGV[2], (now[1] * 1000 + math.floor(now[2] / 1000)) .. ' ' .. ARGV[3])
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
return {redis.call('GET', KEYS[2]), redis.call('GET', KEYS[3]) or '0-0', last[1] and last[1][1] or '0-0'}
"""
# KEYS: beats.
_COUNT = "return {redis.call('TIME'), redis.call('HGETALL', KEYS[1])}"
# KEYS: log, floor, ids. ARGV: oldest id to keep, greatest number to keep. Removes at most 1,000 records a call.
_TRIM = """
local surplus = redis.call('XLEN', KEYS[1]) - tonumber(ARGV[2])
local old = redis.call('XRANGE', KEYS[1], '-', '(' .. ARGV[1], 'COUNT', 1000)
if surplus > #old then old = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', math.min(surplus, 1000)) end
if #old == 0 then return 0 end
redis.call('SET', KEYS[2], old[#old][1])
for _, each in ipairs(old) do
  redis.call('XDEL', KEYS[1], each[1])
  local ok, record = pcall(cjson.decode, each[2][2])
  if ok and record['id'] then redis.call('HDEL', KEYS[3], record['id']) end
end
return #old
"""


@dataclass(frozen=True, slots=True)
class Report:
    """What became of a purge: how many of the workers that give signs of life have applied it, and in how long.

    `added` is False where Redis has not taken it yet; it will be added as soon as Redis is back.
    """

    confirmed: int
    workers: int
    seconds: float
    added: bool = True

    @property
    def complete(self) -> bool:
        return self.added and self.confirmed >= self.workers


class PurgeLog(Protocol):
    """What the tiers and the engine need of purging."""

    epochs: Epochs

    def distrusted_since(self, now: float) -> float | None:
        """The instant from which memory can't be trusted, the stream being out of reach too long; None if it can."""

    async def purge(self, names: Sequence[str], *, soft: bool = False, by: str = "", wait: bool = True) -> Report: ...

    async def start(self) -> None: ...

    async def aclose(self) -> None: ...


class LocalPurges:
    """Purging in one process alone: `redis_url: none`."""

    def __init__(self, clock: Clock) -> None:
        self.epochs = Epochs(uuid4().hex)
        self._clock = clock

    def distrusted_since(self, now: float) -> float | None:
        return None

    async def purge(self, names: Sequence[str], *, soft: bool = False, by: str = "", wait: bool = True) -> Report:
        milliseconds = int(self._clock.now() * 1000)
        last = self.epochs.applied
        position = (milliseconds, 0) if milliseconds > last[0] else (last[0], last[1] + 1)
        self.epochs.apply(position, Purge(uuid4().hex, tuple(names), soft, by))
        if len(self.epochs.records) > MAX_RECORDS:
            oldest = min(where for where, _ in self.epochs.records.values())
            self.epochs.raise_floor(oldest)
        return Report(1, 1, 0.0)

    async def start(self) -> None:
        return None

    async def aclose(self) -> None:
        return None


class RedisPurges:
    """The stream in Redis. `client` is a connection pool of its own; `blind` (seconds, None for ever) is how long
    memory is trusted while the stream is out of reach, and how long a silent worker counts among the living."""

    def __init__(self, client: Any, clock: Clock, *, prefix: str = "gw:", blind: float | None = 30.0) -> None:
        self.epochs = Epochs()
        self.worker = uuid4().hex
        self._client = client
        self._clock = clock
        self._blind = blind
        self._contact: float | None = None
        self._task: asyncio.Task[None] | None = None
        self._synchronised = asyncio.Event()
        self._adding: set[asyncio.Task[Position | None]] = set()
        self._trimmed = time.monotonic()
        self._log, self._generation, self._floor, self._ids, self._beats = (
            f"{prefix}{{purge}}:{name}" for name in ("log", "generation", "floor", "ids", "workers")
        )

    def __repr__(self) -> str:
        return f"<RedisPurges {self.epochs!r}>"

    def distrusted_since(self, now: float) -> float | None:
        if self._contact is None:
            self._contact = now
        if self._blind is None or now <= self._contact + self._blind:
            return None
        return now - self._blind

    async def start(self) -> None:
        """Begin to read; return once the whole stream was read, or Redis did not answer in time."""
        if self._task is None:
            self._task = asyncio.ensure_future(self._run())
        with suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._synchronised.wait()

    async def aclose(self) -> None:
        """Stop reading, and leave the workers' number."""
        task = self._task
        while task is not None and not task.done():
            # Again and again: a cancellation that meets a reply just arriving can be lost (redis-py 8.1, Python 3.11).
            task.cancel()
            await asyncio.wait((task,), timeout=0.05)
        with suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._client.hdel(self._beats, self.worker)
        await self._client.aclose()

    # --- issuing -------------------------------------------------------------------------------------------

    async def purge(self, names: Sequence[str], *, soft: bool = False, by: str = "", wait: bool = True) -> Report:
        """Purge `names`: here at once, everywhere when the report is complete.

        Without `wait` it is on its way when this returns.
        """
        began = time.perf_counter()
        purge = Purge(uuid4().hex, tuple(names), soft, by)
        self.epochs.pending[purge.id] = (self._clock.now(), purge)
        if not wait:
            self._adding.add(task := asyncio.ensure_future(self._add(purge)))
            task.add_done_callback(self._adding.discard)
            return Report(1, 1, 0.0, added=False)
        position = await self._add(purge)
        if position is None:
            return Report(0, 1, time.perf_counter() - began, added=False)
        return await self._confirmed(position, began)

    async def _add(self, purge: Purge) -> Position | None:
        """Its position in the stream; None where Redis did not take it."""
        keys = (self._log, self._generation, self._floor, self._ids)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                _, where = await self._client.eval(
                    _ADD, len(keys), *keys, uuid4().hex, purge.id, msgspec.json.encode(purge)
                )
        except (RedisError, OSError, TimeoutError):
            return None
        return parse_position(where.decode())

    async def _confirmed(self, position: Position, began: float) -> Report:
        deadline = began + CONFIRM_SECONDS
        pause = 0.001
        confirmed, workers = 0, 1
        while True:
            with suppress(RedisError, OSError, TimeoutError):
                confirmed, workers = await self._count(position)
                if confirmed >= workers:
                    break
            if time.perf_counter() + pause > deadline:
                break
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 0.05)
        return Report(confirmed, workers, time.perf_counter() - began)

    async def _count(self, position: Position) -> tuple[int, int]:
        """How many of the living have applied `position`. Who was silent for too long trusts nothing any more."""
        async with asyncio.timeout(ANSWER_SECONDS):
            (seconds, microseconds), flat = await self._client.eval(_COUNT, 1, self._beats)
        beats = dict(zip(flat[::2], flat[1::2], strict=True))
        now = int(seconds) * 1000 + int(microseconds) // 1000
        silent = (self._blind if self._blind is not None else 30.0) * 1000
        living = {}
        for worker, beat in beats.items():
            at, _, applied = beat.decode().partition(" ")
            if now - int(at) <= silent:
                living[worker.decode()] = parse_position(applied)
        living.setdefault(self.worker, self.epochs.applied)
        return sum(applied >= position for applied in living.values()), len(living)

    # --- reading -------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            try:
                await self._follow()
            except (RedisError, OSError, TimeoutError, ValueError):
                await asyncio.sleep(RETRY_SECONDS)

    async def _follow(self) -> None:
        while True:
            await self._beat()
            if not self._synchronised.is_set():
                self._synchronised.set()
            async with asyncio.timeout(BLOCK_MS / 1000 + ANSWER_SECONDS):
                await self._read(BLOCK_MS)
            if time.monotonic() - self._trimmed > TRIM_EVERY:
                self._trimmed = time.monotonic()
                await self._trim()

    async def _beat(self) -> None:
        """Give a sign of life, and hear whether the stream is still the one that was read."""
        keys = (self._log, self._generation, self._floor, self._beats)
        began = self._clock.now()
        async with asyncio.timeout(ANSWER_SECONDS):
            generation, floor, last = (
                item.decode()
                for item in await self._client.eval(
                    _BEAT, len(keys), *keys, uuid4().hex, self.worker, show_position(self.epochs.applied)
                )
            )
        if generation != self.epochs.generation or parse_position(last) < self._last_known():
            await self._adopt(generation)
        self.epochs.raise_floor(parse_position(floor))
        if parse_position(last) <= self.epochs.applied:
            self._contact = began
        for _, purge in list(self.epochs.pending.values()):
            await self._add(purge)

    def _last_known(self) -> Position:
        return max((position for position, _ in self.epochs.records.values()), default=ZERO)

    async def _adopt(self, generation: str) -> None:
        """Another stream than the one that was read: Redis lost it, or went back. What is known here is added again,
        then the whole of it is read; only then do its epochs take the place of those that hold now."""
        for position, purge in sorted(self.epochs.records.values()) if self.epochs.records else ():
            if await self._add(purge) is None:
                raise TimeoutError(f"the purge at {show_position(position)} could not be added again")
        old = self.epochs
        fresh = Epochs(generation)
        position = ZERO
        while batch := await self._range(position):
            for position, purge in batch:
                fresh.apply(position, purge)
        fresh.pending = {key: each for key, each in old.pending.items() if key not in fresh.records}
        self.epochs = fresh

    async def _range(self, after: Position) -> list[tuple[Position, Purge]]:
        async with asyncio.timeout(5 * ANSWER_SECONDS):
            entries = await self._client.xrange(self._log, min=f"({show_position(after)}", count=READ_AT_ONCE)
        return [(parse_position(where.decode()), _record(where, fields)) for where, fields in entries]

    async def _read(self, block: int) -> None:
        reply = await self._client.xread(
            {self._log: show_position(self.epochs.applied)}, count=READ_AT_ONCE, block=block
        )
        streams = reply.values() if isinstance(reply, dict) else [entries for _, entries in reply or ()]
        for entries in streams:
            flat = entries[0] if entries and isinstance(entries[0], list) else entries
            for where, fields in flat:
                self.epochs.apply(parse_position(where.decode()), _record(where, fields))

    async def _trim(self) -> None:
        oldest = int((self._clock.now() - MAX_LIFE) * 1000)
        keys = (self._log, self._floor, self._ids)
        async with asyncio.timeout(ANSWER_SECONDS):
            await self._client.eval(_TRIM, len(keys), *keys, f"{oldest}-0", MAX_RECORDS)


_decoder = msgspec.json.Decoder(Purge)


def _record(where: bytes, fields: Any) -> Purge:
    """The purge in a stream entry. One that can't be read, of a newer version perhaps, purges everything."""
    try:
        return _decoder.decode(fields[b"r"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return Purge(f"unreadable {where.decode()}", (EVERYTHING,))
