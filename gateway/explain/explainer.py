"""Why a request gets its response: one decision, traced from the request line to the stored response.

Nothing is fetched, stored or counted: the trace uses the same functions as the engine. With a configuration alone (no
running gateway) the trace ends before the stores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec import structs

from gateway.aggregates.aggregate import Aggregate
from gateway.aggregates.part_source import PartSource as PartSource
from gateway.aggregates.part_source import Wanting
from gateway.aggregates.routes import AggregateRequest, asked_of
from gateway.cache.engine import Engine
from gateway.config.environment import SettingSource
from gateway.config.part_values import Missing
from gateway.config.types import show_duration
from gateway.config.yaml_document import Key
from gateway.context import RequestContext
from gateway.errors import RequestRefused
from gateway.explain import trace
from gateway.explain.lookup import READS, LookupRequest, Stores
from gateway.explain.routes import HandlerRoute, Local, Order, nothing_local
from gateway.explain.trace import Lifetime, PartTrace, Trace
from gateway.http.headers import Headers, combined, first, has, values
from gateway.http.target import (
    Slashes,
    Target,
    below,
    check_host,
    resolve_below,
    split_raw_target,
    without_credentials,
)
from gateway.identity.admission import Admission, NotAdmitted
from gateway.identity.principal import Principal
from gateway.policy import freshness
from gateway.policy.content import TOO_LARGE, Content, ContentRules
from gateway.policy.entry import Entry
from gateway.policy.keys import plan
from gateway.policy.rules import NEGATIVE_STATUSES, PLAIN, CachePolicy, directives_of
from gateway.routing.declared import Declared, has_body
from gateway.routing.handler_reading import place_of, places

Origins = Callable[[Key], Sequence[SettingSource]]
"""The sources of a value, the winner first; empty for the default."""
WINDOWS = ("stale_while_revalidate", "stale_if_error", "client_ttl")


def no_origins(key: Key) -> Sequence[SettingSource]:
    """Used if no sources are known."""
    return ()


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    text: str
    target: Target
    headers: Headers
    principal: Principal | None = None
    content: bytes | None = None
    identity: tuple[str, ...] = ()

    def told(self, decision: str, why: str) -> Trace:
        return Trace(
            request=without_credentials(self.text),
            target=without_credentials(str(self.target)),
            normalised=tuple(trace.normalised(self.text.partition(" ")[2], self.target)),
            decision=decision,
            why=why,
            identity=self.identity,
        )


Explained = Declared | Aggregate | HandlerRoute


@dataclass(frozen=True)
class Explainer:
    """`engine` is None if only the configuration is known; `origins` returns the sources of a setting. `local` returns
    what the gateway serves itself. `preflights` is whether CORS preflights are handled. `root` and `public_url` are the
    path prefix and the URL by which clients reach the gateway."""

    declared: Sequence[Declared]
    origins: Origins
    engine: Engine | None = None
    aggregates: Sequence[Aggregate] = ()
    handlers: Sequence[HandlerRoute] = ()
    local: Local = nothing_local
    preflights: bool = False
    root: str = ""
    public_url: str | None = None

    async def explain(self, method: str, raw_target: str, headers: Headers, content: bytes | None = None) -> Trace:
        """The trace of a request for `raw_target`, a path or one of the gateway's own URLs; `content` is its body, None
        if that is not known."""
        text = f"{method} {raw_target}"
        if text == "OPTIONS *":
            return Trace(request=text, decision="local", why="the gateway itself answers what is asked of the server")
        try:
            target = below(self._target(method, raw_target, headers), self.root)
            return await self._explained(_Request(method, text, target, headers, content=content))
        except RequestRefused as refused:
            return Trace(request=without_credentials(text), decision=str(refused.status), why=refused.detail)

    async def _explained(self, request: _Request) -> Trace:
        if self._is_preflight(request):
            return request.told("preflight", "a CORS preflight, answered from the setting `cors`; it reaches no route")
        if self.local(request.method, request.target.decoded) == 200:
            return request.told("local", "this path is the gateway's own")
        matching = sorted(self._matching(request.target), key=_order)
        taking = [route for route in matching if _takes(route, request.method)]
        if not taking:
            return self._unanswered(request, matching)
        lost = tuple(f"{other.name} ({_path(other)})" for other in matching if other is not taking[0])
        match taking[0]:
            case HandlerRoute() as handler:
                return await self._on_handler(request, handler, lost)
            case route if request.method == "PURGE":
                return _purging(request, route, lost)
            case Aggregate() as aggregate:
                return await self._on_aggregate(request, aggregate, lost)
            case Declared() as route if not route.passes(request.method):
                told = request.told("405", f"the route takes {route.allow.decode()} only (setting `methods`)")
                return msgspec.structs.replace(told, route=route.name, path=_path(route), lost=lost)
            case Declared() as route if route.config.websocket and _is_handshake(request):
                return await self._on_websocket(request, route, lost)
            case Declared() as route:
                return await self._on_route(request, route, lost)

    def _target(self, method: str, raw: str, headers: Headers) -> Target:
        """The normalised target. Raises RequestRefused if it is refused."""
        if method in ("CONNECT", "TRACE"):
            raise RequestRefused(f"{method} is not supported.", 405, "method")
        hosts = values(headers, b"host")
        host = check_host(hosts, "1.1") if hosts else ""
        path, query = split_raw_target(raw.encode("latin-1", "replace"), host, scheme="http")
        return resolve_below(path, query, self.root, self._slashes)

    def _slashes(self, target: Target) -> Slashes:
        route = min(self._matching(target), key=_order, default=None)
        return "refuse" if route is None or isinstance(route, HandlerRoute) else route.config.encoded_slashes

    def _is_preflight(self, request: _Request) -> bool:
        asks = has(request.headers, b"origin") and has(request.headers, b"access-control-request-method")
        return self.preflights and request.method == "OPTIONS" and asks

    def _matching(self, target: Target) -> Iterator[Explained]:
        routes: list[Declared | Aggregate] = [*self.declared, *self.aggregates]
        for route in routes:
            if route.config.template.match(target.path) is not None:
                yield route
        yield from (handler for handler in self.handlers if handler.matches(target))

    def _unanswered(self, request: _Request, matching: Sequence[Explained]) -> Trace:
        if matching:
            allowed = sorted({method for route in matching for method in _methods(route)})
            told = request.told("405", f"the path matches a route, but it allows only {', '.join(allowed)}")
            return msgspec.structs.replace(told, route=matching[0].name, path=_path(matching[0]))
        match self.local(request.method, request.target.decoded):
            case 307:
                return request.told("307", "no route matches this path; one differs only by the trailing slash")
            case 405:
                return request.told("405", "this path is the gateway's own, for other methods")
            case _:
                return request.told("404", "no route matches this path")

    async def _on_websocket(self, request: _Request, route: Declared, lost: tuple[str, ...]) -> Trace:
        if route.admission is not None:
            found = await self._admitted(request, route, route.admission, lost)
            if isinstance(found, Trace):
                return found
            request = found
        asks, _ = route.upstream_target(request.target.path, ())
        why = "a WebSocket: its frames are passed on to the upstream, and nothing of it is cached"
        return msgspec.structs.replace(
            request.told("bypass", why),
            route=route.name,
            path=_path(route),
            lost=lost,
            limits=trace.limits(route.limits, request.principal),
            upstream=route.upstream.name,
            asks=without_credentials(asks),
        )

    async def _on_route(self, request: _Request, route: Declared, lost: tuple[str, ...]) -> Trace:
        if route.admission is not None:
            found = await self._admitted(request, route, route.admission, lost)
            if isinstance(found, Trace):
                return found
            request = found
        asks, parameters = route.upstream_target(request.target.path, request.target.query)
        keying, rules, headers = route.engine_route.keying, route.engine_route.rules, request.headers
        decoded = {name: unquote(value) for name, value in parameters.items()}
        content = None
        if route.content is not None and route.is_content_read(request.method):
            refusal, content = _content_of(route.content, request)
            if refusal is not None:
                told = request.told(*refusal)
                return msgspec.structs.replace(told, route=route.name, path=route.config.path, lost=lost)
        lookup = LookupRequest(
            request.method,
            headers,
            route.name,
            route.engine_route,
            plan(keying, route.upstream.name, asks, headers, has_body=has_body(headers), content=content),
            directives_of(request.method, headers, rules),
            route.tags(decoded, request.principal),
            content,
        )
        told, stored = await self._judged(request, lookup)
        if route.shares_streams and request.method == "GET" and lookup.plan.bypass is None:
            why = "an event stream is shared by all requests with this key (setting `stream`); another response is not"
            told = msgspec.structs.replace(told, decision="stream", why=why)
        return msgspec.structs.replace(
            told,
            path=route.config.path,
            lost=lost,
            limits=trace.limits(route.limits, request.principal),
            upstream=route.upstream.name,
            asks=without_credentials(asks),
            dropped=tuple(trace.dropped(request.target, asks)),
            ttl=self._lifetime(("routes", route.name), route.config.ttl, rules, stored),
            windows=tuple(self._windows(("routes", route.name))),
        )

    async def _admitted(
        self, request: _Request, route: Explained, admission: Admission, lost: tuple[str, ...]
    ) -> _Request | Trace:
        """The request after admission; the trace of one that is refused."""
        if self.engine is None:
            why = "the route verifies credentials (setting `identity`): ask a running gateway"
            return msgspec.structs.replace(request.told(trace.UNKNOWN, why), route=route.name, path=_path(route))
        try:
            headers, principal = await admission.admit(request.headers, self.engine.identity_key)
        except NotAdmitted as refused:
            told = request.told(str(refused.status), f"{refused.detail} (setting `identity`)")
            return msgspec.structs.replace(told, route=route.name, path=_path(route), lost=lost)
        shown = trace.identity(principal, admission.per)
        return replace(request, headers=headers, principal=principal, identity=shown)

    async def _judged(self, request: _Request, lookup: LookupRequest) -> tuple[Trace, Entry | None]:
        """The trace common to all requests that reach the engine, with the stored response."""
        stores = Stores(self.engine)
        judged = await stores.judge(lookup)
        stored = judged.found.stored
        told = msgspec.structs.replace(
            request.told(judged.decision, judged.why),
            status=judged.status,
            route=lookup.name,
            key=tuple(trace.key(lookup.plan, lookup.route.keying, lookup.headers, lookup.content)),
            variant=trace.variant(stored, lookup.route.keying, lookup.headers),
            entry=stores.entry(judged.found, lookup.route.rules),
            names=tuple(stores.names(lookup, stored)),
            client=tuple(trace.client(lookup.facts, lookup.route.keying, lookup.headers, judged.status)),
        )
        return told, stored

    # --- handlers in Python --------------------------------------------------------------------------------

    def _place(self, headers: Headers) -> dict[str, Any]:
        """The scope of a request with these fields, as far as it locates the gateway."""
        if self.public_url is None:
            return {"headers": headers, "root_path": unquote(self.root)}
        public = urlsplit(self.public_url)
        host = [(b"host", public.netloc.lower().encode("latin-1"))]
        return {"headers": host, "scheme": public.scheme, "root_path": unquote(self.root)}

    async def _on_handler(self, request: _Request, handler: HandlerRoute, lost: tuple[str, ...]) -> Trace:
        cached = handler.cached
        asks = "the Python handler of this name"
        if cached is None or request.method not in READS:
            why = "a handler without @cached; nothing is cached"
            why = why if cached is None else "only GET and HEAD are cached"
            told = request.told("uncached", why)
            return msgspec.structs.replace(told, route=handler.name, path=handler.path, lost=lost, asks=asks)
        if cached.admission is not None:
            found = await self._admitted(request, handler, cached.admission, lost)
            if isinstance(found, Trace):
                return found
            request = found
        target, headers, rules = cached.target(request.target), request.headers, cached.route.rules
        lookup = LookupRequest(
            request.method,
            [*headers, *places(place_of(self._place(headers)))],
            handler.name,
            cached.route,
            plan(cached.route.keying, cached.origin, target, headers, has_body=has_body(headers)),
            directives_of(request.method, headers, rules),
            handler.tags(request.target, request.principal),
        )
        told, stored = await self._judged(request, lookup)
        key, written = ("routes", handler.name), f"@cached of {handler.name} ({cached.written_ttl})"
        return msgspec.structs.replace(
            told,
            path=handler.path,
            lost=lost,
            asks=asks,
            limits=trace.limits(cached.limits, request.principal),
            dropped=tuple(trace.dropped(request.target, target)),
            edge=cached.edge,
            ttl=self._lifetime(key, cached.ttl, rules, stored, coded=written),
            windows=tuple(self._windows(key)),
        )

    # --- aggregates ----------------------------------------------------------------------------------------

    async def _on_aggregate(self, request: _Request, aggregate: Aggregate, lost: tuple[str, ...]) -> Trace:
        if aggregate.admission is not None:
            found = await self._admitted(request, aggregate, aggregate.admission, lost)
            if isinstance(found, Trace):
                return found
            request = found
        asked = asked_of(aggregate, request.target.path, request.target, request.headers)
        headers = request.headers
        lookup = LookupRequest(
            request.method,
            headers,
            aggregate.name,
            aggregate.route,
            plan(aggregate.route.keying, aggregate.origin, asked.target, headers, has_body=has_body(headers)),
            structs.replace(directives_of(request.method, headers, aggregate.route.rules), authorized=False),
            aggregate.tags(asked.values, request.principal),
        )
        told, _ = await self._judged(request, lookup)
        if told.decision in ("miss", "revalidate"):
            why = "the aggregate is joined again from its parts; only stale parts are fetched"
            told = msgspec.structs.replace(told, decision="join", why=why)
        return msgspec.structs.replace(
            told,
            path=aggregate.config.path,
            lost=lost,
            limits=trace.limits(aggregate.limits, request.principal),
            asks=f"its parts {', '.join(asked.shown)}",
            parts=tuple([await self._part(request, aggregate, name, asked) for name in asked.shown]),
        )

    async def _part(self, request: _Request, aggregate: Aggregate, name: str, asked: AggregateRequest) -> PartTrace:
        source = aggregate.kit.sources.get(name)
        if source is None:
            return PartTrace(name=name, note="static")
        per = source.dependence.per if source.dependence is not None else ()
        told = PartTrace(name=name, upstream=source.upstream.name, per=per)
        needs = ", ".join(source.part.needs)
        if needs:
            note, ttl = f"requested with values of {needs}", self._part_ttl(aggregate, source)
            return msgspec.structs.replace(told, note=note, ttl=ttl)
        try:
            target, tags = source.target(asked.values)
        except (Missing, RequestRefused) as missing:
            note, ttl = f"omitted: {missing}", self._part_ttl(aggregate, source)
            return msgspec.structs.replace(told, note=note, ttl=ttl)
        exchange = RequestContext("", 0.0, "GET", "", "http", headers=request.headers, principal=request.principal)
        ask = source.ask(Wanting.of(exchange, PLAIN, asked.values, 0.0), target, tags)
        lookup = LookupRequest(
            request.method, ask.headers, source.route.name, source.route, ask.plan, ask.facts, ask.wanted.tags
        )
        stores = Stores(self.engine)
        found = await stores.found(lookup)
        entry = stores.entry(found, source.route.rules)
        return msgspec.structs.replace(
            told, asks=without_credentials(target), ttl=self._part_ttl(aggregate, source, found.stored), entry=entry
        )

    def _part_ttl(self, aggregate: Aggregate, source: PartSource, stored: Entry | None = None) -> Lifetime:
        key: Key = ("routes", aggregate.name, "parts", source.part.name)
        if source.declared is not None:
            key = ("routes", source.declared.name)
        config = source.declared.config if source.declared is not None else source.part.config
        coded = None
        if aggregate.written is not None and source.declared is None:
            ttl = aggregate.written.parts[source.part.name].ttl
            coded = f"aggregate() of {aggregate.name} ({ttl if isinstance(ttl, str) else show_duration(ttl)})"
        return self._lifetime(key, config.ttl, source.route.rules, stored, coded=coded)

    # --- the lifetime --------------------------------------------------------------------------------------

    def _lifetime(
        self, key: Key, ttl: timedelta | str, rules: CachePolicy, stored: Entry | None, *, coded: str | None = None
    ) -> Lifetime:
        """The TTL in force, its sources, and the effect of the upstream's fields and of jitter. `coded` is the TTL in
        the code of a Python handler."""
        if rules.ttl is None or isinstance(ttl, str):
            sources = self._sources(key, "ttl", coded)
            return Lifetime(value="origin", sources=sources, notes=tuple(trace.origin_notes(stored)))
        setting, value = "ttl", ttl
        notes = [f"jitter shortens it by up to {rules.jitter:.0%}"]
        if stored is not None and stored.status in NEGATIVE_STATUSES:
            setting, value, coded = "negative_ttl", timedelta(seconds=rules.negative_ttl), None
            notes = [f"of a {stored.status}; that of other answers is {show_duration(ttl)}", *notes]
        sources = self._sources(key, setting, coded)
        if stored is not None:
            if said := combined(stored.headers, b"cache-control"):
                sources = (*sources, f"upstream ({said})")
            notes.append(f"this entry: {freshness.windows(stored, rules).fresh - stored.born:.2f} s from its birth")
        return Lifetime(value=show_duration(value), sources=sources, notes=tuple(notes), setting=setting)

    def _windows(self, key: Key) -> Iterator[Lifetime]:
        """The other windows of a route, if they were set."""
        for setting in WINDOWS:
            origins = self.origins((*key, setting))
            if origins:
                yield Lifetime(value=origins[0].value, sources=self._sources(key, setting, None), setting=setting)

    def _sources(self, key: Key, setting: str, coded: str | None) -> tuple[str, ...]:
        named = [f"{source.place} ({source.value})" for source in self.origins((*key, setting))]
        if coded is not None:
            named.append(coded)
        return tuple(named or ["default"])


def _content_of(rules: ContentRules, request: _Request) -> tuple[tuple[str, str] | None, Content | None]:
    """The content of a request as part of its key, or the decision and the reason without it."""
    if request.content is None:
        return (trace.UNKNOWN, "the key contains a digest of the body: give it with --data"), None
    refusal = rules.refusal(request.headers)
    if len(request.content) > rules.largest:
        refusal = TOO_LARGE
    if refusal is not None:
        return ("bypass", trace.BYPASSES[refusal]), None
    return None, rules.content(request.method, request.headers, request.content)


def _order(route: Explained) -> Order:
    return route.order if isinstance(route, HandlerRoute) else (False, route.config.template.specificity)


def _path(route: Explained) -> str:
    return route.path if isinstance(route, HandlerRoute) else route.config.path


def _methods(route: Explained) -> frozenset[str]:
    """The methods that a route allows, if it does not allow all."""
    if isinstance(route, HandlerRoute):
        return route.methods
    return frozenset((*READS, "PURGE")) if isinstance(route, Aggregate) else frozenset()


def _takes(route: Explained, method: str) -> bool:
    return isinstance(route, Declared) or method in _methods(route)


def _purging(request: _Request, route: Declared | Aggregate, lost: tuple[str, ...]) -> Trace:
    networks = ", ".join(map(str, route.config.purge_from))
    if networks:
        told = request.told("purge", f"entries for this URL are purged if the client is in {networks} (`purge_from`)")
    else:
        told = request.told("403", "PURGE is not allowed on this route (setting `purge_from`)")
    return msgspec.structs.replace(told, route=route.name, path=route.config.path, lost=lost)


def _is_handshake(request: _Request) -> bool:
    upgrade = first(request.headers, b"upgrade")
    return request.method == "GET" and upgrade is not None and upgrade.lower() == "websocket"
