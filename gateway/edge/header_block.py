"""Recognises a header block that a connection sent before, except for its request ID.

Decides, byte for byte, whether a request has the same header block as the last one, so that results for the block can
be reused. It must not interpret the block (`entries`) or find its response (`hits`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from os import urandom
from typing import TYPE_CHECKING, Self

from gateway.context import REQUEST_ID
from gateway.edge.entries import HeaderBlock
from gateway.http.request_parser import is_value

if TYPE_CHECKING:
    from gateway.edge.hits import Edge

_REQUEST_ID_LINE = re.compile(rb"\r\nx-request-id:[ \t]*([A-Za-z0-9._\-]{1,128})\r\n", re.IGNORECASE)
_SOME_ID = b"-"
"""Stands for the ID in the text of a block: without it, a block whose ID is empty, which is no ID, has the same."""
_END = b"\r\n\r\n"
LONGEST_ID = 128
REMEMBERED = 1024
"""The longest request line or header block that is remembered, in bytes."""
_IN_ID = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
# Every character of a sane request id becomes an `a`, all others stay: comparing costs a third of a regular expression.
LIKE = bytes(ord("a") if char in _IN_ID else char for char in range(256))


class Repeat:
    """A header block as it came on a connection: what stood before the request id, and what behind it.

    Most clients give all their ids one length, and most send them last: what follows `front` then comes to `tail` by
    `LIKE`, as the id before did. It is empty where that can't be.
    """

    __slots__ = (
        *("answer", "at", "block", "edge", "front", "front_length", "longest_line", "numbered", "rear", "room", "tail"),
        "_around",
    )

    def __init__(
        self,
        edge: Edge,
        block: HeaderBlock,
        front: bytes,
        rear: bytes,
        request_id: bytes | None,
        room: int,
        at: int,
    ) -> None:
        self.edge = edge
        self.answer = edge.memos.answer  # bound once: each repeated request calls it
        self.at = at
        """The position of the request ID among the fields."""
        self.room = room
        self._around: tuple[bytes, bytes] | None = None
        """What stands in `front` before a credential, and behind it, once that was looked for."""
        self.longest_line = room - len(front) - len(rear) - (LONGEST_ID if request_id is not None else 0)
        """In bytes: a request line with which the head is within its limit, whatever the id."""
        self.block = block
        self.front, self.front_length = front, len(front)
        self.rear = rear
        self.numbered = request_id is not None
        self.tail = (request_id + _END).translate(LIKE) if request_id is not None and rear == _END else b""

    @classmethod
    def of(
        cls, edge: Edge, head: bytes, end: int, fields: list[tuple[bytes, bytes]], *, room: int
    ) -> tuple[Self, bytes]:
        """The block of a head that was read, whose request line ends at `end`; and its request id, or a new one. A
        head may have `room` bytes."""
        match = _REQUEST_ID_LINE.search(head, end)
        at = 0
        if match is None:
            front, rear, request_id = head[end:], b"", None
        else:
            front, rear, request_id = head[end : match.start(1)], head[match.end(1) :], match[1]
            at = next(i for i, (name, _) in enumerate(fields) if name == b"x-request-id")
            fields = fields[:at] + fields[at + 1 :]
        text = front + rear if match is None else front + _SOME_ID + rear
        block = (edge.blocks.get(text) if len(text) <= REMEMBERED else None) or edge.block(text, fields)
        return cls(edge, block, front, rear, request_id, room, at), request_id or new_request_id()

    def fields(self, request_id: bytes) -> list[tuple[bytes, bytes]]:
        """All fields of a request that has this block, in their order."""
        fields = [*self.block.headers]
        if self.numbered:
            fields.insert(self.at, (b"x-request-id", request_id))
        return fields

    def request_id(self, data: bytes, end: int) -> bytes:
        """The request id in `data`, whose request line ends at `end` and which goes on as this block does; a new one
        where the block has none. Empty where it is another block, or more than one request, or the id is not sane."""
        start = end + self.front_length
        if not self.numbered:
            return new_request_id() if len(data) == start else b""
        match = REQUEST_ID.match(data, start)
        return match[0] if match is not None and data[match.end() :] == self.rear else b""

    def renewed(self, data: bytes, end: int) -> tuple[Repeat, bytes] | None:
        """The block of `data` as `Repeat`, and its request id, if it differs from this one by the credential before the
        id alone; None where that is not so."""
        before, after = around = self._around or self._looked_around()
        start = end + len(before)
        if not before or not data.startswith(before, end):
            return None
        stop = data.find(b"\r\n", start)
        value = data[start:stop]
        if not value or not data.startswith(after, stop) or len(data) > self.room or not is_value(value):
            return None
        place = stop + len(after)
        match = REQUEST_ID.match(data, place) if self.numbered else None
        rest = place if match is None else match.end()
        if data[rest:] != self.rear or (self.numbered and match is None):
            return None
        some_id = _SOME_ID if self.numbered else b""
        block = self.edge.renewed(self.block, before, value, after + some_id + self.rear)
        if block is None:
            return None
        request_id = new_request_id() if match is None else match[0]
        given = match[0] if match is not None else None
        other = Repeat(self.edge, block, data[end:place], self.rear, given, self.room, self.at)
        other._around = around
        return other, request_id

    def _looked_around(self) -> tuple[bytes, bytes]:
        at = self.block.credential
        self._around = b"", b""
        if at is None or (self.numbered and at >= self.at):
            return self._around
        lines = self.front.split(b"\r\n")
        name, colon, text = lines[at + 1].partition(b":")
        value = self.block.headers[at][1]
        if text.strip(b" \t") == value:
            before = b"\r\n".join((*lines[: at + 1], name + colon + text[: text.index(value)]))
            self._around = before, self.front[len(before) + len(value) :]
        return self._around


class ContentRepeat(Repeat):
    """The same for a request whose content, of `length` bytes, follows its head."""

    __slots__ = ("length",)

    def __init__(
        self, edge: Edge, block: HeaderBlock, front: bytes, rear: bytes, request_id: bytes | None, room: int, at: int
    ) -> None:
        super().__init__(edge, block, front, rear, request_id, room, at)
        self.tail = b""
        self.length = 0

    def request_id(self, data: bytes, end: int) -> bytes:
        """Empty: with this block a head alone is not all of a request."""
        return b""

    def renewed(self, data: bytes, end: int) -> tuple[Repeat, bytes] | None:
        return None

    def content(self, data: bytes, end: int) -> tuple[bytes, bytes] | None:
        """The request id in `data`, or a new one, and the content; None where it is not one such request, whole."""
        start, request_id = end + self.front_length, b""
        if self.numbered:
            match = REQUEST_ID.match(data, start)
            if match is None or not data.startswith(self.rear, match.end()):
                return None
            start, request_id = match.end() + len(self.rear), match[0]
        if len(data) != start + self.length:
            return None
        return request_id or new_request_id(), data[start:]


def _request_ids() -> Iterator[bytes]:
    """128 bits each, of the system's randomness; taken by the hundred, as one at a time costs five times as much."""
    while True:
        many = urandom(16 * 128).hex().encode("ascii")
        for start in range(0, len(many), 32):
            yield many[start : start + 32]


new_request_id = _request_ids().__next__
"""A request ID for a request without one."""
