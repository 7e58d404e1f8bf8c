"""Makes aggregates from settings: the parts' sources and own routes, and what of a request is in the key of a whole.

No request calls anything here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType

from xxhash import xxh3_64_hexdigest

from gateway.aggregates.aggregate import Aggregate
from gateway.aggregates.fetching import Persistence
from gateway.aggregates.merge import BodyCache, BodyTransform, ShapeRules
from gateway.aggregates.part_result import BackOff
from gateway.aggregates.part_source import PartSource
from gateway.aggregates.runner import Kit
from gateway.cache.engine import Engine
from gateway.cache.request import Route
from gateway.config.expressions import Expression
from gateway.config.models import Config
from gateway.config.part import PartConfig
from gateway.config.part_graph import PartPlan, PlannedPart, cross_problems, sole_part
from gateway.config.part_identity import claims_of_parts, claims_of_whole, identity_problems, issuer_problems
from gateway.config.rate_limits import unusable_limits
from gateway.config.route import RouteConfig, rules_of
from gateway.errors import ConfigError, ConfigProblem
from gateway.http.json_text import text_of
from gateway.identity.admission import Admission, Dependence, Provider, admission_of
from gateway.identity.principal import is_of_one_user
from gateway.limits.limiter import Limiter
from gateway.limits.route_limits import RouteLimits
from gateway.observability.metrics import Metrics
from gateway.policy.keys import Keying
from gateway.policy.rules import CachePolicy
from gateway.routing.declared import Declared, keying_of
from gateway.routing.upstream_request import public_constants
from gateway.upstreams.client import Upstream


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
        config, own = part.config, f"{name}.{part.name}"
        declared = self.declared[config.route] if config.route is not None else None
        if declared is not None:
            dependence = declared.admission.dependence if declared.admission is not None else None
            upstream, made = declared.upstream, declared.engine_route
        else:
            dependence = Dependence(claims, config.forward) if claims else None
            upstream, made = self.upstreams[config.upstream or ""], self._route(own, config, route, claims)
        return PartSource(
            part=part,
            through=name,
            upstream=upstream,
            route=made,
            transform=_transform(own, part, plan, route, check, made.max_body),
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


def _transform(
    name: str,
    part: PlannedPart,
    plan: PartPlan,
    route: RouteConfig,
    check: Callable[[bytes], None] | None,
    limit: int,
) -> BodyTransform:
    config = part.config
    select = Expression(config.select) if config.select is not None else None
    shape = ShapeRules(select, tuple(config.allow), tuple(config.deny), tuple(config.rename.items()))
    merged = config.at_root and config.for_each is None and sole_part(route.parts) is None
    at_root = merged or (config.at_root and (route.envelope or route.errors))
    needed = part.name in plan.needed
    return BodyTransform(name, config.decode, shape, at_root, needed, check, limit, config.optional)


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
