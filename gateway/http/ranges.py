"""Ranges of bytes, answered from a complete stored response (RFC 9110 §14). Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gateway.http.headers import CONTENT_DIGESTS, Headers, combined, first, has, is_strong, parse_date, without

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ByteRange:
    """The bytes `first` to `last` (inclusive) of a body of `size`."""

    first: int
    last: int
    size: int

    @property
    def content_range(self) -> bytes:
        return b"bytes %d-%d/%d" % (self.first, self.last, self.size)


@dataclass(frozen=True, slots=True)
class OutOfRange:
    """The range is not satisfiable for a body of `size`: 416."""

    size: int


def is_single(request: Headers) -> bool:
    """Whether a request's `Range` is one range, well-formed."""
    return _RANGE.fullmatch((combined(request, b"range") or "").strip()) is not None


def wanted(request: Headers, response: Headers, size: int) -> ByteRange | OutOfRange | None:
    """The requested part of a body; None for the complete body: no range, several, malformed, or an `If-Range` that
    doesn't match."""
    text = combined(request, b"range")
    match = _RANGE.fullmatch(text.strip()) if text else None
    if match is None or not _if_range_holds(request, response):
        return None
    start, end = match[1], match[2]
    if not start and not end:
        return None
    if not start:
        length = min(int(end), size)
        return ByteRange(size - length, size - 1, size) if length else OutOfRange(size)
    if end and int(end) < int(start):
        return None
    if int(start) >= size:
        return OutOfRange(size)
    last = min(int(end), size - 1) if end else size - 1
    return ByteRange(int(start), last, size) if int(start) <= last else None


def _if_range_holds(request: Headers, response: Headers) -> bool:
    """RFC 9110 §13.1.5: an equal strong tag, or exactly the date of Last-Modified if that is strong."""
    text = first(request, b"if-range")
    if text is None:
        return True
    tag = first(response, b"etag")
    if text.startswith(('"', "W/")):
        return tag is not None and is_strong(text) and text == tag
    modified = first(response, b"last-modified")
    return modified is not None and text == modified and _is_strong_date(modified, response)


def _is_strong_date(modified: str, response: Headers) -> bool:
    """Whether nothing can have changed again within the second that `Last-Modified` names (RFC 9110 §8.8.2.2)."""
    then, date = parse_date(modified, 0), parse_date(first(response, b"date"), 0)
    return then is not None and date is not None and date - then >= 1


_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.IGNORECASE)


def span_of(response: Headers) -> ByteRange | None:
    """Which part of a representation a 206 holds; None where `Content-Range` is missing, malformed or open."""
    match = _CONTENT_RANGE.fullmatch(first(response, b"content-range") or "")
    if match is None:
        return None
    start, last, size = int(match[1]), int(match[2]), int(match[3])
    return ByteRange(start, last, size) if start <= last < size else None


def cut(request: Headers, response: Headers, span: ByteRange, body: bytes) -> tuple[ByteRange, bytes] | None:
    """The requested part of a stored part (RFC 9111 §3.3); None if the stored part does not contain all of it.

    An open-ended range ends with a part that ends where the representation does.
    """
    part = wanted(request, response, span.size)
    if not isinstance(part, ByteRange) or part.first < span.first or part.last > span.last:
        return None
    text = combined(request, b"range") or ""
    if text.strip().lower().startswith("bytes=-"):
        length = part.last - part.first + 1
        return (part, body[-length:]) if length <= len(body) else None
    piece = body[part.first - span.first : part.last - span.first + 1]
    return (part, piece) if piece else None


@dataclass(frozen=True, slots=True)
class PartialBody:
    """A part of a representation: the fields of the 206 it came with, and its bytes."""

    headers: Headers
    body: bytes


def strong_validator(response: Headers) -> bytes | None:
    """The proof that two parts are of one representation: a strong entity tag, or a strong date (RFC 9110 §8.8.1)."""
    tag = first(response, b"etag")
    if tag is not None:
        return tag.encode("latin-1") if is_strong(tag) and tag.startswith('"') else None
    modified = first(response, b"last-modified")
    return modified.encode("latin-1") if modified is not None and _is_strong_date(modified, response) else None


def rest_of(response: Headers) -> list[tuple[bytes, bytes]]:
    """The request fields that fetch what a stored part lacks, or the complete response if it has changed (RFC 9111
    §3.4); none if more than one range is missing, or there is no strong validator."""
    span, validator = span_of(response), strong_validator(response)
    if span is None or validator is None or (span.first > 0) == (span.last < span.size - 1):
        return []
    missing = b"bytes=%d-" % (span.last + 1) if span.first == 0 else b"bytes=0-%d" % (span.first - 1)
    return [(b"range", missing), (b"if-range", validator)]


def combine(old: PartialBody, new: PartialBody) -> PartialBody | None:
    """Two parts of one representation joined (RFC 9111 §3.4); None if a strong validator does not prove that they
    belong together, or bytes are missing between them. The new part's fields replace the old ones."""
    one, two = span_of(old.headers), span_of(new.headers)
    validator = strong_validator(new.headers)
    if one is None or two is None or validator is None or validator != strong_validator(old.headers):
        return None
    apart = one.last + 1 < two.first or two.last + 1 < one.first
    if apart or one.size != two.size or _misstated(one, old) or _misstated(two, new):
        return None
    span = ByteRange(min(one.first, two.first), max(one.last, two.last), one.size)
    kept = [pair for pair in old.headers if not has(new.headers, pair[0])]
    headers = without([*kept, *new.headers], b"content-range", b"content-length", *CONTENT_DIGESTS)
    before = old.body[: max(0, two.first - one.first)]
    after = old.body[max(0, two.last + 1 - one.first) :]
    return PartialBody((*headers, (b"content-range", span.content_range)), before + new.body + after)


def _misstated(span: ByteRange, piece: PartialBody) -> bool:
    return len(piece.body) != span.last - span.first + 1


def is_whole(response: Headers) -> bool:
    """Whether a part is all there is of its representation."""
    span = span_of(response)
    return span is not None and span.first == 0 and span.last == span.size - 1
