"""Aggregates with `identity`: the claims that each part's responses depend on, and so the whole's. Pure.

A part that takes values of another one sees what that was answered, so it depends on the same claims. What is shared
among more users than its parts are is refused when the configuration is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from gateway.config.admin import AdminIdentityConfig
from gateway.config.identity import IssuerConfig
from gateway.config.names import did_you_mean
from gateway.config.part_graph import PartPlan, PartProblem, PlannedPart
from gateway.config.route import RouteConfig
from gateway.policy.claim_tags import claims_of

Claims = tuple[str, ...]


def claims_of_parts(plan: PartPlan, routes: Mapping[str, RouteConfig]) -> dict[str, Claims]:
    """The claims that the responses of each part depend on: those of its `per`, or of the route that it names; without
    either, those of the parts whose values it takes. `routes` are those that parts may name."""
    found: dict[str, Claims] = {}
    for name in plan.order:
        part = plan.parts[name]
        own = _own(part, routes)
        found[name] = _sorted(claim for need in part.needs for claim in found[need]) if own is None else _sorted(own)
    return found


def claims_of_whole(route: RouteConfig, routes: Mapping[str, RouteConfig]) -> Claims:
    """The claims that an aggregate's responses depend on: all of its parts'."""
    parts = claims_of_parts(route.part_plan, routes)
    return _sorted((*route.per, *(claim for claims in parts.values() for claim in claims)))


def _own(part: PlannedPart, routes: Mapping[str, RouteConfig]) -> Iterable[str] | None:
    named = routes.get(part.config.route) if part.config.route is not None else None
    if named is not None:
        return named.per if named.identity else ()
    return part.config.per


def _sorted(claims: Iterable[str]) -> Claims:
    return tuple(sorted(set(claims)))


def issuer_problems(route: RouteConfig, issuers: Mapping[str, IssuerConfig]) -> Iterator[PartProblem]:
    """What is wrong with the issuers that a route names in `identity`."""
    for name in route.identity:
        issuer = issuers.get(name)
        if issuer is None:
            message = f"there is no identity {name!r}{did_you_mean(name, list(issuers))}"
            yield PartProblem(("identity",), message, route.identity)
        elif route.forward_token and route.cache and issuer.other_fields:
            message = (
                f"requires `cache: off`, or tokens in authorization or a cookie: {name} takes them from "
                f"{issuer.other_fields[0]}, by which no upstream and no cache tells users apart"
            )
            yield PartProblem(("forward_token",), message, route.forward_token)


def admin_problems(admin: AdminIdentityConfig | None, issuers: Mapping[str, IssuerConfig]) -> Iterator[PartProblem]:
    """What is wrong with the issuer of operators' tokens."""
    if admin is not None and admin.issuer not in issuers:
        message = f"there is no identity {admin.issuer!r}{did_you_mean(admin.issuer, list(issuers))}"
        yield PartProblem(("admin_identity", "issuer"), message, admin.issuer)
    elif admin is not None and not issuers[admin.issuer].issuer:
        message = f"{admin.issuer} doesn't verify signed tokens; name an identity that has `issuer`"
        yield PartProblem(("admin_identity", "issuer"), message, admin.issuer)


def identity_problems(
    route: RouteConfig, routes: Mapping[str, RouteConfig], sources: Mapping[str, Iterable[str]]
) -> Iterator[PartProblem]:
    """What is wrong with an aggregate that has `identity`. `sources` are the fields in which each issuer's credentials
    are, by the issuer's name."""
    if not (route.parts and route.identity):
        yield from tag_problems(route.tags, route.per if route.identity else (), ("tags",))
        for name, each in route.parts.items():
            yield from tag_problems(each.tags, (), ("parts", name, "tags"))
        return
    plan = route.part_plan
    claims = claims_of_parts(plan, routes)
    removed = _removed(route, routes, sources)
    for name, part in plan.parts.items():
        yield from _narrower_than_needed(part, claims)
        yield from _of_the_request(part, removed)
        yield from _forwarding(part, claims[name])
        yield from tag_problems(part.config.tags, claims[name], ("parts", name, "tags"))
        named = part.config.route
        if named is not None and named in routes:
            yield from _of_the_route(name, named, route, routes[named])
    yield from tag_problems(route.tags, claims_of_whole(route, routes), ("tags",))
    missing = [claim for claim in claims_of_whole(route, routes) if route.per and claim not in route.per]
    for claim in missing[:1]:
        names = ", ".join(name for name in plan.order if claim in claims[name])
        message = f"lacks `{claim}`, which the response depends on by {names}; default: the claims of all parts"
        yield PartProblem(("per",), message, route.per)


def tag_problems(tags: Iterable[str], per: Iterable[str], key: tuple[str, ...]) -> Iterator[PartProblem]:
    """Tags that name a claim which the responses don't depend on: they would be those of the first user alone."""
    for tag in tags:
        for claim in claims_of(tag):
            if claim not in per:
                yield PartProblem(key, f"{tag}: `{claim}` must be in `per` too, with `identity`", tag)


def all_tags(routes: Iterable[RouteConfig]) -> list[str]:
    """The tags of routes and their parts, as they are written."""
    found = [tags for route in routes for tags in (route.tags, *(part.tags for part in route.parts.values()))]
    return [tag for tags in found for tag in tags]


def _narrower_than_needed(part: PlannedPart, claims: Mapping[str, Claims]) -> Iterator[PartProblem]:
    """A part whose responses would be shared among users although it takes values of a response of one of them."""
    for need in part.needs:
        for claim in claims[need]:
            if claim not in claims[part.name]:
                setting = "route" if part.config.route is not None else "per"
                message = (
                    f"the part {part.name} takes values of the part {need}, whose responses depend on `{claim}`; add "
                    f"{claim} to its `per`"
                )
                yield PartProblem(("parts", part.name, setting), message, getattr(part.config, setting))
                return


def _removed(
    route: RouteConfig, routes: Mapping[str, RouteConfig], sources: Mapping[str, Iterable[str]]
) -> dict[str, str]:
    """The request fields that parts don't see, each with the reason."""
    reasons = {field: "which has credentials" for name in route.identity for field in sources.get(name, ())}
    reasons["authorization"] = "which has credentials"
    for name, part in route.parts.items():
        named = routes.get(part.route) if part.route is not None else None
        for field in named.forward if named is not None else part.forward:
            reasons[field] = f"which the part {name} makes of a claim"
    return reasons


def _of_the_request(part: PlannedPart, removed: Mapping[str, str]) -> Iterator[PartProblem]:
    for field in sorted(part.reads):
        if field in removed:
            message = (
                f"the part {part.name} takes a value from the request header {field}, {removed[field]}: it is removed"
            )
            yield PartProblem(("parts", part.name), message)
    if part.config.authorization != "ignore":
        message = "can't be combined with the aggregate's `identity`, which verifies credentials itself"
        yield PartProblem(("parts", part.name, "authorization"), message, part.config.authorization)


def _forwarding(part: PlannedPart, claims: Claims) -> Iterator[PartProblem]:
    for field, claim in part.config.forward.items():
        if claim not in claims:
            yield PartProblem(("parts", part.name, "forward", field), f"`{claim}` must be in `per` too", claim)
        if field in part.config.headers:
            message = "is in `headers` of the part, too; only one of them can set it"
            yield PartProblem(("parts", part.name, "forward", field), message, claim)


def _of_the_route(name: str, named: str, whole: RouteConfig, route: RouteConfig) -> Iterator[PartProblem]:
    """A route that lets in fewer than the aggregate does, or that hands on what parts don't have."""
    if not route.identity:
        return
    found = ""
    others = [each for each in whole.identity if each not in route.identity]
    if others:
        found = f"doesn't take the credentials of {others[0]}, which the aggregate does"
    elif whole.optional and not route.optional:
        found = "requires a credential, and the aggregate doesn't: its `optional` is true"
    elif route.forward_token:
        found = "forwards the credential itself, which parts don't have"
    elif lacking := [scope for scope in route.require.scopes if scope not in whole.require.scopes]:
        found = f"requires the scope {lacking[0]}, which the aggregate's `require` doesn't"
    elif wider := [claim for claim in route.require.claims if not _is_as_strict(claim, whole, route)]:
        found = f"requires a value of the claim {wider[0]}, which the aggregate's `require` doesn't"
    if found:
        yield PartProblem(("parts", name, "route"), f"the route {named} {found}", named)


def _is_as_strict(claim: str, whole: RouteConfig, route: RouteConfig) -> bool:
    accepted = [(type(value), value) for value in route.require.claims[claim]]
    given = whole.require.claims.get(claim, [])
    return bool(given) and all((type(value), value) in accepted for value in given)
