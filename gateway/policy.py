"""Cache policy: RFC 9111 as a shared cache, RFC 5861's stale windows, and the rules of a route.

Pure functions over values: nothing here awaits, reads a clock or touches a store; `now` is an argument. A
decision is one of a closed set of frozen values; the engine matches it once and does what it says.

An entry has three windows, as in Varnish: *fresh*, then *stale-while-revalidate* (served at once, refreshed
behind), then *stale-if-error* (served only where the upstream fails). They are computed when an entry is read,
from its birth, what the upstream said, its jitter and the reader's route as it is configured now.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from msgspec import structs

from .headers import (
    NO_DIRECTIVES,
    CacheControl,
    Headers,
    combined,
    connection_named,
    end_to_end,
    first,
    has,
    http_date,
    is_strong,
    opaque_tag,
    parse_age,
    parse_date,
    split_list,
    unquote,
    values,
    vary_names,
)
from .record import Life, Stored
from .structured import dictionary

DAY = 86_400.0
MAX_LIFE = 7 * DAY

# RFC 9110 §15.1: what may be given a heuristic lifetime. 206 is left to partial content.
HEURISTIC_STATUSES = frozenset((200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501))
NEGATIVE_STATUSES = frozenset((404, 410))
# What a route's own duration may apply to: answers that say what the resource is.
TTL_STATUSES = frozenset((200, 203, 204, 300, 301, 308))
# Status codes whose caching requirements are understood here (RFC 9111 §3, `must-understand`).
UNDERSTOOD_STATUSES = HEURISTIC_STATUSES | frozenset(
    (201, 202, 205, 302, 303, 307, 400, 401, 402, 403, 406, 408, 409, 411, 412, 413, 415, 416, 417, 421, 422)
) | frozenset((423, 424, 425, 426, 428, 429, 431, 451, 500, 502, 503, 504, 505, 506, 507, 508, 511))  # fmt: skip
HEURISTIC_FRACTION = 0.1  # RFC 9111 §4.2.2 suggests 10 % of the time since Last-Modified
HEURISTIC_LIMIT = DAY
JITTER = 0.1


@dataclass(frozen=True, slots=True)
class Rules:
    """A route's cache rules. Durations are seconds; `ttl` None follows the upstream (`ttl: origin`).

    A stale window that is None takes the upstream's word (RFC 5861), or the default.
    """

    ttl: float | None = None
    stale_while_revalidate: float | None = None
    stale_if_error: float | None = None
    negative_ttl: float = 5.0
    client_ttl: float | None = None
    max_life: float = MAX_LIFE
    jitter: float = JITTER
    request_directives: bool = True


DEFAULT_STALE_IF_ERROR = 600.0


@dataclass(frozen=True, slots=True)
class Facts:
    """What a request says that matters to a cache (RFC 9111 §5.2.1)."""

    head: bool = False
    authorized: bool = False
    no_store: bool = False
    no_cache: bool = False
    only_if_cached: bool = False
    max_age: float | None = None
    min_fresh: float = 0.0
    max_stale: float | None = None
    stale_if_error: float | None = None


PLAIN = Facts()


def facts_of(method: str, headers: Headers, rules: Rules) -> Facts:
    """The facts of a request; its `Cache-Control` counts only where the route honours it."""
    authorized = has(headers, b"authorization")
    if not rules.request_directives:
        return Facts(head=method == "HEAD", authorized=authorized)
    directives = CacheControl.of(headers)
    pragma = not directives and "no-cache" in CacheControl.of(headers, b"pragma")
    if not directives and not pragma:
        return Facts(head=method == "HEAD", authorized=authorized)
    return Facts(
        head=method == "HEAD",
        authorized=authorized,
        no_store="no-store" in directives,
        no_cache="no-cache" in directives or pragma,
        only_if_cached="only-if-cached" in directives,
        max_age=directives.seconds("max-age"),
        min_fresh=float(directives.seconds("min-fresh") or 0),
        max_stale=_max_stale(directives),
        stale_if_error=directives.seconds("stale-if-error"),
    )


def _max_stale(directives: CacheControl) -> float | None:
    if directives.unqualified("max-stale"):
        return float("inf")
    return directives.seconds("max-stale")


# --- windows -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Windows:
    """Until when an entry is fresh, may be served while it is refreshed, and when the upstream fails: instants."""

    fresh: float
    revalidate: float
    error: float


def windows(stored: Stored, rules: Rules) -> Windows:
    """The three windows of `stored` for a reader with `rules`; none ends after `max_life` from birth."""
    life = stored.life
    end = stored.born + rules.max_life
    own = math.inf if rules.ttl is None else stored.born + _own_lifetime(stored, rules)
    fresh = min(own, _origin_end(stored, rules)) if rules.ttl is None or life.promised else own
    if _forbids_stale(stored, rules):
        fresh = stored.born if stored.distrusted else min(fresh, end, _soft_end(stored))
        return Windows(fresh, fresh, fresh)
    fresh = min(fresh, end, _soft_end(stored))
    if stored.distrusted:
        error = fresh + _window(rules.stale_if_error, life.stale_if_error, DEFAULT_STALE_IF_ERROR)
        return Windows(stored.born, stored.born, min(error, end))
    revalidate = _window(rules.stale_while_revalidate, life.stale_while_revalidate, 0.0)
    error = _window(rules.stale_if_error, life.stale_if_error, DEFAULT_STALE_IF_ERROR)
    return Windows(fresh, min(fresh + revalidate, end), min(fresh + max(revalidate, error), end))


def _origin_end(stored: Stored, rules: Rules) -> float:
    """Until when a response is fresh by the upstream's own word."""
    life = stored.life
    if life.no_cache:
        return stored.born - stored.initial_age - 1
    return stored.born - stored.initial_age + (life.lifetime if life.lifetime is not None else _assumed(stored, rules))


def _forbids_stale(stored: Stored, rules: Rules) -> bool:
    """Whether nothing stale may be given: the upstream said so, and its word counts on this route, or a client was
    promised so when the response was stored."""
    return (rules.ttl is None or stored.life.promised) and (stored.life.strict or stored.life.no_cache)


def _soft_end(stored: Stored) -> float:
    return math.inf if stored.softened is None else stored.softened


def _window(own: float | None, upstream: float | None, default: float) -> float:
    if own is not None:
        return own
    return default if upstream is None else min(upstream, MAX_LIFE)


def _own_lifetime(stored: Stored, rules: Rules) -> float:
    assert rules.ttl is not None
    ttl = rules.negative_ttl if stored.status in NEGATIVE_STATUSES else rules.ttl
    return ttl * (1.0 - rules.jitter * stored.jitter)


def _assumed(stored: Stored, rules: Rules) -> float:
    """The lifetime of a response that states none, jittered: it is our guess, not the upstream's promise."""
    if stored.life.heuristic > 0:
        return stored.life.heuristic * (1.0 - rules.jitter * stored.jitter)
    return rules.negative_ttl if stored.status in NEGATIVE_STATUSES else 0.0


def current_age(stored: Stored, now: float) -> float:
    """RFC 9111 §4.2.3; never negative, whatever the clocks did."""
    return stored.initial_age + max(0.0, now - stored.born)


def age_for(stored: Stored, rules: Rules, now: float) -> float:
    """The age of a stored response on a route. On one with a duration the gateway is the origin of the promise: the
    age counts from the birth of the entry."""
    return current_age(stored, now) if rules.ttl is None else max(0.0, now - stored.born)


def told_age(stored: Stored, rules: Rules, now: float) -> int:
    """The `Age` a client is told."""
    return int(age_for(stored, rules, now))


# --- the decision ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hit:
    """Answer with the stored response, which is fresh."""

    stored: Stored
    windows: Windows


@dataclass(frozen=True, slots=True)
class Stale:
    """Answer with the stored response though it is stale; refresh it behind where `refresh` says so."""

    stored: Stored
    windows: Windows
    refresh: bool


@dataclass(frozen=True, slots=True)
class Revalidate:
    """Ask the upstream, with the stored response's validators where it has any."""

    stored: Stored
    windows: Windows
    reason: str


@dataclass(frozen=True, slots=True)
class Miss:
    """Ask the upstream; nothing stored can be used."""

    reason: str


@dataclass(frozen=True, slots=True)
class Bypass:
    """Ask the upstream, and store nothing (RFC 9111 §5.2.1.5 and the route's own rules)."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unsatisfiable:
    """Answer 504: the client wants a stored response only (RFC 9111 §5.2.1.7)."""


Decision = Hit | Stale | Revalidate | Miss | Bypass | Unsatisfiable


def decide(stored: Stored | None, facts: Facts, rules: Rules, now: float) -> Decision:
    """What to do for a request, given what is stored for it (RFC 9111 §4)."""
    if facts.no_store:
        return Bypass("no-store")
    if stored is None or not _reusable(stored, facts, rules):
        return Unsatisfiable() if facts.only_if_cached else Miss("miss")
    ends = windows(stored, rules)
    if now < ends.fresh:
        if _satisfies(stored, ends, facts, now):
            return Hit(stored, ends)
        return _ask(stored, ends, facts, "request")
    staleness = now - ends.fresh
    if _stale_accepted(stored, staleness, facts, rules, now):
        return Stale(stored, ends, refresh=now < ends.revalidate)
    if now < ends.revalidate and not facts.no_cache and facts.max_age is None and not facts.min_fresh:
        return Stale(stored, ends, refresh=True)
    return _ask(stored, ends, facts, "stale")


def _ask(stored: Stored, ends: Windows, facts: Facts, reason: str) -> Decision:
    return Unsatisfiable() if facts.only_if_cached else Revalidate(stored, ends, reason)


def _reusable(stored: Stored, facts: Facts, rules: Rules) -> bool:
    return rules.ttl is not None or not facts.authorized or stored.life.shared


def _satisfies(stored: Stored, ends: Windows, facts: Facts, now: float) -> bool:
    if facts is PLAIN:
        return True
    return (
        not facts.no_cache
        and (facts.max_age is None or current_age(stored, now) <= facts.max_age + (facts.max_stale or 0.0))
        and ends.fresh - now >= facts.min_fresh
    )


def _stale_accepted(stored: Stored, staleness: float, facts: Facts, rules: Rules, now: float) -> bool:
    """Whether the client's `max-stale` allows it, and nothing the upstream said forbids it (RFC 9111 §4.2.4)."""
    if facts.max_stale is None or facts.no_cache or staleness > facts.max_stale or stored.distrusted:
        return False
    if _forbids_stale(stored, rules):
        return False
    return facts.max_age is None or current_age(stored, now) <= facts.max_age + facts.max_stale


def softened(stored: Stored, at: float) -> Stored:
    """`stored` with its freshness ended by a soft purge at `at`."""
    return structs.replace(stored, softened=at)


def usable_on_error(stored: Stored, facts: Facts, rules: Rules, now: float) -> bool:
    """Whether `stored` may be served because the upstream failed (RFC 9111 §4.2.4, RFC 5861 §4).

    A client that wants validation (`no-cache`) gets it or the failure, unless it said `stale-if-error`.
    """
    if not _reusable(stored, facts, rules):
        return False
    ends = windows(stored, rules)
    if facts.stale_if_error is not None and not _forbids_stale(stored, rules):
        return now < max(ends.error, ends.fresh + facts.stale_if_error)
    return now < ends.error and not facts.no_cache


def is_failure(status: int) -> bool:
    """The statuses in whose place a stale answer may stand (RFC 5861 §4)."""
    return status in (500, 502, 503, 504)


# --- storing -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Admit:
    """The response may be stored. `headers` are those to store, `vary` the fields that select it."""

    life: Life
    headers: tuple[tuple[bytes, bytes], ...]
    vary: tuple[str, ...]
    initial_age: float


@dataclass(frozen=True, slots=True)
class Refuse:
    """The response may not be stored. Where it is a failure, those who wait may share it, unless it is `personal`."""

    reason: str
    personal: bool = False


@dataclass(frozen=True, slots=True)
class Received:
    """A response as it came: the status, the fields, when its request was sent and its head arrived (seconds), and the
    stamp of its fetch."""

    status: int
    headers: Headers
    sent: float
    arrived: float
    stamp: str = ""


TAG_FIELDS = frozenset((b"surrogate-key", b"cache-tag", b"xkey"))
"""Fields by which upstreams name what an answer is made of, so that it can be purged by that name."""
MAX_TAGS = 256
_TAG_END = re.compile(r"[\s,]+")


def tags_of(headers: Headers) -> tuple[str, ...]:
    """The tags that an upstream gave a response, separated by space or comma; at most 256."""
    text = " ".join(combined(headers, name) or "" for name in TAG_FIELDS)
    return tuple(dict.fromkeys(tag for tag in _TAG_END.split(text) if tag))[:MAX_TAGS]


# Never stored: they speak of one exchange, not of the resource. CORS fields are ours to compute (see `strip_cors`).
_NOT_STORED = frozenset((b"server-timing", b"x-request-id", b"age", b"x-process-time"))
OWN_FIELD = b"gateway-cache-control"
SURROGATE = b"surrogate-control"
FOR_US = frozenset((OWN_FIELD, SURROGATE))
"""Fields that speak to this cache alone: obeyed, and not passed on."""
_TARGETED = (OWN_FIELD, b"cdn-cache-control")


def passed_on(headers: Headers) -> list[tuple[bytes, bytes]]:
    """The fields of an upstream's response that a client gets where nothing is stored of it."""
    return [pair for pair in end_to_end(headers) if pair[0] not in FOR_US]


def admit(received: Received, facts: Facts, rules: Rules) -> Admit | Refuse:
    """Whether a response to a GET may be stored, and as what (RFC 9111 §3)."""
    headers = received.headers
    directives, targeted = governing(headers)
    refusal = _personal(headers, directives) or _unstorable(received, facts, rules, directives)
    if refusal:
        return refusal
    names = vary_names(headers)
    if names is None:
        return Refuse("vary")
    life = _life(received, directives, rules, targeted=targeted)
    if rules.ttl is None and not _worth_storing(received.status, life, headers, rules):
        return Refuse("no-lifetime")
    kept = _kept(headers, directives)
    return Admit(life, kept, names if rules.ttl is None else (), initial_age(received))


def governing(headers: Headers) -> tuple[CacheControl, bool]:
    """The directives that govern us, and whether they came in a targeted field (RFC 9213 §2.2).

    Targeted fields are dictionaries of structured fields (RFC 8941); one that cannot be read is ignored.
    """
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
    """A targeted field: a dictionary of structured fields, none where its syntax is broken (RFC 9213 §2.1)."""
    members = dictionary(combined(headers, name) or "")
    directives = {key: _argument(value) for key, value in (members or {}).items() if _well_typed(key, value)}
    return CacheControl(directives) if directives else NO_DIRECTIVES


_NUMERIC = frozenset(("max-age", "s-maxage", "stale-while-revalidate", "stale-if-error"))


def _well_typed(key: str, value: str) -> bool:
    """A lifetime is an integer, any other directive is not false; what has another type is ignored (RFC 9213 §2.1)."""
    return value.isdigit() if key in _NUMERIC else value != "?0"


def _argument(value: str) -> str | None:
    return None if value == "?1" else unquote(value)


def _personal(headers: Headers, directives: CacheControl) -> Refuse | None:
    if directives.unqualified("private"):
        return Refuse("private", personal=True)
    if has(headers, b"set-cookie") or has(headers, b"set-cookie2"):
        named = directives.fields("private") | directives.fields("no-cache")
        if b"set-cookie" not in named:
            return Refuse("set-cookie", personal=True)
    return None


def _unstorable(received: Received, facts: Facts, rules: Rules, directives: CacheControl) -> Refuse | None:
    status = received.status
    understood = "must-understand" in directives and status in UNDERSTOOD_STATUSES
    if "must-understand" in directives and status not in UNDERSTOOD_STATUSES:
        return Refuse("not-understood")
    if "no-store" in directives and not understood:
        return Refuse("no-store", personal=True)
    if status < 200 or status in (206, 304) or status > 599:
        return Refuse("status")
    if rules.ttl is None:
        if facts.authorized and not _shared_despite_authorization(directives):
            return Refuse("authorization", personal=True)
        return None
    if status not in TTL_STATUSES and not (status in NEGATIVE_STATUSES and rules.negative_ttl > 0):
        return Refuse("status")
    return None


def _shared_despite_authorization(directives: CacheControl) -> bool:
    return any(name in directives for name in ("public", "s-maxage", "must-revalidate"))


def _life(received: Received, directives: CacheControl, rules: Rules, *, targeted: bool) -> Life:
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


def _stated_lifetime(received: Received, directives: CacheControl, *, targeted: bool) -> float | None:
    """The lifetime a response states, for a shared cache (RFC 9111 §4.2.1)."""
    for name in ("s-maxage", "max-age"):
        seconds = directives.seconds(name)
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


def _date_value(received: Received) -> float:
    date = parse_date(first(received.headers, b"date"), received.arrived)
    return received.arrived if date is None else date


def _heuristic_lifetime(received: Received, directives: CacheControl) -> float:
    """What may be assumed of a response that states nothing (RFC 9111 §4.2.2)."""
    if received.status not in HEURISTIC_STATUSES and "public" not in directives:
        return 0.0
    modified = parse_date(first(received.headers, b"last-modified"), received.arrived)
    if modified is None:
        return 0.0
    return min(max(0.0, (_date_value(received) - modified) * HEURISTIC_FRACTION), HEURISTIC_LIMIT)


def _worth_storing(status: int, life: Life, headers: Headers, rules: Rules) -> bool:
    """Under `ttl: origin`: a lifetime was stated, may be assumed, or validators make a later 304 possible."""
    if life.lifetime is not None:
        return life.lifetime > 0 or has_validator(headers) or bool(life.stale_while_revalidate)
    if life.heuristic > 0 or (status in NEGATIVE_STATUSES and rules.negative_ttl > 0):
        return True
    return status in (200, 203) and has_validator(headers)


def _kept(headers: Headers, directives: CacheControl) -> tuple[tuple[bytes, bytes], ...]:
    """The fields to store: end-to-end, without those that `no-cache` and `private` list (§5.2.2.4, §5.2.2.7)."""
    listed = directives.fields("no-cache") | directives.fields("private")
    return tuple(
        pair
        for pair in end_to_end(headers)
        if pair[0] not in _NOT_STORED and pair[0] not in listed and pair[0] not in FOR_US
    )


def initial_age(received: Received) -> float:
    """The corrected initial age (RFC 9111 §4.2.3): the greater of what `Date` and `Age` make it."""
    date = parse_date(first(received.headers, b"date"), received.arrived)
    apparent = max(0.0, received.arrived - date) if date is not None else 0.0
    delay = max(0.0, received.arrived - received.sent)
    # `Date` has whole seconds: an upstream on our own clock must not make every response a second old.
    apparent = 0.0 if apparent < 1.0 + delay else apparent
    return max(apparent, parse_age(received.headers) + (delay if has(received.headers, b"age") else 0.0))


# --- validation --------------------------------------------------------------------------------------------


def has_validator(headers: Headers) -> bool:
    return has(headers, b"etag") or has(headers, b"last-modified")


# The tags that the gateway gives to answers without one begin so; no upstream knows them.
OWN_TAG = b'"gw-'


def validators(stored: Stored) -> list[tuple[bytes, bytes]]:
    """The request fields that ask whether `stored` still holds (RFC 9111 §4.3.1)."""
    tags = [value for value in values(stored.headers, b"etag")[:1] if not value.startswith(OWN_TAG)]
    fields = [(b"if-none-match", value) for value in tags]
    fields += [(b"if-modified-since", value) for value in values(stored.headers, b"last-modified")[:1]]
    return fields


# RFC 9111 §3.2: a 304 updates the stored fields but those that speak of the stored body's very bytes.
_NOT_UPDATED = frozenset((b"content-encoding", b"content-md5", b"content-range", b"content-length", b"etag"))


def freshened(stored: Stored, received: Received) -> tuple[tuple[bytes, bytes], ...]:
    """The stored fields as a 304 to their validation updates them (RFC 9111 §3.2, §4.3.4)."""
    named = connection_named(received.headers)
    new = [
        pair
        for pair in end_to_end(received.headers)
        if pair[0] not in _NOT_UPDATED
        and pair[0] not in _NOT_STORED
        and pair[0] not in named
        and pair[0] not in FOR_US
        and pair[0] != b"set-cookie"
    ]
    replaced = {name for name, _ in new}
    return tuple(pair for pair in stored.headers if pair[0] not in replaced) + tuple(new)


def confirms(stored: Stored, received: Received) -> bool:
    """Whether a 304 speaks of `stored` (RFC 9111 §4.3.4): it must not carry another strong validator."""
    tag = first(received.headers, b"etag")
    known = first(stored.headers, b"etag")
    if tag is None or known is None:
        return True
    return tag == known if is_strong(tag) else opaque_tag(tag) == opaque_tag(known)


def same_representation(stored: Stored, received: Received) -> bool:
    """Whether a HEAD's answer speaks of the stored response: every validator and the length it has agree
    (RFC 9111 §4.3.5)."""
    for name in (b"etag", b"last-modified"):
        said, known = first(received.headers, name), first(stored.headers, name)
        if said is not None and said != known:
            return False
    length = first(received.headers, b"content-length")
    return length is None or length == str(len(stored.body))


def not_modified(request: Headers, headers: Headers, born: float) -> bool:
    """Whether a request's own condition says that it has this response already (RFC 9110 §13.2.2, RFC 9111 §4.3.2).

    `If-None-Match` counts alone where it stands; its comparison is weak.
    """
    if_none_match = combined(request, b"if-none-match")
    if if_none_match is not None:
        if if_none_match.strip() == "*":
            return True
        tag = first(headers, b"etag")
        return tag is not None and opaque_tag(tag) in {opaque_tag(item) for item in split_list(if_none_match)}
    since = parse_date(first(request, b"if-modified-since"), born)
    if since is None:
        return False
    modified = parse_date(first(headers, b"last-modified"), born)
    if modified is None:
        modified = parse_date(first(headers, b"date"), born)
    return modified is not None and modified <= since


# RFC 9110 §15.4.5: what a 304 carries.
_KEPT_IN_304 = frozenset(
    (b"cache-control", b"content-location", b"date", b"etag", b"expires", b"vary", b"last-modified", b"age")
)


def fields_of_304(headers: Headers) -> list[tuple[bytes, bytes]]:
    return [
        pair
        for pair in headers
        if pair[0] in _KEPT_IN_304 or not (pair[0].startswith(b"content-") or pair[0] == b"set-cookie")
    ]


# --- what the client is told -------------------------------------------------------------------------------


def told_headers(stored: Stored, rules: Rules, now: float) -> list[tuple[bytes, bytes]]:
    """The fields a client gets with a stored response, `Age` included.

    On a route with a duration the upstream's promises are replaced by the route's: `max-age` is the entry's
    (jittered) life, or what leaves the client `client_ttl` from now.
    """
    age = told_age(stored, rules, now)
    if rules.ttl is None:
        return [*stored.headers, (b"age", b"%d" % age)]
    life = int(_own_lifetime(stored, rules)) if rules.client_ttl is None else age + int(rules.client_ttl)
    promise = b"max-age=%d" % life
    kept = [pair for pair in stored.headers if pair[0] not in _OUR_PROMISE]
    return [*kept, (b"cache-control", promise), (b"date", http_date(stored.born)), (b"age", b"%d" % age)]


_OUR_PROMISE = frozenset(
    (b"cache-control", b"expires", b"pragma", b"date", b"age", b"cdn-cache-control", b"surrogate-control")
)


# --- invalidation ------------------------------------------------------------------------------------------

SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS", "TRACE"))


def invalidates(method: str, status: int) -> bool:
    """Whether an exchange makes what is stored for its target void (RFC 9111 §4.4)."""
    return method not in SAFE_METHODS and 200 <= status < 400
