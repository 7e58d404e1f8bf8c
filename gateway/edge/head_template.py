"""The bytes of response heads, made at once or as templates.

Decides how a head is written: the response's own fields (`template_of`), then the diagnostic fields (`Ending`), both
from the lists that the app sends, with placeholders for the values that differ from one response to the next. It must
not know those values, or whose response it is. `Heads` keeps templates of whole heads for responses that are no hits.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import lru_cache
from http import HTTPStatus
from itertools import count
from operator import itemgetter

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from gateway.cache.respond import is_writable
from gateway.context import RequestContext
from gateway.http.headers import Headers
from gateway.http.request_parser import BAD_IN_VALUE
from gateway.observability import response_headers
from gateway.observability.response_headers import Texts, in_milliseconds
from gateway.policy.downstream import NOTHING, Downstream
from gateway.policy.vary import Names

INTERIM = (HTTPStatus.PROCESSING, HTTPStatus.EARLY_HINTS)
"""Interim responses that are passed on; 101 is a hop's own affair, and so are 100 and unknown ones (RFC 9110 §15.2)."""
_NOT_OF_INTERIM = frozenset((b"connection", b"content-length", b"transfer-encoding"))  # RFC 9110 §8.6, RFC 9112 §6.1
TICKS = 1000
"""For how many microseconds the texts of a time are made beforehand."""
MARK = b"\0"
"""The placeholder for a value in a template; no field can contain it (RFC 9110 §5.5)."""
_ID, _SECONDS, _DURATION, _TOTAL, _TTL = "\0i", "\0s", "\0d", "\0t", "\0l"
_MARKED = Texts(_ID, _SECONDS, _TOTAL, lambda _: _DURATION, _TTL)
_MARKS = re.compile(rb"(\0[a-z])")
CLOSES = b"connection: close\r\n"
KEEPS = b"connection: keep-alive\r\n"
"""For an HTTP/1.0 client whose connection stays open, as it requested (RFC 9112 §C.2.2)."""


def lines_of(headers: Headers) -> bytes:
    return b"".join([name + b": " + value + b"\r\n" for name, value in headers])


def start_of(status: int, headers: Headers) -> bytes:
    """A head up to where more fields may follow."""
    return STATUS_LINE[status] + lines_of(headers)


def head_of(status: int, headers: Headers) -> bytes:
    return STATUS_LINE[status] + lines_of(headers) + b"\r\n"


def interim_head(status: int, headers: Headers) -> bytes:
    """An interim response as it goes out. The fields of CORS are the gateway's own, and those of the final response."""
    fields = [pair for pair in headers if pair[0] not in _NOT_OF_INTERIM and not pair[0].startswith(b"access-control-")]
    line = b"HTTP/1.1 %d %s\r\n" % (status, HTTPStatus(status).phrase.encode("ascii"))
    return line + lines_of(fields) + b"\r\n"


def template_of(status: int, headers: Headers, varying: tuple[bytes, ...]) -> bytes | None:
    """The status line and a response's own fields, as a template (`%`) that takes the values of the fields `varying`,
    in this order; None if these are not present once each in this order, or the response can't be written directly."""
    if tuple(name for name, _ in headers if name in varying) != varying or not is_writable(status, headers):
        return None
    marked = [(name, b"%b" if name in varying else value.replace(b"%", b"%%")) for name, value in headers]
    return start_of(status, marked)


class Ending:
    """The end of a head, from the diagnostic fields on, for all responses of one form: those of one route and outcome,
    with the same activities and parts. `start` ends before the request ID."""

    __slots__ = ("_before_ttl", "_last", "start", "ticks", "timing")

    def __init__(self, exchange: RequestContext) -> None:
        """`exchange` is that of an answer of this form; its outcome has a `ttl`."""
        text = lines_of(response_headers.diagnostics(exchange, _MARKED)) + b"\r\n"
        self.start, *more = _MARKS.split(text)
        marks, pieces = more[::2], more[1::2]
        durations = [_DURATION] * (len(marks) - 4)
        assert marks == [mark.encode() for mark in (_ID, _SECONDS, *durations, _TOTAL, _TTL)]
        before_seconds, *before_total, self._before_ttl, self._last = pieces
        times = _times(before_seconds, tuple(before_total))
        self.timing = times.text
        """The text between the request ID and the end of the total time."""
        self.ticks = times.ticks
        """The same by microseconds, if only the total is included."""

    def status(self, ttl: float) -> bytes:
        """The text after the timing; `ttl` is in seconds."""
        return b"%b%d%b" % (self._before_ttl, ttl, self._last)


def with_last(head: bytes, field: bytes) -> bytes:
    """A head, or the end of one, with a further field line at its end: `CLOSES` or `KEEPS`."""
    return head[:-2] + field + b"\r\n"


class _Times:
    """The part of a head with times, between constant pieces."""

    __slots__ = ("_before_seconds", "_before_total", "ticks")

    def __init__(self, before_seconds: bytes, before_total: tuple[bytes, ...]) -> None:
        self._before_seconds, self._before_total = before_seconds, before_total
        alone = len(before_total) == 1
        self.ticks = [self.text(tick / 1_000_000) for tick in range(TICKS)] if alone else []

    def text(self, elapsed: float, duration: float = 0.0) -> bytes:
        """`elapsed` is the total, `duration` that of everything it was spent on; both in seconds."""
        tick, part = int(elapsed * 1_000_000 + 0.5), int(duration * 1_000_000 + 0.5)
        seconds = _SECONDS_TEXT[tick] if tick < TICKS else b"%.6f" % elapsed
        total = _MILLISECONDS_TEXT[tick] if tick < TICKS else in_milliseconds(elapsed).encode()
        each = _MILLISECONDS_TEXT[part] if part < TICKS else in_milliseconds(duration).encode()
        return b"".join((self._before_seconds, seconds, each.join(self._before_total), total))


_times = lru_cache(maxsize=256)(_Times)  # a thousand texts each, the same for most routes


_SECONDS_TEXT = [b"%.6f" % (tick / 1_000_000) for tick in range(TICKS)]
_MILLISECONDS_TEXT = [in_milliseconds(tick / 1_000_000).encode() for tick in range(TICKS)]


_AGE, _DATE = b"age", b"date"
_CONTROL = b"cache-control"
_COPIED = frozenset((_AGE, b"content-length", b"content-type", _DATE, b"etag", b"last-modified")) | {
    *(b"accept-ranges", b"alt-svc", b"cf-cache-status", b"cf-ray", b"content-language", b"content-security-policy"),
    *(b"link", b"location", b"referrer-policy", b"strict-transport-security", b"via", b"x-content-type-options"),
    *(b"x-frame-options", b"x-request-id"),
}
"""The most common of the fields whose values are copied to the client as they are, whatever they say: those for which
`_decides` needs no call."""
_COPIED_LIFETIME = _COPIED | {_CONTROL}
"""The same, and a lifetime."""
_DECISIVE = frozenset(
    (b"connection", b"expires", b"set-cookie", b"surrogate-control", b"transfer-encoding", b"vary", b"x-accel-expires")
)
"""Fields whose values matter to what makes heads (`Cors`, `Downstream`), or that frame the content."""
_LIFETIME = b"max-age="
_LIFETIME_MARK = b"7291046385"
"""The placeholder for a lifetime in seconds, which has to be a number."""
_SLOT = re.compile(rb"\0([0-9]+);")
"""The placeholder for a value, by its place among those that a template takes."""
_MOST_FORMS = 1024
_MOST_OF_HITS = 128
"""Templates of one route's hits."""
_LONGEST_FORM = 4096
"""Bytes of a head, and of the request's `Origin` with which its template is kept, up to which it is kept."""

Field = tuple[bytes, bytes]
Deciding = tuple[Field | bytes, ...]
"""Fields that decide about a head, and of others, whose values are copied, the names."""
MakeHead = Callable[[Headers, Texts | None], bytes]
"""The head of a response with these fields of its own, and these texts in its diagnostic fields; None: those of now."""


class _Form:
    """A template, which takes the values `in_order`, and whose route it is."""

    __slots__ = ("control", "downstream", "in_order", "template")

    def __init__(
        self, downstream: Downstream, template: bytes, order: tuple[int, ...], control: int | None = None
    ) -> None:
        self.downstream, self.template, self.in_order = downstream, template, itemgetter(*order)
        self.control = control
        """The place of the field with the lifetime among a response's own; None where it takes none."""

    def filled(self, values: list[bytes]) -> bytes:
        head: bytes = self.template % self.in_order(values)
        return head

    def gives(self, head: bytes, values: list[bytes]) -> bool:
        """Whether it gives this head, in which no placeholder stands by chance."""
        return self.filled(values) == head and _LIFETIME_MARK not in head


class Heads:
    """The heads of responses that are no hits of the edge. Most values in them are copied from the response, so one
    template serves all responses with the same names and the same deciding fields.

    It is made of slots for values by the functions that make every head, when such a response comes for the second time
    (a deciding field may have another value each time), and is kept only if it gives the bytes that they give for the
    response by which it is made. A response without `Date` has none, as it gets that of the moment, nor has one with
    `Set-Cookie`, which is one client's.
    """

    def __init__(self) -> None:
        self._forms: dict[tuple[object, ...], _Form | None] = {}
        self._by_form: dict[tuple[object, ...], _Form | None] = {}
        """The same templates by `Answer.form`."""

    def __repr__(self) -> str:
        return f"<Heads {_number_of(self._forms)} templates>"

    def head(
        self,
        exchange: RequestContext,
        status: int,
        headers: Headers,
        named: dict[bytes, bytes],
        origin: str | None,
        make: MakeHead,
        *,
        close: bool,
        form: object = None,
    ) -> bytes:
        """The head of a response with these fields, which `named` has by name, as `make` makes it, which depends on the
        exchange, on the request's `origin`, and on whether the connection ends (`close`), besides. With a `form`
        (`Answer.form`) its template is found by that the next time."""
        stored = exchange.stored
        if exchange.rate_limit or _DATE not in named or b"set-cookie" in named:
            return make(headers, None)
        deciding, values = _parted(headers, named)
        spent, parts, downstream = exchange.spent, exchange.parts, exchange.downstream
        varied = None if stored is None else stored.vary
        states = tuple([(part.name, part.text) for part in parts]) if parts else ()
        key = (id(downstream), status, exchange.outcome, varied, origin, close, (*spent,), states, deciding)
        template = self._forms.get(key, _UNKNOWN)
        if template is None:
            return make(headers, None)
        if template is _UNKNOWN:
            head = make(headers, None)
            if len(head) + len(origin or "") <= _LONGEST_FORM:
                _keep(self._forms, key, _ONCE, most=_MOST_FORMS)
            return head
        elapsed = time.perf_counter() - exchange.began
        _add_times(values, exchange, elapsed)
        if template is not _ONCE and template.downstream is downstream:
            if form is not None and not parts:
                by_form = (form, id(downstream), len(headers), exchange.outcome, origin, close, (*spent,))
                _keep(self._by_form, by_form, template, most=_MOST_FORMS)
            return template.filled(values)
        texts = Texts(exchange.request_id, f"{elapsed:.6f}", in_milliseconds(elapsed), in_milliseconds)
        head = make(headers, texts)
        template = _form(downstream, deciding, len(spent) + len(parts), make)
        template = template if template is not None and template.gives(head, values) else None
        _keep(self._forms, key, template, most=_MOST_FORMS)
        return head

    def of_form(
        self, exchange: RequestContext, form: object, headers: Headers, origin: str | None, *, close: bool
    ) -> bytes | None:
        """The same for a response of a known `form`, none of whose values has a control character; None where it has no
        template yet, or more than the form decides."""
        if exchange.parts or exchange.rate_limit:
            return None
        spent, downstream = exchange.spent, exchange.downstream
        key = (form, id(downstream), len(headers), exchange.outcome, origin, close, (*spent,))
        template = self._by_form.get(key)
        if template is None or template.downstream is not downstream:
            return None
        values = [value for _, value in headers]
        values.append(b"" if template.control is None else values[template.control][len(_LIFETIME) :])
        _add_times(values, exchange, time.perf_counter() - exchange.began)
        return template.filled(values)


def _add_times(values: list[bytes], exchange: RequestContext, elapsed: float) -> None:
    """Add what the diagnostic fields of a response say: its durations, its ID, and the time it has taken (seconds)."""
    spent = exchange.spent
    order = sorted(spent, key=_CACHE_FIRST) if len(spent) > 1 else spent
    values += [b"%.3f" % (spent[activity] * 1000) for activity in order]
    if exchange.parts:
        values += [b"%.3f" % (part.seconds * 1000) for part in exchange.parts]
    values += (exchange.request_id.encode("ascii"), b"%.6f" % elapsed, b"%.3f" % (elapsed * 1000))


_UNKNOWN, _ONCE = _Form(NOTHING, b"", (0,)), _Form(NOTHING, b"", (0,))
"""Of deciding fields that were never there, and of those that were there once."""
_CACHE_FIRST = "cache".__ne__


def _form(downstream: Downstream, deciding: Deciding, timed: int, make: MakeHead) -> _Form | None:
    """The template of heads with these deciding fields and as many durations; None where `Date` is taken out, as that
    of the moment is put in."""
    places = count(len(deciding) + 1)
    durations = [_slot(next(places)).decode() for _ in range(timed)]
    request_id, seconds, total = (_slot(next(places)).decode() for _ in range(3))
    head = make(_marked(deciding), Texts(request_id, seconds, total, lambda _: durations.pop(0)))
    template, order = _template(head, len(deciding))
    control = deciding.index(_CONTROL) if _CONTROL in deciding else None
    return _Form(downstream, template, order, control) if deciding.index(_DATE) in order else None


class HitHeads:
    """The heads of one route's hits up to the diagnostic fields, as `Heads` keeps those of other responses."""

    def __init__(self) -> None:
        self._forms: dict[tuple[object, ...], _Form | None] = {}

    def __repr__(self) -> str:
        return f"<HitHeads {_number_of(self._forms)} templates>"

    def around_age(
        self, status: int, headers: Headers, varied: Names, origin: str | None, told: Callable[[Headers], Headers]
    ) -> tuple[bytes, bytes] | None:
        """What stands before and after the age in the head of a response with these fields; None if it can't be
        written directly. `told` gives the fields that are sent; besides, it depends on the request fields that select
        the response (`varied`) and on the request's `origin`."""
        named = dict(headers)
        if _AGE not in named:
            return _around_age(status, told(headers))
        deciding, values = _parted(headers, named)
        key = (status, varied, origin, deciding)
        form = self._forms.get(key, _UNKNOWN)
        if form is None or BAD_IN_VALUE.search(b"".join(values)):
            return _around_age(status, told(headers))
        values[deciding.index(_AGE)] = MARK
        if form is not _UNKNOWN and form is not _ONCE:
            before, after = form.filled(values).split(MARK)
            return before, after
        made = _around_age(status, told(headers))
        if made is None or sum(map(len, made)) + len(origin or "") > _LONGEST_FORM:
            return made
        if form is _UNKNOWN:
            _keep(self._forms, key, _ONCE, most=_MOST_OF_HITS)
            return made
        template, order = _template(start_of(status, told(_marked(deciding))), len(deciding))
        form = _Form(NOTHING, template, order) if len(order) > 1 else None
        form = form if form is not None and form.gives(MARK.join(made), values) else None
        _keep(self._forms, key, form, most=_MOST_OF_HITS)
        return made


def _keep(
    forms: dict[tuple[object, ...], _Form | None], key: tuple[object, ...], form: _Form | None, most: int
) -> None:
    if len(forms) >= most and key not in forms:
        forms.clear()
    forms[key] = form


def _number_of(forms: dict[tuple[object, ...], _Form | None]) -> int:
    return sum(form is not None and form is not _ONCE for form in forms.values())


def _around_age(status: int, headers: Headers) -> tuple[bytes, bytes] | None:
    template = template_of(status, headers, (_AGE,))
    if template is None:
        return None
    before, after = (template % MARK).split(MARK)
    return before, after


def _parted(headers: Headers, named: dict[bytes, bytes]) -> tuple[Deciding, list[bytes]]:
    """The fields that decide about a head, of the others the names; and the values of all, and the lifetime in
    Cache-Control, as a template takes them. Where a name stands twice in `headers`, that might be this one."""
    control = named.get(_CONTROL, b"") if len(named) == len(headers) else b""
    lifetime = control[8:] if control.startswith(_LIFETIME) else b""
    copied = _COPIED_LIFETIME if lifetime.isdigit() else _COPIED
    deciding = tuple([name if (name := pair[0]) in copied or not _decides(name) else pair for pair in headers])
    values = [value for _, value in headers]
    values.append(lifetime)
    return deciding, values


def _decides(name: bytes) -> bool:
    """Whether the value of a field is of account for the head that is made."""
    return name in _DECISIVE or name.endswith(_CONTROL) or name.startswith(b"access-control-")


def _marked(deciding: Deciding) -> list[Field]:
    """Fields whose values are slots, but for those that decide."""
    return [
        each if isinstance(each, tuple) else (each, _LIFETIME + _LIFETIME_MARK if each == _CONTROL else _slot(place))
        for place, each in enumerate(deciding)
    ]


def _slot(place: int) -> bytes:
    return b"\0%d;" % place


def _template(head: bytes, lifetime: int) -> tuple[bytes, tuple[int, ...]]:
    """A head with slots as a template, and the places of the values that it takes; `lifetime` is that of a lifetime."""
    constant, *more = _SLOT.split(head.replace(_LIFETIME_MARK, _slot(lifetime)))
    pieces = [piece.replace(b"%", b"%%") for piece in (constant, *more[1::2])]
    return b"%b".join(pieces), tuple(map(int, more[::2]))
