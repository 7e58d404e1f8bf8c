"""The trace of one request that `gateway explain` shows: a value, its text, and the words for decisions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import msgspec

from gateway.config.overrides import instant
from gateway.http.headers import Headers, has
from gateway.http.target import Target, pair_name
from gateway.identity.principal import Principal
from gateway.limits.bucket import Verdict
from gateway.limits.meter import QuotaPolicy
from gateway.limits.route_limits import Limit, RouteLimits
from gateway.policy import storability
from gateway.policy.content import Content
from gateway.policy.entry import Entry
from gateway.policy.freshness import Revalidate, Windows
from gateway.policy.identity_key import ShownKey
from gateway.policy.keys import Keying, Plan, plan
from gateway.policy.rules import RequestDirectives
from gateway.policy.vary import variant_suffix

UNKNOWN = "unknown"
"""The decision if no running gateway was consulted."""


class Lifetime(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A TTL, or another window, and its sources, the winner first: `30s: environment …, over file … line 14`. `setting`
    is the one in force: for a 404 or 410 it is `negative_ttl`."""

    value: str
    sources: tuple[str, ...]
    notes: tuple[str, ...] = ()
    setting: str = "ttl"


class EntryTrace(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A stored response: its tier and state. Durations are seconds from now, negative if past."""

    tier: str
    status: int
    bytes: int
    age: float
    fresh_for: float
    stale_while_revalidate_for: float
    stale_if_error_for: float
    varies_on: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    purged_softly: bool = False


class Name(msgspec.Struct, frozen=True, kw_only=True):
    """A name by which the answer can be purged, and its last purge as a position on the stream (`-`: none; empty:
    unknown)."""

    name: str
    epoch: str


class PartTrace(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One part of an aggregate: its upstream request, or why it is not known yet; the claims that it depends on; its
    TTL, and its entry."""

    name: str
    upstream: str = ""
    asks: str = ""
    note: str = ""
    per: tuple[str, ...] = ()
    ttl: Lifetime | None = None
    entry: EntryTrace | None = None


class Trace(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request's trace: what `gateway explain` prints, and the admin API returns as JSON.

    `decision` is the cache's decision: `hit`, `stale`, `stale_error` (the upstream failed just now), `revalidate`,
    `miss`, `join`, `stream`, `bypass`, `pass`, `purge`, `uncached`, `local`, `preflight`, `unknown`, or the status of a
    refusal.
    `status` is the client's status for the stored response (304 or 206 if requested). `identity` is who verified the
    credential, and the names of the claims that the response depends on, never a value.
    """

    request: str
    decision: str
    why: str
    status: int | None = None
    target: str = ""
    normalised: tuple[str, ...] = ()
    route: str = ""
    path: str = ""
    lost: tuple[str, ...] = ()
    upstream: str = ""
    asks: str = ""
    dropped: tuple[str, ...] = ()
    identity: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    key: tuple[str, ...] = ()
    variant: tuple[str, ...] = ()
    ttl: Lifetime | None = None
    windows: tuple[Lifetime, ...] = ()
    entry: EntryTrace | None = None
    names: tuple[Name, ...] = ()
    client: tuple[str, ...] = ()
    edge: str = ""
    parts: tuple[PartTrace, ...] = ()


def render(trace: Trace) -> str:
    """The trace as text, a fact a line."""
    return "\n".join(_lines(trace))


def _lines(trace: Trace) -> Iterator[str]:
    yield trace.request
    yield from _line("decision", f"{trace.decision}: {trace.why}")
    yield from _line("target", trace.target, *trace.normalised)
    if trace.route:
        yield from _line("route", f"{trace.route} ({trace.path})", *(f"over {lost}" for lost in trace.lost))
        yield from _line("asks", f"{trace.upstream} for {trace.asks}" if trace.upstream else trace.asks)
        yield from _line("dropped", *trace.dropped)
        yield from _line("identity", *trace.identity)
        yield from _line("limits", *trace.limits)
        yield from _line("key", *trace.key)
        yield from _line("variant", *trace.variant)
    if trace.ttl is not None:
        yield from _line(trace.ttl.setting, _lifetime(trace.ttl), *trace.ttl.notes)
    yield from _line("windows", *_windows(trace))
    if trace.names:
        if any(name.epoch for name in trace.names):
            yield from _line("stored", *_entry_lines(trace.entry))
        yield from _line("names", *map(_named, trace.names))
    for part in trace.parts:
        yield from _line(f"part {part.name}", *_part_lines(part))
    yield from _line("client", *trace.client)
    yield from _line("edge", *([trace.edge] if trace.edge else []))


def _windows(trace: Trace) -> Iterator[str]:
    shown = trace.ttl.setting if trace.ttl is not None else ""  # negative_ttl, of a stored 404
    return (f"{window.setting} {_lifetime(window)}" for window in trace.windows if window.setting != shown)


def _part_lines(part: PartTrace) -> Iterator[str]:
    yield f"{part.upstream} for {part.asks}" if part.asks else part.note
    if part.per:
        yield f"for each value of {', '.join(part.per)}"
    if part.ttl is not None:
        yield f"{part.ttl.setting} {_lifetime(part.ttl)}"
    if part.entry is not None:
        yield from _entry_lines(part.entry)


def _lifetime(lifetime: Lifetime) -> str:
    return f"{lifetime.value}: {', over '.join(lifetime.sources)}"


def _line(label: str, *values: str) -> Iterator[str]:
    shown = [value for value in values if value]
    for position, value in enumerate(shown):
        yield f"  {label if not position else '':<{max(10, len(label) + 2) if not position else 10}}{value}"


def _entry_lines(entry: EntryTrace | None) -> Iterator[str]:
    if entry is None:
        yield "nothing"
        return
    yield f"in {entry.tier}: {entry.status}, {entry.bytes} bytes, {entry.age:.1f} s old"
    yield _window("fresh", entry.fresh_for)
    if entry.stale_while_revalidate_for > entry.fresh_for:
        yield _window("stale while revalidating", entry.stale_while_revalidate_for)
    if entry.stale_if_error_for > entry.fresh_for:
        yield _window("stale if the upstream fails", entry.stale_if_error_for)
    if entry.varies_on:
        yield f"varies on {', '.join(entry.varies_on)}"
    if entry.purged_softly:
        yield "soft-purged: stale"


def _window(what: str, left: float) -> str:
    return f"{what} for {left:.1f} s more" if left > 0 else f"{what}: ended {-left:.1f} s ago"


def _named(name: Name) -> str:
    return f"{name.name}: {_purged(name.epoch)}" if name.epoch else name.name


def _purged(position: str) -> str:
    """When a name was last purged: the time that its position in Redis's stream begins with."""
    milliseconds, dash, _ = position.partition("-")
    if dash and milliseconds.isdigit():
        return f"last purged {instant(int(milliseconds) / 1000)}"
    return "not purged of late" if position == "-" else f"last purged {position}"


BYPASSES = {
    "content-type": "the type of its body is none of `body.types`, so it bypasses the cache",
    "content-too-large": "its body is larger than `body.max`, so it bypasses the cache",
    "body": "a GET with a body bypasses the cache",
    "authorization": "a request with Authorization bypasses the cache (setting `authorization`)",
    "cookie": "a request with cookies bypasses the cache (setting `cookies`)",
    "precondition": "a request with If-Match or If-Unmodified-Since is forwarded: only the upstream can evaluate it",
    "off": "the route has cache: off, or ttl: 0s",
    "no-store": "the request has Cache-Control: no-store",
}


def passed(method: str) -> str:
    """For a request that is neither GET nor HEAD."""
    if method == "OPTIONS":
        return "it goes to the upstream: only GET and HEAD are cached"
    if method == "QUERY":
        return "it goes to the upstream: QUERY is cached where `methods` lists it"
    return "only GET and HEAD are cached; a successful response invalidates the target's entries"


def why_missed(stored: Entry | None, others: tuple[str, ...]) -> str:
    """For a miss: `others` are the request headers on which the target's stored responses vary."""
    if stored is not None:
        return "the stored response may not be used for a request with Authorization"
    if others:
        return f"no stored response matches; those for the target vary on {', '.join(others)}"
    return "no stored response matches"


def why_backing_off(ends: Windows, now: float) -> str:
    since = now - ends.fresh
    return f"its freshness ended {since:.1f} s ago, and the upstream failed just now: served stale"


def why_stale(ends: Windows, now: float, *, refresh: bool) -> str:
    since = now - ends.fresh
    if refresh:
        return (
            f"its freshness ended {since:.1f} s ago; served stale (stale_while_revalidate), refreshed in the background"
        )
    return f"its freshness ended {since:.1f} s ago; the request's max-stale accepts it"


def why_asked(decision: Revalidate, now: float) -> str:
    means = "with its validators" if storability.has_validator(decision.stored.headers) else "without validators"
    if decision.reason == "request":
        return f"it is fresh, but the request's Cache-Control requires a fetch {means}"
    kept = "; if the upstream fails, it is served stale" if now < decision.windows.error else ""
    return f"its freshness ended {now - decision.windows.fresh:.1f} s ago: fetched from the upstream {means}{kept}"


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
            yield f"query parameter {pair_name(pair)} (settings `query`, `drop_query`)"


def key(planned: Plan, keying: Keying, headers: Headers, content: Content | None = None) -> list[str]:
    """The lines of the base key with values instead of digests, except those that identify the client."""
    if planned.bypass is not None:
        return planned.base.split("\n")
    origin, _, target = planned.primary.partition("\n")
    shown = replace(keying, identity_key=ShownKey(keying.identifies))
    lines = plan(shown, origin, target, headers, content=content).base.split("\n")
    lines = [":principal:***" if line.startswith(":principal:") else line for line in lines]
    if content is None:
        return lines
    described = ", ".join(value.decode("latin-1") for _, value in content.fields)
    kept = [line for line in lines if not line.startswith(":content:")]
    return [*kept, f":content:{content.method}: digest of {len(content.body)} bytes of {described}"]


def identity(principal: Principal | None, per: Sequence[str]) -> tuple[str, ...]:
    """Who verified the credential of a request, and what its response depends on."""
    if principal is None:
        return ("no credential: the response for anonymous requests",)
    shared = f"one response for each value of {', '.join(per)}" if per else "one response for all who are let in"
    return (f"verified by {principal.provider}, issuer {principal.issuer}", shared)


def limits(route_limits: RouteLimits | None, principal: Principal | None) -> tuple[str, ...]:
    """The limits of a route, and how full each is as far as the worker knows: by address it is not known for whom."""
    if route_limits is None:
        return ()
    return tuple(_limit(*each) for each in route_limits.known(principal, ""))


def _limit(limit: Limit, policy: QuotaPolicy, verdict: Verdict | None) -> str:
    span = f"a {policy.calendar}" if policy.calendar else f"{policy.period:g} s"
    said = f"{limit.name}: {policy.count} in {span} by {limit.by}, counts {limit.counts}"
    if verdict is None:
        return f"{said}; this worker knows of none that was used"
    return f"{said}; {policy.burst - verdict.remaining} of {policy.burst} are used, as this worker knows"


def variant(stored: Entry | None, keying: Keying, headers: Headers) -> tuple[str, ...]:
    if stored is None or not stored.vary:
        return ()
    return tuple(variant_suffix(stored.vary, headers, ShownKey(keying.identifies)).strip("\n").split("\n"))


def origin_notes(stored: Entry | None) -> Iterator[str]:
    if stored is None:
        yield "the upstream's headers apply"
        return
    life = stored.life
    if life.lifetime is not None:
        yield f"the upstream stated {life.lifetime:g} s"
    elif life.heuristic:
        yield f"the upstream stated no lifetime; {life.heuristic:g} s by heuristic from Last-Modified"
    if life.no_cache:
        yield "no-cache: validated each time"
    if life.strict:
        yield "must-revalidate, proxy-revalidate or s-maxage: never served stale"


def client(facts: RequestDirectives, keying: Keying, headers: Headers, status: int | None) -> Iterator[str]:
    """Changes by the request itself; `status` is the response's, if known."""
    yield from _conditions(headers, status)
    if facts.no_cache:
        yield "no-cache: a stored response is validated first"
    if facts.max_age is not None:
        yield f"max-age={facts.max_age:g}: an older response is not accepted"
    if facts.min_fresh:
        yield f"min-fresh={facts.min_fresh:g}: the response must stay fresh that long"
    if facts.max_stale is not None:
        yield "max-stale: a stale response is accepted"
    if facts.only_if_cached:
        yield "only-if-cached: no request to the upstream"
    if keying.authorization == "ignore" and has(headers, b"authorization"):
        yield "Authorization is neither forwarded nor part of the key (setting `authorization`)"
    if keying.cookies == () and has(headers, b"cookie"):
        yield "cookies are neither forwarded nor part of the key (setting `cookies`)"
    if facts.authorized and keying.vary is None and keying.authorization == "pass":
        yield "Authorization: the response is stored if it has public, must-revalidate or s-maxage"


def _conditions(headers: Headers, status: int | None) -> Iterator[str]:
    """The client's response by its own precondition or range."""
    condition = next(
        (name for name in ("If-None-Match", "If-Modified-Since") if has(headers, name.lower().encode())), ""
    )
    if condition and status is None:
        yield f"{condition}: 304 if the client's copy matches the response"
    elif condition:
        yield f"{condition}: " + ("the client has it, so 304" if status == 304 else "the client has a different one")
    if not has(headers, b"range") or status == 304:
        return
    match status:
        case None:
            yield "Range: applied to the response if it is a 200"
        case 206:
            yield "Range: 206 from the stored response"
        case 416:
            yield "Range: not satisfiable, so 416"
        case _:
            yield "Range: ignored; the complete response is sent"
