"""How a route served a request, so that the edge can serve the next ones in the same way, before ASGI."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from gateway.cache.request import CacheRequest, Route
from gateway.cache.respond import Answer
from gateway.context import RequestContext
from gateway.http.headers import Headers
from gateway.http.target import Target
from gateway.identity.admission import Admission
from gateway.identity.principal import Principal
from gateway.policy.keys import Keying, PlannedFields
from gateway.policy.rules import RequestDirectives, directives_of


class InterimClient(Protocol):
    """A request's client, which may get interim responses."""

    def interim(self, status: int, headers: Headers) -> None: ...


class Planned(dict[tuple[Route, str], tuple[PlannedFields, RequestDirectives] | None]):
    """What requests with these fields come to by route and method, whatever their target; made when it is asked for.
    None for a route that keys the request ID, which is not among the fields."""

    __slots__ = ("_headers",)

    def __init__(self, headers: Headers) -> None:
        self._headers = headers

    def __missing__(self, asked: tuple[Route, str]) -> tuple[PlannedFields, RequestDirectives] | None:
        (route, method), headers, made = asked, self._headers, None
        if "x-request-id" not in (route.keying.vary or ()):
            made = PlannedFields.of(route.keying, headers), directives_of(method, headers, route.rules)
        self[asked] = made
        return made


class PlanCache(Protocol):
    """A parsed header block, by which its requests are planned."""

    @property
    def planned(self) -> Planned: ...


class PartFields(msgspec.Struct):
    """The fields of a request as the parts of aggregates see them, and what they come to under a keying, by its id."""

    headers: Headers
    planned: dict[int, tuple[Keying, PlannedFields]]


class BlockCache(PlanCache, Protocol):
    """The same with the block's own fields."""

    headers: list[tuple[bytes, bytes]]
    for_parts: PartFields | None
    """Made by the first aggregate that the block requests."""


Admit = Callable[[Principal | None, str, float], bool]
"""Counts a hit for a principal (None: nobody says who) and a client's address towards the limits of its route, at an
instant of the clock (seconds). False, and nothing is counted, if the app must decide."""

Refuses = Callable[[str], bool]
"""Whether so many credentials of a client's address were refused that the app counts one before it is verified."""


class FastPath(msgspec.Struct, frozen=True, gc=False):
    """How the app served a request, so that the edge can do the same. `ask` is the request for the engine, to refresh a
    stale response; None leaves stale responses to the app.

    One is made for each request line that is answered first, so it may hold nothing that leads back to it: the garbage
    collector does not follow it."""

    route: Route
    origin: str
    target: str
    tags: tuple[str, ...]
    public: Callable[[Answer], Answer]
    ask: Callable[[RequestContext], CacheRequest] | None
    joinable: Callable[[RequestContext], object | None] | None = None
    """How the response can be joined from memory, as a `SplicePlan`; for aggregates."""
    content: str = ""
    """The line of the base key for the content of a request; empty for a request without."""
    method: str = ""
    """The method of a request with content; empty for GET and HEAD."""
    solved: bool = False
    """Whether the app must solve dependencies before each response, which the edge then only writes."""
    admission: Admission | None = None
    """What the route asks of credentials; None if it lets anybody in."""
    refuses: Refuses | None = None
    """Asked before a credential is verified; None without limits that count refused ones."""
    admit: Admit | None = None
    """Called for each hit, once it is certain that the edge writes it; None without limits that count hits."""


class Recall(Protocol):
    """Makes what the edge remembers of a request line, if it comes again."""

    def recall(self, line: bytes) -> tuple[FastPath, Target | None]:
        """That, and the line's target."""
