"""A stream of records in Redis that every worker reads: its keys, and the scripts that access them.

All keys share one slot, so that each script is atomic: the stream (`log`), its *generation* (a random ID: a different
one means that Redis lost data), its *floor* (the newest record ever removed), the positions by record ID (`ids`), and
the workers with their last heartbeats (`workers`).

Every script may run if Redis is out of memory: a purge or a revocation must not be refused for lack of memory.

What a record says is its codec's affair: `purge_log` has that of purges, `identity.records` that of API keys and
revocations.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Generic, Protocol, TypeVar
from uuid import uuid4

from redis.exceptions import ResponseError

from gateway.policy.epochs import Position, parse_position, show_position

ANSWER_SECONDS = 1.0
READ_AT_ONCE = 1000
ADD_AT_ONCE = 200
TRIM_AT_ONCE = 1000
YOUNG_SECONDS = 0.5
"""How long a generation is young: workers disconnected by Redis's end rejoin within that time."""
LARGEST = 4 * 1024 * 1024
"""Maximum size of a record. A larger one, which no worker writes (a request has at most 1 MiB), is read as empty."""
MOST_AT_ONCE = 32 * 1024 * 1024
"""Bytes of all records of one reply; those behind come empty."""
LONGEST_SILENCE = 30 * 24 * 3600.0
SETTLED_SECONDS = 10.0
"""Minimum age of a record that is removed because a later one has made it needless: by then every follower of the
stream has applied later ones. For a worker that has not, the stream went back, and counts as a new one."""
LONGEST_ID = 64
SILENT_SECONDS = 24 * 3600
"""How long it is remembered that a worker stopped sending heartbeats, which may still run, disconnected from Redis."""

_FLAGS = "#!lua flags=allow-oom\n"  # Redis 7 and Valkey support it
_LIBRARY = """
local function begin(key, young, new)
  redis.call('SET', key, new)
  redis.call('SET', young, 1, 'PX', YOUNG)
  return new
end
local function later(one, other)
  local a, b = string.match(one, '^(%d+)-(%d+)$')
  local c, d = string.match(other, '^(%d+)-(%d+)$')
  a, b, c, d = tonumber(a), tonumber(b), tonumber(c), tonumber(d)
  return a > c or (a == c and b > d)
end
local function clipped(records)
  local room = MOST
  for _, each in ipairs(records) do
    local size = 0
    for _, item in ipairs(each[2]) do size = size + #item end
    room = room - size
    if room < 0 or size > LARGEST or #each[2] > 4 then each[2] = {} end
  end
  return records
end
local function remove(old, log, floor, ids)
  for _, each in ipairs(old) do
    redis.call('XDEL', log, each[1])
    redis.call('HDEL', ids, each[2][2])
  end
  if #old > 0 then redis.call('SET', floor, old[#old][1]) end
end
"""
# A worker's turn. Where the record that it applied last is gone, and was not trimmed, Redis went back to an earlier
# state: that is a new generation.
# KEYS: log, generation, floor, workers, young, joins. ARGV: generation to begin with, worker, its generation, its
# position, its sign of life, number of records.
_SYNC = """
local generation, floor = redis.call('GET', KEYS[2]), redis.call('GET', KEYS[3]) or '0-0'
if not generation then
  generation = begin(KEYS[2], KEYS[5], ARGV[1])
elseif generation == ARGV[3] and later(ARGV[4], floor) and #redis.call('XRANGE', KEYS[1], ARGV[4], ARGV[4]) == 0 then
  generation = begin(KEYS[2], KEYS[5], ARGV[1])
end
if redis.call('HSET', KEYS[4], ARGV[2], ARGV[5]) == 1 then redis.call('INCR', KEYS[6]) end
local records = {}
if generation == ARGV[3] then records = redis.call('XRANGE', KEYS[1], '(' .. ARGV[4], '+', 'COUNT', ARGV[6]) end
return {generation, floor, redis.call('GET', KEYS[6]) or '0', clipped(records), redis.call('EXISTS', KEYS[5])}
"""
# KEYS: log. ARGV: position after which to read, number of records.
_READ = "return clipped(redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], '+', 'COUNT', ARGV[2]))"
# Adding, by record id, so that adding again changes nothing; the oldest make room.
# KEYS: log, generation, floor, ids, workers, young, silent. ARGV: generation to begin with, greatest number, whether to
# return the workers, then ID and record of each.
_ADD = """
local generation = redis.call('GET', KEYS[2]) or begin(KEYS[2], KEYS[6], ARGV[1])
local places = {}
for at = 4, #ARGV, 2 do
  local place = redis.call('HGET', KEYS[4], ARGV[at])
  if not place then
    place = redis.call('XADD', KEYS[1], '*', 'i', ARGV[at], 'r', ARGV[at + 1])
    redis.call('HSET', KEYS[4], ARGV[at], place)
  end
  places[#places + 1] = place
end
local surplus = redis.call('XLEN', KEYS[1]) - tonumber(ARGV[2])
if surplus > 0 then
  remove(redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', math.min(surplus, 1000)), KEYS[1], KEYS[3], KEYS[4])
end
local workers = {}
if ARGV[3] == '1' then workers = redis.call('HGETALL', KEYS[5]) end
return {generation, places, workers, redis.call('EXISTS', KEYS[6]), redis.call('EXISTS', KEYS[7])}
"""
# KEYS: log, floor, ids. ARGV: oldest age to keep in milliseconds, how many to remove at once.
_TRIM = """
local now = redis.call('TIME')
local oldest = now[1] * 1000 + math.floor(now[2] / 1000) - tonumber(ARGV[1])
if oldest <= 0 then return 0 end
local old = redis.call('XRANGE', KEYS[1], '-', '(' .. string.format('%.0f', oldest) .. '-0', 'COUNT', ARGV[2])
remove(old, KEYS[1], KEYS[2], KEYS[3])
return #old
"""
# Removes records up to a floor, and is done when it returns fewer than it may remove at once.
# KEYS: log, floor, ids, generation. ARGV: generation, floor, how many to remove at once.
_TRIM_TO = """
if redis.call('GET', KEYS[4]) ~= ARGV[1] then return 0 end
local old = redis.call('XRANGE', KEYS[1], '-', ARGV[2], 'COUNT', ARGV[3])
remove(old, KEYS[1], KEYS[2], KEYS[3])
return #old
"""
# Removes single records, where they are old enough; returns how many of them are dealt with.
# KEYS: log, ids, generation. ARGV: generation, least age in milliseconds, then the positions, oldest first.
_DROP = """
if redis.call('GET', KEYS[3]) ~= ARGV[1] then return 0 end
local now = redis.call('TIME')
local newest = now[1] * 1000 + math.floor(now[2] / 1000) - tonumber(ARGV[2])
for at = 3, #ARGV do
  if tonumber(string.match(ARGV[at], '^(%d+)')) > newest then return at - 3 end
  local found = redis.call('XRANGE', KEYS[1], ARGV[at], ARGV[at])
  if #found == 1 then
    redis.call('XDEL', KEYS[1], ARGV[at])
    redis.call('HDEL', KEYS[2], found[1][2][2])
  end
end
return #ARGV - 2
"""
# KEYS: workers, silent. ARGV: worker, its last sign of life, seconds to remember that it fell silent.
_BURY = """
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[1], ARGV[1])
if ARGV[3] ~= '0' then redis.call('SET', KEYS[2], 1, 'EX', ARGV[3]) end
return 1
"""


class HasId(Protocol):
    @property
    def id(self) -> str:
        """Its issuer's, by which a record that is added again is known; LONGEST_ID characters at most."""


R = TypeVar("R", bound=HasId)


@dataclass(frozen=True, slots=True)
class Beat:
    """A worker's heartbeat: its applied position and generation; no two in a row are equal. After `silent` seconds
    without one the worker counts as gone."""

    generation: str
    applied: Position
    number: int = 0
    silent: float = 30.0

    def encode(self) -> str:
        return f"{self.generation} {show_position(self.applied)} {self.number} {self.silent:.3f}"

    @classmethod
    def decode(cls, text: str) -> Beat:
        """Raises ValueError."""
        generation, applied, number, silent = text.split(" ")
        beat = cls(generation, parse_position(applied), int(number), float(silent))
        if not 0 <= beat.silent <= LONGEST_SILENCE:
            raise ValueError(f"a worker is not silent for {silent} seconds")
        return beat

    def confirms(self, generation: str, position: Position) -> bool:
        return self.generation == generation and self.applied >= position


@dataclass(frozen=True, slots=True)
class Turn(Generic[R]):
    """The result of a worker's turn: `records` after its position, unless the generation differs from its own. `young`:
    Redis lost its data a moment ago, and workers may still be adding what they know."""

    generation: str
    floor: Position
    joins: int
    records: list[tuple[Position, R]] = field(default_factory=list)
    young: bool = False


@dataclass(frozen=True, slots=True)
class Added:
    """The positions of records in the stream, and the workers' heartbeats at that instant. `silenced`: one stopped
    within the last day."""

    generation: str
    places: list[Position]
    beats: dict[str, str]
    young: bool
    silenced: bool


class RecordStream(Generic[R]):
    """The stream `name`. `decode` makes a record of its bytes; None stands for what has none, or too many. Raises
    RedisError, OSError or TimeoutError where Redis does not answer within a second."""

    def __init__(
        self,
        client: Any,
        prefix: str,
        name: str,
        encode: Callable[[R], bytes],
        decode: Callable[[Position, bytes | None], R],
        *,
        max_records: int = 100_000,
        young: float = YOUNG_SECONDS,
    ) -> None:
        self._client = client
        self._young = max(1, int(young * 1000))
        self._encode = encode
        self._decode = decode
        self._max_records = max_records
        self._flags = _FLAGS
        self._library = _LIBRARY.replace("YOUNG", str(self._young))
        self._library = self._library.replace("LARGEST", str(LARGEST)).replace("MOST", str(MOST_AT_ONCE))
        names = ("log", "generation", "floor", "ids", "workers", "young", "joins", "silent")
        self._keys = {key: f"{prefix}{{{name}}}:{key}" for key in names}

    async def turn(self, worker: str, beat: Beat) -> Turn[R]:
        """Send a heartbeat, and read new records."""
        generation, floor, joins, records, young = await self._run(
            _SYNC,
            ("log", "generation", "floor", "workers", "young", "joins"),
            (uuid4().hex, worker, beat.generation, show_position(beat.applied), beat.encode(), READ_AT_ONCE),
        )
        return Turn(
            generation.decode(),
            parse_position(floor.decode()),
            int(joins),
            [self._record(where, fields) for where, fields in records],
            bool(young),
        )

    async def add(self, records: Sequence[R], *, count: bool = False) -> Added:
        """Add up to ADD_AT_ONCE records; those that are there stay where they are. With `count`, the workers too."""
        return await self.add_encoded([(each.id, self._encode(each)) for each in records], count=count)

    async def add_encoded(self, records: Sequence[tuple[str, bytes]], *, count: bool = False) -> Added:
        """`add` of records by their IDs, as the stream has them."""
        flat = [item for record in records for item in record]
        generation, places, workers, young, silenced = await self._run(
            _ADD,
            ("log", "generation", "floor", "ids", "workers", "young", "silent"),
            (uuid4().hex, self._max_records, int(count), *flat),
        )
        texts = _texts(workers)
        beats = dict(zip(texts[::2], texts[1::2], strict=True))
        where = [parse_position(place.decode()) for place in places]
        return Added(generation.decode(), where, beats, bool(young), bool(silenced))

    async def read(self, after: Position) -> list[tuple[Position, R]]:
        """The records that follow `after`, READ_AT_ONCE at most."""
        entries = await self._run(_READ, ("log",), (show_position(after), READ_AT_ONCE))
        return [self._record(where, fields) for where, fields in entries]

    def _record(self, where: bytes, fields: Any) -> tuple[Position, R]:
        """A stream entry, from redis-py or a script."""
        if isinstance(fields, list):
            fields = dict(zip(fields[::2], fields[1::2], strict=True))
        position = parse_position(where.decode())
        return position, self._decode(position, fields.get(b"r"))

    async def wait(self, after: Position, block: int) -> None:
        """Wait until a record follows `after`, `block` milliseconds at most."""
        async with asyncio.timeout(block / 1000 + ANSWER_SECONDS):
            await self._client.xread({self._keys["log"]: show_position(after)}, count=1, block=block)

    async def workers(self) -> dict[str, str]:
        """The last signs of life by worker."""
        async with asyncio.timeout(ANSWER_SECONDS):
            found: Mapping[bytes, bytes] = await self._client.hgetall(self._keys["workers"])
        texts = _texts(chain.from_iterable(found.items()))
        return dict(zip(texts[::2], texts[1::2], strict=True))

    async def bury(self, worker: str, beat: str, *, certain: bool = False) -> None:
        """Count a worker no longer, if `beat` is still its last sign of life; `certain`: its process is gone."""
        names = [text.encode(errors="surrogateescape") for text in (worker, beat)]
        await self._run(_BURY, ("workers", "silent"), (*names, 0 if certain else SILENT_SECONDS))

    async def stay_young(self) -> None:
        """Let the stream be young from now on as long as a new one: not all that Redis lost is there yet."""
        async with asyncio.timeout(ANSWER_SECONDS):
            await self._client.set(self._keys["young"], 1, px=self._young)

    async def leave(self, worker: str) -> None:
        async with asyncio.timeout(ANSWER_SECONDS):
            await self._client.hdel(self._keys["workers"], worker)

    async def trim(self, age: float) -> None:
        """Remove the records that are older than `age` seconds, by Redis's own clock."""
        removed = TRIM_AT_ONCE
        while removed == TRIM_AT_ONCE:
            removed = await self._run(_TRIM, ("log", "floor", "ids"), (int(age * 1000), TRIM_AT_ONCE))

    async def trim_to(self, generation: str, floor: Position) -> None:
        """Remove the records up to `floor`."""
        removed = TRIM_AT_ONCE
        while removed == TRIM_AT_ONCE:
            arguments = (generation, show_position(floor), TRIM_AT_ONCE)
            removed = await self._run(_TRIM_TO, ("log", "floor", "ids", "generation"), arguments)

    async def drop(self, generation: str, positions: Sequence[Position], settled: float = SETTLED_SECONDS) -> int:
        """Remove the records at `positions`, in their order, up to the first that is younger than `settled` seconds;
        how many that settles."""
        arguments = (generation, int(settled * 1000), *map(show_position, positions))
        return int(await self._run(_DROP, ("log", "ids", "generation"), arguments))

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _run(self, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        named = [self._keys[name] for name in keys]
        async with asyncio.timeout(ANSWER_SECONDS):
            try:
                return await self._client.eval(self._flags + self._library + script, len(named), *named, *arguments)
            except ResponseError as error:
                if not self._flags or "compiling script" not in str(error):
                    raise
                self._flags = ""  # a Redis before 7
            return await self._client.eval(self._library + script, len(named), *named, *arguments)


def _texts(items: Iterable[bytes]) -> list[str]:
    """Names and heartbeats, whatever their bytes: one that no worker wrote is ignored, and expires like
    others."""
    return [item.decode(errors="surrogateescape") for item in items]
