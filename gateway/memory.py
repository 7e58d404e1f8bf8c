"""The tier in the process: stored responses, and the indices that find their variants, bounded in bytes.

Bytes are counted for keys, headers and bodies (`record.size_of`) and for the store's own nodes, dicts and queues
(`s3fifo.ENTRY_BYTES`): a response of an 8-byte body with two headers takes about 1 KB. What is worth least goes first
(`s3fifo`). All calls are synchronous and O(1), at a million entries as at a thousand; there is one store a worker, used
from its event loop alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .record import Stored, size_of
from .s3fifo import Node, S3Fifo
from .vary import VaryIndex

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
        self._responses: S3Fifo[Stored] = S3Fifo(capacity)
        self._indices: S3Fifo[VaryIndex] = S3Fifo(capacity // _INDEX_SHARE)
        self._room = capacity - self._responses.overhead - self._indices.overhead
        self._evictions = 0
        self.get: Callable[[str], Stored | None] = self._responses.get  # bound once: a hit calls nothing between
        """The response stored under a variant's key."""
        self.index: Callable[[str], VaryIndex | None] = self._indices.get
        """What is known of a primary key's variants."""
        self.node: Callable[[str], Node[Stored] | None] = self._responses.node
        """The node of a response's key: while its turn is the same, the same response lies there."""
        self._unindexed: Node[VaryIndex] = Node("", None, 0, main=False)

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
        """The keys of up to `number` responses, the most used first, as far as 20,000 entries tell. Parts and forms of
        responses, which lie in memory alone, are not among them."""
        found = self._responses.hottest(_LOOKED, _LOOKED)
        return [each.key for each in found if each.status != 206 and each.key.startswith(each.primary)][:number]

    def put(self, stored: Stored, size: int | None = None) -> None:
        """Keep a response; `size` is what `record.size_of` says of it, where that is known already."""
        size = size_of(stored) if size is None else size
        if size > self.capacity // 8:
            self._responses.remove(stored.key)
        else:
            self._responses.put(stored.key, stored, size)
        if (index := self._indices.node(stored.primary)) is not None:
            index.turn += 1  # it may now be the one of them that a request selects
        self._shrink()

    def renew(self, node: Node[Stored], stored: Stored, size: int) -> None:
        """`put` in the node that the key has, where its primary key has no index; `size` is at most an eighth."""
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


def _index_size(index: VaryIndex) -> int:
    return _INDEX_SIZE + len(index.primary) + sum(_NAME_SIZE + len(name) for names in index.names for name in names)
