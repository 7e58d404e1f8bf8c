"""Where a request's body ends: how many of the bytes that came belong to it. Pure.

llhttp decodes the body; here only its end is found, strictly, so that the bytes after it are known to be another
request's before anything parses them.
"""

from __future__ import annotations

import re

from .errors import RequestRefused
from .heads import Limits, read_field

# A size of up to 16 hex digits, and extensions without controls (RFC 9112 §7.1): unknown ones are ignored.
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")
_LONGEST_LINE = 1024
"""Of a chunk's size line: extensions have no known use, and long ones cost nothing but our time."""


class LengthBody:
    """A body whose length is known."""

    def __init__(self, length: int) -> None:
        self._left = length

    def take(self, data: bytes, start: int) -> int:
        """The index in `data` behind what belongs to the body, beginning at `start`."""
        end = min(len(data), start + self._left)
        self._left -= end - start
        return end

    @property
    def done(self) -> bool:
        return not self._left


class ChunkedBody:
    """A chunked body (RFC 9112 §7.1). `limits.body` bounds its content, `limits.head` its trailers."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._left = 0
        self._line = b""
        self._total = 0
        self._trailers = 0
        self._fields = 0
        self._step = self._size
        self.done = False

    def take(self, data: bytes, start: int) -> int:
        """The index in `data` behind what belongs to the body, beginning at `start`. Raises RequestRefused."""
        at = start
        while at < len(data) and not self.done:
            if self._left:
                skipped = min(self._left, len(data) - at)
                self._left -= skipped
                at += skipped
            else:
                at = self._collect(data, at)
        return at

    def _collect(self, data: bytes, at: int) -> int:
        """Take what `data` has of the line under way, and go a step on where it is whole."""
        end = data.find(b"\n", at)
        stop = len(data) if end < 0 else end + 1
        self._line += data[at:stop]
        if len(self._line) > (self._limits.head if self._step == self._trailer else _LONGEST_LINE):
            raise RequestRefused("A line of the chunked body is too long.", 400, "chunk")
        if end >= 0:
            line, self._line = self._line, b""
            if not line.endswith(b"\r\n") or b"\r" in line[:-2]:
                raise RequestRefused("The chunked body contains a bare line break.", 400, "chunk")
            self._step(line[:-2])
        return stop

    def _size(self, line: bytes) -> None:
        match = _SIZE_LINE.fullmatch(line)
        if match is None:
            raise RequestRefused("A chunk's size is malformed.", 400, "chunk")
        size = int(match[1], 16)
        self._total += size
        if self._total > self._limits.body:
            raise RequestRefused("The body is larger than is accepted here.", 413, "large_body")
        self._left = size
        self._step = self._after_data if size else self._trailer

    def _after_data(self, line: bytes) -> None:
        if line:
            raise RequestRefused("A chunk is longer than it says.", 400, "chunk")
        self._step = self._size

    def _trailer(self, line: bytes) -> None:
        if not line:
            self.done = True
            return
        self._trailers += len(line)
        self._fields += 1
        if self._trailers > self._limits.head or self._fields > self._limits.headers:
            raise RequestRefused("The trailers are too large.", 431, "large_head")
        read_field(line)
