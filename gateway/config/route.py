"""The configuration of a route: what may be set, what it means, what its default is. Pure.

One with `parts` is an aggregate; what can be said of its parts is checked in `part_config` and `part_plan`.
"""

from __future__ import annotations

from datetime import timedelta
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from gateway.config.names import no_modes, refuse_modes
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
from gateway.policy.rules import CachePolicy

_NOT_OF_AGGREGATES = (
    "upstream", "upstream_path", "cache", "ttl", "stale_while_revalidate", "stale_if_error", "negative_ttl",
    "client_ttl", "vary", "query", "drop_query", "authorization", "cookies", "expose_tags",
)  # fmt: skip


class RouteConfig(Model):
    """A path that the gateway serves from an upstream, and how long its answers live."""

    path: str
    """The path, with parameters: `{name}` takes one segment, `{name:path}` at the end all that follows. The more
    specific path wins, whatever the order in the file."""
    upstream: str = ""
    """The name of the upstream that is asked; an aggregate has `parts` in its place."""
    upstream_path: str | None = None
    """What the upstream is asked for, with the parameters of `path`; the same path where it is not set."""
    cache: bool = True
    """`off` passes every request on to the upstream: nothing is stored, nothing that was is given, and no request waits
    for another's answer."""
    ttl: Ttl = "origin"
    """How long an answer is fresh. `origin` follows the upstream's headers (RFC 9111); a duration overrules them,
    but for answers that are `private`, `no-store` or set a cookie. `0s` is as `cache: off`, unless a stale window is
    set for which answers are kept."""
    stale_while_revalidate: Duration | None = None
    """How long after `ttl` the old answer is given at once, while a new one is fetched behind. Not set: as the
    upstream says, or not at all."""
    stale_if_error: Duration | None = None
    """How long after `ttl` the old answer is given where the upstream fails. Not set: as the upstream says, or
    10 minutes."""
    negative_ttl: Duration = timedelta(seconds=5)
    """How long a 404 or 410 is fresh where the upstream does not say; `0s` stores none."""
    client_ttl: Duration | None = None
    """How long clients may keep an answer (with a `ttl` of its own). Not set: until the entry's life ends."""
    vary: Annotated[FieldNames, AfterValidator(check_vary), BeforeValidator(no_modes("vary"))] | None = None
    """With a `ttl` of its own: the request headers that are forwarded, each of them part of the cache key, and of the
    answers' `Vary`. Not set: accept, accept-language."""
    query: Annotated[TextList, BeforeValidator(no_modes("query"))] | None = None
    """The query parameters that count and are forwarded, whatever is dropped elsewhere. Not set: all of them. Requests
    that pass by the cache keep their query whole."""
    drop_query: Annotated[TextList, BeforeValidator(no_modes("drop_query"))] | None = None
    """Patterns of query parameters that are dropped where an answer may be shared, unless `query` lists them. Not set:
    the gateway's `drop_query`."""
    authorization: Literal["pass", "ignore", "key"] = "pass"
    """A request with Authorization: `pass` goes by the cache (with `ttl: origin`, as RFC 9111 §3.5 allows), `ignore`
    does not forward it, `key` makes it part of the cache key, and the answers `private`."""
    cookies: Literal["pass", "ignore"] | TextList = "pass"
    """A request with cookies: `pass` goes by the cache, `ignore` forwards none, a list of names makes those (and no
    others) part of the cache key, and the answers `private`. What an upstream calls `private` is stored where the
    key holds who asks."""
    expose_tags: bool = False
    """Whether clients see the upstream's `Surrogate-Key`, `Cache-Tag` and `xkey`."""
    purge_from: Networks = []
    """Networks from which the PURGE method on the public port purges a URL of this route; none by default."""
    request_directives: Literal["honour", "ignore"] = "honour"
    """Whether a client's own `Cache-Control` (no-cache, max-age, …) is obeyed."""
    max_body: Size | None = None
    """The largest body that is stored. Not set: the gateway's `max_body`."""
    tags: Annotated[TextList, BeforeValidator(no_modes("tags"))] = []
    """Names under which the answers can be purged together; `{parameter}` stands for its value."""
    summary: str | None = None
    """What the route is, in a line, for the API documentation."""
    description: str | None = None
    """What the route is, at length (Markdown), for the API documentation."""
    examples: dict[str, str | int | float | bool] = {}
    """Example values of parameters, for the API documentation."""
    parts: dict[str, PartConfig] = {}
    """Makes the route an aggregate: one answer, joined from these parts, each with its own upstream and cache life."""
    deadline: Duration = timedelta(seconds=5)
    """Of an aggregate: how long its parts may take together; who has not answered by then has failed."""
    merge: Literal["shallow", "deep", "concat"] = "shallow"
    """Of an aggregate: how parts with `group: null` are merged into the root, in their declared order, where the later
    wins: key by key (`shallow`), objects within objects too (`deep`), arrays joined besides (`concat`)."""
    selectable: bool = False
    """Of an aggregate: whether clients may ask for some of its parts by `?parts=profile,offers`."""
    envelope: bool = False
    """Of an aggregate: whether the body says under `_meta` what became of each part."""
    errors: bool = False
    """Of an aggregate: whether the body shows the failures of parts as problem details, under `_errors`."""

    @field_validator("path")
    @classmethod
    def _path(cls, path: str) -> str:
        return _template(path).text

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
            if unused[0] == "upstream":
                raise ValueError("upstream can't be combined with `parts`: each part names its own upstream")
            raise ValueError(f"{unused[0]} goes with `upstream`: each of an aggregate's parts has its own")
        return self

    @cached_property
    def part_plan(self) -> PartPlan:
        return plan_parts(self.template, self.parts)

    @model_validator(mode="after")
    def _consistent(self) -> RouteConfig:
        known = self.template.parameters
        try:
            compile_target(self.target_text, known)
        except TemplateError as error:
            raise ValueError(f"upstream_path {error}") from None
        for tag in self.tags:
            for name in tag_parameters(tag):
                if name not in known:
                    raise ValueError(f"tags: {{{name}}} is no parameter of the path {self.path}")
        if self.vary is not None and self.ttl == "origin":
            raise ValueError("vary goes with a ttl of its own; with `ttl: origin` the upstream's Vary decides")
        if self.client_ttl is not None and self.ttl == "origin":
            raise ValueError("client_ttl goes with a ttl of its own; with `ttl: origin` the upstream decides")
        return self

    @cached_property
    def template(self) -> PathTemplate:
        return PathTemplate(self.path)

    @property
    def target_text(self) -> str:
        return self.upstream_path if self.upstream_path is not None else self.path


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
        authorization_keyed=route.authorization != "pass",
        cache=route.cache,
    )
