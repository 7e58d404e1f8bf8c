"""Responses to clients: a stored response, a part of it, a 304, or a problem; each sets its request's Outcome.

Headers, metrics and the log are made from the Outcome. Nothing is fetched, stored or decided here.
"""

from __future__ import annotations

import math
import time
from typing import assert_never

import msgspec

from gateway.advisor.traffic import Traffic
from gateway.cache.background import Background
from gateway.cache.compression import Coded, Compressor
from gateway.cache.fetch import Durations, Fetcher
from gateway.cache.flight import Failed, Landed, Landing, NotShareable
from gateway.cache.request import CacheRequest
from gateway.clock import Clock
from gateway.context import Outcome, RequestContext, Result
from gateway.errors import PROBLEM_MEDIA_TYPE, LimitReached, UpstreamError, problem_body, quota_body
from gateway.http.codings import CODINGS
from gateway.http.headers import CONTENT_DIGESTS, WITHOUT_CONTENT, Headers, first, has, http_date, without
from gateway.http.ranges import ByteRange, OutOfRange, cut, span_of, wanted
from gateway.http.request_parser import BAD_IN_VALUE, NAME
from gateway.http.response_parser import Fields
from gateway.policy import freshness, storability, validation
from gateway.policy.entry import Entry
from gateway.policy.keys import key_hash
from gateway.policy.rules import CONDITIONS, CachePolicy
from gateway.policy.storability import StoredForm
from gateway.upstreams.response import Fetched, PartOfBody, ResponseBody, WholeBody


class Answer(msgspec.Struct, frozen=True):
    """The client's response: the body as bytes, or still to be streamed."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes | ResponseBody
    form: object = None
    """Equal for responses of one route with the same names of fields in the same order, which have the same values but
    where these are copied; with a length and a date, and no field of a hop. None if that is not known."""


def stored_answer(
    exchange: RequestContext,
    request: Headers,
    stored: Entry,
    rules: CachePolicy,
    now: float,
    coded: Coded | None = None,
    *,
    conditional: bool = True,
    form: StoredForm | None = None,
) -> Answer:
    """A stored response in the form a request needs: complete, a 304, a range, or its head. `conditional` is whether
    the request may have fields for that.

    `coded` is its compressed form, if there are several; a range is always of the uncompressed form.
    """
    plain = freshness.response_headers(stored, rules, now)
    headers, body, coding = plain, stored.body, None
    if coded is not None:
        coding = None if has(request, b"range") else coded.coding
        headers = coded.told(plain, coding)
        body = coded.body if coding is not None else body
    head = exchange.method == "HEAD"
    if conditional and stored.status == 200:
        asked = [name for name, _ in request if name in CONDITIONS]
        known = _known_form(request, stored, plain, headers, coded) if asked else None
        if known is not None:
            return Answer(304, validation.fields_of_304(known), b"")
        part = wanted(request, headers, len(stored.body)) if b"range" in asked and not head else None
        if isinstance(part, ByteRange):
            return partial(headers, part, stored.body[part.first : part.last + 1])
        if isinstance(part, OutOfRange):
            return out_of_range(exchange, part)
    if stored.status in WITHOUT_CONTENT:
        body = b""
    else:
        headers.append((b"content-length", b"%d" % len(body)))
    if head:
        return Answer(stored.status, of_head(headers), b"")
    return Answer(stored.status, headers, body, form if form is None or coded is None else (form, coding))


def passed(fetched: Fetched) -> Answer:
    """A response for its client alone, as its upstream sent it."""
    received, body = fetched.headers, fetched.body
    form = received.form if type(received) is Fields else None
    known = None if form is None else storability.passed_form(form)
    if known is None:
        return Answer(fetched.status, storability.passed_on(received), body)
    is_whole = type(body) is WholeBody and int(received[known.length][1]) == len(body.content)
    return Answer(fetched.status, [*known.pick(received)], body, known if is_whole else None)


def of_head(headers: Headers) -> list[tuple[bytes, bytes]]:
    """The fields of a GET response for a HEAD: a digest of the content would have to be that of no content (RFC 9530,
    B.2)."""
    return without(headers, *CONTENT_DIGESTS)


def _known_form(
    request: Headers,
    stored: Entry,
    plain: list[tuple[bytes, bytes]],
    headers: list[tuple[bytes, bytes]],
    coded: Coded | None,
) -> list[tuple[bytes, bytes]] | None:
    """The headers of the form that the client has already, by its own precondition; None if it has none. A client that
    once got the uncompressed form, because the other was not made yet, need not fetch it again."""
    if validation.not_modified(request, headers, stored.born):
        return headers
    if coded is None or not has(request, b"if-none-match"):
        return None
    forms = (coded.told(plain, coding) for coding in (None, *CODINGS))
    return next((form for form in forms if validation.not_modified(request, form, stored.born)), None)


def part_answer(request: Headers, stored: Entry, rules: CachePolicy, now: float) -> Answer | None:
    """A range from a stored part (206); None if the part does not contain all of it."""
    span = span_of(stored.headers)
    piece = cut(request, stored.headers, span, stored.body) if span is not None else None
    if piece is None:
        return None
    return partial(freshness.response_headers(stored, rules, now), *piece)


def out_of_range(exchange: RequestContext, part: OutOfRange) -> Answer:
    answer = problem(exchange, 416, "The range is not satisfiable.")
    answer.headers.append((b"content-range", b"bytes */%d" % part.size))
    return answer


def partial(headers: Headers, part: ByteRange, body: bytes | ResponseBody) -> Answer:
    # A stored part may have fewer bytes than its upstream's Content-Range declared.
    length = len(body) if isinstance(body, bytes) else part.last - part.first + 1
    fields = [(b"content-range", part.content_range), (b"content-length", b"%d" % length)]
    # Some upstreams send Content-Range with a whole response, too.
    kept = without(headers, b"content-range", b"content-length", *CONTENT_DIGESTS)
    return Answer(206, [*kept, *fields], body)


def problem(exchange: RequestContext, status: int, detail: str, *, title: str | None = None) -> Answer:
    """Problem Details (RFC 9457), never to be stored."""
    body = problem_body(status, detail, exchange.request_id, title)
    headers = [
        (b"content-type", PROBLEM_MEDIA_TYPE),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        (b"date", http_date(int(time.time()))),
    ]
    return Answer(status, headers, b"" if exchange.method == "HEAD" else body)


def limit_reached(exchange: RequestContext, reached: LimitReached) -> Answer:
    """The 429 of a rate limit, never to be stored. The request after `Retry-After` passes."""
    seconds = max(1, math.ceil((reached.retry_after or 0.0) + 1e-3))
    answer = problem(exchange, reached.status, "")
    body = quota_body(reached, seconds, exchange.request_id)
    fields = [(b"content-length", b"%d" % len(body)), (b"retry-after", b"%d" % seconds)]
    headers = [*without(answer.headers, b"content-length"), *fields]
    return Answer(answer.status, headers, b"" if exchange.method == "HEAD" else body)


def is_writable(status: int, headers: Headers) -> bool:
    """Whether the response can be written directly: its end is certain, and no field is invalid in the head."""
    names = [name for name, _ in headers]
    return (
        (b"content-length" in names or status in (204, 304))
        and names.count(b"age") == 1
        and b"date" in names
        and b"connection" not in names
        and b"transfer-encoding" not in names
        and all(NAME.fullmatch(name) and not BAD_IN_VALUE.search(value) for name, value in headers)
    )


class Responder:
    def __init__(
        self,
        *,
        clock: Clock,
        traffic: Traffic,
        prepared: Compressor,
        fetching: Fetcher,
        background: Background,
        durations: Durations,
    ) -> None:
        self._clock = clock
        self._traffic = traffic
        self._prepared = prepared
        self._fetching = fetching
        self._background = background
        self._durations = durations

    def from_stored(
        self,
        request: CacheRequest,
        stored: Entry,
        result: Result,
        *,
        tier: str | None = None,
        forward: str | None = None,
        status: int | None = None,
        kept: bool = False,
        collapsed: bool = False,
        detail: str | None = None,
        form: StoredForm | None = None,
    ) -> Answer:
        now, exchange, route = self._clock.now(), request.exchange, request.route
        rules = route.rules
        exchange.stored = stored
        exchange.key = key = key_hash(request.plan.base)
        self._traffic.recorders[route.name].seen(key, now)
        fresh_for = int(freshness.windows(stored, rules).fresh - now) if forward is None else None
        exchange.outcome = Outcome(
            result,
            forward=forward,
            forward_status=status,
            ttl=fresh_for,
            stored=kept,
            collapsed=collapsed,
            tier=tier,
            detail=detail,
        )
        if request.bare:
            return Answer(stored.status, [], b"")
        begin = result is not Result.MISS or collapsed  # a response that may be asked for again
        may_be_coded = freshness.is_compressible(stored, rules, is_text=None if form is None else form.is_text)
        coded = self._prepared.choose(request.headers, stored, begin=begin) if may_be_coded else None
        conditional = request.facts.conditional
        return stored_answer(exchange, request.headers, stored, rules, now, coded, conditional=conditional, form=form)

    def landed(
        self,
        request: CacheRequest,
        landing: Landing,
        stale: Entry | None,
        forward: str,
        *,
        collapsed: bool,
        detail: str | None = None,
    ) -> Answer:
        match landing:
            case Landed(stored, status, kept, form):
                result = Result.REVALIDATED if status == 304 else Result.MISS
                return self.from_stored(
                    request, stored, result, forward=forward, status=status, kept=kept, collapsed=collapsed, form=form
                )
            case Failed():
                return self.failed(request, landing, stale, forward, collapsed=collapsed)
            case NotShareable(fetched, reason, answered):
                return self.streamed(request, fetched, forward, detail or reason, answered)
            case _:
                assert_never(landing)

    def failed(
        self, request: CacheRequest, failed: Failed, stale: Entry | None, forward: str, *, collapsed: bool
    ) -> Answer:
        if isinstance(failed.error, UpstreamError):
            request.exchange.failure = failed.error.why
        if stale is not None and self._fetching.usable_on_error(request, stale):
            return self.from_stored(
                request, stale, Result.STALE_ERROR, forward="stale", status=failed.status, collapsed=collapsed
            )
        if failed.error is not None:
            if not isinstance(failed.error, UpstreamError):
                raise failed.error
            return self.broken(request.exchange, failed.error, forward=forward, collapsed=collapsed)
        request.exchange.outcome = Outcome(
            Result.MISS, forward=forward, forward_status=failed.status, collapsed=collapsed
        )
        headers = _with_length(storability.passed_on(failed.headers), len(failed.body))
        if request.facts.head:
            return Answer(failed.status, of_head(headers), b"")
        return Answer(failed.status, headers, failed.body)

    def streamed(
        self, request: CacheRequest, fetched: Fetched, forward: str, detail: str | None, answered: int | None = None
    ) -> Answer:
        status = fetched.status if answered is None else answered
        request.exchange.outcome = Outcome(Result.MISS, forward=forward, forward_status=status, detail=detail)
        answer = passed(fetched)
        headers = answer.headers
        if request.facts.head and not request.route.follows_origin:  # the upstream request was a GET
            headers = of_head(headers)
            answer = Answer(fetched.status, headers, fetched.body)
        if not request.facts.conditional:
            return answer
        if fetched.status in (200, 206) and validation.not_modified(request.headers, headers, self._clock.now()):
            self._background.spawn(fetched.body.aclose())
            return Answer(304, validation.fields_of_304(headers), b"")
        part = _part_of(request, fetched, headers)
        if isinstance(part, OutOfRange):
            self._background.spawn(fetched.body.aclose())
            return out_of_range(request.exchange, part)
        if part is not None:
            return partial(headers, part, PartOfBody(fetched.body, part.first, part.last))
        return answer

    def broken(
        self, exchange: RequestContext, error: UpstreamError, *, forward: str, collapsed: bool = False
    ) -> Answer:
        exchange.failure = error.why
        exchange.outcome = Outcome(Result.ERROR, forward=forward, collapsed=collapsed, detail=error.kind)
        if isinstance(error, LimitReached):
            return limit_reached(exchange, error)
        answer = problem(exchange, error.status, f"{error.title} ({error.upstream}).", title=error.title)
        if error.status == 503:
            seconds = error.retry_after if error.retry_after is not None else self._durations.retry_after
            answer.headers.append((b"retry-after", b"%d" % max(1, math.ceil(seconds))))
        return answer

    def unsatisfiable(self, request: CacheRequest) -> Answer:
        request.exchange.outcome = Outcome(Result.ERROR, forward="request", detail="only-if-cached")
        return problem(request.exchange, 504, "No stored response is available (only-if-cached).")


def _part_of(request: CacheRequest, fetched: Fetched, headers: Headers) -> ByteRange | OutOfRange | None:
    """The requested part of a complete response for one client, on a route whose stored responses support ranges; None
    for all of it, also if its length is unknown."""
    length = first(headers, b"content-length")
    if (
        fetched.status != 200
        or length is None
        or request.route.follows_origin
        or request.route.local
        or request.facts.head
    ):
        return None
    return wanted(request.headers, headers, int(length))


def _with_length(headers: list[tuple[bytes, bytes]], length: int) -> list[tuple[bytes, bytes]]:
    return [*without(headers, b"content-length"), (b"content-length", b"%d" % length)]
