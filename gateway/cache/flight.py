"""Collapsing within a process: one fetch per key at a time, whose result goes to all waiting requests at once.

A flight belongs to no request: a client that disconnects leaves it, and it continues for the others. Its result is a
value, which the engine interprets for each waiting request.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from gateway.cache.leases import NO_LEASE, Lease
from gateway.http.headers import Headers
from gateway.policy.entry import Entry
from gateway.policy.storability import StoredForm
from gateway.policy.vary import Names
from gateway.upstreams.response import Fetched


class Landed(msgspec.Struct, frozen=True):
    """The response can be reused. `status` is the upstream's (304 if it validated)."""

    stored: Entry
    status: int
    kept: bool
    """Whether it was stored; False if it was invalidated during the fetch."""
    form: StoredForm | None = None
    """What it has in common with other responses, if that is known."""


class Failed(msgspec.Struct, frozen=True):
    """The upstream failed, with a response or without.

    A `personal` failure is for the client whose request was sent; the others learn only that it failed. Any other is
    for requests with the same identifying fields. `rest` (seconds) is the upstream's `Retry-After`.
    """

    status: int
    headers: Headers = ()
    body: bytes = b""
    error: Exception | None = None
    personal: bool = False
    identity: Headers | None = None
    """The fields that identified the client to the upstream; None if it did not respond."""
    rest: float | None = None


class NotShareable(msgspec.Struct, frozen=True):
    """The response is for the client whose request was sent; its body is still to be read. `status` is the upstream's,
    if that differs."""

    fetched: Fetched
    reason: str
    status: int | None = None


_LOOKED = 2
"""Expired marks that one look-up removes at most: more than are put in its time."""
Landing = Landed | Failed | NotShareable
Preview = Callable[[], Entry]


class Flight(msgspec.Struct, eq=False):
    """One fetch in flight. `stamp` and `began` (seconds) show which purges have passed it since; `number` is its order
    of start.

    Waiting requests are woken twice: when the response head has arrived, so that those that it can't serve leave at
    once, and when the fetch is complete.
    """

    key: str
    stamp: str = ""
    began: float = 0.0
    number: int = 0
    waiting: int = 0
    abandoned: bool = False
    lease: Lease = NO_LEASE
    """That of its key in the fleet."""
    _landed: Landing | None = None
    _promised: Preview | None = None
    _preview: Entry | None = None
    # Made for the first who waits: most flights have only the one that leads them.
    _landing: asyncio.Future[Landing] | None = None
    _head: asyncio.Future[Preview | None] | None = None

    def __repr__(self) -> str:
        state = "under way" if self._landed is None else "landed"
        return f"<Flight {self.key!r} {state} waiting={self.waiting}>"

    @property
    def landing(self) -> asyncio.Future[Landing]:
        """Its result."""
        if self._landing is None:
            self._landing = asyncio.get_running_loop().create_future()
            if self._landed is not None:
                self._landing.set_result(self._landed)
        return self._landing

    def _head_of_response(self) -> asyncio.Future[Preview | None]:
        if self._head is None:
            self._head = asyncio.get_running_loop().create_future()
            if self._promised is not None or self._landed is not None:
                self._head.set_result(self._promised)
        return self._head

    async def lead(self) -> Landing:
        """The flight's result, for its leader. Cancelling this wait leaves the flight to the others."""
        self.waiting += 1
        try:
            return await asyncio.shield(self.landing)
        except asyncio.CancelledError:
            await self._leave()
            raise
        finally:
            self.waiting -= 1

    async def wait(self, serves: Callable[[Entry], bool]) -> Landing | None:
        """The flight's result, for one waiting request; None as soon as it can't be used: if `serves` rejects the
        response head, or if waiting is over."""
        self.waiting += 1
        try:
            preview = await asyncio.shield(self._head_of_response())
            if preview is None:
                return self._landed
            if self._preview is None:
                self._preview = preview()
            return await asyncio.shield(self.landing) if serves(self._preview) else None
        finally:
            self.waiting -= 1

    @property
    def vary(self) -> Names:
        """The fields on which its response varies, if they are known before it arrives."""
        return self._preview.vary if self._preview is not None else ()

    def promise(self, preview: Preview) -> None:
        """The response head has arrived, and the response may be stored. `preview` makes the entry, without its
        body."""
        if self._promised is None:
            self._promised = preview
            if self._head is not None and not self._head.done():
                self._head.set_result(preview)

    def release(self) -> None:
        """Release all waiting requests: the response is for its client only."""
        if not self._head_of_response().done():
            self._head_of_response().set_result(None)

    async def _leave(self) -> None:
        self.abandoned = True
        if isinstance(self._landed, NotShareable):
            await self._landed.fetched.body.aclose()

    async def land(self, landing: Landing) -> None:
        """Wake all. A response for its client only is closed if that client has disconnected."""
        self._landed = landing
        if self._landing is not None:
            self._landing.set_result(landing)
        if self._head is not None and not self._head.done():
            self._head.set_result(None)
        if self.abandoned and isinstance(landing, NotShareable):
            await landing.fetched.body.aclose()


class Marks(OrderedDict[int, float]):
    """Keys with something to remember until an instant, such as *uncacheable*; at most `limit`, the oldest go first. Of
    a key its hash is kept, as it may have 32 KiB: two keys in 2^64 share one. Those that have expired go as others are
    looked for, so that it is soon empty again: then nothing need be looked for at all."""

    def __init__(self, limit: int = 10_000) -> None:
        super().__init__()
        self._limit = limit

    def put(self, key: str, until: float) -> None:
        hashed = hash(key)
        self[hashed] = until
        self.move_to_end(hashed)
        if len(self) > self._limit:
            self.popitem(last=False)

    def active(self, key: str, now: float) -> bool:
        for _ in range(_LOOKED):
            oldest = next(iter(self), None)
            if oldest is None or now < self[oldest]:
                break
            del self[oldest]
        return now < self.get(hash(key), -math.inf)
