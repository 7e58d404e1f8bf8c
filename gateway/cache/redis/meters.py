"""The meters of rate limits in Redis: one script that answers for any number of them, by Redis's own time.

A meter is a hash: `mark` (the theoretical arrival time of a rate, in microseconds since 1970, or what is spent of a
quota), and the credit of each worker as `requests until`. It expires once it says no more than a missing one does. What
is computed, and why, is in `limits.meter`, whose `settle` a test compares with the script.

The time is Redis's: the workers' clocks need not agree. A set clock of Redis gives each subject its burst once more, or
takes at most two bursts' time until it has it again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from gateway.cache.redis.connection import Command

AT_ONCE = 100
"""Meters in one script, for which everybody else at Redis waits: some 10 µs each."""
SILENT = 5.0
"""Seconds without a word after which a worker is no longer counted."""

# KEYS: meters. ARGV: worker, microseconds of a lease, then for each meter: interval (microseconds; 0: a quota), burst,
# milliseconds of a quota's life, demand, want, held, back, debt, floor, whether that counts in any case.
_SETTLE = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local worker, lease, replies = ARGV[1], tonumber(ARGV[2]), {}
for position, key in ipairs(KEYS) do
  local a = {}
  for at = 1, 10 do a[at] = tonumber(ARGV[2 + (position - 1) * 10 + at]) end
  local interval, burst, life, demand, want = a[1], a[2], a[3], a[4], a[5]
  local held, back, debt, floor = a[6], a[7], a[8], a[9]
  local stored, spent, new, lent, mine, others = redis.call('HGETALL', key), 0, true, 0, 0, 0
  local last = 0
  for at = 1, #stored, 2 do
    if stored[at] == 'mark' then
      new, spent = false, tonumber(stored[at + 1])
      if interval > 0 then spent = (spent - now) / interval end
    else
      local count, till = string.match(stored[at + 1], '^(%d+) (%d+)$')
      count, till = tonumber(count) or 0, tonumber(till) or 0
      lent = lent + count
      local holds = till > now and till <= now + 2 * lease
      if not holds or stored[at] == worker then redis.call('HDEL', key, stored[at]) end
      if holds then
        if stored[at] == worker then mine = count else others, last = others + count, math.max(last, till) end
      end
    end
  end
  spent = math.max(0, spent, lent, (new or a[10] == 1) and floor or 0)
  spent = math.min(spent, 2 * burst)
  back = math.min(back, mine)
  held = math.min(held, mine - back)
  spent = math.max(spent + debt - back, others + held)
  local left = math.max(0, math.floor(burst - spent + 0.000001))
  local granted, extra, wait = math.min(demand, left), 0, 0
  if granted == demand then
    extra = math.max(0, math.min(want, math.floor((left - granted) / 4), math.floor(burst / 2) - others - held))
  end
  spent = spent + granted + extra
  if granted < demand then wait = math.max(0, spent + 1 - burst) * interval end
  if held + extra > 0 then
    last = math.max(last, now + lease)
    redis.call('HSET', key, worker, string.format('%.0f %.0f', held + extra, now + lease))
  end
  redis.call('HSET', key, 'mark', string.format('%.3f', interval > 0 and now + spent * interval or spent))
  local stay = math.max(spent * interval, last - now) / 1000 + 1000
  redis.call('PEXPIRE', key, string.format('%.0f', math.max(interval > 0 and stay or 0, life)))
  replies[position] = {granted, extra, string.format('%.6f', spent), string.format('%.0f', wait)}
end
return replies
"""
# KEYS: workers. ARGV: worker, milliseconds of silence, an epoch to begin with. The epoch is lost with the data.
_LOOK = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSETNX', KEYS[1], 'epoch', ARGV[3])
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', now))
local count, rank, stored = 0, 0, redis.call('HGETALL', KEYS[1])
for at = 1, #stored, 2 do
  if stored[at] ~= 'epoch' then
    if math.abs(now - tonumber(stored[at + 1])) > tonumber(ARGV[2]) then
      redis.call('HDEL', KEYS[1], stored[at])
    else
      count = count + 1
      if stored[at] < ARGV[1] then rank = rank + 1 end
    end
  end
end
return {count, rank, redis.call('HGET', KEYS[1], 'epoch')}
"""


class MeterAsk(NamedTuple):
    """One meter's part of the script's arguments. `interval` in microseconds, `life` in milliseconds; the rest as
    `limits.meter.Ask` has it."""

    name: str
    interval: float
    burst: int
    life: int
    demand: int
    want: int
    held: int
    back: int
    debt: int
    floor: float
    restore: bool


class MeterReply(NamedTuple):
    """`wait` is in seconds."""

    granted: int
    extra: int
    spent: float
    wait: float


class RedisMeters:
    """`run` executes a command and returns its reply within the budget, or None. In a cluster, where meters lie in many
    slots, each is asked by a command of its own."""

    def __init__(
        self,
        run: Callable[..., Awaitable[object]],
        prefix: str,
        available: Callable[[], bool],
        *,
        cluster: bool = False,
    ) -> None:
        self._run = run
        self._prefix = prefix
        self._available = available
        self.at_once = 1 if cluster else AT_ONCE

    @property
    def available(self) -> bool:
        return self._available()

    async def settle(self, worker: str, lease: float, asks: Sequence[MeterAsk]) -> list[MeterReply] | None:
        """The replies to `asks`, at most `at_once`, of meters that differ; None where Redis does not answer. `lease` is
        in seconds."""
        if not self.available:
            return None
        names = [f"{self._prefix}limit:{each.name}" for each in asks]
        numbers = [_number(value) for each in asks for value in each[1:]]
        command: Command = ("EVAL", _SETTLE, len(names), *names, worker, int(lease * 1e6), *numbers)
        reply = await self._run(command)
        if not isinstance(reply, list) or len(reply) != len(asks):
            return None
        return [
            MeterReply(int(granted), int(extra), float(spent), float(wait) / 1e6)
            for granted, extra, spent, wait in reply
        ]

    async def look(self, worker: str, epoch: str) -> tuple[int, int, str] | None:
        """Tell that `worker` is there. Returns how many are, its place among them, from 0, and the epoch: `epoch`, or
        an earlier one if Redis has kept its data since. None where it does not answer."""
        if not self.available:
            return None
        name = f"{self._prefix}limit-workers"
        reply = await self._run(("EVAL", _LOOK, 1, name, worker, int(SILENT * 1000), epoch))
        if not isinstance(reply, list) or len(reply) != 3:
            return None
        return int(reply[0]), int(reply[1]), bytes(reply[2]).decode("ascii", "replace")


def _number(value: float) -> str:
    return f"{value:.6f}" if isinstance(value, float) else str(int(value))
