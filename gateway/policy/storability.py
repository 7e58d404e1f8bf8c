"""Whether and in which form a response may be stored (RFC 9111 §3), with its explicit or heuristic lifetime. Pure.

Field names are parsed in `headers`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from itertools import chain
from operator import itemgetter
from typing import Any

import msgspec

from gateway.http.headers import (
    DATE_LENGTH,
    HOP_BY_HOP,
    NO_DIRECTIVES,
    CacheControl,
    Headers,
    combined,
    connection_named,
    date_on,
    dictionary,
    end_to_end,
    first,
    has,
    parse_age,
    parse_date,
    split_list,
    values,
    vary_names,
)
from gateway.http.response_parser import Fields, HeadForm
from gateway.policy.entry import NEVER_STORED_STATUS, Life
from gateway.policy.freshness import has_text
from gateway.policy.keys import Plan, holds_identity
from gateway.policy.rules import DAY, NEGATIVE_STATUSES, CachePolicy, RequestDirectives

# RFC 9110 §15.1: what may be given a heuristic lifetime. 206 is left to partial content.
HEURISTIC_STATUSES = frozenset((200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501))
# Statuses to which a route's own duration may apply: those whose response describes the resource.
TTL_STATUSES = frozenset((200, 203, 204, 300, 301, 308))
# Status codes whose caching requirements are understood here (RFC 9111 §3, `must-understand`).
UNDERSTOOD_STATUSES = HEURISTIC_STATUSES | frozenset(
    (201, 202, 205, 302, 303, 307, 400, 401, 402, 403, 406, 408, 409, 411, 412, 413, 415, 416, 417, 421, 422)
) | frozenset((423, 424, 425, 426, 428, 429, 431, 451, 500, 502, 503, 504, 505, 506, 507, 508, 511))  # fmt: skip
HEURISTIC_FRACTION = 0.1  # RFC 9111 §4.2.2 suggests 10 % of the time since Last-Modified
HEURISTIC_LIMIT = DAY


Pick = Callable[[Headers], tuple[tuple[bytes, bytes], ...]]
"""Some of the fields of a head, by their places."""


class Admit(msgspec.Struct, frozen=True):
    """The response may be stored. `headers` are those to store, `vary` the fields that select it."""

    life: Life
    headers: tuple[tuple[bytes, bytes], ...]
    vary: tuple[str, ...]
    initial_age: float
    tags: tuple[str, ...] = ()
    """Those that the upstream gave it."""
    form: StoredForm | None = None
    """What the response has in common with others that were stored by the same rules, if that is known."""


NO_LIFETIME = "no-lifetime"


class Refuse(msgspec.Struct, frozen=True):
    """The response may not be stored. A failure may be shared with waiting requests unless it is `personal`."""

    reason: str
    personal: bool = False


class ReceivedResponse(msgspec.Struct, frozen=True):
    """A response as received: the status, the fields, when its request was sent and its head arrived (seconds), and the
    stamp of its fetch."""

    status: int
    headers: Headers
    sent: float
    arrived: float
    stamp: str = ""


TAG_FIELDS = frozenset((b"surrogate-key", b"cache-tag", b"xkey"))
"""Fields in which upstreams name tags of a response, by which it can be purged."""
MAX_TAGS = 256
_TAG_END = re.compile(r"[\s,]+")


def tags_of(headers: Headers) -> tuple[str, ...]:
    """The tags that an upstream gave a response, separated by space or comma; at most 256."""
    text = b" ".join([value for name, value in headers if name in TAG_FIELDS]).decode("latin-1")
    return tuple(dict.fromkeys(tag for tag in _TAG_END.split(text) if tag))[:MAX_TAGS]


# Never stored: they describe one exchange, not the resource. The gateway computes CORS fields (see `strip_cors`).
NOT_STORED = frozenset((b"server-timing", b"x-request-id", b"age", b"x-process-time"))
OWN_FIELD = b"gateway-cache-control"
SURROGATE = b"surrogate-control"
FOR_US = frozenset((OWN_FIELD, SURROGATE))
"""Fields for this cache only: applied, and not forwarded."""
_ENDING_HERE = HOP_BY_HOP | FOR_US
_TARGETED = (OWN_FIELD, b"cdn-cache-control")
_DECISIVE = frozenset(
    (
        *(*_TARGETED, SURROGATE, b"cache-control", b"pragma"),
        *(b"vary", b"content-type", b"connection"),
    )
)
"""All fields of a response whose values decide whether and how it is stored, without its dates."""
_DATED = (b"expires", b"last-modified")
"""Fields from which a lifetime is computed with the response's own date, where it states none in seconds."""
_DECIDING = _DECISIVE.union((b"etag", b"set-cookie", b"set-cookie2"), _DATED)
"""These, and the fields of which it matters only whether a response has them, but for dates that decide."""


def passed_on(headers: Headers) -> list[tuple[bytes, bytes]]:
    """The fields of an upstream's response for a client if it is not stored."""
    return end_to_end(headers, _ENDING_HERE)


class PassedForm(msgspec.Struct, frozen=True, eq=False):
    """What is the same for all responses whose heads have one form, if they are not stored."""

    pick: Pick
    """The fields that are passed on, `Date` and `Content-Length` among them."""
    length: int
    """The place of `Content-Length` among the fields received."""


@lru_cache(maxsize=256)
def passed_form(form: HeadForm) -> PassedForm | None:
    """The form in which responses of a head form are passed on; None if it has no length, or no date."""
    names = [name for name, _ in passed_on(form.last)]
    pick = _picked(form, names)
    if pick is None or b"date" not in names or b"content-length" not in names:
        return None
    return PassedForm(pick, form.names.index(b"content-length"))


def _picked(form: HeadForm, names: Collection[bytes]) -> Pick | None:
    """Picks the fields with these `names`; None for fewer than two, of which an itemgetter gives no tuple."""
    places = [place for place, name in enumerate(form.names) if name in names]
    return itemgetter(*places) if len(places) > 1 else None


LONGEST_REST = 600.0
"""Maximum seconds for which a key backs off by `Retry-After`; also the default of `stale_if_error`."""


def retry_after(received: ReceivedResponse) -> float | None:
    """The seconds of a 429's or 503's `Retry-After` (RFC 9110 §10.2.3: seconds or a date), at most ten minutes; None if
    there is none."""
    text = first(received.headers, b"retry-after") if received.status in (429, 503) else None
    if text is None:
        return None
    at = parse_date(text, received.arrived)
    seconds = float(text) if text.isdecimal() and text.isascii() else None if at is None else at - received.arrived
    return None if seconds is None else min(max(0.0, seconds), LONGEST_REST)


def admit(
    received: ReceivedResponse, facts: RequestDirectives, rules: CachePolicy, plan: Plan | None = None
) -> Admit | Refuse:
    """Whether a response to a GET may be stored, and as what (RFC 9111 §3). A `private` one may, where by its `plan` it
    is stored for its user alone."""
    if rules.off:
        return Refuse("off")
    headers = received.headers
    identity = (plan.keyed, plan.unkeyed) if plan is not None else ((), ())
    form = headers.form if type(headers) is Fields else None
    of_form = form, identity, facts.authorized
    known: StoredForm | Refuse | None = None if form is None else rules.terms.get(of_form)
    if known is not None:
        return known if isinstance(known, Refuse) else known.admitted(received)
    named = dict(reversed(headers))  # the first line of a name counts
    decisive = tuple([pair if pair[0] in _DECISIVE else pair[:1] for pair in headers if pair[0] in _DECIDING])
    deciding = received.status, decisive, identity, facts.authorized
    terms: _Terms | Refuse | None = rules.terms.get(deciding)
    if terms is None:
        terms = _terms(received, rules, *identity, authorized=facts.authorized)
        short = sum(map(len, chain(*identity, *decisive))) <= _SHORT
        if short and (named.keys().isdisjoint(_DATED) or _is_undated(headers, terms)):
            _keep(rules, deciding, terms)
    elif form is not None and (known := _by_form(form, headers, terms)) is not None:
        _keep(rules, of_form, known)
    if isinstance(terms, Refuse):
        return terms
    dropped = terms.dropped
    stored = tuple([pair for pair in headers if pair[0] not in dropped])
    tags = () if TAG_FIELDS.isdisjoint(named) else tags_of(headers)
    return Admit(terms.life, stored, terms.vary, initial_age(received, named), tags)


class StoredForm(msgspec.Struct, frozen=True, eq=False):
    """What is the same for all responses whose heads have one form, and that are stored by the same rules."""

    life: Life
    vary: tuple[str, ...]
    pick: Pick
    """The fields that are stored."""
    names: frozenset[bytes]
    """Those of the fields that are stored."""
    date: int
    """The place of `Date` among the fields received."""
    is_text: bool
    """Whether a body may be sent in another coding, as `freshness.has_text` says."""

    def admitted(self, received: ReceivedResponse) -> Admit:
        headers = received.headers
        age = _apparent_age(received, headers[self.date][1])
        return Admit(self.life, self.pick(headers), self.vary, age, (), self)


def _by_form(form: HeadForm, headers: Headers, terms: _Terms | Refuse) -> StoredForm | Refuse | None:
    """What `terms` say about all responses of a head form, in whose `constant` fields all are that decide; None where
    more is read."""
    if isinstance(terms, Refuse):
        return terms
    pick = _picked(form, [name for name in form.names if name not in terms.dropped])
    if pick is None or b"date" not in form.names or not _READ.isdisjoint(form.names):
        return None
    stored = pick(headers)
    names, date = frozenset([name for name, _ in stored]), form.names.index(b"date")
    return StoredForm(terms.life, terms.vary, pick, names, date, has_text(stored))


class _Terms(msgspec.Struct, frozen=True):
    """The entry for a response, without its age. The fields `dropped` are not stored."""

    life: Life
    vary: tuple[str, ...]
    dropped: frozenset[bytes]


_SHORT = 512
"""Bytes of decisive fields up to which the terms are kept."""
_MOST_TERMS = 64
"""Terms that are kept with the rules of one route."""
_READ = TAG_FIELDS | {b"age"}
"""Fields of which more is read for each response than whether there are any, beside `Date`."""


def _keep(rules: CachePolicy, deciding: Any, terms: _Terms | Refuse | StoredForm) -> None:
    if len(rules.terms) >= _MOST_TERMS:
        rules.terms.clear()
    rules.terms[deciding] = terms


def _is_undated(headers: Headers, terms: _Terms | Refuse) -> bool:
    """Whether the dates of a response do not decide about it: its lifetime is stated in seconds, or it is refused
    whatever that is."""
    if isinstance(terms, Refuse):
        return terms.reason != NO_LIFETIME
    return _stated_seconds(governing(headers)[0]) is not None


def _terms(
    received: ReceivedResponse,
    rules: CachePolicy,
    keyed: tuple[str, ...],
    unkeyed: tuple[str, ...],
    *,
    authorized: bool,
) -> _Terms | Refuse:
    headers = received.headers
    directives, targeted = governing(headers)
    names = vary_names(headers)
    own = names is not None and holds_identity(keyed, unkeyed, names)
    refusal = _personal(headers, directives, own=own) or _unstorable(received, rules, directives, authorized=authorized)
    if refusal:
        return refusal
    if names is None:
        return Refuse("vary")
    life = _life(received, directives, rules, targeted=targeted)
    if rules.ttl is None and not _worth_storing(received.status, life, headers, rules):
        return Refuse(NO_LIFETIME)
    return _Terms(life, names if rules.ttl is None else (), _not_kept(headers, directives))


def governing(headers: Headers) -> tuple[CacheControl, bool]:
    """The directives for this cache, and whether they came in a targeted field (RFC 9213 §2.2). Targeted fields are
    dictionaries of structured fields (RFC 8941); an invalid one is ignored."""
    for name in _TARGETED:
        if has(headers, name) and (directives := _structured(headers, name)):
            return directives, True
    surrogate = _surrogate(headers) if has(headers, SURROGATE) else NO_DIRECTIVES
    return (surrogate, True) if surrogate else (CacheControl.of(headers), False)


def _surrogate(headers: Headers) -> CacheControl:
    """`Surrogate-Control` (Edge Architecture 1.0, W3C Note 2001): elements for another surrogate are not for us.

    It has `no-store` and `max-age` for a cache, perhaps `max-age=fresh+stale`, whose second half is a stale window.
    """
    lines = []
    for item in split_list(combined(headers, SURROGATE) or ""):
        directive, _, target = item.partition(";")
        if target.strip() in ("", "gateway"):
            fresh, plus, stale = directive.partition("+")
            lines += [fresh, f"stale-while-revalidate={stale.strip()}"] if plus else [directive]
    directives = CacheControl.parse(lines)
    return directives if "max-age" in directives or "no-store" in directives else NO_DIRECTIVES


def _structured(headers: Headers, name: bytes) -> CacheControl:
    """A targeted field: a dictionary of structured fields, None if its syntax is invalid (RFC 9213 §2.1)."""
    members = dictionary(combined(headers, name) or "")
    directives = {key: _argument(value) for key, value in (members or {}).items() if _well_typed(key, value)}
    return CacheControl(directives) if directives else NO_DIRECTIVES


_NUMERIC = frozenset(("max-age", "s-maxage", "stale-while-revalidate", "stale-if-error"))


def _well_typed(key: str, value: object) -> bool:
    """A lifetime is an integer, any other directive is not false; what has another type is ignored (RFC 9213 §2.1)."""
    return type(value) is int and value >= 0 if key in _NUMERIC else value is not False


def _argument(value: object) -> str | None:
    return None if value is True else str(value)


def _personal(headers: Headers, directives: CacheControl, *, own: bool) -> Refuse | None:
    if directives.unqualified("private") and not own:
        return Refuse("private", personal=True)
    if has(headers, b"set-cookie") or has(headers, b"set-cookie2"):
        named = directives.fields("private") | directives.fields("no-cache")
        if b"set-cookie" not in named:
            return Refuse("set-cookie", personal=True)
    return None


def _unstorable(
    received: ReceivedResponse, rules: CachePolicy, directives: CacheControl, *, authorized: bool
) -> Refuse | None:
    status = received.status
    understood = "must-understand" in directives and status in UNDERSTOOD_STATUSES
    if "must-understand" in directives and status not in UNDERSTOOD_STATUSES:
        return Refuse("not-understood")
    if "no-store" in directives and not understood:
        return Refuse("no-store", personal=True)
    if status < 200 or status in NEVER_STORED_STATUS or status > 599:
        return Refuse("status")
    if is_endless(received.headers):
        return Refuse("endless")
    if rules.ttl is None:
        if authorized and not _shared_despite_authorization(directives):
            return Refuse("authorization", personal=True)
        return None
    if status not in TTL_STATUSES and not (status in NEGATIVE_STATUSES and rules.negative_ttl > 0):
        return Refuse("status")
    return None


_ENDLESS = frozenset(("text/event-stream", "multipart/x-mixed-replace", "application/x-ndjson", "application/ndjson"))
"""Content types of responses that last as long as their connection."""


def is_endless(headers: Headers) -> bool:
    """Whether a response, whose field names are in lower case, has a content type of endless responses."""
    content_type = first(headers, b"content-type") or ""
    return content_type.partition(";")[0].strip().lower() in _ENDLESS


def _shared_despite_authorization(directives: CacheControl) -> bool:
    return any(name in directives for name in ("public", "s-maxage", "must-revalidate"))


def _life(received: ReceivedResponse, directives: CacheControl, rules: CachePolicy, *, targeted: bool) -> Life:
    headers = received.headers
    no_cache = directives.unqualified("no-cache") or (
        not directives and "no-cache" in CacheControl.of(headers, b"pragma")
    )
    strict = any(name in directives for name in ("must-revalidate", "proxy-revalidate", "s-maxage"))
    lifetime = _stated_lifetime(received, directives, targeted=targeted)
    return Life(
        lifetime=lifetime,
        heuristic=_heuristic_lifetime(received, directives) if lifetime is None else 0.0,
        stale_while_revalidate=directives.seconds("stale-while-revalidate"),
        stale_if_error=directives.seconds("stale-if-error"),
        strict=strict,
        no_cache=no_cache,
        shared=_shared_despite_authorization(directives),
        promised=rules.ttl is None and (strict or no_cache),
    )


def _stated_lifetime(received: ReceivedResponse, directives: CacheControl, *, targeted: bool) -> float | None:
    """The lifetime a response states, for a shared cache (RFC 9111 §4.2.1)."""
    seconds = _stated_seconds(directives)
    if seconds is not None:
        return float(seconds)
    expires = values(received.headers, b"expires")
    if targeted or not expires:
        return None
    moments = [parse_date(line.decode("latin-1"), received.arrived) for line in expires]
    known = [moment for moment in moments if moment is not None]
    if len(known) < len(moments):
        return 0.0  # §5.3: an invalid date, "0" above all, is one in the past
    return max(0.0, min(known) - _date_value(received))


def _stated_seconds(directives: CacheControl) -> int | None:
    seconds = directives.seconds("s-maxage")
    return directives.seconds("max-age") if seconds is None else seconds


def _date_value(received: ReceivedResponse) -> float:
    date = parse_date(first(received.headers, b"date"), received.arrived)
    return received.arrived if date is None else date


def _heuristic_lifetime(received: ReceivedResponse, directives: CacheControl) -> float:
    """The heuristic lifetime of a response without an explicit one (RFC 9111 §4.2.2)."""
    if received.status not in HEURISTIC_STATUSES and "public" not in directives:
        return 0.0
    modified = parse_date(first(received.headers, b"last-modified"), received.arrived)
    if modified is None:
        return 0.0
    return min(max(0.0, (_date_value(received) - modified) * HEURISTIC_FRACTION), HEURISTIC_LIMIT)


def _worth_storing(status: int, life: Life, headers: Headers, rules: CachePolicy) -> bool:
    """Under `ttl: origin`: a lifetime was stated, may be assumed, or validators make a later 304 possible."""
    if life.lifetime is not None:
        return life.lifetime > 0 or has_validator(headers) or bool(life.stale_while_revalidate)
    if life.heuristic > 0 or (status in NEGATIVE_STATUSES and rules.negative_ttl > 0):
        return True
    return status in (200, 203) and has_validator(headers)


def _not_kept(headers: Headers, directives: CacheControl) -> frozenset[bytes]:
    """The fields not to store: of this hop, of one exchange, and those that `no-cache` and `private` list (§5.2.2.4,
    §5.2.2.7)."""
    listed = directives.fields("no-cache") | directives.fields("private")
    return HOP_BY_HOP | connection_named(headers) | NOT_STORED | FOR_US | listed | {b"content-length"}


def initial_age(received: ReceivedResponse, named: Mapping[bytes, bytes]) -> float:
    """The corrected initial age (RFC 9111 §4.2.3): the greater of what `Date` and `Age` make it. `named` has the first
    line of each field."""
    apparent = _apparent_age(received, named.get(b"date", b""))
    if b"age" not in named:
        return apparent
    return max(apparent, parse_age(received.headers) + max(0.0, received.arrived - received.sent))


def _apparent_age(received: ReceivedResponse, dated: bytes) -> float:
    """The age by the value of `Date`, or none."""
    arrived, date = received.arrived, date_on(dated[:DATE_LENGTH], received.arrived // DAY)
    delay = max(0.0, arrived - received.sent)
    # `Date` has whole seconds: an upstream on our own clock must not make every response a second old.
    return 0.0 if date is None or arrived - date < 1.0 + delay else arrived - date


def has_validator(headers: Headers) -> bool:
    return has(headers, b"etag") or has(headers, b"last-modified")
