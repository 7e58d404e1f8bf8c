"""The configuration of an aggregate's parts: settings, meanings, defaults.

Pure. Rules for a single part are checked here; those between parts in `config.part_graph`.
"""

from __future__ import annotations

import re
import warnings
from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, field_validator, model_validator

from gateway.config.expressions import Expression
from gateway.config.identity import check_claim_field
from gateway.config.names import no_modes, refuse_modes
from gateway.config.types import (
    NEVER_CONSTANT,
    Duration,
    FieldNames,
    Model,
    Size,
    TextList,
    Ttl,
    check_field_names,
    check_tags,
    check_vary,
    split_commas,
)
from gateway.http.target import Slashes

_DOTTED = re.compile(r"[^.\s]+(\.[^.\s]+)*")


def _check_expression(value: str) -> str:
    Expression(value)
    return value


ExpressionText = Annotated[str, AfterValidator(_check_expression)]


def _check_dotted(paths: list[str]) -> list[str]:
    for path in paths:
        if not _DOTTED.fullmatch(path):
            raise ValueError(f"{path!r} isn't a valid path; expected names joined by dots, such as seller.name")
    return paths


Paths = Annotated[TextList, AfterValidator(_check_dotted)]

# The settings that a part with `route` takes from it.
_OF_THE_ROUTE = (
    "method", "body", "headers", "query", "ttl", "stale_while_revalidate", "stale_if_error", "negative_ttl", "vary",
    "authorization", "cookies", "per", "forward", "tags", "max_body", "retries", "hedge", "for_each", "elements",
    "batch",
)  # fmt: skip
_OF_A_STATIC_PART = ("static", "static_if", "group", "when", "rename", "allow", "deny", "select")


class _PartConfig(Model):
    # All of PartConfig but `schema`.

    upstream: str | None = None
    """The name of the upstream."""
    route: str | None = None
    """The name of a declared route that supplies the part, with all of its settings; instead of `upstream`."""
    path: str | None = None
    """The requested path, with values in braces: `{user}`, a parameter of the aggregate's path; `{query.page}` and
    `{header.x-device}`, of the client's request; `{product.seller_id}`, of an earlier part; `{item}`, of `for_each`. No
    value can leave its segment. With `route`: a path that matches that route. Default: the route's own."""
    encoded_slashes: Slashes | None = None
    """What becomes of a slash in a value of `path`. `refuse`: the part is refused. `keep`: the value stays in its
    segment, with `%2F`. `decode`: the slash separates segments. Default: the aggregate's `encoded_slashes`."""
    method: Literal["GET", "POST"] = "GET"
    """POST is for upstreams that use it for reads. Neither such a part nor its aggregate is cached."""
    body: JsonValue = None
    """The JSON body of a POST."""
    headers: dict[str, str] = {}
    """Request headers of the part, with values in braces as in `path`; each is part of its cache key. A header is
    omitted if the client did not send its value."""
    query: Annotated[TextList, BeforeValidator(no_modes("query"))] = []
    """The client's query parameters that are forwarded to the part if present: all values of a name, in the client's
    order."""
    ttl: Ttl = "origin"
    """How long the part is fresh; as for a route."""
    stale_while_revalidate: Duration | None = None
    """How long after `ttl` to use the stale part at once and refresh it in the background; as for a route."""
    stale_if_error: Duration | None = None
    """How long after `ttl` to use the stale part when the upstream fails; as for a route."""
    negative_ttl: Duration = timedelta(seconds=5)
    """How long a 404 or 410 is fresh."""
    vary: Annotated[FieldNames, AfterValidator(check_vary), BeforeValidator(no_modes("vary"))] | None = None
    """The request headers that are forwarded, each part of the cache key; requires a duration as `ttl`. Default:
    accept, accept-language."""
    authorization: Literal["pass", "ignore", "key"] = "ignore"
    """The client's Authorization: `ignore` doesn't forward it; `pass` forwards it, and neither the part nor the
    aggregate is shared with other clients; `key` forwards it and makes it part of the cache key."""
    cookies: Literal["pass", "ignore"] | TextList = "ignore"
    """The client's cookies: as `authorization`; a list of names forwards those cookies and makes them part of the cache
    key."""
    per: TextList | None = None
    """With `identity` of the aggregate: the claims that the part depends on, each in its cache key; `[sub]` for one
    response for each user. Default: none, one response for all; if the part takes values of other parts, theirs."""
    forward: dict[str, str] = {}
    """With `identity` of the aggregate: request headers that the part's upstream gets, and the claims they are made of,
    such as `{x-user: sub}`. Each claim must be in `per`."""
    tags: Annotated[TextList, BeforeValidator(no_modes("tags"))] = []
    """Names by which the part, and every aggregate that contains it, can be purged; with values in braces as in
    `path`."""
    timeout: Duration | None = None
    """Timeout for the part, at most the upstream's `timeout`. Default: the upstream's `timeout`."""
    max_body: Annotated[Size, Field(ge=1)] | None = None
    """Maximum size of the part's body; a larger one is a failure, `too-large`. At most the aggregate's `max_body`,
    which is the default."""
    retries: Annotated[int, Field(ge=0, le=3)] = 0
    """How often to retry a failed fetch, within `timeout` and a budget of 10 % of the requests."""
    hedge: Duration | None = None
    """Delay after which a second request goes to another of the upstream's `urls`, within a budget of 5 % of the
    requests. The first good response wins."""
    optional: bool = False
    """Whether the aggregate responds without the part if it fails, with null in its place."""
    default: JsonValue = None
    """The value used if the part fails and has no stale copy; makes the part optional."""
    decode: Literal["auto", "json", "text", "xml"] = "auto"
    """How to decode the body. `auto`: JSON by Content-Type, text as a string; any other type is a failure. `json`: JSON
    regardless of Content-Type. `text`: a string. `xml`: objects, by xmltodict."""
    select: ExpressionText | None = None
    """A JMESPath expression applied to the part first; then `allow` or `deny`, `rename`, `group`."""
    allow: Annotated[Paths, BeforeValidator(no_modes("allow"))] = []
    """Dotted paths to keep, through lists; everything else is removed."""
    deny: Annotated[Paths, BeforeValidator(no_modes("deny"))] = []
    """Dotted paths to remove, through lists. Can't be combined with `allow`."""
    rename: dict[str, str] = {}
    """New names by dotted path, through lists: `{seller.town: city}`."""
    group: str | None = None
    """The name of the part in the response. Default: its own; null merges it into the root. In an aggregate with no
    other part, null makes the part the whole response, whatever its type."""
    for_each: ExpressionText | None = None
    """A list of an earlier part, as JMESPath: `cart.items[*].id`. The part is requested once for each distinct element
    (`{item}`) and becomes the list of responses in the same order, with null for elements that are null, empty or an
    object."""
    limit: Annotated[int, Field(ge=1, le=1000)] = 20
    """With `for_each`: maximum number of elements, and of concurrent requests."""
    elements: Literal["optional", "required"] = "optional"
    """With `for_each`: what happens if some elements fail. `optional`: they are null, and the response is incomplete.
    `required`: the part fails. If all elements fail, the part fails in any case."""
    batch: str | None = None
    """With `for_each`: a path that returns several elements at once, `/prices?ids={ids}`. Each element is still cached
    separately."""
    batch_key: str = "id"
    """With `batch`: the field that identifies an element in the batch's list. An object is indexed by its keys."""
    when: ExpressionText | None = None
    """A JMESPath condition over `path`, `query`, `header` and earlier parts. If it is false, null or empty, the part is
    omitted."""
    static: JsonValue = None
    """A constant part."""
    static_if: Literal["always", "incomplete"] = "always"
    """Whether a static part is always present, or only if another part failed."""
    shadow: bool = False
    """Requests the part, records metrics and discards the response, to test a new upstream with real traffic. The
    aggregate doesn't wait for it."""

    @property
    def is_static(self) -> bool:
        return "static" in self.model_fields_set

    @property
    def has_default(self) -> bool:
        return "default" in self.model_fields_set

    @property
    def at_root(self) -> bool:
        return "group" in self.model_fields_set and self.group is None

    def group_of(self, name: str) -> str | None:
        """Under which name the part `name` stands; None for the root."""
        return None if self.at_root else self.group or name

    @field_validator("cookies", mode="before")
    @classmethod
    def _cookies(cls, value: object) -> object:
        if value in ("pass", "ignore"):
            return value
        refuse_modes("cookies", value)
        return split_commas(value)

    @field_validator("headers")
    @classmethod
    def _headers(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, value in headers.items():
            if name.lower().encode("latin-1", "replace") in NEVER_CONSTANT:
                raise ValueError(f"{name} is set for each request; it can't be configured")
            if not value.isprintable() or any(ord(char) > 255 for char in value):
                raise ValueError(f"the value of {name} has a character that isn't allowed in a header")
        return dict(zip(check_field_names(list(headers)), headers.values(), strict=True))

    @field_validator("forward")
    @classmethod
    def _forwarded(cls, fields: dict[str, str]) -> dict[str, str]:
        return {check_claim_field(name): claim for name, claim in fields.items()}

    @field_validator("rename")
    @classmethod
    def _rename(cls, rename: dict[str, str]) -> dict[str, str]:
        _check_dotted(list(rename))
        return rename

    @field_validator("tags")
    @classmethod
    def _tags(cls, tags: list[str]) -> list[str]:
        return check_tags(tags)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        sources = [name for name in ("upstream", "route", "static") if name in self.model_fields_set]
        if len(sources) != 1:
            raise ValueError("requires exactly one of `upstream`, `route` and `static`")
        if self.upstream is not None and self.path is None:
            raise ValueError("path is missing")
        if self.is_static:
            self._refuse_all_but(_OF_A_STATIC_PART, "static")
        if self.route is not None:
            taken = [name for name in _OF_THE_ROUTE if name in self.model_fields_set]
            if taken:
                raise ValueError(f"{taken[0]} is set by the route; use `upstream` instead of `route` to set it here")
        return self

    def _refuse_all_but(self, names: tuple[str, ...], what: str) -> None:
        others = [name for name in type(self).model_fields if name in self.model_fields_set and name not in names]
        if others:
            raise ValueError(f"{others[0]} has no effect on a {what} part, which sends no request")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.allow and self.deny:
            raise ValueError("deny can't be combined with `allow`")
        if self.body is not None and self.method == "GET":
            raise ValueError("body requires `method: POST`")
        if self.batch is not None and (self.for_each is None or "{ids}" not in self.batch):
            raise ValueError("batch requires `for_each` and the placeholder {ids}, such as /prices?ids={ids}")
        if "elements" in self.model_fields_set and self.for_each is None:
            raise ValueError("elements requires `for_each`")
        if self.for_each is not None and self.path is not None and "{item}" not in self.path:
            raise ValueError("path must contain {item}, the element of `for_each`")
        if self.method == "POST" and (self.for_each is not None or self.hedge is not None or self.retries):
            raise ValueError(
                "method POST can't be combined with `for_each`, `hedge` or `retries`: it may not be idempotent"
            )
        if self.shadow and (self.optional or self.has_default or self.for_each is not None):
            raise ValueError("shadow can't be combined with `optional`, `default` or `for_each`")
        if self.vary is not None and self.ttl == "origin":
            raise ValueError("vary requires a duration as ttl; with `ttl: origin` the upstream's Vary applies")
        return self


with warnings.catch_warnings():
    # pydantic's models have a method of that name, deprecated since 2.0.
    warnings.filterwarnings("ignore", 'Field name "schema"')

    class PartConfig(_PartConfig):
        """A part of an aggregate: its source, its TTL and how it is transformed."""

        schema: str | None = None  # type: ignore[assignment]
        """A file with the JSON Schema of the transformed part, for the API documentation."""
