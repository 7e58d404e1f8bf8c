"""What a joined response inherits from its parts: age, lifetime, and purge names.

Pure. `Age` is the oldest part's, `max-age` that plus the least remaining life, so that subtracting one from the other
gives the remaining life once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from gateway.http.headers import CacheControl, Headers, parse_age
from gateway.policy.entry import DerivedFrom
from gateway.policy.validation import own_tag


class PartLife(msgspec.Struct, frozen=True):
    """A part's contribution to the joined response's life. Seconds.

    `remaining` is negative if it is stale. `private`: it is for one client; `personal`: its upstream calls it private,
    and it is stored for one user, as the joined response then is; `failing`: it is a stale copy in place of a
    failure; `unstored`: the upstream, or its method, forbids storing it.
    """

    age: float = 0.0
    remaining: float = math.inf
    private: bool = False
    personal: bool = False
    failing: bool = False
    unstored: bool = False
    stamps: tuple[str, ...] = ()
    started: float = math.inf
    names: tuple[str, ...] = ()
    vary: tuple[str, ...] = ()


def together(parts: Sequence[PartLife]) -> PartLife:
    """Several as one: the oldest age, the least life, all the names."""
    age, remaining, started = 0.0, math.inf, math.inf
    private = personal = failing = unstored = False
    stamps: dict[str, None] = {}
    names: dict[str, None] = {}
    vary: set[str] = set()
    # One loop and no generators: an aggregate whose parts all lie in memory spends a tenth of its time here.
    for part in parts:
        age = part.age if part.age > age else age
        remaining = part.remaining if part.remaining < remaining else remaining
        started = part.started if part.started < started else started
        private = private or part.private
        personal = personal or part.personal
        failing = failing or part.failing
        unstored = unstored or part.unstored
        stamps |= dict.fromkeys(part.stamps)
        names |= dict.fromkeys(part.names)
        if part.vary:
            vary.update(part.vary)
    return PartLife(
        age, remaining, private, personal, failing, unstored, tuple(stamps), started, tuple(names), tuple(sorted(vary))
    )


def unstored_part(headers: Headers, *, private: bool) -> PartLife:
    """A part that came directly from its upstream and is not stored, by its own fields."""
    directives = CacheControl.of(headers)
    lifetime = directives.seconds("max-age") if not directives.unqualified("no-cache") else 0
    age = parse_age(headers)
    personal = private or directives.unqualified("private")
    return PartLife(
        age=age,
        # Its lifetime for private caches applies; if a shared cache may not store it, its lifetime is unknown.
        remaining=(lifetime or 0) - age if personal else 0.0,
        private=personal,
        unstored="no-store" in directives,
    )


class Joining(msgspec.Struct, frozen=True):
    """The lifetime of a joined response. `made` is None if it may not be stored."""

    cache_control: bytes
    age: float
    vary: tuple[str, ...]
    made: DerivedFrom | None


def joining(
    whole: PartLife,
    *,
    complete: bool,
    stamp: str,
    longest: float,
    vary: frozenset[str] = frozenset(),
) -> Joining:
    """The lifetime of a response whose parts are `together` these, invalidated by purges after `stamp`; `longest`
    (seconds) if it has only constants. `vary` are additional request fields on which it depends."""
    fields = tuple(sorted({*whole.vary, *vary})) if vary or whole.vary else ()
    remaining = longest if math.isinf(whole.remaining) else whole.remaining
    made = None
    if complete and remaining > 0 and not (whole.private or whole.failing or whole.unstored):
        made = DerivedFrom(
            stamp=stamp,
            started=0.0 if math.isinf(whole.started) else whole.started,
            age=whole.age,
            lifetime=whole.age + remaining,
            names=whole.names,
            vary=fields,
            personal=whole.personal,
        )
    return Joining(_cache_control(whole, whole.age + remaining, complete=complete), whole.age, fields, made)


def whole_headers(body: bytes, life: Joining, parts: str, *, complete: bool) -> list[tuple[bytes, bytes]]:
    """The headers of a joined response; `parts` are the states of the parts."""
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", life.cache_control),
        (b"etag", own_tag(body)),
        (b"age", b"%d" % life.age),
        (b"gateway-parts", parts.encode("ascii")),
        (b"gateway-complete", b"?1" if complete else b"?0"),
    ]
    if life.vary:
        headers.append((b"vary", ", ".join(life.vary).encode("ascii")))
    return headers


def _cache_control(whole: PartLife, lifetime: float, *, complete: bool) -> bytes:
    if not complete or whole.unstored:
        return b"no-store"
    private = b"private, " if whole.private or whole.personal else b""
    return private + (b"no-cache" if whole.failing else b"max-age=%d" % max(0, int(lifetime)))
