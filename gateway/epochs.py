"""Purging without scanning and without clocks: what a purge makes void is found out when it is read.

Pure. A purge is one record on a stream that every worker reads: names (a key, a tag, a route, or everything), hard or
soft. For each name its last position in the stream is kept, its *epoch*. A fetch is stamped before it starts with
the stream's generation and the position applied here; what it brought is valid while no epoch of its names is later.
That settles the race of a purge that lands during a fetch, and a worker that lags stamps too early and merely fetches
again.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

import msgspec

Position = tuple[int, int]
"""A stream id: milliseconds and sequence number."""

ZERO: Position = (0, 0)
_BEFORE_ALL: Position = (-1, 0)

EVERYTHING = "*"


def key_name(primary: str) -> str:
    return "k:" + primary


def tag_name(tag: str) -> str:
    return "t:" + tag


def route_name(route: str) -> str:
    return "r:" + route


class Purge(msgspec.Struct, frozen=True, gc=False):
    """One purge. `id` is its issuer's, by which a record that is added again is known."""

    id: str
    names: tuple[str, ...]
    soft: bool = False
    by: str = ""


class State(Enum):
    """What a purge has made of a stored response; SOFT ends its freshness, VOID its life."""

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
    """What is known of the stream here. Not thread-safe; it lives in one event loop.

    `floor`: whatever is stamped before it is void, as purges before it are no longer known. `pending` are purges that
    the stream has not taken yet: they void what was fetched before they were issued, by this worker's clock.
    """

    def __init__(self, generation: str = "") -> None:
        self.generation = generation
        self.applied: Position = ZERO
        self.floor: Position = ZERO
        self.records: dict[str, tuple[Position, Purge]] = {}
        self.pending: dict[str, tuple[float, Purge]] = {}
        self._hard: dict[str, Position] = {}
        self._soft: dict[str, Position] = {}
        self._positions: dict[str, Position] = {}

    def __repr__(self) -> str:
        return (
            f"<Epochs {self.generation[:8]} applied={show_position(self.applied)} floor={show_position(self.floor)} "
            f"records={len(self.records)} pending={len(self.pending)}>"
        )

    def stamp(self) -> str:
        """The stamp of a fetch that starts now."""
        return f"{self.generation} {show_position(self.applied)}"

    def apply(self, position: Position, purge: Purge) -> None:
        """Take a record of the stream; records come in the order of their positions."""
        epochs = self._soft if purge.soft else self._hard
        for name in purge.names:
            epochs[name] = max(position, epochs.get(name, ZERO))
        self.records[purge.id] = (position, purge)
        self.pending.pop(purge.id, None)
        self.applied = max(self.applied, position)

    def raise_floor(self, floor: Position) -> None:
        """Forget the records at and before `floor`: all that is stamped before it is void from now on."""
        if floor <= self.floor:
            return
        self.floor = floor
        self.records = {i: each for i, each in self.records.items() if each[0] > floor}
        for epochs in (self._hard, self._soft):
            for name in [name for name, position in epochs.items() if position <= floor]:
                del epochs[name]

    def judge(self, stamp: str, started: float, names: Iterable[str]) -> tuple[State, float]:
        """What became of a response with this stamp and these names, fetched since `started`.

        With SOFT comes the instant (seconds) of the purge. Stamps of another generation are earlier than every purge
        of this one.
        """
        if self.quiet:
            return State.VALID, 0.0
        position = self._position(stamp)
        if self.floor != ZERO and position < self.floor:
            return State.VOID, 0.0
        state, softened = State.VALID, 0.0
        for name in names:
            if self._hard.get(name, _BEFORE_ALL) > position:
                return State.VOID, 0.0
            soft = self._soft.get(name, _BEFORE_ALL)
            if soft > position:
                state, softened = State.SOFT, max(softened, soft[0] / 1000)
        return self._judge_pending(started, names, state, softened) if self.pending else (state, softened)

    def _judge_pending(
        self, started: float, names: Iterable[str], state: State, softened: float
    ) -> tuple[State, float]:
        for issued, purge in self.pending.values():
            if started <= issued and not set(names).isdisjoint(purge.names):
                if not purge.soft:
                    return State.VOID, 0.0
                state, softened = State.SOFT, max(softened, issued)
        return state, softened

    def last_purge(self, name: str) -> str | None:
        """The position of the last purge of `name`, `soft` where it was that; None where there was none."""
        hard, soft = self._hard.get(name, _BEFORE_ALL), self._soft.get(name, _BEFORE_ALL)
        if max(hard, soft) == _BEFORE_ALL:
            return None
        return show_position(hard) if hard >= soft else f"{show_position(soft)} (soft)"

    @property
    def quiet(self) -> bool:
        """Whether nothing was ever purged, as far as anyone knows."""
        return not self._hard and not self._soft and not self.pending and self.floor == ZERO

    def _position(self, stamp: str) -> Position:
        known = self._positions.get(stamp)
        if known is not None:
            return known
        generation, _, text = stamp.partition(" ")
        try:
            position = parse_position(text) if generation == self.generation and generation else _BEFORE_ALL
        except ValueError:
            position = _BEFORE_ALL
        if len(self._positions) > 10_000:
            self._positions.clear()
        self._positions[stamp] = position
        return position
