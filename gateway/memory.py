"""The tier in the process: stored responses, bounded in bytes.

Bytes are counted for keys, headers and bodies (`record.size_of`). What has not been used for longest goes first.
All calls are synchronous and O(1); there is one store a worker, used from its event loop alone.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from .record import Stored, VaryIndex, size_of

_INDEX_SIZE = 300  # a VaryIndex, its key, and its tuples of names
_NAME_SIZE = 64


@dataclass(slots=True)
class MemoryStatistics:
    entries: int = 0
    bytes: int = 0
    evictions: int = 0


class Memory:
    """`capacity` is in bytes; 0 stores nothing. A response larger than an eighth of it is not kept."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.statistics = MemoryStatistics()
        self._entries: OrderedDict[str, tuple[Stored, int]] = OrderedDict()
        self._indices: OrderedDict[str, VaryIndex] = OrderedDict()

    def __repr__(self) -> str:
        s = self.statistics
        return f"<Memory {s.entries} entries, {s.bytes} of {self.capacity} bytes, {s.evictions} evicted>"

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> Stored | None:
        """The response stored under a variant's key."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def index(self, primary: str) -> VaryIndex | None:
        """What is known of a primary key's variants."""
        index = self._indices.get(primary)
        if index is not None:
            self._indices.move_to_end(primary)
        return index

    def put(self, stored: Stored) -> None:
        size = size_of(stored)
        self.remove(stored.key)
        if size > self.capacity // 8:
            return
        self._entries[stored.key] = (stored, size)
        self.statistics.entries += 1
        self._grow(size)

    def put_index(self, index: VaryIndex) -> None:
        known = self._indices.pop(index.primary, None)
        self._indices[index.primary] = index
        self._grow(_index_size(index) - (_index_size(known) if known is not None else 0))

    def remove(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.statistics.bytes -= entry[1]
            self.statistics.entries -= 1

    def clear(self) -> None:
        self._entries.clear()
        self._indices.clear()
        self.statistics.bytes = self.statistics.entries = 0

    def _grow(self, size: int) -> None:
        self.statistics.bytes += size
        while self.statistics.bytes > self.capacity and (self._entries or self._indices):
            self._evict()

    def _evict(self) -> None:
        # Indices are small and help every variant: they go only once there are as many of them as of entries.
        if self._entries and len(self._indices) <= len(self._entries):
            self.remove(next(iter(self._entries)))
            self.statistics.evictions += 1
            return
        _, index = self._indices.popitem(last=False)
        self.statistics.bytes -= _index_size(index)


def _index_size(index: VaryIndex) -> int:
    return _INDEX_SIZE + len(index.primary) + sum(_NAME_SIZE + len(name) for names in index.names for name in names)
