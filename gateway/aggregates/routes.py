"""Aggregates of the configuration: from routes with parts to handlers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from types import MappingProxyType
from urllib.parse import unquote_plus

import msgspec
from msgspec import structs
from starlette.requests import Request
from starlette.responses import Response
from xxhash import xxh3_64_hexdigest

from gateway.aggregates.aggregate import Aggregate
from gateway.aggregates.fetching import Persistence
from gateway.aggregates.merge import BodyCache, BodyTransform, ShapeRules
from gateway.aggregates.part_result import BackOff
from gateway.aggregates.part_source import PartSource
from gateway.aggregates.runner import Kit
from gateway.aggregates.splice_plan import joinable
from gateway.cache.engine import Engine
from gateway.cache.request import CacheRequest, Route
from gateway.cache.respond import Answer, problem
from gateway.config.expressions import Expression
from gateway.config.models import Config
from gateway.config.part import PartConfig
from gateway.config.part_graph import PartPlan, PlannedPart, cross_problems, near, sole_part
from gateway.config.part_identity import claims_of_parts, claims_of_whole, identity_problems, issuer_problems
from gateway.config.part_values import Values
from gateway.config.rate_limits import unusable_limits
from gateway.config.route import RouteConfig, rules_of
from gateway.context import RequestContext, exchange_of
from gateway.errors import ConfigError, ConfigProblem, RequestRefused
from gateway.http.forwarding import Trusted
from gateway.http.headers import Headers, first, sent_value
from gateway.http.json_text import text_of
from gateway.http.target import Slashes, Target, query_name
from gateway.identity.admission import Admission, Dependence, Provider, admission_of
from gateway.identity.principal import is_of_one_user
from gateway.limits.limiter import Limiter
from gateway.limits.route_limits import RouteLimits
from gateway.observability.metrics import Metrics
from gateway.policy.keys import Keying, is_identity, plan, primary_key
from gateway.policy.rules import CachePolicy, directives_of
from gateway.routing.admitting import let_in
from gateway.routing.declared import Declared, has_body, keying_of, local_path, purge_response
from gateway.routing.fast_path import BlockCache, FastPath
from gateway.routing.responses import AnswerResponse, Client
from gateway.routing.upstream_request import public_constants
from gateway.upstreams.client import Upstream
from gateway.upstreams.request import Interim
from gateway.upstreams.response import WholeBody

PARTS = "parts"
"""The query parameter by which clients select parts."""


@dataclass(frozen=True)
class Builder:
    """Makes aggregates and holds what they share. `overridden` has those written in Python that live overrides changed,
    by name."""

    config: Config
    engine: Engine
    metrics: Metrics
    upstreams: Mapping[str, Upstream]
    declared: Mapping[str, Declared]
    body_cache: BodyCache
    back_off: BackOff
    overridden: Mapping[str, RouteConfig]
    providers: Mapping[str, Provider] = field(default_factory=dict)
    limiter: Limiter | None = None
    keyings: dict[Keying, Keying] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        config: Config,
        engine: Engine,
        metrics: Metrics,
        upstreams: Mapping[str, Upstream],
        declared: Sequence[Declared],
        overridden: Mapping[str, RouteConfig],
        providers: Mapping[str, Provider] = MappingProxyType({}),
        limiter: Limiter | None = None,
    ) -> Builder:
        """`providers` verify credentials, by the names of the setting `identity`; `limiter` counts by `rate_limits`."""
        back_off = BackOff(engine.clock, config.retry_after.total_seconds())
        named = {route.name: route for route in declared}
        return cls(config, engine, metrics, upstreams, named, BodyCache(), back_off, overridden, providers, limiter)

    def all(self) -> list[Aggregate]:
        return [self.aggregate(name, route) for name, route in self.config.routes.items() if route.parts]

    def aggregate(
        self, name: str, route: RouteConfig, checks: Mapping[str, Callable[[bytes], None]] | None = None
    ) -> Aggregate:
        """The aggregate of a route with parts; `checks` are of typed parts."""
        plan = route.part_plan
        claims = claims_of_parts(plan, self.config.routes) if route.identity else {}
        sources = {
            each: self._source(name, part, plan, route, (checks or {}).get(each), claims.get(each, ()))
            for each, part in plan.parts.items()
            if not part.config.is_static
        }
        kit = Kit(
            plan=plan,
            sources=sources,
            statics={each: text_of(part.static) for each, part in route.parts.items() if part.is_static},
            body_cache=self.body_cache,
            count=partial(self.metrics.part, name),
        )
        rules = CachePolicy(
            stale_while_revalidate=0.0,
            stale_if_error=0.0,
            request_directives=route.request_directives == "honour",
            # With a part that is never cached no request waits for another's aggregate; the other parts are shared as
            # always.
            cache=not any(source.route.rules.off for source in sources.values()),
        )
        keying = replace(_keying(sources.values(), route, plan), identity_key=self.engine.identity_key)
        admission = self._admission(route, sources.values())
        if admission is not None:
            keying = _identified(keying, admission, route)
        made = Route(name, rules, keying, self._max_body(route), made=True, changes=route.headers.response.changes)
        limits = RouteLimits.of(self.config, route.rate_limits, self.limiter) if self.limiter is not None else None
        return Aggregate(name, route, kit, made, self.engine, admission=admission, limits=limits)

    def _admission(self, route: RouteConfig, sources: Iterable[PartSource]) -> Admission | None:
        admission = admission_of(route, self.providers)
        if admission is None:
            return None
        parts = tuple(source.dependence for source in sources if source.dependence is not None)
        return replace(admission, per=claims_of_whole(route, self.config.routes), parts=parts)

    def typed(self, name: str, written: RouteConfig, checks: Mapping[str, Callable[[bytes], None]]) -> Aggregate:
        """The aggregate that was `written` in Python. Raises ConfigError if it names something that is not
        configured."""
        route = self.overridden.get(name, written)
        config = self.config
        if name in config.routes:
            message = f"the aggregate {name} has the name of a route; set another `name`"
            raise ConfigError([ConfigProblem("", "include", message)])
        several = frozenset(each for each, upstream in self.upstreams.items() if len(upstream.config.bases) > 1)
        plain = {each: declared.template for each, declared in self.declared.items()}
        upstreams = frozenset(self.upstreams)
        found = [
            *cross_problems(route.parts, route.template, upstreams, several, plain, config.refusing_for(route)),
            *identity_problems(route, config.routes, config.credential_fields),
            *issuer_problems(route, config.identity),
        ]
        problems = [ConfigProblem("", f"{name}.{'.'.join(each.key)}", each.message) for each in found]
        unusable = unusable_limits(route.rate_limits, config.rate_limits, identified=bool(route.identity))
        problems += [ConfigProblem("", f"{name}.rate_limits", message) for _, message in unusable]
        if problems:
            raise ConfigError(problems)
        return replace(self.aggregate(name, route, checks), written=written)

    def _max_body(self, route: RouteConfig) -> int:
        return self.config.max_body if route.max_body is None else route.max_body

    def _source(
        self,
        name: str,
        part: PlannedPart,
        plan: PartPlan,
        route: RouteConfig,
        check: Callable[[bytes], None] | None,
        claims: tuple[str, ...],
    ) -> PartSource:
        config = part.config
        declared = self.declared[config.route] if config.route is not None else None
        if declared is not None:
            dependence = declared.admission.dependence if declared.admission is not None else None
        else:
            dependence = Dependence(claims, config.forward) if claims else None
        upstream = declared.upstream if declared is not None else self.upstreams[config.upstream or ""]
        made = (
            declared.engine_route if declared is not None else self._route(f"{name}.{part.name}", config, route, claims)
        )
        select = Expression(config.select) if config.select is not None else None
        shape = ShapeRules(select, tuple(config.allow), tuple(config.deny), tuple(config.rename.items()))
        needed = part.name in plan.needed
        merged = config.at_root and config.for_each is None and sole_part(route.parts) is None
        at_root = merged or (config.at_root and (route.envelope or route.errors))
        return PartSource(
            part=part,
            through=name,
            upstream=upstream,
            route=made,
            transform=BodyTransform(
                f"{name}.{part.name}", config.decode, shape, at_root, needed, check, made.max_body, config.optional
            ),
            engine=self.engine,
            back_off=self.back_off,
            persistence=Persistence(config.retries, None if config.hedge is None else config.hedge.total_seconds()),
            metrics=self.metrics,
            declared=declared,
            dependence=dependence,
        )

    def _route(self, name: str, config: PartConfig, route: RouteConfig, claims: tuple[str, ...]) -> Route:
        """A part's own route, as the engine sees it: with the rules that a route of these settings would have."""
        personal = {"identity": route.identity, "per": [*claims], "forward": config.forward}
        settings = {
            "path": "/",
            "upstream": config.upstream,
            "request_directives": route.request_directives,
            "cache": self.config.cache,
            **{field: getattr(config, field) for field in _OF_A_ROUTE if field in config.model_fields_set},
            **(personal if claims else {"authorization": config.authorization}),
            "cookies": config.cookies,
        }
        like = RouteConfig.model_validate(settings)
        host = self.upstreams[like.upstream].config.preserves_host
        constants = public_constants(self.config)
        keying = keying_of(like, constants, self.engine.identity_key, host=host, providers=self.providers)
        # One object for all equal ones: what a request's headers amount to under it is computed once.
        return Route(
            name, rules_of(like), self.keyings.setdefault(keying, keying), config.max_body or self._max_body(route)
        )


_OF_A_ROUTE = ("ttl", "stale_while_revalidate", "stale_if_error", "negative_ttl", "vary")


def _keying(sources: Collection[PartSource], config: RouteConfig, plan: PartPlan) -> Keying:
    """The aggregate's keyed inputs: all keyed inputs of its parts before their upstreams' `Vary`.

    An aggregate's body and lifetime are settled when it is joined, by the settings of its parts: so if any of those is
    changed, by a reload or a live override, it is joined again from the stored parts, which follow the current
    settings.
    """
    parts = [source.route.keying for source in sources]
    settings = xxh3_64_hexdigest(repr([_settings(config), *map(_behind, sources)]).encode())
    vary = {name for keying in parts for name in keying.vary or ()} | plan.reads
    authorizations = {keying.authorization for keying in parts}
    authorization = next((each for each in ("pass", "key") if each in authorizations), "ignore")
    cookies: tuple[str, ...] | None = tuple(sorted({name for keying in parts for name in keying.cookies or ()}))
    if any(keying.cookies is None for keying in parts):
        cookies = None
    marks = ((b"parts", settings.encode()),)
    identities = frozenset[str]().union(*(keying.identities for keying in parts))
    return Keying(
        vary=tuple(sorted(vary)),
        authorization=authorization,
        cookies=cookies,
        marks=marks,
        identities=identities,
        host=any(keying.host for keying in parts),
    )


def _identified(keying: Keying, admission: Admission, config: RouteConfig) -> Keying:
    """The keyed inputs of an aggregate with `identity`: the partition of all its parts, and no credential."""
    return replace(
        keying,
        authorization="ignore",
        per=admission.per,
        one_user=is_of_one_user(admission.per),
        credentials=admission.sources,
        shared=config.downstream == "shared",
    )


_OF_THE_WHOLE = {"parts", "merge", "envelope", "errors"}
_SAID_OF_A_ROUTE = {"description", "summary"}


def _settings(config: RouteConfig) -> str:
    """The aggregate's own settings that change its body: as given, because `group: null` differs from no group."""
    return config.model_dump_json(include=_OF_THE_WHOLE, exclude_unset=True)


def _behind(source: PartSource) -> tuple[object, ...]:
    """The settings elsewhere on which a part depends: its upstream's name, and those of the route that it names."""
    of_route = None
    if source.declared is not None:
        of_route = source.declared.config.model_dump_json(exclude=_SAID_OF_A_ROUTE, exclude_unset=True)
    return source.route.name, source.route.rules, source.upstream.name, of_route


def aggregate_key(aggregate: Aggregate, target: Target) -> str:
    """The primary key of an aggregate's answer at a target of the public side."""
    shown = _selected(aggregate, target)
    return primary_key(aggregate.origin, _key_target(target.path, _counted(aggregate, target), shown))


def _key_target(path: str, counted: tuple[str, ...], shown: tuple[str, ...] | None) -> str:
    pairs = list(counted)
    if shown is not None:
        pairs.append(f"{PARTS}={','.join(shown)}")
    return f"{path}?{'&'.join(pairs)}" if pairs else path


def _counted(aggregate: Aggregate, target: Target) -> tuple[str, ...]:
    """The pairs of the client's query that a part sees: they are in the key as they are passed on."""
    return tuple(pair for pair in target.query if query_name(pair) in aggregate.kit.plan.query)


def _selected(aggregate: Aggregate, target: Target) -> tuple[str, ...] | None:
    """The parts that the client requests; None: all. Raises RequestRefused."""
    known = aggregate.config.parts
    asked = [unquote_plus(pair.partition("=")[2]) for pair in target.query if query_name(pair) == PARTS]
    if not asked or not aggregate.config.selectable:
        return None
    names = set(filter(None, ",".join(asked).split(",")))
    if not names:
        raise RequestRefused(f"parts is empty; known parts: {', '.join(known)}", reason="parts")
    for name in names:
        if name not in known:
            raise RequestRefused(f"Unknown part{near(name, known)}", reason="parts")
    return tuple(name for name in known if name in names)


@dataclass(frozen=True, slots=True)
class AggregateRequest:
    """One request for an aggregate: the target of its key, the values for its parts, and the parts to show."""

    target: str
    values: Values
    shown: tuple[str, ...]


def asked_of(
    aggregate: Aggregate, path: str, target: Target, headers: Headers, plain: dict[str, str] | None = None
) -> AggregateRequest:
    """The request for `path`; where that is plain and without a query, `plain` has its parameters. Raises
    RequestRefused."""
    parameters = aggregate.config.template.match(path) if plain is None else plain
    if parameters is None:
        raise RequestRefused("The path does not match its route.", 404)
    reads, header = aggregate.kit.plan.reads, {}
    if reads:
        header = {name: value for name in reads if (value := sent_value(headers, name)) is not None}
    if plain is not None:
        return AggregateRequest(path, Values(parameters, (), header, plain=True), aggregate.all_parts)
    selected, counted = _selected(aggregate, target), _counted(aggregate, target)
    shown = aggregate.all_parts if selected is None else selected
    return AggregateRequest(_key_target(path, counted, selected), Values(parameters, counted, header), shown)


class Again(msgspec.Struct, frozen=True):
    """How an aggregate served a request: the edge's data for the next one of its line. None of the request's fields are
    kept with it, which may be of 32 KiB. `path` and `parameters` as for `asked_of`."""

    aggregate: Aggregate
    path: str
    parameters: dict[str, str] | None
    target: Target

    def recall(self) -> FastPath:
        """Without `ask`: no joined response is served stale from memory and refreshed behind; its parts are."""
        aggregate, asked = self.aggregate, asked_of(self.aggregate, self.path, self.target, (), self.parameters)
        return FastPath(
            route=aggregate.route,
            origin=aggregate.origin,
            target=asked.target,
            tags=aggregate.tags(asked.values, None),
            public=lambda answer: answer,
            ask=None,
            joinable=lambda other: joinable(aggregate, other, asked.values, asked.shown),
        )


@dataclass(frozen=True)
class AggregateHandlers:
    """Makes the handlers of aggregates."""

    engine: Engine
    metrics: Metrics

    def handler(self, aggregate: Aggregate) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            exchange = exchange_of(request.scope)
            assert exchange is not None
            aggregate.route.takes(exchange)
            if request.method == "PURGE":
                return await self._purge(exchange, aggregate)
            if request.method not in ("GET", "HEAD"):
                answer = problem(exchange, 405, "An aggregate is read-only.")
                answer.headers.append((b"allow", b"GET, HEAD"))
                return AnswerResponse(answer)
            refusal = await let_in(
                aggregate.admission, aggregate.limits, exchange, self.engine.identity_key, self.metrics
            )
            if refusal is not None:
                return AnswerResponse(refusal)
            return await self._read(request, exchange, aggregate)

        handle.__name__ = aggregate.name
        handle.__doc__ = aggregate.config.description
        return handle

    async def _read(self, request: Request, exchange: RequestContext, aggregate: Aggregate) -> Response:
        ask = self.ask(exchange, aggregate, local_path(request))
        if isinstance(exchange.recall, Again):
            exchange.recall = exchange.recall.recall()
        client = Client(request.receive)
        client.expect_no_body()
        answer = aggregate.at_hand(ask)
        if answer is None:
            answer = await client.while_there(aggregate.answer(ask))
        return AnswerResponse(whole_bytes(answer, head=ask.facts.head), client)

    def ask(
        self,
        exchange: RequestContext,
        aggregate: Aggregate,
        path: str,
        block: BlockCache | None = None,
        parameters: dict[str, str] | None = None,
        *,
        stays: bool = False,
    ) -> CacheRequest:
        """The request for the aggregate at `path`, below the app's mount path, and what makes the edge's data for the
        next one (`RequestContext.recall`). `block` is the header block of `exchange`, if it was parsed before;
        `parameters` are those of a plain path without a query. Raises RequestRefused."""
        assert exchange.target is not None
        headers, route = exchange.headers, aggregate.route
        asked = asked_of(aggregate, path, exchange.target, headers, parameters)
        known = None if block is None else block.planned[route, exchange.method]
        if known is not None:
            fields, facts = known
            planned = fields.plan(aggregate.origin, asked.target)
        else:
            planned = plan(route.keying, aggregate.origin, asked.target, headers, has_body=has_body(headers))
            facts = directives_of(exchange.method, headers, route.rules)
        if aggregate.follows_origin:
            # Its upstream sees the client's identity, though that is not in a key: a failure is shared only between
            # equal identities.
            own = [pair for pair in headers if is_identity(pair[0].decode("latin-1"))]
            planned = structs.replace(planned, forward=(*planned.forward, *own))
        if facts.authorized:
            # Where a part passes it on, the aggregate's cache is bypassed; else it is part of the key, or ignored.
            facts = structs.replace(facts, authorized=False)
        if aggregate.admission is None and not aggregate.counts_hits:
            exchange.recall = Again(aggregate, path, parameters, exchange.target)
        return aggregate.ask(exchange, planned, facts, asked.values, asked.shown, block, stays=stays)

    async def _purge(self, exchange: RequestContext, aggregate: Aggregate) -> Response:
        """The PURGE method: the whole that the URL names, from the networks that the route lists."""
        if exchange.client not in Trusted(aggregate.config.purge_from):
            return AnswerResponse(problem(exchange, 403, "PURGE is not allowed from this address."))
        assert exchange.target is not None
        key = aggregate_key(aggregate, exchange.target)
        soft = first(exchange.headers, b"soft-purge") == "1"
        return purge_response(await self.engine.purge(keys=[key], soft=soft, by=f"PURGE from {exchange.client}"))


def whole_bytes(answer: Answer, *, head: bool) -> Answer:
    """The response with its body as bytes, if that is complete; without it, for a HEAD."""
    if not isinstance(answer.body, WholeBody):
        return answer
    return Answer(answer.status, answer.headers, b"" if head else answer.body.content)


@dataclass(frozen=True)
class DirectAggregate:
    """A route of the configuration with parts, in the form of `edge.passthrough.Direct`."""

    handlers: AggregateHandlers
    aggregate: Aggregate

    @property
    def slashes(self) -> Slashes:
        return self.aggregate.config.encoded_slashes

    @cached_property
    def reads(self) -> bool:
        return self.aggregate.admission is None and not self.aggregate.counts_hits

    @property
    def engine_route(self) -> Route:
        return self.aggregate.route

    def ask(
        self,
        exchange: RequestContext,
        interim: Interim,
        block: BlockCache | None = None,
        parameters: dict[str, str] | None = None,
    ) -> CacheRequest:
        """Raises RequestRefused."""
        assert exchange.target is not None
        if self.aggregate.limits is not None:
            exchange.allowance = self.aggregate.limits.allowance()
        return self.handlers.ask(exchange, self.aggregate, exchange.target.path, block, parameters, stays=True)

    async def answer(self, ask: CacheRequest) -> Answer:
        return self.aggregate.at_hand(ask) or await self.aggregate.answer(ask)

    def public(self, answer: Answer, ask: CacheRequest) -> Answer:
        return whole_bytes(answer, head=ask.facts.head)
