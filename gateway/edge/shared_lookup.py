"""Reads the shared tier, before the app, for entries that are not in memory.

Decides whether the shared tier may have the response for a known request line, which keys to read, and which of the
records may be used. The request waits meanwhile (`PendingLookup`); the connection serves it with the result, or else
the app does, without a second read. It must not know how a response is written (`hits`) or how Redis is accessed.

A lookup ends with a callback of the round trip that it shares with others of its event loop iteration; a task for each
cost more than the rest of such a hit. A record that is the same as last time except for its body, byte for byte, and
whose checksum or HMAC is valid, is not decoded again, which takes 11 µs for 1 KiB (measured).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from msgspec import structs

from gateway.cache.store import entry_name, index_name
from gateway.policy.entry import Entry, decode_stored, encode, is_sealed, tail_of
from gateway.policy.epochs import PurgeState, tag_name
from gateway.policy.vary import VaryIndex, selected_keys

if TYPE_CHECKING:
    from gateway.cache.engine import Engine
    from gateway.cache.shared_store import Read
    from gateway.edge.entries import HeaderBlock, KnownTarget
    from gateway.edge.hits import Edge
    from gateway.http.request_parser import Request


class _Known:
    """A record that was read: the bytes before and behind its body, and the response without it."""

    __slots__ = ("front", "length", "rear", "stored")

    def __init__(self, data: bytes, rear: bytes, stored: Entry) -> None:
        self.length = len(data)
        self.front = data[: len(data) - len(rear) - len(stored.body)]
        self.rear = rear
        self.stored = structs.replace(stored, body=b"")

    def is_like(self, data: bytes) -> bool:
        """Whether `data` is the same except for its body, which has the same length."""
        return len(data) == self.length and data.startswith(self.front) and data.endswith(self.rear)


LONGEST_KNOWN = 4096
"""Bytes of a record beside its body, and of an index, that are remembered to recognise it."""


class Records:
    """Reads records sealed with `secret`, and remembers `most` of them, without their bodies."""

    def __init__(self, secret: bytes, *, most: int) -> None:
        self._secret = secret
        self._most = most
        self._known: dict[str, _Known] = {}

    def __len__(self) -> int:
        return len(self._known)

    def stored(self, data: bytes, key: str) -> Entry | None:
        """The result of `decode_stored`: the same headers object as long as the response is the same."""
        known = self._known.get(key)
        if known is not None and known.is_like(data) and is_sealed(data, self._secret):
            return structs.replace(known.stored, body=data[len(known.front) : known.length - len(known.rear)])
        stored = decode_stored(data, key, self._secret)
        if stored is not None:
            self._remember(data, key, stored)
        return stored

    def _remember(self, data: bytes, key: str, stored: Entry) -> None:
        rear = tail_of(stored)
        if len(data) - len(stored.body) > LONGEST_KNOWN:
            return
        if encode(stored, self._secret) != data or not data.endswith(stored.body + rear):
            return  # not as we write it: where its body stands is not known
        if key not in self._known and len(self._known) >= self._most:
            del self._known[next(iter(self._known))]
        self._known[key] = _Known(data, rear, stored)


@dataclass(frozen=True, slots=True)
class SharedHit:
    """A stored response that was not in memory; `seconds` is the duration of the lookup."""

    stored: Entry
    tier: str
    seconds: float


class Waiting(Protocol):
    """A connection whose request waits for the shared tier."""

    transport: asyncio.Transport

    def looked(self, look: PendingLookup) -> None:
        """The result of the lookup is there, or known to be missing: `look.shared_hit`."""


class PendingLookup:
    """A request that waits for the shared tier. `shared_hit` is None until the result is there, and if there is none.
    `sure` is False if the lookup failed: then the app reads itself.

    `head` is the request's; `request` its parsed form, if it was parsed: one that repeats is not.
    """

    __slots__ = (
        *("_began", "_found", "_keys", "_read", "_waiting", "block", "edge", "head", "shared_hit"),
        *("request", "request_id", "known_target", "sure"),
    )
    written = 0
    """`EarlyAnswer.written`."""

    def __init__(
        self,
        edge: Edge,
        known_target: KnownTarget,
        block: HeaderBlock,
        request_id: bytes,
        head: bytes,
        request: Request | None = None,
    ) -> None:
        self.edge = edge
        self.known_target = known_target
        self.block = block
        self.request_id = request_id
        self.head = head
        self.request = request
        self.shared_hit: SharedHit | None = None
        self.sure = True
        self._keys: list[str] = []
        self._found: Entry | None = None
        self._read: Read | None = None

    def begin(self, waiting: Waiting) -> None:
        self._waiting = waiting
        self._began = time.perf_counter()
        shared_finder = self.edge.shared_finder
        self._keys, names = shared_finder.places(self.known_target, self.block)
        self._read = shared_finder.shared.ask(names, self._came)

    def cancel(self) -> None:
        """The lookup is cancelled."""
        if self._read is not None:
            self._read.cancel()

    def make_last(self) -> bool:
        """Whether the connection can still announce that it ends with the response: nothing of it was sent yet."""
        return True

    def _came(self, data: list[bytes | None]) -> None:
        try:
            self._take(data)
        except BaseException:
            self._waiting.transport.close()
            raise

    def _take(self, data: list[bytes | None]) -> None:
        shared_finder, index = self.edge.shared_finder, data[0]
        self._found = shared_finder.newest(data[1:], self._keys, self.known_target)
        more = [] if index is None else shared_finder.more(index, self.known_target, self.block, self._keys)
        if more is None:
            self._found, self.sure = None, False
        if more:
            self._keys = more
            self._read = shared_finder.shared.ask([entry_name(key) for key in more], self._take_more)
        else:
            self._end()

    def _take_more(self, data: list[bytes | None]) -> None:
        try:
            found = self.edge.shared_finder.newest(data, self._keys, self.known_target)
            if self._found is None or (found is not None and found.born > self._found.born):
                self._found = found
            self._end()
        except BaseException:
            self._waiting.transport.close()
            raise

    def _end(self) -> None:
        if self._found is not None:
            stored, tier = self.edge.shared_finder.kept(self._found, self.known_target, self.block)
            self.shared_hit = SharedHit(stored, tier, time.perf_counter() - self._began)
        self._waiting.looked(self)


class SharedFinder:
    """An edge's access to the shared tier. `in_memory` finds what a request selects in memory; at most `most` results
    are remembered."""

    def __init__(
        self, engine: Engine, in_memory: Callable[[KnownTarget, HeaderBlock], Entry | None], *, most: int
    ) -> None:
        self.shared = engine.shared
        self._tiers = engine.tiers
        self._memory = engine.memory
        self._epochs = engine.tiers.purges.epochs
        self._in_memory = in_memory
        self._records = Records(engine.tiers.secret, most=most)
        self._names: dict[str, list[str]] = {}
        self._indices: dict[str, tuple[bytes, VaryIndex]] = {}
        self._most = most

    def may_have(self, known_target: KnownTarget, block: HeaderBlock) -> bool:
        """Whether the shared tier may have what memory lacks: then it is read here, before the app."""
        if known_target.known.route.made or block.bases.get(known_target.known) is None or not self.shared.available:
            return False
        seen = selected_keys(self._index(known_target.primary), "", block.vary) is not None
        return seen and self._in_memory(known_target, block) is None

    # --- where it may lie ----------------------------------------------------------------------------------

    def places(self, known_target: KnownTarget, block: HeaderBlock) -> tuple[list[str], list[str]]:
        """The keys under which a request's response may be stored, as far as is known here; and the names to read:
        the index, and those."""
        base = known_target.stem + (block.bases[known_target.known] or "")
        index = self._index(known_target.primary)
        if index is not None:
            keys = selected_keys(index, base, block.vary) or [base]
            return keys, [index_name(known_target.primary), *map(entry_name, keys)]
        names = self._names.get(base)
        if names is None:
            if len(self._names) >= self._most:
                del self._names[next(iter(self._names))]
            names = self._names[base] = [index_name(known_target.primary), entry_name(base)]
        return [base], names

    def more(self, data: bytes, known_target: KnownTarget, block: HeaderBlock, asked: list[str]) -> list[str] | None:
        """The additional keys from the shared tier's index, which is remembered; None if they can't be computed
        here."""
        primary = known_target.primary
        known = self._indices.get(primary)
        if known is not None and known[0] == data:
            return []
        index = self._tiers.read_index(data, primary, self._memory.index(primary))
        if index is None:
            return []
        if known is None and len(self._indices) >= self._most:
            del self._indices[next(iter(self._indices))]
        if len(data) <= LONGEST_KNOWN:
            self._indices[primary] = (data, index)
        else:
            self._indices.pop(primary, None)
        keys = selected_keys(index, known_target.stem + (block.bases[known_target.known] or ""), block.vary)
        return None if keys is None else [key for key in keys if key not in asked]

    def _index(self, primary: str) -> VaryIndex | None:
        index = self._memory.index(primary)
        if index is None and (known := self._indices.get(primary)) is not None:
            return known[1]
        return index

    # --- what came of it -----------------------------------------------------------------------------------

    def newest(self, data: Iterable[bytes | None], keys: list[str], known_target: KnownTarget) -> Entry | None:
        """The newest response among what was read, that no purge has made void and its route would have stored."""
        found: Entry | None = None
        largest = known_target.known.route.max_body
        for item, key in zip(data, keys, strict=True):
            stored = None if item is None else self._records.stored(item, key)
            if stored is None:
                self._tiers.unreadable += item is not None
            elif len(stored.body) > largest:
                continue
            elif (found is None or stored.born > found.born) and not self._void(stored, known_target):
                found = stored
        return found

    def _void(self, stored: Entry, known_target: KnownTarget) -> bool:
        epochs = self._epochs
        if epochs.untouched(stored.stamp):
            return False
        names = (*known_target.names, *map(tag_name, stored.tags), *stored.names)
        return epochs.judge(stored.stamp, stored.started, names)[0] is PurgeState.VOID

    def kept(self, stored: Entry, known_target: KnownTarget, block: HeaderBlock) -> tuple[Entry, str]:
        """`stored` taken into memory, as the app's own look takes it; or what was fetched meanwhile, if that is newer.
        And the tier it is from."""
        if not self._memory.capacity:
            return stored, "redis"
        landed = self._in_memory(known_target, block)
        if landed is not None and landed.born >= stored.born:
            return landed, "memory"
        self._memory.put(stored)
        return stored, "redis"
