"""The interface of the shared tier: what the cache needs from a store that all processes use, and a store that is
always empty.

Values are bytes with a lifetime in seconds; leases are names with a token. A store raises nothing when it is
unreachable: reads return nothing, writes return False. This module depends neither on Redis nor on the content of the
bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

Values = list[bytes | None]


class Read:
    """The names of a pending read. `then` is None once it is cancelled."""

    __slots__ = ("names", "then")

    def __init__(self, names: Sequence[str], then: Callable[[Values], None]) -> None:
        self.names = names
        self.then: Callable[[Values], None] | None = then

    def cancel(self) -> None:
        """Cancelled: it is not sent, or its reply is discarded."""
        self.then = None


def no_values(names: Sequence[str], then: Callable[[Values], None]) -> Read:
    """A read of an unavailable tier: `then` gets no values, in the next iteration of the event loop."""
    read = Read(names, then)
    asyncio.get_running_loop().call_soon(_tell_nothing, read)
    return read


def _tell_nothing(read: Read) -> None:
    if read.then is not None:
        read.then([None] * len(read.names))


class SharedStore(Protocol):
    """The engine's interface to the shared tier. Nothing here raises if the tier is unavailable."""

    @property
    def available(self) -> bool:
        """False while it is left alone; reads then give nothing at once."""

    @property
    def doubtful(self) -> bool:
        """Whether it failed just now: a lease may exist then without its holder knowing."""

    async def read(self, names: Sequence[str]) -> list[bytes | None]:
        """The values of `names`, None for a missing one, or if the tier did not respond in time."""

    def ask(self, names: Sequence[str], then: Callable[[list[bytes | None]], None]) -> Read:
        """The same without a coroutine: `then` gets the values later, unless the read is cancelled before."""

    async def write(self, values: Sequence[tuple[str, bytes, float]]) -> bool:
        """Store (name, value, life in seconds); whether that was done."""

    async def take(self, name: str, token: bytes, life: float) -> bytes | None:
        """Take the lease `name` for `life` seconds: returns `token` if it was free, STORED if its last holder has just
        stored its response, else the current value; None if the tier did not respond: a lease that it granted
        nevertheless is released."""

    def read_and_take(
        self, names: Sequence[str], known: Sequence[bytes], name: str, token: bytes, life: float
    ) -> Awaitable[tuple[list[bytes | None], bytes | None]]:
        """`read` and `take` in one round trip: the values of `names`, and the reply of `take`. The lease is only taken
        if none of the names behind the first has a value, but one that begins as `known` says, where that is not empty;
        otherwise the reply is empty."""

    async def peek(self, name: str) -> tuple[bool, bytes | None]:
        """Whether the tier answered, and what stands at a lease's name."""

    async def renew(self, held: Sequence[tuple[str, bytes]], life: float) -> None:
        """Let the leases (name, token) that still hold end `life` seconds from now."""

    def give_back(
        self,
        name: str,
        token: bytes,
        mark: bytes | None = None,
        life: float = 0.0,
        *,
        after: Sequence[tuple[str, bytes, float]] = (),
    ) -> Awaitable[None]:
        """Store the values `after`, as `write` does; then end the lease `name` if `token` still holds it, and leave
        `mark` in its place for `life` seconds."""

    async def start(self) -> None: ...

    async def aclose(self) -> None: ...


@dataclass(slots=True)
class SharedStatistics:
    reads: int = 0
    writes: int = 0
    batches: int = 0
    failures: int = 0
    dropped: int = 0
    oversized: int = 0
    seconds: float = 0.0


class NoShared:
    """The shared tier that isn't there: `redis_url: none`."""

    available = False
    doubtful = False
    statistics = SharedStatistics()

    async def read(self, names: Sequence[str]) -> list[bytes | None]:
        return [None] * len(names)

    def ask(self, names: Sequence[str], then: Callable[[list[bytes | None]], None]) -> Read:
        return no_values(names, then)

    async def write(self, values: Sequence[tuple[str, bytes, float]]) -> bool:
        return False

    async def take(self, name: str, token: bytes, life: float) -> bytes | None:
        return None

    async def read_and_take(
        self, names: Sequence[str], known: Sequence[bytes], name: str, token: bytes, life: float
    ) -> tuple[list[bytes | None], bytes | None]:
        return [None] * len(names), None

    async def peek(self, name: str) -> tuple[bool, bytes | None]:
        return False, None

    async def renew(self, held: Sequence[tuple[str, bytes]], life: float) -> None:
        return None

    async def give_back(
        self,
        name: str,
        token: bytes,
        mark: bytes | None = None,
        life: float = 0.0,
        *,
        after: Sequence[tuple[str, bytes, float]] = (),
    ) -> None:
        return None

    async def start(self) -> None:
        return None

    async def aclose(self) -> None:
        return None
