"""The outcome of a request: one value, from which headers, metrics and log are made; and the request's context.

Pure. `render` writes the outcome as `Cache-Status` (RFC 9211). The outermost layer creates the context and puts it in
the scope; the engine sets the outcome; headers, metrics and log are made from it at the end, so they can't disagree.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from gateway.errors import LimitReached, UpstreamError
from gateway.http.forwarding import Told
from gateway.http.headers import Headers
from gateway.http.target import Target
from gateway.policy.downstream import NOTHING, Downstream
from gateway.policy.entry import Entry

if TYPE_CHECKING:
    from gateway.identity.principal import Principal


class Result(StrEnum):
    """The outcome of a request, as metrics and logs name it."""

    HIT = "hit"
    STALE = "stale"
    """Served stale, refreshed behind."""
    STALE_ERROR = "stale_error"
    """Served stale because the upstream failed."""
    REVALIDATED = "revalidated"
    """The upstream confirmed what was stored."""
    MISS = "miss"
    BYPASS = "bypass"
    """The request bypassed the cache."""
    ERROR = "error"
    """The gateway had to answer for the upstream."""
    LOCAL = "local"
    """Answered here without any cache: health, documentation, refusals, uncached handlers."""


class Outcome(msgspec.Struct, frozen=True):
    """`ttl` is the remaining freshness in seconds, negative if stale. `forward` is the reason for a request to the
    upstream, in RFC 9211's terms; `tier` is the tier of a hit."""

    result: Result
    forward: str | None = None
    forward_status: int | None = None
    ttl: int | None = None
    stored: bool = False
    collapsed: bool = False
    tier: str | None = None
    detail: str | None = None


LOCAL = Outcome(Result.LOCAL)

# RFC 9211 §2.2 defines these; more specific reasons are in `detail`.
FORWARD_REASONS = frozenset(("bypass", "method", "uri-miss", "vary-miss", "miss", "request", "stale", "partial"))


@lru_cache(maxsize=1024)  # a route's misses have the same few
def cache_status(outcome: Outcome, *, ttl: str | None = None) -> str:
    """The value of `Cache-Status` for an outcome (RFC 9211 §2); `ttl` replaces its own, if it has one."""
    parts = ["gateway"]
    if outcome.forward is None:
        parts.append("hit")
    else:
        parts.append(f"fwd={outcome.forward}")
        if outcome.stored:
            parts.append("stored")
        if outcome.collapsed:
            parts.append("collapsed")
        if outcome.forward_status is not None:
            parts.append(f"fwd-status={outcome.forward_status}")
    if outcome.ttl is not None:
        parts.append(f"ttl={outcome.ttl if ttl is None else ttl}")
    if outcome.detail is not None:
        parts.append(f"detail={outcome.detail}")
    return "; ".join(parts)


SCOPE_KEY = "gateway.exchange"
INTERIM_KEY = "gateway.interim"
"""The ASGI extension by which the protocol class passes interim responses (1xx) on."""
LOOKED_KEY = "gateway.looked"
"""Set by the protocol class if it has just read the shared tier for this request, without a result."""


class PartState(msgspec.Struct, frozen=True):
    """The state of a part: `text` as in `Gateway-Parts` (`stale;age=31`), `seconds` its duration."""

    name: str
    text: str
    seconds: float


class Allowance(Protocol):
    """The limits that count requests which the cache can't answer, for one request, which counts once, however often it
    asks. It does not hold the request, which holds it."""

    def refusal(self, exchange: RequestContext) -> Awaitable[LimitReached | None]:
        """Why the upstream may not be asked for this request; None where it may, and then it counts."""

    def give_back(self, exchange: RequestContext) -> None:
        """Another request's fetch serves this one, which then does not count."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a WebSocket ended: who ended it (`client`, `upstream` or `gateway`), with which code, and how many bytes the
    client got."""

    by: str
    code: int
    sent: int


class Relayed(Protocol):
    """A WebSocket between a client and an upstream."""

    def on_end(self, ended: Callable[[Ended], None]) -> None:
        """Call `ended` once it has ended; at once, if it has already."""


class RequestContext(msgspec.Struct):
    """`began` is a value of the performance counter. `spent` holds seconds by activity."""

    request_id: str
    began: float
    method: str
    client: str
    scheme: str
    host: str = ""
    target: Target | None = None
    headers: Headers = ()
    outcome: Outcome = LOCAL
    route: str = ""
    downstream: Downstream = NOTHING
    """The fields for downstream caches."""
    spent: defaultdict[str, float] = msgspec.field(default_factory=partial(defaultdict, float))
    forwarded_for: str = ""
    told: Told | None = None
    """The information from trusted proxies; None if there is none."""
    root: str = ""
    """The path prefix under which the client reached the gateway, encoded; `target` is without it."""
    looked: bool = False
    """Whether the shared tier was read already, without a result."""
    principal: Principal | None = None
    """Who sent the request, on a route with `identity`."""
    allowance: Allowance | None = None
    """Asked before the upstream is, if limits of the route count that; None for parts and refreshes."""
    rate_limit: tuple[tuple[bytes, bytes], ...] = ()
    """The fields that announce limits, in a response that is no hit."""
    leading: bool = False
    """Whether a fetch that others may wait for is made in this request's task, which must then not be cancelled."""
    failure: tuple[str, str] | None = None
    """The cause of an upstream failure for this request, and a text; None if there was none."""
    key: int = 0
    """The hash of the cache key; 0 if the cache was not used."""
    relay: Relayed | None = None
    """The WebSocket that its connection has become."""
    closed: tuple[str, int] | None = None
    """Who closed that, and the code."""
    changed: bool | None = None
    """Whether a fetch returned content that differs from the stored response; None if there was none to compare."""
    recall: Any = None
    """How a declared route served the request, for the edge to remember: a `FastPath`, or a `Recall` that makes it."""
    stored: Entry | None = None
    """The stored response that answered."""
    parts: tuple[PartState, ...] = ()
    """The states of an aggregate's parts, if they were joined for this request."""
    scope: dict[str, Any] = {}
    """The request's scope as the routes first saw it, from which a refresh behind replays it."""

    def __repr__(self) -> str:
        return f"<RequestContext {self.method} {self.target} {self.outcome!r}>"

    def came_through(self, told: Told) -> None:
        """Note what trusted proxies say of the client."""
        self.told, self.client, self.forwarded_for = told, told.client, ", ".join(told.chain)
        self.scheme = told.scheme or self.scheme

    def cut(self, error: UpstreamError) -> None:
        """The upstream broke off in the middle of the answer, whose head was sent."""
        self.failure = error.why
        self.outcome = msgspec.structs.replace(self.outcome, result=Result.ERROR, detail="cut", stored=False)


def exchange_of(scope: MutableMapping[str, Any]) -> RequestContext | None:
    exchange = scope.get(SCOPE_KEY)
    return exchange if isinstance(exchange, RequestContext) else None


RELAY_KEY = "gateway.websocket"
"""The ASGI extension by which the protocol class relays frames between a client and an upstream."""
HOST_KEY = "gateway.host"
"""The Host that the client sent, if the scope has that of `public_url` in its place: what a cached handler reads."""
REQUEST_ID = re.compile(rb"[A-Za-z0-9._\-]{1,128}")
RAW_TARGET_KEY = "gateway.raw_target"
"""The scope key of the unmodified request target; ASGI alone drops the host of an absolute form."""
TARGET_KEY = "gateway.target"
"""The scope key of the same, normalised by the protocol class: a `Target`, below no prefix."""
STORED_KEY = "gateway.stored"
"""The scope key by which the protocol class offers to write a stored response, once dependencies are solved."""
WRITTEN_KEY = "gateway.written"
"""Set in the scope once it has: the response is complete, counted and logged."""
