"""A GET or HEAD for the engine: its route, its plan and directives, and its origin."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from gateway.cache.store import Selection
from gateway.context import RequestContext
from gateway.errors import UpstreamError
from gateway.http.field_changes import NO_CHANGES, FieldChanges
from gateway.http.headers import Headers
from gateway.policy.downstream import Downstream
from gateway.policy.keys import NO_PLAN, Keying, Plan
from gateway.policy.rules import CachePolicy, RequestDirectives
from gateway.upstreams.response import Fetched


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """A route as the engine sees it, made once when the configuration is read.

    `max_body` is in bytes. With `validate` (a route whose ttl is a duration) answers without an ETag get one.
    """

    name: str
    rules: CachePolicy
    keying: Keying
    max_body: int = 2 * 1024 * 1024
    made: bool = False
    """Whether responses are derived here from stored ones (an aggregate): they are kept only in memory, as their
    sources are, and no upstream but the parts' is used."""
    downstream: Downstream = field(init=False, repr=False)
    """The fields for downstream caches."""
    follows_origin: bool = field(init=False, repr=False)
    """Whether the upstream decides how long its responses are kept."""
    selection: Selection = field(init=False, repr=False)
    """What its requests select, but for what each of them has of its own: plan, fields, tags."""

    def __post_init__(self) -> None:
        selection = Selection(NO_PLAN, (), self.name, largest=self.max_body, identity_key=self.keying.identity_key)
        object.__setattr__(self, "selection", selection)
        object.__setattr__(self, "downstream", Downstream.of(self.keying, made=self.made, changes=self.changes))
        object.__setattr__(self, "follows_origin", self.rules.ttl is None and not self.made)

    local: bool = False
    """Whether answers are a handler's in this process: its 4xx are answers, a 429 too."""
    changes: FieldChanges = NO_CHANGES
    """What settings change in the fields of its answers."""

    def takes(self, exchange: RequestContext) -> None:
        """Note that a request is answered by this route."""
        exchange.route, exchange.downstream = self.name, self.downstream


class Origin(Protocol):
    """Where the answers of one request come from: an upstream's target, or a handler's call."""

    @property
    def name(self) -> str: ...

    @property
    def deadline(self) -> float:
        """Seconds for a whole answer."""

    def refusal(self) -> UpstreamError | None:
        """Why it would be refused at once, known without a request: then no lease is taken. None if it may be sent."""

    def fetch(self, method: str, headers: Headers) -> Coroutine[Any, Any, Fetched]:
        """Raises UpstreamError."""


class CacheRequest(msgspec.Struct, frozen=True):
    """A GET or HEAD. `past` fetches for it without the cache, for this client only; `wanted` is the `selection` of its
    route with its own plan, fields and tags; `refresh` creates the origin of a background fetch, if that is another."""

    route: Route
    plan: Plan
    facts: RequestDirectives
    headers: Headers
    exchange: RequestContext
    origin: Origin
    past: Callable[[], Awaitable[Fetched]]
    wanted: Selection
    refresh: Callable[[], Origin] | None = None
    stays: bool = False
    """Whether the caller continues to the landing of a flight that it leads, though its client may disconnect."""
    bare: bool = False
    """Whether the caller takes the stored response itself (`RequestContext.stored`): no answer is made of it."""

    @property
    def method(self) -> str:
        return "HEAD" if self.facts.head else "GET"
