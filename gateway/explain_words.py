"""The words of `gateway explain`: what was decided, said so that an operator can do something about it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from . import policy
from .headers import Headers, has
from .identity_key import ShownKey
from .keys import Keying, Plan, plan
from .policy import Facts, Windows
from .record import Stored
from .targets import Target, pair_name
from .vary import variant_suffix

BYPASSES = {
    "body": "a GET with a body passes by the cache",
    "authorization": "a request with Authorization passes by the cache here (setting `authorization`)",
    "cookie": "a request with cookies passes by the cache here (setting `cookies`)",
    "precondition": "a request with If-Match or If-Unmodified-Since is the upstream's to judge",
    "off": "the route has cache: off, or ttl: 0s",
    "no-store": "the request says Cache-Control: no-store",
}


def passed(method: str) -> str:
    """Of a request that is neither GET nor HEAD."""
    if method == "OPTIONS":
        return "it goes to the upstream: only GET and HEAD are cached"
    return "only GET and HEAD are cached; a success makes void what is stored for the target"


def why_missed(stored: Stored | None, others: tuple[str, ...]) -> str:
    """Of a miss: `others` are the request headers that choose among what is stored for the target."""
    if stored is not None:
        return "what is stored may not be given to a request with Authorization"
    if others:
        return f"nothing stored answers this request; what is stored for the target varies on {', '.join(others)}"
    return "nothing stored answers this request"


def why_resting(ends: Windows, now: float) -> str:
    since = now - ends.fresh
    return f"its freshness ended {since:.1f} s ago, and its upstream failed a moment ago: it is given all the same"


def why_stale(ends: Windows, now: float, *, refresh: bool) -> str:
    since = now - ends.fresh
    if refresh:
        return f"its freshness ended {since:.1f} s ago; within stale_while_revalidate it is given, and refreshed behind"
    return f"its freshness ended {since:.1f} s ago; the request's max-stale accepts it"


def why_asked(decision: policy.Revalidate, now: float) -> str:
    means = "with its validators" if policy.has_validator(decision.stored.headers) else "without validators"
    if decision.reason == "request":
        return f"it is fresh, but the request's Cache-Control wants more: the upstream is asked {means}"
    kept = "; if the upstream fails, it is given all the same" if now < decision.windows.error else ""
    return f"its freshness ended {now - decision.windows.fresh:.1f} s ago: the upstream is asked {means}{kept}"


def normalised(given: str, target: Target) -> Iterator[str]:
    if given.partition("?")[0] != target.path and given.startswith("/"):
        yield f"path {given.partition('?')[0]} is {target.path}"
    pairs = [pair for pair in given.partition("?")[2].split("&") if pair]
    names = [pair_name(pair) for pair in pairs]
    if names != sorted(names):
        yield "query parameters are sorted by name"


def dropped(target: Target, asks: str) -> Iterator[str]:
    asked = asks.partition("?")[2].split("&")
    for pair in target.query:
        if pair not in asked:
            yield f"query parameter {pair_name(pair)}: no answer depends on it here (settings `query`, `drop_query`)"


def key(planned: Plan, keying: Keying, headers: Headers) -> list[str]:
    """The lines of the base key with the values that it holds digests of, but for those that say who asks."""
    if planned.bypass is not None:
        return planned.base.split("\n")
    origin, _, target = planned.primary.partition("\n")
    shown = replace(keying, identity_key=ShownKey(keying.identifies))
    return plan(shown, origin, target, headers).base.split("\n")


def variant(stored: Stored | None, keying: Keying, headers: Headers) -> tuple[str, ...]:
    if stored is None or not stored.vary:
        return ()
    return tuple(variant_suffix(stored.vary, headers, ShownKey(keying.identifies)).strip("\n").split("\n"))


def origin_notes(stored: Stored | None) -> Iterator[str]:
    if stored is None:
        yield "the upstream's headers decide"
        return
    life = stored.life
    if life.lifetime is not None:
        yield f"the upstream stated {life.lifetime:g} s"
    elif life.heuristic:
        yield f"the upstream stated nothing; {life.heuristic:g} s are assumed from Last-Modified"
    if life.no_cache:
        yield "no-cache: validated each time"
    if life.strict:
        yield "must-revalidate, proxy-revalidate or s-maxage: never given stale"


def client(facts: Facts, keying: Keying, headers: Headers, status: int | None) -> Iterator[str]:
    """What the request itself changed; `status` is the answer's, where it is known."""
    yield from _conditions(headers, status)
    if facts.no_cache:
        yield "no-cache: what is stored is validated first"
    if facts.max_age is not None:
        yield f"max-age={facts.max_age:g}: nothing older is accepted"
    if facts.min_fresh:
        yield f"min-fresh={facts.min_fresh:g}: it must stay fresh so long"
    if facts.max_stale is not None:
        yield "max-stale: stale answers are accepted"
    if facts.only_if_cached:
        yield "only-if-cached: the upstream is not asked"
    if keying.authorization == "ignore" and has(headers, b"authorization"):
        yield "Authorization is not forwarded and does not count (setting `authorization`)"
    if keying.cookies == () and has(headers, b"cookie"):
        yield "cookies are not forwarded and do not count (setting `cookies`)"
    if facts.authorized and keying.vary is None and keying.authorization == "pass":
        yield "Authorization: the answer is stored where the upstream says public, must-revalidate or s-maxage"


def _conditions(headers: Headers, status: int | None) -> Iterator[str]:
    """What the client gets by its own condition or range."""
    condition = next(
        (name for name in ("If-None-Match", "If-Modified-Since") if has(headers, name.lower().encode())), ""
    )
    if condition and status is None:
        yield f"{condition}: 304 without a body, where the client has the answer that comes"
    elif condition:
        yield f"{condition}: " + (
            "the client has it, so 304 without a body" if status == 304 else "the client has another"
        )
    if not has(headers, b"range") or status == 304:
        return
    match status:
        case None:
            yield "Range: that part of the answer that comes, where it is a 200"
        case 206:
            yield "Range: 206, that part of what is stored"
        case 416:
            yield "Range: it lies outside of what is stored, so 416"
        case _:
            yield "Range: not heeded, the whole is given"
