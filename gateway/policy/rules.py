"""The parts of a route's configuration and of a request's directives that matter to a cache. Pure values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from gateway.http.headers import CacheControl, Headers, has

DAY = 86_400.0
MAX_LIFE = 7 * DAY
NEGATIVE_STATUSES = frozenset((404, 410))
JITTER = 0.1


@dataclass(frozen=True, slots=True)
class CachePolicy:
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
    cache: bool = True
    authorization_keyed: bool = False
    """Whether the key holds `Authorization`, or no upstream sees it: RFC 9111 §3.5 then forbids nothing."""
    off: bool = field(init=False, repr=False, compare=False)
    """Whether nothing is stored, and no request waits for another's answer: `cache: off`, or a `ttl` of zero without a
    stale window for which something would be kept."""

    terms: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What `storability` has decided by these rules, by all that decided it."""

    def __post_init__(self) -> None:
        keeps_nothing = self.ttl == 0 and not self.stale_while_revalidate and not self.stale_if_error
        object.__setattr__(self, "off", not self.cache or keeps_nothing)


DEFAULT_STALE_IF_ERROR = 600.0


class RequestDirectives(msgspec.Struct, frozen=True):
    """A request's cache directives (RFC 9111 §5.2.1). `authorized`: it has `Authorization`, which is forwarded to the
    upstream and not part of the key."""

    head: bool = False
    authorized: bool = False
    no_store: bool = False
    no_cache: bool = False
    only_if_cached: bool = False
    max_age: float | None = None
    min_fresh: float = 0.0
    max_stale: float | None = None
    stale_if_error: float | None = None
    ranged: bool = False
    """Whether it has `Range`."""
    conditional: bool = False
    """Whether a whole stored response may answer it by a 304 or a 206: it has `If-None-Match`, `If-Modified-Since` or
    `Range`."""


PLAIN = RequestDirectives()
CONDITIONS = frozenset((b"if-none-match", b"if-modified-since", b"range"))
"""Request fields that may turn a whole stored response into a 304 or a part of it."""


def directives_of(method: str, headers: Headers, rules: CachePolicy) -> RequestDirectives:
    """The directives of a request; its `Cache-Control` counts only if the route honours it."""
    authorized = not rules.authorization_keyed and has(headers, b"authorization")
    names = {name for name, _ in headers}
    facts = RequestDirectives(
        head=method == "HEAD",
        authorized=authorized,
        ranged=b"range" in names,
        conditional=not names.isdisjoint(CONDITIONS),
    )
    if not rules.request_directives:
        return facts
    directives = CacheControl.of(headers)
    pragma = not directives and "no-cache" in CacheControl.of(headers, b"pragma")
    if not directives and not pragma:
        return facts
    return msgspec.structs.replace(
        facts,
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
