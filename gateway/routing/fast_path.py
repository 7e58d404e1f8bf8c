from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.aggregates.splice_plan import SplicePlan
from gateway.cache.request import CacheRequest, Route
from gateway.cache.respond import Answer
from gateway.context import RequestContext

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True)
class FastPath:
    """How the app answered a request, for the edge to do the same. `ask` is the request as the engine takes it, to
    refresh a stale answer; None leaves stale answers to the app."""

    route: Route
    origin: str
    target: str
    tags: tuple[str, ...]
    public: Callable[[Answer], Answer]
    ask: Callable[[RequestContext], CacheRequest] | None
    joinable: Callable[[RequestContext], SplicePlan | None] | None = None
    """How the answer can be joined of what lies in memory; of aggregates."""
