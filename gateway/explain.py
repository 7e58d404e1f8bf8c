"""Why a request is answered as it is: one decision, traced from the request line to the stored response.

Nothing is fetched, stored or counted: what the engine would do is worked out by the functions it uses itself, and told.
With a configuration alone (no running gateway) the trace ends where the stores would be asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import assert_never
from urllib.parse import unquote

import msgspec

from . import policy
from .aggregate import Aggregate
from .aggregate_routes import Asked, asked_of
from .config import show_duration
from .document import Key
from .engine import Engine
from .epochs import key_name, route_name, tag_name
from .errors import RequestRefused
from .exchange import Exchange
from .explain_handlers import HandlerCache, HandlerRoute, Order
from .headers import Headers, combined, has
from .keys import Keying, Plan, plan, variant_key
from .part_plan import Missing
from .part_source import Source as PartSource
from .part_source import Wanting
from .policy import Facts, Rules, Windows, facts_of
from .record import Stored
from .routes import Declared
from .settings import Source
from .targets import Target, normalise, pair_name, split_raw_target
from .templates import render_tag
from .tiers import Found, Selection, selection

Origins = Callable[[Key], Sequence[Source]]
"""Who set a value, the winner first; nothing where it is the default."""
UNKNOWN = "unknown"


def no_origins(key: Key) -> Sequence[Source]:
    """Where nothing is known of who set what."""
    return ()


class Lifetime(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The TTL and where it came from, the winner first: `30s: environment …, over file … line 14`."""

    value: str
    sources: tuple[str, ...]
    notes: tuple[str, ...] = ()


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A stored response: where it lies, and how it stands. Durations are seconds from now, negative where past."""

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
    """A name by which the answer can be purged, and its last purge as a position on the stream (`-`: none)."""

    name: str
    epoch: str


class PartTrace(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One part of an aggregate: what it asks, or why that is not known yet; its TTL, and what is stored."""

    name: str
    upstream: str = ""
    asks: str = ""
    note: str = ""
    ttl: Lifetime | None = None
    entry: Entry | None = None


class Trace(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request's way: what `gateway explain` prints, and the admin API gives as JSON."""

    request: str
    decision: str
    why: str
    target: str = ""
    normalised: tuple[str, ...] = ()
    route: str = ""
    path: str = ""
    lost: tuple[str, ...] = ()
    upstream: str = ""
    asks: str = ""
    dropped: tuple[str, ...] = ()
    key: tuple[str, ...] = ()
    variant: tuple[str, ...] = ()
    ttl: Lifetime | None = None
    entry: Entry | None = None
    names: tuple[Name, ...] = ()
    client: tuple[str, ...] = ()
    parts: tuple[PartTrace, ...] = ()


@dataclass(frozen=True)
class Explainer:
    """`engine` is None where only the configuration is known; `origins` tells who set a setting."""

    declared: Sequence[Declared]
    origins: Origins
    engine: Engine | None = None
    aggregates: Sequence[Aggregate] = ()
    handlers: Sequence[HandlerRoute] = ()

    async def explain(self, method: str, raw_target: str, headers: Headers) -> Trace:
        """The trace of a request for `raw_target`, a path or one of the gateway's own URLs."""
        request = f"{method} {raw_target}"
        try:
            path, query = split_raw_target(raw_target.encode("latin-1", "replace"), "", scheme="http")
            target = normalise(path, query)
            asked = _Request(method, request, target, headers)
            matching = sorted(self._matching(target), key=_order)
            if not matching:
                return Trace(request=request, target=str(target), decision="404", why="no route has this path")
            lost = tuple(f"{other.name} ({_path(other)})" for other in matching[1:])
            match matching[0]:
                case Aggregate() as aggregate:
                    return await self._on_aggregate(asked, aggregate, lost)
                case HandlerRoute() as handler:
                    return await self._on_handler(asked, handler, lost)
                case route:
                    return await self._on_route(asked, route, lost)
        except RequestRefused as refused:
            return Trace(request=request, decision=str(refused.status), why=refused.detail)

    def _matching(self, target: Target) -> Iterator[Explained]:
        routes: list[Declared | Aggregate] = [*self.declared, *self.aggregates]
        for route in routes:
            if route.config.template.match(target.path) is not None:
                yield route
        yield from (handler for handler in self.handlers if handler.matches(target))

    async def _on_route(self, request: _Request, route: Declared, lost: tuple[str, ...]) -> Trace:
        asks, parameters = route.upstream_target(request.target.path, request.target.query)
        rules = route.engine_route.rules
        planned = plan(route.engine_route.keying, route.upstream.name, asks, request.headers)
        facts = facts_of(request.method, request.headers, rules)
        decoded = {name: unquote(value) for name, value in parameters.items()}
        tags = tuple(render_tag(tag, decoded) for tag in route.config.tags)
        wanted = selection(planned, request.headers, route.name, tags)
        found = await self._found(request, planned, wanted)
        decision, why = self._decision(request, planned, facts, rules, found)
        stored = found.stored
        return Trace(
            request=request.text,
            target=str(request.target),
            normalised=tuple(_normalised(request)),
            route=route.name,
            path=route.config.path,
            lost=lost,
            upstream=route.upstream.name,
            asks=asks,
            dropped=tuple(_dropped(request.target, asks)),
            key=tuple(planned.base.split("\n")),
            variant=_variant(planned, stored, request.headers),
            ttl=self._lifetime(route, stored),
            entry=self._entry(found, rules),
            names=tuple(self._names(planned, route.name, tags, stored)),
            client=tuple(_client(facts, route.engine_route.keying, request.headers)),
            decision=decision,
            why=why,
        )

    # --- handlers in Python --------------------------------------------------------------------------------

    async def _on_handler(self, request: _Request, handler: HandlerRoute, lost: tuple[str, ...]) -> Trace:
        told = Trace(
            request=request.text,
            target=str(request.target),
            normalised=tuple(_normalised(request)),
            route=handler.name,
            path=handler.path,
            lost=lost,
            asks="the Python handler of that name",
            decision="uncached",
            why="a handler without @cached answers each request itself",
        )
        cached = handler.cached
        if cached is None:
            return told
        if request.method not in ("GET", "HEAD"):
            return msgspec.structs.replace(told, why="only GET and HEAD are cached")
        asks, rules = cached.target(request.target), cached.route.rules
        planned = plan(cached.route.keying, cached.origin, asks, request.headers)
        facts, tags = facts_of(request.method, request.headers, rules), handler.tags(request.target)
        found = await self._found(request, planned, selection(planned, request.headers, handler.name, tags))
        decision, why = self._decision(request, planned, facts, rules, found)
        return msgspec.structs.replace(
            told,
            dropped=tuple(_dropped(request.target, asks)),
            key=tuple(planned.base.split("\n")),
            variant=_variant(planned, found.stored, request.headers),
            ttl=_lived(cached.ttl, self._handler_sources(handler.name, cached), rules, found.stored),
            entry=self._entry(found, rules),
            names=tuple(self._names(planned, handler.name, tags, found.stored)),
            client=tuple(_client(facts, cached.route.keying, request.headers)),
            decision=decision,
            why=why,
        )

    def _handler_sources(self, name: str, cached: HandlerCache) -> list[str]:
        return [*self._sources(("routes", name, "ttl")), f"@cached of {name} ({cached.written_ttl})"]

    # --- aggregates ----------------------------------------------------------------------------------------

    async def _on_aggregate(self, request: _Request, aggregate: Aggregate, lost: tuple[str, ...]) -> Trace:
        asked = asked_of(aggregate, request.target.path, request.target, request.headers)
        rules = aggregate.route.rules
        planned = plan(aggregate.route.keying, f"+{aggregate.name}", asked.target, request.headers)
        facts = replace(facts_of(request.method, request.headers, rules), authorized=False)
        tags = tuple(render_tag(tag, dict(asked.values.path)) for tag in aggregate.config.tags)
        found = await self._found(request, planned, selection(planned, request.headers, aggregate.name, tags))
        decision, why = self._decision(request, planned, facts, rules, found)
        if decision in ("miss", "revalidate"):
            decision, why = "join", "the whole is joined anew of its parts; only those that are stale are fetched"
        return Trace(
            request=request.text,
            target=str(request.target),
            normalised=tuple(_normalised(request)),
            route=aggregate.name,
            path=aggregate.config.path,
            lost=lost,
            asks=f"its parts {', '.join(asked.shown)}",
            key=tuple(planned.base.split("\n")),
            entry=self._entry(found, rules),
            names=tuple(self._names(planned, aggregate.name, tags, found.stored)),
            client=tuple(_client(facts, aggregate.route.keying, request.headers)),
            decision=decision,
            why=why,
            parts=tuple([await self._part(request, aggregate, name, asked) for name in asked.shown]),
        )

    async def _part(self, request: _Request, aggregate: Aggregate, name: str, asked: Asked) -> PartTrace:
        source = aggregate.kit.sources.get(name)
        if source is None:
            return PartTrace(name=name, note="static")
        told = PartTrace(name=name, upstream=source.upstream.name)
        needs = ", ".join(source.part.needs)
        if needs:
            return msgspec.structs.replace(
                told, note=f"asks with values of {needs}", ttl=self._part_ttl(aggregate, source)
            )
        try:
            target, tags = source.target(asked.values)
        except (Missing, RequestRefused) as missing:
            return msgspec.structs.replace(told, note=f"left out: {missing}", ttl=self._part_ttl(aggregate, source))
        exchange = Exchange("", 0.0, "GET", "", "http", headers=request.headers)
        ask = source.ask(Wanting.of(exchange, policy.PLAIN, asked.values, 0.0), target, tags)
        found = await self._found(request, ask.plan, ask.wanted)
        entry = self._entry(found, source.route.rules)
        return msgspec.structs.replace(
            told, asks=target, ttl=self._part_ttl(aggregate, source, found.stored), entry=entry
        )

    def _part_ttl(self, aggregate: Aggregate, source: PartSource, stored: Stored | None = None) -> Lifetime:
        key: Key = ("routes", aggregate.name, "parts", source.part.name, "ttl")
        if source.declared is not None:
            key = ("routes", source.declared.name, "ttl")
        config = source.declared.config if source.declared is not None else source.part.config
        return self._lived(key, config.ttl, source.route.rules, stored)

    # --- the stores ----------------------------------------------------------------------------------------

    async def _found(self, request: _Request, planned: Plan, wanted: Selection) -> Found:
        if self.engine is None or planned.bypass is not None or request.method not in ("GET", "HEAD"):
            return Found(None)
        here = Found(self.engine.tiers.at_hand(wanted), "memory")
        if here.stored is not None:
            return here
        return await self.engine.tiers.look(wanted) if self.engine.shared.available else Found(None)

    def _entry(self, found: Found, rules: Rules) -> Entry | None:
        stored = found.stored
        if stored is None or self.engine is None:
            return None
        now = self.engine.clock.now()
        ends = policy.windows(stored, rules)
        return Entry(
            tier=found.tier or "",
            status=stored.status,
            bytes=len(stored.body),
            age=round(policy.current_age(stored, now) if rules.ttl is None else max(0.0, now - stored.born), 3),
            fresh_for=round(ends.fresh - now, 3),
            stale_while_revalidate_for=round(ends.revalidate - now, 3),
            stale_if_error_for=round(ends.error - now, 3),
            varies_on=stored.vary,
            tags=stored.tags,
            purged_softly=stored.softened is not None,
        )

    def _names(self, planned: Plan, route: str, tags: tuple[str, ...], stored: Stored | None) -> Iterator[Name]:
        epochs = self.engine.tiers.purges.epochs if self.engine is not None else None
        all_tags = dict.fromkeys((*tags, *(stored.tags if stored is not None else ())))
        named = [("key", key_name(planned.primary)), (f"route {route}", route_name(route))]
        named += [(f"tag {tag}", tag_name(tag)) for tag in all_tags]
        for shown, name in named:
            yield Name(name=shown, epoch=(epochs.last_purge(name) if epochs is not None else None) or "-")

    # --- the decision --------------------------------------------------------------------------------------

    def _decision(self, request: _Request, planned: Plan, facts: Facts, rules: Rules, found: Found) -> tuple[str, str]:
        if request.method not in ("GET", "HEAD"):
            return "pass", "only GET and HEAD are cached; a success makes void what is stored for the target"
        if planned.bypass is not None:
            return "bypass", _BYPASSES[planned.bypass]
        if self.engine is None:
            return UNKNOWN, "no running gateway was asked, so what is stored is not known"
        now = self.engine.clock.now()
        match decision := policy.decide(found.stored, facts, rules, now):
            case policy.Hit():
                return "hit", f"fresh for {decision.windows.fresh - now:.1f} s more"
            case policy.Stale():
                return "stale", _why_stale(decision.windows, now, refresh=decision.refresh)
            case policy.Revalidate():
                return "revalidate", _why_asked(decision, now)
            case policy.Miss():
                return "miss", "nothing stored answers this request"
            case policy.Bypass():
                return "bypass", _BYPASSES.get(decision.reason, decision.reason)
            case policy.Unsatisfiable():
                return "504", "nothing stored answers it, and it asked for no more (only-if-cached)"
            case _:
                assert_never(decision)

    # --- the lifetime --------------------------------------------------------------------------------------

    def _lifetime(self, route: Declared, stored: Stored | None) -> Lifetime:
        return self._lived(("routes", route.name, "ttl"), route.config.ttl, route.engine_route.rules, stored)

    def _lived(self, key: Key, ttl: timedelta | str, rules: Rules, stored: Stored | None) -> Lifetime:
        return _lived(ttl, self._sources(key) or ["default"], rules, stored)

    def _sources(self, key: Key) -> list[str]:
        return [f"{source.place} ({source.value})" for source in self.origins(key)]


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    text: str
    target: Target
    headers: Headers


Explained = Declared | Aggregate | HandlerRoute


def _order(route: Explained) -> Order:
    return route.order if isinstance(route, HandlerRoute) else (False, route.config.template.specificity)


def _path(route: Explained) -> str:
    return route.path if isinstance(route, HandlerRoute) else route.config.path


def _lived(ttl: timedelta | str, sources: list[str], rules: Rules, stored: Stored | None) -> Lifetime:
    """A TTL, who set it, and what the upstream and the jitter make of it."""
    if rules.ttl is None or isinstance(ttl, str):
        return Lifetime(value="origin", sources=tuple(sources), notes=tuple(_origin_notes(stored)))
    if stored is not None and (said := combined(stored.headers, b"cache-control")):
        sources = [*sources, f"upstream ({said})"]
    notes = [f"jitter shortens it by up to {rules.jitter:.0%}"]
    if stored is not None:
        lived = policy.windows(stored, rules).fresh - stored.born
        notes.append(f"this entry: {lived:.2f} s from its birth")
    return Lifetime(value=show_duration(ttl), sources=tuple(sources), notes=tuple(notes))


_BYPASSES = {
    "body": "a GET with a body passes by the cache",
    "authorization": "a request with Authorization passes by the cache here (setting `authorization`)",
    "cookie": "a request with cookies passes by the cache here (setting `cookies`)",
    "precondition": "a request with If-Match or If-Unmodified-Since is the upstream's to judge",
    "no-store": "the request says Cache-Control: no-store",
}


def _why_stale(ends: Windows, now: float, *, refresh: bool) -> str:
    since = now - ends.fresh
    if refresh:
        return f"fresh until {since:.1f} s ago; within stale_while_revalidate it is given, and refreshed behind"
    return f"fresh until {since:.1f} s ago; the request's max-stale accepts it"


def _why_asked(decision: policy.Revalidate, now: float) -> str:
    means = "with its validators" if policy.has_validator(decision.stored.headers) else "without validators"
    if decision.reason == "request":
        return f"it is fresh, but the request's Cache-Control wants more: the upstream is asked {means}"
    kept = "; if the upstream fails, it is given all the same" if now < decision.windows.error else ""
    return f"fresh until {now - decision.windows.fresh:.1f} s ago: the upstream is asked {means}{kept}"


def _normalised(request: _Request) -> Iterator[str]:
    given = request.text.partition(" ")[2]
    if given.partition("?")[0] != request.target.path and given.startswith("/"):
        yield f"path {given.partition('?')[0]} is {request.target.path}"
    pairs = [pair for pair in given.partition("?")[2].split("&") if pair]
    names = [pair_name(pair) for pair in pairs]
    if names != sorted(names):
        yield "query parameters are sorted by name"


def _dropped(target: Target, asks: str) -> Iterator[str]:
    asked = asks.partition("?")[2].split("&")
    for pair in target.query:
        if pair not in asked:
            yield f"query parameter {pair_name(pair)}: no answer depends on it here (settings `query`, `drop_query`)"


def _variant(planned: Plan, stored: Stored | None, headers: Headers) -> tuple[str, ...]:
    if stored is None or not stored.vary:
        return ()
    return tuple(variant_key(planned.base, stored.vary, headers).removeprefix(planned.base).strip("\n").split("\n"))


def _origin_notes(stored: Stored | None) -> Iterator[str]:
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


def _client(facts: Facts, keying: Keying, headers: Headers) -> Iterator[str]:
    """What the request itself changed."""
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
