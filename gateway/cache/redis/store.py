"""The shared tier of all workers and replicas: Redis, or a compatible server.

Waiting is bounded, and failures are never errors. The reads of one event loop iteration are one batch, the writes one
pipeline, each with a timeout. After a few failures Redis is skipped until a probe succeeds, so that an outage costs a
request nothing. redis-py's own retries are disabled: they take 8 s per request.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from redis.exceptions import MaxConnectionsError, RedisError

from gateway.cache.background import Background, end
from gateway.cache.redis.advice import RedisAdvice
from gateway.cache.redis.connection import (
    LARGEST,
    Command,
    Deadline,
    Reply,
    by_client,
    connect,
    is_cluster,
    milliseconds,
    pipeline,
    time_of,
    values_by_client,
    values_of,
)
from gateway.cache.redis.errors import UNANSWERED, Reason, RedisState, complain_about_policy, is_unanswered
from gateway.cache.redis.fleet_key import agreed_key
from gateway.cache.redis.leases import RedisLeases
from gateway.cache.redis.meters import RedisMeters
from gateway.cache.redis.overrides import RedisLive
from gateway.cache.redis.purge_log import RedisPurges
from gateway.cache.redis.reader import Keeper, Pipe, Reads
from gateway.cache.redis.writes import Value, Writes
from gateway.cache.shared_store import Read, SharedStatistics, no_values
from gateway.clock import Clock, SystemClock
from gateway.config.types import shown_url
from gateway.observability.log import at_most_every

logger = logging.getLogger("gateway")
FAILURES_BEFORE_REST = 3
START_SECONDS = 0.1
TURN_SECONDS = 1.0
IDENTITY_KEY = "identity-key"
PROBE_EVERY = 0.2
SYNCHRONISE_EVERY = 30.0
COMPLAIN_EVERY = 60.0
DOUBT_SECONDS = 1.0
MOST_AT_ONCE = 64 * 1024
MOST_AHEAD = 256 * 1024
"""Bytes of a write up to which it is sent on the connection of the reads, and of all that is unsent there."""
LEASES_AT_ONCE = 8  # connections


class RedisStore:
    """The shared tier on Redis or Valkey.

    `budget` (seconds) is the timeout of one batch. Values above `largest` bytes are neither written nor read. `client`
    is for tests (fakeredis); otherwise it is made from `url`. With a SystemClock, all replicas follow Redis's `TIME`.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "gw:",
        budget: float = 0.05,
        largest: int = LARGEST,
        clock: SystemClock | None = None,
        client: Any = None,
    ) -> None:
        self.largest = largest
        self.statistics = SharedStatistics()
        self._url = url
        self._prefix = prefix
        self._budget = budget
        self._clock = clock
        self._given = client
        self._client = client if client is not None else connect(url, max(budget, 1.0))
        self._leases = RedisLeases(self._client, prefix, self._run, self._spawn)
        self._turns = asyncio.Semaphore(LEASES_AT_ONCE)
        self.available = True
        self._failures = 0
        """In a row."""
        self._failed_at = float("-inf")
        self._probe: asyncio.Task[None] | None = None
        self._reads = Reads(self._ask)
        self._keeper = Keeper(self._client, budget, self._answered, self._lost)
        self._writes = Writes(self._write_batch, self._spawn)
        self._background = Background()
        self._closed = False
        self._synchronised_at = float("-inf")
        self._complained_at = float("-inf")
        self.state = RedisState(shown_url(url))
        self._reason: Exception = RedisError("no answer")

    def __repr__(self) -> str:
        return f"<RedisStore {'available' if self.available else 'left alone'} failures={self.statistics.failures}>"

    def _count(self, failures: int) -> None:
        self._failures = failures
        self.available = failures < FAILURES_BEFORE_REST and not self._closed

    @property
    def doubtful(self) -> bool:
        return time.perf_counter() - self._failed_at < DOUBT_SECONDS

    @property
    def reason(self) -> str | None:
        """Why it is left alone, as one word; None while it is used."""
        reason = self.state.reason
        return reason.kind if reason is not None and not self.available else None

    def allow(self, largest: int) -> None:
        """Raise the maximum record size to this, if it is lower."""
        self.largest = max(self.largest, largest)

    def stream_place(self, timeout: float = 2.0) -> tuple[Any, str]:
        """A client with connections of its own, for a stream, and the prefix of all keys."""
        return self._given if self._given is not None else connect(self._url, timeout), self._prefix

    def purge_log(self, clock: Clock, blind: float | None) -> RedisPurges:
        """The purge stream in the same Redis, on its own connections."""
        return RedisPurges(self.stream_place()[0], clock, prefix=self._prefix, blind=blind)

    def live(self) -> RedisLive:
        """The store of live overrides, on its own connections."""
        return RedisLive(self.stream_place(1.0)[0], prefix=self._prefix)

    def advice_exchange(self, clock: Clock) -> RedisAdvice:
        """The exchange of advisor traffic among all workers on the same Redis, on its own connections."""
        return RedisAdvice(self.stream_place(1.0)[0], clock, prefix=self._prefix)

    def meters(self) -> RedisMeters:
        """The meters of rate limits in the same Redis."""
        return RedisMeters(self._run, self._prefix, lambda: self.available, cluster=is_cluster(self._client))

    def leave_alone(self, reason: Reason) -> None:
        """Do not use Redis until `start`."""
        self.state.reason = reason
        self._count(FAILURES_BEFORE_REST)

    async def start(self) -> None:
        """Look for Redis, and wait for it for START_SECONDS at most. It is not used before it responds."""
        self._closed = False
        self._count(FAILURES_BEFORE_REST)
        self._probe = asyncio.ensure_future(self._make_contact())
        await asyncio.wait((self._probe,), timeout=START_SECONDS)

    async def _make_contact(self) -> None:
        if await self._ping():
            self._count(0)
            self.state.here()
            return await complain_about_policy(self._client)
        self.state.away(self._reason)
        return await self._probe_until_back()

    async def read(self, names: Sequence[str]) -> list[bytes | None]:
        future: asyncio.Future[list[bytes | None]] = asyncio.get_running_loop().create_future()
        read = self.ask(names, lambda values: None if future.done() else future.set_result(values))
        try:
            return await future
        finally:
            read.cancel()

    def ask(self, names: Sequence[str], then: Callable[[list[bytes | None]], None]) -> Read:
        if not self.available:
            return no_values(names, then)
        self.statistics.reads += len(names)
        return self._reads.add(names, then)

    async def write(self, values: Sequence[tuple[str, bytes, float]]) -> bool:
        size = sum(len(value) for _, value, _ in values)
        if any(len(value) > self.largest for _, value, _ in values):
            self.statistics.oversized += 1
            return False
        if not self.available or not self._writes.has_room(size):
            self.statistics.dropped += len(values)
            return False
        self.statistics.writes += len(values)
        pipe = self._pipe_for(size)
        if pipe is None:
            return await self._writes.add(values, size)
        done = await pipe.replies(list(map(self._set, values))) is not None
        self.statistics.dropped += 0 if done else len(values)
        return done

    def _pipe_for(self, size: int) -> Pipe | None:
        """The connection of the reads, if a write of `size` bytes may be sent on it now: not ahead of earlier ones, and
        not if it would delay later reads."""
        pipe = self._pipe
        if pipe is None or size > MOST_AT_ONCE or not self._writes.idle:
            return None
        return pipe if pipe.unsent + size <= MOST_AHEAD else None

    def _set(self, value: Value) -> Command:
        name, data, life = value
        return ("SET", self._prefix + name, data, "PX", milliseconds(life))

    async def agree_on_key(self, own: bytes) -> bytes | None:
        """The identity key shared through this Redis, `own` if there was none; None if it does not respond."""
        return await agreed_key(self._client, self._prefix + IDENTITY_KEY, own) if self.available else None

    # --- leases --------------------------------------------------------------------------------------------

    async def take(self, name: str, token: bytes, life: float) -> bytes | None:
        if not self.available or self._failures:
            return None  # a request whose read just failed does not wait a second time
        return await self._leases.take(name, token, life)

    def read_and_take(
        self, names: Sequence[str], known: Sequence[bytes], name: str, token: bytes, life: float
    ) -> Awaitable[tuple[list[bytes | None], bytes | None]]:
        keys = [self._prefix + each for each in names]
        taking = self._leases.taking(name, token, life, keys[1:], known)
        pipe = self._pipe
        if pipe is None or self._failures:
            return self._read_and_take_by_client(names, keys, taking, name, token)
        self.statistics.reads += len(names)
        found: asyncio.Future[tuple[list[bytes | None], bytes | None]] = pipe.loop.create_future()

        def replied(replies: list[Any] | None) -> None:
            if not found.done():
                found.set_result(self._found(keys, name, token, replies))

        pipe.execute((*map(self._getrange, keys), taking), replied)
        return found

    async def _read_and_take_by_client(
        self, names: Sequence[str], keys: list[str], taking: Command, name: str, token: bytes
    ) -> tuple[list[bytes | None], bytes | None]:
        if self._failures or not self.available:
            return await self.read(names), None
        self.statistics.reads += len(names)
        replies = None
        with suppress(TimeoutError):
            async with asyncio.timeout(self._budget):  # with the wait for its turn
                replies = await self._in_turn((*map(self._getrange, keys), taking))
        return self._found(keys, name, token, replies)

    def _found(
        self, keys: list[str], name: str, token: bytes, replies: list[Any] | None
    ) -> tuple[list[bytes | None], bytes | None]:
        """The values of `keys`, and the reply to the command that takes a lease, which was sent behind them."""
        reply = None if replies is None else replies.pop()
        values = values_of(replies, len(keys))
        if values is None or not isinstance(reply, bytes):
            self._leases.give_up(name, token)  # it may have been granted
            reply = None
        if values is None:
            return [None] * len(keys), None
        if any(values):
            self._leave_out_what_is_too_large(keys, values)
        return values, reply

    async def peek(self, name: str) -> tuple[bool, bytes | None]:
        if not self.available:
            return False, None
        (value,) = await self.read([name])
        return self.available, value

    async def renew(self, held: Sequence[tuple[str, bytes]], life: float) -> None:
        if self.available:
            await self._leases.renew(held, life)

    def give_back(
        self,
        name: str,
        token: bytes,
        mark: bytes | None = None,
        life: float = 0.0,
        *,
        after: Sequence[tuple[str, bytes, float]] = (),
    ) -> Awaitable[None]:
        size = sum([len(value) for _, value, _ in after])
        pipe = self._pipe_for(size)
        if pipe is None or not self.available or size > self.largest:
            return self._give_back_in_turn(name, token, mark, life, after)
        given_back: asyncio.Future[None] = pipe.loop.create_future()

        def replied(replies: list[Any] | None) -> None:
            if replies is None:
                self.statistics.dropped += len(after)
                self._leases.give_up(name, token, mark, life)
            if not given_back.done():
                given_back.set_result(None)

        self.statistics.writes += len(after)
        pipe.execute((*map(self._set, after), self._leases.ending(name, token, mark, life)), replied)
        return given_back

    async def _give_back_in_turn(
        self, name: str, token: bytes, mark: bytes | None, life: float, after: Sequence[Value]
    ) -> None:
        """Behind earlier writes, or by the client."""
        if after and self.available:
            await self.write(after)
        if self.available and await self._run(self._leases.ending(name, token, mark, life)) is None:
            self._leases.give_up(name, token, mark, life)

    async def aclose(self) -> None:
        """Let commands in flight finish (the budget bounds them), then close the connections. None is opened again
        before `start`."""
        await self._background.drain(4 * self._budget)
        self._closed, self.available = True, False
        await self._background.cancel()
        self._writes.drop()
        await end(self._probe)
        await self._keeper.aclose()
        await self._client.aclose()

    # --- batches ---------------------------------------------------------------------------------------

    @property
    def _pipe(self) -> Pipe | None:
        return None if self._closed else self._keeper.pipe

    def _ask(self, names: list[str], then: Callable[[Reply], None]) -> None:
        """One round trip, by the pipe if there is one."""
        keys = [self._prefix + name for name in names]
        pipe = self._pipe
        if self._closed:
            asyncio.get_running_loop().call_soon(then, None)
        elif pipe is None:
            self._spawn(self._ask_client(keys, then))
        else:
            pipe.read(keys, self.largest, partial(self._told, keys, then))

    def _told(self, keys: list[str], then: Callable[[Reply], None], reply: Reply) -> None:
        if reply is not None:
            self._leave_out_what_is_too_large(keys, reply)
        then(reply)

    async def _ask_client(self, keys: list[str], then: Callable[[Reply], None]) -> None:
        values: Reply = None
        try:
            values = await self._guarded(values_by_client(self._client, list(map(self._getrange, keys))))
        finally:
            self._told(keys, then, values)

    def _getrange(self, key: str) -> Command:
        return ("GETRANGE", key, 0, self.largest)

    def _leave_out_what_is_too_large(self, keys: list[str], values: list[bytes | None]) -> None:
        for at, value in enumerate(values):
            if value is not None and len(value) > self.largest:
                values[at] = None
                self.statistics.oversized += 1
                if time.monotonic() - self._complained_at >= COMPLAIN_EVERY:
                    self._complained_at = time.monotonic()
                    said = "%s in Redis is larger than %d bytes, which we never write; it is not read"
                    logger.warning(said, keys[at], self.largest, extra=at_most_every(COMPLAIN_EVERY, "oversized"))

    async def _write_batch(self, values: Sequence[Value]) -> bool:
        done = False
        try:
            done = await self._guarded(pipeline(self._client, map(self._set, values)).execute()) is not None
        finally:
            self.statistics.dropped += 0 if done else len(values)
        return done

    def _spawn(self, work: Any) -> None:
        if self._closed:
            work.close()
        else:
            self._background.spawn(work)

    # --- failing and coming back -----------------------------------------------------------------------

    async def _guarded(self, command: Any) -> Any:
        """The reply, or None if it failed or took longer than the budget; either is counted."""
        began = time.perf_counter()
        self.statistics.batches += 1
        try:
            async with Deadline(self._budget):
                reply = await command
        except MaxConnectionsError:  # our own doing, and no failure of Redis's
            self.statistics.failures += 1
            return None
        except UNANSWERED as error:
            self.statistics.failures += 1
            # What was under way together, and fails together, is one failure.
            if is_unanswered(error) and began >= self._failed_at:
                self._failed()
            return None
        finally:
            self.statistics.seconds += time.perf_counter() - began
        self._succeeded()
        return reply

    async def _run(self, command: Command) -> Any:
        """The reply to a command; None as of `Pipe.replies`."""
        pipe = self._pipe
        replies = await (self._in_turn((command,)) if pipe is None else pipe.replies((command,)))
        return None if replies is None else replies[0]

    def _answered(self, began: float, took: float, served: bool, refused: bool) -> None:
        statistics = self.statistics
        statistics.batches += 1
        statistics.seconds += took
        if refused:
            statistics.failures += 1
        if served:
            self._succeeded()
        elif began >= self._failed_at:  # what fails together is one failure
            self._failed()

    def _lost(self, turns: int) -> None:
        """The end of the connection of the reads is one failure, however many waited on it."""
        self.statistics.batches += turns
        self.statistics.failures += turns
        self._failed()

    async def _in_turn(self, commands: Sequence[Command]) -> list[Any] | None:
        """As `Pipe.replies`, by redis-py's client. Only a limited number are in flight: a thousand misses at once would
        need a connection each, and fail without one, which would count as a failure of Redis. None also if their turn
        did not come in time, which is not a failure of Redis."""
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await self._turns.acquire()
        except TimeoutError:
            return None
        try:
            if not self.available:
                return None
            replies: list[Any] | None = await self._guarded(by_client(self._client, commands))
            return replies
        finally:
            self._turns.release()

    def _failed(self) -> None:
        self._count(self._failures + 1)
        self._failed_at = time.perf_counter()
        if not self.available and not self._closed and (self._probe is None or self._probe.done()):
            self._probe = asyncio.get_running_loop().create_task(self._probe_until_back())

    def _succeeded(self) -> None:
        if self._failures:
            self._count(0)
        if self._clock is not None and time.monotonic() - self._synchronised_at > SYNCHRONISE_EVERY:
            self._synchronised_at = time.monotonic()
            self._spawn(self._ping())

    async def _probe_until_back(self) -> None:
        while not self.available:
            answered = True
            while not (await self._ping() and await self._reads_again()):
                answered = False
                self.state.away(self._reason)
                await asyncio.sleep(PROBE_EVERY)
            if answered:
                self.state.slow(self._budget)
            self._count(0)
            self.state.here()
            # Meanwhile it may have failed again, with this probe under way and so no other begun.
            await complain_about_policy(self._client)

    async def _reads_again(self) -> bool:
        """Whether it responds to a read: while it loads its data, or is a disconnected replica, it responds only to
        TIME."""
        try:
            async with Deadline(self._budget):
                await self._client.exists(self._prefix)
        except UNANSWERED as error:
            is_unanswered(error)
            self._reason = error
            return False
        return True

    async def _ping(self) -> bool:
        """Read Redis's time, for the clock too. False if it does not respond."""
        began, limit = time.monotonic(), max(self._budget, 0.2)
        try:
            async with Deadline(limit):
                redis_time = await time_of(self._client, self._prefix + "{purge}:log")
        except UNANSWERED as error:
            is_unanswered(error)
            self._reason = error
            return False
        # A reply that lay unread while the loop was blocked is no measure of the time.
        if self._clock is not None and (elapsed := time.monotonic() - began) <= limit:
            self._clock.synchronise(redis_time + elapsed / 2)
            self._synchronised_at = time.monotonic()
        return True
