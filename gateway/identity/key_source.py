"""Keeps the keys of one issuer: fetched in the background, shared through Redis, kept through the issuer's outage.

Decides when they are fetched: every `refresh` seconds, and for a token of an unknown key at most once per
`unknown_every` seconds in the whole fleet, whatever names tokens have. A lease in the shared store says whose turn it
is; all others take the document that the holder stores. Without a store, each worker keeps that pace for itself.

A document in Redis stands under the name of the place that it is from (`shared_as`): keys of another issuer verify
nothing. It carries a seal by the fleet's identity key: write access to Redis is not enough to plant keys, unless that
key can be read there too (`redis_secret` keeps it out of Redis).
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress

import msgspec

from gateway.cache.shared_store import SharedStore
from gateway.clock import Clock
from gateway.errors import GatewayError
from gateway.identity.admission import Epoch
from gateway.identity.key_set import InvalidKeySet, KeySet, parse_key_set
from gateway.observability.log import ONCE, state
from gateway.policy.identity_key import IdentityKey

logger = logging.getLogger("gateway")
TICK = 1.0
"""Seconds between two looks at the age of the keys."""
WAIT = 2.0
"""Seconds that a token of an unknown key waits for a fetch that another worker makes, at most."""
LOOK = 0.05
FIRST = 5.0
"""Seconds that a start, and a token before there are keys, wait for the first fetch, at most."""
REFRESH, UNKNOWN = "refresh", "unknown"
LONGEST_DOCUMENT = 1024 * 1024
"""Bytes of a key set."""


class Stored(msgspec.Struct, frozen=True):
    """A document and when it was fetched (seconds since 1970)."""

    fetched: float
    document: bytes
    seal: str = ""


class KeySource:
    """The keys of the issuer `name`. `fetch` gets its document, and raises GatewayError or InvalidKeySet.

    `shared_as` is the document's name in the store, the same where it is from the same place; by default `name`.
    `refresh`, `stale` and `unknown_every` are in seconds. `version` changes with the keys: what was verified with
    others is to be verified again.
    """

    def __init__(
        self,
        name: str,
        fetch: Callable[[], Awaitable[bytes]],
        *,
        store: SharedStore,
        clock: Clock,
        seal: IdentityKey,
        shared_as: str | None = None,
        refresh: float = 300.0,
        stale: float = 86_400.0,
        unknown_every: float = 10.0,
    ) -> None:
        self.name = name
        self.version = 0
        self.epoch = Epoch()
        self.fetches = 0
        """Requests for the document, by this worker."""
        self.failure: str | None = None
        """Why the last one failed; None if it did not."""
        self._fetch = fetch
        self._store = store
        self._clock = clock
        self._seal = seal
        self._shared_as = shared_as or name
        self._refresh = refresh
        self._stale = stale
        self._unknown_every = unknown_every
        self._keys = KeySet()
        self._held: Stored | None = None
        self._tried = dict.fromkeys((REFRESH, UNKNOWN), float("-inf"))
        self._renewing: dict[str, asyncio.Task[None]] = {}
        self._running: asyncio.Task[None] | None = None
        self._begun = asyncio.Event()

    def __repr__(self) -> str:
        return f"<KeySource {self.name} keys={len(self._keys.keys)} version={self.version} failure={self.failure!r}>"

    @property
    def keys(self) -> KeySet | None:
        """The keys in force; None if none were ever fetched, or the last ones are older than `stale`."""
        return self._keys if self._clock.now() < self.until else None

    @property
    def until(self) -> float:
        """Until when `keys` are in force unless others are fetched, in seconds since 1970."""
        return -math.inf if self._held is None else self._held.fetched + self._stale

    @property
    def age(self) -> float | None:
        """Seconds since the keys were fetched."""
        return self._clock.now() - self._held.fetched if self._held is not None else None

    async def start(self) -> None:
        """Get the keys, and keep them fresh from now on. A failure is logged; tokens then get 503."""
        self.begin()
        await self.begun()

    def begin(self) -> None:
        """`start` without waiting for the first keys."""
        self._running = asyncio.ensure_future(self._run())

    async def begun(self) -> None:
        """Wait until the keys were fetched for the first time, or could not be; FIRST seconds at most."""
        if self._running is not None and not self._begun.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(FIRST):
                    await self._begun.wait()

    async def _run(self) -> None:
        while True:
            try:
                await self.tick()
            except Exception:  # whatever it is, the last keys stay in use, and the next fetch is made
                logger.exception("identity %s: the keys of the issuer can't be fetched", self.name)
            self._begun.set()
            await asyncio.sleep(TICK)

    async def tick(self) -> None:
        """Renew the keys if they are due: by what another worker has stored, also where it is not yet time to ask the
        issuer again."""
        if self._due:
            await self._take_stored()
        if self._due:
            await self._renewed(REFRESH)

    @property
    def _topic(self) -> str:
        return f"identity {self.name}"

    @property
    def _due(self) -> bool:
        age = self.age
        return age is None or age >= self._refresh

    async def look_for_unknown(self) -> None:
        """A token names a key that is unknown here: get the keys anew, unless that was tried for such a token less
        than `unknown_every` seconds ago, anywhere in the fleet."""
        await self._renewed(UNKNOWN)

    async def _renewed(self, why: str) -> None:
        """Requests that come while the keys are renewed wait for it together; one that is cancelled ends it for no
        other."""
        task = self._renewing.get(why)
        if task is None:
            if self._clock.now() - self._tried[why] < self._unknown_every:
                return
            self._tried[why] = self._clock.now()
            task = self._renewing[why] = asyncio.ensure_future(self._renew(why))
            task.add_done_callback(lambda _: self._renewing.pop(why, None))
        await asyncio.shield(task)

    async def _renew(self, why: str) -> None:
        if why == UNKNOWN:
            await self._take_stored()
        mine = f"{self._clock.now()!r} {secrets.token_hex(16)}".encode()
        holder = await self._store.take(f"jwks-{why}:{self._shared_as}", mine, self._unknown_every)
        if holder is None or holder == mine:  # without a store, each worker fetches for itself
            await self._fetch_document()
        else:
            await self._await_stored(_since(holder))

    async def _await_stored(self, since: float) -> None:
        """Take the document that another worker has fetched since then, or fetches now."""
        for _ in range(int(WAIT / LOOK)):
            if self._held is not None and self._held.fetched >= since:
                return
            await asyncio.sleep(LOOK)
            await self._take_stored()

    async def _take_stored(self) -> None:
        """Use the stored document if it is newer."""
        (record,) = await self._store.read([self._record])
        found = self._opened(record) if record is not None else None
        if found is not None and (self._held is None or found.fetched > self._held.fetched):
            self._use(found)

    async def _fetch_document(self) -> None:
        self.fetches += 1
        now = self._clock.now()
        try:
            document = await self._fetch()
            self._use(Stored(now, document))
        except (GatewayError, InvalidKeySet) as error:
            self._failed(str(error))
            return
        if self.failure is not None:
            logger.info("identity %s: the keys of the issuer are there again", self.name, extra=state(self._topic))
        self.failure = None
        await self._store.write([(self._record, self._sealed(Stored(now, document)), self._stale)])

    def _failed(self, reason: str) -> None:
        if self.failure != reason:
            kept = "the last ones stay in use" if self.keys is not None else "its tokens get 503"
            said = "identity %s: the keys of the issuer can't be fetched (%s): %s"
            logger.warning(said, self.name, reason, kept, extra=state(self._topic, reason))
        self.failure = reason

    def _use(self, stored: Stored) -> None:
        """Raises InvalidKeySet, and nothing has changed then."""
        if self._held is None or self._held.document != stored.document:
            keys = parse_key_set(stored.document)
            for reason in keys.ignored:
                logger.warning("identity %s: a key of the issuer is not used: %s", self.name, reason, extra=ONCE)
            self._keys = keys
            self.version += 1
            self.epoch.version += 1
        self._held = stored

    # --- the record in the shared store ---------------------------------------------------------------------

    @property
    def _record(self) -> str:
        return f"jwks:{self._shared_as}"

    def _sealed(self, stored: Stored) -> bytes:
        return msgspec.msgpack.encode(msgspec.structs.replace(stored, seal=self._seal_of(stored)))

    def _seal_of(self, stored: Stored) -> str:
        return self._seal.digest_bytes(f"jwks {self.name} {self._shared_as} {stored.fetched!r}", stored.document)

    def _opened(self, record: bytes) -> Stored | None:
        """The document of a record that one of the fleet has written; None for any other."""
        try:
            found = msgspec.msgpack.decode(record, type=Stored)
        except msgspec.DecodeError:
            return None
        now = self._clock.now()
        if not 0 <= now - found.fetched + TICK < self._stale or not hmac.compare_digest(
            found.seal.encode(), self._seal_of(found).encode()
        ):
            return None
        try:
            parse_key_set(found.document)
        except InvalidKeySet:
            return None
        return found

    async def aclose(self) -> None:
        for task in (self._running, *self._renewing.values()):
            while task is not None and not task.done():
                task.cancel()
                await asyncio.wait((task,), timeout=0.05)


def _since(holder: bytes) -> float:
    """When the holder of a lease began, as it says; never, for one that says nothing."""
    try:
        return float(holder.split(b" ")[0])
    except ValueError:
        return float("inf")
