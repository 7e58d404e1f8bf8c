"""Cache policy: RFC 9111 as a shared cache, RFC 5861's stale windows, and the rules of a route.

Pure functions over values: nothing here awaits, reads a clock or touches a store; `now` is an argument. A decision is
one of a closed set of frozen values; the engine matches it once and executes it.

An entry has three windows, as in Varnish: *fresh*, then *stale-while-revalidate* (served at once, refreshed in the
background), then *stale-if-error* (served only if the upstream fails). They are computed when an entry is read, from
its birth, the upstream's fields, its jitter and the reader's route as configured now.

Related modules: `rules` (route and request directives), `storability` (what may be stored), `validation` (304s).
"""

from __future__ import annotations

import math
import re
from functools import lru_cache

import msgspec
from msgspec import structs

from gateway.http.headers import CacheControl, Headers, first, has, http_date
from gateway.policy.entry import Entry
from gateway.policy.rules import (
    DEFAULT_STALE_IF_ERROR,
    MAX_LIFE,
    NEGATIVE_STATUSES,
    PLAIN,
    CachePolicy,
    RequestDirectives,
)


class Windows(msgspec.Struct, frozen=True):
    """Until when an entry is fresh, may be served while it is refreshed, and when the upstream fails: instants."""

    fresh: float
    revalidate: float
    error: float


def windows(stored: Entry, rules: CachePolicy) -> Windows:
    """The three windows of `stored` for a reader with `rules`; none ends after `max_life` from birth."""
    if rules.off:
        return Windows(stored.born, stored.born, stored.born)
    life = stored.life
    end = stored.born + rules.max_life
    soft = math.inf if stored.softened is None else stored.softened
    own = math.inf if rules.ttl is None else stored.born + _own_lifetime(stored, rules)
    fresh = min(own, _origin_end(stored, rules)) if rules.ttl is None or life.promised else own
    if _forbids_stale(stored, rules):
        fresh = stored.born if stored.distrusted else min(fresh, end, soft)
        return Windows(fresh, fresh, fresh)
    fresh = min(fresh, end, soft)
    if stored.distrusted:
        error = fresh + _window(rules.stale_if_error, life.stale_if_error, DEFAULT_STALE_IF_ERROR)
        return Windows(stored.born, stored.born, min(error, end))
    revalidate = _window(rules.stale_while_revalidate, life.stale_while_revalidate, 0.0)
    error = _window(rules.stale_if_error, life.stale_if_error, DEFAULT_STALE_IF_ERROR)
    return Windows(fresh, min(fresh + revalidate, end), min(fresh + max(revalidate, error), end))


def _origin_end(stored: Entry, rules: CachePolicy) -> float:
    """Until when a response is fresh by the upstream's own word."""
    life = stored.life
    if life.no_cache:
        return stored.born - stored.initial_age - 1
    return stored.born - stored.initial_age + (life.lifetime if life.lifetime is not None else _assumed(stored, rules))


def _forbids_stale(stored: Entry, rules: CachePolicy) -> bool:
    """Whether stale responses are forbidden: by the upstream, if its fields apply on this route, or because clients got
    the upstream's fields when the response was stored."""
    return (rules.ttl is None or stored.life.promised) and (stored.life.strict or stored.life.no_cache)


def _window(own: float | None, upstream: float | None, default: float) -> float:
    if own is not None:
        return own
    return default if upstream is None else min(upstream, MAX_LIFE)


def _own_lifetime(stored: Entry, rules: CachePolicy) -> float:
    assert rules.ttl is not None
    ttl = rules.negative_ttl if stored.status in NEGATIVE_STATUSES else rules.ttl
    return ttl * (1.0 - rules.jitter * stored.jitter)


def _assumed(stored: Entry, rules: CachePolicy) -> float:
    """The lifetime of a response that states none, jittered: it is our guess, not the upstream's promise."""
    if stored.life.heuristic > 0:
        return stored.life.heuristic * (1.0 - rules.jitter * stored.jitter)
    return rules.negative_ttl if stored.status in NEGATIVE_STATUSES else 0.0


def current_age(stored: Entry, now: float) -> float:
    """RFC 9111 §4.2.3; never negative, whatever the clocks did."""
    return stored.initial_age + max(0.0, now - stored.born)


def age_for(stored: Entry, rules: CachePolicy, now: float) -> float:
    """The age of a stored response on a route. On one with a duration the gateway is the origin of the promise: the
    age counts from the birth of the entry."""
    return current_age(stored, now) if rules.ttl is None else max(0.0, now - stored.born)


def response_age(stored: Entry, rules: CachePolicy, now: float) -> int:
    """The `Age` for the client."""
    return int(age_for(stored, rules, now))


# --- the decision ------------------------------------------------------------------------------------------


class Hit(msgspec.Struct, frozen=True):
    """Serve the stored response, which is fresh."""

    stored: Entry
    windows: Windows


class Stale(msgspec.Struct, frozen=True):
    """Serve the stored response although it is stale; refresh it in the background if `refresh`."""

    stored: Entry
    windows: Windows
    refresh: bool


class Revalidate(msgspec.Struct, frozen=True):
    """Fetch from the upstream, with the stored response's validators if it has any."""

    stored: Entry
    windows: Windows
    reason: str


class Miss(msgspec.Struct, frozen=True):
    """Fetch from the upstream; no stored response can be used."""

    reason: str


class Bypass(msgspec.Struct, frozen=True):
    """Forward to the upstream, and store nothing (RFC 9111 §5.2.1.5 and the route's own rules)."""

    reason: str


class Unsatisfiable(msgspec.Struct, frozen=True):
    """Return 504: the client accepts only a stored response (RFC 9111 §5.2.1.7)."""


Decision = Hit | Stale | Revalidate | Miss | Bypass | Unsatisfiable


def decide(stored: Entry | None, facts: RequestDirectives, rules: CachePolicy, now: float) -> Decision:
    """The decision for a request, given the stored response (RFC 9111 §4)."""
    if rules.off:
        return Bypass("off")
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


def _ask(stored: Entry, ends: Windows, facts: RequestDirectives, reason: str) -> Decision:
    return Unsatisfiable() if facts.only_if_cached else Revalidate(stored, ends, reason)


def _reusable(stored: Entry, facts: RequestDirectives, rules: CachePolicy) -> bool:
    return rules.ttl is not None or not facts.authorized or stored.life.shared


def _satisfies(stored: Entry, ends: Windows, facts: RequestDirectives, now: float) -> bool:
    if facts is PLAIN:
        return True
    return (
        not facts.no_cache
        and (facts.max_age is None or current_age(stored, now) <= facts.max_age + (facts.max_stale or 0.0))
        and ends.fresh - now >= facts.min_fresh
    )


def _stale_accepted(stored: Entry, staleness: float, facts: RequestDirectives, rules: CachePolicy, now: float) -> bool:
    """Whether the client's `max-stale` allows it, and no field of the upstream forbids it (RFC 9111 §4.2.4)."""
    if facts.max_stale is None or facts.no_cache or staleness > facts.max_stale or stored.distrusted:
        return False
    if _forbids_stale(stored, rules):
        return False
    return facts.max_age is None or current_age(stored, now) <= facts.max_age + facts.max_stale


def softened(stored: Entry, at: float) -> Entry:
    """`stored` with its freshness ended by a soft purge at `at`."""
    return structs.replace(stored, softened=at)


def usable_on_error(stored: Entry, facts: RequestDirectives, rules: CachePolicy, now: float) -> bool:
    """Whether `stored` may be served because the upstream failed (RFC 9111 §4.2.4, RFC 5861 §4).

    A client that requires validation (`no-cache`) gets it or the failure, unless it sent `stale-if-error`.
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


# --- fields for clients ---------------------------------------------------------------------------------------


def response_headers(stored: Entry, rules: CachePolicy, now: float) -> list[tuple[bytes, bytes]]:
    """The fields a client gets with a stored response, `Age` included.

    On a route with a duration the upstream's promises are replaced by the route's: `max-age` is the entry's
    (jittered) life, or what leaves the client `client_ttl` from now.
    """
    age = int(age_for(stored, rules, now))
    if rules.ttl is None:
        return [*stored.headers, (b"age", b"%d" % age)]
    life = int(_own_lifetime(stored, rules)) if rules.client_ttl is None else age + int(rules.client_ttl)
    promise = b"max-age=%d" % life
    headers = [pair for pair in stored.headers if pair[0] not in _OUR_PROMISE]
    headers += ((b"cache-control", promise), (b"date", http_date(int(stored.born))), (b"age", b"%d" % age))
    return headers


_OUR_PROMISE = frozenset(
    (b"cache-control", b"expires", b"pragma", b"date", b"age", b"cdn-cache-control", b"surrogate-control")
)


SMALLEST_CODED = 1024
"""Bytes of the smallest body that is compressed: smaller ones fit in one packet as they are."""
_TEXT = re.compile(
    r"text/.*|.*\+(?:json|xml|yaml)"
    r"|application/(?:json|xml|javascript|x-javascript|graphql|yaml|ndjson|geo\+json|manifest\+json|wasm)"
)
_TELLING = frozenset((b"content-type", b"content-encoding", b"cache-control"))
_SHORT = 512
"""Bytes of them up to which it is kept whether they allow a coding: an upstream sends the same few over and over."""


def is_compressible(stored: Entry, rules: CachePolicy, *, is_text: bool | None = None) -> bool:
    """Whether a stored response may be served in another coding: if the gateway itself requested it uncompressed, as it
    does on routes with a duration, and there is no `no-transform` (RFC 9111 §5.2.2.6). `is_text` is what `has_text`
    says of its fields, if that is known."""
    if rules.ttl is None or stored.status != 200 or len(stored.body) < SMALLEST_CODED:
        return False
    if is_text is not None:
        return is_text
    telling = tuple([pair for pair in stored.headers if pair[0] in _TELLING])
    short = sum([len(name) + len(value) for name, value in telling]) <= _SHORT
    return (_known_text if short else has_text)(telling)


def has_text(headers: Headers) -> bool:
    """Whether a response with these fields has a text that may be sent in another coding."""
    media = (first(headers, b"content-type") or "").partition(";")[0].strip().lower()
    return (
        _TEXT.fullmatch(media) is not None
        and not has(headers, b"content-encoding")
        and "no-transform" not in CacheControl.of(headers)
    )


_known_text = lru_cache(maxsize=512)(has_text)


# --- invalidation ------------------------------------------------------------------------------------------

SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS", "TRACE", "QUERY"))


def invalidates(method: str, status: int) -> bool:
    """Whether an exchange invalidates the entries of its target (RFC 9111 §4.4)."""
    return method not in SAFE_METHODS and 200 <= status < 400
