"""The configuration of a route: settings, meanings, defaults. Pure.

A route with `parts` is an aggregate; `config.part` and `config.part_graph` check its parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from gateway.config.field_changes import HeadersConfig
from gateway.config.identity import OF_IDENTITY, RequireConfig, check_claim_field
from gateway.config.names import misspelt, no_modes, refuse_modes
from gateway.config.part import PartConfig
from gateway.config.part_graph import PartPlan, PartProblem, plan_parts
from gateway.config.types import (
    Duration,
    FieldNames,
    Model,
    Networks,
    Size,
    TextList,
    Ttl,
    check_methods,
    check_tags,
    check_vary,
    checked_names,
    split_commas,
)
from gateway.http.path_template import (
    PathTemplate,
    TemplateError,
    compile_path,
    compile_target,
    tag_parameters,
)
from gateway.http.target import Slashes
from gateway.policy.rules import CachePolicy

_NOT_OF_AGGREGATES = (
    "upstream", "upstream_path", "cache", "ttl", "stale_while_revalidate", "stale_if_error", "negative_ttl",
    "client_ttl", "vary", "query", "drop_query", "authorization", "cookies", "expose_tags",
    "timeout", "max_request_body", "max_response_body", "methods", "reads", "body", "upstream_method", "stream",
    "forward", "forward_token",
    "websocket", "websocket_max_message", "websocket_idle_timeout", "websocket_ping",
)  # fmt: skip


_MEDIA_RANGE = re.compile(r"\*/\*|[a-z0-9!#$&^_.+-]+/(?:\*|[a-z0-9!#$&^_.+-]+)")
READABLE = ("POST", "QUERY", "REPORT", "SEARCH")
"""The methods of reads that have content."""
MOST_CONTENT = 1024 * 1024


def _check_types(types: list[str]) -> list[str]:
    for each in types:
        if not _MEDIA_RANGE.fullmatch(each.lower()):
            raise ValueError(f"{each!r} isn't a media type; expected application/json, text/* or */*")
    return [each.lower() for each in types]


class BodyConfig(Model):
    """Which request bodies may be part of the cache key."""

    types: Annotated[TextList, AfterValidator(_check_types)] = ["application/json"]
    """The media types, such as `application/json`, `text/*` or `*/*`. A request of another type, or without one,
    bypasses the cache."""
    max: Annotated[Size, Field(ge=1, le=MOST_CONTENT)] = 64 * 1024
    """Maximum size of a body that is part of the key, at most 1 MiB. A request with a larger one bypasses the cache."""
    normalise: Literal["none", "json"] = "none"
    """`json` sorts the names in JSON bodies and removes insignificant space, so that equal searches share a response;
    numbers stay as they are written. The upstream gets the body in that form."""


class RouteConfig(Model):
    """A path that the gateway serves from an upstream, and how its responses are cached."""

    path: str
    """The path. `{name}` matches one segment; `{name:path}` matches the rest of the path and must be last. The most
    specific path wins, regardless of the order in the file."""
    upstream: str = ""
    """The name of the upstream. An aggregate has `parts` instead."""
    upstream_path: str | None = None
    """The path requested from the upstream, with the parameters of `path`. Default: `path`."""
    methods: Literal["any"] | list[str] | None = None
    """The methods that pass, such as `[GET, POST]`; others are a 405 with `Allow`. GET includes HEAD; `any` is all of
    them. CORS preflights always pass; another OPTIONS request gets 204 with `Allow` unless it is listed. Default: GET
    and HEAD with a duration as `ttl`, otherwise all. In this release, other methods pass by that default too, with a
    warning in the log and a note of `gateway check`; the next release refuses them."""
    reads: TextList = []
    """Methods with a body that the upstream answers without changing anything, such as `[POST]` for a search. Their
    responses are cached, by a key that contains the body, and they may be retried. QUERY (RFC 10008) is one where
    `methods` lists it."""
    body: BodyConfig = BodyConfig()
    """With `reads`, or QUERY in `methods`: which bodies may be part of the cache key."""
    upstream_method: Literal["POST", "QUERY"] | None = None
    """With `reads`, or QUERY in `methods`: the method by which the upstream gets these requests. Default: the
    client's."""
    stream: Literal["pass", "share"] = "pass"
    """What becomes of event streams (`text/event-stream`). `pass`: each client has a stream of its own from the
    upstream. `share`: in each worker, all clients with the same cache key share one; requires a duration as `ttl`."""
    encoded_slashes: Slashes = "refuse"
    """What becomes of an encoded slash (`%2F`) in a path. `refuse` responds 400. `keep`: it is part of its segment and
    goes to the upstream as it came (GitLab, npm, RabbitMQ, Jenkins); so does `%252F`. `decode`: it is a slash, and the
    path is the one with a slash. Dot segments beside an encoded slash are refused."""
    cache: bool = True
    """`off` forwards every request to the upstream: nothing is stored or served from the cache, and requests don't
    collapse."""
    ttl: Ttl = "origin"
    """How long a response is fresh. `origin` follows the upstream's headers (RFC 9111). A duration overrides them,
    except for responses that are `private`, `no-store` or set a cookie. `0s` is the same as `cache: off`, unless a
    stale window is set."""
    stale_while_revalidate: Duration | None = None
    """How long after `ttl` to serve a stale response at once and refresh it in the background. Default: the upstream's
    value, or 0."""
    stale_if_error: Duration | None = None
    """How long after `ttl` to serve a stale response when the upstream fails. Default: the upstream's value, or 10
    minutes."""
    negative_ttl: Duration = timedelta(seconds=5)
    """How long a 404 or 410 is fresh if the upstream doesn't say; `0s` stores none."""
    client_ttl: Duration | None = None
    """How long clients may cache a response; requires a duration as `ttl`. Default: until the entry's life ends."""
    vary: Annotated[FieldNames, AfterValidator(check_vary), BeforeValidator(no_modes("vary"))] | None = None
    """The request headers that are forwarded, each part of the cache key and of the response's `Vary`; requires a
    duration as `ttl`. Default: accept, accept-language."""
    query: Annotated[TextList, BeforeValidator(no_modes("query"))] | None = None
    """The query parameters that are forwarded and part of the cache key; `drop_query` doesn't apply to them. Default:
    all. Requests that bypass the cache keep the whole query."""
    drop_query: Annotated[TextList, BeforeValidator(no_modes("drop_query"))] | None = None
    """Patterns of query parameters to drop from requests that may be cached, except those in `query`. Default: the
    gateway's `drop_query`."""
    authorization: Literal["pass", "ignore", "key"] = "pass"
    """For requests with Authorization: `pass` bypasses the cache (with `ttl: origin`, RFC 9111 §3.5 applies); `ignore`
    doesn't forward the header; `key` makes it part of the cache key, and responses `private`."""
    cookies: Literal["pass", "ignore"] | TextList = "pass"
    """For requests with cookies: `pass` bypasses the cache; `ignore` forwards none; a list of names makes those
    cookies, and no others, part of the cache key, and responses `private`. A `private` upstream response is stored if
    the key contains the client's identity."""
    identity: TextList = []
    """Who may request the route: names of `identity`, one of which must have verified the request's credential. Without
    a valid one the response is 401. The credential is not forwarded, and the response is `private`. Default: anyone."""
    optional: bool = False
    """With `identity`: whether requests without a credential are let in too. Their responses are separate ones."""
    require: RequireConfig = RequireConfig()
    """With `identity`: what the credential must say; otherwise the response is 403."""
    per: TextList = []
    """With `identity`: the claims that responses depend on, each part of the cache key: `[sub]` for one response for
    each user, `[plan]` for one for each plan. Default: one response for all who are let in; in an aggregate, the claims
    of its parts."""
    forward: dict[str, str] = {}
    """With `identity`: request headers that the upstream gets, and the claims they are made of, such as
    `{x-user: sub}`. Each claim must be in `per`. A client's own header of that name is removed."""
    forward_token: bool = False
    """With `identity`: whether the upstream gets the credential itself. Requires `ttl: origin` or `cache: off`, as the
    upstream then decides who gets which response."""
    downstream: Literal["private", "shared"] = "private"
    """With `identity`: whether responses are `private`, or may be stored by a cache in front that verifies credentials
    itself."""
    rate_limits: TextList = []
    """Names of `rate_limits`: how much each subject may request here. Routes that name the same limit share it. An
    aggregate counts once. Default: no limit."""
    expose_tags: bool = False
    """Whether clients see the upstream's `Surrogate-Key`, `Cache-Tag` and `xkey` headers."""
    purge_from: Networks = []
    """Networks that may purge a URL of this route with the PURGE method on the public port. Default: none."""
    request_directives: Literal["honour", "ignore"] = "honour"
    """Whether to honour the `Cache-Control` of requests (no-cache, max-age, …)."""
    headers: HeadersConfig = HeadersConfig()
    """Headers that are set, added and removed, in requests and in responses; after those of the upstream. An aggregate
    has those of responses alone."""
    max_body: Size | None = None
    """Maximum size of a stored body. Default: the gateway's `max_body`."""
    max_response_body: Annotated[Size, Field(ge=1)] | None = None
    """Maximum size of a response body from the upstream; a larger one is a 502. One of unknown length that is streamed
    is cut off there. Default: any size."""
    max_request_body: Size | None = None
    """Maximum size of a request body (413), at most the gateway's `max_request_body`, which is the default."""
    timeout: Duration | None = None
    """Timeout for a complete response, in place of the upstream's `timeout`; at most its `stream_timeout`."""
    websocket: bool = False
    """Whether WebSockets are passed on to the upstream at this path, besides HTTP."""
    websocket_max_message: Annotated[Size, Field(ge=1)] = 1024**2
    """Maximum size of a WebSocket message, in both directions; a larger one closes it (1009)."""
    websocket_idle_timeout: Annotated[Duration, Field(ge=timedelta(seconds=1))] = timedelta(minutes=10)
    """How long a WebSocket may be without a message; then it is closed (1001). Pings don't count."""
    websocket_ping: Annotated[Duration, Field(ge=timedelta(seconds=1))] = timedelta(seconds=20)
    """How long a side of a WebSocket may be silent before the gateway pings it; one that is silent for as long again
    is gone."""
    tags: Annotated[TextList, BeforeValidator(no_modes("tags"))] = []
    """Names by which responses are purged together; `{parameter}` is replaced by its value."""
    summary: str | None = None
    """A one-line summary for the API documentation."""
    description: str | None = None
    """A description (Markdown) for the API documentation."""
    examples: dict[str, str | int | float | bool] = {}
    """Example values of parameters, for the API documentation."""
    parts: dict[str, PartConfig] = {}
    """Makes the route an aggregate: one response joined from these parts, each with its own upstream and TTL."""
    deadline: Duration = timedelta(seconds=5)
    """For aggregates: the timeout for all parts together. Parts that have not responded by then have failed."""
    merge: Literal["shallow", "deep", "concat"] = "shallow"
    """For aggregates: how parts with `group: null` are merged into the root, in declaration order; later parts win.
    `shallow` merges top-level keys, `deep` merges nested objects too, `concat` also concatenates arrays."""
    selectable: bool = False
    """For aggregates: whether clients may select parts with `?parts=profile,offers`."""
    envelope: bool = False
    """For aggregates: whether the body reports the state of each part under `_meta`."""
    errors: bool = False
    """For aggregates: whether the body reports failed parts as Problem Details under `_errors`."""

    @field_validator("path")
    @classmethod
    def _path(cls, path: str) -> str:
        return _template(path).text

    @field_validator("methods", mode="before")
    @classmethod
    def _split_methods(cls, value: object) -> object:
        return value if value == "any" else split_commas(value)

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, value: Any) -> Any:
        return value if value is None or value == "any" else check_methods(value)

    @field_validator("reads")
    @classmethod
    def _readable(cls, methods: list[str]) -> list[str]:
        for name in methods:
            if name.upper() not in READABLE:
                near = misspelt(name.upper(), READABLE)
                raise ValueError(f"{name} is no read with a body; expected {', '.join(READABLE)}{near}")
        return [name.upper() for name in methods]

    @model_validator(mode="after")
    def _reads_pass(self) -> RouteConfig:
        if self.allowed is not None:
            for name in self.reads:
                if name not in self.allowed:
                    raise ValueError(f"reads: {name} must be in `methods` too")
        for setting in ("body", "upstream_method"):
            given = getattr(self, setting) != type(self).model_fields[setting].default
            if given and not self.content_methods:
                raise ValueError(f"{setting} requires `reads`, or QUERY in `methods`")
        return self

    @field_validator("tags")
    @classmethod
    def _tags(cls, tags: list[str]) -> list[str]:
        return check_tags(tags)

    @field_validator("cookies", mode="before")
    @classmethod
    def _cookies(cls, value: object) -> object:
        if value in ("pass", "ignore"):
            return value
        refuse_modes("cookies", value)
        return split_commas(value)

    @field_validator("parts", mode="before")
    @classmethod
    def _part_names(cls, value: Any, info: ValidationInfo) -> Any:
        return checked_names(value, info)

    @field_validator("forward")
    @classmethod
    def _forwarded(cls, fields: dict[str, str]) -> dict[str, str]:
        return {check_claim_field(name): claim for name, claim in fields.items()}

    @model_validator(mode="after")
    def _identified(self) -> RouteConfig:
        given = [name for name in OF_IDENTITY if getattr(self, name) != type(self).model_fields[name].default]
        if given and not self.identity:
            raise ValueError(f"{given[0]} requires `identity`")
        if not self.identity:
            refuse([problem for name, part in self.parts.items() for problem in _of_identity(name, part)])
            return self
        if self.authorization != "pass":
            raise ValueError("authorization can't be combined with `identity`, which verifies credentials itself")
        if self.forward_token and self.cache and self.ttl != "origin":
            raise ValueError("forward_token requires `ttl: origin` or `cache: off`: the upstream decides by the token")
        problems = []
        for name, claim in self.forward.items():
            if claim not in self.per:
                problems.append(PartProblem(("forward", name), f"`{claim}` must be in `per` too", claim))
                problems.append(PartProblem(("per",), f"lacks `{claim}`, which {name} forwards", self.per))
        refuse(problems)
        return self

    @model_validator(mode="after")
    def _aggregate(self) -> RouteConfig:
        if not self.parts:
            if self.upstream:
                return self
            missing = PydanticCustomError("missing", "Field required")
            raise ValidationError.from_exception_data("routes", [_located(("upstream",), missing, None)])
        refuse(self.part_plan.problems)
        unused = [name for name in _NOT_OF_AGGREGATES if name in self.model_fields_set]
        if unused:
            if unused[0] == "methods":
                raise ValueError("methods can't be combined with `parts`: an aggregate takes GET and HEAD")
            if unused[0] == "upstream":
                raise ValueError("upstream can't be combined with `parts`: each part names its own upstream")
            raise ValueError(f"{unused[0]} requires `upstream`; in an aggregate, set it on each part")
        if self.headers.request.changes:
            raise ValueError("headers.request requires `upstream`; in an aggregate, set `headers` on each part")
        return self

    @cached_property
    def part_plan(self) -> PartPlan:
        return plan_parts(self.template, self.parts, self.encoded_slashes)

    @model_validator(mode="after")
    def _consistent(self) -> RouteConfig:
        known = self.template.parameters
        try:
            compile_target(self.target_text, known, self.encoded_slashes)
        except TemplateError as error:
            raise ValueError(f"upstream_path {error}") from None
        for tag in self.tags:
            for name in tag_parameters(tag):
                if name not in known:
                    raise ValueError(f"tags: {{{name}}} isn't a parameter of the path {self.path}")
        if self.vary is not None and self.ttl == "origin":
            raise ValueError("vary requires a duration as ttl; with `ttl: origin` the upstream's Vary applies")
        if self.stream == "share" and self.ttl == "origin":
            raise ValueError(
                "stream: share requires a duration as ttl, such as 0s; what the upstream gets is then the key"
            )
        if self.client_ttl is not None and self.ttl == "origin":
            raise ValueError("client_ttl requires a duration as ttl; with `ttl: origin` the upstream's headers apply")
        return self

    @cached_property
    def template(self) -> PathTemplate:
        return PathTemplate(self.path)

    @cached_property
    def allowed(self) -> tuple[str, ...] | None:
        """The methods that pass, HEAD with GET; None for all."""
        if self.methods is None or self.methods == "any":
            return None
        return tuple(dict.fromkeys(name for each in self.methods for name in (each, *(("HEAD",) * (each == "GET")))))

    @cached_property
    def content_methods(self) -> frozenset[str]:
        """The methods of reads whose content is part of the cache key."""
        query = ("QUERY",) if isinstance(self.methods, list) and "QUERY" in self.methods else ()
        return frozenset((*self.reads, *query))

    @property
    def reads_by_default(self) -> bool:
        """Whether `methods` isn't set, and the default of the next release lets GET and HEAD pass alone."""
        if self.methods is not None or self.parts or not self.cache or self.ttl == "origin":
            return False
        return bool(self.ttl or self.stale_while_revalidate or self.stale_if_error)

    @property
    def target_text(self) -> str:
        return self.upstream_path if self.upstream_path is not None else self.path


def _of_identity(name: str, part: PartConfig) -> Iterator[PartProblem]:
    """The settings of a part that its aggregate has to have `identity` for."""
    for setting in ("per", "forward"):
        if getattr(part, setting):
            yield PartProblem(("parts", name, setting), f"{setting} requires `identity` of the aggregate")


def _located(loc: tuple[str, ...], error: PydanticCustomError, value: object) -> InitErrorDetails:
    return InitErrorDetails(type=error, loc=loc, input=value)


def refuse(problems: list[PartProblem]) -> None:
    """Raises ValidationError with each problem at its own place."""
    if problems:
        found = [
            _located(each.key, PydanticCustomError("value_error", "{message}", {"message": each.message}), each.value)
            for each in problems
        ]
        raise ValidationError.from_exception_data("parts", found)


def _template(text: str) -> PathTemplate:
    try:
        return compile_path(text)
    except TemplateError as error:
        raise ValueError(str(error)) from None


def rules_of(route: RouteConfig) -> CachePolicy:
    """A route's cache rules, in seconds."""

    def seconds(value: Any) -> float | None:
        return None if value is None else value.total_seconds()

    return CachePolicy(
        ttl=None if route.ttl == "origin" else route.ttl.total_seconds(),
        stale_while_revalidate=seconds(route.stale_while_revalidate),
        stale_if_error=seconds(route.stale_if_error),
        negative_ttl=route.negative_ttl.total_seconds(),
        client_ttl=seconds(route.client_ttl),
        request_directives=route.request_directives == "honour",
        authorization_keyed=route.authorization != "pass" or bool(route.identity and not route.forward_token),
        cache=route.cache,
    )
