"""The settings of `@cached` handlers, and the runtime that handlers use: engine, upstreams, bound routes.

Decides which arguments `@cached` takes, checked by the same models as the configuration, and where both are stored: the
settings on the handler, the `Runtime` on the app's state. It does not call handlers or make responses.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple, Protocol

from fastapi import Depends, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import RouteContext
from msgspec import structs
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.types import Scope

from gateway.cache.engine import Engine
from gateway.cache.request import Route
from gateway.config.identity import RequireConfig
from gateway.config.names import did_you_mean, no_modes
from gateway.config.types import (
    DEFAULT_VARY,
    Duration,
    Model,
    Size,
    Ttl,
    check_field_names,
    check_tags,
    check_vary,
    parse_duration,
)
from gateway.context import RequestContext
from gateway.errors import GatewayError
from gateway.http.headers import CacheControl, without
from gateway.http.target import Target, select_query
from gateway.identity.admission import Admission, Provider
from gateway.identity.principal import is_of_one_user
from gateway.limits.route_limits import RouteLimits
from gateway.observability.metrics import Metrics
from gateway.policy.identity_key import UNKEYED, IdentityKey
from gateway.policy.keys import Keying, primary_key
from gateway.policy.rules import CachePolicy
from gateway.routing.handler_inputs import UPSTREAM, Inputs, label
from gateway.routing.handler_key import Key, key_of
from gateway.routing.handler_reading import Public, Reading, SoFar
from gateway.routing.user_middleware import opaque
from gateway.upstreams.client import Upstream
from gateway.upstreams.response import Fetched

MARK = "__gateway_cached__"
CACHED_AS = "__gateway_cached_as__"
"""The attribute of a handler with the endpoint that `@cached` made of it."""
_RULES_OF_THEIR_OWN = frozenset(
    ("authorization", "cookie", "host", "content-length", "expect", "range", "if-range", "if-match")
) | frozenset(("if-none-match", "if-modified-since", "if-unmodified-since"))
"""Fields that a handler may declare, but whose place in the key is not in `vary`."""


@dataclass(frozen=True)
class ByValue:
    """What functions of a handler's value decide: `when` whether it is stored, `ttl` for how long."""

    when: Callable[[Any], object] | None = None
    ttl: Callable[[Any], str | int | float | timedelta | None] | None = None

    def applied(self, value: Any, fetched: Fetched) -> Fetched:
        """The response made of `value`, with the Cache-Control that says so; a handler's own `no-store` or `private`
        comes first. Raises ValueError if `ttl` returns no duration."""
        lifetime = None if self.ttl is None else self.ttl(value)
        if (self.ttl is not None and lifetime is None) or (self.when is not None and not self.when(value)):
            return not_stored(fetched)
        said = CacheControl.of(fetched.headers)
        if self.ttl is None or "no-store" in said or "private" in said:
            return fetched
        plain = isinstance(lifetime, int | float) and not isinstance(lifetime, bool)
        seconds = int(float(lifetime) if plain else parse_duration(lifetime).total_seconds())  # type: ignore[arg-type]
        if seconds < 0:
            raise ValueError(f"ttl returned {lifetime!r}; expected a duration, or None to store nothing")
        headers = [*without(fetched.headers, b"cache-control"), (b"cache-control", b"max-age=%d" % seconds)]
        return structs.replace(fetched, headers=headers)


@dataclass(frozen=True)
class AskedIdentity:
    """The arguments of `@cached` about credentials. `names` are those of providers; empty for all of them."""

    names: tuple[str, ...]
    per: tuple[str, ...]
    require: RequireConfig
    optional: bool


@dataclass
class Cached:
    """The settings of one `@cached` handler, checked when it is decorated."""

    name: str
    rules: CachePolicy
    vary: tuple[str, ...]
    query: frozenset[str] | None
    authorization: str
    cookies: tuple[str, ...] | None
    tags: tuple[str, ...]
    deadline: float
    max_body: int | None
    edge: bool | None = None
    """Whether its hits are served before FastAPI sees the request; None if that depends on a proof."""
    key: Key | None = None
    rate_limits: tuple[str, ...] = ()
    identity: AskedIdentity | None = None
    """What it asks of credentials; None if `@cached` says nothing of it."""
    by_value: ByValue | None = None

    @property
    def origin_name(self) -> str:
        return f"@{self.name}"

    def route(
        self,
        inputs: Inputs,
        max_body: int,
        identity_key: IdentityKey = UNKEYED,
        admission: Admission | None = None,
    ) -> Route:
        """The route as the engine sees it, with what the handler declares to read in its key, and the partition of
        those whom `admission` lets in."""
        cookies = None if self.cookies is None else tuple(sorted({*self.cookies, *inputs.cookies}))
        declared = inputs.headers - _RULES_OF_THEIR_OWN
        vary = None if self.rules.ttl is None else tuple(sorted({*self.vary, *declared}))
        keying = Keying(
            vary=vary,
            authorization=self.authorization,
            cookies=cookies,
            identities=inputs.identities,
            per=() if admission is None else tuple(sorted(admission.per)),
            one_user=admission is not None and is_of_one_user(admission.per),
            credentials=() if admission is None else admission.sources,
            identity_key=identity_key,
        )
        return Route(self.name, self.rules, keying, max_body if self.max_body is None else self.max_body, local=True)


@dataclass(frozen=True, slots=True)
class Judged:
    """A route's tree of dependencies, and the reason why the app serves hits of its handler; None if the edge may."""

    dependant: Dependant
    against: str | None


class Marked(NamedTuple):
    """Stored by `@cached` on the endpoint that it makes. `injected` is the name of the Request parameter that it added
    for itself; `passed` is a parameter that decorators above have to pass on."""

    settings: Cached
    injected: str | None
    passed: str
    endpoint: Callable[..., Any]


def cached_settings(endpoint: Any) -> Marked | None:
    """The `@cached` settings of a route's endpoint, also below decorators that set `__wrapped__`."""
    while isinstance(endpoint, partial):
        endpoint = endpoint.func
    marked = getattr(endpoint, MARK, None)
    return marked if isinstance(marked, Marked) else None


# --- arguments ---------------------------------------------------------------------------------------------


def _listed(value: object) -> object:
    if isinstance(value, str):
        raise ValueError(f"must be a list, such as [{value!r}]")
    if isinstance(value, set | frozenset):
        return sorted(value)
    return list(value) if isinstance(value, Sequence) else value


def _authorization(value: object) -> object:
    allowed = ("pass", "ignore", "key")
    if value not in allowed:
        raise ValueError(f"may be 'pass', 'ignore' or 'key'{did_you_mean(str(value), allowed)}")
    return value


def _cookies(value: object) -> object:
    if value in ("pass", "ignore"):
        return value
    if isinstance(value, str):
        hint = did_you_mean(value, ("pass", "ignore"))
        raise ValueError(f"may be 'pass', 'ignore' or a list of names, such as [{value!r}]{hint}")
    return _listed(value)


def _names(names: list[str]) -> list[str]:
    for name in names:
        if not name or any(char in name for char in ' ,;="\t\n\r'):
            raise ValueError(f"{name!r} isn't a valid name; expected the names to keep, or nothing")
    return names


Names = Annotated[list[str], BeforeValidator(_listed)]
Flag = Annotated[bool, Field(strict=True)]


class Arguments(Model):
    """The arguments of `@cached`; the same values have the same meaning as in the configuration of a route."""

    ttl: Ttl
    stale_while_revalidate: Duration | None = None
    stale_if_error: Duration | None = None
    negative_ttl: Duration = timedelta(seconds=5)
    client_ttl: Duration | None = None
    tags: Annotated[Names, AfterValidator(check_tags), AfterValidator(no_modes("tags"))] = Field(default_factory=list)
    vary: Annotated[Names, AfterValidator(check_field_names), AfterValidator(check_vary)] | None = None
    query: Annotated[Names, AfterValidator(_names), AfterValidator(no_modes("query"))] | None = None
    authorization: Annotated[Literal["pass", "ignore", "key"], BeforeValidator(_authorization)] = "pass"
    cookies: Annotated[
        Literal["pass", "ignore"] | Annotated[list[str], AfterValidator(_names), AfterValidator(no_modes("cookies"))],
        BeforeValidator(_cookies),
    ] = "pass"
    deadline: Duration = timedelta(seconds=30)
    max_body: Size | None = None
    edge: Flag | None = None
    cache: Flag = True
    identity: Annotated[Names, AfterValidator(_names)] | None = None
    per: Annotated[Names, AfterValidator(_names)] | None = None
    require: RequireConfig = RequireConfig()
    optional: Flag = False
    rate_limits: Annotated[Names, AfterValidator(_names)] = Field(default_factory=list)

    def _asked(self) -> AskedIdentity | None:
        given = [name for name in ("identity", "per", "require", "optional") if name in self.model_fields_set]
        if not any(getattr(self, name) is not None for name in ("identity", "per")):
            named = [name for name in given if getattr(self, name) not in (None, False, RequireConfig())]
            if named:
                raise ValueError(f"{named[0]} requires identity=[...] or per=[...]")
            return None
        if self.authorization != "pass":
            raise ValueError("authorization can't be combined with identity, which verifies credentials itself")
        if self.edge:
            raise ValueError("edge=True can't be combined with identity: the edge verifies no credentials of handlers")
        return AskedIdentity(tuple(self.identity or ()), tuple(self.per or ()), self.require, self.optional)

    def settings(self, name: str, key: Key | None) -> Cached:
        """Raises ValueError if they contradict each other."""
        cookies = {"pass": None, "ignore": ()}[self.cookies] if isinstance(self.cookies, str) else tuple(self.cookies)
        if self.ttl == "origin" and self.vary is not None:
            raise ValueError("vary requires a duration as ttl; with ttl='origin' it is what the handler reads")
        if self.ttl == "origin" and self.client_ttl is not None:
            raise ValueError("client_ttl requires a duration as ttl; with ttl='origin' the handler's headers apply")
        if self.edge and self.rate_limits:
            raise ValueError("edge=True can't be combined with rate_limits: the edge counts no requests of handlers")
        if self.edge and key is not None:
            raise ValueError("key can't be combined with edge=True: it requires dependencies, which edge=True skips")
        return Cached(
            name=name,
            rules=CachePolicy(
                ttl=None if isinstance(self.ttl, str) else self.ttl.total_seconds(),
                stale_while_revalidate=_seconds(self.stale_while_revalidate),
                stale_if_error=_seconds(self.stale_if_error),
                negative_ttl=self.negative_ttl.total_seconds(),
                client_ttl=_seconds(self.client_ttl),
                cache=self.cache,
                authorization_keyed=self.authorization != "pass",
            ),
            vary=tuple(self.vary if self.vary is not None else DEFAULT_VARY),
            query=frozenset(self.query) if self.query is not None else None,
            authorization=self.authorization,
            cookies=cookies,
            tags=tuple(self.tags),
            deadline=self.deadline.total_seconds(),
            max_body=self.max_body,
            edge=self.edge,
            key=key,
            identity=self._asked(),
            rate_limits=tuple(self.rate_limits),
        )


def _seconds(value: timedelta | None) -> float | None:
    return None if value is None else value.total_seconds()


def settings_of(function: Callable[..., Any], key: Any, when: Any, given: Mapping[str, Any]) -> Cached:
    """The settings of `@cached` on a function. Raises ValueError with the handler, the argument, its value and what is
    allowed."""
    name = label(function)
    by_value = _by_value(name, when, given["ttl"])
    if by_value is not None and by_value.ttl is not None:
        given = {**given, "ttl": "origin"}
    try:
        arguments = Arguments.model_validate(given)
    except ValidationError as error:
        raise ValueError(_told(name, error)) from None
    try:
        made = None if key is None else key_of(key, inspect.signature(function).parameters)
    except ValueError as error:
        raise ValueError(f"@cached on {name}: key={key!r} {error}") from None
    try:
        return replace(arguments.settings(name, made), by_value=by_value)
    except ValueError as error:
        raise ValueError(f"@cached on {name}: {error}") from None


def _by_value(name: str, when: Any, ttl: Any) -> ByValue | None:
    functions = {"when": when, "ttl": ttl if callable(ttl) else None}
    for argument, each in functions.items():
        if each is not None and (not callable(each) or inspect.iscoroutinefunction(each)):
            raise ValueError(f"@cached on {name}: {argument}={each!r} must be a function of the handler's value")
    return ByValue(**functions) if any(functions.values()) else None


def _told(name: str, error: ValidationError) -> str:
    lines = []
    found = error.errors()
    for each in [each for each in found if each["type"] != "literal_error"] or found:
        argument = str(each["loc"][0])
        message = each["msg"].removeprefix("Value error, ")
        colon = ":" if message.startswith("invalid") else ""
        lines.append(f"@cached on {name}: {argument}={each['input']!r}{colon} {message[:1].lower()}{message[1:]}")
    return "\n".join(dict.fromkeys(lines))


STATE = "gateway"
WHO_KEY = "gateway.principal"
"""The scope key of the verified principal of a request."""
UNJUDGED = "its route is not among those of the app"


class Bearer(Protocol):
    """An app with an edge, or what is around one."""

    @property
    def edge(self) -> object | None: ...

    def expect_lifespan(self) -> None: ...


@dataclass
class Runtime:
    """The handlers' context, at `request.app.state.gateway`."""

    engine: Engine
    upstreams: dict[str, Upstream]
    metrics: Metrics
    drop_query: tuple[str, ...]
    max_body: int
    inner: Callable[[Scope, Any, Any], Awaitable[None]]
    rebind: Callable[[], None]
    """Prepares handlers that were added since."""
    bearer: Bearer
    """What has the app's edge."""
    middleware: Sequence[Middleware] = ()
    """The app's own."""
    contexts: dict[int, RouteContext] = field(default_factory=dict)
    """By the ID of a route's tree of dependencies: the route that including it made of the router's route."""
    late: set[int] = field(default_factory=set)
    """The IDs of those whose router was included after the app was made: declared routes come before them."""
    aggregates: dict[str, Callable[[Request], Awaitable[Response]]] = field(default_factory=dict)
    """The handlers of aggregates that are written in Python, by name."""
    bound: dict[int, tuple[Route, frozenset[str] | None]] = field(default_factory=dict)
    """By the id of a handler's settings: its route for the engine, and the query parameters that count."""
    inputs: dict[int, Inputs] = field(default_factory=dict)
    """By the id of a handler's settings: what its routes declare to read."""
    public: Public | None = None
    """The host and scheme that `@cached` handlers see, where `public_url` is set."""
    providers: Mapping[str, Provider] = field(default_factory=dict)
    """What verifies credentials, by the names of the setting `identity`."""
    identified: dict[int, Admission] = field(default_factory=dict)
    """By the id of a handler's settings, and of a route's tree of dependencies: what it asks of credentials."""
    limited: dict[int, RouteLimits] = field(default_factory=dict)
    """By the id of a handler's settings, and of a route's tree of dependencies: the limits that count its requests."""
    lifespan: Mapping[str, Any] = field(default_factory=dict)
    """The state from the app's lifespan, which is part of every request's."""
    overridden: Mapping[str, CachePolicy] = field(default_factory=dict)
    """By a handler's name: its rules where live overrides made them other than its code has them."""
    off: bool = False
    """Whether nothing is stored: the setting `cache` is off."""
    coded: dict[str, CachePolicy] = field(default_factory=dict)
    """By a handler's name: its rules as its code has them."""
    prepared: dict[int, Callable[[Request, RequestContext, Runtime], Reading | str]] = field(default_factory=dict)
    """By the ID of a handler's settings, if no dependency of its tree can see more than its key: the function that
    makes the Reading of a request."""
    edge: dict[int, Judged] = field(default_factory=dict)
    """By the id of a route's tree of dependencies: whether its `@cached` handler is answered at the edge."""
    functions: set[str] = field(default_factory=set)
    """The names of functions outside of routes that were called."""
    _so_far: dict[str, SoFar] = field(default_factory=dict)

    def keys_of(self, target: Target) -> list[str]:
        """The primary keys of what `@cached` handlers answer at a target."""
        keys = []
        for context in self.contexts.values():
            marked = cached_settings(context.endpoint)
            if marked is not None and context.path_regex.fullmatch(target.decoded):
                settings = marked[0]
                pairs = self.counted(settings, target.query)
                keys.append(primary_key(settings.origin_name, target_text(target.path, pairs)))
        return keys

    @property
    def tags(self) -> list[str]:
        """The tags of `@cached` handlers, as they are written."""
        found = (cached_settings(context.endpoint) for context in self.contexts.values())
        return [tag for marked in found if marked is not None for tag in marked.settings.tags]

    def admissions(self, target: Target | None) -> list[Admission]:
        """What handlers at a target ask of credentials; for None, what any handler asks."""
        return [
            self.identified[id(context.dependant)]
            for context in self.contexts.values()
            if id(context.dependant) in self.identified
            and (target is None or context.path_regex.fullmatch(target.decoded))
        ]

    def against_edge(self, dependant: Dependant) -> str | None:
        """The reason why hits of a `@cached` handler aren't served at the edge, for an operator; None if they are."""
        judged = self.edge.get(id(dependant), Judged(dependant, UNJUDGED))
        unknown = opaque(self.middleware)
        if unknown is None or judged.against is not None:
            return judged.against
        return f"the app has middleware of its own, {unknown}"

    def bind(self, settings: Cached, inputs: Inputs) -> None:
        """Make ready a `@cached` handler whose routes declare `inputs`."""
        allowed = inputs.query if settings.query is None else settings.query | inputs.parameters
        self.inputs[id(settings)] = inputs
        self.coded[settings.name] = settings.rules
        rules = self.overridden.get(settings.name, settings.rules)
        rules = replace(rules, cache=False) if self.off else rules
        route = replace(settings, rules=rules).route(
            inputs, self.max_body, self.engine.identity_key, self.identified.get(id(settings))
        )
        self.bound[id(settings)] = (route, allowed)

    def counted(self, settings: Cached, pairs: Sequence[str]) -> tuple[str, ...]:
        """The query parameters that a handler is shown, all of them in its key: none that it declares is dropped."""
        declared = self.inputs[id(settings)].parameters
        return select_query(pairs, self.bound[id(settings)][1], self.drop_query, declared)

    def so_far(self, settings: Cached) -> SoFar:
        """The fields that a handler's responses have read so far."""
        return self._so_far.setdefault(settings.name, SoFar())


def not_stored(fetched: Fetched) -> Fetched:
    """A response of a handler, for its client alone."""
    headers = [*without(fetched.headers, b"cache-control"), (b"cache-control", b"no-store")]
    return structs.replace(fetched, headers=headers)


def target_text(path: str, pairs: Sequence[str]) -> str:
    return f"{path}?{'&'.join(pairs)}" if pairs else path


def upstream(name: str) -> Any:
    """A dependency: the configured upstream of that name. Its existence is checked when the app is made."""

    def get_upstream(request: Request) -> Upstream:
        return runtime_of(request).upstreams[name]

    setattr(get_upstream, UPSTREAM, name)
    return Depends(get_upstream)


def runtime_of(request: Request) -> Runtime:
    """The gateway that serves `request`. Raises GatewayError if there is none."""
    runtime = getattr(request.app.state, STATE, None)
    if not isinstance(runtime, Runtime):
        raise GatewayError(
            "this handler requires the gateway: put gateway.Cache(app) around its app, make the app by "
            "gateway.Gateway(), or name its router in the configuration's `include`"
        )
    return runtime
