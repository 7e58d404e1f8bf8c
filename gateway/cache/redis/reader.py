"""Reads of the shared tier: all reads of one event loop iteration in one round trip, each key once.

A read is names and a callback, without a future or a task for each. Reads use a Pipe; if there is none (in a cluster,
or while it connects), redis-py's client. redis-py creates the Pipe's connection: it authenticates, does TLS, and finds
the master behind Sentinel. Then the Pipe writes the commands of a turn of the event loop together, and takes their
replies in order, directly from hiredis. If a reply may not belong to the oldest command (one too many or too few, a
wrong mark after a turn's replies, a late one), the connection is closed and all its reads return nothing. A record
contains its key, so it can't be taken for another in any case.

A read of two names takes 15 µs of processor time by a Pipe; a `GET` of one takes 41 µs by redis-py's own client (median
of 15 interleaved rounds of 400, unix socket, uvloop).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Any, cast

import hiredis
import msgspec

from gateway.cache.background import end
from gateway.cache.redis.connection import BoundedParser, Command, Reply, any_refusal, marking, reading, values_of
from gateway.cache.redis.errors import UNANSWERED, is_unanswered
from gateway.cache.shared_store import Read, Values
from gateway.internals import unknown_version
from gateway.observability.log import ONCE

logger = logging.getLogger("gateway")
INTERNALS = {
    "connection": {"_reader": asyncio.StreamReader, "_writer": asyncio.StreamWriter, "_parser": BoundedParser},
    "connection._reader": {"_buffer": bytearray},
    "connection._parser": {"_stream": asyncio.StreamReader, "_reader": hiredis.Reader, "_read_size": int},
}
"""The undocumented attributes of a redis-py connection used here and in `connection`; a test fails if a new redis-py
changes any. Without them reads use redis-py's client, which is slower and equivalent."""
Then = Callable[[list[Any] | None], None]
Answered = Callable[[float, float, bool, bool], None]
"""Gets the start of a turn (seconds, by `perf_counter`), how long it took, and whether anybody got replies, and anybody
None, as Redis refused a command of theirs."""
TRIED_EVERY = 1.0  # seconds
_NOTHING = object()
_pack: Callable[[Command], bytes] = hiredis.pack_command  # type: ignore[assignment]  # of several types
_MOST_UNSENT = 1024 * 1024  # bytes of commands that Redis does not take


class _Turn(msgspec.Struct, frozen=True):
    """Commands sent together, in one turn of the event loop: their number, the mark after them, and when that was."""

    number: int
    mark: bytes
    since: float


class Pipe(asyncio.Protocol):
    """Reads and other commands on one connection, executed in the order in which they are asked for; those of one turn
    of the event loop are one write, with one mark after all. `budget` (seconds) is the timeout of each. `answered` is
    called for each turn, once its replies have been passed on. `lost` is called once, when the connection has ended,
    with the number of turns that have no replies, before those who wait for them."""

    def __init__(self, budget: float, answered: Answered, lost: Callable[[int], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self._budget = budget
        self._answered = answered
        self._lost = lost
        self._transport: asyncio.Transport | None = None
        self._connection: Any = None
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._waiting: deque[tuple[int, Then]] = deque()
        """The number of commands, and who waits for their replies, in their order."""
        self._sent: deque[_Turn] = deque()
        self._unsent = bytearray()
        self._number = 0
        """Of the commands that are not sent yet."""
        self._replies: list[object] = []
        """Those that belong to the oldest turn, and do not end with its mark yet."""
        self._marks = map(b"%d".__mod__, count(1))
        self._timer: asyncio.TimerHandle | None = None
        self._overdue = False

    def __repr__(self) -> str:
        return f"<Pipe {'open' if self.open else 'closed'}, {len(self._waiting)} waiting>"

    @property
    def open(self) -> bool:
        return self._transport is not None

    @property
    def unsent(self) -> int:
        """Bytes of commands that Redis has not taken yet."""
        return len(self._unsent) + (self._transport.get_write_buffer_size() if self._transport is not None else 0)

    def take_over(self, connection: Any) -> bool:
        """Use redis-py's connection from now on; False if its attributes are not as expected, or bytes have arrived on
        it already."""
        reader, writer = getattr(connection, "_reader", None), getattr(connection, "_writer", None)
        if not isinstance(reader, asyncio.StreamReader) or not isinstance(writer, asyncio.StreamWriter):
            return False
        if getattr(reader, "_buffer", None) or reader.at_eof() or writer.transport.is_closing():
            return False
        self._connection = connection  # with it the writer, which would close the transport when it is let go
        self._transport = cast(asyncio.Transport, writer.transport)
        self._transport.set_protocol(self)
        return True

    def read(self, names: Sequence[str], largest: int, then: Callable[[Reply], None]) -> None:
        """Read the values of `names`, whole keys, at once: a turn's reads are together already. `then` is called with
        them later, never synchronously. Of a value above `largest` bytes it gets the first `largest` and one."""
        number = len(names)

        def replied(replies: list[Any] | None) -> None:
            then(None if replies is None else values_of(replies, number))

        self.run(reading(names, largest), number, replied, at_once=True)

    def replies(self, commands: Sequence[Command]) -> asyncio.Future[list[Any] | None]:
        """The replies to commands, as `run` passes them on."""
        replied: asyncio.Future[list[Any] | None] = self.loop.create_future()
        self.execute(commands, lambda replies: None if replied.done() else replied.set_result(replies))
        return replied

    def execute(self, commands: Sequence[Command], then: Then) -> None:
        """As `run`, of commands that are not packed."""
        self.run(b"".join(map(_pack, commands)), len(commands), then)

    def run(self, commands: bytes, number: int, then: Then, *, at_once: bool = False) -> None:
        """Send so many packed commands, at once or with this turn; `then` is called with their replies later, never
        synchronously; with None if there were none in time, or one is a refusal. An error that is none is among them as
        hiredis.ReplyError."""
        if not number:
            self.loop.call_soon(then, [])
            return
        if not self._unsent:
            if self._transport is None or self._transport.get_write_buffer_size() > _MOST_UNSENT:
                self.loop.call_soon(then, None)
                return
            if not at_once:
                self.loop.call_soon(self._send)
        self._unsent += commands
        self._number += number
        self._waiting.append((number, then))
        if at_once:
            self._send()

    def _send(self) -> None:
        transport, commands = self._transport, self._unsent
        if transport is None or not commands:
            return
        turn = _Turn(self._number, next(self._marks), time.perf_counter())
        self._unsent, self._number = bytearray(), 0
        self._sent.append(turn)
        commands += marking(turn.mark)
        try:
            transport.write(commands)
        except UNANSWERED as error:
            is_unanswered(error)
            self.close()
            return
        if self._timer is None:
            self._timer = self.loop.call_later(self._budget, self._look_at_the_time)

    def close(self) -> None:
        """Close it; waiting callbacks get None."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
            self._end()

    # --- what comes ----------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._overdue = False
        replies, sent, sound = self._replies, self._sent, True
        try:
            self._reader.feed(data)
            replies.extend(iter(self._reader.gets, _NOTHING))
        except hiredis.ProtocolError:
            sound = False
        while sent and len(replies) > (number := sent[0].number):
            own, mark = replies[:number], replies[number]
            if mark != sent[0].mark:
                if not isinstance(mark, hiredis.ReplyError):
                    sound = False
                    break
                own = [mark] * number
            del replies[: number + 1]
            self._tell(sent.popleft(), own)
        if not sound or (replies and not sent):
            self.close()

    def _tell(self, turn: _Turn, replies: list[Any]) -> None:
        """Pass on the replies of a turn."""
        took, refusals, waiting = time.perf_counter() - turn.since, any_refusal(replies), self._waiting
        served = refused = False
        at = 0
        while at < turn.number and waiting:  # nobody waits any more where the connection ends meanwhile
            number, then = waiting.popleft()
            own = replies[at : at + number]
            at += number
            if refusals and any_refusal(own):
                refused = True
                then(None)
            else:
                served = True
                then(own)
        self._answered(turn.since, took, served, refused)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._transport = None
            self._end()

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        connection, self._connection = self._connection, None
        connection._reader = connection._writer = None  # otherwise it warns that it was not closed
        turns, self._unsent = len(self._sent) + bool(self._unsent), bytearray()
        self._sent.clear()
        self._lost(turns)
        while self._waiting:
            _, then = self._waiting.popleft()
            then(None)

    def _look_at_the_time(self) -> None:
        """Close it on a timeout. One timer per connection: it checks the oldest turn, and is set again for the next.

        A reply that arrived while this process was blocked is not late: it is read first.
        """
        self._timer = None
        if not self._sent:
            return
        left = self._sent[0].since + self._budget - time.perf_counter()
        if left <= 0 and self._overdue:
            self.close()
            return
        self._overdue = left <= 0
        self._timer = self.loop.call_later(max(0.0, left), self._look_at_the_time)


class Keeper:
    """Keeps one Pipe to the server of redis-py's `client`. `failed` is called if one ended while turns had no replies,
    with their number. There is none for a cluster, or for a client with other connections (fakeredis)."""

    def __init__(self, client: Any, budget: float, answered: Answered, failed: Callable[[int], None]) -> None:
        self._make = getattr(getattr(client, "connection_pool", None), "make_connection", None)
        self._budget = budget
        self._answered = answered
        self._failed = failed
        self._pipe: Pipe | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._tried_at = -math.inf

    @property
    def pipe(self) -> Pipe | None:
        """The open one. If there is none, it is connected in the background, at most once a second."""
        if self._pipe is not None:
            return self._pipe
        now = time.monotonic()
        if self._make is not None and now - self._tried_at >= TRIED_EVERY:
            self._tried_at = now
            self._connecting = asyncio.get_running_loop().create_task(self._connect())
        return None

    async def _connect(self) -> None:
        assert self._make is not None
        connection = self._make()
        try:
            await connection.connect()
            pipe = Pipe(self._budget, self._answered, self._lost)
            if pipe.take_over(connection):
                self._pipe = pipe
                return
            self._make = None  # of another kind: it would be so the next time
            if type(connection).__module__.startswith("redis."):
                said = "reads from Redis take more time: %s"
                logger.warning(said, unknown_version("redis", "connection of the known kind"), extra=ONCE)
            await connection.disconnect(nowait=True)
        except UNANSWERED as error:
            is_unanswered(error)
            return  # redis-py's client, which is used meanwhile, counts that

    def _lost(self, turns: int) -> None:
        self._pipe = None
        if turns:
            self._failed(turns)

    async def aclose(self) -> None:
        await end(self._connecting)
        if self._pipe is not None:
            self._pipe.close()


Ask = Callable[[list[str], Callable[[Values | None], None]], None]
"""Reads values from Redis and passes them on, or None if it did not respond; never synchronously."""
MAX_BATCH = 512
MAX_AT_ONCE = 4


class Reads:
    """Collects reads and passes them to `ask`: at most `MAX_BATCH` names per round trip, `MAX_AT_ONCE` in flight."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._queue: deque[Read] = deque()
        self._under_way = 0
        self._due = False

    def add(self, names: Sequence[str], then: Callable[[Values], None]) -> Read:
        """Read `names`, whole, in one round trip; `then` gets their values later, None for each that is missing or if
        Redis did not respond."""
        read = Read(names, then)
        self._queue.append(read)
        if not self._due and self._under_way < MAX_AT_ONCE:
            self._due = True
            asyncio.get_running_loop().call_soon(self._flush)
        return read

    def _flush(self) -> None:
        self._due = False
        while self._queue and self._under_way < MAX_AT_ONCE:
            batch, names = self._next()
            if batch:
                self._under_way += 1
                self._ask(names, partial(self._answered, batch, names))

    def _next(self) -> tuple[list[Read], list[str]]:
        """The reads that are still needed, and their names, each once; one read's names stay together."""
        batch: list[Read] = []
        names: dict[str, None] = {}
        queue = self._queue
        while queue and (not batch or len(names) + len(queue[0].names) <= MAX_BATCH):
            read = queue.popleft()
            if read.then is not None:
                batch.append(read)
                names.update(dict.fromkeys(read.names))
        return batch, list(names)

    def _answered(self, batch: list[Read], names: list[str], values: Values | None) -> None:
        self._under_way -= 1
        if values is None:
            # Those that wait for their turn have waited as long: they would wait for the budget once more.
            batch = [*batch, *self._queue]
            self._queue.clear()
        elif self._queue:
            self._flush()
        self._tell(batch, dict(zip(names, values, strict=True)) if values is not None else {})

    def _tell(self, batch: list[Read], found: dict[str, bytes | None]) -> None:
        get = found.get
        delivered = 0
        try:
            for read in batch:
                delivered += 1
                if read.then is not None:
                    read.then([get(name) for name in read.names])
        except BaseException:
            # An error in one callback must not affect the others.
            asyncio.get_running_loop().call_soon(self._tell, batch[delivered:], found)
            raise
