"""Ranges of bytes, answered from a complete stored response (RFC 9110 §14). Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .headers import Headers, combined, first, is_strong, parse_date

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Part:
    """The bytes `first` to `last` (inclusive) of a body of `size`."""

    first: int
    last: int
    size: int

    @property
    def content_range(self) -> bytes:
        return b"bytes %d-%d/%d" % (self.first, self.last, self.size)


@dataclass(frozen=True, slots=True)
class OutOfRange:
    """The range lies outside of a body of `size`: 416."""

    size: int


def wanted(request: Headers, response: Headers, size: int) -> Part | OutOfRange | None:
    """The part of a body that a request wants; None for the whole: no range, several, malformed, or `If-Range`
    that names another response."""
    text = combined(request, b"range")
    match = _RANGE.fullmatch(text.strip()) if text else None
    if match is None or not _if_range_holds(request, response):
        return None
    start, end = match[1], match[2]
    if not start and not end:
        return None
    if not start:
        length = min(int(end), size)
        return Part(size - length, size - 1, size) if length else OutOfRange(size)
    if end and int(end) < int(start):
        return None
    if int(start) >= size:
        return OutOfRange(size)
    last = min(int(end), size - 1) if end else size - 1
    return Part(int(start), last, size) if int(start) <= last else None


def _if_range_holds(request: Headers, response: Headers) -> bool:
    """RFC 9110 §13.1.5: a strong tag that is equal, or exactly the date of Last-Modified."""
    text = first(request, b"if-range")
    if text is None:
        return True
    tag = first(response, b"etag")
    if text.startswith(('"', "W/")):
        return tag is not None and is_strong(text) and text == tag
    modified = first(response, b"last-modified")
    return modified is not None and parse_date(text, 0) is not None and text == modified


_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.IGNORECASE)


def span_of(response: Headers) -> Part | None:
    """Which part of a representation a 206 holds; None where `Content-Range` is missing, malformed or open."""
    match = _CONTENT_RANGE.fullmatch(first(response, b"content-range") or "")
    if match is None:
        return None
    start, last, size = int(match[1]), int(match[2]), int(match[3])
    return Part(start, last, size) if start <= last < size else None


def cut(request: Headers, response: Headers, span: Part, body: bytes) -> tuple[Part, bytes] | None:
    """What a request wants of a stored part (RFC 9111 §3.3); None where the part does not hold all of it.

    What is open at the end is taken from the end of a part that ends where the representation does.
    """
    part = wanted(request, response, span.size)
    if not isinstance(part, Part) or part.first < span.first or part.last > span.last:
        return None
    text = combined(request, b"range") or ""
    if text.strip().lower().startswith("bytes=-"):
        length = part.last - part.first + 1
        return (part, body[-length:]) if length <= len(body) else None
    piece = body[part.first - span.first : part.last - span.first + 1]
    return (part, piece) if piece else None
