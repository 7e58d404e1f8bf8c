"""What happened to a request: one value, from which the headers, the metrics and the log are all made.

Pure. `render` writes it as `Cache-Status` (RFC 9211).
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


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
    """The cache was passed by."""
    ERROR = "error"
    """The gateway had to answer for the upstream."""
    LOCAL = "local"
    """Answered here without any cache: health, documentation, refusals, uncached handlers."""


class Outcome(msgspec.Struct, frozen=True):
    """`ttl` is the remaining freshness in seconds, negative where it ended. `forward` is the reason for which the
    upstream was asked, in RFC 9211's words; `tier` is where a hit lay."""

    result: Result
    forward: str | None = None
    forward_status: int | None = None
    ttl: int | None = None
    stored: bool = False
    collapsed: bool = False
    tier: str | None = None
    detail: str | None = None


LOCAL = Outcome(Result.LOCAL)

# RFC 9211 §2.2 has these; what the engine knows more exactly goes into `detail`.
FORWARD_REASONS = frozenset(("bypass", "method", "uri-miss", "vary-miss", "miss", "request", "stale", "partial"))


def cache_status(outcome: Outcome, *, ttl: str | None = None) -> str:
    """The value of `Cache-Status` for an outcome (RFC 9211 §2); `ttl` stands in place of its own, where it has one."""
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
