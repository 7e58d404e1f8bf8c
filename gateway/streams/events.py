"""Server-sent events (WHATWG HTML §9.2): read from a stream, written again, and the last of them kept.

Pure. An event is kept as its lines, without comments and without `retry`, which is a matter between two ends of one
connection. An id is one that the event itself has: a client that reports it has seen the event.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator

import msgspec

MOST_EVENTS = 256
"""Events that a ring keeps."""
MOST_BYTES = 64 * 1024
"""Bytes that a ring keeps, and the longest event."""
_BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\n|\r")
_LONGEST_RETRY = 8


class Event(msgspec.Struct, frozen=True):
    """`text` is its lines and the empty line behind them; `id` its own, None if it has none."""

    text: bytes
    id: bytes | None = None


class EventTooLarge(ValueError):
    """An event is larger than a ring."""


class EventParser:
    """Reads the events of one response. `retry` is the reconnection time in milliseconds that the stream named last."""

    def __init__(self) -> None:
        self.retry: int | None = None
        self._begun = False
        self._rest = bytearray()
        self._lines: list[bytes] = []
        self._size = 0
        self._id: bytes | None = None
        self._has_data = False

    def feed(self, piece: bytes) -> Iterator[Event]:
        """The events that end in `piece`. Raises EventTooLarge."""
        seen = max(len(self._rest) - 1, 0)  # a carriage return there was left until its line feed may have come
        self._rest += piece
        if not self._begun:
            if len(self._rest) < len(_BOM) and _BOM.startswith(self._rest):
                return
            self._begun, seen = True, 0
            if self._rest.startswith(_BOM):
                del self._rest[: len(_BOM)]
        at, text = 0, bytes(self._rest) if _LINE_END.search(self._rest, seen) else b""
        for end in _LINE_END.finditer(text, seen):
            if end[0] == b"\r" and end.end() == len(text):
                break  # its line feed may come yet
            event = self._take(text[at : end.start()])
            at = end.end()
            if event is not None:
                yield event
        del self._rest[:at]
        self._bound(len(self._rest))

    def _bound(self, more: int) -> None:
        if self._size + more > MOST_BYTES:
            raise EventTooLarge(f"an event of more than {MOST_BYTES} bytes")

    def _take(self, line: bytes) -> Event | None:
        if not line:
            return self._end()
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"retry":
            self.retry = int(value) if value.isdigit() and len(value) <= _LONGEST_RETRY else self.retry
        elif name in (b"data", b"event", b"id"):
            if name == b"id" and b"\0" in value:
                return None
            self._lines.append(line)
            self._size += len(line) + 1
            self._bound(0)
            self._has_data = self._has_data or name == b"data"
            self._id = value if name == b"id" else self._id
        return None

    def _end(self) -> Event | None:
        """An event without data is none, but its id counts for the client."""
        lines, own = self._lines, self._id
        kept = self._has_data or own is not None
        self._lines, self._size, self._id, self._has_data = [], 0, None, False
        return Event(b"\n".join(lines) + b"\n\n", own) if kept else None


class Ring:
    """The last events of a stream, at most `MOST_EVENTS` and `MOST_BYTES` of them; `start` is the id behind which it
    began, None if that is unknown."""

    def __init__(self, start: bytes | None = None) -> None:
        self._start = start
        self._events: deque[Event] = deque()
        self._size = 0
        self.last_id = start

    def __len__(self) -> int:
        return len(self._events)

    def __repr__(self) -> str:
        return f"<Ring {len(self._events)} events, {self._size} bytes>"

    @property
    def position(self) -> bytes | None:
        """The id of the last event of all; None if that has none."""
        return self._events[-1].id if self._events else self._start

    def add(self, event: Event) -> None:
        self._events.append(event)
        self._size += len(event.text)
        self.last_id = self.last_id if event.id is None else event.id
        while len(self._events) > MOST_EVENTS or self._size > MOST_BYTES:
            gone = self._events.popleft()
            self._size -= len(gone.text)
            self._start = gone.id

    def has(self, event_id: bytes) -> bool:
        return any(event.id == event_id for event in self._events)

    def all(self) -> list[Event]:
        return list(self._events)

    def after(self, event_id: bytes) -> list[Event] | None:
        """The events behind the last one with this id; None if it is not known what they are."""
        events = list(self._events)
        for at in range(len(events) - 1, -1, -1):
            if events[at].id == event_id:
                return events[at + 1 :]
        return events if event_id == self._start else None
