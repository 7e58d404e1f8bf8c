"""Declared routes: from the configuration to handlers.

A declared route is a handler made by a factory. It matches the normalised path, decides once which parts of the request
may reach the upstream, and leaves the rest to the engine.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway import __version__
from gateway.cache.purge_log import PurgeReport
from gateway.cache.request import Route
from gateway.config.models import Config
from gateway.config.route import RouteConfig, rules_of
from gateway.config.types import DEFAULT_VARY
from gateway.context import INTERIM_KEY
from gateway.errors import RequestRefused
from gateway.http.field_changes import FieldChanges
from gateway.http.headers import Headers, first, has
from gateway.http.path_template import PathTemplate, TargetTemplate, compile_target
from gateway.http.target import PATH_CHARS, Target, pair_name, select_query
from gateway.identity.admission import Admission, Provider, admission_of
from gateway.identity.principal import Principal, is_of_one_user
from gateway.limits.limiter import Limiter
from gateway.limits.route_limits import RouteLimits
from gateway.observability.metrics import Metrics
from gateway.policy.claim_tags import render_tags
from gateway.policy.content import QUERY, ContentRules
from gateway.policy.identity_key import IdentityKey
from gateway.policy.keys import Keying
from gateway.routing.upstream_request import UpstreamOrigin, public_constants
from gateway.upstreams.client import Upstream
from gateway.upstreams.request import ORDINARY, Interim, Patience

USER_AGENT = (b"user-agent", f"cached-gateway/{__version__}".encode())
IDENTITY = (b"accept-encoding", b"identity")
ACCEPT_QUERY = b"accept-query"
# Announces support of Surrogate-Control to the upstream (Edge Architecture 1.0).
CAPABILITY = (b"surrogate-capability", b'gateway="Surrogate/1.0"')


@dataclass(frozen=True, slots=True)
class Declared:
    """A declared route, ready for requests."""

    name: str
    config: RouteConfig
    upstream: Upstream
    engine_route: Route
    target: TargetTemplate
    allowed: frozenset[str] | None
    dropped: tuple[str, ...]
    admission: Admission | None = None
    """What it asks of credentials; None if it lets anybody in."""
    content: ContentRules | None = None
    """Which requests with content are reads; None if none are."""
    limits: RouteLimits | None = None
    is_tagged: bool = field(init=False, repr=False)
    """Whether its responses have tags of its own settings."""
    inside: PathTemplate = field(init=False, repr=False)
    """The template of the upstream target, for translating the upstream's paths back."""
    keeps_path: bool = field(init=False, repr=False)
    """Whether the upstream target is the public one, without its query."""
    patience: Patience = field(init=False, repr=False)

    def __post_init__(self) -> None:
        timeout = self.config.timeout
        patience = ORDINARY if timeout is None else Patience(timeout=timeout.total_seconds())
        object.__setattr__(self, "is_tagged", bool(self.config.tags))
        object.__setattr__(self, "inside", self._inside())
        object.__setattr__(self, "keeps_path", self.inside == self.template and not self.target.query)
        object.__setattr__(self, "patience", patience)

    def _inside(self) -> PathTemplate:
        text = self.target.path
        for name in self.template.parameters:
            if f"{{{name}:path}}" in self.template.text:
                text = text.replace(f"{{{name}}}", f"{{{name}:path}}")
        return PathTemplate(text)

    @property
    def counts_hits(self) -> bool:
        """Whether a limit counts each request."""
        return self.limits is not None and bool(self.limits.of_all)

    @property
    def template(self) -> PathTemplate:
        return self.config.template

    @property
    def allow(self) -> bytes:
        """The value of `Allow`, where `methods` is set."""
        return ", ".join(dict.fromkeys((*(self.config.allowed or ()), "OPTIONS"))).encode("ascii")

    @property
    def accept_query(self) -> list[tuple[bytes, bytes]]:
        """`Accept-Query` (RFC 10008 §3), where QUERY is a read of the route; otherwise nothing."""
        if self.content is None or QUERY not in self.content.methods:
            return []
        return [(ACCEPT_QUERY, ", ".join(self.content.types).encode("ascii"))]

    @property
    def shares_streams(self) -> bool:
        return self.config.stream == "share"

    def is_content_read(self, method: str) -> bool:
        """Whether a request of this method is a read whose content is part of the cache key."""
        return self.content is not None and method in self.content.methods

    def passes(self, method: str) -> bool:
        """Whether requests of this method are answered by the route; PURGE has a rule of its own."""
        allowed = self.config.allowed
        return allowed is None or method in allowed or method == "PURGE"

    def upstream_target(self, path: str, query: tuple[str, ...]) -> tuple[str, dict[str, str]]:
        """The normalised upstream target, and the path's parameters. Raises RequestRefused."""
        parameters = self.parameters(path)
        selected = select_query(query, self.allowed, self.dropped) if query else ()
        return self._target(parameters, selected), parameters

    def plain_target(self, path: str) -> str:
        """The same for a path without dots and encoded characters, whose values are in their one form already, on a
        route that does not keep the path."""
        parameters, plain = self.parameters(path), self.target.plain_path
        return plain % parameters if plain else self._target(parameters, ())

    def parameters(self, path: str) -> dict[str, str]:
        """The encoded values in a path. Raises RequestRefused."""
        parameters = self.template.match(path)
        if parameters is None:
            raise RequestRefused("The path does not match its route.", 404)
        return parameters

    def whole_target(self, parameters: dict[str, str], query: tuple[str, ...]) -> str:
        """The same with an unchanged query: that of a request that bypasses the cache, as no response is shared; or
        none."""
        return self._target(parameters, query)

    def origin(self, target: str, request_id: str, metrics: Metrics, interim: Interim | None = None) -> UpstreamOrigin:
        """The origin of a target's responses."""
        return UpstreamOrigin(
            self.upstream,
            target,
            request_id,
            metrics,
            interim,
            patience=self.patience,
            changes=self.config.headers.request.changes,
            largest=self.config.max_response_body,
        )

    def tags(self, parameters: Mapping[str, str], principal: Principal | None) -> tuple[str, ...]:
        """The tags of a response for `principal`, with the decoded values of the path."""
        claims = {} if principal is None or self.admission is None else principal.texts(self.admission.per)
        return render_tags(self.config.tags, parameters, claims, self.engine_route.keying.identity_key)

    @property
    def deadline(self) -> float:
        """Seconds for a complete response."""
        return self.upstream.timeout if self.patience.timeout is None else self.patience.timeout

    def _target(self, parameters: dict[str, str], query: tuple[str, ...]) -> str:
        upstream_path, fixed = self.target.ask(parameters)
        if not fixed and not query:
            return upstream_path
        return str(Target(upstream_path, tuple(sorted((*fixed, *query), key=pair_name)), ""))


def declare(
    config: Config,
    upstreams: Mapping[str, Upstream],
    identity_key: IdentityKey,
    providers: Mapping[str, Provider] = MappingProxyType({}),
    limiter: Limiter | None = None,
) -> list[Declared]:
    """The declared routes of one upstream each, the more specific first. `providers` verify credentials, by the names
    of the setting `identity`; `limiter` counts by `rate_limits`."""
    constants = public_constants(config)
    declared = [
        _declared(
            name,
            route,
            config,
            upstreams,
            keying_of(
                route,
                constants,
                identity_key,
                host=config.upstreams[route.upstream].preserves_host,
                providers=providers,
            ),
            admission_of(route, providers),
            RouteLimits.of(config, route.rate_limits, limiter) if limiter is not None else None,
        )
        for name, route in config.routes.items()
        if not route.parts
    ]
    return sorted(declared, key=lambda each: each.template.specificity)


def _declared(
    name: str,
    route: RouteConfig,
    config: Config,
    upstreams: Mapping[str, Upstream],
    keying: Keying,
    admission: Admission | None,
    limits: RouteLimits | None,
) -> Declared:
    max_body = config.max_body if route.max_body is None else route.max_body
    response = config.upstreams[route.upstream].headers.response.changes.then(route.headers.response.changes)
    content = _content_of(route, config)
    if content is not None and QUERY in content.methods and content.sent_as not in (None, QUERY):
        said = FieldChanges.of({"accept-query": ", ".join(content.types)}, {}, [])  # which the upstream can't say
        response = said.then(response)
    return Declared(
        name=name,
        config=route,
        upstream=upstreams[route.upstream],
        engine_route=Route(name, rules_of(route), keying, max_body, changes=response),
        target=compile_target(route.target_text, route.template.parameters, route.encoded_slashes),
        allowed=frozenset(route.query) if route.query is not None else None,
        dropped=tuple(config.drop_query if route.drop_query is None else route.drop_query),
        admission=admission,
        content=content,
        limits=limits,
    )


def _content_of(route: RouteConfig, config: Config) -> ContentRules | None:
    if not route.content_methods:
        return None
    most = config.max_request_body if route.max_request_body is None else route.max_request_body
    body = route.body
    return ContentRules(
        route.content_methods, tuple(body.types), min(body.max, most), body.normalise == "json", route.upstream_method
    )


def keying_of(
    route: RouteConfig,
    constants: tuple[tuple[bytes, bytes], ...],
    identity_key: IdentityKey,
    *,
    host: bool,
    providers: Mapping[str, Provider] = MappingProxyType({}),
) -> Keying:
    own = route.ttl != "origin"
    names = tuple(sorted(set(route.vary if route.vary is not None else DEFAULT_VARY)))
    cookies: tuple[str, ...] | None = None if route.cookies == "pass" else ()
    if isinstance(route.cookies, list):
        cookies = tuple(sorted(set(route.cookies)))
    return Keying(
        vary=names if own else None,
        authorization=route.authorization,
        cookies=cookies,
        constants=(*constants, *((USER_AGENT, IDENTITY) if own else (CAPABILITY,))),
        host=host,
        sent=_sent(route),
        claims=tuple(route.forward),
        per=tuple(sorted(route.per)),
        one_user=is_of_one_user(tuple(route.per)),
        credentials=tuple(dict.fromkeys(source for name in route.identity for source in providers[name].sources)),
        shared=route.downstream == "shared",
        identity_key=identity_key,
    )


def _sent(route: RouteConfig) -> str:
    """Identifies what settings add to and change in a route's requests."""
    changes, claims = route.headers.request.changes, sorted(route.forward.items())
    return "\n".join([*([changes.text] if changes else []), *(f"{name}={claim}" for name, claim in claims)])


def purge_response(report: PurgeReport) -> Response:
    """A purge's report: 200 if every live worker has confirmed it, 202 otherwise."""
    status = 200 if report.complete else 202
    return JSONResponse(report_of(report), status, headers={"cache-control": "no-store"})


def report_of(report: PurgeReport) -> dict[str, float | str]:
    """A report as answers have it; `seconds` to a tenth of a millisecond. `detail` is there where it isn't complete."""
    return {
        "complete": report.complete,
        "confirmed": report.confirmed,
        "workers": report.workers,
        "seconds": round(report.seconds, 4),
        **({} if report.complete else {"detail": report.detail}),
    }


def local_path(request: Request) -> str:
    """The normalised path below the app's mount path."""
    path: str = request.scope["raw_path"].decode("ascii")
    root = root_of(request)
    return path[len(root) :] if root and path.startswith(root) else path


def root_of(request: Request) -> str:
    """The app's mount path, encoded as in a path."""
    return quote(request.scope.get("root_path", ""), safe=PATH_CHARS)


def interim_of(request: Request) -> Interim | None:
    """The function that sends an interim response to the client, if the server supports it."""
    return typing.cast(Interim | None, request.scope.get("extensions", {}).get(INTERIM_KEY))


def announced(headers: Headers) -> int:
    """The bytes of a request's body, by its `Content-Length`; 0 without one."""
    length = first(headers, b"content-length")
    return int(length) if length is not None and length.isascii() and length.isdigit() else 0


def has_body(headers: Headers) -> bool:
    length = first(headers, b"content-length")
    return has(headers, b"transfer-encoding") or (length is not None and length.strip() != "0")
