"""The memory tier: entries bounded in bytes, evicted by S3-FIFO, and the indices that find their variants.

After Yang, Zhang, Qiu, Yue and Rashmi, *FIFO queues are all you need for cache eviction* (SOSP 2023). A new entry
queues in a small queue, a tenth of the bytes. Used at least twice there, it moves to the main queue; otherwise it is
evicted and only its fingerprint (a ghost) stays for a while: an entry that comes back in that time enters the main
queue at once. At the head of the main queue an entry is evicted if it was not used since, else it queues again. So a
scan passes through the small queue only, and a hit writes one small number, where LRU relinks a list.

Beyond the paper, because one event loop waits for all of it:

- An eviction looks at `_PATIENCE` entries at most, then evicts the next one: O(1), not only amortised.
- Entries lie in shards of a few thousand. One dict of a million entries takes 90 to 245 ms to grow or to clean up
  (measured, CPython 3.11), a shard less than 1 ms; that costs a look-up 0.04 µs.
- No object that the garbage collector follows is kept for an entry, so a full collection doesn't walk the store.
- Ghosts are eight bytes each in one array that never grows.

Keys, headers, bodies and the store's own nodes, dicts and queues are counted: a response of an 8-byte body with two
headers takes about 1 KB. All calls are synchronous; each worker has one store, used from its event loop alone.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, islice
from typing import Generic, TypeVar

import msgspec

from gateway.policy.entry import Entry
from gateway.policy.vary import VaryIndex

V = TypeVar("V")

ENTRY_BYTES = 144
"""Overhead of an entry: its node and size, and its places in a shard and a queue."""

_BYTES = 33 + 7  # an object's header, and half an allocator step
_TEXT = 49 + 7
_NAMED = _TEXT + 8  # a text and its slot in a tuple
_FIELD = 2 * _BYTES + 56 + 8  # a name and a value, their tuple and its slot
_ENTRY = 320 + _NAMED + _TEXT + _BYTES  # the two structs, floats and tuples; the route, the key and the body
GONE = -1
MOST_USES = 3  # two bits, as in the paper: more remembers for longer, to no use
_SMALL_SHARE = 10  # the small queue has one part in ten, as in the paper
_PATIENCE = 64
_SHARD_BYTES = 4 * 2**20  # of small entries: some 6,000
_MOST_SHARDS = 4096
_GHOST_SHARE = 1024  # a ghost for each so many bytes of capacity: 0.8 % of it
_MOST_GHOSTS = 2**22  # 32 MiB, for a capacity of 4 GiB and more


class Node(msgspec.Struct, Generic[V], gc=False):
    """An entry in its queue. Once removed its `value` is None, and it leaves when it reaches the queue's head.

    A caller that keeps a node need not look its key up again as long as its `turn` is the same: that changes with the
    value, and is `GONE` for ever once the node has left. Such a use is counted as in `get`, up to `MOST_USES`.
    """

    key: str
    value: V | None
    size: int
    main: bool
    uses: int = 0
    turn: int = 0


class S3Fifo(Generic[V]):
    """Values by key, each with a size in bytes from the caller. `capacity` (bytes) determines shards and ghosts.

    It does not evict by itself: the owner of the bound calls `evict` until `bytes` is within it.
    """

    __slots__ = ("_ghosts", "_main", "_mask", "_shards", "_small", "_small_bytes", "bytes", "entries", "overhead")

    def __init__(self, capacity: int) -> None:
        self._shards: list[dict[str, Node[V]]] = [{} for _ in range(_shards(capacity))]
        self._mask = len(self._shards) - 1
        self._ghosts = Ghosts(min(capacity // _GHOST_SHARE, _MOST_GHOSTS))
        self.overhead = self._ghosts.bytes
        """The bytes that are taken however little is stored."""
        self.clear()

    def __len__(self) -> int:
        return self.entries

    def get(self, key: str) -> V | None:
        node = self._shards[hash(key) & self._mask].get(key)
        if node is None:
            return None
        if node.uses < MOST_USES:
            node.uses += 1
        return node.value

    def node(self, key: str) -> Node[V] | None:
        """The node of a key, which may have no value; not counted as a use."""
        return self._shards[hash(key) & self._mask].get(key)

    def put(self, key: str, value: V, size: int) -> None:
        """Keep `value`, of `size` bytes beside `ENTRY_BYTES`, in place of what was kept under its key."""
        size += ENTRY_BYTES
        hashed = hash(key)
        shard = self._shards[hashed & self._mask]
        node = shard.get(key)
        if node is not None:
            self.entries += node.value is None
            del shard[key]  # for the older value's text of the key not to be held beside the newer's
            shard[key], node.key = node, key
            self._set(node, value, size)
            return
        ghosts = self._ghosts
        main = ghosts.time > 0 and ghosts.discard(hashed, len(self._small) + len(self._main))
        shard[key] = node = Node(key, value, size, main)
        if main:
            self._main.append(node)
        else:
            self._small.append(node)
            self._small_bytes += size
        self.bytes += size
        self.entries += 1

    def renew(self, node: Node[V], value: V, size: int) -> None:
        """`put` in a node that has not left, without a look-up; `value` must hold the node's own text of the key."""
        self.entries += node.value is None
        self._set(node, value, size + ENTRY_BYTES)

    def remove(self, key: str) -> None:
        """Let a value go. Its node stays in its queue, counted, until its turn comes or its key is put again."""
        node = self._shards[hash(key) & self._mask].get(key)
        if node is not None and node.value is not None:
            node.uses = 0
            self._set(node, None, ENTRY_BYTES + _TEXT + len(key))
            self.entries -= 1

    def clear(self) -> None:
        for shard in self._shards:
            for node in shard.values():
                node.value, node.turn = None, GONE
            shard.clear()
        self._small: deque[Node[V]] = deque()
        self._main: deque[Node[V]] = deque()
        self._ghosts.clear()
        self.bytes = self._small_bytes = self.entries = 0

    def hottest(self, number: int, looked: int) -> list[V]:
        """Up to `number` values, the most used first, of at most `looked` nodes: the main queue's, newest first, then
        those of the small queue."""
        nodes = islice(chain(reversed(self._main), reversed(self._small)), looked)
        used = [node for node in nodes if node.value is not None]
        used.sort(key=lambda node: -node.uses)
        return [node.value for node in used[:number] if node.value is not None]

    def evict(self) -> bool:
        """Evict the least useful node, and return whether it had a value. There must be one (`bytes` > 0)."""
        crowded = self._small_bytes * _SMALL_SHARE >= self.bytes
        node = (self._next_of_small() if crowded else None) or self._next_of_main() or self._small.popleft()
        if not node.main:
            self._ghosts.add(hash(node.key))
        del self._shards[hash(node.key) & self._mask][node.key]
        self._count(node, -node.size)
        valued = node.value is not None
        self.entries -= valued
        node.value, node.turn = None, GONE
        return valued

    def _next_of_small(self) -> Node[V] | None:
        """The head of the small queue, after promoted entries have moved on; None if all did, or many."""
        small = self._small
        for _ in range(min(_PATIENCE, len(small))):
            node = small.popleft()
            if node.uses < 2:
                return node
            self._small_bytes -= node.size
            node.main, node.uses = True, 0
            self._main.append(node)
        return None

    def _next_of_main(self) -> Node[V] | None:
        """The head of the main queue, after used entries have queued again; None if it is empty."""
        main = self._main
        for _ in range(min(_PATIENCE, len(main))):
            node = main.popleft()
            if not node.uses:
                return node
            node.uses -= 1
            main.append(node)
        return main.popleft() if main else None

    def _set(self, node: Node[V], value: V | None, size: int) -> None:
        self._count(node, size - node.size)
        node.value, node.size = value, size
        node.turn += 1

    def _count(self, node: Node[V], size: int) -> None:
        self.bytes += size
        if not node.main:
            self._small_bytes += size


class Ghosts:
    """Fingerprints of what left the small queue, newest kept: a table of pairs of slots, each 32 bits of a hash and 32
    of its time, counted in ghosts. Two that meet in one pair push the older out, so it forgets some a little early
    (section 4.3 of the paper does the same); it may mistake one key for another once in four thousand million."""

    def __init__(self, slots: int) -> None:
        self._mask = max(2, _power_of_two(slots)) - 1
        self.bytes = 8 * (self._mask + 1)
        self.clear()

    def clear(self) -> None:
        self._table = array("Q", (0,)) * (self._mask + 1)
        self.time = 0
        """How many there were, in turns of 32 bits; 0 before the first."""

    def add(self, hashed: int) -> None:
        self.time = (self.time + 1) & 0xFFFFFFFF or 1  # no slot in use is 0
        first = hashed & self._mask
        slot = first if self._age(first) >= self._age(first ^ 1) else first ^ 1
        self._table[slot] = hashed & 0xFFFFFFFF_00000000 | self.time

    def discard(self, hashed: int, newest: int) -> bool:
        """Whether `hashed` is among the `newest` ghosts (a number); it is none from then on."""
        first, fingerprint = hashed & self._mask, hashed & 0xFFFFFFFF_00000000
        for slot in (first, first ^ 1):
            ghost = self._table[slot]
            if ghost and ghost & ~0xFFFFFFFF == fingerprint:
                self._table[slot] = 0
                return (self.time - ghost) & 0xFFFFFFFF < newest
        return False

    def _age(self, slot: int) -> int:
        ghost = self._table[slot]
        return (self.time - ghost) & 0xFFFFFFFF if ghost else 2**32


def _shards(capacity: int) -> int:
    return min(_power_of_two(capacity // _SHARD_BYTES), _MOST_SHARDS)


def _power_of_two(number: int) -> int:
    """The greatest power of two that is at most `number`, and at least 1."""
    return 1 << max(0, number.bit_length() - 1)


_INDEX_SIZE = 200  # a VaryIndex, its key, and its tuples of names
_NAME_SIZE = 64
_INDEX_SHARE = 16
_LOOKED = 20_000


@dataclass(frozen=True, slots=True)
class MemoryStatistics:
    entries: int
    bytes: int
    evictions: int


class Memory:
    """`capacity` is in bytes; 0 stores nothing. A response larger than an eighth of it is not kept.

    One part in 120 of it is for remembering what was let go.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._responses: S3Fifo[Entry] = S3Fifo(capacity)
        self._indices: S3Fifo[VaryIndex] = S3Fifo(capacity // _INDEX_SHARE)
        self._room = capacity - self._responses.overhead - self._indices.overhead
        self._evictions = 0
        self.get: Callable[[str], Entry | None] = self._responses.get  # bound once: a hit calls nothing between
        """The response stored under a variant's key."""
        self.node: Callable[[str], Node[Entry] | None] = self._responses.node
        """The node of a response's key: while its turn is the same, its response is."""
        self._unindexed: Node[VaryIndex] = Node("", None, 0, main=False)

    def index(self, primary: str) -> VaryIndex | None:
        """The variants of a primary key; None where no response to it varies, as is so of most."""
        return self._indices.get(primary) if self._indices.entries else None

    def selector(self, primary: str) -> Node[VaryIndex]:
        """A node whose turn changes with whatever could change which response of a primary key a request selects, but
        for the responses' own nodes. All keys without an index share one, as most have none and an index comes once."""
        node = self._indices.node(primary)
        return self._unindexed if node is None else node

    def __repr__(self) -> str:
        s = self.statistics
        return f"<Memory {s.entries} entries, {s.bytes} of {self.capacity} bytes, {s.evictions} evicted>"

    def __len__(self) -> int:
        return len(self._responses)

    @property
    def statistics(self) -> MemoryStatistics:
        """What is stored now, and how many responses were evicted since the start."""
        return MemoryStatistics(len(self._responses), self._responses.bytes + self._indices.bytes, self._evictions)

    def hottest(self, number: int) -> list[str]:
        """The keys of up to `number` responses, the most used first, of 20,000 entries. Parts and forms of responses,
        which exist only in memory, are not included."""
        found = self._responses.hottest(_LOOKED, _LOOKED)
        return [each.key for each in found if each.status != 206 and each.key.startswith(each.primary)][:number]

    def put(self, stored: Entry, size: int | None = None) -> VaryIndex | None:
        """Store a response, and return the variants of its primary key; `size` is its `size_of`, if known."""
        size = size_of(stored) if size is None else size
        if size > self.capacity // 8:
            self._responses.remove(stored.key)
        else:
            self._responses.put(stored.key, stored, size)
        index = self._indices.node(stored.primary) if self._indices.entries else None
        if index is not None:
            index.turn += 1  # it may now be the one of them that a request selects
        if self._responses.bytes + self._indices.bytes > self._room:
            self._shrink()
        return None if index is None else index.value

    def renew(self, node: Node[Entry], stored: Entry, size: int) -> None:
        """`put` into the key's existing node, if its primary key has no index; `size` is at most an eighth."""
        self._responses.renew(node, stored, size)
        if self._responses.bytes + self._indices.bytes > self._room:
            self._shrink()

    def put_index(self, index: VaryIndex) -> None:
        if self._indices.node(index.primary) is None:
            self._unindexed.turn += 1
        self._indices.put(index.primary, index, _index_size(index))
        self._shrink()

    def remove(self, key: str) -> None:
        self._responses.remove(key)

    def clear(self) -> None:
        self._responses.clear()
        self._indices.clear()

    def _shrink(self) -> None:
        responses, indices = self._responses, self._indices
        while responses.bytes + indices.bytes > self._room and (responses.bytes or indices.bytes):
            # Indices are small and help every variant: they go only once there are as many of them as of entries.
            if responses.bytes and (len(indices) <= len(responses) or not indices.bytes):
                self._evictions += responses.evict()
            else:
                indices.evict()


def size_of(stored: Entry) -> int:
    """The bytes of a stored response: its parts as CPython 3.11 to 3.14 (64 bit) sizes them.

    What the store adds is `ENTRY_BYTES`. Measured against tracemalloc for bodies from 0 B
    to 1 MiB; the test holds it to within 15 %.
    """
    headers, texts = stored.headers, stored.tags + stored.vary + stored.names
    size = _ENTRY + len(stored.route) + len(stored.key) + len(stored.body)
    for name, value in headers:
        size += _FIELD + len(name) + len(value)
    if texts:
        size += _NAMED * len(texts) + sum(map(len, texts))
    return size if stored.primary == stored.key else size + _TEXT + len(stored.primary)


def _index_size(index: VaryIndex) -> int:
    return _INDEX_SIZE + len(index.primary) + sum(_NAME_SIZE + len(name) for names in index.names for name in names)
