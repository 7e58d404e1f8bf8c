"""How a part is fetched from its upstream: retried, hedged with a second host, or batched with other elements of a
list.

Hedging as in "The Tail at Scale" (Dean and Barroso, 2013): a second request, to another host, only if the first has not
been answered after a delay, and for a small share of requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace

from msgspec import structs
from pydantic import JsonValue

from gateway.aggregates.merge import WrongType, decoded
from gateway.config.part_values import as_text
from gateway.errors import UpstreamError, UpstreamMalformed
from gateway.http.headers import DIGESTS, Headers, without
from gateway.http.json_text import TooDeep, exactly, text_of
from gateway.routing.upstream_request import UpstreamOrigin
from gateway.upstreams.bulkhead import RetryBudget
from gateway.upstreams.response import Fetched, WholeBody

HEDGES = 0.05
"""The share of a part's requests that may be hedged."""
REPEATS = 0.1
"""The share of a part's requests that may be retried."""
GATHERING = 0.002
"""Seconds for which a batch waits for those elements that others may be fetching already."""
_OF_THE_BODY = (b"content-length", b"content-encoding", b"content-type", b"etag", b"transfer-encoding", *DIGESTS)


@dataclass(frozen=True)
class Persistence:
    """How often a part is retried, and after how many seconds it is hedged; both within budgets."""

    retries: int = 0
    hedge: float | None = None
    hedges: RetryBudget = field(default_factory=lambda: RetryBudget(HEDGES))
    repeats: RetryBudget = field(default_factory=lambda: RetryBudget(REPEATS))


@dataclass(frozen=True)
class PersistentOrigin:
    """An upstream's target, requested with retries and hedges."""

    origin: UpstreamOrigin
    persistence: Persistence

    @property
    def name(self) -> str:
        return self.origin.name

    @property
    def deadline(self) -> float:
        return self.origin.deadline

    def refusal(self) -> None:
        """None: an upstream that refuses may be tried again shortly after."""

    async def fetch(self, method: str, headers: Headers) -> Fetched:
        """Raises UpstreamError."""
        persistence = self.persistence
        persistence.repeats.asked()
        for left in range(persistence.retries, -1, -1):
            try:
                fetched = await self._hedged(method, headers)
            except UpstreamError:
                if not left or not persistence.repeats.take():
                    raise
                continue
            if fetched.status < 500 or not left or not persistence.repeats.take():
                return fetched
            await fetched.body.aclose()
        raise AssertionError

    async def _hedged(self, method: str, headers: Headers) -> Fetched:
        persistence = self.persistence
        if persistence.hedge is None:
            return await self.origin.fetch(method, headers)
        persistence.hedges.asked()
        patience = replace(self.origin.patience, apart=set())
        origin = structs.replace(self.origin, patience=patience)
        tasks = [asyncio.ensure_future(origin.fetch(method, headers))]
        winner: asyncio.Task[Fetched] | None = None
        try:
            done, _ = await asyncio.wait(tasks, timeout=persistence.hedge)
            if not done and persistence.hedges.take():
                tasks.append(asyncio.ensure_future(origin.fetch(method, headers)))
            winner = await _first_good(tasks)
            return winner.result()
        finally:
            await _end([task for task in tasks if task is not winner])


async def _first_good(tasks: list[asyncio.Task[Fetched]]) -> asyncio.Task[Fetched]:
    """The first task with a good response; else the last one to end."""
    pending = set(tasks)
    while True:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if not pending or (task.exception() is None and task.result().status < 500):
                return task


async def _end(tasks: list[asyncio.Task[Fetched]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled() and task.exception() is None:
            await task.result().body.aclose()


Ask = Callable[[str], Awaitable[Fetched]]


class Batch:
    """Fetches for several elements, sent as one request if the upstream supports batches.

    `send` fetches elements by their IDs, joined by commas. It is called when all of `expected` elements need a fetch,
    or shortly after the first. Each element gets its share, as from a request of its own.
    """

    def __init__(self, name: str, send: Ask, key: str, limit: int, expected: int) -> None:
        self._name = name
        self._send = send
        self._key = key
        self._limit = limit
        self._expected = expected
        self._waiting: dict[str, asyncio.Future[Fetched]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def fetch(self, item: str) -> Fetched:
        """Raises UpstreamError."""
        loop = asyncio.get_running_loop()
        share = self._waiting.get(item)
        if share is None:
            share = self._waiting[item] = loop.create_future()
        if len(self._waiting) >= self._expected:
            self._go()
        elif self._timer is None:
            self._timer = loop.call_later(GATHERING, self._go)
        return await asyncio.shield(share)

    def _go(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        waiting, self._waiting = self._waiting, {}
        if waiting:
            task = asyncio.ensure_future(self._fetch(waiting))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _fetch(self, waiting: Mapping[str, asyncio.Future[Fetched]]) -> None:
        try:
            shares = await self._shares(tuple(waiting))
        except Exception as error:
            # Each element raises it; a future whose element has gone must not warn of it.
            for share in waiting.values():
                share.set_exception(error)
                share.exception()
            return
        for item, share in waiting.items():
            share.set_result(shares[item])

    async def _shares(self, items: tuple[str, ...]) -> dict[str, Fetched]:
        fetched = await self._send(",".join(items))
        body = await fetched.body.whole(self._limit)
        await fetched.body.aclose()
        if body is None:
            raise UpstreamMalformed(self._name, "the batch response is too large")
        if not 200 <= fetched.status < 300:
            return {item: _share(fetched.status, fetched.headers, body) for item in items}
        try:
            found = _by_key(self._name, exactly(*decoded(body, fetched.headers, "json", self._limit)), self._key)
        except (WrongType, TooDeep) as error:
            raise UpstreamMalformed(self._name, f"a batch of which {error}") from None
        return {
            item: _share(200, fetched.headers, text_of(found[item]))
            if item in found
            else _share(404, fetched.headers, b"null")
            for item in items
        }


def _share(status: int, headers: Headers, body: bytes) -> Fetched:
    own = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    return Fetched(status, [*without(headers, *_OF_THE_BODY), *own], WholeBody(body))


def _by_key(name: str, found: JsonValue, key: str) -> dict[str, JsonValue]:
    """A batch's elements by the text of their ids, as `for_each` has them."""
    if found is None:
        return {}
    if isinstance(found, dict):
        return found
    if isinstance(found, list):
        ids = ((as_text(each.get(key)), each) for each in found if isinstance(each, dict))
        return {text: each for text, each in ids if text is not None}
    raise UpstreamMalformed(name, "the batch response is neither a list nor an object")


@dataclass(frozen=True)
class ElementOrigin:
    """One element of a list, fetched along with the others."""

    batch: Batch
    item: str
    name: str
    deadline: float

    def refusal(self) -> None:
        """None: the batch is sent."""

    async def fetch(self, method: str, headers: Headers) -> Fetched:
        return await self.batch.fetch(self.item)
