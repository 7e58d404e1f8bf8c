"""Reads of the shared tier: all of one turn of the event loop in one round trip, each key once.

A read is names and a callback: what a thousand requests wait for is told by plain calls, without a future or a task
each. They go by the Pipe, or where there is none (a cluster; while it is being connected) by redis-py's client.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

Values = list[bytes | None]
Ask = Callable[[list[str], Callable[[Values | None], None]], None]
"""Asks Redis for the values of names, and tells them, or None where it did not answer; not before it returns."""
MAX_BATCH = 512
MAX_AT_ONCE = 4


class Read:
    """Names whose values somebody waits for. `then` is None once nobody does."""

    __slots__ = ("names", "then")

    def __init__(self, names: Sequence[str], then: Callable[[Values], None]) -> None:
        self.names = names
        self.then: Callable[[Values], None] | None = then

    def cancel(self) -> None:
        """Nobody waits any more: it is not sent, or its reply is thrown away."""
        self.then = None


class Reads:
    """Gathers reads, and gives them to `ask`: at most `MAX_BATCH` names a round trip, `MAX_AT_ONCE` under way."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._queue: deque[Read] = deque()
        self._under_way = 0
        self._due = False

    def add(self, names: Sequence[str], then: Callable[[Values], None]) -> Read:
        """Read `names`, whole, in one round trip; `then` is told their values later, None for each that has none or
        where Redis did not answer."""
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
        """Reads that somebody still waits for, and their names, each once; one read's names go together."""
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
        told = 0
        try:
            for read in batch:
                told += 1
                if read.then is not None:
                    read.then([get(name) for name in read.names])
        except BaseException:
            # One that fails is its own affair: the others are told all the same.
            asyncio.get_running_loop().call_soon(self._tell, batch[told:], found)
            raise


def no_values(names: Sequence[str], then: Callable[[Values], None]) -> Read:
    """A read of a tier that is away: `then` is told that there is nothing, with the loop's next turn."""
    read = Read(names, then)
    asyncio.get_running_loop().call_soon(_tell_nothing, read)
    return read


def _tell_nothing(read: Read) -> None:
    if read.then is not None:
        read.then([None] * len(read.names))
