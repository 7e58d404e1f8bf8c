from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.aggregates.splice_plan import Joinable
from gateway.cache.request import Ask, Route
from gateway.cache.respond import Answer
from gateway.context import Exchange

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True)
class Recall:
    """How the app answered a request, for the edge to do the same. `ask` is the request as the engine takes it, to
    refresh a stale answer; None leaves stale answers to the app."""

    route: Route
    origin: str
    target: str
    tags: tuple[str, ...]
    public: Callable[[Answer], Answer]
    ask: Callable[[Exchange], Ask] | None
    joinable: Callable[[Exchange], Joinable | None] | None = None
    """How the answer can be joined of what lies in memory; of aggregates."""
