"""Answers to clients: from a stored response, in part, not at all, or a problem.

What stands here makes values; nothing is asked, stored or decided.
"""

from __future__ import annotations

import time

import msgspec

from . import policy
from .codings import CODINGS, Coded
from .errors import PROBLEM_MEDIA_TYPE, problem_body
from .exchange import Exchange
from .headers import CONTENT_DIGESTS, Headers, has, http_date, without
from .heads import BAD_IN_VALUE, NAME
from .policy import Rules
from .ranges import OutOfRange, Part, cut, span_of, wanted
from .record import Stored
from .upstreams import ResponseBody

_WITHOUT_BODY = frozenset((204, 205, 304))


class Answer(msgspec.Struct, frozen=True):
    """What the client gets: the body as bytes, or still to be streamed."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes | ResponseBody


def stored_answer(
    exchange: Exchange, request: Headers, stored: Stored, rules: Rules, now: float, coded: Coded | None = None
) -> Answer:
    """A stored response as a request wants it: whole, 304 where the client has it, a range of it, or its head.

    `coded` is the form it gets, where there are several; a range is always one of the plain form.
    """
    plain = policy.told_headers(stored, rules, now)
    headers, body = plain, stored.body
    if coded is not None:
        coding = None if has(request, b"range") else coded.coding
        headers = coded.told(plain, coding)
        body = coded.body if coding is not None else body
    head = exchange.method == "HEAD"
    if stored.status == 200:
        known = _known_form(request, stored, plain, headers, coded)
        if known is not None:
            return Answer(304, policy.fields_of_304(known), b"")
        part = None if head else wanted(request, headers, len(stored.body))
        if isinstance(part, Part):
            return partial(headers, part, stored.body[part.first : part.last + 1])
        if isinstance(part, OutOfRange):
            return out_of_range(exchange, part)
    if stored.status not in _WITHOUT_BODY:
        headers.append((b"content-length", b"%d" % len(body)))
    return Answer(stored.status, of_head(headers), b"") if head else Answer(stored.status, headers, body)


def of_head(headers: Headers) -> list[tuple[bytes, bytes]]:
    """The fields of a GET's answer as they answer a HEAD: what is a digest of this message's content would have to be
    one of none (RFC 9530, B.2)."""
    return without(headers, *CONTENT_DIGESTS)


def _known_form(
    request: Headers,
    stored: Stored,
    plain: list[tuple[bytes, bytes]],
    headers: list[tuple[bytes, bytes]],
    coded: Coded | None,
) -> list[tuple[bytes, bytes]] | None:
    """The headers of the form that the client has already, by its own condition; None where it has none.

    A client that once got the plain form, because the other was not made yet, need not fetch it all again.
    """
    if policy.not_modified(request, headers, stored.born):
        return headers
    if coded is None or not has(request, b"if-none-match"):
        return None
    forms = (coded.told(plain, coding) for coding in (None, *CODINGS))
    return next((form for form in forms if policy.not_modified(request, form, stored.born)), None)


def part_answer(request: Headers, stored: Stored, rules: Rules, now: float) -> Answer | None:
    """A range from a stored part (206); None where the part does not hold all of it."""
    span = span_of(stored.headers)
    piece = cut(request, stored.headers, span, stored.body) if span is not None else None
    if piece is None:
        return None
    return partial(policy.told_headers(stored, rules, now), *piece)


def out_of_range(exchange: Exchange, part: OutOfRange) -> Answer:
    answer = problem(exchange, 416, "The range lies outside of the resource.")
    answer.headers.append((b"content-range", b"bytes */%d" % part.size))
    return answer


def partial(headers: Headers, part: Part, body: bytes | ResponseBody) -> Answer:
    # A stored part may have fewer bytes than its upstream's Content-Range said.
    length = len(body) if isinstance(body, bytes) else part.last - part.first + 1
    fields = [(b"content-range", part.content_range), (b"content-length", b"%d" % length)]
    # Some upstreams send Content-Range with a whole response, too.
    kept = without(headers, b"content-range", b"content-length", *CONTENT_DIGESTS)
    return Answer(206, [*kept, *fields], body)


def problem(exchange: Exchange, status: int, detail: str, *, title: str | None = None) -> Answer:
    """Problem Details (RFC 9457), never to be stored."""
    body = problem_body(status, detail, exchange.request_id, title)
    headers = [
        (b"content-type", PROBLEM_MEDIA_TYPE),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        (b"date", http_date(time.time())),
    ]
    return Answer(status, headers, b"" if exchange.method == "HEAD" else body)


def is_writable(status: int, headers: Headers) -> bool:
    """Whether the answer can be written as it is: its end is plain, and no field breaks the head."""
    names = [name for name, _ in headers]
    return (
        (b"content-length" in names or status in (204, 304))
        and names.count(b"age") == 1
        and b"date" in names
        and b"connection" not in names
        and b"transfer-encoding" not in names
        and all(NAME.fullmatch(name) and not BAD_IN_VALUE.search(value) for name, value in headers)
    )
