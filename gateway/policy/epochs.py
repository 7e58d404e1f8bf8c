"""Purging without scans and without clocks: whether an entry was purged is decided when it is read. Pure.

A purge is one record on a stream that every worker reads: names (a key, a tag, a route, or everything), hard or soft.
For each name its last position in the stream is kept, its *epoch*. A fetch is stamped, before it starts, with the
stream's generation and the position applied here; its response is valid while no epoch of its names is later. So a
purge that lands during a fetch wins, and a worker that lags stamps too early and only fetches again.

Clients choose names: an unsafe request purges its target. So a name has a bounded size here and on the stream
(`bounded`), a purge replaces an earlier one of the same names, and the size of all records is counted in bytes
(`weight`).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Collection, Iterable
from enum import Enum
from functools import lru_cache
from hashlib import blake2b

import msgspec

Position = tuple[int, int]
"""A stream id: milliseconds and sequence number."""

ZERO: Position = (0, 0)
_BEFORE_ALL: Position = (-1, 0)
_FOREIGN: Position = (-2, 0)
_MAX_MEMO = 10_000

EVERYTHING = "*"
MAX_PENDING = 10_000
"""Purges that wait for Redis, at most; more (or more than half of MAX_BYTES) become one purge of everything."""


LONGEST_NAME = 33
"""Characters of a name as purges and their readers hold it, at most."""
LONGEST_ISSUER = 64
RECORD_BYTES = 560
"""Bytes that a purge of one name takes in a worker's memory, all in all; CPython 3.11 to 3.14 (64 bit)."""
NAME_BYTES = 160
"""Bytes of each further name."""
MAX_BYTES = 32 * 1024 * 1024
"""Bytes of all records together. Beyond them the oldest are forgotten, and what was fetched before those is void."""
_MAX_SUPERSEDED = 100_000
LONGEST_STAMP = 100
"""Characters of a stamp that is believed and remembered."""


def bounded(name: str) -> str:
    """A name in purges: itself if it is short, else a digest (128 bits of BLAKE2b). No short name equals another's
    digest, as names begin with a letter and a colon, or are `*`."""
    if len(name) <= LONGEST_NAME and name.isascii():
        return name
    return "#" + blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def full_key_name(primary: str) -> str:
    return "k:" + primary


def full_tag_name(tag: str) -> str:
    return "t:" + tag


def full_route_name(route: str) -> str:
    return "r:" + route


def key_name(primary: str) -> str:
    """The name by which the entries of a primary key are purged."""
    return bounded("k:" + primary)


def tag_name(tag: str) -> str:
    return bounded("t:" + tag)


@lru_cache(maxsize=1024)
def route_name(route: str) -> str:
    return bounded("r:" + route)


class Purge(msgspec.Struct, frozen=True, gc=False):
    """One purge. `id` is its issuer's, by which a record that is added again is known. `full` holds the names as they
    were before they were bounded, while it is on its way; nothing that was read from the stream has them."""

    id: str
    names: tuple[str, ...]
    soft: bool = False
    by: str = ""
    full: tuple[str, ...] = ()

    @property
    def weight(self) -> int:
        """Bytes that it takes in a worker's memory, all in all."""
        return RECORD_BYTES + NAME_BYTES * (len(self.names) - 1)


LONGEST_FULL = 512
"""Characters of the names of a purge as they were, at most; longer ones are not kept."""


def purge_of(purge_id: str, names: Iterable[str], *, soft: bool = False, by: str = "") -> Purge:
    """A purge of names of any length; each name once."""
    names = dict.fromkeys(names)
    held = tuple(dict.fromkeys(map(bounded, names)))
    full = tuple(names) if sum(map(len, names)) <= LONGEST_FULL else ()
    return Purge(purge_id, held, soft, by[:LONGEST_ISSUER], full if full != held else ())


class PurgeState(Enum):
    """The effect of a purge on an entry: SOFT makes it stale, VOID invalidates it."""

    VALID = "valid"
    SOFT = "soft"
    VOID = "void"


def parse_position(text: str) -> Position:
    """A stream id such as `1700000000000-3`. Raises ValueError."""
    milliseconds, _, sequence = text.partition("-")
    return int(milliseconds), int(sequence or 0)


def show_position(position: Position) -> str:
    return f"{position[0]}-{position[1]}"


class Epochs:
    """This process's view of the stream. Not thread-safe; it lives in one event loop.

    `floor`: entries stamped before it are invalid, because purges before it are no longer known. `pending` are purges
    issued here that have not come back on the stream: they invalidate entries fetched before they were issued, by this
    worker's clock.

    `lineage` holds the generations that this process followed without a gap: their stamps count as earlier than every
    purge of this one. Stamps of any other generation are invalid, since its purges may be unknown here; None accepts
    them as earlier. Each generation is stored with the floor at its end: entries stamped before that stay invalid.

    A hard purge replaces an earlier one of the same names, whose position is then among `superseded`. (A soft one does
    not: the first soft purge ends freshness.) `weight` is the size of the records in bytes.

    `version` changes with everything that can change a result: a response that was valid at a version need not be
    checked again while the version is the same.
    """

    def __init__(self, generation: str = "", lineage: Iterable[str] | None = None) -> None:
        self.generation = generation
        self.applied: Position = ZERO
        self.floor: Position = ZERO
        self.version = 0
        self.records: dict[str, tuple[Position, Purge]] = {}
        self.pending: dict[str, tuple[float, Purge]] = {}
        self.lineage = None if lineage is None else dict.fromkeys((generation, *lineage), ZERO)
        self.superseded: deque[Position] = deque(maxlen=_MAX_SUPERSEDED)
        self.weight = 0
        self._by_names: dict[tuple[str, ...], str] = {}
        self._pending_weight = 0
        self._hard: dict[str, Position] = {}
        self._soft: dict[str, list[tuple[Position, float]]] = {}
        self._newest: Position = _BEFORE_ALL
        self._positions: dict[str, Position] = {}
        self.stamp = ""
        """The stamp of a fetch that starts now."""
        self.untouched_stamp: str | None = None
        """A stamp that is `untouched`: the present one; None while purges are pending."""
        self._waiting_hard: dict[str, float] = {}
        self._waiting_soft: dict[str, float] = {}
        self._pending_by_names: dict[tuple[tuple[str, ...], bool], str] = {}
        self._indexed = True
        self._changed()

    def __repr__(self) -> str:
        return (
            f"<Epochs {self.generation[:8]} applied={show_position(self.applied)} floor={show_position(self.floor)} "
            f"records={len(self.records)} pending={len(self.pending)}>"
        )

    # --- purges from the stream ---------------------------------------------------------------------------

    def apply(self, position: Position, purge: Purge, now: float = math.inf) -> None:
        """Apply a record of the stream; records come in the order of their positions.

        `now` (seconds): a soft purge ends freshness at the time of its position, or now if that is in the future.
        """
        for name in purge.names:
            if purge.soft:
                self._soft.setdefault(name, []).append((position, min(position[0] / 1000, now)))
            else:
                self._hard[name] = position
        self._record(position, purge)
        self._unpend(purge.id)
        self.applied = max(self.applied, position)
        self._newest = max(self._newest, position)
        self._changed()

    def _record(self, position: Position, purge: Purge) -> None:
        self._drop(purge.id)
        if not purge.soft:
            earlier = self._by_names.get(purge.names)
            if earlier is not None:
                self.superseded.append(self.records[earlier][0])
                self._drop(earlier)
            self._by_names[purge.names] = purge.id
        self.records[purge.id] = (position, purge)
        self.weight += purge.weight

    def _drop(self, purge_id: str) -> None:
        known = self.records.pop(purge_id, None)
        if known is None:
            return
        purge = known[1]
        self.weight -= purge.weight
        if self._by_names.get(purge.names) == purge_id:
            del self._by_names[purge.names]

    def surplus(self, most: int) -> Position | None:
        """The floor at which the records take seven eighths of `most` bytes, if they take more than `most`."""
        if self.weight <= most:
            return None
        weight, floor, oldest = self.weight, self.floor, iter(self.records.values())
        while weight > most * 7 // 8:
            floor, purge = next(oldest)
            weight -= purge.weight
        return floor

    def raise_floor(self, floor: Position) -> None:
        """Forget the records at and before `floor`: entries stamped before it are invalid from now on.

        Nothing before it can be read any more, so new fetches are stamped with it at least.
        """
        if floor <= self.floor:
            return
        self.floor = floor
        self.applied = max(self.applied, floor)
        for purge_id, (position, purge) in list(self.records.items()):
            if position > floor:
                break
            self._drop(purge_id)
            self._forget(purge.names)
        while self.superseded and self.superseded[0] <= floor:
            self.superseded.popleft()
        self._changed()

    def _forget(self, names: Iterable[str]) -> None:
        for name in names:
            if self._hard.get(name, self.floor) <= self.floor:
                self._hard.pop(name, None)
            kept = [each for each in self._soft.pop(name, ()) if each[0] > self.floor]
            if kept:
                self._soft[name] = kept

    def adopt(
        self,
        generation: str,
        records: Iterable[tuple[Position, Purge]],
        *,
        now: float = math.inf,
        continuous: bool = True,
    ) -> None:
        """Start with another stream. `continuous`: every confirmed purge of the previous one is known here, and so
        among `records`; entries stamped before may then remain valid if none of them names them."""
        if self.lineage is not None:
            kept = {**self.lineage, self.generation: self.floor} if continuous else {}
            self.lineage = {**kept, generation: ZERO}
        self.generation = generation
        self.applied = self.floor = ZERO
        self._newest = _BEFORE_ALL
        self.records, self._hard, self._soft, self._positions = {}, {}, {}, {}
        self._by_names, self.weight = {}, 0
        self.superseded.clear()
        for position, purge in records:
            self.apply(position, purge, now)
        self._changed()

    # --- purges on their way -------------------------------------------------------------------------------

    def pend(self, purge: Purge, now: float) -> None:
        """Take a purge that was issued here at `now`, before the stream has it. It takes the place of one before it
        of the same names."""
        self._unpend(self._pending_by_names.get((purge.names, purge.soft), ""))
        full = len(self.pending) >= MAX_PENDING or self._pending_weight + purge.weight > MAX_BYTES // 2
        if full and purge.names != (EVERYTHING,):
            self.pending.clear()
            self._pending_by_names.clear()
            self._pending_weight = 0
            purge = Purge(purge.id, (EVERYTHING,), False, "too many purges at once while Redis is unavailable")
        self.pending[purge.id] = (now, purge)
        self._pending_weight += purge.weight
        self._pending_by_names[purge.names, purge.soft] = purge.id
        self._indexed = False
        self._changed()

    def _unpend(self, purge_id: str) -> None:
        pending = self.pending.pop(purge_id, None)
        if pending is not None:
            self._pending_weight -= pending[1].weight
            self._pending_by_names.pop((pending[1].names, pending[1].soft), None)
            self._indexed = False

    def _waiting(self) -> tuple[dict[str, float], dict[str, float]]:
        # Built on use: a thousand records may arrive in one event loop iteration.
        if not self._indexed:
            self._waiting_hard, self._waiting_soft = {}, {}
            for issued, purge in self.pending.values():
                index = self._waiting_soft if purge.soft else self._waiting_hard
                for name in purge.names:
                    index[name] = max(issued, index.get(name, issued))
            self._indexed = True
        return self._waiting_hard, self._waiting_soft

    # --- judging -------------------------------------------------------------------------------------------

    def untouched(self, stamp: str) -> bool:
        """Whether nothing at all was purged since a fetch with this stamp: then there is nothing to judge."""
        position = self._positions.get(stamp)
        return not self.pending and (position or self.position(stamp)) >= self._latest

    def judge(self, stamp: str, started: float, names: Collection[str]) -> tuple[PurgeState, float]:
        """The effect of purges on a response with this stamp and these names, fetched since `started`. With SOFT comes
        the instant (seconds) of the purge."""
        position = self.position(stamp)
        if position == _FOREIGN or (self.floor != ZERO and position < self.floor):
            return PurgeState.VOID, 0.0
        hard, soft = self._hard, self._soft
        state, softened = PurgeState.VALID, math.inf
        if position < self._newest:
            for name in names:
                if name in hard and hard[name] > position:
                    return PurgeState.VOID, 0.0
                if name in soft and soft[name][-1][0] > position:
                    # The first of them ended its freshness; those after it must not lengthen its windows.
                    first = bisect_right(soft[name], position, key=_place)
                    state, softened = PurgeState.SOFT, min(softened, soft[name][first][1])
        if self.pending:
            hard_at, soft_at = self._waiting()
            for name in names:
                if started <= hard_at.get(name, -math.inf):
                    return PurgeState.VOID, 0.0
                if started <= soft_at.get(name, -math.inf):
                    state, softened = PurgeState.SOFT, min(softened, soft_at[name])
        return state, softened if state is PurgeState.SOFT else 0.0

    def last_purge(self, name: str) -> str | None:
        """The position of the last purge of `name`, with `soft` if it was soft; None if there was none."""
        hard = self._hard.get(name, _BEFORE_ALL)
        soft = self._soft[name][-1][0] if name in self._soft else _BEFORE_ALL
        if max(hard, soft) == _BEFORE_ALL:
            return None
        return show_position(hard) if hard >= soft else f"{show_position(soft)} (soft)"

    def _changed(self) -> None:
        self.version += 1
        self._latest = max(self._newest, self.floor)
        self.stamp = f"{self.generation} {show_position(self.applied)}"
        clear = self.generation and not self.pending and self.applied >= self._latest
        self.untouched_stamp = self.stamp if clear else None

    def position(self, stamp: str) -> Position:
        """The position of a stamp in the stream; before all of it for another generation."""
        known = self._positions.get(stamp)
        if known is not None:
            return known
        position = self._parse(stamp)
        if len(stamp) <= LONGEST_STAMP:
            if len(self._positions) >= _MAX_MEMO:
                self._positions.clear()
            self._positions[stamp] = position
        return position

    def _parse(self, stamp: str) -> Position:
        generation, _, text = stamp.partition(" ")
        if not generation or (self.lineage is not None and generation not in self.lineage):
            return _BEFORE_ALL if self.lineage is None else _FOREIGN
        try:
            position = parse_position(text)
        except ValueError:
            return _BEFORE_ALL if self.lineage is None else _FOREIGN
        if generation == self.generation:
            return position
        return _BEFORE_ALL if self.lineage is None or position >= self.lineage[generation] else _FOREIGN


def _place(softened: tuple[Position, float]) -> Position:
    return softened[0]
